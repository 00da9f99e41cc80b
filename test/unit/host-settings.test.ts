/** Router advertisements go on being heard, whenever an uplink appears. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("host settings");
const forwarding = "net/ipv6/conf/all/forwarding";
const advertisements = (name: string) => `net/ipv6/conf/${name}/accept_ra`;

test.before.each(async (context) => {
  context.host = await new CoreHost().start();
  context.host.datapath.sysctls.set(advertisements("eth0"), "1");
});

test("an uplink that appears after forwarding was turned on keeps them too", async ({ host }) => {
  const { core, datapath } = host;
  await core.networks.create({ name: "six", ipv6: true });
  assert.is(datapath.sysctls.get(forwarding), "1");
  assert.is(datapath.sysctls.get(advertisements("eth0")), "2");
  datapath.addLink({ name: "eth1", kind: "", addresses: ["2001:db8::1/64"] });
  datapath.sysctls.set(advertisements("eth1"), "1");
  core.settings.followUplinks(["eth0", "eth1"]);
  core.settings.apply(core.state);
  assert.is(datapath.sysctls.get(advertisements("eth1")), "2");
  assert.equal(core.settings.restore(), []);
  assert.is(datapath.sysctls.get(advertisements("eth1")), "1");
});

test("a host that forwarded before decides for itself", async ({ host }) => {
  const { core, datapath } = host;
  datapath.sysctls.set(forwarding, "1");
  await core.networks.create({ name: "six", ipv6: true });
  assert.is(datapath.sysctls.get(advertisements("eth0")), "1");
});

test("what an earlier version set for all connections is put back", async ({ host }) => {
  const { core, datapath } = host;
  const key = "net/netfilter/nf_conntrack_tcp_be_liberal";
  core.options.store.recordHostSetting({ key, before: "0", value: "1" });
  datapath.sysctls.set(key, "1");
  core.settings.apply(core.state);
  assert.is(datapath.sysctls.get(key), "0");
  assert.not.ok(core.settings.list().some((setting) => setting.key === key));
  // The operator's own stays.
  datapath.sysctls.set(key, "1");
  core.settings.apply(core.state);
  assert.is(datapath.sysctls.get(key), "1");
});

test.run();
