/** Setting up: the lock stays as committed, and programs are found wherever cargo builds. */
import { execFileSync } from "node:child_process";
import {
  chmodSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { z } from "zod";
import { newestProgram } from "../../src/holder/start.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const test = suite<{ folder: string }>("set-up", { folder: "" });
test.before.each((context) => {
  context.folder = mkdtempSync(join(tmpdir(), "nb-set-up-"));
});
test.after.each(({ folder }) => rmSync(folder, { recursive: true, force: true }));

const names = z.record(z.string(), z.string()).default({});
const lockSchema = z.object({
  packages: z.record(
    z.string(),
    z.object({
      resolved: z.string().optional(),
      dependencies: names,
      optionalDependencies: names,
    }),
  ),
});

test("the lock holds every package of every platform, and names no registry", () => {
  const { packages } = lockSchema.parse(
    JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")),
  );
  /** As node looks for it: in the package's own node_modules, then in those above. */
  const isLocked = (from: string, name: string): boolean => {
    for (let at = from; ; at = at.slice(0, Math.max(at.lastIndexOf("/node_modules/"), 0))) {
      if (`${at === "" ? "" : `${at}/`}node_modules/${name}` in packages) return true;
      if (at === "") return false;
    }
  };
  const missing: string[] = [];
  for (const [path, { resolved, dependencies, optionalDependencies }] of Object.entries(packages)) {
    assert.is(resolved, undefined, path);
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies }))
      if (!isLocked(path, name)) missing.push(`${name} of ${path || "natbridge"}`);
  }
  assert.ok(Object.keys(packages).length > 100);
  assert.equal(missing, []);
});

for (const variable of ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"])
  test(`a program is found where ${variable} says`, ({ folder }) => {
    const elsewhere = join(folder, "elsewhere");
    // Another name of what is built already, so that nothing has to be built again.
    const { CARGO_TARGET_DIR: own } = process.env;
    symlinkSync(resolve(root, own ?? "target"), elsewhere);
    const path = execFileSync(
      "sh",
      [join(root, "scripts/cargo-program.sh"), "natbridge-proxy", "natbridge-holder"],
      {
        encoding: "utf8",
        env: { ...process.env, CARGO_TARGET_DIR: undefined, [variable]: elsewhere },
      },
    ).trim();
    assert.ok(path.startsWith(`${elsewhere}/`), path);
    assert.match(execFileSync(path, ["--version"], { encoding: "utf8" }), /^natbridge-holder \d/);
  });

test("of several built holders the newest is taken", ({ folder }) => {
  const program = (name: string, time: number): string => {
    const path = join(folder, name);
    writeFileSync(path, "#!/bin/sh\n");
    chmodSync(path, 0o755);
    utimesSync(path, time, time);
    return path;
  };
  const [older, newer] = [program("older", 1000), program("newer", 2000)];
  assert.is(newestProgram([older, newer, join(folder, "absent")]), newer);
  assert.is(newestProgram([newer, older]), newer);
  chmodSync(newer, 0o644);
  assert.is(newestProgram([older, newer]), older, "what cannot be run is none");
  assert.is(newestProgram([join(folder, "absent")]), null);
});

test.run();
