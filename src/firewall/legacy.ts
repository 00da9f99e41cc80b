/** Reads `iptables-legacy-save`: each rule becomes nft's JSON as far as nft has a word for it. */

import type { Json, JsonObject } from "./json.ts";
import type { Chain } from "./ruleset.ts";

/** Where each built-in chain hooks in, and the priority of each table (netfilter_ipv4.h). */
const hooks: Record<string, string> = {
  PREROUTING: "prerouting",
  INPUT: "input",
  FORWARD: "forward",
  OUTPUT: "output",
  POSTROUTING: "postrouting",
};
const priorities: Record<string, number> = {
  raw: -300,
  mangle: -150,
  nat: -100,
  filter: 0,
  security: 50,
};

/**
 * Chains of the saves, each save after its line `# iptables-legacy` or `# ip6tables-legacy`.
 */
export function parseLegacy(saves: string): Chain[] {
  const chains = new Map<string, Chain>();
  let program = "iptables-legacy";
  let table = "";
  for (const line of saves.split("\n")) {
    if (/^# ip6?tables-legacy$/.test(line)) program = line.slice(2);
    else if (line.startsWith("*")) table = line.slice(1).trim();
    else if (line.startsWith(":")) {
      const chain = declaredChain(program, table, line);
      chains.set(chain.name, chain);
    } else if (line.startsWith("-A ")) {
      const [, name = "", ...words] = tokens(line);
      const chain = chains.get(`${program} ${table} ${name}`);
      if (chain === undefined) continue;
      chain.rules.push({
        expressions: new RuleReader(words, chain.family).read(),
        text: line,
        unlisted: [],
      });
    }
  }
  return [...chains.values()];
}

function declaredChain(program: string, table: string, line: string): Chain {
  const [name = "", policy = "-"] = line.slice(1).split(" ");
  const family = program.startsWith("ip6") ? "ip6" : "ip";
  const of = `${program} ${table}`;
  const hook = hooks[name];
  const sourceNat = table === "nat" && (name === "POSTROUTING" || name === "INPUT");
  const base =
    hook === undefined || policy === "-"
      ? null
      : {
          type: table === "nat" ? "nat" : "filter",
          hook,
          priority: sourceNat ? 100 : (priorities[table] ?? 0),
          policy: policy === "DROP" ? ("drop" as const) : ("accept" as const),
          devices: [],
        };
  return { name: `${of} ${name}`, table: of, family, rules: [], base };
}

/** Words of a line; double quotes hold words together. */
function tokens(line: string): string[] {
  const words = line.match(/"(?:\\.|[^"\\])*"|\S+/g) ?? [];
  return words.map((word) =>
    word.startsWith('"') ? word.slice(1, -1).replace(/\\(.)/g, "$1") : word,
  );
}

/** Matches with options that nft has expressions for: they say nothing more unless there are others. */
const understood = new Set([
  "tcp",
  "udp",
  "sctp",
  "conntrack",
  "state",
  "comment",
  "addrtype",
  "mark",
  "multiport",
]);

/** Verdicts, and targets that nft has a statement for. */
const targets: Record<string, JsonObject> = {
  ACCEPT: { accept: null },
  DROP: { drop: null },
  RETURN: { return: null },
  REJECT: { reject: null },
  LOG: { log: null },
  NFLOG: { log: null },
  DNAT: { dnat: null },
  SNAT: { snat: null },
  MASQUERADE: { masquerade: null },
  REDIRECT: { redirect: null },
};

/** Targets of the kernel's extensions; any other capitalised word could be a chain of the user. */
const extensions =
  /^(AUDIT|CHECKSUM|CLASSIFY|CLUSTERIP|CONNMARK|CONNSECMARK|CT|DNPT|DSCP|ECN|HL|HMARK|IDLETIMER|LED|MARK|NETMAP|NFQUEUE|NOTRACK|RATEEST|SECMARK|SET|SNPT|SYNPROXY|TCPMSS|TCPOPTSTRIP|TEE|TOS|TPROXY|TRACE|TTL|ULOG)$/;

type Reader = (family: string) => { left: Json; read: (text: string) => Json };

const meta =
  (key: string, read: (text: string) => Json): Reader =>
  () => ({ left: { meta: { key } }, read });
const address =
  (field: string): Reader =>
  (protocol) => ({ left: { payload: { protocol, field } }, read: prefix });
const port =
  (field: string): Reader =>
  () => ({ left: { payload: { protocol: "th", field } }, read: ports });
const state: Reader = () => ({
  left: { ct: { key: "state" } },
  read: (text) => ({ set: text.toLowerCase().split(",") }),
});

/** Options with an argument that nft has an expression for. */
const matches: Record<string, Reader> = {
  "-i": meta("iifname", deviceName),
  "-o": meta("oifname", deviceName),
  "-p": meta("l4proto", (name) => name),
  "-s": address("saddr"),
  "-d": address("daddr"),
  "--dport": port("dport"),
  "--dports": port("dport"),
  "--sport": port("sport"),
  "--sports": port("sport"),
  "--ctstate": state,
  "--state": state,
  "--dst-type": () => ({
    left: { fib: { result: "type", flags: ["daddr"] } },
    read: (type) => type.toLowerCase(),
  }),
};

class RuleReader {
  private position = 0;
  private negated = false;
  /** The match or target that options now belong to, and those of its options without a reader. */
  private module = "";
  private options: string[] = [];
  private readonly expressions: JsonObject[] = [];
  private readonly words: string[];
  private readonly family: string;

  constructor(words: string[], family: string) {
    this.words = words;
    this.family = family;
  }

  read(): JsonObject[] {
    while (this.position < this.words.length) {
      const word = this.next();
      if (word === "!") {
        this.negated = true;
        continue;
      }
      this.option(word);
      this.negated = false;
    }
    return this.expressions;
  }

  private next(): string {
    const word = this.words[this.position] ?? "";
    this.position += 1;
    return word;
  }

  private option(word: string): void {
    const match = matches[word];
    if (word === "-m") this.matchModule(this.next());
    else if (word === "-j") this.target(this.next());
    else if (word === "-g") this.expressions.push({ goto: { target: this.next() } });
    else if (word === "--comment") this.next();
    // Fragments have an extension of that name in IPv6; none is carried.
    else if (word === "-f") this.expressions.push(extension("match", "frag", []));
    else if (word === "--tcp-flags" && this.module === "tcp") this.tcpFlags();
    else if (word === "--mark" && this.module === "mark") this.mark(this.next());
    else if (match !== undefined) {
      const { left, read } = match(this.family);
      this.compare(left, read(this.next()));
    } else if (word.startsWith("-")) this.unread(word);
  }

  private compare(left: Json, right: Json): void {
    this.expressions.push({ match: { op: this.negated ? "!=" : "==", left, right } });
  }

  private matchModule(name: string): void {
    this.module = name;
    this.options = [];
    if (understood.has(name)) return;
    if (name === "limit") this.expressions.push({ limit: {} });
    else this.expressions.push(extension("match", name, this.options));
  }

  private target(name: string): void {
    this.module = name;
    this.options = [];
    const statement = targets[name];
    if (statement !== undefined) this.expressions.push(statement);
    else if (extensions.test(name)) this.expressions.push(extension("target", name, this.options));
    else this.expressions.push({ jump: { target: name } });
  }

  /** `--tcp-flags FIN,SYN,RST,ACK SYN`: mask and what must be set of it. */
  private tcpFlags(): void {
    const [mask, set] = [this.next(), this.next()].map((list) =>
      list === "NONE" ? [] : list.toLowerCase().split(","),
    );
    const flags = { payload: { protocol: "tcp", field: "flags" } };
    this.compare({ "&": [flags, mask ?? []] }, set?.length === 0 ? 0 : (set ?? []));
  }

  private mark(text: string): void {
    const [value, mask] = text.split("/").map(Number);
    const mark = { meta: { key: "mark" } };
    this.compare(mask === undefined ? mark : { "&": [mark, mask] }, value ?? 0);
  }

  /** An option without a reader may make the rule match less, and is judged with its module. */
  private unread(word: string): void {
    this.options.push(word);
    const known = this.module !== "" && understood.has(this.module);
    if (known && this.options.length === 1 && !(this.module in targets))
      this.expressions.push(extension("match", this.module, this.options));
  }
}

/** Options are added to the list as they are read. */
function extension(type: "match" | "target", name: string, options: string[]): JsonObject {
  return { xt: { type, name, options } };
}

function deviceName(name: string): string {
  return name.endsWith("+") ? `${name.slice(0, -1)}*` : name;
}

function prefix(text: string): Json {
  const [addr = "", length] = text.split("/");
  return length === undefined ? addr : { prefix: { addr, len: Number(length) } };
}

function ports(text: string): Json {
  const parts = text.split(",").map((part): Json => {
    const [first = "0", last] = part.split(":");
    if (last === undefined) return Number(first);
    return { range: [Number(first || "0"), Number(last || "65535")] };
  });
  return { set: parts };
}
