/** A namespace made anew at a sandbox's path is the same wish. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { SandboxWatch } from "../../src/network/sandbox-upkeep.ts";
import { ProblemError } from "../../src/problem.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("sandboxes made anew");
const path = "/run/netns/web";
const network = { name: "net", subnets: [{ subnet: "172.32.0.0/24" }] };
const web = { name: "web", network: "net", netns: "web", addresses: ["172.32.0.10"] };
const input = { owner: "o", networks: [network], endpoints: [web] };

test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  await host.core.apply(input, { dryRun: false });
});

async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    return `${error.code} ${error.errors.map(({ pointer }) => pointer).join()}: ${error.message}`;
  }
}

/** The namespace at a path goes, with the host ends of its endpoints, and another is there. */
async function makeAnew({ core, datapath }: CoreHost, at = path) {
  const sandbox = core.state.sandbox.values().find(({ netns }) => netns === at);
  for (const { hostInterface } of core.state.endpoint.of(sandbox?.id ?? ""))
    await datapath.deleteLink(hostInterface);
  datapath.sandboxes.delete(at);
  return datapath.addSandbox(at);
}

function isWhole({ core, datapath }: CoreHost): void {
  const { hostInterface, addresses } = core.endpoints.get("web");
  const link = datapath.links.get(hostInterface);
  const sandbox = datapath.sandboxes.get(path);
  const end = sandbox?.interfaces.find(({ peer }) => peer === link?.ifindex);
  assert.equal([end?.name, end?.addresses], ["eth0", addresses]);
  assert.equal(sandbox?.routes.ipv4, { gateway: "172.32.0.1", hostInterface });
  assert.equal([core.sandboxes.get("web").key, core.sandboxes.list().length], [sandbox?.key, 1]);
  assert.is(core.sandboxes.get("web").status.conditions[0]?.status, "true");
}

test("unchanged is what is there; apply and PUT mend the rest, and say so", async ({ host }) => {
  const { core, datapath } = host;
  const apply = async (dryRun = false) => {
    const { created, updated, deleted, unchanged } = await core.apply(input, { dryRun });
    assert.equal([created.endpoints, deleted.endpoints], [[], []]);
    return { updated: updated.endpoints, unchanged: unchanged.endpoints };
  };
  assert.equal(await apply(), { updated: [], unchanged: ["web"] });
  await makeAnew(host);
  assert.equal(await apply(true), { updated: ["web"], unchanged: [] });
  assert.equal(await apply(), { updated: ["web"], unchanged: [] });
  isWhole(host);
  assert.equal(await apply(), { updated: [], unchanged: ["web"] });

  await makeAnew(host);
  const put = await core.endpoints.put(web);
  assert.is(put.created, false);
  isWhole(host);

  const damages: (() => unknown)[] = [
    () => datapath.deleteLink(core.endpoints.get("web").hostInterface),
    () => datapath.links.delete(core.endpoints.get("web").hostInterface),
    () => datapath.setDefaultRoutes(path, { ipv4: null, ipv6: null }),
    () =>
      Object.assign(datapath.links.get(core.endpoints.get("web").hostInterface) ?? {}, {
        up: false,
      }),
  ];
  for (const damage of damages) {
    await damage();
    assert.equal(await apply(), { updated: ["web"], unchanged: [] }, String(damage));
    isWhole(host);
    assert.equal(await apply(), { updated: [], unchanged: ["web"] }, String(damage));
  }
  const bridge = core.networks.get("net").bridge ?? "";
  await datapath.deleteLink(bridge);
  const mended = await core.apply(input, { dryRun: false });
  assert.equal(mended.updated.networks, ["net"]);
  assert.ok(datapath.links.has(bridge));
});

test("reconciling brings it back, whether it was seen to be gone or not", async ({ host }) => {
  const { core, datapath } = host;
  await makeAnew(host);
  await core.upkeep.now();
  isWhole(host);
  await datapath.deleteLink(core.endpoints.get("web").hostInterface);
  datapath.sandboxes.delete(path);
  await core.upkeep.now();
  const [lost] = core.sandboxes.get("web").status.conditions;
  assert.equal([lost?.status, lost?.reason], ["false", "SandboxLost"]);
  assert.match(lost?.message ?? "", /come back with the next one at \/run\/netns\/web/);
  datapath.addSandbox(path);
  await core.upkeep.now();
  isWhole(host);
  const types = core.events.since(0)?.map(({ type, object }) => `${type} ${object?.kind}`) ?? [];
  assert.ok(types.includes("sandbox.lost sandbox"));
  assert.ok(types.includes("reconcile.repaired sandbox"));
  assert.ok(types.includes("reconcile.repaired endpoint"));
  // The same again after a restart.
  await makeAnew(host);
  host.core = host.makeCore();
  await host.core.upkeep.begin();
  isWhole(host);
});

test("an old namespace that lives on without its path is left", async ({ host }) => {
  const { core, datapath } = host;
  const old = datapath.sandboxes.get(path);
  datapath.sandboxes.delete(path);
  datapath.addSandbox(path);
  await core.upkeep.now();
  isWhole(host);
  assert.equal(old?.interfaces, []);
});

test("a new endpoint by its name or path joins it, and the old ones come along", async ({
  host,
}) => {
  const { core } = host;
  await core.networks.create({ name: "second" });
  await makeAnew(host);
  const made = await core.endpoints.create({ name: "e", network: "second", sandbox: "web" });
  assert.equal([made.sandbox, made.interface], ["web", "eth1"]);
  isWhole(host);
  await core.endpoints.remove("e");
  await makeAnew(host);
  const again = await core.endpoints.create({ name: "e", network: "second", netns: "web" });
  assert.is(again.sandbox, "web");
  isWhole(host);
});

test("the namespace of another sandbox, or the host's, is none for it", async ({ host }) => {
  const { core, datapath } = host;
  await core.endpoints.create({ name: "db", network: "net", netns: "db" });
  const db = datapath.sandboxes.get("/run/netns/db");
  assert.ok(db);
  await datapath.deleteLink(core.endpoints.get("web").hostInterface);
  datapath.sandboxes.set(path, db);
  assert.match(await refusal(core.endpoints.put(web)), /^sandbox_invalid .*sandbox db by now/);
  await core.upkeep.now();
  const [lost] = core.sandboxes.get("web").status.conditions;
  assert.match(lost?.message ?? "", /sandbox db by now/);
  assert.is(db.interfaces.length, 1);
  datapath.sandboxes.delete(path);
  datapath.addSandbox(path).isHost = true;
  assert.match(await refusal(core.endpoints.put(web)), /^sandbox_invalid .*host's own/);
  await core.upkeep.now();
  assert.match(core.sandboxes.get("web").status.conditions[0]?.message ?? "", /host's own/);
});

test("a sandbox by process is gone for good, whoever gets its number", async ({ host }) => {
  const { core, datapath } = host;
  const byPid = { name: "p", network: "net", pid: 77 };
  await core.endpoints.create(byPid);
  const other = await makeAnew(host, "/proc/77/ns/net");
  await core.upkeep.now();
  const [lost] = core.sandboxes.get("pid-77").status.conditions;
  assert.match(lost?.message ?? "", /another process's by now/);
  assert.match(await refusal(core.endpoints.put(byPid)), /^immutable_field \/sandbox/);
  assert.equal(other.interfaces, []);
  // Nor by a link that leads there.
  await makeAnew(host);
  const linked = datapath.sandboxes.get(path);
  assert.ok(linked);
  linked.ofProcess = true;
  await core.upkeep.now();
  assert.equal(linked.interfaces, []);
});

test("a record of before keys had cookies is not taken for another", async ({ host }) => {
  const { core, datapath } = host;
  const sandbox = core.state.sandbox.named("web");
  assert.ok(sandbox);
  const key = sandbox.key.split(":").slice(0, 2).join(":");
  core.state.sandbox.put({ ...sandbox, key });
  await core.upkeep.now();
  assert.is(core.upkeep.counts.repairs, 0);
  assert.is(core.sandboxes.get("web").key, datapath.sandboxes.get(path)?.key);
});

test("the watch tells once of what no record says", async ({ host: { core, datapath } }) => {
  const watch = new SandboxWatch();
  const look = () => watch.look(datapath, core.state.sandbox.values());
  assert.is(await look(), false);
  datapath.sandboxes.delete(path);
  assert.equal([await look(), await look()], [true, false]);
  datapath.addSandbox(path);
  assert.equal([await look(), await look()], [true, false]);
  await core.upkeep.now();
  assert.is(await look(), false);
});

test.run();
