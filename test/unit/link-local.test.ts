/** What the programs are told of link-local addresses. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { isLinkLocal, linkLocalOf } from "../../src/network/addresses.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite("link-local addresses");

test("one follows from a MAC as the kernel makes it", () => {
  assert.is(linkLocalOf("02:42:ac:20:00:0a"), "fe80::42:acff:fe20:a");
  assert.is(linkLocalOf("fe:ff:ff:ff:ff:ff"), "fe80::fcff:ffff:feff:ffff");
});

test("their range is fe80::/10", () => {
  for (const text of ["fe80::1", "febf::1"]) assert.ok(isLinkLocal(text), text);
  for (const text of ["fec0::1", "fd00::1", "fe7f::1", "169.254.0.1", "x"])
    assert.not.ok(isLinkLocal(text), text);
});

test("a bridge's are reserved for it, before and after it has them", async () => {
  const { core, datapath } = await new CoreHost().start();
  await core.networks.create({ name: "my_net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await core.endpoints.create({ name: "web", network: "my_net", netns: "web" });
  const bridge = datapath.links.get(core.networks.get("my_net").bridge ?? "");
  if (!bridge) throw new Error("there is no bridge");
  const device = () => [...datapath.devices.values()].find(({ role }) => role === "endpoint");
  assert.equal(device()?.reserved, [linkLocalOf(bridge.mac)]);
  assert.is(device()?.link, bridge.ifindex);
  bridge.addresses.push("fe80::1/64", `${linkLocalOf(bridge.mac)}/64`);
  await core.upkeep.now();
  assert.equal(device()?.reserved, [linkLocalOf(bridge.mac), "fe80::1"]);
});

test.run();
