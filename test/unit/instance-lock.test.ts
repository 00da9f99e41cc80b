/** One daemon per network namespace, whenever the others come and go. */
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { z } from "zod";
import { lockInstance } from "../../src/runtime/instance-lock.ts";
import { runtimeCommand } from "../runtime-command.ts";

const test = suite<{ folder: string }>("instance lock");
/** Of no namespace: the kernel counts its own from 0xf0000000, 32 bits wide. */
const inode = 2 ** 33 + process.pid;
const lockFile = `/run/natbridge-${inode}.lock`;
const counts = z.object({ held: z.int(), shared: z.int() });

/** Another process that takes it whenever it can; answers how often it had it, and how often with others. */
async function contend(folder: string, seconds: number) {
  const script = join(import.meta.dirname, "lock-contender.ts");
  const [program, ...flags] = runtimeCommand;
  const args = [...flags, script, String(inode), folder, String(seconds)];
  const { stdout } = await promisify(execFile)(program, args);
  return counts.parse(JSON.parse(stdout));
}

test.before((context) => {
  context.folder = mkdtempSync(join(tmpdir(), "natbridge-lock-"));
});
test.after(({ folder }) => rmSync(folder, { recursive: true, force: true }));

test("is refused to others while it is held, and leaves no file", async ({ folder }) => {
  const lock = lockInstance(inode);
  assert.is((await contend(folder, 0.5)).held, 0);
  lock.release();
  assert.not.ok(existsSync(lockFile));
  assert.ok((await contend(folder, 0.5)).held > 0);
  assert.not.ok(existsSync(lockFile));
});

test("is never had by two, however often it changes hands", async ({ folder }) => {
  const results = await Promise.all([1, 2, 3].map(() => contend(folder, 4)));
  assert.ok(results.filter(({ held }) => held > 10).length > 1, JSON.stringify(results));
  assert.equal(
    results.map(({ shared }) => shared),
    [0, 0, 0],
  );
});

test.run();
