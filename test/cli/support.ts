/** The command line as a process of its own, against an app on a unix socket in this one. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { boundsOf } from "../../src/api/bounds.ts";
import { type RunningServer, serveUnix } from "../../src/runtime/serve.ts";
import { createTestApp, type TestApp } from "../api/support.ts";
import { runtimeCommand } from "../runtime-command.ts";

const main = fileURLToPath(new URL("../../src/main.ts", import.meta.url));

export interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

interface Options {
  input?: string;
  env?: Record<string, string>;
}

/** Runs `natbridge` by the runtime that runs the test. */
export function natbridge(args: string[], { input = "", env = {} }: Options = {}): Promise<Result> {
  const [program, ...flags] = runtimeCommand;
  return new Promise((resolve, reject) => {
    const child = spawn(program, [...flags, main, ...args], {
      env: { ...process.env, NO_COLOR: "1", ...env },
      stdio: ["pipe", "pipe", "pipe"],
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const timer = setTimeout(() => child.kill("SIGKILL"), 20_000);
    child.on("error", reject);
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code, stdout, stderr });
    });
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
}

export interface Daemon {
  api: TestApp;
  folder: string;
  /** Runs `natbridge` against this daemon. */
  run(args: string[], options?: Options): Promise<Result>;
  stop(): Promise<void>;
}

export async function startDaemon(): Promise<Daemon> {
  const folder = mkdtempSync(join(tmpdir(), "natbridge-cli-"));
  const path = join(folder, "natbridge.sock");
  const api = await createTestApp();
  const server: RunningServer = await serveUnix(
    { handler: (request) => api.app.fetch(request), bounds: boundsOf("unix"), warn: console.error },
    path,
    null,
  );
  const host = `unix://${path}`;
  return {
    api,
    folder,
    run: (args, options = {}) =>
      natbridge(args, { ...options, env: { NATBRIDGE_HOST: host, ...options.env } }),
    async stop() {
      api.shutdown.abort();
      await server.stop(1);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
