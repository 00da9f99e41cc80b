/** What is known of a packet, and answers about it of three values: yes, no, maybe. */

import { at, isObject, type Json, type JsonObject } from "./json.ts";

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
  /** conntrack's, one of these; unknown where conntrack has not looked yet. */
  connectionStates?: readonly ("new" | "related" | "established")[];
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

export function or(answers: Answer[]): Answer {
  if (answers.includes("yes")) return "yes";
  return answers.includes("maybe") ? "maybe" : "no";
}

/** Is the value, one of `known`, the wanted one? */
export function oneOf(known: readonly string[], wanted: string): Answer {
  if (!known.includes(wanted)) return "no";
  return known.length === 1 ? "yes" : "maybe";
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
  if (at(field, "payload", "field") !== "flags" || at(field, "payload", "protocol") !== "tcp")
    return null;
  const wanted = flagNames(match.right ?? null);
  const mask = masked === null ? tcpFlags : flagNames(masked[1] ?? null);
  if (packet.plainSegment !== true || wanted === null || mask === null) return null;
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

/** Do a plain segment's flags, as bits of the header, have this value under the mask? */
export function matchPlainFlags(mask: number, value: number, packet: PacketFacts): Answer {
  if (packet.plainSegment !== true) return mask === 0 ? "yes" : "maybe";
  if (value & ~mask) return "no";
  const masked = tcpFlags.filter((_, bit) => mask & (1 << bit));
  return and(
    masked.map((flag) =>
      value & (1 << tcpFlags.indexOf(flag)) ? hasFlag(flag) : not(hasFlag(flag)),
    ),
  );
}
