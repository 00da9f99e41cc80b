/** Which conntrack entries a change of the desired state makes untrue. */
import { z } from "zod";
import type { ConntrackFilter } from "../datapath/types.ts";
import type { HolderBinding } from "../holder/types.ts";
import { addressOf, familyOf, isWildcard, withoutPrefix } from "./addresses.ts";
import type { EndpointRecord } from "./records.ts";
import type { State } from "./state.ts";
import { bindingKey, holderBindings } from "./wanted.ts";

const filterSchema = z.strictObject({
  protocol: z.enum(["tcp", "udp", "sctp"]).exactOptional(),
  originalDestinationAddress: z.string().exactOptional(),
  originalDestinationPort: z.int().exactOptional(),
  replySourceAddress: z.string().exactOptional(),
  replySourcePort: z.int().exactOptional(),
  originalSourceAddress: z.string().exactOptional(),
  destinationNat: z.boolean().exactOptional(),
}) satisfies z.ZodType<ConntrackFilter>;

export const staleEntriesSchema = z.strictObject({
  filters: z.array(filterSchema),
  /** UDP sockets of the host that are published now: clients that reached the host itself start anew. */
  sockets: z.array(z.strictObject({ hostAddress: z.string(), hostPort: z.int() })),
});
export type StaleEntries = z.infer<typeof staleEntriesSchema>;

/** Keys of ports that are still there, though perhaps under another number. */
function keysOfKeptPorts(before: State, after: State): Set<string> {
  const kept = before.port.values().filter(({ id }) => after.port.get(id) !== undefined);
  return new Set(
    kept.flatMap((port) => port.bindings.map((binding) => bindingKey(port.protocol, binding))),
  );
}

/** Translated entries of this binding; none where only the forwarder served it. */
function translated(binding: HolderBinding): ConntrackFilter[] {
  const { protocol, hostAddress, hostPort, targetAddress, targetPort } = binding;
  if (familyOf(hostAddress) !== familyOf(targetAddress)) return [];
  return [
    {
      protocol,
      ...(isWildcard(addressOf(hostAddress)) ? {} : { originalDestinationAddress: hostAddress }),
      originalDestinationPort: hostPort,
      replySourceAddress: targetAddress,
      replySourcePort: targetPort,
      destinationNat: true,
    },
  ];
}

/** All of an endpoint, in both directions. `addresses` with prefix. */
export function entriesOf(addresses: string[]): ConntrackFilter[] {
  return addresses
    .map(withoutPrefix)
    .flatMap((address) => [{ replySourceAddress: address }, { originalSourceAddress: address }]);
}

/**
 * Entries that would keep clients where they were: every one of a port or an endpoint that is gone;
 * UDP ones of a port that is new or has moved, because a UDP client never starts anew by itself.
 * Connections of a port that has moved finish on its old target.
 *
 * @param removed The endpoints that are gone.
 */
export function staleEntries(before: State, after: State, removed: EndpointRecord[]): StaleEntries {
  const [old, wanted] = [holderBindings(before), holderBindings(after)];
  const kept = keysOfKeptPorts(before, after);
  const filters: ConntrackFilter[] = [];
  for (const [key, was] of old) {
    const is = wanted.get(key);
    const isSame = was.targetAddress === is?.targetAddress && was.targetPort === is.targetPort;
    const finishes = was.protocol !== "udp" && (is !== undefined || kept.has(key));
    if (!isSame && !finishes) filters.push(...translated(was));
  }
  filters.push(...removed.flatMap(({ addresses }) => entriesOf(addresses)));
  const sockets = [...wanted].flatMap(([key, { protocol, hostAddress, hostPort }]) =>
    protocol === "udp" && !old.has(key) ? { hostAddress, hostPort } : [],
  );
  return { filters, sockets };
}

/**
 * What of it is untrue in `state` as well: by then a port or an address may be there again, and its
 * connections are good ones.
 */
export function stillStale(stale: StaleEntries, state: State): StaleEntries {
  const bindings = holderBindings(state);
  const targets = new Set(
    [...bindings.values()].map(
      (it) => `${it.protocol} ${it.hostPort} ${it.targetAddress} ${it.targetPort}`,
    ),
  );
  const addresses = new Set(
    state.endpoint.values().flatMap((endpoint) => endpoint.addresses.map(withoutPrefix)),
  );
  const isTrue = (it: ConntrackFilter): boolean =>
    it.originalDestinationPort === undefined
      ? addresses.has(it.replySourceAddress ?? it.originalSourceAddress ?? "")
      : targets.has(
          `${it.protocol} ${it.originalDestinationPort} ${it.replySourceAddress} ${it.replySourcePort}`,
        );
  return {
    filters: stale.filters.filter((filter) => !isTrue(filter)),
    sockets: stale.sockets.filter((it) => bindings.has(bindingKey("udp", it))),
  };
}
