/** One measurement: starts the server, applies the load, reads the figures. */
import { execFileSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { busySeconds } from "./cpu.ts";
import { type Background, inside, start } from "./namespaces.ts";
import { ports, type Topology } from "./topologies.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
let loadProgram: string | null = null;

/** Builds the load generator; call it before anything is measured. */
export function buildLoadProgram(): string {
  const script = `${root}scripts/cargo-program.sh`;
  loadProgram ??= execFileSync("sh", [script, "natbridge-bench", "natbridge-load"], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  }).trim();
  return loadProgram;
}

/** Figures of one run by case; CPU time is counted while the load is on. */
export type Figures = Partial<Record<CaseName, number>>;

export type CaseName =
  | "tcp"
  | "cpu-per-gb"
  | "udp64"
  | "cpu-per-mpkt"
  | "connections"
  | "latency-p50"
  | "latency-p99"
  | "loopback-rps";

export type Measure = (topology: Topology, seconds: number) => Promise<Figures>;

const iperfSchema = z.object({
  end: z.object({ sum_received: z.object({ bytes: z.number(), bits_per_second: z.number() }) }),
});
const udpSchema = z.object({ received: z.number(), perSecond: z.number() });
const streamSchema = z.object({
  done: z.number(),
  failed: z.number(),
  perSecond: z.number(),
  p50: z.number(),
  p99: z.number(),
});

/** Waits until a process of a namespace has bound the port. */
async function bound(namespace: string, protocol: "tcp" | "udp", port: number): Promise<void> {
  const flags = protocol === "tcp" ? "-Hltn" : "-Hlun";
  for (let tries = 0; tries < 250; tries++) {
    const sockets = await inside(namespace, "ss", [flags, "sport", "=", `:${port}`]);
    if (sockets.trim() !== "") return;
    await sleep(20);
  }
  throw new Error(`nobody listens on ${protocol} port ${port} in ${namespace}`);
}

async function withServer<T>(
  topology: Topology,
  protocol: "tcp" | "udp",
  port: number,
  command: string[],
  work: (server: Background) => Promise<T>,
): Promise<T> {
  const [file = "", ...args] = command;
  const server = start(topology.web, file, args);
  try {
    await bound(topology.web, protocol, port);
    return await work(server);
  } finally {
    await server.stop();
  }
}

/** TCP throughput of one connection in Gbit/s, and CPU seconds per gigabyte received. */
export const tcp: Measure = (topology, seconds) =>
  withServer(topology, "tcp", ports.iperf, ["iperf3", "-s", "-p", `${ports.iperf}`], async () => {
    const before = busySeconds();
    const output = await inside(topology.client, "iperf3", [
      ...["-c", topology.target, "-p", `${ports.iperf}`, "-t", `${seconds}`, "-J"],
    ]);
    const busy = busySeconds() - before;
    const { bytes, bits_per_second } = iperfSchema.parse(JSON.parse(output)).end.sum_received;
    return { tcp: bits_per_second / 1e9, "cpu-per-gb": busy / (bytes / 1e9) };
  });

/** 64-byte UDP payloads: packets per second that arrive, and CPU seconds per million of them. */
export const udp: Measure = (topology, seconds) => {
  const listen = `${topology.webAddress}:${ports.udp}`;
  const receiver = [buildLoadProgram(), "udp-receive", listen, `${seconds}`];
  return withServer(topology, "udp", ports.udp, receiver, async (server) => {
    const before = busySeconds();
    const target = `${topology.target}:${ports.udp}`;
    await inside(topology.client, buildLoadProgram(), ["udp-send", target, `${seconds + 1}`]);
    const busy = (busySeconds() - before) * (seconds / (seconds + 1));
    const { received, perSecond } = udpSchema.parse(JSON.parse(server.output()));
    return { udp64: perSecond / 1e6, "cpu-per-mpkt": busy / (received / 1e6) };
  });
};

async function streams(
  topology: Topology,
  role: "connections" | "requests",
  seconds: number,
  count: number,
): Promise<z.infer<typeof streamSchema>> {
  const listen = `${topology.webAddress}:${ports.tcp}`;
  const server = [buildLoadProgram(), "serve", listen, `${seconds + 30}`];
  const result = await withServer(topology, "tcp", ports.tcp, server, async () => {
    const target = `${topology.target}:${ports.tcp}`;
    return inside(topology.client, buildLoadProgram(), [role, target, `${seconds}`, `${count}`]);
  });
  const figures = streamSchema.parse(JSON.parse(result));
  if (figures.done === 0) throw new Error(`no ${role} came through: ${result.trim()}`);
  if (figures.failed > 0) console.error(`bench: ${figures.failed} ${role} failed`);
  return figures;
}

/** New connections per second by eight clients: connect, request, response, close. */
export const connections: Measure = async (topology, seconds) => {
  // What the run before left is none of this run's business.
  if (topology.host !== null) {
    await inside(topology.host, "conntrack", ["-F"]).catch(() => {});
  }
  const { perSecond } = await streams(topology, "connections", seconds, 8);
  return { connections: perSecond };
};

/** Microseconds from request to response, one after another on a kept connection. */
export const latency: Measure = async (topology, seconds) => {
  const { p50, p99 } = await streams(topology, "requests", seconds, 1);
  return { "latency-p50": p50, "latency-p99": p99 };
};

/** Requests per second on eight kept connections over the host's loopback. */
export const loopback: Measure = async (topology, seconds) => {
  const { perSecond } = await streams(topology, "requests", seconds, 8);
  return { "loopback-rps": perSecond };
};
