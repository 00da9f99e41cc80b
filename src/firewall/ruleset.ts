/** Foreign rules of either kind, nftables' or iptables-legacy's, in one form: nft's JSON. */

import { z } from "zod";
import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { parseLegacy } from "./legacy.ts";

export interface Rule {
  /** nft's expressions and statements; what iptables says is put in the same words. */
  expressions: JsonObject[];
  /** The rule as its own tool prints it; empty where it must be rendered. */
  text: string;
  /** Kinds of expressions that the kernel has in the rule and this nft can't list. */
  unlisted: string[];
}

export interface Chain {
  /** `ip filter FORWARD`; iptables-legacy's begin with the program's name. */
  name: string;
  /** Family and table, as a prefix of the names of chains, sets and maps. */
  table: string;
  /** `ip`, `ip6`, `inet`, `bridge`, `netdev` or `arp`. */
  family: string;
  rules: Rule[];
  /** Only of base chains. */
  base: BaseChain | null;
}

export interface BaseChain {
  /** `filter`, `nat` or `route`. */
  type: string;
  hook: string;
  priority: number;
  policy: "accept" | "drop";
  /** Devices of a netdev chain. */
  devices: string[];
}

/** A named set or map. */
export interface NamedSet {
  elements: Json[];
  /** Statements that each new element gets: counters, limits, quotas. */
  statements: JsonObject[];
  /** Packets put elements into it. */
  dynamic: boolean;
  /** Elements may go by themselves. */
  expiring: boolean;
}

export interface Ruleset {
  chains: Map<string, Chain>;
  /** Named sets and maps by `family table name`. */
  sets: Map<string, NamedSet>;
}

const member = z.object({ family: z.string(), table: z.string() });
const chainSchema = member.extend({
  name: z.string(),
  type: z.string().optional(),
  hook: z.string().optional(),
  prio: z.number().optional(),
  policy: z.enum(["accept", "drop"]).optional(),
  dev: z.union([z.string(), z.array(z.string())]).optional(),
});
const setSchema = member.extend({
  name: z.string(),
  elem: z.array(z.custom<Json>()).optional(),
  stmt: z.array(z.custom<JsonObject>((value) => isObject(value as Json))).optional(),
  flags: z.union([z.string(), z.array(z.string())]).optional(),
  timeout: z.number().optional(),
});
const objectSchema = z.custom<JsonObject>((value) => isObject(value as Json));
const listingSchema = z.object({ nftables: z.array(z.custom<Json>()) });

/**
 * Reads what the datapath's `readForeignRuleset()` answers.
 *
 * @throws SyntaxError or ZodError if it is not nft's listing.
 */
export function parseRuleset(foreign: { nft: string; legacy: string }): Ruleset {
  const ruleset: Ruleset = { chains: new Map(), sets: new Map() };
  const listing = listingSchema.parse(JSON.parse(foreign.nft));
  const objects = listing.nftables.map((object) =>
    isObject(object) ? object : objectSchema.parse(object),
  );
  for (const object of objects) {
    if (object.chain !== undefined) addChain(ruleset, chainSchema.parse(object.chain));
    for (const kind of ["set", "map", "meter"])
      if (object[kind] !== undefined) addSet(ruleset, setSchema.parse(object[kind]));
  }
  for (const object of objects) if (object.rule !== undefined) addRule(ruleset, object.rule);
  for (const chain of parseLegacy(foreign.legacy)) ruleset.chains.set(chain.name, chain);
  return ruleset;
}

function addChain(ruleset: Ruleset, chain: z.infer<typeof chainSchema>): void {
  const table = `${chain.family} ${chain.table}`;
  const name = `${table} ${chain.name}`;
  const devices = typeof chain.dev === "string" ? [chain.dev] : (chain.dev ?? []);
  const base =
    chain.hook === undefined
      ? null
      : {
          type: chain.type ?? "filter",
          hook: chain.hook,
          priority: chain.prio ?? 0,
          policy: chain.policy ?? "accept",
          devices,
        };
  ruleset.chains.set(name, { name, table, family: chain.family, rules: [], base });
}

/** By hand: there may be thousands, and a schema takes ten times as long. */
function addRule(ruleset: Ruleset, rule: Json): void {
  const [family, of, name] = ["family", "table", "chain"].map((key) => at(rule, key));
  const expressions = at(rule, "expr");
  const named = typeof family === "string" && typeof of === "string" && typeof name === "string";
  if (!named || !Array.isArray(expressions) || !expressions.every(isObject))
    throw new SyntaxError("nft lists a rule in a form that natbridge does not know");
  const unlisted = at(rule, "unlisted");
  const table = `${family} ${of}`;
  ruleset.chains.get(`${table} ${name}`)?.rules.push({
    expressions,
    text: "",
    unlisted: Array.isArray(unlisted) ? unlisted.map(String) : [],
  });
  noteUpdates(ruleset, table, expressions);
}

function addSet(ruleset: Ruleset, set: z.infer<typeof setSchema>): void {
  const flags = typeof set.flags === "string" ? [set.flags] : (set.flags ?? []);
  ruleset.sets.set(`${set.family} ${set.table} ${set.name}`, {
    elements: set.elem ?? [],
    statements: set.stmt ?? [],
    dynamic: flags.includes("dynamic"),
    expiring: flags.includes("timeout") || set.timeout !== undefined,
  });
}

/** nft's listing does not always say that a set is dynamic; a rule that writes to it does. */
function noteUpdates(ruleset: Ruleset, table: string, expressions: JsonObject[]): void {
  for (const expression of expressions) {
    for (const kind of ["set", "map", "meter"] as const) {
      if (expression[kind] === undefined) continue;
      const name = at(expression, kind, kind === "meter" ? "name" : kind);
      if (typeof name !== "string") continue;
      const set = ruleset.sets.get(`${table} ${name.replace(/^@/, "")}`);
      if (set !== undefined) set.dynamic = true;
    }
  }
}

/** Base chains of a hook in the order in which packets pass them. */
export function baseChains(ruleset: Ruleset, hook: string): { chain: Chain; base: BaseChain }[] {
  const found: { chain: Chain; base: BaseChain }[] = [];
  for (const chain of ruleset.chains.values()) {
    if (chain.base?.hook === hook) found.push({ chain, base: chain.base });
  }
  return found.sort((one, other) => one.base.priority - other.base.priority);
}
