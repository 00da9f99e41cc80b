/** Fields of endpoints and ports: each of these fails when the field is ignored. */
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import { fails, gateway, reaches, type Scenario, web } from "./scenarios.ts";
import { addresses, sleep, type Topology } from "./topology.ts";

const netns = (topology: Topology, name: string): string => `/run/netns/${topology.ns(name)}`;

async function fastPackets(topology: Topology): Promise<number> {
  return (await topology.ok<DatapathStatus>("GET", "/v1/datapath")).cache.fastPackets;
}

/** Does `work` on a published port, at `path`, while a connection to it is open that must not notice. */
async function withOldConnection(
  topology: Topology,
  hostPort: number,
  work: (path: string) => Promise<void>,
): Promise<void> {
  const port = { name: "moving", endpoint: "web", hostPort, containerPort: 80 };
  await topology.ok("POST", "/v1/ports", port);
  const old = topology.flow("client", ["tcp", addresses.host.ipv4, String(hostPort), "3"]);
  await sleep(1000);
  await work("/v1/ports/moving");
  const { error, wrong } = await old;
  assert.equal([error, wrong], ["", 0], "the established connection");
  await topology.ok("DELETE", "/v1/ports/moving");
}

export const fieldScenarios: Scenario[] = [
  {
    name: "host-address-limits-where",
    run: async (topology) => {
      const binding = { endpoint: "web", containerPort: 80, hostPort: 8200 };
      for (const [name, hostAddress] of [
        ["on-v4", addresses.host.ipv4],
        ["on-v6", addresses.host.ipv6],
      ])
        await topology.ok("POST", "/v1/ports", { ...binding, name, hostAddress });
      await reaches(topology, "client", "tcp", addresses.host.ipv4, 8200);
      await reaches(topology, "client", "tcp", addresses.host.ipv6, 8200);
      await fails(topology, "other", "tcp", addresses.hostOnSecondUplink.ipv4, 8200);
      await fails(topology, "other", "tcp", addresses.hostOnSecondUplink.ipv6, 8200);
      await fails(topology, "host", "tcp", "127.0.0.1", 8200);
      for (const name of ["on-v4", "on-v6"]) await topology.ok("DELETE", `/v1/ports/${name}`);
    },
  },
  {
    name: "interface-mac-and-mtu-as-given",
    run: async (topology) => {
      topology.addSandbox("given");
      await topology.ok("POST", "/v1/endpoints", {
        name: "given",
        network: "my_net",
        netns: netns(topology, "given"),
        interface: "lan7",
        mac: "02:00:5e:00:53:07",
        mtu: 1400,
      });
      const link = topology.must("given", "ip -o link show lan7");
      assert.match(link, /mtu 1400 .*02:00:5e:00:53:07/);
      await reaches(topology, "given", "tcp", web.ipv4, 80);
      await topology.ok("DELETE", "/v1/endpoints/given");
      topology.removeSandbox("given");
    },
  },
  {
    name: "sandbox-by-pid",
    run: async (topology) => {
      topology.addSandbox("process");
      topology.background("process", "exec sleep 60");
      await sleep(200);
      const inNamespace = `ip netns pids ${topology.ns("process")} | head -1`;
      const pid = Number(topology.must("host", inNamespace));
      await topology.ok("POST", "/v1/endpoints", { name: "process", network: "my_net", pid });
      await reaches(topology, "process", "tcp", web.ipv4, 80);
      await topology.ok("DELETE", "/v1/endpoints/process");
      topology.removeSandbox("process");
    },
  },
  {
    name: "default-route-priority",
    run: async (topology) => {
      await topology.ok("POST", "/v1/endpoints", {
        name: "web-first",
        network: "other_net",
        netns: netns(topology, "web"),
        defaultRoutePriority: 10,
      });
      assert.match(topology.must("web", "ip -4 route show default"), /via 172\.33\.0\.1 dev eth1/);
      await reaches(topology, "web", "tcp", addresses.client.ipv4, 7000);
      // Answers to what came by eth0 leave by eth1, from eth0's address.
      await reaches(topology, "client", "tcp", addresses.host.ipv4, 8080);
      await topology.ok("DELETE", "/v1/endpoints/web-first");
      assert.match(topology.must("web", "ip -4 route show default"), /via 172\.32\.0\.1 dev eth0/);
    },
  },
  {
    name: "source-check-off-for-routers",
    run: async (topology) => {
      topology.addSandbox("router");
      await topology.ok("POST", "/v1/endpoints", {
        name: "router",
        network: "my_net",
        netns: netns(topology, "router"),
        sourceCheck: false,
      });
      topology.must("router", "ip addr add 172.32.0.98/24 dev eth0");
      const sent = topology.run("router", `ping -c2 -W1 -I 172.32.0.98 ${gateway.ipv4}`);
      assert.is(sent.code, 0, "it may send from addresses that are not its own");
      await topology.ok("DELETE", "/v1/endpoints/router");
      topology.removeSandbox("router");
    },
  },
  {
    name: "network-fast-path-off",
    run: async (topology) => {
      await topology.ok("PATCH", "/v1/networks/my_net", { fastPath: "off" });
      await sleep(1500);
      const before = await fastPackets(topology);
      const bulk = await topology.stream("client", addresses.host.ipv4, 8080, 1);
      assert.ok(bulk.ok, bulk.error);
      assert.is(await fastPackets(topology), before);
      await topology.ok("PATCH", "/v1/networks/my_net", { fastPath: "auto" });
      await sleep(1500);
      await topology.stream("client", addresses.host.ipv4, 8080, 1);
      assert.is((await fastPackets(topology)) > before, topology.fastPath === "on");
    },
  },
  {
    name: "port-moves-make-before-break",
    run: (topology) =>
      withOldConnection(topology, 8300, async (path) => {
        await topology.ok("PATCH", path, { endpoint: "db" });
        const packets = (name: string): number =>
          Number(topology.must(name, "awk '/eth0/ { print $3 }' /proc/net/dev"));
        const before = packets("db");
        for (let round = 0; round < 5; round++)
          await reaches(topology, "client", "tcp", addresses.host.ipv4, 8300);
        assert.ok(packets("db") - before > 20, "new connections do not reach the new target");
      }),
  },
  {
    name: "port-number-moves-make-before-break",
    run: (topology) =>
      withOldConnection(topology, 8301, async (path) => {
        await topology.ok("PATCH", path, { hostPort: 8302 });
        await fails(topology, "client", "tcp", addresses.host.ipv4, 8301);
        await reaches(topology, "client", "tcp", addresses.host.ipv4, 8302);
      }),
  },
];
