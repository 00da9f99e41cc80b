/**
 * Network namespaces and processes of the benchmark: made under names of its own, and removed
 * whatever happens.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { promisify } from "node:util";

const prefix = "nbb";
const runFile = promisify(execFile);

/** Something to undo, last made first. */
const undo: (() => unknown)[] = [];
let cleaning: Promise<void> | null = null;

/** Registers what is to be undone by {@link cleanUp}. */
export function later(action: () => unknown): void {
  undo.push(action);
}

/** Undoes all that was made; goes on after a failure and reports it on stderr. */
export function cleanUp(): Promise<void> {
  cleaning ??= (async () => {
    for (let action = undo.pop(); action !== undefined; action = undo.pop()) {
      try {
        await action();
      } catch (error) {
        console.error(`bench: cleaning up: ${error}`);
      }
    }
    cleaning = null;
  })();
  return cleaning;
}

function quietly(file: string, args: string[]): string {
  try {
    return execFileSync(file, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  } catch {
    return "";
  }
}

/** Ends what still runs in a namespace of the benchmark, its daemon's programs, and the namespace. */
function removeNamespace(name: string): void {
  for (const pid of quietly("ip", ["netns", "pids", name]).split(/\s+/).filter(Boolean)) {
    quietly("kill", ["-9", pid]);
  }
  const inode = quietly("stat", ["-Lc", "%i", `/run/netns/${name}`]).trim();
  if (inode !== "") quietly("rm", ["-rf", `/sys/fs/bpf/natbridge/${inode}`]);
  quietly("ip", ["netns", "del", name]);
}

/** Removes namespaces of benchmark processes that are no more. */
export function removeLeftovers(): void {
  for (const name of quietly("ip", ["netns", "list"]).split(/\s+/)) {
    const pid = new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1];
    if (pid === undefined) continue;
    try {
      process.kill(Number(pid), 0);
    } catch {
      removeNamespace(name);
    }
  }
}

let count = 0;

/** Adds an empty namespace with `lo` up; answers its name. */
export async function addNamespace(role: string): Promise<string> {
  const name = `${prefix}${process.pid}-${count++}${role}`;
  await runFile("ip", ["netns", "add", name]);
  later(() => removeNamespace(name));
  await inside(name, "ip", ["link", "set", "lo", "up"]);
  return name;
}

// Not `ip netns exec`: it mounts /sys anew, without bpffs and cgroup.
const enter = (namespace: string, file: string, args: string[]) => [
  `--net=/run/netns/${namespace}`,
  file,
  ...args,
];

/** Runs a program in a namespace to its end, a minute at most; answers its output. */
export async function inside(namespace: string, file: string, args: string[]): Promise<string> {
  const { stdout } = await runFile("nsenter", enter(namespace, file, args), {
    timeout: 60_000,
    killSignal: "SIGKILL",
    maxBuffer: 1 << 24,
  });
  return stdout;
}

/** Runs several commands, one a line, words parted by spaces. */
export async function configure(namespace: string, lines: string): Promise<void> {
  for (const line of lines.trim().split("\n")) {
    const [file = "", ...args] = line.trim().split(/\s+/);
    await inside(namespace, file, args);
  }
}

export interface Background {
  readonly child: ChildProcess;
  /** All it has said so far. */
  output(): string;
  /** Ends it and waits for its end. */
  stop(): Promise<void>;
}

/** Starts a program in a namespace; it is ended by `stop` or by {@link cleanUp}. */
export function start(
  namespace: string,
  file: string,
  args: string[],
  env: Record<string, string> = {},
): Background {
  const child = spawn("nsenter", enter(namespace, file, args), {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
  }
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
  const stop = async () => {
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), 5000);
    await ended;
    clearTimeout(timer);
  };
  later(stop);
  return { child, output: () => said, stop };
}

/** Joins two namespaces by a veth pair. */
export async function connect(
  near: { namespace: string; device: string },
  far: { namespace: string; device: string },
): Promise<void> {
  await runFile("ip", [
    ...["link", "add", near.device, "netns", near.namespace, "type", "veth"],
    ...["peer", "name", far.device, "netns", far.namespace],
  ]);
}
