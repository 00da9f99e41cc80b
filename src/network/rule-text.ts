/**
 * `GET /v1/rules`: what the kernel's table holds of each network and port, and how iptables would say
 * it. Nothing here says what should be: an element that is not there is not told.
 */
import type { FirewallElement } from "../datapath/types.ts";
import { addressOf, isWildcard } from "./addresses.ts";
import type { NetworkRecord, PortRecord } from "./records.ts";
import type { RuleDescription } from "./rules.ts";
import type { State } from "./state.ts";

const separator = " . ";
const tool = (address: string): string => (address.includes(":") ? "ip6tables" : "iptables");
const digit = (address: string): string => (address.includes(":") ? "6" : "4");

const textOf = ({ set, key, value }: FirewallElement): string =>
  `${set} { ${key}${value === "" ? "" : ` : ${value}`} }`;

/** A word that a POSIX shell takes as it is, or in quotes. */
const shellWord = (word: string): string =>
  /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

/** Elements by set and by the part of their key that tells whose they are. */
class Held {
  readonly #elements = new Map<string, FirewallElement[]>();

  constructor(elements: FirewallElement[]) {
    for (const element of elements) {
      const place = `${element.set} ${ownersPart(element)}`;
      const known = this.#elements.get(place);
      if (known) known.push(element);
      else this.#elements.set(place, [element]);
    }
  }

  of(set: string, key: string): FirewallElement[] {
    return this.#elements.get(`${set} ${key}`) ?? [];
  }
}

/** A client subnet behind a port and a subnet behind its bridge say nothing of whose element it is. */
function ownersPart({ set, key }: FirewallElement): string {
  const fields = key.split(separator);
  if (set.startsWith("own_subnet") || set === "same_bridge") return fields[0] ?? "";
  return (set.startsWith("allowed_") ? fields.slice(0, -1) : fields).join(separator);
}

function networkRules(network: NetworkRecord, bridge: string, held: Held): RuleDescription {
  const quoted = `"${bridge}"`;
  const own = ["bridges", "internal_bridges", "same_bridge", "own_subnet4", "own_subnet6"];
  const masquerades = network.subnets.flatMap(({ subnet }) =>
    held.of(`masquerade${digit(subnet)}`, subnet),
  );
  return {
    kind: "network",
    id: network.id,
    name: network.name,
    nftables: [...own.flatMap((set) => held.of(set, quoted)), ...masquerades].map(textOf),
    iptables: masquerades.map(
      ({ key }) =>
        `${tool(key)} -t nat -A POSTROUTING -s ${key} ! -o ${shellWord(bridge)} -j MASQUERADE`,
    ),
  };
}

/** What tells the elements of one binding of a port. */
interface Place {
  protocol: string;
  hostAddress: string;
  hostPort: number;
  kind: "wildcard" | "exact";
  family: string;
  /** As keys name it: without address where it stands for all. */
  socket: string;
}

function placeOf(protocol: string, hostAddress: string, hostPort: number): Place {
  const kind = isWildcard(addressOf(hostAddress)) ? "wildcard" : "exact";
  const socket = kind === "exact" ? `${hostAddress}${separator}${hostPort}` : `${hostPort}`;
  return { protocol, hostAddress, hostPort, kind, family: digit(hostAddress), socket };
}

interface BindingElements {
  translations: FirewallElement[];
  restrictions: FirewallElement[];
  clients: FirewallElement[];
  others: FirewallElement[];
}

function bindingElements(place: Place, held: Held): BindingElements {
  const { protocol, hostPort, kind, family, socket } = place;
  const translations = held.of(`${protocol}_${kind}${family}`, socket);
  const key = `${protocol}${separator}${socket}`;
  const number = `${protocol}${separator}${hostPort}`;
  return {
    translations,
    restrictions: held.of(`restricted_${kind}${family}`, key),
    clients: held.of(`allowed_${kind}${family}`, key),
    others: [
      ...held.of(`exempt${family}`, key),
      ...held.of(`published${family}`, number),
      ...held.of(`published_${kind}${family}`, key),
      ...held.of(`forwarded${family}`, number),
      ...translations.flatMap(({ value }) =>
        held.of(`target${family}`, `${protocol}${separator}${value}`),
      ),
    ],
  };
}

function iptablesLines(place: Place, elements: BindingElements): string[] {
  const { protocol, hostAddress, hostPort, kind } = place;
  const destination = kind === "wildcard" ? "-m addrtype --dst-type LOCAL" : `-d ${hostAddress}`;
  const clients = elements.clients.map(({ key }) => `-s ${key.split(separator).at(-1)} `);
  const sources = elements.restrictions.length === 0 ? [""] : clients;
  return elements.translations.flatMap(({ value }) => {
    const [address = "", port = ""] = value.split(separator);
    const target = address.includes(":") ? `[${address}]` : address;
    return sources.map(
      (source) =>
        `${tool(hostAddress)} -t nat -A PREROUTING ${source}${destination} -p ${protocol} --dport ${hostPort} -j DNAT --to-destination ${target}:${port}`,
    );
  });
}

function portRules(port: PortRecord, held: Held): RuleDescription {
  const bindings = port.bindings.map(({ hostAddress, hostPort }) => {
    const place = placeOf(port.protocol, hostAddress, hostPort);
    return { place, elements: bindingElements(place, held) };
  });
  return {
    kind: "port",
    id: port.id,
    name: port.name,
    nftables: bindings.flatMap(({ elements }) =>
      [
        ...elements.translations,
        ...elements.restrictions,
        ...elements.clients,
        ...elements.others,
      ].map(textOf),
    ),
    iptables: bindings.flatMap(({ place, elements }) => iptablesLines(place, elements)),
  };
}

export function describeRules(state: State, elements: FirewallElement[]): RuleDescription[] {
  const held = new Held(elements);
  return [
    ...state.network
      .values()
      .flatMap((network) =>
        network.bridge === null ? [] : networkRules(network, network.bridge, held),
      ),
    ...state.port.values().map((port) => portRules(port, held)),
  ];
}
