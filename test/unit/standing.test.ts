/** Which of the host's own connections to published ports a change ends. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("connections of the host");
test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  const { networks, endpoints, ports } = host.core;
  await networks.create({ name: "net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await endpoints.create({ name: "web", network: "net", netns: "web" });
  await endpoints.create({ name: "db", network: "net", netns: "db" });
  await ports.create({ name: "p", endpoint: "web", hostPort: 8080, containerPort: 80 });
  await ports.create({ name: "q", endpoint: "db", hostPort: 8081, containerPort: 80 });
  connect(host, "p");
  connect(host, "q");
});

/** A process of the host connects to a port, through the hook as it is told of ports now. */
function connect({ datapath, core }: CoreHost, name: string): void {
  const id = core.state.port.named(name)?.id;
  const entry = datapath.ports.find(({ portId }) => portId === id);
  assert.ok(entry, `the hook does not know ${name}`);
  datapath.connections.push({ portId: entry.portId, endpointId: entry.endpointId });
}

/** Names of the ports whose connections are open, by the ids they had at first. */
function open(host: CoreHost, names: Map<string, string>): string[] {
  return host.datapath.connections.map(({ portId }) => names.get(portId) ?? "?").sort();
}

const namesOf = ({ core }: CoreHost): Map<string, string> =>
  new Map(core.state.port.values().map(({ id, name }) => [id, name]));

test("those of a port that is removed, and no others", async ({ host }) => {
  const names = namesOf(host);
  await host.core.ports.remove("p");
  assert.equal(open(host, names), ["q"]);
});

test("none of a port that moves, until its old endpoint is gone", async ({ host }) => {
  const names = namesOf(host);
  for (const patch of [{ hostPort: 8090 }, { endpoint: "db" }]) {
    await host.core.ports.patch("p", patch);
    assert.equal(open(host, names), ["p", "q"], JSON.stringify(patch));
  }
  connect(host, "p");
  await host.core.endpoints.remove("web");
  assert.equal(open(host, names), ["p", "q"], "the one to the new endpoint");
});

test("those of a port that is there again under the same name and number", async ({ host }) => {
  const names = namesOf(host);
  await host.core.ports.remove("p");
  await host.core.ports.create({
    name: "p",
    endpoint: "web",
    hostPort: 8080,
    containerPort: 80,
  });
  connect(host, "q");
  assert.equal(open(host, names), ["q", "q"]);
});

test("those to an endpoint whose address another one gets in the same change", async ({ host }) => {
  const wanted = (name: string) => ({
    owner: "test",
    prune: true,
    endpoints: [{ name, network: "net", netns: "x" }],
    ports: [{ name: "moving", endpoint: name, hostPort: 8085, containerPort: 80 }],
  });
  await host.core.apply(wanted("v1"), { dryRun: false });
  const names = namesOf(host);
  connect(host, "moving");
  await host.core.apply(wanted("v2"), { dryRun: false });
  assert.equal(open(host, names), ["p", "q"]);
});

test("those of a network that is removed by force", async ({ host }) => {
  await host.core.networks.remove("net", { force: true });
  assert.equal(open(host, new Map()), []);
});

test("by the next daemon, if this one dies before it could", async ({ host }) => {
  const names = namesOf(host);
  host.datapath.failNext("settleSockets", new DatapathError("io", "killed"));
  await host.core.ports.remove("p");
  assert.equal(open(host, names), ["p", "q"]);
  await host.core.stop();
  host.core = host.makeCore();
  await host.core.upkeep.begin();
  assert.equal(open(host, names), ["q"]);
});

test("those that a change has let in which failed", async ({ host }) => {
  const names = namesOf(host);
  const { datapath } = host;
  const commit = host.store.commit.bind(host.store);
  host.store.commit = () => {
    const entry = datapath.ports.find(({ hostPort }) => hostPort === 8099);
    assert.ok(entry);
    datapath.connections.push({ portId: entry.portId, endpointId: entry.endpointId });
    throw new Error("disk full");
  };
  let failed = false;
  await host.core.ports
    .create({ name: "new", endpoint: "web", hostPort: 8099, containerPort: 80 })
    .catch(() => {
      failed = true;
    });
  host.store.commit = commit;
  assert.ok(failed);
  assert.equal(open(host, names), ["p", "q"]);
});

test("those to a sandbox that is gone with its device, not to one that lost its name", async ({
  host,
}) => {
  const names = namesOf(host);
  const { datapath, core } = host;
  datapath.sandboxes.delete("/run/netns/web");
  await core.upkeep.now();
  assert.equal(open(host, names), ["p", "q"]);
  const device = core.state.endpoint.named("web")?.hostInterface ?? "";
  await datapath.deleteLink(device);
  await core.upkeep.now();
  assert.equal(open(host, names), ["q"]);
});

test("a kernel that can't end them has no connect hook, and says why", async ({ host }) => {
  await host.core.upkeep.now();
  assert.is(host.datapath.connectHook, true);
  host.core = host.makeCore({ connectHookHindrance: "no SOCK_DESTROY" });
  await host.core.upkeep.begin();
  assert.is(host.datapath.connectHook, false);
  const { off } = await host.core.datapathStatus();
  assert.equal(off, [{ where: "loopback", reason: "no SOCK_DESTROY", rule: null }]);
});

test.run();
