/**
 * The end of untrue conntrack entries. They are noted with a change's durable write, and the note goes when
 * they are deleted: a daemon that is killed in between deletes them when it starts.
 */
import type { ConntrackFilter, Datapath } from "../datapath/types.ts";
import type { Store } from "../store/store.ts";
import { familyOf, wildcardOf } from "./addresses.ts";
import { type StaleEntries, staleEntriesSchema, stillStale } from "./stale-entries.ts";
import type { State } from "./state.ts";
import { bindingKey } from "./wanted.ts";

const noteKey = "stale-conntrack";
const none: StaleEntries = { filters: [], sockets: [] };

const isEmpty = ({ filters, sockets }: StaleEntries): boolean =>
  filters.length + sockets.length === 0;

/** A note that can't be read is none: entries expire by themselves, too. */
export function noted(store: Store): StaleEntries {
  try {
    return staleEntriesSchema.parse(JSON.parse(store.setting(noteKey) ?? ""));
  } catch {
    return none;
  }
}

/** The settings to write with a change to `after`: what it makes untrue, and what has been before. */
export function noteOf(store: Store, stale: StaleEntries, after: State): Record<string, string> {
  const earlier = noted(store);
  if (isEmpty(stale) && isEmpty(earlier)) return {};
  const { filters, sockets } = stillStale(earlier, after);
  const all: StaleEntries = {
    filters: [...filters, ...stale.filters],
    sockets: [...sockets, ...stale.sockets],
  };
  return { [noteKey]: JSON.stringify(all) };
}

/**
 * UDP entries from before these sockets were published: their clients reached the host itself, or they were
 * masqueraded under the number that is published now and would take its requests for answers.
 */
async function untranslated(
  datapath: Datapath,
  published: StaleEntries["sockets"],
  localAddresses: string[],
): Promise<ConntrackFilter[]> {
  if (published.length === 0) return [];
  const sockets = new Set(published.map((socket) => bindingKey("udp", socket)));
  const local = new Set(localAddresses);
  const isServed = (hostAddress: string, hostPort: number): boolean => {
    const wildcard = { hostAddress: wildcardOf(familyOf(hostAddress)), hostPort };
    return (
      sockets.has(bindingKey("udp", { hostAddress, hostPort })) ||
      (local.has(hostAddress) && sockets.has(bindingKey("udp", wildcard)))
    );
  };
  const entries = await datapath.listConntrack();
  return entries.flatMap(({ protocol, destinationNat, sourceNat, original, reply }) => {
    const { sourceAddress, destinationAddress, destinationPort } = original;
    const reached = isServed(destinationAddress, destinationPort);
    const masqueraded = sourceNat && isServed(reply.destinationAddress, reply.destinationPort);
    if (protocol !== "udp" || destinationNat || !(reached || masqueraded)) return [];
    return {
      protocol,
      originalSourceAddress: sourceAddress,
      originalDestinationAddress: destinationAddress,
      originalDestinationPort: destinationPort,
      destinationNat: false,
    };
  });
}

/**
 * Deletes entries.
 *
 * @param localAddresses The host's own.
 * @throws DatapathError after all that can be deleted are.
 */
export async function deleteEntries(
  datapath: Datapath,
  stale: StaleEntries,
  localAddresses: string[],
): Promise<void> {
  const early = await untranslated(datapath, stale.sockets, localAddresses);
  const filters = [...stale.filters, ...early];
  if (filters.length > 0) await datapath.deleteConntrack(filters);
}

/**
 * Deletes what is noted, and then the note.
 *
 * @param late The state by now, unless the note was just written.
 * @throws DatapathError or the disk's error; the note stays then.
 */
export async function clearNoted(
  datapath: Datapath,
  store: Store,
  localAddresses: string[],
  late: State | null,
): Promise<void> {
  const stale = noted(store);
  if (isEmpty(stale)) return;
  await deleteEntries(datapath, late ? stillStale(stale, late) : stale, localAddresses);
  store.saveSetting(noteKey, JSON.stringify(none));
}
