/**
 * What is known of iptables' extensions. nft's listing names them; the datapath adds the bytes that
 * the kernel holds (`info`, the struct of linux/netfilter/xt_*.h), and iptables-legacy-save gives
 * their options in words.
 */

import { at, isObject, type Json, type JsonObject } from "./json.ts";
import { type Answer, and, matchPlainFlags, not, oneOf, type PacketFacts } from "./packet.ts";

/** `{ "xt": … }` of a rule. */
export interface Extension {
  type: "match" | "target" | "unknown";
  name: string;
  /** Revision and bytes of the kernel's struct; null where they are not known. */
  info: { revision: number; bytes: DataView } | null;
  /** Options in words, of iptables-legacy; null where they are not known. */
  options: string[] | null;
}

const read = new WeakMap<JsonObject, Extension>();

/** Read once: it is asked for again and again. */
export function readExtension(xt: Json): Extension {
  if (!isObject(xt)) return parseExtension(xt);
  let extension = read.get(xt);
  if (extension === undefined) {
    extension = parseExtension(xt);
    read.set(xt, extension);
  }
  return extension;
}

function parseExtension(xt: Json): Extension {
  const type = at(xt, "type");
  const name = at(xt, "name");
  const options = at(xt, "options");
  return {
    type: type === "match" || type === "target" ? type : "unknown",
    name: typeof name === "string" ? name : "?",
    info: readInfo(at(xt, "rev"), at(xt, "info")),
    options: Array.isArray(options) ? options.map(String) : null,
  };
}

const bytesOf = new Map<string, DataView>();

function readInfo(revision: Json | undefined, hex: Json | undefined): Extension["info"] {
  if (typeof revision !== "number" || typeof hex !== "string") return null;
  const known = bytesOf.get(hex);
  if (known !== undefined) return { revision, bytes: known };
  const bytes = new DataView(new ArrayBuffer(hex.length >> 1));
  for (let index = 0; index < bytes.byteLength; index += 1)
    bytes.setUint8(index, Number.parseInt(hex.slice(2 * index, 2 * index + 2), 16));
  // Thousands of rules ask for the same few things.
  if (bytesOf.size < 1000) bytesOf.set(hex, bytes);
  return { revision, bytes };
}

/** The kernel's structs are in the processor's own byte order. */
const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/**
 * Matches that ask only what is the same for every packet of a connection, with all of their options:
 * addresses, ports, devices, marks, tables of routes, and headers that the fast path never carries.
 */
const constantMatches = new Set([
  "addrtype",
  "ah",
  "cluster",
  "comment",
  "connlabel",
  "connmark",
  "dccp",
  "devgroup",
  "dst",
  "esp",
  "eui64",
  "frag",
  "hbh",
  "helper",
  "icmp",
  "icmp6",
  "ipcomp",
  "iprange",
  "ipv6header",
  "mac",
  "mark",
  "mh",
  "multiport",
  "owner",
  "physdev",
  "pkttype",
  "policy",
  "realm",
  "rpfilter",
  "rt",
  "sctp",
  "srh",
  "udp",
  "udplite",
]);

const matchReasons: Record<string, string> = {
  bpf: "it looks into each packet",
  connbytes: "it asks how much a connection has carried",
  connlimit: "it counts connections",
  cpu: "it decides by the processor at work",
  dscp: "it decides by each packet's DSCP",
  ecn: "it decides by each packet's ECN",
  hashlimit: "it limits a rate",
  hl: "it decides by each packet's hop limit",
  length: "it decides by each packet's length",
  limit: "it limits a rate",
  nfacct: "it accounts packets",
  quota: "it counts down a quota",
  quota2: "it counts down a quota",
  rateest: "it measures a rate",
  recent: "it notes each packet's time",
  set: "it asks an ipset, whose entries may count and expire",
  socket: "it asks for a socket of the host",
  statistic: "it chooses among packets",
  string: "it looks into each packet",
  tcpmss: "it decides by each packet's options",
  time: "it decides by the time of day",
  tos: "it decides by each packet's DSCP",
  ttl: "it decides by each packet's TTL",
  u32: "it looks into each packet",
};

/** Targets that do the same to every packet, with all of their options. */
const constantTargets = new Set([
  "ACCEPT",
  // Completes a checksum that a device would complete later.
  "CHECKSUM",
  "CLASSIFY",
  "DNAT",
  "DROP",
  "MARK",
  "MASQUERADE",
  "NETMAP",
  "REDIRECT",
  "REJECT",
  "RETURN",
  "SNAT",
  // Segments that open no connection have no such option (RFC 9293, 3.7.1).
  "TCPMSS",
  "TRACE",
]);

const targetReasons: Record<string, string> = {
  AUDIT: "it logs each packet",
  CT: "it changes how connections are tracked",
  NOTRACK: "it keeps packets from being tracked",
  DSCP: "it changes a field of each packet",
  ECN: "it changes a field of each packet",
  HL: "it changes a field of each packet",
  IDLETIMER: "it notes each packet's time",
  NFQUEUE: "it hands packets to a program",
  QUEUE: "it hands packets to a program",
  RATEEST: "it measures a rate",
  SET: "it notes each packet in a set",
  SYNPROXY: "it rewrites sequence numbers",
  TCPOPTSTRIP: "it changes each packet's options",
  TEE: "it copies packets",
  TOS: "it changes a field of each packet",
  TPROXY: "it hands packets to a local proxy",
  TTL: "it changes a field of each packet",
};

export const unknownReason =
  "natbridge does not know it to be the same for each packet of a connection";

/** What writes a line for each packet that comes to it. */
export const logTargets = new Set(["LOG", "NFLOG", "ULOG"]);

/** Why packets of one connection may fare differently there; null if they do not. */
export function extensionReason(extension: Extension, packet: PacketFacts): string | null {
  const { type, name } = extension;
  if (type === "match") {
    if (constantMatches.has(name)) return null;
    if (name === "conntrack" || name === "state") return conntrackReason(extension, packet);
    if (name === "tcp") return tcpReason(extension, packet);
    return matchReasons[name] ?? unknownReason;
  }
  if (type === "target" && constantTargets.has(name)) return null;
  // What it keeps is looked at apart (marks.ts).
  if (type === "target" && name === "CONNMARK") return null;
  if (type === "target" && logTargets.has(name)) return "it logs each packet";
  return targetReasons[name] ?? unknownReason;
}

/** Does the packet match the extension? A target lets it pass to the next statement. */
export function matchExtension(xt: Json, packet: PacketFacts): Answer {
  const extension = readExtension(xt);
  const { type, name } = extension;
  if (type === "target") return name === "CONNMARK" || constantTargets.has(name) ? "yes" : "maybe";
  if (type === "unknown") return "maybe";
  if (name === "comment") return "yes";
  if (name === "conntrack" || name === "state") return matchConntrack(extension, packet);
  if (name === "tcp") return matchTcp(extension, packet);
  // The extensions of other protocols' headers come with a match on the protocol.
  return "maybe";
}

/** What CONNMARK does with the connection's mark. */
export type ConnmarkUse =
  | { kind: "set"; value: number; mask: number }
  | { kind: "save" | "restore" | "unknown" };

/** `struct xt_connmark_tginfo1` and `2`: value and mask, the packet's mask, and the mode. */
export function connmarkUse({ info, options }: Extension): ConnmarkUse {
  if (options !== null) {
    if (options.includes("--restore-mark")) return { kind: "restore" };
    if (options.includes("--save-mark")) return { kind: "save" };
    return { kind: "unknown" };
  }
  if (info === null || info.bytes.byteLength < 13) return { kind: "unknown" };
  const value = info.bytes.getInt32(0, littleEndian);
  const mask = info.bytes.getInt32(4, littleEndian);
  const kinds = ["set", "save", "restore"] as const;
  const kind = kinds[info.bytes.getUint8(12)] ?? "unknown";
  return kind === "set" ? { kind, value, mask } : { kind };
}

interface Conntrack {
  flags: number;
  inverted: number;
  states: number;
  statuses: number;
}

/** XT_CONNTRACK_* (linux/netfilter/xt_conntrack.h). */
const byState = 1;
const byStatus = 1 << 6;
const byExpiry = 1 << 7;
const stateBits: Record<string, number> = {
  established: 1 << 1,
  related: 1 << 2,
  new: 1 << 3,
};
/** XT_CONNTRACK_STATE_SNAT and _DNAT. */
const translatedStates = (1 << 6) | (1 << 7);
/** IPS_EXPECTED, IPS_CONFIRMED, and by which address it is translated: set before anything is learned. */
const settledStatuses = 1 | (1 << 3) | (1 << 4) | (1 << 5);

/** `struct xt_conntrack_mtinfo1` to `3` behind the addresses, `struct xt_state_info`; null if not known. */
function readConntrack({ name, info }: Extension): Conntrack | null {
  if (info === null) return null;
  const { revision, bytes } = info;
  if (name === "state" && bytes.byteLength >= 4)
    return { flags: byState, inverted: 0, states: bytes.getUint32(0, littleEndian), statuses: 0 };
  const wide = revision > 1;
  const known = name === "conntrack" && revision >= 1 && revision <= 3;
  if (!known || bytes.byteLength < (wide ? 26 : 24)) return null;
  const [flags, inverted] = [18, 20].map((offset) => bytes.getUint16(offset, littleEndian));
  return {
    flags: flags ?? 0,
    inverted: inverted ?? 0,
    states: wide ? bytes.getUint16(22, littleEndian) : bytes.getUint8(22),
    statuses: wide ? bytes.getUint16(24, littleEndian) : bytes.getUint8(23),
  };
}

function conntrackReason(extension: Extension, packet: PacketFacts): string | null {
  if (extension.options !== null)
    return extension.options.every((option) => constantConntrackOptions.test(option))
      ? null
      : "it asks for a connection's lifetime or status";
  const match = readConntrack(extension);
  if (match === null) return "its options are not known";
  if (match.flags & byExpiry) return "it asks for a connection's lifetime";
  const settled = packet.protocols.every((protocol) => protocol === "tcp")
    ? match.statuses
    : settledStatuses;
  if (match.flags & byStatus && match.statuses & ~settled)
    return "it asks for a connection's status";
  return null;
}

const constantConntrackOptions = /^--(state|ctstate|ctproto|ctdir|ct(orig|repl)(src|dst)(port)?)$/;

function matchConntrack(extension: Extension, packet: PacketFacts): Answer {
  const match = readConntrack(extension);
  if (match === null || !(match.flags & byState) || packet.connectionStates === undefined)
    return "maybe";
  const answers = packet.connectionStates.map((state) => match.states & (stateBits[state] ?? 0));
  const all = answers.every((bits) => bits !== 0);
  const none = answers.every((bits) => bits === 0);
  // A translated connection has its own state besides.
  const translated = (match.states & translatedStates) !== 0;
  const plain: Answer = all ? "yes" : none && !translated ? "no" : "maybe";
  const state = match.inverted & byState ? not(plain) : plain;
  return match.flags === byState || match.flags === (byState | (1 << 13))
    ? state
    : and([state, "maybe"]);
}

/** `struct xt_tcp`: ports, then option, mask, comparison and what is inverted. */
function readTcp({ info }: Extension) {
  if (info === null || info.revision !== 0 || info.bytes.byteLength < 12) return null;
  const [option = 0, mask = 0, compare = 0, inverted = 0] = [8, 9, 10, 11].map((offset) =>
    info.bytes.getUint8(offset),
  );
  return { option, mask, compare, invertsFlags: (inverted & 4) !== 0 };
}

function tcpReason(extension: Extension, packet: PacketFacts): string | null {
  if (!packet.protocols.includes("tcp")) return null;
  // iptables-legacy's options of this match have become expressions of their own.
  if (extension.options !== null)
    return extension.options.length === 0 ? null : "it decides by each packet's options";
  const match = readTcp(extension);
  if (match === null) return "its options are not known";
  if (match.option !== 0) return "it decides by each packet's options";
  return matchPlainFlags(match.mask, match.compare, packet) === "maybe"
    ? "it decides by each packet's TCP flags"
    : null;
}

function matchTcp(extension: Extension, packet: PacketFacts): Answer {
  const protocol = oneOf(packet.protocols, "tcp");
  const match = readTcp(extension);
  if (match === null) return and([protocol, "maybe"]);
  const flags = matchPlainFlags(match.mask, match.compare, packet);
  return and([protocol, match.invertsFlags ? not(flags) : flags, "maybe"]);
}
