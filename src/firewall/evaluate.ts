/** Does a rule match a packet of which only some things are known? Three-valued: yes, no, maybe. */

import { Address4, Address6 } from "ip-address";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { type Answer, and, matchTcpFlags, not, oneOf, or, type PacketFacts } from "./packet.ts";
import type { Chain, Ruleset } from "./ruleset.ts";
import { matchExtension } from "./xtables.ts";

/**
 * Statements that let every packet go on to the next one of the rule, or end its way there. Not
 * among them: what breaks the rule off for some packets (a limit, a full set, a map without the key).
 */
const transparent = new Set([
  "accept",
  "comment",
  "continue",
  "ct helper",
  "ct timeout",
  "dnat",
  "drop",
  "goto",
  "jump",
  "last",
  "log",
  "masquerade",
  "notrack",
  "redirect",
  "reject",
  "return",
  "snat",
]);

/** Does the packet match all conditions of the rule? */
export function matchRule(
  ruleset: Ruleset,
  chain: Chain,
  expressions: JsonObject[],
  packet: PacketFacts,
): Answer {
  const answers = [matchFamily(chain, packet)];
  for (const expression of expressions)
    answers.push(matchStatement(ruleset, chain, expression, packet));
  return and(answers);
}

/** Does the packet get past the expression, to the next one of the rule? */
export function matchStatement(
  ruleset: Ruleset,
  chain: Chain,
  expression: JsonObject,
  packet: PacketFacts,
): Answer {
  if (isObject(expression.match)) return matchExpression(ruleset, chain, expression.match, packet);
  if (expression.xt !== undefined) return matchExtension(expression.xt, packet);
  if ("vmap" in expression) return "yes";
  if ("counter" in expression)
    return at(expression, "counter", "map") === undefined ? "yes" : "maybe";
  if ("mangle" in expression) return setsMark(expression) ? "yes" : "maybe";
  return Object.keys(expression).every((key) => transparent.has(key)) ? "yes" : "maybe";
}

/** Setting a mark to a number can't fail; writing to a header, or by a map, can. */
function setsMark(expression: JsonObject): boolean {
  return (
    at(expression, "mangle", "key", "meta", "key") === "mark" &&
    typeof at(expression, "mangle", "value") === "number"
  );
}

export function matchFamily(chain: Chain, packet: PacketFacts): Answer {
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
    const set = ruleset.sets.get(`${chain.table} ${right.slice(1)}`);
    // What packets or time put in and out is not known.
    if (set === undefined || set.dynamic || set.expiring) return null;
    return set.elements.map(unwrapped);
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
  if (at(left, "ct", "key") === "state") return matchState(value, packet);
  const fib = at(left, "fib", "result");
  if (fib !== undefined && packet.local === true) return matchLocalRoute(left, fib, value);
  return matchFlags(left, value, packet);
}

function matchState(value: Json, packet: PacketFacts): Answer {
  if (packet.connectionStates === undefined || typeof value !== "string") return "maybe";
  // iptables' states of translated connections, which they have besides another.
  if (value === "snat" || value === "dnat") return "maybe";
  return oneOf(packet.connectionStates, value);
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
