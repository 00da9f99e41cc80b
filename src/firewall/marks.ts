/**
 * Marks and labels that rules keep in the connection. They may be asked like anything constant as long
 * as packets set them once and for all; where one packet's mark decides what the next one sets, every
 * packet counts.
 */

import { at, isObject, type Json, type JsonObject } from "./json.ts";
import type { Rule, Ruleset } from "./ruleset.ts";
import { type ConnmarkUse, connmarkUse, readExtension } from "./xtables.ts";

/** What a statement does with the connection's mark. */
type Write = { kind: "constant"; value: string } | { kind: "computed" } | { kind: "anew" };

export class MarkKeeping {
  readonly #values = new Set<string>();
  #computed = false;
  /** Some rule's match, map or packet mark depends on what was kept. */
  #markAsked = false;
  #labelAsked = false;

  constructor(ruleset: Ruleset) {
    const rules: Rule[] = [];
    for (const chain of ruleset.chains.values())
      if (chain.base?.type !== "nat") rules.push(...chain.rules);
    if (!rules.some(({ expressions }) => expressions.some(keeps))) return;
    for (const rule of rules) this.#noteQuestions(rule);
    for (const rule of rules)
      for (const statement of rule.expressions) {
        const write = this.#writeOf(rule, statement);
        if (write?.kind === "constant") this.#values.add(write.value);
        if (write?.kind === "computed") this.#computed = true;
      }
  }

  /** Why each packet matters to what the statement keeps; null if it does not. */
  reason(rule: Rule, statement: JsonObject): string | null {
    if (!keeps(statement)) return null;
    if (setsLabel(statement))
      return this.#labelAsked ? "it changes labels of a connection that rules ask for" : null;
    const write = this.#writeOf(rule, statement);
    if (write === null) return null;
    if (write.kind === "anew") return "it computes a connection's mark anew with each packet";
    const settled = !this.#computed && this.#values.size <= 1;
    return this.#markAsked && !settled
      ? "it changes a mark of a connection that rules ask for"
      : null;
  }

  #noteQuestions(rule: Rule): void {
    for (const statement of rule.expressions) {
      const written = at(statement, "mangle", "key", "ct", "key");
      const asked = "mangle" in statement ? (at(statement, "mangle", "value") ?? null) : statement;
      if (written !== "mark" && mentions(asked, "ct", "mark")) this.#markAsked = true;
      if (mentions(asked, "ct", "label")) this.#labelAsked = true;
      const extension = isObject(statement.xt) ? readExtension(statement.xt) : null;
      if (extension === null) continue;
      if (extension.name === "connmark") this.#markAsked = true;
      if (extension.name === "connlabel") this.#labelAsked = true;
      const use = extension.name === "CONNMARK" ? connmarkUse(extension) : null;
      if (use?.kind === "restore" || use?.kind === "unknown") this.#markAsked = true;
    }
  }

  #writeOf(rule: Rule, statement: JsonObject): Write | null {
    if (at(statement, "mangle", "key", "ct", "key") === "mark")
      return this.#valueWrite(rule, at(statement, "mangle", "value") ?? null);
    if (!isObject(statement.xt)) return null;
    const extension = readExtension(statement.xt);
    return extension.name === "CONNMARK"
      ? this.#extensionWrite(rule, connmarkUse(extension))
      : null;
  }

  #valueWrite(rule: Rule, value: Json): Write {
    const own = mentions(value, "ct", "mark");
    if (own && /"(\^|<<|>>|numgen|jhash)"/.test(JSON.stringify(value))) return { kind: "anew" };
    if (at(value, "meta", "key") === "mark") return this.#save(rule);
    if (mentions(value, "meta", "mark") && this.#markAsked) return { kind: "computed" };
    return { kind: "constant", value: JSON.stringify(value) };
  }

  #extensionWrite(rule: Rule, use: ConnmarkUse): Write | null {
    switch (use.kind) {
      case "restore":
        return null;
      case "unknown":
        return { kind: "computed" };
      case "set":
        // The kernel takes the mask's bits out and flips the value's.
        return (use.value & ~use.mask) !== 0
          ? { kind: "anew" }
          : {
              kind: "constant",
              value: use.mask === -1 ? String(use.value >>> 0) : `${use.value}/${use.mask}`,
            };
      case "save":
        return this.#save(rule);
    }
  }

  /** A packet's mark is saved: which one, the rule itself may say. */
  #save(rule: Rule): Write {
    for (const { match } of rule.expressions) {
      const value = at(match, "right");
      const equal = at(match, "op") === "==" && at(match, "left", "meta", "key") === "mark";
      if (equal && typeof value === "number") return { kind: "constant", value: String(value) };
    }
    return this.#markAsked ? { kind: "computed" } : { kind: "constant", value: "the packet's" };
  }
}

/** Whether it may keep something in the connection. */
function keeps(statement: JsonObject): boolean {
  if (statement.mangle !== undefined) return at(statement, "mangle", "key", "ct") !== undefined;
  if (statement.xt === undefined) return false;
  return /^(CONNMARK|connlabel)$/.test(String(at(statement, "xt", "name")));
}

function setsLabel(statement: JsonObject): boolean {
  if (at(statement, "mangle", "key", "ct", "key") === "label") return true;
  const extension = isObject(statement.xt) ? readExtension(statement.xt) : null;
  if (extension?.name !== "connlabel") return false;
  // Without words it may be one that sets.
  return extension.options === null || extension.options.includes("--set");
}

/** Whether the value asks for `{ [kind]: { key } }` anywhere. */
function mentions(value: Json, kind: string, key: string): boolean {
  if (Array.isArray(value)) return value.some((part) => mentions(part, kind, key));
  if (!isObject(value)) return false;
  if (at(value, kind, "key") === key) return true;
  return Object.values(value).some((part) => mentions(part, kind, key));
}
