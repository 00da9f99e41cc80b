import { suite } from "uvu";
import * as assert from "uvu/assert";
import { findMeters } from "../../src/firewall/meters.ts";
import { parseRuleset } from "../../src/firewall/ruleset.ts";

const test = suite("firewall: what is constant");

const table = { family: "ip", table: "t" };
const match = (left: object, right: unknown, op = "=="): object => ({ match: { op, left, right } });
const payload = (protocol: string, field: string): object => ({ payload: { protocol, field } });
const saddr = payload("ip", "saddr");
const dport = payload("tcp", "dport");
const state = (...states: string[]): object => match({ ct: { key: "state" } }, states, "in");
const limit = { limit: { rate: 10, burst: 5, per: "second" } };
const drop = { drop: null };
const accept = { accept: null };

interface Listing {
  hook?: object;
  sets?: object[];
  rules: object[][];
  chains?: Record<string, object[][]>;
  unlisted?: string[];
}

/** nft's listing of one base chain and what it needs. */
function listing({ hook, sets = [], rules, chains = {}, unlisted }: Listing): string {
  const base = { type: "filter", hook: "forward", prio: 0, policy: "accept", ...hook };
  const of = { ...table, ...("family" in base ? { family: base.family } : {}) };
  const named = Object.entries(chains);
  return JSON.stringify({
    nftables: [
      ...sets,
      { chain: { ...of, name: "c", ...base } },
      ...named.map(([name]) => ({ chain: { ...of, name } })),
      ...rules.map((expr) => ({ rule: { ...of, chain: "c", expr, unlisted } })),
      ...named.flatMap(([name, list]) =>
        list.map((expr) => ({ rule: { ...of, chain: name, expr } })),
      ),
    ],
  });
}

function reasons(what: Listing): string[] {
  return findMeters(parseRuleset({ nft: listing(what), legacy: "" })).map(({ reason }) => reason);
}

const set = (name: string, body: object = {}): object => ({
  set: { ...table, name, type: "ipv4_addr", ...body },
});

const hindering: Record<string, Listing> = {
  "a limit declared on a set": {
    sets: [set("s", { stmt: [limit], elem: [{ elem: { val: "10.0.0.1", ...limit } }] })],
    rules: [[match(saddr, "@s"), accept]],
  },
  "a limit declared on a set that is empty yet": {
    sets: [set("s", { stmt: [limit], flags: ["dynamic"] })],
    rules: [[match(saddr, "@s"), accept]],
  },
  "a quota of an element": {
    sets: [
      set("s", { elem: [{ elem: { val: "10.0.0.1", quota: { val: 5, val_unit: "bytes" } } }] }),
    ],
    rules: [[match(saddr, "@s"), drop]],
  },
  "a limit on a verdict map's elements": {
    sets: [
      {
        map: {
          ...table,
          name: "m",
          type: "inet_service",
          map: "verdict",
          elem: [[{ elem: { val: 80, ...limit } }, accept]],
          stmt: [limit],
        },
      },
    ],
    rules: [[{ vmap: { key: dport, data: "@m" } }]],
  },
  "a limit on an anonymous map's element": {
    rules: [[{ vmap: { key: dport, data: { set: [[{ elem: { val: 80, ...limit } }, accept]] } } }]],
  },
  "a set that packets write to": {
    sets: [set("s")],
    rules: [
      [state("new"), { set: { op: "add", elem: saddr, set: "@s" } }],
      [match(saddr, "@s"), drop],
    ],
  },
  "a set whose elements expire, to accept": {
    sets: [set("s", { flags: ["timeout"], elem: [{ elem: { val: "10.0.0.1", timeout: 60 } }] })],
    rules: [[match(saddr, "@s"), accept], [drop]],
  },
  "a full set, then a limit": {
    sets: [set("s")],
    rules: [
      [{ set: { op: "add", elem: saddr, set: "@s" } }, accept],
      [limit, drop],
    ],
  },
  "an update with a limit, then another": {
    sets: [set("s")],
    rules: [
      [{ set: { op: "update", elem: saddr, set: "@s", stmt: [limit] } }, accept],
      [limit, drop],
    ],
  },
  "a TCP option by its number": { rules: [[match({ "tcp option": { base: 34 } }, true), drop]] },
  "the field of fragments": { rules: [[match(payload("ip", "frag-off"), 0), drop]] },
  "a bit of that field": {
    rules: [[match({ "&": [payload("ip", "frag-off"), 16384] }, 0), drop]],
  },
  "the time of day": { rules: [[match({ meta: { key: "hour" } }, "17:00"), drop]] },
  "a socket": { rules: [[match({ socket: { key: "transparent" } }, 1), drop]] },
  "an expression of a newer nft": { rules: [[match({ wormhole: { key: "x" } }, 1), drop]] },
  "a statement of a newer nft": { rules: [[{ wormhole: null }]] },
  "a metadata key of a newer nft": { rules: [[match({ meta: { key: "wormhole" } }, 1), drop]] },
  "an expression that only the kernel knows": { rules: [[drop]], unlisted: ["wormhole"] },
  "an unknown match of iptables": { rules: [[{ xt: { type: "match", name: "wormhole" } }, drop]] },
  "an unknown target of iptables": { rules: [[{ xt: { type: "target", name: "WORMHOLE" } }]] },
  "an ipset": { rules: [[{ xt: { type: "match", name: "set" } }, drop]] },
  "a counter before its conditions": { rules: [[{ counter: "named" }, state("new"), accept]] },
  "a limit before its conditions": { rules: [[limit, state("new"), accept]] },
  "an established connection before conntrack": {
    hook: { hook: "prerouting", prio: -300 },
    rules: [
      [state("established"), accept],
      [limit, drop],
    ],
  },
  "a limit for invalid packets before conntrack": {
    hook: { hook: "prerouting", prio: -300 },
    rules: [[state("invalid"), limit, drop]],
  },
  "a log of each packet": { rules: [[{ log: { prefix: "x" } }, accept]] },
  "a log of long packets": {
    rules: [[match({ meta: { key: "length" } }, 1000, ">"), limit, { log: null }]],
  },
  "a timeout for new connections": { rules: [[state("new"), { "ct timeout": "short" }]] },
  "a changed DSCP": {
    rules: [[{ mangle: { key: payload("ip", "dscp"), value: "cs1" } }]],
  },
  "a mark that toggles": {
    rules: [
      [{ mangle: { key: { ct: { key: "mark" } }, value: { "^": [{ ct: { key: "mark" } }, 1] } } }],
    ],
  },
  "two marks that follow each other": {
    rules: [
      [
        match({ ct: { key: "mark" } }, 1),
        { mangle: { key: { ct: { key: "mark" } }, value: 2 } },
        accept,
      ],
      [{ mangle: { key: { ct: { key: "mark" } }, value: 1 } }],
    ],
  },
  "a priority, which routing makes of the traffic class": {
    rules: [[match({ meta: { key: "priority" } }, 0), drop]],
  },
};

for (const [what, rules] of Object.entries(hindering))
  test(`${what} hinders`, () => {
    const found = reasons(rules);
    assert.ok(found.length > 0);
    assert.ok(found.every(Boolean));
  });

const harmless: Record<string, Listing> = {
  "a limit for new connections": { rules: [[state("new"), limit, accept]] },
  "a limit behind an accept of established ones": {
    rules: [
      [state("established", "related"), accept],
      [limit, drop],
    ],
  },
  "a banned address that expires": {
    sets: [set("s", { flags: ["timeout"], elem: [{ elem: { val: "10.0.0.1", timeout: 60 } }] })],
    rules: [[match(saddr, "@s"), { counter: null }, drop]],
  },
  "a banned address that counts": {
    sets: [set("s", { stmt: [{ counter: null }] })],
    rules: [[match(saddr, "@s"), drop]],
  },
  "a counter of what is dropped": {
    rules: [[match(saddr, "10.0.0.1"), { counter: "named" }, drop]],
  },
  "a log of what the next rule drops": {
    rules: [[match(saddr, "10.0.0.1"), { jump: { target: "logdrop" } }]],
    chains: { logdrop: [[{ log: { prefix: "x" } }], [drop]] },
  },
  "a limited log": { rules: [[limit, { log: { prefix: "x" } }]] },
  "a mark by address, kept in the connection": {
    rules: [
      [match(saddr, "10.0.0.1"), { mangle: { key: { meta: { key: "mark" } }, value: 1 } }],
      [
        match({ meta: { key: "mark" } }, 1),
        { mangle: { key: { ct: { key: "mark" } }, value: { meta: { key: "mark" } } } },
      ],
      [{ mangle: { key: { meta: { key: "mark" } }, value: { ct: { key: "mark" } } } }],
    ],
  },
  "devices, groups and routes": {
    rules: [
      [match({ meta: { key: "iifgroup" } }, 5), drop],
      [match({ fib: { result: "type", flags: ["daddr"] } }, "local"), drop],
      [match({ fib: { result: "oif", flags: ["saddr", "iif"] } }, false), drop],
      [match({ jhash: { mod: 4, expr: { concat: [saddr, dport] } } }, 1), drop],
    ],
  },
  "a helper for new connections": { rules: [[{ "ct helper": "ftp" }]] },
};

for (const [what, rules] of Object.entries(harmless))
  test(`${what} does not`, () => assert.equal(reasons(rules), []));

test("a chain, or a rule, of several devices hinders on each", () => {
  const netdev = { family: "netdev", hook: "ingress", dev: ["eth0", "eth1"] };
  const found = findMeters(
    parseRuleset({ nft: listing({ hook: netdev, rules: [[limit, drop]] }), legacy: "" }),
  );
  assert.equal(
    found.map(({ where }) => where),
    ["eth0", "eth1"],
  );
  const names = match({ meta: { key: "iifname" } }, { set: ["eth2", "eth3"] });
  const both = findMeters(
    parseRuleset({ nft: listing({ rules: [[names, limit, drop]] }), legacy: "" }),
  );
  assert.equal(
    both.map(({ where }) => where),
    ["eth2", "eth3"],
  );
  const wild = { ...netdev, dev: ["eth*"] };
  const all = findMeters(
    parseRuleset({ nft: listing({ hook: wild, rules: [[limit, drop]] }), legacy: "" }),
  );
  assert.equal(
    all.map(({ where }) => where),
    ["host"],
  );
});

/** The kernel's struct, with 16-bit values at their offsets, as bytes of this machine. */
function info(size: number, values: Record<number, number>): string {
  const bytes = Buffer.alloc(size);
  const native = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
  for (const [offset, value] of Object.entries(values))
    if (native) bytes.writeUInt16LE(value, Number(offset));
    else bytes.writeUInt16BE(value, Number(offset));
  return bytes.toString("hex");
}

const conntrack = (flags: number, states: number, statuses = 0): object => ({
  xt: {
    type: "match",
    name: "conntrack",
    rev: 3,
    info: info(40, { 18: flags, 22: states, 24: statuses }),
  },
});
const recent = { xt: { type: "match", name: "recent", rev: 1, info: "" } };
const [established, fresh] = [1 << 1, 1 << 3];

test("iptables' conntrack match is read from the kernel's bytes", () => {
  assert.equal(reasons({ rules: [[conntrack(1, fresh), recent, drop]] }), []);
  assert.is(reasons({ rules: [[conntrack(1, established), recent, drop]] }).length, 1);
  assert.is(reasons({ rules: [[recent, conntrack(1, fresh), drop]] }).length, 1);
  assert.equal(
    reasons({
      rules: [
        [conntrack(1, established), accept],
        [recent, drop],
      ],
    }),
    [],
  );
  // By the time that is left, and by a status that a connection reaches late.
  assert.is(reasons({ rules: [[conntrack(1 << 7, 0), drop]] }).length, 1);
  assert.is(reasons({ rules: [[conntrack(1 << 6, 0, 1 << 2), drop]] }).length, 1);
  const unread = { xt: { type: "match", name: "conntrack" } };
  assert.equal(reasons({ rules: [[unread, drop]] }), ["its options are not known"]);
});

test("iptables' tcp match is read from the kernel's bytes", () => {
  const tcp = (option: number, mask: number, compare: number): object => {
    const words = { 8: option | (mask << 8), 10: compare };
    return { xt: { type: "match", name: "tcp", rev: 0, info: info(12, words) } };
  };
  assert.equal(reasons({ rules: [[tcp(0, 0, 0), accept]] }), []);
  assert.equal(reasons({ rules: [[tcp(0, 0x12, 0x02), limit, accept]] }), []);
  assert.is(reasons({ rules: [[tcp(0, 0x08, 0x08), drop]] }).length, 1);
  assert.is(reasons({ rules: [[tcp(8, 0, 0), drop]] }).length, 1);
});

function legacy(...rules: string[]): string[] {
  const saved = ["# iptables-legacy", "*filter", ":FORWARD ACCEPT [0:0]", ...rules, "COMMIT"];
  return findMeters(parseRuleset({ nft: '{"nftables":[]}', legacy: saved.join("\n") })).map(
    ({ rule }) => rule,
  );
}

for (const rule of [
  "-p tcp -m tcp --tcp-flags PSH PSH -j DROP",
  "-p tcp -m tcp --tcp-option 8 -j DROP",
  "-p tcp -m tcp --dport 80 --tcp-option 8 -j DROP",
  "-m conntrack --ctexpire 0:10 -j DROP",
  "-m set --match-set s src --packets-gt 5 -j DROP",
  "-m wormhole --deep -j DROP",
  "-m limit --limit 5/sec -m conntrack --ctstate NEW -j ACCEPT",
  "-j CONNMARK --set-xmark 0x1/0x0",
  "-j TTL --ttl-set 64",
  "-j LOG",
])
  test(`iptables-legacy ${rule} hinders`, () =>
    assert.equal(legacy(`-A FORWARD ${rule}`), [
      `iptables-legacy filter FORWARD: -A FORWARD ${rule}`,
    ]));

for (const rule of [
  "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 1/sec -j ACCEPT",
  "-p tcp -m tcp ! --tcp-flags ACK NONE -j ACCEPT",
  "-m conntrack --ctstate NEW -m recent --set --name x",
  "-s 10.0.0.0/8 -p udp -m multiport --dports 1,2 -m mark --mark 0x1/0xff -j ACCEPT",
  "-m limit --limit 3/min -j LOG --log-prefix x",
  "-s 10.0.0.1/32 -j LOG\n-A FORWARD -s 10.0.0.1/32 -j DROP\n-A FORWARD -j DROP",
  "-m iprange --src-range 10.0.0.1-10.0.0.5 -m mac --mac-source 02:00:00:00:00:01 -j DROP",
])
  test(`iptables-legacy ${rule.split("\n")[0]} does not`, () =>
    assert.equal(legacy(`-A FORWARD ${rule}`), []));

test("eight thousand rules are judged in no time", () => {
  const rules = Array.from({ length: 8000 }, (_, index) => [
    match(saddr, `10.${index >> 8}.${index & 255}.1`),
    state("established", "related"),
    match(dport, index),
    { counter: { packets: 0, bytes: 0 } },
    accept,
  ]);
  const nft = listing({ rules: [...rules, [limit, drop]] });
  let milliseconds = Number.POSITIVE_INFINITY;
  // The best of three: other tests share the processor.
  for (let turn = 0; turn < 3; turn += 1) {
    const before = process.cpuUsage();
    assert.is(findMeters(parseRuleset({ nft, legacy: "" })).length, 1);
    const { user, system } = process.cpuUsage(before);
    milliseconds = Math.min(milliseconds, (user + system) / 1000);
  }
  assert.ok(milliseconds < 500, `${milliseconds} ms`);
});

test.run();
