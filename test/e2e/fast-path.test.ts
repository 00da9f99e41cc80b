/** The fast path carries bulk flows, and nothing is learned when it is off. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import { setUp } from "./scenarios.ts";
import { addresses, sleep, Topology } from "./topology.ts";

const test = suite("fast path");
let topology: Topology;

const cache = async (): Promise<DatapathStatus["cache"]> =>
  (await topology.ok<DatapathStatus>("GET", "/v1/datapath")).cache;

/** Packets by path while `work` runs. */
async function during(work: () => Promise<unknown>): Promise<{ fast: number; share: number }> {
  const before = await cache();
  await work();
  const after = await cache();
  const fast = after.fastPackets - before.fastPackets;
  const kernel = after.kernelPackets - before.kernelPackets;
  return { fast, share: fast / (fast + kernel) };
}

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  await topology.startDaemon();
  await setUp(topology);
});

for (const family of ["ipv4", "ipv6"] as const) {
  test(`carries at least 95 % of a published port's bulk flow (${family})`, async () => {
    const { share } = await during(async () => {
      const answer = await topology.stream("client", addresses.host[family], 8080, 2);
      assert.ok(answer.ok, answer.error);
    });
    assert.ok(share >= 0.95, `${(share * 100).toFixed(1)} % were fast`);
  });
  test(`carries at least 95 % of a masqueraded bulk flow (${family})`, async () => {
    const { share } = await during(async () => {
      const answer = await topology.stream("web", addresses.client[family], 7000, 2);
      assert.ok(answer.ok, answer.error);
    });
    assert.ok(share >= 0.95, `${(share * 100).toFixed(1)} % were fast`);
  });
}

test("conntrack shows a fast connection as established", async () => {
  const stream = topology.stream("client", addresses.host.ipv4, 8080, 2);
  await sleep(1200);
  const listing = topology.must("host", "conntrack -L -p tcp 2>/dev/null | grep dport=8080");
  assert.match(listing, /ESTABLISHED src=198\.51\.100\.2 dst=198\.51\.100\.1 /);
  assert.match(listing, /ASSURED/);
  const connections = await topology.ok<{ items: { path: string; port: string | null }[] }>(
    "GET",
    "/v1/connections?port=web-tcp&state=ESTABLISHED",
  );
  assert.ok(
    connections.items.some(({ path }) => path === "fast"),
    JSON.stringify(connections.items),
  );
  assert.ok((await stream).ok);
});

test("switched off live, no packet is fast; switched on, they are again; nothing is lost", async () => {
  const stream = topology.stream("client", addresses.host.ipv4, 8080, 6);
  await sleep(500);
  for (let round = 0; round < 10; round++) {
    await topology.ok("PATCH", "/v1/datapath", { fastPath: false });
    const { fast } = await during(() => sleep(150));
    assert.is(fast, 0, `round ${round}`);
    await topology.ok("PATCH", "/v1/datapath", { fastPath: true });
    const { share } = await during(() => sleep(200));
    assert.ok(share > 0.5, `round ${round}: ${share}`);
  }
  const answer = await stream;
  assert.ok(answer.ok, answer.error);
});

test("switched off without the daemon", async () => {
  await topology.killDaemon();
  const off = topology.cli("datapath off");
  assert.is(off.code, 0, off.stderr);
  const answer = await topology.stream("client", addresses.host.ipv4, 8080, 1);
  assert.ok(answer.ok, answer.error);
  await topology.startDaemon();
  await topology.ok("PATCH", "/v1/datapath", { fastPath: true });
});

const dropRules = {
  nft: {
    add: "nft 'add table ip guard; add chain ip guard f { type filter hook forward priority 0; }; add rule ip guard f ip saddr 198.51.100.2 drop; add rule ip guard f ip daddr 198.51.100.2 drop'",
    remove: "nft delete table ip guard",
  },
  "iptables-nft": {
    add: "iptables-nft -I FORWARD -s 198.51.100.2 -j DROP",
    remove: "iptables-nft -D FORWARD -s 198.51.100.2 -j DROP",
  },
  "iptables-legacy": {
    add: "iptables-legacy -I FORWARD -s 198.51.100.2 -j DROP",
    remove: "iptables-legacy -D FORWARD -s 198.51.100.2 -j DROP; iptables-legacy -t filter -F",
  },
};

for (const [tool, { add, remove }] of Object.entries(dropRules)) {
  test(`a DROP added by ${tool} in mid-transfer stops it within a second`, async () => {
    const stream = topology.stream("client", addresses.host.ipv4, 8080, 4);
    await sleep(800);
    topology.must("host", add);
    await sleep(1000);
    // Of TCP alone: the kernel looks for its neighbours whenever it likes.
    const segments = (): number =>
      Number(
        topology.must(
          "web",
          "awk '/^Tcp:/ { received = $11 } END { print received }' /proc/net/snmp",
        ),
      );
    const before = segments();
    assert.ok(before > 0, "none were counted");
    await sleep(700);
    assert.is(segments() - before, 0, "segments still reach the container");
    const blocked = await topology.connect("client", "tcp", addresses.host.ipv4, 8080);
    assert.not.ok(blocked.ok, "a new connection got through");
    topology.must("host", remove);
    const again = await topology.connect("client", "tcp", addresses.host.ipv4, 8080);
    assert.ok(again.ok, again.error);
    await stream;
  });
}

test("endpoint counters equal the sandbox's own", async () => {
  await topology.stream("client", addresses.host.ipv4, 8080, 1);
  await topology.stream("web", addresses.client.ipv6, 7000, 1);
  await sleep(300);
  const metrics = await topology.ok<string>("GET", "/metrics");
  // /proc/net/dev: received bytes, packets, six more; sent bytes, packets.
  const own = topology
    .must("web", "grep eth0 /proc/net/dev")
    .trim()
    .split(/[\s:]+/)
    .map(Number);
  const columns = {
    receive_bytes_total: 1,
    receive_packets_total: 2,
    transmit_bytes_total: 9,
    transmit_packets_total: 10,
  };
  for (const [name, column] of Object.entries(columns)) {
    const line = new RegExp(`^natbridge_endpoint_${name}\\{endpoint="web"[^}]*\\} (\\S+)`, "m");
    const counted = Number(line.exec(metrics)?.[1]);
    const expected = own[column] ?? 0;
    // The few packets between the making of the device and the programs' arrival on it.
    const slack = name.includes("bytes") ? 4096 : 40;
    assert.ok(Math.abs(counted - expected) <= slack, `${name}: ${counted}, eth0 has ${expected}`);
  }
});

test.after(async () => {
  await topology?.remove();
});
test.run();
