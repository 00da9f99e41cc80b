import { suite } from "uvu";
import * as assert from "uvu/assert";
import { analyseLoopback, type LoopbackVerdict } from "../../src/firewall/loopback.ts";
import { parseRuleset } from "../../src/firewall/ruleset.ts";

const test = suite("firewall: loopback and what is not known");

const of = { family: "ip", table: "t" };
const match = (left: object, right: unknown, op = "=="): object => ({ match: { op, left, right } });
const dport = match({ payload: { protocol: "tcp", field: "dport" } }, 8080);
const state = (name: string): object => match({ ct: { key: "state" } }, [name], "in");
const lo = match({ meta: { key: "oifname" } }, "lo");
const drop = { drop: null };
const accept = { accept: null };

interface Rules {
  hook?: object;
  rules: object[][];
  unlisted?: string[];
  sets?: object[];
}

function judged({ hook, rules, unlisted, sets = [] }: Rules): LoopbackVerdict {
  const base = { ...of, name: "c", type: "filter", hook: "output", prio: 0, policy: "accept" };
  const chain = { ...base, ...hook };
  const listed = rules.map((expr) => ({
    rule: { family: chain.family, table: "t", chain: "c", expr, unlisted },
  }));
  const nft = JSON.stringify({ nftables: [...sets, { chain }, ...listed] });
  const judge = analyseLoopback(parseRuleset({ nft, legacy: "" }));
  return judge({ family: "ipv4", protocol: "tcp", port: 8080 });
}

const named = { set: { ...of, name: "s", type: "inet_service" } };
const hindering: Record<string, Rules> = {
  "a statement of a newer nft": { rules: [[lo, { wormhole: null }]] },
  "an expression that only the kernel knows": { rules: [[lo]], unlisted: ["wormhole"] },
  "an unknown extension": { rules: [[lo, { xt: null }]] },
  "an unknown target": { rules: [[{ xt: { type: "target", name: "WORMHOLE" } }]] },
  "a changed port": {
    rules: [
      [dport, { mangle: { key: { payload: { protocol: "tcp", field: "dport" } }, value: 9 } }],
    ],
  },
  "an unknown match, then a drop": { rules: [[{ xt: { type: "match", name: "wormhole" } }, drop]] },
  "an unknown match, accepted, then a drop": {
    rules: [[{ xt: { type: "match", name: "wormhole" } }, accept], [drop]],
  },
  "a limit of what goes on": { rules: [[state("established"), { limit: { rate: 5 } }, drop]] },
  "a drop of invalid packets before conntrack": {
    hook: { prio: -300 },
    rules: [[state("invalid"), drop]],
  },
  "a full set, accepted, then a drop": {
    sets: [named],
    rules: [
      [
        { set: { op: "add", elem: { payload: { protocol: "tcp", field: "sport" } }, set: "@s" } },
        accept,
      ],
      [drop],
    ],
  },
  "a set that packets write to": {
    sets: [named],
    rules: [
      [{ set: { op: "add", elem: { payload: { protocol: "tcp", field: "dport" } }, set: "@s" } }],
      [match({ payload: { protocol: "tcp", field: "dport" } }, "@s"), drop],
    ],
  },
  "a drop at the device": {
    hook: { family: "netdev", hook: "ingress", dev: ["eth0", "lo"] },
    rules: [[dport, drop]],
  },
};
for (const [what, rules] of Object.entries(hindering))
  test(`${what} hinders`, () => assert.ok(judged(rules).hindered));

const harmless: Record<string, Rules> = {
  "a mark": { rules: [[dport, { mangle: { key: { meta: { key: "mark" } }, value: 1 } }]] },
  "a device that is another": {
    hook: { family: "netdev", hook: "ingress", dev: "eth0" },
    rules: [[drop]],
  },
  "an accept of established connections and of loopback, then a drop": {
    rules: [[state("established"), accept], [lo, accept], [drop]],
  },
};
for (const [what, rules] of Object.entries(harmless))
  test(`${what} does not`, () => assert.equal(judged(rules).rule, ""));

test.run();
