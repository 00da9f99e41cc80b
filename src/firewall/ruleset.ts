/** Foreign rules of either kind, nftables' or iptables-legacy's, in one form: nft's JSON. */

import { z } from "zod";
import type { Json, JsonObject } from "./json.ts";
import { parseLegacy } from "./legacy.ts";

export interface Rule {
  /** nft's expressions and statements; what iptables says is put in the same words. */
  expressions: JsonObject[];
  /** The rule as its own tool prints it; empty where it must be rendered. */
  text: string;
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

export interface Ruleset {
  chains: Map<string, Chain>;
  /** Elements of named sets and maps by `family table name`. */
  sets: Map<string, Json[]>;
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
const ruleSchema = member.extend({
  chain: z.string(),
  expr: z.array(z.custom<JsonObject>((value) => typeof value === "object" && value !== null)),
});
const setSchema = member.extend({
  name: z.string(),
  elem: z.array(z.custom<Json>()).optional(),
});
const listingSchema = z.object({ nftables: z.array(z.record(z.string(), z.unknown())) });

/**
 * Reads what the datapath's `readForeignRuleset()` answers.
 *
 * @throws SyntaxError or ZodError if it is not nft's listing.
 */
export function parseRuleset(foreign: { nft: string; legacy: string }): Ruleset {
  const ruleset: Ruleset = { chains: new Map(), sets: new Map() };
  const listing = listingSchema.parse(JSON.parse(foreign.nft));
  for (const object of listing.nftables) {
    if (object.chain !== undefined) addChain(ruleset, chainSchema.parse(object.chain));
    for (const kind of ["set", "map"]) {
      if (object[kind] === undefined) continue;
      const set = setSchema.parse(object[kind]);
      ruleset.sets.set(`${set.family} ${set.table} ${set.name}`, set.elem ?? []);
    }
  }
  for (const object of listing.nftables) {
    if (object.rule === undefined) continue;
    const rule = ruleSchema.parse(object.rule);
    const chain = ruleset.chains.get(`${rule.family} ${rule.table} ${rule.chain}`);
    chain?.rules.push({ expressions: rule.expr, text: "" });
  }
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

/** Base chains of a hook in the order in which packets pass them. */
export function baseChains(ruleset: Ruleset, hook: string): { chain: Chain; base: BaseChain }[] {
  const found: { chain: Chain; base: BaseChain }[] = [];
  for (const chain of ruleset.chains.values()) {
    if (chain.base?.hook === hook) found.push({ chain, base: chain.base });
  }
  return found.sort((one, other) => one.base.priority - other.base.priority);
}
