/**
 * Takes and gives up an instance lock over and over. Prints how often it had it, and how often it was not
 * alone with it.
 *
 *     lock-contender.ts INODE FOLDER SECONDS
 */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { lockInstance } from "../../src/runtime/instance-lock.ts";

const [inode = "", folder = "", seconds = ""] = process.argv.slice(2);
const sign = join(folder, "alone");
const end = Date.now() + Number(seconds) * 1000;
let held = 0;
let shared = 0;
while (Date.now() < end) {
  let lock: ReturnType<typeof lockInstance>;
  try {
    lock = lockInstance(Number(inode));
  } catch {
    continue;
  }
  held++;
  try {
    writeFileSync(sign, "", { flag: "wx" });
  } catch {
    shared++;
  }
  rmSync(sign, { force: true });
  lock.release();
}
console.log(JSON.stringify({ held, shared }));
process.exit(0);
