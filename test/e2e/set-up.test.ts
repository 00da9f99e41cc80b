/** Installing the packages in a clean copy changes nothing that is committed. */
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const run = promisify(execFile);
const root = fileURLToPath(new URL("../..", import.meta.url));
const committed = ["package.json", "package-lock.json", ".npmrc"];
const test = suite("set-up in a clean copy");

test("the lock stays as it is", async () => {
  const copy = mkdtempSync(join(tmpdir(), "nb-set-up-"));
  try {
    mkdirSync(join(copy, "scripts"));
    for (const file of [...committed, "scripts/setup.sh"])
      cpSync(join(root, file), join(copy, file));
    // npm's own setting, which writes the registry's addresses: whatever this user's is.
    const env = { ...process.env, npm_config_omit_lockfile_registry_resolved: "false" };
    await run("sh", [join(copy, "scripts/setup.sh"), "packages"], { env });
    assert.ok(existsSync(join(copy, "node_modules/.bin/deno")), "the packages are installed");
    const read = (folder: string, file: string) => readFileSync(join(folder, file), "utf8");
    for (const file of committed) assert.is(read(copy, file), read(root, file), file);
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
});

test.run();
