/** The core on a host in memory: whole or not at all, mending, and what is left to others. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import { stepNames } from "../../src/network/steps.ts";
import { ProblemError } from "../../src/problem.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("core");
test.before.each(async (context) => {
  delete process.env["NATBRIDGE_FAIL_AFTER"];
  context.host = await new CoreHost().start();
});
test.after.each(() => {
  delete process.env["NATBRIDGE_FAIL_AFTER"];
});

const network = { name: "my_net", subnets: [{ subnet: "172.32.0.0/24" }, { subnet: "fd32::/64" }] };
const web = { name: "web", network: "my_net", netns: "web", addresses: ["172.32.0.10"] };
const port = { name: "p", endpoint: "web", hostPort: 8080, containerPort: 80 };

async function seed({ core }: CoreHost): Promise<void> {
  await core.networks.create(network);
  await core.endpoints.create(web);
  await core.ports.create(port);
}

async function code(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    return error instanceof ProblemError ? error.code : String(error);
  }
  return "done";
}

test("makes the predefined networks once", async ({ host }) => {
  const names = host.core.networks.list().map(({ name }) => name);
  assert.equal(names, ["bridge", "host", "none"]);
  const again = host.makeCore();
  await again.upkeep.begin();
  assert.is(again.networks.list().length, 3);
  assert.equal([...host.datapath.links.keys()], ["lo", "eth0", "nb0"]);
});

for (const step of stepNames)
  test(`a failure after ${step} leaves kernel, holder and database as before`, async ({ host }) => {
    await seed(host);
    const before = host.dump();
    process.env["NATBRIDGE_FAIL_AFTER"] = step;
    const input = {
      owner: "o",
      networks: [{ name: "n", subnets: [{ subnet: "10.1.0.0/24" }, { subnet: "fd01::/64" }] }],
      endpoints: [{ name: "e", network: "n", netns: "db" }],
      ports: [{ name: "q", endpoint: "e", hostPort: 9000, containerPort: 80 }],
    };
    assert.match(await code(host.core.apply(input, { dryRun: false })), /stopped after step/);
    assert.is(host.dump(), before);
    delete process.env["NATBRIDGE_FAIL_AFTER"];
    assert.is(await code(host.core.apply(input, { dryRun: false })), "done");
    assert.is.not(host.dump(), before);
  });

test("a kernel that refuses a device leaves all as before", async ({ host }) => {
  await host.core.networks.create(network);
  const before = host.dump();
  host.datapath.failNext("createEndpoint", new DatapathError("io", "no memory"));
  assert.match(await code(host.core.endpoints.create(web)), /no memory/);
  assert.is(host.dump(), before);
});

test("a holder that died is revived by the next change, with all that it held", async ({
  host,
}) => {
  await seed(host);
  host.holder.die();
  const another = { ...port, name: "q", hostPort: 9000 };
  assert.is(await code(host.core.ports.create(another)), "done");
  const held = [...host.holder.bindings.keys()].sort();
  assert.equal(held, ["tcp/0.0.0.0/8080", "tcp/0.0.0.0/9000", "tcp/::/8080", "tcp/::/9000"]);
});

test("a holder that died is revived without being asked", async ({ host }) => {
  await seed(host);
  const { upkeep } = host.core;
  const until = async (isSo: () => boolean): Promise<void> => {
    for (let wait = 0; wait < 100 && !isSo(); wait++)
      await new Promise((resolve) => setTimeout(resolve, 20));
  };
  upkeep.watch();
  try {
    // The look that begins the watch; the next regular one is half a minute away.
    const { runs } = upkeep.counts;
    await until(() => upkeep.counts.runs > runs);
    host.holder.die();
    await until(() => host.holder.bindings.size > 0);
    assert.equal([...host.holder.bindings.keys()].sort(), ["tcp/0.0.0.0/8080", "tcp/::/8080"]);
  } finally {
    await host.core.stop();
  }
});

test("a port that somebody holds is refused, an ephemeral one is picked anew", async ({ host }) => {
  await seed(host);
  host.holder.taken.add("tcp/0.0.0.0/9000");
  assert.is(
    await code(host.core.ports.create({ endpoint: "web", hostPort: 9000, containerPort: 80 })),
    "port_in_use",
  );
  for (let free = 32768; free < 60999; free++)
    if (free !== 40000) host.holder.taken.add(`tcp/0.0.0.0/${free}`);
  const range = { endpoint: "web", hostPort: "39990-40000", containerPort: 80 } as const;
  const made = await host.core.ports.create(range);
  assert.is(made.bindings[0]?.hostPort, 40000);
});

test("a port the holder lost to another process is refused by name, or had again once it is free", async ({
  host,
}) => {
  await seed(host);
  host.holder.die();
  host.holder.isDead = false;
  host.holder.taken.add("tcp/0.0.0.0/8080");
  const narrowed = { from: ["192.0.2.0/24"] };
  assert.is(await code(host.core.ports.patch("p", narrowed)), "port_in_use");
  assert.is(host.holder.bindings.size, 0);
  host.holder.taken.clear();
  assert.is(await code(host.core.ports.patch("p", narrowed)), "done");
  assert.equal([...host.holder.bindings.keys()].sort(), ["tcp/0.0.0.0/8080", "tcp/::/8080"]);
});

test("apply puts a port on one address where it was on all, and back after a failure", async ({
  host,
}) => {
  const base = { owner: "o", networks: [network], endpoints: [web], prune: true };
  const all = { ...base, ports: [{ ...port, name: "all" }] };
  const one = { ...base, ports: [{ ...port, name: "one", hostAddress: "127.0.0.1" }] };
  await host.core.apply(all, { dryRun: false });
  const before = host.dump();
  process.env["NATBRIDGE_FAIL_AFTER"] = "commit";
  assert.match(await code(host.core.apply(one, { dryRun: false })), /stopped after/);
  assert.is(host.dump(), before);
  delete process.env["NATBRIDGE_FAIL_AFTER"];
  await host.core.apply(one, { dryRun: false });
  assert.equal([...host.holder.bindings.keys()], ["tcp/127.0.0.1/8080"]);
  await host.core.apply(all, { dryRun: false });
  assert.equal([...host.holder.bindings.keys()].sort(), ["tcp/0.0.0.0/8080", "tcp/::/8080"]);
});

test("a bridge that somebody made where its own was is not removed with the network", async ({
  host,
}) => {
  await host.core.networks.create({ name: "n", bridge: "br-lan" });
  await host.datapath.deleteLink("br-lan");
  host.datapath.addLink({ name: "br-lan", kind: "bridge" });
  await host.core.networks.remove("n", { force: false });
  assert.ok(host.datapath.links.has("br-lan"));
});

test("isolation follows what netfilter sees of bridged packets", async ({ host }) => {
  const { core, datapath } = host;
  const key = "net/bridge/bridge-nf-call-iptables";
  datapath.writeSysctl(key, "1");
  await core.networks.create({ name: "apart", isolated: true });
  await core.endpoints.create({ name: "e", network: "apart", netns: "web" });
  await core.upkeep.now();
  const isolated = () => datapath.isolatedPorts.size;
  assert.is(isolated(), 0);
  datapath.writeSysctl(key, "0");
  await core.upkeep.now();
  assert.is(isolated(), 1);
});

test("what was removed behind its back is made again, and told", async ({ host }) => {
  await seed(host);
  const { core, datapath, holder } = host;
  const before = host
    .dump()
    .replace(/"ifindex":\d+|"master":\d+|"peer":\d+|"events":\d+|\[\d+,\{/g, "");
  const endpoint = core.endpoints.get("web");
  await datapath.deleteLink(endpoint.hostInterface);
  await datapath.removeFirewall();
  datapath.writeSysctl("net/ipv4/ip_forward", "0");
  await holder.shutdown();
  await core.upkeep.now();
  const after = host
    .dump()
    .replace(/"ifindex":\d+|"master":\d+|"peer":\d+|"events":\d+|\[\d+,\{/g, "");
  assert.is(after, before);
  const told = core.events.since(0)?.filter(({ type }) => type === "reconcile.repaired") ?? [];
  for (const what of [/endpoint web/, /nftables/, /ip_forward/, /host ports reserved/])
    assert.ok(
      told.some(({ message }) => what.test(message)),
      `${what}`,
    );
  assert.is(core.upkeep.counts.repairs, told.length);
});

test("leftovers of its own go, devices of others stay", async ({ host }) => {
  host.datapath.addLink({ name: "nb-old", alias: "natbridge:network:0000" });
  host.datapath.addLink({ name: "nbfoe", alias: "somebody else's" });
  await host.core.upkeep.now();
  assert.not.ok(host.datapath.links.has("nb-old"));
  assert.ok(host.datapath.links.has("nbfoe"));
});

test("a sandbox that is gone is reported, kept, and deleted on demand", async ({ host }) => {
  await seed(host);
  const { core, datapath } = host;
  const endpoint = core.endpoints.get("web");
  datapath.sandboxes.delete("/run/netns/web");
  await datapath.deleteLink(endpoint.hostInterface);
  await core.upkeep.now();
  const [, present] = core.endpoints.get("web").status.conditions;
  assert.is(present?.status, "false");
  assert.ok(core.events.since(0)?.some(({ type }) => type === "sandbox.lost"));
  await core.endpoints.remove("web");
  assert.is(core.sandboxes.list().length, 0);
  assert.is(host.holder.bindings.size, 0);
});

test("a device that can't be removed is tried again", async ({ host }) => {
  await seed(host);
  const { core, datapath } = host;
  const { hostInterface } = core.endpoints.get("web");
  datapath.failNext("deleteLink", new DatapathError("io", "busy"));
  await core.endpoints.remove("web");
  assert.is(
    await code(Promise.resolve().then(() => core.endpoints.get("web"))),
    "endpoint_not_found",
  );
  assert.ok(datapath.links.has(hostInterface));
  await core.upkeep.now();
  assert.not.ok(datapath.links.has(hostInterface));
});

test("a restart knows every kind of published port", async ({ host }) => {
  await host.core.networks.create({ name: "n" });
  await host.core.endpoints.create({ name: "web", network: "n", netns: "web" });
  for (const [hostPort, containerPort] of [
    [0, 80],
    [8080, 81],
    ["8000-8002", 82],
    ["9000-9001", "90-91"],
  ] as const)
    await host.core.ports.create({ endpoint: "web", hostPort, containerPort });
  const before = await host.core.ports.list();
  const again = host.makeCore();
  await again.upkeep.begin();
  assert.equal(
    (await again.ports.list()).map(({ hostPort, bindings }) => [hostPort, bindings]),
    before.map(({ hostPort, bindings }) => [hostPort, bindings]),
  );
});

test("a restart adopts: nothing is made, mended or told", async ({ host }) => {
  await seed(host);
  const before = host.dump();
  const again = host.makeCore();
  await again.upkeep.begin();
  assert.is(host.dump(), before);
  assert.is(again.upkeep.counts.repairs, 0);
});

test("a port moves to another endpoint and number, whole", async ({ host }) => {
  await seed(host);
  await host.core.endpoints.create({ name: "db", network: "my_net", netns: "db" });
  const moved = await host.core.ports.patch("p", { endpoint: "db", hostPort: 8081 });
  assert.is(moved.endpoint, "db");
  const targets = [...host.holder.bindings.values()].map(({ key, targetAddress }) => [
    key,
    targetAddress,
  ]);
  const db = host.core.endpoints.get("db").addresses.map((address) => address.split("/")[0]);
  assert.equal(targets.sort(), [
    ["tcp/0.0.0.0/8081", db[0]],
    ["tcp/::/8081", db[1]],
  ]);
  const hostPorts = host.datapath.firewall?.ports.map(({ hostPort }) => hostPort);
  assert.equal([...new Set(hostPorts)], [8081]);
});

test("apply prunes only what its owner made", async ({ host }) => {
  await seed(host);
  const input = { owner: "o", networks: [{ name: "a" }, { name: "b" }] };
  await host.core.apply(input, { dryRun: false });
  const less = { owner: "o", networks: [{ name: "a" }], prune: true };
  const dry = await host.core.apply(less, { dryRun: true });
  assert.equal(dry.deleted.networks, ["b"]);
  assert.ok(host.core.networks.get("b"));
  const done = await host.core.apply(less, { dryRun: false });
  assert.equal([done.deleted.networks, done.unchanged.networks], [["b"], ["a"]]);
  assert.ok(host.core.networks.get("my_net"));
  const theirs = { owner: "p", networks: [{ name: "a" }] };
  assert.is(await code(host.core.apply(theirs, { dryRun: false })), "name_taken");
});

test("the highest priority gives the default route; an internal network never does", async ({
  host,
}) => {
  await seed(host);
  const route = () => {
    const ipv4 = host.datapath.sandboxes.get("/run/netns/web")?.routes.ipv4;
    const over = host.core.state.endpoint
      .values()
      .find(({ hostInterface }) => hostInterface === ipv4?.hostInterface);
    return [ipv4?.gateway, over?.interface];
  };
  assert.equal(route(), ["172.32.0.1", "eth0"]);
  await host.core.networks.create({ name: "a_net", subnets: [{ subnet: "10.2.0.0/24" }] });
  await host.core.networks.create({ name: "inside", internal: true });
  const second = { name: "second", network: "a_net", netns: "web", defaultRoutePriority: 5 };
  assert.is((await host.core.endpoints.create(second)).interface, "eth1");
  assert.equal(route(), ["10.2.0.1", "eth1"]);
  const inside = { name: "third", network: "inside", netns: "web", defaultRoutePriority: 9 };
  await host.core.endpoints.create(inside);
  assert.equal(route(), ["10.2.0.1", "eth1"]);
  await host.core.endpoints.remove("second");
  assert.equal(route(), ["172.32.0.1", "eth0"]);
});

test("what hinders the fast path switches it off there, and is told", async ({ host }) => {
  await seed(host);
  const { core, datapath } = host;
  datapath.xfrmPolicies = 1;
  await core.upkeep.now();
  const fast = [...datapath.devices.values()].map(({ fastPath }) => fastPath);
  assert.equal([...new Set(fast)], [false]);
  assert.match(JSON.stringify((await core.datapathStatus()).off), /IPsec/);
  assert.is((await core.datapathStatus()).mode, "kernel");
  datapath.xfrmPolicies = 0;
  await core.networks.patch("my_net", { fastPath: "off" });
  await core.upkeep.now();
  const ifindex = core.endpoints.get("web").ifindex;
  assert.is(datapath.devices.get(ifindex)?.fastPath, false);
  const uplink = datapath.links.get("eth0")?.ifindex ?? 0;
  assert.is(datapath.devices.get(uplink)?.fastPath, true);
  assert.ok(core.events.since(0)?.some(({ type }) => type === "datapath.degraded"));
});

test.run();
