/** Does a rule match a packet of which only some things are known? Three-valued: yes, no, maybe. */

import { Address4, Address6 } from "ip-address";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import type { Chain, Ruleset } from "./ruleset.ts";

export type Answer = "yes" | "no" | "maybe";

/** What is known of a packet; a missing field is unknown, null says that the packet has none. */
export interface PacketFacts {
  family?: "ipv4" | "ipv6";
  /** It is one of these. */
  protocols: ("tcp" | "udp")[];
  inputDevice?: string | null;
  outputDevice?: string | null;
  /** Several: one of these. */
  source?: string | string[];
  destination?: string | string[];
  destinationPort?: number;
  connectionState: "new" | "established";
  /** TCP packets carry neither SYN nor FIN nor RST. */
  plainSegment?: boolean;
  /** The route back to the source exists, and the destination is an address of this host. */
  local?: boolean;
}

export function not(answer: Answer): Answer {
  if (answer === "maybe") return "maybe";
  return answer === "yes" ? "no" : "yes";
}

export function and(answers: Answer[]): Answer {
  if (answers.includes("no")) return "no";
  return answers.includes("maybe") ? "maybe" : "yes";
}

function or(answers: Answer[]): Answer {
  if (answers.includes("yes")) return "yes";
  return answers.includes("maybe") ? "maybe" : "no";
}

/** Statements that let every packet go on to the next one of the rule. */
const transparent = new Set([
  "accept",
  "counter",
  "ct helper",
  "ct timeout",
  "drop",
  "dnat",
  "dup",
  "flow",
  "fwd",
  "goto",
  "jump",
  "last",
  "log",
  "mangle",
  "map",
  "masquerade",
  "notrack",
  "queue",
  "redirect",
  "reject",
  "return",
  "secmark",
  "set",
  "snat",
  "synproxy",
  "tproxy",
  "vmap",
  "continue",
  "comment",
]);

/** Does the packet match all conditions of the rule? */
export function matchRule(
  ruleset: Ruleset,
  chain: Chain,
  expressions: JsonObject[],
  packet: PacketFacts,
): Answer {
  const answers = [matchFamily(chain, packet)];
  for (const expression of expressions) {
    const match = expression.match;
    if (isObject(match)) answers.push(matchExpression(ruleset, chain, match, packet));
    else if (at(expression, "xt", "type") === "match") {
      answers.push(at(expression, "xt", "name") === "comment" ? "yes" : "maybe");
    } else if (!Object.keys(expression).every((key) => transparent.has(key) || key === "xt")) {
      // limit, quota, meters, and whatever a newer nft has.
      answers.push("maybe");
    }
  }
  return and(answers);
}

function matchFamily(chain: Chain, packet: PacketFacts): Answer {
  if (packet.family === undefined)
    return chain.family === "ip" || chain.family === "ip6" ? "maybe" : "yes";
  if (chain.family === "ip") return packet.family === "ipv4" ? "yes" : "no";
  if (chain.family === "ip6") return packet.family === "ipv6" ? "yes" : "no";
  return "yes";
}

function matchExpression(
  ruleset: Ruleset,
  chain: Chain,
  match: JsonObject,
  packet: PacketFacts,
): Answer {
  const operator = typeof match.op === "string" ? match.op : "==";
  const right = match.right ?? null;
  const left = match.left;
  const layer = matchLayer(left, packet);
  if (layer === "no") return "no";
  const flags = matchTcpFlags(match, packet);
  if (flags !== null) return and([layer, flags]);
  const equal = matchValue(ruleset, chain, left, right, operator, packet);
  return and([layer, operator === "!=" ? not(equal) : equal]);
}

/** A payload expression matches only packets that have that header. */
function matchLayer(left: Json | undefined, packet: PacketFacts): Answer {
  const inner = isObject(left) && Array.isArray(left["&"]) ? left["&"][0] : left;
  const protocol = at(inner, "payload", "protocol");
  if (protocol === "ip" || protocol === "ip6") {
    if (packet.family === undefined) return "maybe";
    return (protocol === "ip") === (packet.family === "ipv4") ? "yes" : "no";
  }
  if (protocol === "tcp" || protocol === "udp") return oneOf(packet.protocols, protocol);
  if (protocol === undefined || protocol === "th") return "yes";
  return ["icmp", "icmpv6", "sctp", "dccp", "esp", "ah", "comp", "udplite", "igmp", "arp"].includes(
    String(protocol),
  )
    ? "no"
    : "maybe";
}

function oneOf(known: readonly string[], wanted: string): Answer {
  if (!known.includes(wanted)) return "no";
  return known.length === 1 ? "yes" : "maybe";
}

/** Is the left side among the values of the right side? */
function matchValue(
  ruleset: Ruleset,
  chain: Chain,
  left: Json | undefined,
  right: Json,
  operator: string,
  packet: PacketFacts,
): Answer {
  if (!["==", "!=", "in"].includes(operator)) return "maybe";
  if (isObject(left) && Array.isArray(left.concat)) {
    return matchConcatenation(ruleset, chain, left.concat, right, packet);
  }
  const values = valuesOf(ruleset, chain, right);
  if (values === null) return "maybe";
  return or(values.map((value) => matchOne(left, value, packet)));
}

function matchConcatenation(
  ruleset: Ruleset,
  chain: Chain,
  parts: Json[],
  right: Json,
  packet: PacketFacts,
): Answer {
  const layers = and(parts.map((part) => matchLayer(part, packet)));
  if (layers === "no") return "no";
  const values = valuesOf(ruleset, chain, right);
  if (values === null) return "maybe";
  return or(
    values.map((value) => {
      const fields = at(value, "concat");
      if (!Array.isArray(fields) || fields.length !== parts.length) return "maybe";
      return and(parts.map((part, index) => matchOne(part, fields[index] ?? null, packet)));
    }),
  );
}

/** Single values, prefixes and ranges of a right side; null if they are not known. */
export function valuesOf(ruleset: Ruleset, chain: Chain, right: Json): Json[] | null {
  if (typeof right === "string" && right.startsWith("@")) {
    const elements = ruleset.sets.get(`${chain.table} ${right.slice(1)}`);
    return elements === undefined ? null : elements.map(unwrapped);
  }
  if (Array.isArray(right)) return right;
  const set = at(right, "set");
  if (Array.isArray(set)) return set.map(unwrapped);
  if (typeof set === "string") return [set];
  return [right];
}

/** An element with a comment, counter or timeout comes wrapped. */
function unwrapped(element: Json): Json {
  return at(element, "elem", "val") ?? element;
}

/** Does the field equal the value, or lie in it? */
export function matchOne(left: Json | undefined, value: Json, packet: PacketFacts): Answer {
  const meta = at(left, "meta", "key");
  if (meta !== undefined) return matchMeta(meta, value, packet);
  const field = at(left, "payload", "field");
  if (field !== undefined) return matchPayload(field, value, packet);
  if (at(left, "ct", "key") === "state") return value === packet.connectionState ? "yes" : "no";
  const fib = at(left, "fib", "result");
  if (fib !== undefined && packet.local === true) return matchLocalRoute(left, fib, value);
  return matchFlags(left, value, packet);
}

function matchMeta(key: Json, value: Json, packet: PacketFacts): Answer {
  switch (key) {
    case "iifname":
    case "iif":
      return matchDevice(packet.inputDevice, value);
    case "oifname":
    case "oif":
      return matchDevice(packet.outputDevice, value);
    case "l4proto":
      return matchProtocol(value, packet);
    case "nfproto":
    case "protocol":
      return matchFamilyName(value, packet);
    default:
      return "maybe";
  }
}

function matchDevice(device: string | null | undefined, value: Json): Answer {
  if (device === null) return "no";
  if (device === undefined || typeof value !== "string") return "maybe";
  if (value.endsWith("*")) return device.startsWith(value.slice(0, -1)) ? "yes" : "no";
  return device === value ? "yes" : "no";
}

const protocolNumbers: Record<string, string> = { "6": "tcp", "17": "udp", all: "all", "0": "all" };

function matchProtocol(value: Json, packet: PacketFacts): Answer {
  if (typeof value !== "string" && typeof value !== "number") return "maybe";
  const name = protocolNumbers[String(value)] ?? String(value);
  return name === "all" ? "yes" : oneOf(packet.protocols, name);
}

function matchFamilyName(value: Json, packet: PacketFacts): Answer {
  const family = (
    { ip: "ipv4", ip6: "ipv6", ipv4: "ipv4", ipv6: "ipv6" } as Record<string, string>
  )[String(value)];
  if (family === undefined) return ["arp", "vlan"].includes(String(value)) ? "no" : "maybe";
  if (packet.family === undefined) return "maybe";
  return family === packet.family ? "yes" : "no";
}

function matchPayload(field: Json, value: Json, packet: PacketFacts): Answer {
  switch (field) {
    case "saddr":
      return matchAddress(packet.source, value);
    case "daddr":
      return matchAddress(packet.destination, value);
    case "protocol":
    case "nexthdr":
      return matchProtocol(value, packet);
    case "dport":
      return matchPort(packet.destinationPort, value);
    case "flags":
      return matchFlag(value, packet);
    default:
      return "maybe";
  }
}

function matchPort(port: number | undefined, value: Json): Answer {
  if (port === undefined) return "maybe";
  if (typeof value === "number") return port === value ? "yes" : "no";
  const range = at(value, "range");
  if (!Array.isArray(range)) return "maybe";
  const [first, last] = range;
  if (typeof first !== "number" || typeof last !== "number") return "maybe";
  return port >= first && port <= last ? "yes" : "no";
}

function matchAddress(address: string | string[] | undefined, value: Json): Answer {
  if (address === undefined) return "maybe";
  if (Array.isArray(address)) {
    const [first = "no", ...others] = new Set(address.map((one) => matchAddress(one, value)));
    return others.length > 0 ? "maybe" : first;
  }
  if (typeof value === "string") return within(address, value);
  const prefix = at(value, "prefix");
  if (prefix !== undefined) return within(address, `${at(prefix, "addr")}/${at(prefix, "len")}`);
  const range = at(value, "range");
  if (!Array.isArray(range)) return "maybe";
  const [first, last] = range.map((end) => number(String(end)));
  const own = number(address);
  if (own === null || first == null || last == null || !sameFamily(address, String(range[0])))
    return "maybe";
  return own >= first && own <= last ? "yes" : "no";
}

function within(address: string, subnet: string): Answer {
  if (!sameFamily(address, subnet)) return "no";
  try {
    const inside = address.includes(":")
      ? new Address6(address).isInSubnet(new Address6(subnet))
      : new Address4(address).isInSubnet(new Address4(subnet));
    return inside ? "yes" : "no";
  } catch {
    // A name of a host, a mask that is no prefix: unknown.
    return "maybe";
  }
}

function sameFamily(one: string, other: string): boolean {
  return one.includes(":") === other.includes(":");
}

function number(address: string): bigint | null {
  try {
    return address.includes(":") ? new Address6(address).bigInt() : new Address4(address).bigInt();
  } catch {
    return null;
  }
}

/** Loopback has a local destination and a way back to its source. */
function matchLocalRoute(left: Json | undefined, result: Json, value: Json): Answer {
  if (result === "type") {
    const flags = at(left, "fib", "flags");
    const destination = Array.isArray(flags) && flags.includes("daddr");
    return destination ? (value === "local" ? "yes" : "no") : "maybe";
  }
  // `fib saddr . iif oif missing`, the reverse path filter, is `== false`.
  return value === false ? "no" : "maybe";
}

const tcpFlags = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
/** Flags of a plain segment of an established connection; the others may be either. */
const plainFlags = new Map([
  ["fin", false],
  ["syn", false],
  ["rst", false],
  ["urg", false],
  ["ack", true],
]);

/** Does a plain segment match? Null if this is no match on TCP flags, or none of a known form. */
export function matchTcpFlags(match: JsonObject, packet: PacketFacts): Answer | null {
  const { left, op } = match;
  const masked = isObject(left) && Array.isArray(left["&"]) ? left["&"] : null;
  const field = masked === null ? left : masked[0];
  const wanted = flagNames(match.right ?? null);
  const mask = masked === null ? tcpFlags : flagNames(masked[1] ?? null);
  if (packet.plainSegment !== true || wanted === null || mask === null) return null;
  if (at(field, "payload", "protocol") !== "tcp" || at(field, "payload", "field") !== "flags")
    return null;
  const answers = {
    "==": () => hasExactly(mask, wanted),
    "!=": () => not(hasExactly(mask, wanted)),
    // Any of them, or none.
    in: () => or(wanted.map(hasFlag)),
    "!": () => not(or(wanted.map(hasFlag))),
  };
  return answers[op as keyof typeof answers]?.() ?? "maybe";
}

function hasFlag(flag: string): Answer {
  const known = plainFlags.get(flag);
  if (known === undefined) return "maybe";
  return known ? "yes" : "no";
}

function hasExactly(mask: string[], wanted: string[]): Answer {
  if (wanted.some((flag) => !mask.includes(flag))) return "no";
  return and(mask.map((flag) => (wanted.includes(flag) ? hasFlag(flag) : not(hasFlag(flag)))));
}

/** `syn`, `["syn", "ack"]`, `{"|": ["syn", "ack"]}`, or 0 for none. */
function flagNames(value: Json): string[] | null {
  if (value === 0) return [];
  const list = typeof value === "string" ? [value] : (at(value, "|") ?? value);
  if (!Array.isArray(list)) return null;
  const names = list.filter((name) => typeof name === "string");
  return names.length === list.length && names.every((name) => tcpFlags.includes(name))
    ? names
    : null;
}

/** `tcp flags & (syn|rst) == syn`. */
function matchFlags(left: Json | undefined, value: Json, packet: PacketFacts): Answer {
  if (!isObject(left) || !Array.isArray(left["&"])) return "maybe";
  return at(left["&"][0], "payload", "field") === "flags" ? matchFlag(value, packet) : "maybe";
}

/** No plain segment has one of these. */
function matchFlag(value: Json, packet: PacketFacts): Answer {
  const opening = value === "syn" || value === "fin" || value === "rst";
  return packet.plainSegment === true && opening ? "no" : "maybe";
}
