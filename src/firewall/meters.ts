/**
 * Rules that must see every packet: where one is on the way, the fast path stays off.
 *
 * A cached flow shows the kernel path a sample of its packets. What only asks about addresses, ports
 * and connection state answers the same for each of them; what counts, measures, draws lots or looks
 * into each packet does not.
 */

import { matchOne, matchRule, matchTcpFlags, type PacketFacts, valuesOf } from "./evaluate.ts";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { renderRule } from "./render.ts";
import { type Chain, parseRuleset, type Rule, type Ruleset } from "./ruleset.ts";

export interface Meter {
  /** `host`, or the one device the rule names. */
  where: string;
  /** The rule, with its chain. */
  rule: string;
  /** Why it must see every packet. */
  reason: string;
}

/** What the fast path carries: established connections' packets, TCP's without SYN, FIN and RST. */
const carried: PacketFacts = {
  protocols: ["tcp", "udp"],
  connectionState: "established",
  plainSegment: true,
};

const hooks = new Set(["prerouting", "forward", "postrouting", "ingress", "egress"]);

/** Extensions of iptables that count, measure or look into each packet. */
const matchReasons: Record<string, string> = {
  hashlimit: "it limits a rate",
  limit: "it limits a rate",
  statistic: "it chooses among packets",
  connbytes: "it asks how much a connection has carried",
  quota: "it counts down a quota",
  quota2: "it counts down a quota",
  nfacct: "it accounts packets",
  rateest: "it measures a rate",
  recent: "it notes each packet's time",
  string: "it looks into each packet",
  u32: "it looks into each packet",
  cpu: "it decides by the processor at work",
  bpf: "it looks into each packet",
  length: "it decides by each packet's length",
  ttl: "it decides by each packet's TTL",
  hl: "it decides by each packet's hop limit",
  dscp: "it decides by each packet's DSCP",
  tos: "it decides by each packet's DSCP",
  ecn: "it decides by each packet's ECN",
};
const targetReasons: Record<string, string> = {
  CT: "it changes how connections are tracked",
  NOTRACK: "it keeps packets from being tracked",
  NFQUEUE: "it hands packets to a program",
  QUEUE: "it hands packets to a program",
  TEE: "it copies packets",
  TPROXY: "it hands packets to a local proxy",
  SYNPROXY: "it rewrites sequence numbers",
  TCPOPTSTRIP: "it changes each packet's options",
  RATEEST: "it measures a rate",
};
const statementReasons: Record<string, string> = {
  limit: "it limits a rate",
  quota: "it counts down a quota",
  meter: "it keeps a meter per key",
  notrack: "it keeps packets from being tracked",
  queue: "it hands packets to a program",
  flow: "it hands flows to a flowtable",
  dup: "it copies packets",
  fwd: "it forwards packets past the stack",
  tproxy: "it hands packets to a local proxy",
  synproxy: "it rewrites sequence numbers",
  reset: "it changes each packet's options",
};
/** Header fields that differ from packet to packet. */
const changingFields = new Set([
  "ackseq",
  "checksum",
  "doff",
  "flowlabel",
  "id",
  "sequence",
  "urgptr",
  "window",
]);
/** TCP options of packets that open no connection. */
const changingOptions = /^(timestamp|sack\d?)$/;

/** Finds them all on the forwarding path. */
export function findMeters(foreign: { nft: string; legacy: string }): Meter[] {
  const ruleset = parseRuleset(foreign);
  const meters = new Map<string, Meter>();
  for (const chain of ruleset.chains.values()) {
    // nat chains see a connection's first packet only.
    if (chain.base === null || chain.base.type === "nat" || chain.family === "arp") continue;
    if (!hooks.has(chain.base.hook) && chain.family !== "bridge") continue;
    walk(ruleset, chain, chain.base.devices, new Set(), meters);
  }
  return [...meters.values()];
}

/** Visits what an established packet can reach; answers whether it surely got a verdict there. */
function walk(
  ruleset: Ruleset,
  chain: Chain,
  devices: string[],
  seen: Set<string>,
  meters: Map<string, Meter>,
): boolean {
  if (seen.has(chain.name)) return false;
  seen.add(chain.name);
  for (const rule of chain.rules) {
    const matches = matchRule(ruleset, chain, rule.expressions, carried);
    if (matches === "no") continue;
    const reason = meterReason(rule);
    if (reason !== null) {
      const text = renderRule(chain, rule);
      meters.set(text, { where: place(rule, devices), rule: text, reason });
    }
    for (const { verdict, surely } of verdictsOf(ruleset, chain, rule)) {
      const target = targetOf(ruleset, chain, verdict);
      const ended =
        target === undefined
          ? "accept" in verdict || "drop" in verdict
          : walk(ruleset, target, devices, seen, meters);
      const leaves = ended || "return" in verdict || "goto" in verdict;
      if (leaves && surely && matches === "yes") return ended;
    }
  }
  return false;
}

/** Verdicts the packet may get from the rule, and whether it gets them whenever the rule matches. */
function verdictsOf(
  ruleset: Ruleset,
  chain: Chain,
  rule: Rule,
): { verdict: JsonObject; surely: boolean }[] {
  return rule.expressions.flatMap((expression) => {
    if (!("vmap" in expression)) return [{ verdict: expression, surely: true }];
    const key = at(expression, "vmap", "key");
    return verdictMap(ruleset, chain, expression).flatMap(([value, verdict]) => {
      const matches = matchOne(key, value, carried);
      return matches === "no" || !isObject(verdict) ? [] : [{ verdict, surely: matches === "yes" }];
    });
  });
}

function targetOf(ruleset: Ruleset, chain: Chain, verdict: JsonObject): Chain | undefined {
  const name = at(verdict, "jump", "target") ?? at(verdict, "goto", "target");
  return name === undefined ? undefined : ruleset.chains.get(`${chain.table} ${name}`);
}

/** Keys and verdicts of a `vmap`; none if the rule has none. */
function verdictMap(ruleset: Ruleset, chain: Chain, expression: JsonObject): [Json, Json][] {
  const data = at(expression, "vmap", "data");
  if (data === undefined) return [];
  const pairs: [Json, Json][] = [];
  for (const pair of valuesOf(ruleset, chain, data) ?? []) {
    if (!Array.isArray(pair)) continue;
    const [key, verdict] = pair;
    if (key !== undefined && verdict !== undefined)
      pairs.push([at(key, "elem", "val") ?? key, verdict]);
  }
  return pairs;
}

/** Why the rule must see every packet; null if it need not. */
function meterReason(rule: Rule): string | null {
  const found = rule.expressions.map(reasonOf).find((reason) => reason !== null) ?? null;
  if (found === null || onlyLogs(rule)) return null;
  return found;
}

function reasonOf(expression: JsonObject): string | null {
  const name = at(expression, "xt", "name");
  if (typeof name === "string") {
    const reasons = at(expression, "xt", "type") === "target" ? targetReasons : matchReasons;
    return reasons[name] ?? null;
  }
  for (const [statement, reason] of Object.entries(statementReasons)) {
    if (statement in expression) return reason;
  }
  if (typeof expression.counter === "string") return "it accounts packets by a named counter";
  if (at(expression, "mangle", "key", "ct", "key") === "zone")
    return "it changes how connections are tracked";
  if (Array.isArray(at(expression, "set", "stmt"))) return "it keeps a meter per key";
  if (at(expression, "set", "op") === "update") return "it notes each packet in a set";
  if (isObject(expression.match) && matchTcpFlags(expression.match, carried) === "maybe")
    return "it decides by each packet's TCP flags";
  return mentions(expression);
}

/** Looks for values that differ from packet to packet of one connection. */
function mentions(value: Json): string | null {
  if (Array.isArray(value)) return value.map(mentions).find((reason) => reason !== null) ?? null;
  if (!isObject(value)) return null;
  if ("numgen" in value) return "it chooses among packets";
  if (["bytes", "packets", "avgpkt"].includes(String(at(value, "ct", "key")))) {
    return "it asks how much a connection has carried";
  }
  if (at(value, "meta", "key") === "length") return "it decides by each packet's length";
  if (at(value, "meta", "key") === "random") return "it chooses among packets";
  if (at(value, "meta", "key") === "cpu") return "it decides by the processor at work";
  if (changingFields.has(String(at(value, "payload", "field"))))
    return "it decides by a field that differs from packet to packet";
  if (changingOptions.test(String(at(value, "tcp option", "name"))))
    return "it decides by each packet's options";
  if (["ttl", "hoplimit"].includes(String(at(value, "payload", "field")))) {
    return "it decides by each packet's TTL";
  }
  if (["dscp", "ecn"].includes(String(at(value, "payload", "field")))) {
    return "it decides by each packet's DSCP or ECN";
  }
  if (at(value, "payload", "field") === "length") return "it decides by each packet's length";
  if ("payload" in value && at(value, "payload", "base") !== undefined)
    return "it looks into each packet";
  return (
    Object.values(value)
      .map(mentions)
      .find((reason) => reason !== null) ?? null
  );
}

/** A log that some packets do not write is no harm, nor is a condition on which nothing depends. */
function onlyLogs(rule: Rule): boolean {
  const harmless = new Set(["match", "limit", "log", "counter", "comment"]);
  let effects = 0;
  for (const expression of rule.expressions) {
    if (typeof expression.counter === "string") return false;
    if (at(expression, "xt", "type") === "match") continue;
    if (["LOG", "NFLOG", "ULOG"].includes(String(at(expression, "xt", "name")))) {
      effects += 1;
      continue;
    }
    if (Object.keys(expression).some((key) => !harmless.has(key))) return false;
    if ("log" in expression) effects += 1;
  }
  // Without any statement at all the rule exists to be counted: an accounting rule.
  return effects > 0;
}

/** The one device a rule or its chain names, or the whole host. */
function place(rule: Rule, devices: string[]): string {
  const named = new Set(devices);
  for (const { match } of rule.expressions) {
    const key = at(match, "left", "meta", "key");
    if (!["iif", "iifname", "oif", "oifname"].includes(String(key))) continue;
    const right = at(match, "right");
    const single = at(match, "op") === "==" && typeof right === "string" && !/[*@]/.test(right);
    if (single) named.add(right);
  }
  const [device] = named;
  return named.size === 1 && device !== undefined ? device : "host";
}
