/**
 * Which conntrack entries a change of the desired state makes untrue, and their end. They are noted with
 * the change's durable write: a daemon that is killed before it deleted them does so when it starts.
 */
import { z } from "zod";
import type { ConntrackFilter, Datapath } from "../datapath/types.ts";
import type { HolderBinding } from "../holder/types.ts";
import type { Store } from "../store/store.ts";
import { addressOf, familyOf, isWildcard, withoutPrefix } from "./addresses.ts";
import type { State, StateDifference } from "./state.ts";
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

const staleEntriesSchema = z.strictObject({
  filters: z.array(filterSchema),
  /** UDP sockets of the host that are published now: clients that reached the host itself start anew. */
  sockets: z.array(z.strictObject({ hostAddress: z.string(), hostPort: z.int() })),
});
export type StaleEntries = z.infer<typeof staleEntriesSchema>;

const noteKey = "stale-conntrack";
export const noStaleEntries: StaleEntries = { filters: [], sockets: [] };

const isWild = (address: string): boolean => isWildcard(addressOf(address));

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
      ...(isWild(hostAddress) ? {} : { originalDestinationAddress: hostAddress }),
      originalDestinationPort: hostPort,
      replySourceAddress: targetAddress,
      replySourcePort: targetPort,
      destinationNat: true,
    },
  ];
}

/** UDP entries from before these sockets were published: their clients reached the host itself. */
async function untranslated(
  datapath: Datapath,
  published: StaleEntries["sockets"],
  localAddresses: string[],
): Promise<ConntrackFilter[]> {
  if (published.length === 0) return [];
  const sockets = new Set(
    published.map(({ hostAddress, hostPort }) => `${hostAddress} ${hostPort}`),
  );
  const local = new Set(localAddresses);
  const isServed = (address: string, port: number): boolean => {
    const wildcard = familyOf(address) === "ipv4" ? "0.0.0.0" : "::";
    return (
      sockets.has(`${address} ${port}`) ||
      (local.has(address) && sockets.has(`${wildcard} ${port}`))
    );
  };
  const entries = await datapath.listConntrack();
  return entries.flatMap(({ protocol, destinationNat, original }) => {
    const { sourceAddress, destinationAddress, destinationPort } = original;
    if (protocol !== "udp" || destinationNat || !isServed(destinationAddress, destinationPort))
      return [];
    return {
      protocol,
      originalSourceAddress: sourceAddress,
      originalDestinationAddress: destinationAddress,
      originalDestinationPort: destinationPort,
      destinationNat: false,
    };
  });
}

/** All of an endpoint that is gone, in both directions. */
function entriesOf(addresses: string[]): ConntrackFilter[] {
  return addresses
    .map(withoutPrefix)
    .flatMap((address) => [{ replySourceAddress: address }, { originalSourceAddress: address }]);
}

/**
 * Entries that would keep clients where they were: every one of a port or an endpoint that is gone;
 * UDP ones of a port that is new or has moved, because a UDP client never starts anew by itself.
 * Connections of a port that has moved finish on its old target.
 */
export function staleEntries(
  before: State,
  after: State,
  difference: StateDifference,
): StaleEntries {
  const [old, wanted] = [holderBindings(before), holderBindings(after)];
  const kept = keysOfKeptPorts(before, after);
  const filters: ConntrackFilter[] = [];
  for (const [key, was] of old) {
    const is = wanted.get(key);
    const isSame = was.targetAddress === is?.targetAddress && was.targetPort === is.targetPort;
    const finishes = was.protocol !== "udp" && (is !== undefined || kept.has(key));
    if (!isSame && !finishes) filters.push(...translated(was));
  }
  filters.push(...difference.endpoint.removed.flatMap(({ addresses }) => entriesOf(addresses)));
  const sockets = [...wanted].flatMap(([key, { protocol, hostAddress, hostPort }]) =>
    protocol === "udp" && !old.has(key) ? { hostAddress, hostPort } : [],
  );
  return { filters, sockets };
}

const isEmpty = ({ filters, sockets }: StaleEntries): boolean =>
  filters.length + sockets.length === 0;

/** A note that can't be read is none: entries expire by themselves, too. */
function noted(store: Store): StaleEntries {
  try {
    return staleEntriesSchema.parse(JSON.parse(store.setting(noteKey) ?? ""));
  } catch {
    return noStaleEntries;
  }
}

/** What to write with the change, besides what is noted already. */
export function noteOf(store: Store, stale: StaleEntries): Record<string, string> {
  if (isEmpty(stale)) return {};
  const { filters, sockets } = noted(store);
  const all = {
    filters: [...filters, ...stale.filters],
    sockets: [...sockets, ...stale.sockets],
  } satisfies StaleEntries;
  return { [noteKey]: JSON.stringify(all) };
}

/**
 * Deletes the entries that are noted, and then the note.
 *
 * @param localAddresses The host's own.
 * @throws DatapathError or the disk's error; the note stays then.
 */
export async function clearNoted(
  datapath: Datapath,
  store: Store,
  localAddresses: string[],
): Promise<void> {
  const stale = noted(store);
  if (isEmpty(stale)) return;
  const early = await untranslated(datapath, stale.sockets, localAddresses);
  const filters = [...stale.filters, ...early];
  if (filters.length > 0) await datapath.deleteConntrack(filters);
  store.saveSetting(noteKey, JSON.stringify(noStaleEntries));
}
