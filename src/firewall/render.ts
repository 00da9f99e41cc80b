/** A rule in a line that reads like nft's own. */

import { at, isObject, type Json, type JsonObject } from "./json.ts";
import type { Chain, Rule } from "./ruleset.ts";

/** `ip filter FORWARD: iifname "eth0" limit rate 10/second accept`; legacy rules as they were saved. */
export function renderRule(chain: Chain, rule: Rule): string {
  const text = rule.text || rule.expressions.map(renderStatement).join(" ");
  return `${chain.name}: ${text}`;
}

function renderStatement(statement: JsonObject): string {
  const [entry] = Object.entries(statement);
  if (entry === undefined) return "";
  const [kind, body] = entry;
  switch (kind) {
    case "match":
      return renderMatch(body);
    case "xt":
      return `${at(body, "type") === "target" ? "-j" : "-m"} ${renderValue(at(body, "name") ?? "?")}`;
    case "limit":
      return renderLimit(body);
    case "counter":
      return typeof body === "string" ? `counter name "${body}"` : "counter";
    case "jump":
    case "goto":
      return `${kind} ${renderValue(at(body, "target") ?? "?")}`;
    case "quota":
      return typeof body === "string" ? `quota name "${body}"` : renderQuota(body);
    case "set":
      return renderUpdate(body);
    case "mangle":
      return `${renderValue(at(body, "key") ?? null)} set ${renderValue(at(body, "value") ?? null)}`;
    default:
      return body === null ? kind : `${kind} ${renderValue(body)}`;
  }
}

function renderUpdate(update: Json): string {
  const stateful = at(update, "stmt");
  const statements = Array.isArray(stateful) ? stateful.filter(isObject).map(renderStatement) : [];
  const element = [renderValue(at(update, "elem") ?? null), ...statements].join(" ");
  return `${at(update, "op")} ${at(update, "set")} { ${element} }`;
}

function renderMatch(match: Json): string {
  const operator = at(match, "op");
  const between =
    operator === "==" || operator === "in" || operator === undefined ? " " : ` ${operator} `;
  return `${renderValue(at(match, "left") ?? null)}${between}${renderValue(at(match, "right") ?? null)}`;
}

function renderLimit(limit: Json): string {
  if (typeof limit === "string") return `limit name "${limit}"`;
  const unit = at(limit, "rate_unit");
  const over = at(limit, "inv") === true ? "over " : "";
  const rate = at(limit, "rate");
  if (rate === undefined) return "limit";
  return `limit rate ${over}${rate}${unit === undefined || unit === "packets" ? "" : ` ${unit}`}/${at(limit, "per")}`;
}

function renderQuota(quota: Json): string {
  const over = at(quota, "inv") === true ? "over " : "";
  return `quota ${over}${at(quota, "val")} ${at(quota, "val_unit")}`;
}

/** nft leaves out the word `meta` before devices. */
function renderMeta(key: string): string {
  return /^[io]if(name)?$/.test(key) ? key : `meta ${key}`;
}

function renderValue(value: Json): string {
  if (Array.isArray(value)) return value.map(renderValue).join(",");
  if (!isObject(value)) return typeof value === "string" ? value : JSON.stringify(value);
  const [entry] = Object.entries(value);
  if (entry === undefined) return "{}";
  const [kind, body] = entry;
  switch (kind) {
    case "meta":
      return renderMeta(String(at(body, "key")));
    case "ct":
      return `ct ${renderValue(at(body, "key") ?? "?")}`;
    case "payload":
      return `${renderValue(at(body, "protocol") ?? "@")} ${renderValue(at(body, "field") ?? "?")}`;
    case "prefix":
      return `${at(body, "addr")}/${at(body, "len")}`;
    case "range":
      return Array.isArray(body) ? body.map(renderValue).join("-") : "?";
    case "concat":
      return Array.isArray(body) ? body.map(renderValue).join(" . ") : "?";
    case "set":
      return Array.isArray(body) ? `{ ${body.map(renderValue).join(", ")} }` : renderValue(body);
    case "&":
    case "|":
    case "^":
      return Array.isArray(body) ? body.map(renderValue).join(` ${kind} `) : "?";
    case "numgen":
      return `numgen ${at(body, "mode")} mod ${at(body, "mod")}`;
    case "elem":
      return renderValue(at(body, "val") ?? null);
    default:
      return JSON.stringify(value);
  }
}
