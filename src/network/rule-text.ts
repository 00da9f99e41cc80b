/** `GET /v1/rules`: networks and ports as elements of the table, and as iptables would say it. */
import type { Family, FirewallPort } from "../datapath/types.ts";
import { addressOf, isWildcard } from "./addresses.ts";
import type { RuleDescription } from "./rules.ts";
import type { State } from "./state.ts";
import { firewallSpec } from "./wanted.ts";

const digit = (address: string): string => (address.includes(":") ? "6" : "4");
const tool = (address: string): string => (address.includes(":") ? "ip6tables" : "iptables");

function portElements(port: FirewallPort): string[] {
  const kind = isWildcard(addressOf(port.hostAddress)) ? "wildcard" : "exact";
  const family = digit(port.hostAddress);
  const socket = kind === "exact" ? `${port.hostAddress} . ${port.hostPort}` : `${port.hostPort}`;
  const dnat =
    port.targetAddress === ""
      ? []
      : [
          `${port.protocol}_${kind}${family} { ${socket} : ${port.targetAddress} . ${port.targetPort} }`,
        ];
  if (port.from.length === 0) return dnat;
  const allowed = port.from.filter((from) => digit(from) === family);
  return [
    ...dnat,
    `restricted_${kind}${family} { ${port.protocol} . ${socket} }`,
    ...allowed.map((from) => `allowed_${kind}${family} { ${port.protocol} . ${socket} . ${from} }`),
  ];
}

function portIptables(port: FirewallPort): string[] {
  if (port.targetAddress === "") return [];
  const destination = isWildcard(addressOf(port.hostAddress))
    ? "-m addrtype --dst-type LOCAL"
    : `-d ${port.hostAddress}`;
  const target = port.targetAddress.includes(":") ? `[${port.targetAddress}]` : port.targetAddress;
  const allowed = port.from.filter((from) => digit(from) === digit(port.hostAddress));
  const sources = port.from.length === 0 ? [""] : allowed.map((from) => `-s ${from} `);
  return sources.map(
    (source) =>
      `${tool(port.hostAddress)} -t nat -A PREROUTING ${source}${destination} -p ${port.protocol} --dport ${port.hostPort} -j DNAT --to-destination ${target}:${port.targetPort}`,
  );
}

export function describeRules(state: State, strictForwarding: Family[]): RuleDescription[] {
  const networks = state.network.values().flatMap((network): RuleDescription[] => {
    if (network.bridge === null) return [];
    const { bridge } = network;
    const nftables = [`bridges { "${bridge}" }`];
    if (network.internal) nftables.push(`internal_bridges { "${bridge}" }`);
    if (!network.isolated) nftables.push(`same_bridge { "${bridge}" . "${bridge}" }`);
    const iptables: string[] = [];
    for (const { subnet } of network.subnets) {
      nftables.push(`own_subnet${digit(subnet)} { "${bridge}" . ${subnet} }`);
      if (!network.masquerade || network.internal) continue;
      nftables.push(`masquerade${digit(subnet)} { ${subnet} }`);
      iptables.push(
        `${tool(subnet)} -t nat -A POSTROUTING -s ${subnet} ! -o ${bridge} -j MASQUERADE`,
      );
    }
    return [{ kind: "network", id: network.id, name: network.name, nftables, iptables }];
  });
  const specs = new Map<string, FirewallPort>();
  for (const spec of firewallSpec(state, strictForwarding).ports)
    specs.set(`${spec.protocol}/${spec.hostAddress}/${spec.hostPort}`, spec);
  const ports = state.port.values().map((port): RuleDescription => {
    const own = port.bindings.flatMap(
      ({ hostAddress, hostPort }) => specs.get(`${port.protocol}/${hostAddress}/${hostPort}`) ?? [],
    );
    return {
      kind: "port",
      id: port.id,
      name: port.name,
      nftables: own.flatMap(portElements),
      iptables: own.flatMap(portIptables),
    };
  });
  return [...networks, ...ports];
}
