/** Whose forwarding goes on where natbridge turned some of it on. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { addresses, Topology } from "./topology.ts";

const test = suite("forwarding of others");
let topology: Topology;

const reaches = (family: "ipv4" | "ipv6"): boolean =>
  topology.run("client", `ping -c 1 -W 1 ${addresses.other[family]}`).code === 0;

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  topology.must("host", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=0");
  const { client, other, host, hostOnSecondUplink } = addresses;
  topology.must("client", `ip route add ${other.ipv4} via ${host.ipv4}`);
  topology.must("client", `ip route add ${other.ipv6} via ${host.ipv6}`);
  topology.must("other", `ip route add ${client.ipv4} via ${hostOnSecondUplink.ipv4}`);
  topology.must("other", `ip route add ${client.ipv6} via ${hostOnSecondUplink.ipv6}`);
  await topology.startDaemon();
  await topology.ok("POST", "/v1/networks", {
    name: "both",
    subnets: [{ subnet: "172.32.0.0/24" }, { subnet: "fd32::/64" }],
  });
});

test("a host that routed IPv4 goes on when natbridge turns IPv6 on", () => {
  assert.is(topology.must("host", "sysctl -n net.ipv6.conf.all.forwarding").trim(), "1");
  assert.ok(reaches("ipv4"), "the host's own routing is cut off");
});

test("IPv6 between two uplinks is not routed because natbridge turned it on", () => {
  assert.not.ok(reaches("ipv6"));
});

test("one that routed nothing routes nothing", async () => {
  await topology.remove();
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  topology.must("host", "sysctl -qw net.ipv4.ip_forward=0");
  topology.must("client", `ip route add ${addresses.other.ipv4} via ${addresses.host.ipv4}`);
  topology.must(
    "other",
    `ip route add ${addresses.client.ipv4} via ${addresses.hostOnSecondUplink.ipv4}`,
  );
  await topology.startDaemon();
  assert.is(topology.must("host", "sysctl -n net.ipv4.ip_forward").trim(), "1");
  assert.not.ok(reaches("ipv4"));
});

test.after(async () => {
  await topology?.remove();
});
test.run();
