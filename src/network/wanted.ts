/** From the desired state to what the kernel and the holder must hold. No I/O. */
import type {
  BridgeSpec,
  DefaultRoute,
  DeviceSpec,
  EndpointSpec,
  Family,
  FirewallPort,
  FirewallSpec,
  LinkInfo,
  PortEntry,
} from "../datapath/types.ts";
import type { HolderBinding } from "../holder/types.ts";
import {
  addressOf,
  familyOf,
  isLinkLocal,
  isLoopback,
  linkLocalOf,
  withoutPrefix,
} from "./addresses.ts";
import type { BridgeFiltering } from "./host.ts";
import type { EndpointRecord, NetworkRecord, PortRecord } from "./records.ts";
import type { State } from "./state.ts";

/** Written into IFLA_IFALIAS: by it natbridge knows its own devices. */
export const networkAlias = (id: string): string => `natbridge:network:${id}`;
export const endpointAlias = (id: string): string => `natbridge:endpoint:${id}`;

/** Null for networks without a device. */
export function bridgeSpec(network: NetworkRecord): BridgeSpec | null {
  if (network.bridge === null) return null;
  return {
    name: network.bridge,
    alias: networkAlias(network.id),
    mtu: network.mtu,
    addresses: network.subnets.flatMap(({ subnet, gateway }) =>
      gateway === null ? [] : [`${gateway}/${subnet.split("/")[1]}`],
    ),
  };
}

export function endpointSpec(
  state: State,
  endpoint: EndpointRecord,
  filtering: BridgeFiltering,
): EndpointSpec {
  const network = state.network.expect(endpoint.networkId);
  if (network.bridge === null) throw new Error(`Network ${network.name} has no bridge`);
  return {
    id: endpoint.id,
    alias: endpointAlias(endpoint.id),
    hostInterface: endpoint.hostInterface,
    bridge: network.bridge,
    sandboxPath: state.sandbox.expect(endpoint.sandboxId).netns,
    interface: endpoint.interface,
    mac: endpoint.mac,
    mtu: endpoint.mtu,
    addresses: endpoint.addresses,
    // Where bridged packets pass netfilter a rule isolates, which lets published ports through.
    isolatedPort: network.isolated && !(filtering.ipv4 && (filtering.ipv6 || !network.ipv6)),
  };
}

/** Addresses the programs know of one device (NB_DEVICE_ADDRESSES in bpf/abi.h). */
const deviceAddresses = 8;

/**
 * Addresses an endpoint's frames may bear: its own, and those of its sandbox's other endpoints. Linux
 * answers a published port from the address that was asked, by the device of its default route.
 */
function sourcesOf(state: State, endpoint: EndpointRecord): string[] {
  const others = state.endpoint.of(endpoint.sandboxId).filter(({ id }) => id !== endpoint.id);
  return [endpoint, ...others]
    .flatMap(({ addresses }) => addresses.map(withoutPrefix))
    .slice(0, deviceAddresses);
}

/** Link-local addresses they know of an endpoint's bridge (NB_DEVICE_RESERVED in bpf/abi.h). */
const reservedAddresses = 4;

/** Those the bridge has, and the one of its MAC, which it gets when its first port is up. */
function reservedOf(bridge: LinkInfo): string[] {
  const own = bridge.addresses.map(withoutPrefix).filter(isLinkLocal);
  return [...new Set([linkLocalOf(bridge.mac), ...own])].slice(0, reservedAddresses);
}

/** What the programs must know of an endpoint's host end, a port of `bridge`. */
export function endpointDevice(
  state: State,
  endpoint: EndpointRecord,
  ifindex: number,
  bridge: LinkInfo | undefined,
  fastPath: boolean,
): DeviceSpec {
  return {
    ifindex,
    link: bridge?.ifindex ?? 0,
    reserved: bridge ? reservedOf(bridge) : [],
    role: "endpoint",
    mtu: endpoint.mtu,
    mac: endpoint.mac,
    addresses: sourcesOf(state, endpoint),
    spoofCheck: endpoint.sourceCheck,
    fastPath,
  };
}

/** The endpoint's address of the host address's family, or its other one, for the forwarder. */
function targetOf(
  endpoint: EndpointRecord,
  hostAddress: string,
): { address: string; same: boolean } {
  const addresses = endpoint.addresses.map(withoutPrefix);
  const same = addresses.find((address) => familyOf(address) === familyOf(hostAddress));
  return { address: same ?? addresses[0] ?? "", same: same !== undefined };
}

function firewallPorts(endpoint: EndpointRecord, port: PortRecord): FirewallPort[] {
  return port.bindings.flatMap(({ hostAddress, hostPort, containerPort }) => {
    const target = targetOf(endpoint, hostAddress);
    // Loopback never meets the table.
    if (isLoopback(addressOf(hostAddress))) return [];
    return {
      protocol: port.protocol,
      hostAddress,
      hostPort,
      targetAddress: target.same ? target.address : "",
      targetPort: containerPort,
      from: port.from,
    };
  });
}

export function firewallSpec(state: State, strictForwarding: Family[]): FirewallSpec {
  return {
    strictForwarding,
    networks: state.network.values().flatMap((network) =>
      network.bridge === null
        ? []
        : {
            bridge: network.bridge,
            subnets: network.subnets.map(({ subnet }) => ({
              subnet,
              masquerade: network.masquerade && !network.internal,
            })),
            internal: network.internal,
            isolated: network.isolated,
          },
    ),
    ports: state.port
      .values()
      .flatMap((port) => firewallPorts(state.endpoint.expect(port.endpointId), port)),
  };
}

/** The key of a reserved host port. `protocol` as conntrack and ports name it. */
export const bindingKey = (
  protocol: string,
  { hostAddress, hostPort }: { hostAddress: string; hostPort: number },
): string => `${protocol}/${hostAddress}/${hostPort}`;

/** Every reserved host port by its key. */
export function holderBindings(state: State): Map<string, HolderBinding> {
  const bindings = new Map<string, HolderBinding>();
  for (const port of state.port.values()) {
    const endpoint = state.endpoint.expect(port.endpointId);
    for (const { hostAddress, hostPort, containerPort } of port.bindings) {
      const key = bindingKey(port.protocol, { hostAddress, hostPort });
      bindings.set(key, {
        key,
        protocol: port.protocol,
        hostAddress,
        hostPort,
        targetAddress: targetOf(endpoint, hostAddress).address,
        targetPort: containerPort,
        from: port.from,
      });
    }
  }
  return bindings;
}

/** What the connect hook serves: TCP and UDP bindings, whatever their target's family. */
export function portEntries(state: State): PortEntry[] {
  return state.port.values().flatMap(({ id: portId, endpointId, protocol, bindings }) => {
    if (protocol === "sctp") return [];
    const endpoint = state.endpoint.expect(endpointId);
    return bindings.flatMap(({ hostAddress, hostPort, containerPort: targetPort }) => {
      const targetAddress = targetOf(endpoint, hostAddress).address;
      // A v6 target for a v4 socket is the forwarder's.
      const canHook = familyOf(hostAddress) === "ipv6" || familyOf(targetAddress) === "ipv4";
      return canHook
        ? { protocol, hostAddress, hostPort, targetAddress, targetPort, portId, endpointId }
        : [];
    });
  });
}

export interface DefaultRoutes {
  ipv4: DefaultRoute | null;
  ipv6: DefaultRoute | null;
}

/** The highest priority gives a sandbox its default routes; then the network's name, as in Docker. */
export function defaultRoutes(state: State, sandboxId: string): DefaultRoutes {
  const routes: DefaultRoutes = { ipv4: null, ipv6: null };
  const candidates = state.endpoint
    .of(sandboxId)
    .map((endpoint) => ({ endpoint, network: state.network.expect(endpoint.networkId) }))
    // An internal network has no way out.
    .filter(({ network }) => !network.internal)
    .sort(
      (a, b) =>
        b.endpoint.defaultRoutePriority - a.endpoint.defaultRoutePriority ||
        (a.network.name < b.network.name ? -1 : 1),
    );
  for (const { endpoint, network } of candidates)
    for (const { gateway } of network.subnets)
      if (gateway !== null)
        routes[familyOf(gateway)] ??= { gateway, hostInterface: endpoint.hostInterface };
  return routes;
}
