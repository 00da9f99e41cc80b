/** What is read from the host: taken subnets, uplinks, switches of the bridge filter. */
import type { Datapath, LinkInfo, RouteInfo } from "../datapath/types.ts";
import {
  isLoopback,
  parseInterfaceAddress,
  specialUse,
  subnetAround,
  withoutPrefix,
} from "./addresses.ts";
import type { HostView, TakenSubnet } from "./plan-networks.ts";

const isOurs = (link: LinkInfo): boolean => link.alias.startsWith("natbridge:");

function taken(text: string, by: string): TakenSubnet[] {
  const parsed = parseInterfaceAddress(text);
  if (!parsed || isLoopback(parsed.address)) return [];
  const subnet = subnetAround(parsed.address, parsed.prefix);
  return subnet.prefix === 0 || specialUse(subnet) !== null ? [] : [{ subnet, by }];
}

/** Subnets and device names that are not natbridge's to use. */
export function hostView(links: LinkInfo[], routes: RouteInfo[]): HostView {
  const foreign = links.filter((link) => !isOurs(link));
  const own = new Set(links.filter(isOurs).map(({ name }) => name));
  const byAddress = foreign.flatMap((link) =>
    link.addresses.flatMap((address) => taken(address, `interface ${link.name}`)),
  );
  const byRoute = routes
    .filter((route) => !own.has(route.interface))
    .flatMap(({ destination, interface: device }) =>
      taken(destination, device === "" ? "a route" : `a route by ${device}`),
    );
  return {
    taken: [...byAddress, ...byRoute],
    devices: new Set(foreign.map(({ name }) => name)),
  };
}

const containerBridge =
  /^(docker0|docker_gwbridge|br-[0-9a-f]{12}|virbr\d+|cni\d+|podman\d+|lxcbr\d+)$/;

/**
 * The uplinks: exactly `names`, or every up Ethernet device with a global address that is no port of a
 * bridge, not natbridge's own, and no bridge unless the default route leads over it.
 */
export function findUplinks(links: LinkInfo[], routes: RouteInfo[], names: string[]): LinkInfo[] {
  const defaults = new Set(
    routes.filter((route) => route.destination.endsWith("/0")).map((route) => route.interface),
  );
  return links.filter((link) => {
    if (!link.ethernet || link.loopback || !link.up || isOurs(link)) return false;
    if (names.length > 0) return names.includes(link.name);
    if (link.master !== 0 || containerBridge.test(link.name)) return false;
    if (link.kind === "bridge" && !defaults.has(link.name)) return false;
    return link.addresses.some((address) => !/^(fe80:|169\.254\.)/.test(address));
  });
}

/** The host's own addresses, those of its loopback devices among them. */
export const localAddresses = (links: LinkInfo[]): string[] =>
  links.flatMap(({ addresses }) => addresses.map(withoutPrefix));

/** Whether bridged packets pass netfilter (kernel: net.bridge.bridge-nf-call-*). */
export interface BridgeFiltering {
  ipv4: boolean;
  ipv6: boolean;
}

export const bridgeFiltering = (datapath: Datapath): BridgeFiltering => ({
  ipv4: datapath.readSysctl("net/bridge/bridge-nf-call-iptables") === "1",
  ipv6: datapath.readSysctl("net/bridge/bridge-nf-call-ip6tables") === "1",
});

/** Docker runs here: then the default network is its own docker0. */
export function dockerRuns(links: LinkInfo[]): boolean {
  return links.some(({ name }) => name === "docker0");
}

/** The host's ephemeral ports (kernel: ip_local_port_range). */
export function ephemeralPorts(datapath: Datapath): { first: number; last: number } {
  const [first = 32768, last = 60999] = (
    datapath.readSysctl("net/ipv4/ip_local_port_range") ?? "32768 60999"
  )
    .trim()
    .split(/\s+/)
    .map(Number);
  return { first, last };
}
