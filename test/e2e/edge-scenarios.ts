/** What leaves an endpoint is no more, and no other's, than the kernel path would let pass. */
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import type { Network } from "../../src/network/model.ts";
import { db, families, type Scenario } from "./scenarios.ts";
import { addresses, sleep, type Topology } from "./topology.ts";

/** The connected route of the client's network, as the kernel makes it, with an MTU. */
const connected = {
  ipv4: "ip route replace 198.51.100.0/24 dev up0 proto kernel scope link src 198.51.100.1",
  ipv6: "ip -6 route replace 2001:db8:1::/64 dev up0 proto kernel metric 256",
} as const;

/** Another way to the client, for what a rule sends there. */
function ruled(family: "ipv4" | "ipv6", selector: string, verb: "add" | "del"): string {
  const [flag, subnet] = family === "ipv4" ? ["", "198.51.100.0/24"] : ["-6", "2001:db8:1::/64"];
  return [
    `ip ${flag} route ${verb} ${subnet} dev up0 mtu 1300 table 77`,
    `ip ${flag} rule ${verb} ${selector} lookup 77`,
  ].join("; ");
}

const limits = families.flatMap((family) => [
  {
    name: `route-mtu (${family})`,
    family,
    set: `${connected[family]} mtu 1300`,
    unset: connected[family],
  },
  {
    name: `route-mtu-by-source (${family})`,
    family,
    set: ruled(family, `from ${family === "ipv4" ? "172.32.0.0/24" : "fd32::/64"}`, "add"),
    unset: ruled(family, `from ${family === "ipv4" ? "172.32.0.0/24" : "fd32::/64"}`, "del"),
  },
]);

/** Sends small and large datagrams out; answers what the client saw of the large ones. */
async function largeOnes(topology: Topology, family: "ipv4" | "ipv6"): Promise<string> {
  const before = (await topology.ok<DatapathStatus>("GET", "/v1/datapath")).cache.fastPackets;
  const file = `${topology.folder}/large-${performance.now()}`;
  // With Ethernet's header more than what a route of 1300 bytes lets pass.
  const filter = "udp and greater 1320 and dst port 7000";
  const capture = `exec timeout 30 tcpdump -lni eth0 --immediate-mode '${filter}' >${file} 2>&1`;
  topology.background("client", capture);
  const read = (): string => topology.run("client", `cat ${file}`).stdout;
  for (let waited = 0; waited < 200 && !read().includes("listening on"); waited++) await sleep(50);
  assert.match(read(), /listening on/);
  await topology.datagrams("web", [addresses.client[family], "7000", "100", "1400"]);
  await sleep(300);
  const after = (await topology.ok<DatapathStatus>("GET", "/v1/datapath")).cache.fastPackets;
  assert.is(after - before > 100, topology.fastPath === "on", `${after - before} were fast`);
  return read().replace(/^.*listening on.*$/m, "");
}

/** Link-local address of a device. */
const linkLocal = (topology: Topology, name: string, device: string): string =>
  /inet6 (fe80:\S+)\/64/.exec(topology.must(name, `ip -6 -o addr show ${device}`))?.[1] ?? "";

export const edgeScenarios: Scenario[] = [
  ...families.map((family) => ({
    name: `without-a-limit-they-leave-whole (${family})`,
    run: async (topology: Topology): Promise<void> => {
      assert.match(await largeOnes(topology, family), /\.7000: /);
    },
  })),
  ...limits.map(({ name, family, set, unset }) => ({
    name,
    run: async (topology: Topology): Promise<void> => {
      topology.must("host", set);
      try {
        assert.not.match(await largeOnes(topology, family), /\.7000: /);
      } finally {
        topology.must("host", unset);
      }
    },
  })),
  {
    name: "no-other-link-local-address",
    run: async (topology) => {
      // Without programs nothing is checked, as `status` says.
      if (topology.fastPath === "none") return;
      const { bridge } = await topology.ok<Network>("GET", "/v1/networks/my_net");
      const own = linkLocal(topology, "web", "eth0");
      const stolen = linkLocal(topology, "host", bridge ?? "");
      assert.ok(stolen !== "" && own !== "");
      const mac = /link\/ether (\S+)/.exec(topology.must("web", "ip -o link show eth0"))?.[1] ?? "";
      topology.must("web", `ip addr add ${stolen}/64 dev eth0 nodad`);
      try {
        for (const target of [db.ipv6, `${linkLocal(topology, "db", "eth0")}%eth0`])
          topology.run("web", `ping -6 -c2 -W1 -I ${stolen}%eth0 ${target}`);
        const known = topology.must("db", "ip -6 neigh show dev eth0");
        assert.not.match(known, new RegExp(`^${stolen} .*${mac}`, "m"), "it is believed");
      } finally {
        topology.must("web", `ip addr del ${stolen}/64 dev eth0`);
      }
      const metrics = await topology.ok<string>("GET", "/metrics");
      assert.match(
        metrics,
        /natbridge_packets_dropped_total\{endpoint="web",reason="spoofed_source_ipv6"\} [1-9]/,
      );
    },
  },
  {
    name: "link-local-address-of-ones-own-choice",
    run: async (topology) => {
      topology.addSandbox("private");
      await topology.ok("POST", "/v1/endpoints", {
        name: "private",
        network: "my_net",
        netns: `/run/netns/${topology.ns("private")}`,
      });
      const before = linkLocal(topology, "private", "eth0");
      // IN6_ADDR_GEN_MODE_RANDOM: stable and opaque from here on (RFC 7217).
      topology.must(
        "private",
        "sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=3; ip link set eth0 down; ip link set eth0 up",
      );
      const target = `${linkLocal(topology, "db", "eth0")}%eth0`;
      // Duplicate address detection takes a second or two.
      const ping = `for i in 1 2 3 4 5 6 7 8; do ping -6 -c1 -W1 ${target} && exit 0; sleep 0.5; done; exit 1`;
      topology.must("private", ping);
      assert.is.not(linkLocal(topology, "private", "eth0"), before);
      await topology.ok("DELETE", "/v1/endpoints/private");
      topology.removeSandbox("private");
    },
  },
];
