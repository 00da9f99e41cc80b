/**
 * May the connect hook serve loopback? It sends a host process's connection to 127.0.0.1 or ::1
 * straight to the container, past every rule that looks at loopback packets. Where a foreign rule
 * could stop or redirect such a packet, the connection goes by the forwarder, where the rule applies.
 */

import { matchOne, matchRule, valuesOf } from "./evaluate.ts";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { and, type PacketFacts } from "./packet.ts";
import { renderRule } from "./render.ts";
import { type BaseChain, baseChains, type Chain, type Rule, type Ruleset } from "./ruleset.ts";

export interface LoopbackPort {
  family: "ipv4" | "ipv6";
  protocol: "tcp" | "udp";
  port: number;
}

export interface LoopbackVerdict {
  /** Some rule could stop or redirect the connection: leave it to the forwarder. */
  hindered: boolean;
  /** The first such rule or policy; empty if none. */
  rule: string;
  /** Why; empty if not hindered. */
  reason: string;
}

/** Verdict on one port; rules are read once, ports that no rule tells apart are judged once. */
export type LoopbackAnalysis = (port: LoopbackPort) => LoopbackVerdict;

const free: LoopbackVerdict = { hindered: false, rule: "", reason: "" };

/** Hooks in the order in which a loopback packet passes them, and the device it then has. */
const hooks: { hook: string; input: string | null; output: string | null }[] = [
  { hook: "output", input: null, output: "lo" },
  { hook: "postrouting", input: null, output: "lo" },
  { hook: "egress", input: null, output: "lo" },
  { hook: "ingress", input: "lo", output: null },
  { hook: "prerouting", input: "lo", output: null },
  { hook: "input", input: "lo", output: null },
];

/**
 * Answers the judge of ports.
 *
 * @param local The host's addresses other than loopback, which the hook serves as well.
 */
export function analyseLoopback(ruleset: Ruleset, local: string[] = []): LoopbackAnalysis {
  const boundaries = portBoundaries(ruleset);
  const judged = new Map<string, LoopbackVerdict>();
  return (port) => {
    const cell = `${port.family} ${port.protocol} ${cellOf(boundaries, port.port)}`;
    let verdict = judged.get(cell);
    if (verdict === undefined) {
      verdict = judge(ruleset, port);
      if (!verdict.hindered) verdict = judgeLocal(ruleset, port, local);
      judged.set(cell, verdict);
    }
    return verdict;
  };
}

/** Ports at which some rule's answer may change: between two of them all ports are alike. */
function portBoundaries(ruleset: Ruleset): number[] {
  const found = new Set<number>();
  const visit = (value: Json): void => {
    if (typeof value === "number" && value >= 0 && value <= 65535) {
      found.add(value);
      found.add(value + 1);
    } else if (Array.isArray(value)) {
      value.forEach(visit);
    } else if (isObject(value)) Object.values(value).forEach(visit);
  };
  for (const chain of ruleset.chains.values()) {
    for (const rule of chain.rules) {
      for (const expression of rule.expressions) {
        if (JSON.stringify(expression).includes('"dport"')) visit(expression);
      }
    }
  }
  if (found.size > 0) for (const { elements } of ruleset.sets.values()) elements.forEach(visit);
  return [...found].sort((one, other) => one - other);
}

/** Index of the cell a port lies in, by bisection. */
function cellOf(boundaries: number[], port: number): number {
  let low = 0;
  let high = boundaries.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((boundaries[middle] ?? 0) <= port) low = middle + 1;
    else high = middle;
  }
  return low;
}

function judge(ruleset: Ruleset, port: LoopbackPort): LoopbackVerdict {
  const address = port.family === "ipv4" ? "127.0.0.1" : "::1";
  for (const { hook, input, output } of hooks) {
    const packet = connecting(port, address, { inputDevice: input, outputDevice: output });
    const seeing = baseChains(ruleset, hook).filter(({ chain, base }) =>
      sees(chain, base, port.family),
    );
    const verdict = judgeChains(ruleset, packet, seeing);
    if (verdict.hindered) return verdict;
  }
  return free;
}

/** A packet on its way to the port; of which state, each chain is asked apart. */
function connecting(
  { family, protocol, port }: LoopbackPort,
  address: string | string[],
  devices: Pick<PacketFacts, "inputDevice" | "outputDevice">,
): PacketFacts {
  return {
    family,
    protocols: [protocol],
    ...devices,
    source: address,
    destination: address,
    destinationPort: port,
    local: true,
  };
}

/**
 * The host's other addresses are translated on the kernel path too, by OUTPUT's destination NAT. Only
 * chains before it, and those that translate in its place, see what the hook hides from them.
 */
function judgeLocal(ruleset: Ruleset, port: LoopbackPort, local: string[]): LoopbackVerdict {
  const addresses = local.filter((it) => it.includes(":") === (port.family === "ipv6"));
  if (addresses.length === 0) return free;
  const packet = connecting(port, addresses, { inputDevice: null, outputDevice: "lo" });
  const early = baseChains(ruleset, "output").filter(
    ({ chain, base }) =>
      sees(chain, base, port.family) &&
      (base.type === "nat" ? base.priority <= destinationNat : base.priority < destinationNat),
  );
  return judgeChains(ruleset, packet, early);
}

/** NF_IP_PRI_NAT_DST (linux/netfilter_ipv4.h). */
const destinationNat = -100;

function judgeChains(
  ruleset: Ruleset,
  packet: PacketFacts,
  chains: ReturnType<typeof baseChains>,
): LoopbackVerdict {
  for (const { chain, base } of chains) {
    for (const facts of statesAt(chain, base, packet)) {
      const end = new Walk(ruleset, facts).through(chain);
      if (end.kind === "hindered") return end.verdict;
      if (end.kind === "open" && base.policy === "drop")
        return {
          hindered: true,
          rule: `${chain.name}: policy drop`,
          reason: "the policy may drop it",
        };
    }
  }
  return free;
}

/** NF_IP_PRI_CONNTRACK (linux/netfilter_ipv4.h). */
const conntrackPriority = -200;

/**
 * The hook hides a connection's first packet and all that follow. On loopback a packet keeps its
 * connection from output to input; before conntrack in output, and at devices, its state is not known.
 */
function statesAt(chain: Chain, base: BaseChain, packet: PacketFacts): PacketFacts[] {
  const early = base.hook === "output" && base.priority <= conntrackPriority;
  if (early || chain.family === "netdev" || base.hook === "ingress") return [packet];
  const first: PacketFacts = { ...packet, connectionStates: ["new"] };
  if (base.type === "nat") return [first];
  return [first, { ...packet, connectionStates: ["established"] }];
}

function sees(chain: Chain, base: BaseChain, family: "ipv4" | "ipv6"): boolean {
  if (base.hook === "ingress" || base.hook === "egress")
    return base.devices.some((name) =>
      name.endsWith("*") ? "lo".startsWith(name.slice(0, -1)) : name === "lo",
    );
  return chain.family === "inet" || chain.family === (family === "ipv4" ? "ip" : "ip6");
}

/** How a walk through a chain ends: surely accepted, possibly hindered, or neither decided. */
type End = { kind: "accepted" } | { kind: "hindered"; verdict: LoopbackVerdict } | { kind: "open" };

/** Statements that could keep the packet from the listener at its destination. */
const hindrances: Record<string, string> = {
  drop: "it may drop it",
  reject: "it may reject it",
  queue: "it may hand it to a program",
  redirect: "it may redirect it",
  dnat: "it may send it elsewhere",
  tproxy: "it may hand it to a local proxy",
  synproxy: "it may answer in the listener's place",
  fwd: "it may forward it elsewhere",
};

/** Statements that leave the packet where it goes; `hindrances` tells of what is not among them. */
const harmless = new Set([
  ...["accept", "comment", "continue", "counter", "ct count", "ct expectation", "ct helper"],
  ...["ct timeout", "dup", "goto", "jump", "last", "limit", "log", "map", "masquerade", "match"],
  ...["meter", "notrack", "quota", "return", "secmark", "set", "snat", "vmap", "xt"],
]);

/** Marks and the like stay with the packet; a header's fields may lead it elsewhere. */
function staysOutside(statement: JsonObject): boolean {
  const key = at(statement, "mangle", "key");
  return at(key, "meta") !== undefined || at(key, "ct") !== undefined;
}

/** Targets of iptables' extensions that leave the packet where it goes. */
const harmlessTargets =
  /^(AUDIT|CHECKSUM|CLASSIFY|CONNMARK|CONNSECMARK|CT|DSCP|ECN|HL|HMARK|IDLETIMER|LED|LOG|MARK|MASQUERADE|NFLOG|NOTRACK|RATEEST|SECMARK|SET|SNAT|TCPMSS|TCPOPTSTRIP|TEE|TOS|TRACE|TTL|ULOG)$/;

class Walk {
  private readonly ruleset: Ruleset;
  private readonly packet: PacketFacts;
  private readonly depth: number;

  constructor(ruleset: Ruleset, packet: PacketFacts, depth = 0) {
    this.ruleset = ruleset;
    this.packet = packet;
    this.depth = depth;
  }

  through(chain: Chain): End {
    for (const rule of chain.rules) {
      const matches = matchRule(this.ruleset, chain, rule.expressions, this.packet);
      if (matches === "no") continue;
      const [unlisted] = rule.unlisted;
      if (unlisted !== undefined)
        return this.hindered(chain, rule, `nft does not tell what its "${unlisted}" does`);
      const surely = matches === "yes";
      for (const statement of rule.expressions) {
        const end = this.statement(chain, rule, statement);
        if (end === null) continue;
        if (end.kind === "hindered") return end;
        if (surely) return end;
      }
    }
    return { kind: "open" };
  }

  /** What a statement does to a packet that matches its rule; null if the next one decides. */
  private statement(chain: Chain, rule: Rule, statement: JsonObject): End | null {
    const unsafe = Object.keys(statement).find((name) => !harmless.has(name));
    if (unsafe !== undefined && !staysOutside(statement))
      return this.hindered(chain, rule, hindrances[unsafe] ?? `its ${unsafe} may change its way`);
    // What is neither named a match nor a target may be one.
    const extension = "xt" in statement && at(statement, "xt", "type") !== "match";
    const target = extension ? String(at(statement, "xt", "name")) : null;
    if (target !== null && !harmlessTargets.test(target)) {
      return this.hindered(chain, rule, `its target ${target} may keep it from its listener`);
    }
    if ("accept" in statement) return { kind: "accepted" };
    if ("return" in statement) return { kind: "open" };
    if ("vmap" in statement) return this.verdictMap(chain, rule, statement);
    return this.jump(chain, statement);
  }

  private hindered(chain: Chain, rule: Rule, reason: string): End {
    return { kind: "hindered", verdict: { hindered: true, rule: renderRule(chain, rule), reason } };
  }

  private jump(chain: Chain, statement: JsonObject): End | null {
    for (const kind of ["jump", "goto"]) {
      const name = at(statement, kind, "target");
      if (name === undefined) continue;
      const target = this.ruleset.chains.get(`${chain.table} ${name}`);
      // The kernel allows no loops and 16 levels; anything else is a listing torn in two.
      const end: End =
        target === undefined || this.depth > 16
          ? { kind: "open" }
          : new Walk(this.ruleset, this.packet, this.depth + 1).through(target);
      if (end.kind !== "open" || kind === "goto") return end;
    }
    return null;
  }

  /** Any verdict of the map that the packet could get; a sure one only if its key surely matches. */
  private verdictMap(chain: Chain, rule: Rule, statement: JsonObject): End | null {
    const key = at(statement, "vmap", "key");
    const pairs = valuesOf(this.ruleset, chain, at(statement, "vmap", "data") ?? null);
    if (pairs === null) return this.hindered(chain, rule, "its verdict map is not known");
    for (const pair of pairs) {
      if (!Array.isArray(pair) || !isObject(pair[1])) continue;
      const [wrapped, verdict] = pair;
      const matches = this.matchKey(key, at(wrapped, "elem", "val") ?? wrapped ?? null);
      if (matches === "no") continue;
      const end = this.statement(chain, rule, verdict);
      if (end !== null && (end.kind === "hindered" || matches === "yes")) return end;
    }
    return null;
  }

  private matchKey(key: Json | undefined, value: Json): "yes" | "no" | "maybe" {
    const parts = at(key, "concat");
    const fields = at(value, "concat");
    if (!Array.isArray(parts) || !Array.isArray(fields)) return matchOne(key, value, this.packet);
    return and(parts.map((part, index) => matchOne(part, fields[index] ?? null, this.packet)));
  }
}
