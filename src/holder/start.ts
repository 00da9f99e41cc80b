/** Finding the holder that runs, or starting one that outlives the daemon. */
import { spawn } from "node:child_process";
import { accessSync, closeSync, constants, openSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { version } from "../version.ts";
import { HolderClient, holderProtocol } from "./client.ts";
import { HolderError, type HolderHello } from "./types.ts";

const programName = "natbridge-holder";
const startMilliseconds = 5000;
const lookMilliseconds = 20;

export interface HolderOptions {
  /** The control socket. At most 100 bytes long: a unix socket's path is limited. */
  socketPath: string;
  /** What the holder has to say is appended here. */
  logPath: string;
  /** The program; found out if absent. */
  binary?: string;
}

export interface StartedHolder {
  holder: HolderClient;
  pid: number;
  /** `adopted`: it ran already; `replaced`: a new one took over from it, without a gap. */
  how: "started" | "adopted" | "replaced";
}

/** From src/holder/ and from dist/src/holder/. */
const roots = ["../..", "../../.."].map((up) => fileURLToPath(new URL(up, import.meta.url)));
/** `npm run build:holder` puts it next to the addon, wherever cargo is told to build. */
const releases = ["crates/natbridge-node", "target/release"];
const lastResorts = ["target/debug"];

/** When a program was built; null if there is none. */
function builtAt(path: string): number | null {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).mtimeMs;
  } catch {
    return null;
  }
}

/** Of programs at these paths the one that was built last: by setting up, or by cargo after it. */
export function newestProgram(paths: string[]): string | null {
  let newest: { path: string; time: number } | null = null;
  for (const path of paths) {
    const time = builtAt(path);
    if (time !== null && (newest === null || time > newest.time)) newest = { path, time };
  }
  return newest?.path ?? null;
}

/**
 * The path of the holder's program: `NATBRIDGE_HOLDER`, next to the addon, or in `target/`.
 *
 * @throws HolderError `unavailable` if it is nowhere.
 */
export function findHolderBinary(): string {
  const named = process.env.NATBRIDGE_HOLDER;
  const below = (folders: string[]) =>
    roots.flatMap((root) => folders.map((folder) => join(root, folder, programName)));
  const ranks =
    named === undefined || named === "" ? [releases, lastResorts].map(below) : [[named]];
  for (const paths of ranks) {
    const found = newestProgram(paths);
    if (found !== null) return found;
  }
  throw new HolderError(
    "unavailable",
    `${programName} is not built (looked for ${ranks.flat().join(", ")}); run npm run build:holder`,
  );
}

/**
 * Adopts the holder that answers at the socket, replaces it if it is of another version, or starts
 * one.
 *
 * @throws HolderError `unavailable`, with the holder's own words, if none can be had.
 */
export async function startHolder(options: HolderOptions): Promise<StartedHolder> {
  const holder = new HolderClient(options.socketPath);
  const running = await answering(holder);
  if (running?.version === version && running.protocol === holderProtocol) {
    return { holder, pid: running.pid, how: "adopted" };
  }
  holder.close();
  const binary = options.binary ?? findHolderBinary();
  const adopt = running === null ? [] : ["--adopt", options.socketPath];
  try {
    const pid = await start(binary, adopt, options, running?.pid ?? 0);
    return { holder, pid, how: running === null ? "started" : "replaced" };
  } catch (error) {
    // An old one that speaks our protocol is better than none.
    if (running?.protocol !== holderProtocol) throw error;
    return { holder, pid: running.pid, how: "adopted" };
  }
}

async function answering(holder: HolderClient): Promise<HolderHello | null> {
  try {
    return await holder.hello();
  } catch (error) {
    if (error instanceof HolderError && error.kind === "unavailable") return null;
    throw error;
  }
}

/** Starts the program and waits until it answers under a pid other than `formerPid`. */
async function start(
  binary: string,
  flags: string[],
  { socketPath, logPath }: HolderOptions,
  formerPid: number,
): Promise<number> {
  const log = openSync(logPath, "a", 0o600);
  const before = readFileSync(logPath).length;
  try {
    await launch([binary, "--socket", socketPath, ...flags], log);
  } finally {
    closeSync(log);
  }
  const said = () => readFileSync(logPath).subarray(before).toString().trim();
  const client = new HolderClient(socketPath);
  try {
    const end = Date.now() + startMilliseconds;
    while (Date.now() < end) {
      const hello = await answering(client);
      if (hello !== null && hello.pid !== formerPid) return hello.pid;
      client.close();
      if (said() !== "") break;
      await sleep(lookMilliseconds);
    }
  } finally {
    client.close();
  }
  throw new HolderError("unavailable", `the holder did not start: ${said() || "it says nothing"}`);
}

/**
 * Runs a program in a session of its own and as nobody's child, by util-linux' setsid: neither the
 * end of the daemon nor a signal to its process group reaches it.
 */
function launch(command: string[], log: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn("setsid", ["--fork", ...command], {
      stdio: ["ignore", log, log],
      cwd: "/",
    });
    const refuse = (reason: string) =>
      reject(new HolderError("unavailable", `the holder cannot be started: ${reason}`));
    child.once("error", (error) => refuse(error.message));
    child.once("exit", (code) => (code === 0 ? resolve() : refuse(`setsid ended with ${code}`)));
  });
}
