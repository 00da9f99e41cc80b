/** Which path a request took, and its tuples, as the daemon tells them. */
import { isIP } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { datapathStatusSchema } from "../../network/datapath-status.ts";
import { type Connection, connectionSchema, portSchema } from "../../network/model.ts";
import type { Client } from "../client.ts";
import type { Head } from "./peer.ts";

export interface Counters {
  fastPackets: number;
  kernelPackets: number;
  learned: number;
  /** Calls that the connect hook sent to a container. */
  connectsServed: number;
}

export async function readCounters(client: Client): Promise<Counters> {
  const { cache, connectHook } = await client.get(datapathStatusSchema, "/v1/datapath");
  const { fastPackets, kernelPackets, learned } = cache;
  const served = connectHook.find(({ reason }) => reason === "served")?.calls ?? 0;
  return { fastPackets, kernelPackets, learned, connectsServed: served };
}

/** Address and port as printed and as in a URL. */
export const printedPlace = (address: string, port: number): string =>
  `${isIP(address) === 6 ? `[${address}]` : address}:${port}`;

export interface Testimony {
  path: string;
  /** Source and destination as sent. */
  original: string;
  /** Source and destination as the server gets them. */
  afterNat: string;
  counters: Counters;
}

/** The conntrack entry of the connection that the server's socket has. */
async function entryOf(client: Client, { server }: Head): Promise<Connection | null> {
  const schema = z.object({ items: z.array(connectionSchema) });
  const { items } = await client.get(schema, "/v1/connections", { protocol: "tcp" });
  const found = items.filter(
    ({ reply }) =>
      reply.sourceAddress === server.localAddress &&
      reply.sourcePort === server.localPort &&
      reply.destinationAddress === server.remoteAddress &&
      reply.destinationPort === server.remotePort,
  );
  return found[0] ?? null;
}

async function pathOf(
  client: Client,
  head: Head,
  entry: Connection | null,
  served: number,
): Promise<string> {
  if (entry === null) return "unknown: conntrack has no entry of it";
  const { original, reply } = entry;
  const translated =
    original.destinationAddress !== reply.sourceAddress ||
    original.destinationPort !== reply.sourcePort;
  const tail = entry.path === "fast" ? "fast path" : "kernel path";
  if (translated) return tail;
  // The packets left for the container itself: somebody chose that before the first one.
  if (served > 0) return `connect hook, then ${tail}`;
  const { items } = await client.get(z.object({ items: z.array(portSchema) }), "/v1/ports");
  const forwarded = items.some(({ servedBy }) =>
    servedBy.some(({ host, uplink, container }) => [host, uplink, container].includes("forwarder")),
  );
  const isItsOwn = head.client.localPort === original.sourcePort;
  if (forwarded && !isItsOwn) return `forwarder, then ${tail}`;
  return `${tail}, not translated`;
}

/** Asks the daemon about a connection that is still open; `before` is from before it was made. */
export async function examine(client: Client, head: Head, before: Counters): Promise<Testimony> {
  // The daemon reads conntrack once for calls close together.
  await sleep(300);
  const entry = await entryOf(client, head);
  const now = await readCounters(client);
  const counters = {
    fastPackets: now.fastPackets - before.fastPackets,
    kernelPackets: now.kernelPackets - before.kernelPackets,
    learned: now.learned - before.learned,
    connectsServed: now.connectsServed - before.connectsServed,
  };
  const path = await pathOf(client, head, entry, counters.connectsServed);
  if (entry === null) return { path, original: "-", afterNat: "-", counters };
  const { original, reply } = entry;
  const arrow = (from: string, to: string): string => `${from} -> ${to}`;
  return {
    path,
    original: arrow(
      printedPlace(original.sourceAddress, original.sourcePort),
      printedPlace(original.destinationAddress, original.destinationPort),
    ),
    afterNat: arrow(
      printedPlace(reply.destinationAddress, reply.destinationPort),
      printedPlace(reply.sourceAddress, reply.sourcePort),
    ),
    counters,
  };
}
