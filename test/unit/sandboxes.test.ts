/** A sandbox is what is at its path, also when that is made anew; a process number does not stand for it. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ProblemError } from "../../src/problem.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("sandboxes");
test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  await host.core.networks.create({ name: "net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await host.core.networks.create({ name: "second" });
  await host.core.endpoints.create({ name: "web", network: "net", netns: "web" });
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

test("one namespace by two paths is one sandbox", async ({ host: { core, datapath } }) => {
  const sandbox = datapath.sandboxes.get("/run/netns/web");
  assert.ok(sandbox);
  datapath.sandboxes.set("/proc/99/ns/net", sandbox);
  const made = await core.endpoints.create({ name: "e", network: "second", pid: 99 });
  assert.equal([made.sandbox, made.interface], ["web", "eth1"]);
  assert.is(core.sandboxes.get("web").netns, "/run/netns/web");
});

test("a path that leads there no more is replaced by one that does", async ({ host }) => {
  const { core, datapath } = host;
  const sandbox = datapath.sandboxes.get("/run/netns/web");
  assert.ok(sandbox);
  datapath.sandboxes.set("/proc/99/ns/net", sandbox);
  datapath.sandboxes.delete("/run/netns/web");
  const made = await core.endpoints.create({ name: "e", network: "second", pid: 99 });
  assert.is(made.sandbox, "web");
  assert.is(core.sandboxes.get("web").netns, "/proc/99/ns/net");
  assert.is(host.store.loadState().sandbox.named("web")?.netns, "/proc/99/ns/net");
  await core.upkeep.now();
  assert.is(core.sandboxes.get("web").status.conditions[0]?.status, "true");
});

test("a process number that was given again in between is refused", async ({ host }) => {
  const { core, datapath } = host;
  const resolve = datapath.resolvePid.bind(datapath);
  datapath.resolvePid = async (pid) => {
    const resolved = await resolve(pid);
    datapath.addSandbox(resolved.path);
    return resolved;
  };
  const before = host.store.loadState().endpoint.size;
  const told = await refusal(core.endpoints.create({ name: "e", network: "second", pid: 77 }));
  assert.match(told, /^sandbox_invalid \/pid/);
  assert.is(host.store.loadState().endpoint.size, before);
});

test("the host's own namespace is refused", async ({ host: { core, datapath } }) => {
  datapath.addSandbox("/run/netns/init").isHost = true;
  const told = await refusal(core.endpoints.create({ name: "e", network: "net", netns: "init" }));
  assert.match(told, /^sandbox_invalid \/netns: .*host's own/);
});

test("a sandbox goes with its last endpoint, and not before", async ({ host: { core } }) => {
  await core.endpoints.create({ name: "e", network: "second", sandbox: "web" });
  await core.endpoints.remove("web");
  assert.equal(
    core.sandboxes.get("web").endpoints.map(({ name }) => name),
    ["e"],
  );
  await core.endpoints.remove("e");
  assert.is(core.sandboxes.list().length, 0);
});

test.run();
