/**
 * Runs every test, each file in a process of its own with a time limit, and ends with one line
 * `N passed, N failed`. Words after the command choose by part of the name:
 * `npm test -- unit/pools`, `npm run test:e2e -- hairpin`.
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";

interface Job {
  name: string;
  command: string;
  args: string[];
  seconds: number;
  /** Reads passed and failed from the output; null if there is no summary. */
  count: (output: string, exitCode: number | null) => Counts | null;
}

interface Counts {
  passed: number;
  failed: number;
}

const root = fileURLToPath(new URL("..", import.meta.url));
const binary = (name: string): string => join(root, "node_modules/.bin", name);
// biome-ignore lint/suspicious/noControlCharactersInRegex: colours of the test runners
const colours = /\u001b\[[0-9;]*m/g;

/** uvu's summary: it exits 0 when a hook throws or nothing matches, so only the summary counts. */
function countUvu(output: string): Counts | null {
  const total = /Total:\s+(\d+)/.exec(output)?.[1];
  const passed = /Passed:\s+(\d+)/.exec(output)?.[1];
  if (total === undefined || passed === undefined || total === "0") return null;
  return { passed: Number(passed), failed: Number(total) - Number(passed) };
}

function countCargo(output: string): Counts | null {
  const counts = { passed: 0, failed: 0 };
  const lines = [...output.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed;/gm)];
  for (const [, passed, failed] of lines) {
    counts.passed += Number(passed);
    counts.failed += Number(failed);
  }
  return lines.length > 0 ? counts : null;
}

const countExit = (_output: string, exitCode: number | null): Counts =>
  exitCode === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };

function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".test.ts"))
    .map((file) => join(folder, file))
    .sort();
}

function uvuJob(file: string, runtime: "deno" | "node", seconds: number): Job {
  // Deno frees the heap at the end of a program while V8 may still compile in the background.
  const flags = [
    "--no-config",
    "--node-modules-dir=manual",
    "--v8-flags=--no-concurrent-recompilation",
  ];
  const args = runtime === "deno" ? ["run", "--quiet", "-A", ...flags, file] : [file];
  return { name: `${runtime} ${file}`, command: binary(runtime), args, seconds, count: countUvu };
}

function schemaJob(runtime: "deno" | "node"): Job {
  return {
    name: `${runtime} schema`,
    command: binary("node"),
    args: ["scripts/schema-check.ts", "--runtime", runtime],
    seconds: 300,
    count: countExit,
  };
}

function allJobs(): Job[] {
  const both = ["unit", "api", "cli"].flatMap((part) => filesBelow(`test/${part}`));
  return [
    {
      name: "check",
      command: "npm",
      args: ["run", "--silent", "check"],
      seconds: 600,
      count: countExit,
    },
    {
      name: "cargo test",
      command: "cargo",
      args: [
        "test",
        "--release",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--",
        "--test-threads=2",
      ],
      seconds: 1200,
      count: countCargo,
    },
    ...both.flatMap((file) => [uvuJob(file, "deno", 180), uvuJob(file, "node", 180)]),
    ...(["deno", "node"] as const).map(schemaJob),
    ...filesBelow("test/e2e").map((file) => uvuJob(file, "deno", 600)),
  ];
}

/** How a job ended, where its counts alone don't tell. */
function ending(exitCode: number | null, signal: string | null, limit: number | null): string {
  if (limit !== null) return `: stopped after ${limit} s`;
  if (signal !== null) return `: killed by ${signal}`;
  return exitCode === 0 ? "" : `: exit code ${exitCode}`;
}

/** Ends a job and all that it started, unless it has just ended by itself. */
function killGroup(pid: number | undefined): void {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

/** Runs one job; what it prints is shown only if something failed. */
function run(job: Job): Promise<Counts> {
  return new Promise((resolve) => {
    const started = performance.now();
    const child = spawn(job.command, job.args, {
      cwd: root,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, FORCE_COLOR: "0", NO_COLOR: "1" },
    });
    let output = "";
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      killGroup(child.pid);
    }, job.seconds * 1000);
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    const done = (exitCode: number | null, note: string): void => {
      clearTimeout(timer);
      const text = output.replaceAll(colours, "");
      let counts = job.count(text, exitCode);
      // A crash after the summary, or no summary at all, is a failure of its own.
      if (counts === null) counts = { passed: 0, failed: 1 };
      else if (counts.failed === 0 && exitCode !== 0) counts = { ...counts, failed: 1 };
      const seconds = ((performance.now() - started) / 1000).toFixed(1);
      const mark = counts.failed > 0 ? "FAILED" : "ok";
      console.log(
        `${mark.padEnd(6)} ${job.name}: ${counts.passed} passed, ${counts.failed} failed (${seconds} s)${note}`,
      );
      if (counts.failed > 0)
        console.log(
          text
            .split("\n")
            .slice(-150)
            .map((line) => `    ${line}`)
            .join("\n"),
        );
      resolve(counts);
    };
    child.on("error", (cause) => done(null, ` ${cause.message}`));
    child.on("close", (exitCode, signal) =>
      done(exitCode, ending(exitCode, signal, late ? job.seconds : null)),
    );
  });
}

const filters = process.argv.slice(2);
const jobs = allJobs().filter(
  ({ name }) => filters.length === 0 || filters.some((filter) => name.includes(filter)),
);
const total: Counts = { passed: 0, failed: 0 };
for (const job of jobs) {
  const counts = await run(job);
  total.passed += counts.passed;
  total.failed += counts.failed;
}
if (jobs.length === 0)
  console.log(`No test matches ${filters.join(" ")} below ${relative(".", root) || "."}`);
console.log(`${total.passed} passed, ${total.failed} failed`);
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
