/** eBPF programs of others keep the fast path off where its packets would not meet them. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("foreign programs");
test.before.each(async (context) => {
  context.host = await new CoreHost().start();
  const { core } = context.host;
  await core.networks.create({ name: "my_net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await core.endpoints.create({ name: "web", network: "my_net", netns: "web" });
});

const bridgeOf = ({ core }: CoreHost): string => core.networks.get("my_net").bridge ?? "";

async function off({ core }: CoreHost): Promise<{ where: string; reason: string }[]> {
  await core.judge.now();
  return core.judge.hindrances();
}

test("one that is skipped is named with its device and hook", async ({ host }) => {
  assert.equal(await off(host), []);
  const bridge = bridgeOf(host);
  const ifindex = host.datapath.links.get(bridge)?.ifindex ?? 0;
  const program = { ifindex, hook: "egress" as const, id: 77, name: "policer", hinders: true };
  host.datapath.foreignPrograms = [program];
  assert.equal(await off(host), [
    {
      where: bridge,
      reason: "the eBPF program policer (id 77) on its egress hook must see every packet",
      rule: null,
    },
  ]);
  const endpoint = [...host.datapath.devices.values()].find(({ role }) => role === "endpoint");
  assert.is(endpoint?.fastPath, false, "its endpoints go by the kernel path");
  host.datapath.foreignPrograms = [{ ...program, hinders: false }];
  assert.equal(await off(host), [], "one that sees every packet anyway does not");
});

test("what can't be listed hinders everywhere", async ({ host }) => {
  host.datapath.failNext("followPrograms", new DatapathError("io", "no memory"));
  const [hindrance] = await off(host);
  assert.is(hindrance?.where, "host");
  assert.match(hindrance?.reason ?? "", /no memory/);
  assert.equal(await off(host), []);
});

test("a change of them is judged at once", async ({ host }) => {
  const { core, datapath } = host;
  core.upkeep.watch();
  await core.judge.now();
  const ifindex = datapath.links.get(bridgeOf(host))?.ifindex ?? 0;
  datapath.foreignPrograms = [{ ifindex, hook: "xdp", id: 78, name: "filter", hinders: true }];
  datapath.announce("program");
  const started = performance.now();
  while (core.judge.hindrances().length === 0) {
    assert.ok(performance.now() - started < 10_000, "nobody looked");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await core.stop();
});

test.run();
