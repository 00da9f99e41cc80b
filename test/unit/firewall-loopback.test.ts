import { suite } from "uvu";
import * as assert from "uvu/assert";
import { analyseLoopback, type LoopbackPort } from "../../src/firewall/loopback.ts";
import { parseRuleset } from "../../src/firewall/ruleset.ts";
import { listed, saved } from "./firewall-fixtures.ts";

const test = suite("firewall: loopback");

/** `ipv4 tcp 80` as a port. */
function port(text: string): LoopbackPort {
  const [family, protocol, number] = text.split(" ");
  return {
    family: family === "ipv6" ? "ipv6" : "ipv4",
    protocol: protocol === "udp" ? "udp" : "tcp",
    port: Number(number),
  };
}

const everywhere = ["ipv4 tcp 8080", "ipv4 udp 53", "ipv6 tcp 8080", "ipv6 udp 53"];

for (const name of ["docker-28", "ufw", "firewalld", "libvirt", "meters"]) {
  test(`${name} hinders nothing`, () => {
    const judge = analyseLoopback(parseRuleset(listed(name)));
    // The meters' drop chains are for forwarding, but for one rule on input.
    const limited = name === "meters";
    for (const text of everywhere) {
      const verdict = judge(port(text));
      assert.is(verdict.hindered, limited, `${text}: ${verdict.rule}`);
    }
  });
}

const cases: { name: string; free: string[]; hindered: [string, string][] }[] = [
  {
    name: "loopback-accept",
    free: ["ipv4 tcp 8080", "ipv4 udp 53"],
    // ip6tables has the policy without the accept; its accept for port 22 is a sure one.
    hindered: [
      ["ipv6 tcp 8080", "ip6 filter INPUT: policy drop"],
      ["ipv6 udp 22", "ip6 filter INPUT: policy drop"],
    ],
  },
  {
    name: "loopback-reject",
    free: ["ipv4 tcp 8081", "ipv4 udp 8080", "ipv6 tcp 8080", "ipv4 tcp 53"],
    hindered: [
      ["ipv4 tcp 8080", "ip filter OUTPUT: ip daddr 127.0.0.1 tcp dport 8080"],
      ["ipv4 udp 53", "ip nat OUTPUT: udp dport 53"],
    ],
  },
  {
    name: "loopback-owner",
    free: ["ipv4 tcp 9001", "ipv4 udp 9000", "ipv6 tcp 9000"],
    hindered: [["ipv4 tcp 9000", "ip filter OUTPUT: oifname lo tcp dport 9000"]],
  },
  {
    name: "loopback-sets",
    free: [
      "ipv4 tcp 8080",
      "ipv4 tcp 6001",
      "ipv4 tcp 7011",
      "ipv4 tcp 6999",
      "ipv4 udp 7000",
      "ipv6 tcp 8080",
      "ipv4 tcp 6100",
    ],
    hindered: [
      ["ipv4 tcp 6000", "inet h in: vmap"],
      ["ipv4 tcp 7000", "inet h in: tcp dport @blocked drop"],
      ["ipv6 tcp 7010", "inet h in: tcp dport @blocked drop"],
      ["ipv6 tcp 9999", "inet h in: tcp dport @blocked drop"],
      ["ipv4 udp 6100", "inet h in: meta skuid 5 udp dport 6100 drop"],
    ],
  },
];

for (const { name, free, hindered } of cases) {
  test(name, () => {
    const judge = analyseLoopback(parseRuleset(listed(name)));
    for (const text of free) {
      assert.equal(judge(port(text)), { hindered: false, rule: "", reason: "" }, text);
    }
    for (const [text, rule] of hindered) {
      const verdict = judge(port(text));
      assert.ok(verdict.hindered, text);
      assert.ok(verdict.rule.startsWith(rule), `${text}: ${verdict.rule}`);
      assert.ok(verdict.reason, text);
    }
  });
}

test("iptables-legacy, both families", () => {
  const judge = analyseLoopback(parseRuleset(saved("legacy")));
  for (const text of [
    "ipv4 tcp 8081",
    "ipv6 tcp 8080",
    "ipv4 tcp 7001",
    "ipv4 udp 7000",
    "ipv4 tcp 53",
  ]) {
    assert.not.ok(judge(port(text)).hindered, text);
  }
  for (const text of [
    "ipv4 tcp 8080",
    "ipv4 tcp 7000",
    "ipv6 tcp 7150",
    "ipv6 tcp 7200",
    "ipv4 udp 53",
  ]) {
    const verdict = judge(port(text));
    assert.ok(verdict.hindered, text);
    assert.match(verdict.rule, /-A OUTPUT/);
  }
});

test("a thousand ports against a thousand rules take no time", () => {
  const rules = Array.from(
    { length: 1000 },
    (_, index) => `-A INPUT -p tcp --dport ${20000 + 2 * index} -j ACCEPT`,
  );
  const legacy = [
    "# iptables-legacy",
    "*filter",
    ":INPUT DROP [0:0]",
    "-A INPUT -p tcp --dport 30000 -j DROP",
    ...rules,
    "-A INPUT -i lo -j ACCEPT",
  ].join("\n");
  const begun = performance.now();
  const judge = analyseLoopback(parseRuleset({ nft: '{"nftables":[]}', legacy }));
  let hindered = 0;
  for (let number = 29500; number < 30500; number += 1) {
    if (judge({ family: "ipv4", protocol: "tcp", port: number }).hindered) hindered += 1;
  }
  assert.is(hindered, 1);
  assert.ok(performance.now() - begun < 1000, `${performance.now() - begun} ms`);
});

const localRule = (priority: number, daddr: string): { nft: string; legacy: string } => {
  const of = { family: "ip", table: "t" };
  const chain = { ...of, name: "c", type: "filter", hook: "output", prio: priority };
  const address = {
    match: { op: "==", left: { payload: { protocol: "ip", field: "daddr" } }, right: daddr },
  };
  const port = {
    match: { op: "==", left: { payload: { protocol: "tcp", field: "dport" } }, right: 8080 },
  };
  const rule = { ...of, chain: "c", expr: [address, port, { drop: null }] };
  return {
    nft: JSON.stringify({ nftables: [{ chain: { ...chain, policy: "accept" } }, { rule }] }),
    legacy: "",
  };
};
for (const { what, priority, daddr, port, hindered } of [
  { what: "in raw", priority: -300, daddr: "198.51.100.1", port: 8080, hindered: true },
  { what: "of another port", priority: -300, daddr: "198.51.100.1", port: 8081, hindered: false },
  { what: "of a far address", priority: -300, daddr: "8.8.8.8", port: 8080, hindered: false },
  {
    what: "behind destination NAT",
    priority: 0,
    daddr: "198.51.100.1",
    port: 8080,
    hindered: false,
  },
])
  test(`a rule on one of the host's addresses, ${what}: ${hindered}`, () => {
    const judge = analyseLoopback(parseRuleset(localRule(priority, daddr)), [
      "198.51.100.1",
      "203.0.113.1",
    ]);
    assert.is(judge({ family: "ipv4", protocol: "tcp", port }).hindered, hindered);
  });

test.run();
