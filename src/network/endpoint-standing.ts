/** What one look at the kernel says of an endpoint: does it stand as it is recorded? No I/O. */
import type { LinkInfo, SandboxInfo } from "../datapath/types.ts";
import type { EndpointRecord, NetworkRecord, SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";
import { bridgeSpec, defaultRoutes, endpointAlias } from "./wanted.ts";

export type LinksByName = ReadonlyMap<string, LinkInfo>;

export const byName = (links: LinkInfo[]): LinksByName =>
  new Map(links.map((link) => [link.name, link]));

/** A key of before this version had no cookie (`dev:inode`). */
export const isSameNamespace = (recorded: string, found: string): boolean =>
  recorded === found || found.startsWith(`${recorded}:`);

/** Such a path says nothing once the process is gone, and its number is given again. */
export const isOfProcess = ({ netns }: Pick<SandboxRecord, "netns">): boolean =>
  netns.startsWith("/proc/");

export function networkStands(network: NetworkRecord, links: LinksByName): boolean {
  const spec = bridgeSpec(network);
  if (!spec) return true;
  const link = links.get(spec.name);
  return (
    link !== undefined &&
    link.alias === spec.alias &&
    link.up &&
    link.mtu === spec.mtu &&
    spec.addresses.every((address) => link.addresses.includes(address))
  );
}

/** Its host end is there, up, and a port of its bridge. */
export function hostEndStands(state: State, endpoint: EndpointRecord, links: LinksByName): boolean {
  const { bridge } = state.network.expect(endpoint.networkId);
  const link = links.get(endpoint.hostInterface);
  return (
    link !== undefined &&
    link.alias === endpointAlias(endpoint.id) &&
    link.up &&
    link.mtu === endpoint.mtu &&
    link.master === links.get(bridge ?? "")?.ifindex
  );
}

/** The other end of its pair is in this namespace, under whatever name, up and with its addresses. */
function sandboxEndStands(
  endpoint: EndpointRecord,
  links: LinksByName,
  info: SandboxInfo,
): boolean {
  const link = links.get(endpoint.hostInterface);
  const end = info.interfaces.find(
    ({ ifindex, peer }) => ifindex === link?.peer && peer === link.ifindex,
  );
  return (
    end?.up === true &&
    end.mac === endpoint.mac &&
    end.mtu === endpoint.mtu &&
    endpoint.addresses.every((address) => end.addresses.includes(address))
  );
}

/** natbridge's default routes are there, by the interfaces that they are to lead over. */
export function routesStand(
  state: State,
  sandboxId: string,
  links: LinksByName,
  info: SandboxInfo,
): boolean {
  const { ipv4, ipv6 } = defaultRoutes(state, sandboxId);
  return [ipv4, ipv6].every(
    (wanted) =>
      wanted === null ||
      info.defaultRoutes.some(
        ({ gateway, ifindex }) =>
          gateway === wanted.gateway && ifindex === links.get(wanted.hostInterface)?.peer,
      ),
  );
}

export function endpointStands(
  state: State,
  endpoint: EndpointRecord,
  links: LinksByName,
  info: SandboxInfo,
): boolean {
  return (
    hostEndStands(state, endpoint, links) &&
    sandboxEndStands(endpoint, links, info) &&
    routesStand(state, endpoint.sandboxId, links, info)
  );
}
