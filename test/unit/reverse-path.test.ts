/** The reverse path filter of bridges: loose where a sandbox has several, and only there. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { checkReversePath } from "../../src/cli/doctor-reverse-path.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("reverse path filter");
const key = (name: string) => `net/ipv4/conf/${name}/rp_filter`;
const bridges = ["br-a", "br-b", "br-c"];

test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  for (const bridge of bridges) {
    await host.core.networks.create({ name: bridge, bridge });
    host.datapath.sysctls.set(key(bridge), "0");
  }
  host.datapath.sysctls.set(key("all"), "1");
  await host.core.endpoints.create({ name: "a", network: "br-a", netns: "web" });
  await host.core.endpoints.create({ name: "c", network: "br-c", netns: "db" });
});

const values = ({ datapath }: CoreHost) => bridges.map((name) => datapath.sysctls.get(key(name)));

test("loose while a sandbox has several networks, and then as before", async ({ host }) => {
  const { core } = host;
  assert.equal(values(host), ["0", "0", "0"]);
  await core.endpoints.create({ name: "b", network: "br-b", netns: "web" });
  assert.equal(values(host), ["2", "2", "0"]);
  await core.endpoints.remove("b");
  assert.equal(values(host), ["0", "0", "0"]);
  await core.endpoints.create({ name: "b", network: "br-b", netns: "web" });
  assert.equal(core.settings.restore(), []);
  assert.equal(values(host), ["0", "0", "0"]);
});

test("a host that is not strict is left alone; one that becomes so is followed", async ({
  host,
}) => {
  const { core, datapath } = host;
  datapath.sysctls.set(key("all"), "0");
  datapath.sysctls.set(key("br-b"), "1");
  await core.endpoints.create({ name: "b", network: "br-b", netns: "web" });
  assert.equal(values(host), ["0", "2", "0"]);
  datapath.sysctls.set(key("all"), "1");
  await core.upkeep.now();
  assert.equal(values(host), ["2", "2", "0"]);
});

test("doctor tells of strict devices and of rules that do the same", async ({
  host: { datapath },
}) => {
  const told = async () =>
    (await checkReversePath(datapath)).map(({ message }) => message).join("\n");
  const rule = (family: string, expr: unknown[]) => [
    { chain: { family, table: "t", name: "c", type: "filter", hook: "prerouting", prio: -300 } },
    { rule: { family, table: "t", chain: "c", expr } },
  ];
  const fib = { fib: { result: "oif", flags: ["saddr", "mark", "iif"] } };
  datapath.foreign.nft = JSON.stringify({
    nftables: [
      ...rule("inet", [{ match: { op: "==", left: fib, right: false } }, { drop: null }]),
      ...rule("ip", [{ xt: { type: "match", name: "rpfilter" } }, { drop: null }]),
      ...rule("ip6", [
        {
          match: { op: "==", left: { fib: { result: "type", flags: ["daddr"] } }, right: "local" },
        },
      ]),
    ],
  });
  const messages = await told();
  assert.match(messages, /strict\) on .*br-a/);
  assert.match(messages, /strict\) on eth0/);
  assert.match(messages, /inet t c: /);
  assert.match(messages, /ip t c: .*rpfilter/);
  assert.not.match(messages, /ip6 t c/);
  datapath.sysctls.set(key("all"), "0");
  datapath.foreign.nft = '{"nftables":[]}';
  assert.is(await told(), "");
});

test.run();
