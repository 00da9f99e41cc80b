/** Where the demo plays: namespaces host, client and web, and a daemon in host. */
import { execFile, spawn } from "node:child_process";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { socketName } from "../../runtime/daemon-options.ts";
import { Client } from "../client.ts";
import { FailedError } from "../errors.ts";
import { pinDirectory } from "../local-datapath.ts";

const program = fileURLToPath(new URL("../../../bin/natbridge", import.meta.url));
const prefix = "nbdemo";
const keptMarker = "kept";
const places = ["host", "client", "web"] as const;
export type PlaceName = (typeof places)[number];

/** Documentation addresses: RFC 5737 and RFC 3849. */
export const addresses = {
  host: { ipv4: "198.51.100.1", ipv6: "2001:db8:1::1" },
  client: { ipv4: "198.51.100.2", ipv6: "2001:db8:1::2" },
} as const;

export interface CommandResult {
  code: number;
  stdout: string;
  stderr: string;
}

function command(file: string, args: string[], env = process.env): Promise<CommandResult> {
  return new Promise((resolve) => {
    execFile(file, args, { env, timeout: 60_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ code, stdout, stderr: stderr || (error?.message ?? "") });
    });
  });
}

async function must(file: string, args: string[]): Promise<string> {
  const { code, stdout, stderr } = await command(file, args);
  if (code === 0) return stdout;
  throw new FailedError(`${file} ${args.join(" ")}: ${stderr.trim()}`);
}

/** The words that run natbridge in the namespace `name`; `ip netns exec` would hide /sys/fs/bpf. */
const inside = (name: string, args: string[]): string[] => [
  `--net=/run/netns/${name}`,
  program,
  ...args,
];

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** Folders of the demo `name`; only root's, for the folder they are in is everybody's. */
function foldersOf(name: string): string[] {
  return readdirSync(tmpdir())
    .filter((entry) => entry.startsWith(`${name}-`))
    .map((entry) => join(tmpdir(), entry))
    .filter((path) => {
      const found = lstatSync(path, { throwIfNoEntry: false });
      return found?.isDirectory() === true && found.uid === 0;
    });
}

const isKept = (name: string): boolean =>
  foldersOf(name).some((path) => readdirSync(path).includes(keptMarker));

async function namespaces(): Promise<string[]> {
  const list = await must("ip", ["netns", "list"]);
  return list.split("\n").map((line) => line.split(" ")[0] ?? "");
}

async function endProcesses(namespace: string): Promise<void> {
  for (let round = 0; round < 50; round += 1) {
    const { stdout } = await command("ip", ["netns", "pids", namespace]);
    const pids = stdout.split(/\s+/).filter(Boolean).map(Number);
    if (pids.length === 0) return;
    for (const pid of pids)
      try {
        process.kill(pid, round < 25 ? "SIGTERM" : "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    await sleep(100);
  }
}

/**
 * Removes the demo `name`: daemon, what natbridge made, namespaces, folders. Goes on after failures.
 *
 * @throws AggregateError of all that failed.
 */
export async function removeDemo(name: string): Promise<void> {
  const mine = (await namespaces()).filter((one) =>
    places.some((place) => one === `${name}-${place}`),
  );
  const folders = foldersOf(name);
  const failures: FailedError[] = [];
  const host = `${name}-host`;
  for (const one of mine) if (one !== host) await endProcesses(one);
  if (mine.includes(host)) {
    await endProcesses(host);
    for (const folder of folders) {
      const args = [
        "uninstall",
        "--state-dir",
        join(folder, "state"),
        "--run-dir",
        join(folder, "run"),
      ];
      const { code, stderr } = await command("nsenter", inside(host, args));
      if (code !== 0) failures.push(new FailedError(`uninstall in ${host}: ${stderr.trim()}`));
    }
  }
  for (const one of mine) {
    const { code, stderr } = await command("ip", ["netns", "del", one]);
    if (code !== 0) failures.push(new FailedError(`namespace ${one}: ${stderr.trim()}`));
  }
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  if (failures.length > 0) throw new AggregateError(failures);
}

/** Removes what demos left that crashed; kept ones stay. */
export async function removeLeftovers(): Promise<void> {
  const found = (await namespaces()).flatMap(
    (one) => /^(nbdemo(\d+))-/.exec(one)?.slice(1, 3) ?? [],
  );
  const names = new Set(found.filter((word) => word.startsWith(prefix)));
  for (const name of names) {
    if (!isAlive(Number(name.slice(prefix.length))) && !isKept(name)) await removeDemo(name);
  }
}

export const isDemoName = (name: string): boolean => /^nbdemo\d+$/.test(name);

export class Place {
  readonly name = `${prefix}${process.pid}`;
  readonly folder: string;
  readonly client: Client;
  #starts = 0;
  #daemon = 0;
  #isClosed = false;

  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), `${this.name}-`));
    mkdirSync(join(this.folder, "run"));
    this.client = new Client({ host: this.host, token: undefined });
  }

  /** NATBRIDGE_HOST of this demo's daemon. */
  get host(): string {
    return `unix://${join(this.folder, "run", socketName)}`;
  }

  ns(place: PlaceName): string {
    return `${this.name}-${place}`;
  }

  get #daemonFlags(): string[] {
    return ["--state-dir", join(this.folder, "state"), "--run-dir", join(this.folder, "run")];
  }

  /** What starts the daemon, as a shell's user would type it in host. */
  get daemonCommand(): string {
    return `$ natbridge daemon ${this.#daemonFlags.join(" ")}`;
  }

  /** Where its daemon pins programs and maps. */
  get pins(): string {
    return pinDirectory({
      hostNamespace: () => ({ inode: statSync(`/run/netns/${this.ns("host")}`).ino }),
    });
  }

  /** Marks it as wanted after this process, so that no later demo removes it. */
  keep(): void {
    writeFileSync(join(this.folder, keptMarker), "");
  }

  /** From now on nothing starts in it. */
  close(): void {
    this.#isClosed = true;
  }

  #requireOpen(): void {
    if (this.#isClosed) throw new FailedError("the demo is being removed");
  }

  async build(): Promise<void> {
    for (const place of places) {
      this.#requireOpen();
      await must("ip", ["netns", "add", this.ns(place)]);
      await must("ip", ["-n", this.ns(place), "link", "set", "lo", "up"]);
    }
    await must("ip", [
      ...["link", "add", "up0", "netns", this.ns("host"), "type", "veth"],
      ...["peer", "name", "eth0", "netns", this.ns("client")],
    ]);
    for (const [place, device] of [
      ["host", "up0"],
      ["client", "eth0"],
    ] as const) {
      const { ipv4, ipv6 } = addresses[place];
      const on = ["-n", this.ns(place)];
      await must("ip", [...on, "addr", "add", `${ipv4}/24`, "dev", device]);
      await must("ip", [...on, "addr", "add", `${ipv6}/64`, "dev", device, "nodad"]);
      await must("ip", [...on, "link", "set", device, "up"]);
    }
  }

  /** Starts the daemon; answers what it printed when it is ready. */
  async startDaemon(): Promise<string[]> {
    this.#requireOpen();
    this.#starts += 1;
    const logPath = join(this.folder, `daemon-${this.#starts}.log`);
    const log = openSync(logPath, "a", 0o600);
    const child = spawn("nsenter", inside(this.ns("host"), ["daemon", ...this.#daemonFlags]), {
      detached: true,
      stdio: ["ignore", log, log],
    });
    this.#daemon = child.pid ?? 0;
    child.unref();
    for (let waited = 0; waited < 300 && child.exitCode === null; waited += 1) {
      const output = readFileSync(logPath, "utf8");
      if (output.includes("is ready (")) return output.split("\n");
      await sleep(100);
    }
    throw new FailedError(`the demo's daemon does not start:\n${readFileSync(logPath, "utf8")}`);
  }

  /** `kill -9` for the daemon and its process group; answers the group's id. */
  async killDaemon(): Promise<number> {
    const group = this.#daemon;
    process.kill(-group, "SIGKILL");
    for (let waited = 0; waited < 100 && isAlive(group); waited += 1) await sleep(20);
    return group;
  }

  /** Runs natbridge's own command line in the host. */
  cli(args: string[]): Promise<CommandResult> {
    return command("nsenter", inside(this.ns("host"), args), {
      ...process.env,
      NATBRIDGE_HOST: this.host,
    });
  }

  /** File and words that run natbridge in a place. */
  inside(place: PlaceName, args: string[]): string[] {
    this.#requireOpen();
    return inside(this.ns(place), args);
  }
}
