import { suite } from "uvu";
import * as assert from "uvu/assert";
import { findMeters } from "../../src/firewall/meters.ts";
import { parseRuleset } from "../../src/firewall/ruleset.ts";
import { listed, saved } from "./firewall-fixtures.ts";

const test = suite("firewall: meters");

for (const name of [
  "docker-28",
  "ufw",
  "firewalld",
  "libvirt",
  "loopback-accept",
  "loopback-sets",
]) {
  test(`${name} has none`, () => {
    assert.equal(findMeters(parseRuleset(listed(name))), []);
  });
}

for (const name of ["docker-20", "kube-proxy", "ufw-route-limit"])
  test(`${name} has none, by iptables-nft and by iptables-legacy`, () => {
    assert.equal(findMeters(parseRuleset(listed(name))), []);
    assert.equal(findMeters(parseRuleset(saved(name))), []);
  });

test("each kind is found once, where it works", () => {
  const found = findMeters(parseRuleset(listed("meters"))).map(
    ({ where, rule, reason }) => `${where} | ${rule} | ${reason}`,
  );
  assert.equal(found, [
    "host | ip filter FORWARD: limit rate 100/second counter accept | it limits a rate",
    "eth0 | ip filter FORWARD: iifname eth0 -m hashlimit counter accept | it limits a rate",
    "host | ip filter FORWARD: -m statistic counter drop | it chooses among packets",
    "host | ip filter FORWARD: -m connbytes counter drop | it asks how much a connection has carried",
    "host | ip filter FORWARD: -m quota counter accept | it counts down a quota",
    "host | ip raw PREROUTING: udp dport 53 counter -j CT | it changes how connections are tracked",
    "host | ip mangle PREROUTING: -m time counter drop | it decides by the time of day",
    "veth1 | inet m f: iifname veth1 limit rate over 10 mbytes/second drop | it limits a rate",
    "host | inet m f: quota over 1000 mbytes drop | it counts down a quota",
    'host | inet m f: counter name "c1" | it accounts packets by a named counter',
    'host | inet m f: quota name "q1" drop | it counts down a quota',
    "host | inet m f: numgen random mod 10 0 drop | it chooses among packets",
    "host | inet m f: ct bytes > 100000 drop | it asks how much a connection has carried",
    `host | inet m f: ${update} drop | it keeps a meter per key`,
    "host | inet m f: ip saddr 10.0.0.1 notrack | it keeps packets from being tracked",
    "host | inet m f: ct zone set 3 | it changes how connections are tracked",
    "eth7 | inet m viajump: oifname eth7 meta length > 1000 drop | it decides by each packet's length",
    "host | inet m pre: ip saddr 10.0.0.1 notrack | it keeps packets from being tracked",
    "host | inet m pre: ct zone set 3 | it changes how connections are tracked",
  ]);
});

const update = "update @tracked { ip saddr limit rate over 10/second }";

const flags = { payload: { protocol: "tcp", field: "flags" } };
const scan = ["fin", "syn", "rst", "psh", "ack", "urg"];
const conditions: { what: string; is: boolean; expressions: object[] }[] = [
  {
    what: "tcp flags & psh == psh",
    is: true,
    expressions: [{ match: { op: "==", left: { "&": [flags, "psh"] }, right: "psh" } }],
  },
  {
    what: "tcp flags psh",
    is: true,
    expressions: [{ match: { op: "in", left: flags, right: "psh" } }],
  },
  {
    what: "a null scan",
    is: false,
    expressions: [{ match: { op: "!", left: flags, right: scan } }],
  },
  {
    what: "a null scan, the other way to say it",
    is: false,
    expressions: [{ match: { op: "==", left: { "&": [flags, { "|": scan }] }, right: 0 } }],
  },
  {
    what: "tcp flags & (syn | ack) != ack",
    is: false,
    expressions: [{ match: { op: "!=", left: { "&": [flags, ["syn", "ack"]] }, right: "ack" } }],
  },
  {
    what: "tcp window",
    is: true,
    expressions: [
      { match: { op: "==", left: { payload: { protocol: "tcp", field: "window" } }, right: 0 } },
    ],
  },
  {
    what: "ip id",
    is: true,
    expressions: [
      { match: { op: "==", left: { payload: { protocol: "ip", field: "id" } }, right: 7 } },
    ],
  },
  {
    what: "reset tcp option timestamp",
    is: true,
    expressions: [{ reset: { "tcp option": { name: "timestamp" } } }],
  },
  {
    what: "tcp option maxseg size set",
    is: false,
    expressions: [
      { mangle: { key: { "tcp option": { name: "maxseg", field: "size" } }, value: 1200 } },
    ],
  },
  {
    what: "a port",
    is: false,
    expressions: [
      { match: { op: "==", left: { payload: { protocol: "tcp", field: "dport" } }, right: 80 } },
    ],
  },
];
for (const { what, is, expressions } of conditions)
  test(`${what}: ${is ? "differs" : "the same"} for each packet of a connection`, () => {
    const chain = { family: "ip", table: "t", name: "c", type: "filter", hook: "forward", prio: 0 };
    const rule = { family: "ip", table: "t", chain: "c", expr: [...expressions, { drop: null }] };
    const nft = JSON.stringify({ nftables: [{ chain: { ...chain, policy: "accept" } }, { rule }] });
    assert.is(findMeters(parseRuleset({ nft, legacy: "" })).length, is ? 1 : 0);
  });

test("legacy rules are quoted as they were saved, for both families", () => {
  const hashlimit =
    "filter FORWARD: -A FORWARD -i eth0 -m hashlimit --hashlimit-upto 100/sec --hashlimit-burst 5 --hashlimit-name x -j ACCEPT";
  assert.equal(findMeters(parseRuleset(saved("legacy"))), [
    { where: "eth0", rule: `iptables-legacy ${hashlimit}`, reason: "it limits a rate" },
    { where: "eth0", rule: `ip6tables-legacy ${hashlimit}`, reason: "it limits a rate" },
  ]);
});

test("an empty ruleset has none, a torn listing is refused", () => {
  assert.equal(findMeters(parseRuleset({ nft: '{"nftables":[]}', legacy: "" })), []);
  assert.throws(() => findMeters(parseRuleset({ nft: "{", legacy: "" })));
  assert.throws(() =>
    findMeters(parseRuleset({ nft: '{"nftables":[{"chain":{"name":1}}]}', legacy: "" })),
  );
});

test.run();
