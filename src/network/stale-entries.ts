/** Which conntrack entries a change of the desired state makes untrue. */
import type { ConntrackFilter, Datapath } from "../datapath/types.ts";
import type { HolderBinding } from "../holder/types.ts";
import { addressOf, familyOf, isWildcard, withoutPrefix } from "./addresses.ts";
import { compareStates, type State } from "./state.ts";
import { bindingKey, holderBindings } from "./wanted.ts";

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

/** UDP entries from before these bindings were there: their clients reached the host itself. */
async function untranslated(
  datapath: Datapath,
  bindings: HolderBinding[],
  localAddresses: string[],
): Promise<ConntrackFilter[]> {
  if (bindings.length === 0) return [];
  const sockets = new Set(
    bindings.map(({ hostAddress, hostPort }) => `${hostAddress} ${hostPort}`),
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
export async function staleEntries(
  datapath: Datapath,
  before: State,
  after: State,
  localAddresses: string[],
): Promise<ConntrackFilter[]> {
  const [old, wanted] = [holderBindings(before), holderBindings(after)];
  const kept = keysOfKeptPorts(before, after);
  const filters: ConntrackFilter[] = [];
  for (const [key, was] of old) {
    const is = wanted.get(key);
    const isSame = was.targetAddress === is?.targetAddress && was.targetPort === is.targetPort;
    const finishes = was.protocol !== "udp" && (is !== undefined || kept.has(key));
    if (!isSame && !finishes) filters.push(...translated(was));
  }
  const anew = [...wanted].filter(([key, { protocol }]) => protocol === "udp" && !old.has(key));
  const removed = compareStates(before, after).endpoint.removed;
  return [
    ...filters,
    ...(await untranslated(
      datapath,
      anew.map(([, binding]) => binding),
      localAddresses,
    )),
    ...removed.flatMap(({ addresses }) => entriesOf(addresses)),
  ];
}
