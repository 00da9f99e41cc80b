/**
 * What is known to be the same for every packet that the fast path carries of one connection: arriving
 * device and MAC addresses, IP addresses, protocol and ports, neither fragments nor IP options nor
 * extension headers, of TCP neither SYN nor FIN, RST or URG. What is not named here hinders.
 */

import { matchOne } from "./evaluate.ts";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { matchTcpFlags, type PacketFacts } from "./packet.ts";
import type { Chain, NamedSet, Ruleset } from "./ruleset.ts";
import { extensionReason, readExtension, unknownReason } from "./xtables.ts";

/** Where an expression stands, and the packet it is judged for. */
export interface Place {
  ruleset: Ruleset;
  chain: Chain;
  packet: PacketFacts;
}

type Judge = (body: Json, place: Place) => string | null;

const constant: Judge = () => null;
const because =
  (reason: string): Judge =>
  () =>
    reason;

/** Device groups, kinds and VRFs change with a link event, which ends every lease. */
const metaKeys = new Set([
  ...["iif", "iifname", "iiftype", "iifgroup", "iifkind", "ibrname", "ibridgename", "ibrpvid"],
  ...["oif", "oifname", "oiftype", "oifgroup", "oifkind", "obrname", "obridgename", "ibrvproto"],
  ...["sdif", "sdifname", "protocol", "nfproto", "l4proto", "pkttype", "mark", "rtclassid"],
  // A packet that is forwarded belongs to no socket of the host.
  ...["skuid", "skgid", "cgroup", "ipsec", "secpath"],
]);
const metaReasons: Record<string, string> = {
  length: "it decides by each packet's length",
  random: "it chooses among packets",
  cpu: "it decides by the processor at work",
  time: "it decides by the time of day",
  hour: "it decides by the time of day",
  day: "it decides by the time of day",
  // ip_forward() makes it of the traffic class.
  priority: "it decides by each packet's priority",
};

const ctKeys = new Set([
  ...[
    "direction",
    "id",
    "helper",
    "l3proto",
    "label",
    "mark",
    "protocol",
    "secmark",
    "state",
    "zone",
  ],
  ...["saddr", "daddr", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "proto-src", "proto-dst"],
]);
const ctReasons: Record<string, string> = {
  bytes: "it asks how much a connection has carried",
  packets: "it asks how much a connection has carried",
  avgpkt: "it asks how much a connection has carried",
  expiration: "it asks for a connection's lifetime",
  status: "it asks for a connection's status",
};
/** Set before anything is learned of a connection; TCP's are learned when all of them are. */
const settledStatuses = new Set(["expected", "confirmed", "snat", "dnat"]);

const ports = ["sport", "dport"];
/** Fields of headers. Those of other protocols' headers are never compared: no such packet is carried. */
const payloadFields: Record<string, Set<string>> = {
  ether: new Set(["saddr", "daddr", "type"]),
  ip: new Set(["version", "hdrlength", "protocol", "saddr", "daddr"]),
  ip6: new Set(["version", "nexthdr", "saddr", "daddr"]),
  tcp: new Set(ports),
  th: new Set(ports),
  udp: new Set(ports),
};
const payloadReasons: Record<string, string> = {
  ttl: "it decides by each packet's TTL",
  hoplimit: "it decides by each packet's TTL",
  dscp: "it decides by each packet's DSCP or ECN",
  ecn: "it decides by each packet's DSCP or ECN",
  length: "it decides by each packet's length",
  flags: "it decides by each packet's TCP flags",
};

function payload(body: Json): string | null {
  const protocol = at(body, "protocol");
  const field = String(at(body, "field"));
  if (typeof protocol !== "string") return "it looks into each packet";
  if (payloadFields[protocol]?.has(field)) return null;
  return payloadReasons[field] ?? "it decides by a field that differs from packet to packet";
}

const fibFlags = new Set(["saddr", "daddr", "mark", "iif", "oif"]);
const fibResults = new Set(["type", "oif", "oifname", "check"]);

/** The routing table, by what is the same for each packet; routes by traffic class are looked for apart. */
function fib(body: Json): string | null {
  const flags = at(body, "flags");
  const list = Array.isArray(flags) ? flags : [flags ?? null];
  const known = list.every((flag) => fibFlags.has(String(flag)));
  return known && fibResults.has(String(at(body, "result"))) ? null : unknownReason;
}

const operands: Judge = (body, place) =>
  Array.isArray(body) ? firstReason(body, place) : valueReason(body, place);

/** Kinds of values; what is not among them hinders. */
const values: Record<string, Judge> = {
  meta: (body) => {
    const key = String(at(body, "key"));
    return metaKeys.has(key) ? null : (metaReasons[key] ?? unknownReason);
  },
  ct: (body) => {
    const key = String(at(body, "key"));
    return ctKeys.has(key) ? null : (ctReasons[key] ?? unknownReason);
  },
  payload,
  fib,
  rt: (body) =>
    ["classid", "nexthop", "ipsec"].includes(String(at(body, "key"))) ? null : unknownReason,
  "tcp option": because("it decides by each packet's options"),
  numgen: because("it chooses among packets"),
  jhash: (body, place) => valueReason(at(body, "expr") ?? "?", place),
  // Of addresses and ports (__skb_get_hash_symmetric).
  symhash: constant,
  // No packet with one of these is carried.
  exthdr: constant,
  "ip option": constant,
  "&": operands,
  "|": operands,
  "^": operands,
  "<<": operands,
  ">>": operands,
  concat: operands,
  range: operands,
  prefix: constant,
  set: (body, place) =>
    typeof body === "string" ? valueReason(body, place) : elementsReason(body, place, constant),
  map: (body, place) => mapReason(body, place),
  elem: (body, place) => elementReason(body, place),
};

/** Why packets of one connection may give different values; null if they do not. */
export function valueReason(value: Json, place: Place): string | null {
  if (typeof value === "string" && value.startsWith("@")) return namedSetReason(value, place);
  if (Array.isArray(value)) return firstReason(value, place);
  if (!isObject(value)) return null;
  const kinds = Object.keys(value);
  const [kind] = kinds;
  if (kind === undefined || kinds.length > 1) return unknownReason;
  const judge = Object.hasOwn(values, kind) ? values[kind] : undefined;
  return judge === undefined ? unknownReason : judge(value[kind] ?? null, place);
}

function firstReason(list: Json[], place: Place): string | null {
  for (const value of list) {
    const reason = valueReason(value, place);
    if (reason !== null) return reason;
  }
  return null;
}

/** What each element may carry besides its value. */
const elementAttributes = new Set(["val", "comment", "timeout", "expires"]);

function elementReason(body: Json, place: Place): string | null {
  if (!isObject(body)) return unknownReason;
  for (const [name, state] of Object.entries(body)) {
    if (elementAttributes.has(name)) continue;
    const reason = statementReason({ [name]: state }, place);
    if (reason !== null) return reason;
    if (name === "counter") return "it accounts packets by element";
  }
  return valueReason(body.val ?? null, place);
}

/** Elements of a set, or pairs of a map; `data` judges what a pair leads to. */
function elementsReason(body: Json, place: Place, data: Judge): string | null {
  if (!Array.isArray(body)) return unknownReason;
  for (const element of body) {
    const [key, value] = Array.isArray(element) ? element : [element];
    const reason = valueReason(key ?? null, place) ?? data(value ?? null, place);
    if (reason !== null) return reason;
  }
  return null;
}

function mapReason(body: Json, place: Place): string | null {
  const data = at(body, "data") ?? "?";
  const key = valueReason(at(body, "key") ?? "?", place);
  if (key !== null) return key;
  if (typeof data === "string") return valueReason(data, place);
  return elementsReason(at(data, "set") ?? null, place, constant);
}

/** Sets that packets or time change, and sets whose elements count. */
function namedSetReason(name: string, { ruleset, chain, packet }: Place): string | null {
  const set = ruleset.sets.get(`${chain.table} ${name.slice(1)}`);
  if (set === undefined) return "its set is not known";
  const reason = stateOf(set, { ruleset, chain, packet });
  if (reason !== null) return reason;
  if (set.dynamic) return "packets change the set it asks";
  return set.expiring ? "the set it asks changes with time" : null;
}

const judgedSets = new WeakMap<NamedSet, { reason: string | null }>();

/** What the elements of a named set do with each packet; judged once, as sets are large. */
function stateOf(set: NamedSet, place: Place): string | null {
  const known = judgedSets.get(set);
  if (known !== undefined) return known.reason;
  let reason: string | null = null;
  for (const statement of set.statements) {
    reason ??= statementReason(statement, place);
    if ("counter" in statement) reason ??= "it accounts packets by element";
  }
  reason ??= elementsReason(set.elements, place, constant);
  judgedSets.set(set, { reason });
  return reason;
}

function matchReason(match: Json, place: Place): string | null {
  if (!isObject(match)) return unknownReason;
  const flags = matchTcpFlags(match, place.packet);
  if (flags !== null) return flags === "maybe" ? "it decides by each packet's TCP flags" : null;
  if (at(match.left, "ct", "key") === "status") return statusReason(match, place);
  return valueReason(match.left ?? "?", place) ?? valueReason(match.right ?? null, place);
}

/** A TCP connection is confirmed, answered and assured before anything is learned; UDP need not be. */
function statusReason(match: JsonObject, { packet }: Place): string | null {
  const values = [match.right ?? null].flat();
  const tcp = packet.protocols.every((protocol) => protocol === "tcp");
  const settled = values.every(
    (value) =>
      settledStatuses.has(String(value)) ||
      (tcp && ["assured", "seen-reply"].includes(String(value))),
  );
  return settled ? null : "it asks for a connection's status";
}

function mangleReason(body: Json, place: Place): string | null {
  const value = at(body, "value") ?? "?";
  const meta = at(body, "key", "meta", "key");
  if (meta === "mark" || meta === "priority" || meta === "nftrace")
    return valueReason(value, place);
  const ct = at(body, "key", "ct", "key");
  if (ct === "zone") return "it changes how connections are tracked";
  if (ct === "mark" || ct === "label") return valueReason(value, place);
  // Segments that open no connection have no such option (RFC 9293, 3.7.1).
  if (at(body, "key", "tcp option", "name") === "maxseg")
    return at(value, "rt", "key") === "mtu" ? null : valueReason(value, place);
  if (at(body, "key", "payload") !== undefined) return "it changes a field of each packet";
  return unknownReason;
}

/** Verdict maps lead to verdicts alone. */
function verdictMapReason(body: Json, place: Place): string | null {
  const key = at(body, "key") ?? "?";
  const data = at(body, "data") ?? "?";
  if (typeof data === "string") return valueReason(key, place) ?? valueReason(data, place);
  const pairs = at(data, "set") ?? null;
  return flagsKeyReason(key, pairs, place) ?? elementsReason(pairs, place, constant);
}

/** `tcp flags vmap`: fine if every plain segment surely has none of the keys. */
function flagsKeyReason(key: Json, pairs: Json, place: Place): string | null {
  const reason = valueReason(key, place);
  if (reason === null || !Array.isArray(pairs)) return reason;
  const never = pairs.every(
    (pair) => Array.isArray(pair) && matchOne(key, pair[0] ?? null, place.packet) === "no",
  );
  return never ? null : reason;
}

const namedOrMapped =
  (reason: string): Judge =>
  (body) =>
    typeof body === "string" || at(body, "map") !== undefined ? reason : null;

/** Kinds of statements; what is not among them hinders. */
const statements: Record<string, Judge> = {
  accept: constant,
  comment: constant,
  continue: constant,
  // Both only of a connection's first packet.
  "ct helper": constant,
  dnat: constant,
  drop: constant,
  goto: constant,
  jump: constant,
  last: constant,
  masquerade: constant,
  redirect: constant,
  reject: constant,
  return: constant,
  snat: constant,
  match: matchReason,
  mangle: mangleReason,
  vmap: verdictMapReason,
  // Anonymous ones are known to count a sample.
  counter: namedOrMapped("it accounts packets by a named counter"),
  log: because("it logs each packet"),
  xt: (body, { packet }) => extensionReason(readExtension(body), packet),
  "ct count": because("it counts connections"),
  "ct timeout": because("it changes how connections are tracked"),
  "ct expectation": because("it changes how connections are tracked"),
  dup: because("it copies packets"),
  flow: because("it hands flows to a flowtable"),
  fwd: because("it forwards packets past the stack"),
  limit: because("it limits a rate"),
  meter: because("it keeps a meter per key"),
  notrack: because("it keeps packets from being tracked"),
  queue: because("it hands packets to a program"),
  quota: because("it counts down a quota"),
  reset: because("it changes each packet's options"),
  set: (body) => {
    const stateful = at(body, "stmt");
    return Array.isArray(stateful) ? "it keeps a meter per key" : "it notes each packet in a set";
  },
  map: because("it notes each packet in a set"),
  synproxy: because("it rewrites sequence numbers"),
  tproxy: because("it hands packets to a local proxy"),
};

/** Why packets of one connection may fare differently by this statement; null if they do not. */
export function statementReason(statement: JsonObject, place: Place): string | null {
  for (const [kind, body] of Object.entries(statement)) {
    const judge = Object.hasOwn(statements, kind) ? statements[kind] : undefined;
    const reason = judge === undefined ? unknownReason : judge(body, place);
    if (reason !== null) return reason;
  }
  return null;
}

/**
 * Whether a match asks a set only for elements that time may take out, or that count: where what it
 * finds is dropped, a carried connection was not found, and won't be.
 */
export function onlyLosesElements(expression: JsonObject, { ruleset, chain }: Place): boolean {
  const { match } = expression;
  const name = at(match, "right");
  if (typeof name !== "string" || !name.startsWith("@") || at(match, "op") === "!=") return false;
  const set = ruleset.sets.get(`${chain.table} ${name.slice(1)}`);
  if (set === undefined || set.dynamic) return false;
  const counts = set.statements.every((statement) => Object.keys(statement).join() === "counter");
  return counts && set.elements.every(mayBeCounted);
}

function mayBeCounted(element: Json): boolean {
  const body = at(element, "elem");
  if (!isObject(body)) return true;
  return Object.keys(body).every((name) => name === "counter" || elementAttributes.has(name));
}
