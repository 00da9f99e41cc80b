/** The judge of the host's rules: what it stands for, and when it does not. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("judge");

test.before.each(async (context) => {
  context.host = await new CoreHost().start();
});
test.after.each(async ({ host }) => {
  await host.core.stop();
});

const meter = JSON.stringify({
  nftables: [
    { table: { family: "ip", name: "t", handle: 1 } },
    {
      chain: {
        family: "ip",
        table: "t",
        name: "c",
        handle: 1,
        type: "filter",
        hook: "forward",
        prio: 0,
        policy: "accept",
      },
    },
    {
      rule: {
        family: "ip",
        table: "t",
        chain: "c",
        handle: 2,
        expr: [{ limit: { rate: 100, burst: 5, per: "second" } }, { accept: null }],
      },
    },
  ],
});

const mode = async ({ core }: CoreHost): Promise<string> => (await core.datapathStatus()).mode;
const reasons = async ({ core }: CoreHost): Promise<string> =>
  (await core.datapathStatus()).off.map(({ reason }) => reason).join("\n");

async function until(what: string, isSo: () => boolean): Promise<void> {
  for (let wait = 0; wait < 500 && !isSo(); wait++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  assert.ok(isSo(), what);
}

test("after a change of rules status says so until they are judged", async ({ host }) => {
  assert.is(await mode(host), "fast");
  host.datapath.changeRules();
  assert.is(await mode(host), "kernel");
  assert.match(await reasons(host), /until they are judged/);
  await host.core.judge.now();
  assert.is(await mode(host), "fast");
  assert.is(await reasons(host), "");
});

test("it waits for no change that is under way", async ({ host }) => {
  host.core.upkeep.watch();
  let end = (): void => undefined;
  const change = host.core.exclusive(() => new Promise<void>((resolve) => (end = resolve)));
  host.datapath.foreign = { nft: meter, legacy: "" };
  host.datapath.announce("ruleset");
  await until("no verdict while a change is under way", () => host.datapath.verdictStands());
  assert.ok([...host.datapath.devices.values()].every(({ fastPath }) => !fastPath));
  end();
  await change;
});

test("rules that change while they are read are read again before anything is vouched for", async ({
  host,
}) => {
  const { datapath, core } = host;
  const read = datapath.readForeignRuleset.bind(datapath);
  let readings = 0;
  datapath.readForeignRuleset = async () => {
    const found = await read();
    // Behind its back: what it has read has no meter yet.
    if (++readings === 1) datapath.foreign = { nft: meter, legacy: "" };
    return found;
  };
  core.upkeep.watch();
  datapath.changeRules();
  datapath.announce("ruleset");
  await until("they were not judged again", () => datapath.verdictStands());
  assert.ok(readings >= 2, `${readings} readings`);
  assert.ok([...datapath.devices.values()].every(({ fastPath }) => !fastPath));
});

test("rules that can't be read are stood for by nobody, until they can", async ({ host }) => {
  const { datapath, core } = host;
  let renewals = 0;
  datapath.renewVerdict = () => {
    renewals += 1;
    return datapath.verdictStands();
  };
  datapath.changeRules();
  datapath.failNext("readForeignRuleset", new DatapathError("io", "no nft"));
  await core.judge.now();
  assert.not.ok(datapath.verdictStands());
  assert.is(await mode(host), "kernel");
  assert.match(await reasons(host), /can't be judged: no nft/);
  assert.ok(core.events.since(0)?.some(({ message }) => /no nft/.test(message)));
  assert.is(renewals, 0);
  core.upkeep.watch();
  await until("it is not tried again", () => datapath.verdictStands());
  assert.is(await mode(host), "fast");
  await until("nobody stands for the verdict", () => renewals > 1);
});

test("a burst of changes without consequence is no event", async ({ host }) => {
  const { datapath, core } = host;
  const before = core.events.since(0)?.length;
  for (let change = 0; change < 5; change++) {
    datapath.changeRules();
    await core.judge.now();
  }
  assert.is(core.events.since(0)?.length, before);
});

test("what a network asks for is so when it is answered", async ({ host }) => {
  const { datapath, core } = host;
  await core.networks.create({ name: "n", subnets: [{ subnet: "172.32.0.0/24" }] });
  await core.networks.patch("n", { fastPath: "off" });
  await core.endpoints.create({ name: "web", network: "n", netns: "web" });
  const { ifindex } = core.endpoints.get("web");
  assert.is(datapath.devices.get(ifindex)?.fastPath, false);
  await core.networks.patch("n", { fastPath: "auto" });
  assert.is(datapath.devices.get(ifindex)?.fastPath, true);
  await core.networks.patch("n", { fastPath: "off" });
  assert.is(datapath.devices.get(ifindex)?.fastPath, false);
});

test("switching off takes the connect hook along before it is answered", async ({ host }) => {
  assert.is(host.datapath.connectHook, true);
  await host.core.setFastPath(false);
  assert.is(host.datapath.connectHook, false);
  await host.core.setFastPath(true);
  assert.is(host.datapath.connectHook, true);
});

test.run();
