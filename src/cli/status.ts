/** `natbridge status`: one screen. */
import type { Command } from "commander";
import { z } from "zod";
import { datapathStatusSchema } from "../network/datapath-status.ts";
import {
  connectionSchema,
  endpointSchema,
  networkSchema,
  portSchema,
  type Status,
  sandboxSchema,
} from "../network/model.ts";
import type { Client } from "./client.ts";
import { clientOf, wantsJson } from "./command.ts";
import { forwarderLines, offLines } from "./datapath-table.ts";
import { printable, printJson, printLine } from "./output.ts";

async function read(client: Client) {
  const [datapath, networks, sandboxes, endpoints, ports, connections] = await Promise.all([
    client.get(datapathStatusSchema, "/v1/datapath"),
    client.list(networkSchema, "/v1/networks"),
    client.list(sandboxSchema, "/v1/sandboxes"),
    client.list(endpointSchema, "/v1/endpoints"),
    client.list(portSchema, "/v1/ports"),
    client.get(z.object({ items: z.array(connectionSchema) }), "/v1/connections"),
  ]);
  return { datapath, networks, sandboxes, endpoints, ports, connections: connections.items };
}
type State = Awaited<ReturnType<typeof read>>;

/** What an object's conditions say is wrong. */
function troubles(kind: string, items: { name: string; status: Status }[]): string[] {
  return items.flatMap(({ name, status }) =>
    status.conditions
      .filter(({ type, status: value }) => value === "false" && type !== "FastPath")
      .map(({ message, reason }) => printable(`${kind} ${name}: ${message || reason}`)),
  );
}

function warnings(state: State): string[] {
  // What a repair failed at is told by the daemon and by the object.
  return [
    ...new Set([
      ...state.datapath.warnings.map(printable),
      ...troubles("network", state.networks),
      ...troubles("sandbox", state.sandboxes),
      ...troubles("endpoint", state.endpoints),
      ...troubles("port", state.ports),
    ]),
  ];
}

function printSection(heading: string, lines: string[]): void {
  for (const [index, line] of lines.entries()) {
    printLine(`${(index === 0 ? heading : "").padEnd(13)}${line}`);
  }
}

const maxLines = 12;
const shorten = (lines: string[]): string[] =>
  lines.length <= maxLines
    ? lines
    : [...lines.slice(0, maxLines), `… and ${lines.length - maxLines} more (--json shows all)`];

function print(state: State): void {
  const { datapath, connections } = state;
  const fast = connections.filter(({ path }) => path === "fast").length;
  const { cache } = datapath;
  const share =
    cache.hitRate === null ? "" : `, ${(cache.hitRate * 100).toFixed(1)} % of packets fast`;
  printSection("Daemon", ["running"]);
  printSection("Fast path", [
    datapath.mode === "fast"
      ? `on, ${cache.flows} flows${share}`
      : "off: all traffic takes the kernel path",
    ...shorten([
      ...(datapath.enabled ? [] : ["turned off: natbridge datapath on"]),
      ...datapath.kernel.missing.map((item) => printable(`missing: ${item}`)),
      ...offLines(datapath).map((line) => `off on ${line}`),
    ]),
  ]);
  printSection(
    "Uplinks",
    datapath.uplinks.length === 0
      ? ["none"]
      : datapath.uplinks.map((item) => printable(`${item.name}  ${item.addresses.join(", ")}`)),
  );
  printSection("Counts", [
    `${state.networks.length} networks, ${state.sandboxes.length} sandboxes, ${state.endpoints.length} endpoints, ${state.ports.length} published ports`,
    `${connections.length} connections, ${fast} on the fast path`,
  ]);
  printSection("Forwarder", forwarderLines(datapath));
  printSection("Warnings", shorten(warnings(state)));
}

/** Adds `status`. */
export function register(program: Command): void {
  program
    .command("status")
    .description("Show daemon, fast path, uplinks, counts and warnings on one screen")
    .action(async (_flags: object, command: Command) => {
      const state = await read(clientOf(command));
      if (!wantsJson(command)) return print(state);
      printJson({
        datapath: state.datapath,
        counts: {
          networks: state.networks.length,
          sandboxes: state.sandboxes.length,
          endpoints: state.endpoints.length,
          ports: state.ports.length,
          connections: state.connections.length,
        },
        warnings: warnings(state),
      });
    });
}
