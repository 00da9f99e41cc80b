/**
 * A "host" of its own in network namespaces, with a natbridge daemon in it:
 *
 *     client ──┐
 *              ├── host (daemon, bridges) ── sandboxes
 *     other ───┘
 *
 * `client` and `other` are machines beyond two uplinks. They know the host alone; with
 * `routeToContainers` they try to reach containers directly, as an attacker on the LAN would.
 */
import { execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { HolderClient } from "../../src/holder/client.ts";
import { sendHttp } from "../../src/runtime/http-client.ts";
import type { FlowAnswer } from "./flows.ts";
import type { ProbeAnswer } from "./probe.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const probe = join(root, "test/e2e/probe.ts");
const flows = join(root, "test/e2e/flows.ts");
const datagrams = join(root, "test/e2e/datagrams.ts");
const deno = join(root, "node_modules/.bin/deno");
const prefix = "nbt";

/** Test ranges: RFC 5737 and RFC 3849. */
export const addresses = {
  host: { ipv4: "198.51.100.1", ipv6: "2001:db8:1::1" },
  client: { ipv4: "198.51.100.2", ipv6: "2001:db8:1::2" },
  hostOnSecondUplink: { ipv4: "203.0.113.1", ipv6: "2001:db8:2::1" },
  other: { ipv4: "203.0.113.2", ipv6: "2001:db8:2::2" },
} as const;

export interface CommandResult {
  code: number;
  stdout: string;
  stderr: string;
}

export interface Answer<T = unknown> {
  status: number;
  body: T;
}

function command(file: string, args: string[], input = ""): CommandResult {
  const done = spawnSync(file, args, { input, encoding: "utf8", timeout: 60_000 });
  return { code: done.status ?? -1, stdout: done.stdout ?? "", stderr: done.stderr ?? "" };
}

function must(file: string, args: string[], input = ""): string {
  const result = command(file, args, input);
  if (result.code !== 0)
    throw new Error(`${file} ${args.join(" ")}: ${result.code}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** Removes what a crashed earlier run left: namespaces of processes that are no more. */
function removeLeftovers(): void {
  for (const name of command("ip", ["netns", "list"]).stdout.split(/\s/)) {
    const pid = new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1];
    if (pid !== undefined && command("kill", ["-0", pid]).code !== 0) removeNamespace(name);
  }
}

function removeNamespace(name: string): void {
  for (const pid of command("ip", ["netns", "pids", name]).stdout.split(/\s+/).filter(Boolean))
    command("kill", ["-9", pid]);
  removePins(name);
  command("ip", ["netns", "del", name]);
}

/** Of a daemon that was killed: its hooks would go on to run for every socket of this machine. */
function removePins(name: string): void {
  const inode = command("stat", ["-Lc", "%i", `/run/netns/${name}`]).stdout.trim();
  if (inode !== "") command("rm", ["-rf", `/sys/fs/bpf/natbridge/${inode}`]);
}

export interface TopologyOptions {
  bridgeNfCall: 0 | 1;
  /** `off`: programs loaded, and switched off; `none`: no program is loaded. */
  fastPath: "on" | "off" | "none";
  runtime?: "deno" | "node";
  daemonFlags?: string[];
}

export class Topology {
  readonly folder: string;
  readonly #namespaces: string[] = [];
  readonly #options: TopologyOptions;
  #daemon: number | null = null;
  daemonOutput = "";

  constructor(options: TopologyOptions) {
    this.#options = options;
    removeLeftovers();
    this.folder = mkdtempSync(join(tmpdir(), `${prefix}-`));
    mkdirSync(join(this.folder, "run"));
    this.#build();
  }

  /** Full name of a namespace: `host`, `client`, `other` or a sandbox's. */
  ns(name: string): string {
    return `${prefix}${process.pid}-${name}`;
  }

  #addNamespace(name: string): void {
    must("ip", ["netns", "add", this.ns(name)]);
    this.#namespaces.push(this.ns(name));
    this.must(name, "ip link set lo up");
  }

  #build(): void {
    for (const name of ["host", "client", "other"]) this.#addNamespace(name);
    this.#addUplink("up0", "client", addresses.host, addresses.client);
    this.#addUplink("up1", "other", addresses.hostOnSecondUplink, addresses.other);
    const { bridgeNfCall } = this.#options;
    for (const key of ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"])
      this.run("host", `sysctl -qw net.bridge.${key}=${bridgeNfCall}`);
  }

  #addUplink(
    device: string,
    peer: string,
    near: { ipv4: string; ipv6: string },
    far: { ipv4: string; ipv6: string },
  ): void {
    must("ip", [
      ...["link", "add", device, "netns", this.ns("host"), "type", "veth"],
      ...["peer", "name", "eth0", "netns", this.ns(peer)],
    ]);
    const sides = [
      ["host", device, near],
      [peer, "eth0", far],
    ] as const;
    for (const [name, link, { ipv4, ipv6 }] of sides)
      this.must(
        name,
        `sysctl -qw net.ipv6.conf.${link}.accept_dad=0 && ip addr add ${ipv4}/24 dev ${link} && ip addr add ${ipv6}/64 dev ${link} nodad && ip link set ${link} up`,
      );
  }

  /** Adds an empty sandbox; answers its namespace's name. */
  addSandbox(name: string): string {
    this.#addNamespace(name);
    return this.ns(name);
  }

  removeSandbox(name: string): void {
    removeNamespace(this.ns(name));
  }

  /** Runs a shell line in a namespace. */
  run(name: string, line: string): CommandResult {
    return command("nsenter", [`--net=/run/netns/${this.ns(name)}`, "sh", "-ec", line]);
  }

  must(name: string, line: string): string {
    return must("nsenter", [`--net=/run/netns/${this.ns(name)}`, "sh", "-ec", line]);
  }

  // --- the daemon

  get socketPath(): string {
    return join(this.folder, "run/natbridge.sock");
  }

  async startDaemon(flags: string[] = [], environment: NodeJS.ProcessEnv = {}): Promise<void> {
    const child = spawn(
      "nsenter",
      [
        ...[`--net=/run/netns/${this.ns("host")}`, join(root, "bin/natbridge"), "daemon"],
        ...["--state-dir", join(this.folder, "state"), "--run-dir", join(this.folder, "run")],
        ...(this.#options.fastPath === "none" ? ["--no-fast-path"] : []),
        ...(this.#options.daemonFlags ?? []),
        ...flags,
      ],
      {
        detached: true,
        stdio: ["ignore", "pipe", "pipe"],
        env: {
          ...process.env,
          NATBRIDGE_RUNTIME: this.#options.runtime ?? "deno",
          ...environment,
        },
      },
    );
    this.#daemon = child.pid ?? null;
    let exited = false;
    child.on("exit", () => {
      exited = true;
    });
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        this.daemonOutput += text;
      });
    const started = performance.now();
    while (!(await this.#isReady())) {
      if (exited || performance.now() - started > 20_000)
        throw new Error(`The daemon did not become ready:\n${this.daemonOutput}`);
      await sleep(20);
    }
    child.unref();
    if (this.#options.fastPath === "off")
      await this.ok("PATCH", "/v1/datapath", { fastPath: false });
  }

  get fastPath(): TopologyOptions["fastPath"] {
    return this.#options.fastPath;
  }

  async #isReady(): Promise<boolean> {
    try {
      return (await this.api("GET", "/readyz")).status === 200;
    } catch {
      return false;
    }
  }

  /** Ends the daemon and its whole process group, as `kill -9 -PGID` does. */
  async killDaemon(signal: "SIGKILL" | "SIGTERM" = "SIGKILL"): Promise<void> {
    if (this.#daemon === null) return;
    const pid = this.#daemon;
    this.#daemon = null;
    try {
      process.kill(-pid, signal);
      for (let waited = 0; waited < 500; waited++) {
        process.kill(-pid, 0);
        await sleep(20);
      }
    } catch {
      // No such process: it is gone.
    }
  }

  /** The holder's process, by its own word. */
  async holderPid(): Promise<number> {
    const holder = new HolderClient(join(this.folder, "run/holder.sock"));
    try {
      return (await holder.hello()).pid;
    } finally {
      holder.close();
    }
  }

  /** Null while it does not run. */
  get daemonPid(): number | null {
    return this.#daemon;
  }

  // --- the API

  async api<T = unknown>(method: string, path: string, body?: unknown): Promise<Answer<T>> {
    const answer = await sendHttp(
      { kind: "unix", socketPath: this.socketPath },
      {
        method,
        path,
        ...(body === undefined
          ? {}
          : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
      },
    );
    const text = await answer.text();
    return { status: answer.status, body: (text.startsWith("{") ? JSON.parse(text) : text) as T };
  }

  /** A call that must succeed. */
  async ok<T = unknown>(method: string, path: string, body?: unknown): Promise<T> {
    const answer = await this.api<T>(method, path, body);
    if (answer.status >= 300)
      throw new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.body;
  }

  /** The command line, talking to this daemon from the host's namespace. */
  cli(line: string): CommandResult {
    return this.run(
      "host",
      `${join(root, "bin/natbridge")} --host unix://${this.socketPath} ${line}`,
    );
  }

  // --- traffic

  /** Starts an echo server for TCP and UDP, and waits until it listens; answers how to end it. */
  async serve(name: string, port: number): Promise<() => Promise<void>> {
    const child = spawn(
      "nsenter",
      [
        `--net=/run/netns/${this.ns(name)}`,
        deno,
        "run",
        "-A",
        "--no-config",
        "--node-modules-dir=manual",
        probe,
        "serve",
        `${port}`,
      ],
      { stdio: ["ignore", "pipe", "inherit"], detached: true },
    );
    await new Promise<void>((resolve, reject) => {
      child.stdout.once("data", () => resolve());
      child.once("exit", () => reject(new Error(`no echo server in ${name}`)));
    });
    child.stdout.destroy();
    child.unref();
    return async () => {
      const gone = once(child, "exit");
      if (child.kill("SIGKILL")) await gone;
    };
  }

  /** One checked exchange. */
  connect(
    from: string,
    protocol: "tcp" | "udp",
    host: string,
    port: number,
    bytes = 10_000,
  ): Promise<ProbeAnswer> {
    return this.#probe(from, ["connect", protocol, host, `${port}`, `${bytes}`]);
  }

  /** A checked TCP transfer that goes on for some seconds. */
  stream(from: string, host: string, port: number, seconds: number): Promise<ProbeAnswer> {
    return this.#probe(from, ["stream", host, `${port}`, `${seconds}`]);
  }

  /** Paced, checked, long-lived traffic: words as `flows.ts` takes them. */
  flow(from: string, words: string[]): Promise<FlowAnswer> {
    return this.#ask<FlowAnswer>(from, flows, words);
  }

  /** Datagrams of two sizes: words as `datagrams.ts` takes them. */
  datagrams(from: string, words: string[]): Promise<unknown> {
    return this.#ask(from, datagrams, words);
  }

  /** Starts a shell line that ends with the topology. */
  background(name: string, line: string): void {
    const child = spawn("nsenter", [`--net=/run/netns/${this.ns(name)}`, "sh", "-ec", line], {
      stdio: "ignore",
      detached: true,
    });
    child.unref();
  }

  #probe(from: string, words: string[]): Promise<ProbeAnswer> {
    return this.#ask<ProbeAnswer>(from, probe, words);
  }

  #ask<T>(from: string, program: string, words: string[]): Promise<T> {
    return new Promise((resolve, reject) => {
      execFile(
        "nsenter",
        [
          `--net=/run/netns/${this.ns(from)}`,
          deno,
          "run",
          "-A",
          "--no-config",
          "--node-modules-dir=manual",
          program,
          ...words,
        ],
        { timeout: 120_000, maxBuffer: 1 << 24 },
        (error, stdout) => {
          if (stdout.startsWith("{")) resolve(JSON.parse(stdout) as T);
          else reject(error ?? new Error("The probe said nothing"));
        },
      );
    });
  }

  /** Ends everything in it; nothing is left behind. */
  async remove(): Promise<void> {
    await this.killDaemon("SIGTERM");
    this.cli(
      `uninstall --state-dir ${join(this.folder, "state")} --run-dir ${join(this.folder, "run")}`,
    );
    for (const name of this.#namespaces) removeNamespace(name);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Whether a process runs; one that ended and that nobody has waited for does not. */
export function isAlive(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`).length > 0;
  } catch {
    return false;
  }
}

export const sleep = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Folders of natbridge's pins, to compare before and after. */
export function pinFolders(): string[] {
  try {
    return readdirSync("/sys/fs/bpf/natbridge");
  } catch {
    return [];
  }
}
