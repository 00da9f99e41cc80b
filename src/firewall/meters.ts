/**
 * Rules that must see every packet: where one is on the way, the fast path stays off.
 *
 * A cached flow shows the kernel path a sample of its packets. What is known to answer the same for
 * each of them (`constant.ts`) may be asked of a sample; anything else must be asked of every packet.
 */

import { onlyLosesElements, statementReason } from "./constant.ts";
import { matchFamily, matchOne, matchRule, matchStatement, valuesOf } from "./evaluate.ts";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { MarkKeeping } from "./marks.ts";
import { and, type PacketFacts } from "./packet.ts";
import { renderRule } from "./render.ts";
import type { BaseChain, Chain, Rule, Ruleset } from "./ruleset.ts";
import { logTargets } from "./xtables.ts";

export interface Meter {
  /** `host`, or a device the rule names. */
  where: string;
  /** The rule, with its chain. */
  rule: string;
  /** Why it must see every packet. */
  reason: string;
}

/**
 * What the fast path carries: packets of connections that conntrack has seen both directions of
 * (bpf/lib/conntrack.h), TCP's without SYN, FIN, RST and URG (bpf/ingress.bpf.c).
 */
const carried: PacketFacts[] = (["ipv4", "ipv6"] as const).flatMap((family): PacketFacts[] => [
  { family, protocols: ["tcp"], connectionStates: ["established"], plainSegment: true },
  { family, protocols: ["udp"], connectionStates: ["established"] },
]);

const hooks = new Set(["prerouting", "forward", "postrouting", "ingress", "egress"]);

/** NF_IP_PRI_CONNTRACK (linux/netfilter_ipv4.h). */
const conntrackPriority = -200;

/** Finds them all on the forwarding path. */
export function findMeters(ruleset: Ruleset): Meter[] {
  const search = new Search(ruleset);
  if (!search.anyReason()) return [];
  for (const chain of ruleset.chains.values()) {
    if (chain.base === null || !isOnTheWay(chain, chain.base)) continue;
    for (const packet of carried)
      if (matchFamily(chain, packet) !== "no")
        search.walk(chain, {
          base: chain.base,
          packet: seenBy(chain, chain.base, packet),
          been: new Set(),
        });
  }
  return [...search.meters.values()];
}

function isOnTheWay(chain: Chain, base: BaseChain): boolean {
  // nat chains see a connection's first packet only.
  if (base.type === "nat" || chain.family === "arp") return false;
  // Packets to or from a bridge's own device pass its input and output.
  return hooks.has(base.hook) || chain.family === "bridge";
}

/** Before conntrack, and on bridges and devices, the state of a connection is not known. */
function seenBy(chain: Chain, base: BaseChain, packet: PacketFacts): PacketFacts {
  const routed = ["ip", "ip6", "inet"].includes(chain.family);
  const late = base.hook === "prerouting" && base.priority > conntrackPriority;
  if (routed && (late || base.hook === "forward" || base.hook === "postrouting")) return packet;
  const { connectionStates: _, ...rest } = packet;
  return rest;
}

/** One kind of packet on its way through a base chain. */
interface Visit {
  base: BaseChain;
  packet: PacketFacts;
  been: Set<Chain>;
}

interface Reason {
  /** Of the expression in its rule. */
  index: number;
  text: string;
  /** The packet fares the same, but somebody counts or writes down each. */
  observes: boolean;
}

class Search {
  readonly meters = new Map<string, Meter>();
  readonly #ruleset: Ruleset;
  readonly #marks: MarkKeeping;
  /** By protocol: nothing else about a packet bears on them. */
  readonly #known = { tcp: new Map<Rule, Reason[]>(), udp: new Map<Rule, Reason[]>() };

  constructor(ruleset: Ruleset) {
    this.#ruleset = ruleset;
    this.#marks = new MarkKeeping(ruleset);
  }

  /** Where no rule gives any reason, no chain need be walked. */
  anyReason(): boolean {
    for (const chain of this.#ruleset.chains.values())
      for (const rule of chain.rules)
        for (const packet of carried.slice(0, 2))
          if (this.#reasons(chain, rule, packet).length > 0) return true;
    return false;
  }

  /** Visits what the packet can reach; answers whether it surely got a verdict there. */
  walk(chain: Chain, visit: Visit): boolean {
    if (visit.been.has(chain)) return false;
    visit.been.add(chain);
    for (const [position, rule] of chain.rules.entries()) {
      const reasons = this.#reasons(chain, rule, visit.packet);
      if (reasons.length === 0 && !mayLead(rule)) continue;
      for (const reason of reasons)
        if (
          this.#concerns(chain, rule, reason, visit) &&
          !this.#spares(chain, position, reason, visit)
        )
          this.#report(chain, rule, reason.text, visit.base);
      const end = this.#follow(chain, rule, visit);
      if (end !== null) return end;
    }
    return false;
  }

  #reasons(chain: Chain, rule: Rule, packet: PacketFacts): Reason[] {
    const known = this.#known[packet.protocols.includes("tcp") ? "tcp" : "udp"];
    let reasons = known.get(rule);
    if (reasons === undefined) {
      reasons = this.#findReasons(chain, rule, packet);
      known.set(rule, reasons);
      // The same for both, unless something asks of what only one of them has.
      if (!rule.expressions.some(asksProtocol)) {
        this.#known.tcp.set(rule, reasons);
        this.#known.udp.set(rule, reasons);
      }
    }
    return reasons;
  }

  #findReasons(chain: Chain, rule: Rule, packet: PacketFacts): Reason[] {
    const place = { ruleset: this.#ruleset, chain, packet };
    const reasons: Reason[] = [];
    for (const [index, expression] of rule.expressions.entries()) {
      const text = statementReason(expression, place) ?? this.#marks.reason(rule, expression);
      if (text !== null) reasons.push({ index, text, observes: isObserver(expression) });
    }
    const [unlisted] = rule.unlisted;
    if (unlisted !== undefined)
      reasons.push({
        index: 0,
        text: `nft does not tell what its "${unlisted}" does`,
        observes: false,
      });
    return reasons.length > 0 && writesSample(rule)
      ? reasons.filter(({ index }) => !isSampled(rule, index))
      : reasons;
  }

  /** Whether the packet may come to the expression. What was decided before it need not see more. */
  #concerns(chain: Chain, rule: Rule, { index }: Reason, visit: Visit): boolean {
    const expression = rule.expressions[index];
    // A timeout is given to the first packet, and holds for all.
    if (expression !== undefined && ("ct timeout" in expression || "ct expectation" in expression))
      return true;
    const onlyAsks = expression !== undefined && ("match" in expression || "xt" in expression);
    const before = rule.expressions.slice(
      0,
      onlyAsks && !isStateful(expression) ? index + 1 : index,
    );
    return matchRule(this.#ruleset, chain, before, visit.packet) !== "no";
  }

  /** What is not carried anyway, as all of it is dropped there, needs no watching. */
  #spares(chain: Chain, position: number, { index, observes }: Reason, visit: Visit): boolean {
    const expression = chain.rules[position]?.expressions[index];
    if (expression === undefined) return false;
    const place = { ruleset: this.#ruleset, chain, packet: visit.packet };
    if (!observes && !onlyLosesElements(expression, place)) return false;
    return this.#isSurelyDropped(chain, position, index + 1, visit);
  }

  /** Whether what has come past an expression is dropped, by this rule or by one of the following. */
  #isSurelyDropped(chain: Chain, position: number, from: number, visit: Visit): boolean {
    let start = from;
    for (const rule of chain.rules.slice(position)) {
      const rest = rule.expressions.slice(start);
      start = 0;
      const answers = rest.map((it) => matchStatement(this.#ruleset, chain, it, visit.packet));
      const matches = and(answers);
      if (matches === "no" || !rest.some(isVerdict)) continue;
      if (!rest.some(isDrop)) return false;
      if (matches === "yes") return true;
    }
    return chain.base?.policy === "drop";
  }

  /** Goes where the rule sends the packet; its end, if it surely does not come to the next rule. */
  #follow(chain: Chain, rule: Rule, visit: Visit): boolean | null {
    if (!mayLead(rule)) return null;
    const matches = matchRule(this.#ruleset, chain, rule.expressions, visit.packet);
    if (matches === "no") return null;
    for (const { verdict, surely } of this.#verdicts(chain, rule, visit.packet)) {
      const target = targetOf(this.#ruleset, chain, verdict);
      const ended =
        target === undefined ? "accept" in verdict || "drop" in verdict : this.walk(target, visit);
      const leaves = ended || "return" in verdict || "goto" in verdict;
      if (leaves && surely && matches === "yes") return ended;
    }
    return null;
  }

  /** Verdicts the packet may get from the rule, and whether it gets them whenever the rule matches. */
  #verdicts(
    chain: Chain,
    rule: Rule,
    packet: PacketFacts,
  ): { verdict: JsonObject; surely: boolean }[] {
    return rule.expressions.flatMap((expression) => {
      if (!("vmap" in expression)) return [{ verdict: expression, surely: true }];
      const key = at(expression, "vmap", "key");
      const data = at(expression, "vmap", "data") ?? null;
      const known = valuesOf(this.#ruleset, chain, data) !== null;
      return pairsOf(this.#ruleset, chain, data).flatMap(([value, verdict]) => {
        const matches = matchOne(key, value, packet);
        if (matches === "no" || !isObject(verdict)) return [];
        return [{ verdict, surely: known && matches === "yes" }];
      });
    });
  }

  #report(chain: Chain, rule: Rule, reason: string, base: BaseChain): void {
    const text = renderRule(chain, rule);
    const devices = devicesOf(rule);
    const places = devices.length > 0 ? devices : base.devices;
    const one = places.length > 0 && !places.some((name) => name.endsWith("*"));
    for (const where of one ? places : ["host"]) {
      const key = `${where} ${text}`;
      if (!this.meters.has(key)) this.meters.set(key, { where, rule: text, reason });
    }
  }
}

/** Whether a reason may depend on the protocol: TCP has flags, and more settled connections. */
function asksProtocol(expression: JsonObject): boolean {
  if ("xt" in expression || "vmap" in expression) return true;
  const left = at(expression, "match", "left");
  const field = isObject(left) && Array.isArray(left["&"]) ? left["&"][0] : left;
  return at(field, "payload", "field") === "flags" || at(left, "ct", "key") === "status";
}

/** Whether a packet may leave the chain there other than by being dropped. */
function mayLead(rule: Rule): boolean {
  return rule.expressions.some((it) => isVerdict(it) && !isDrop(it));
}

const verdicts = ["accept", "drop", "reject", "return", "jump", "goto", "vmap", "queue"];

function isVerdict(expression: JsonObject): boolean {
  if (at(expression, "xt", "type") === "target") {
    const name = String(at(expression, "xt", "name"));
    return name === "REJECT" || name === "NFQUEUE" || name === "TPROXY" || name === "SYNPROXY";
  }
  return verdicts.some((kind) => kind in expression);
}

function isDrop(expression: JsonObject): boolean {
  return (
    "drop" in expression || "reject" in expression || at(expression, "xt", "name") === "REJECT"
  );
}

/** A match that counts what it is asked must not be asked in vain. */
function isStateful(expression: JsonObject): boolean {
  return at(expression, "xt", "type") !== undefined;
}

function isLog(expression: JsonObject): boolean {
  return "log" in expression || logTargets.has(String(at(expression, "xt", "name")));
}

function isObserver(expression: JsonObject): boolean {
  return isLog(expression) || "counter" in expression || at(expression, "xt", "name") === "AUDIT";
}

function isRateLimit(expression: JsonObject): boolean {
  return isObject(expression.limit) && expression.limit.inv !== true;
}

/** A log of no more than so many packets: of a sample it writes what it would write of all. */
function writesSample(rule: Rule): boolean {
  const limit = rule.expressions.findIndex(isRateLimit);
  const log = rule.expressions.findIndex(isLog);
  const harmless = rule.expressions.every(
    (it) =>
      isLog(it) ||
      ["match", "limit", "comment"].some((kind) => kind in it) ||
      isObject(it.counter) ||
      it.counter === null ||
      at(it, "xt", "type") === "match",
  );
  return limit >= 0 && log > limit && harmless;
}

function isSampled(rule: Rule, index: number): boolean {
  const expression = rule.expressions[index];
  return expression !== undefined && (isRateLimit(expression) || isLog(expression));
}

function targetOf(ruleset: Ruleset, chain: Chain, verdict: JsonObject): Chain | undefined {
  const name = at(verdict, "jump", "target") ?? at(verdict, "goto", "target");
  return name === undefined ? undefined : ruleset.chains.get(`${chain.table} ${name}`);
}

/** Keys and verdicts of a map, those that time may take included. */
function pairsOf(ruleset: Ruleset, chain: Chain, data: Json): [Json, Json][] {
  const named =
    typeof data === "string" ? ruleset.sets.get(`${chain.table} ${data.slice(1)}`) : undefined;
  const listed = named?.elements ?? at(data, "set");
  if (!Array.isArray(listed)) return [];
  return listed.flatMap((pair): [Json, Json][] => {
    if (!Array.isArray(pair)) return [];
    const [key = null, verdict = null] = pair;
    return [[at(key, "elem", "val") ?? key, verdict]];
  });
}

/** Devices that the rule itself names, so that packets of others pass it by. */
function devicesOf(rule: Rule): string[] {
  for (const { match } of rule.expressions) {
    const key = String(at(match, "left", "meta", "key"));
    if (!["iif", "iifname", "oif", "oifname"].includes(key) || at(match, "op") === "!=") continue;
    const right = at(match, "right") ?? null;
    const set = at(right, "set");
    const names = [Array.isArray(set) ? set : right].flat();
    if (names.length > 0 && names.every((name) => typeof name === "string" && !/[*@]/.test(name)))
      return names.map(String);
  }
  return [];
}
