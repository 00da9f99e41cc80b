/** `natbridge demo` tells the truth, and leaves nothing behind. */
import { execFile, execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { z } from "zod";
import { sleep } from "./topology.ts";

const program = fileURLToPath(new URL("../../bin/natbridge", import.meta.url));

const requestSchema = z.object({
  step: z.enum(["request", "bulk"]),
  from: z.string(),
  url: z.string(),
  status: z.int(),
  path: z.string(),
  original: z.string(),
  afterNat: z.string(),
  counters: z.object({ fastPackets: z.number(), connectsServed: z.number() }),
});
const survivedSchema = z.object({
  step: z.literal("survived"),
  withoutDaemon: z.int(),
  failed: z.int(),
});
const storySchema = z.object({
  name: z.string(),
  kept: z.boolean(),
  steps: z.array(z.looseObject({ step: z.string() })),
});

const startSchema = z.object({ step: z.literal("start"), pins: z.string() });

/** Where the demo that told these steps had its pins. */
const pinsOf = (steps: { step: string }[]): string =>
  startSchema.parse(steps.find(({ step }) => step === "start")).pins;

const ip = (...args: string[]): string => execFileSync("ip", args, { encoding: "utf8" });
const processesOf = (name: string): string[] =>
  execFileSync("ps", ["-eo", "pid,args"], { encoding: "utf8" })
    .split("\n")
    .filter((line) => line.includes(`${name}-`) || line.includes(`/${name}`));

function demo(args: string[], runtime: string): Promise<{ code: number; stdout: string }> {
  return new Promise((resolve) => {
    const env = { ...process.env, NATBRIDGE_RUNTIME: runtime };
    execFile(program, ["demo", ...args], { env, timeout: 120_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ code, stdout: code === 0 ? stdout : `${stdout}${stderr}` });
    });
  });
}

function assertNothingLeft(name: string, pins: string): void {
  assert.not.match(ip("netns", "list"), new RegExp(name));
  assert.not(existsSync(pins), `${pins} is left`);
  assert.equal(processesOf(name), []);
  assert.equal(
    readdirSync(tmpdir()).filter((entry) => entry.startsWith(`${name}-`)),
    [],
  );
}

const test = suite("demo");

for (const runtime of ["deno", "node"])
  test(`on ${runtime}: every request is answered, and nothing is left`, async () => {
    const { code, stdout } = await demo(["--json"], runtime);
    assert.is(code, 0, stdout);
    const { name, steps } = storySchema.parse(JSON.parse(stdout));
    const requests = steps
      .filter(({ step }) => step === "request" || step === "bulk")
      .map((step) => requestSchema.parse(step));
    assert.is(requests.length, 7);
    for (const { from, url, status, path, original, afterNat } of requests) {
      assert.is(status, 200, `${from} ${url}`);
      assert.match(path, /^(connect hook, then |forwarder, then )?(kernel|fast) path$/);
      assert.match(original, / -> /);
      assert.match(afterNat, / -> 172\.32\.0\.2:80$/);
    }
    const bulk = requests.find(({ step }) => step === "bulk");
    assert.is(bulk?.path, "fast path");
    assert.ok((bulk?.counters.fastPackets ?? 0) > 100);
    const survived = survivedSchema.parse(steps.find(({ step }) => step === "survived"));
    assert.is(survived.failed, 0);
    assert.ok(survived.withoutDaemon > 10);
    assertNothingLeft(name, pinsOf(steps));
  });

test("interrupted, it cleans up too", async () => {
  const child = spawn(program, ["demo"], { stdio: "ignore" });
  const name = `nbdemo${child.pid}`;
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  for (let waited = 0; waited < 100 && !ip("netns", "list").includes(`${name}-web`); waited += 1)
    await sleep(100);
  await sleep(2500);
  assert.match(ip("netns", "list"), new RegExp(`${name}-host`));
  const pins = `/sys/fs/bpf/natbridge/${statSync(`/run/netns/${name}-host`).ino}`;
  assert.ok(existsSync(pins), `${pins} is there while it runs`);
  // Not child.kill(): after it Deno reports the signal, whatever the process made of it.
  process.kill(child.pid ?? 0, "SIGINT");
  assert.is(await ended, 1);
  assertNothingLeft(name, pins);
});

test("kept, it stays until it is removed", async () => {
  const { code, stdout } = await demo(["--keep", "--json"], "deno");
  assert.is(code, 0, stdout);
  const { name, kept, steps } = storySchema.parse(JSON.parse(stdout));
  assert.ok(kept);
  assert.ok(existsSync(pinsOf(steps)));
  assert.match(ip("netns", "list"), new RegExp(`${name}-host`));
  assert.is((await demo(["--remove", name], "deno")).code, 0);
  assertNothingLeft(name, pinsOf(steps));
});

test.run();
