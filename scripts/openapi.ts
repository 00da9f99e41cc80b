/**
 * Writes `openapi.json` from the routes; with `--check` it writes nothing and exits 1 if the
 * committed file differs.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describeApi } from "../src/api/describe.ts";

const path = fileURLToPath(new URL("../openapi.json", import.meta.url));
const wanted = `${JSON.stringify(describeApi(), null, 2)}\n`;

if (process.argv.includes("--check")) {
  let found = "";
  try {
    found = readFileSync(path, "utf8");
  } catch {
    // A missing file differs, too.
  }
  if (found !== wanted) {
    process.stderr.write("openapi.json is not what the routes say: run scripts/openapi.ts\n");
    process.exitCode = 1;
  }
} else {
  writeFileSync(path, wanted);
}
