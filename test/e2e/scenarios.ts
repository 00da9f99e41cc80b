/**
 * The behaviours that must hold whatever carries the packets. Each runs with the fast path on and
 * off, and where bridged packets matter with bridge-nf-call-iptables 0 and 1; the answers must agree.
 */
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import type { Endpoint, Network, Port } from "../../src/network/model.ts";
import { addresses, type Topology } from "./topology.ts";

export interface Scenario {
  name: string;
  run: (topology: Topology) => Promise<void>;
}

export type Family = "ipv4" | "ipv6";
export const families: Family[] = ["ipv4", "ipv6"];
export const protocols = ["tcp", "udp"] as const;

/** Addresses of what `setUp` makes. */
export const web = { ipv4: "172.32.0.10", ipv6: "fd32::10" } as const;
export const db = { ipv4: "172.32.0.11", ipv6: "fd32::11" } as const;
export const outsider = { ipv4: "172.33.0.10", ipv6: "fd33::10" } as const;
export const gateway = { ipv4: "172.32.0.1", ipv6: "fd32::1" } as const;

/** Two networks; web and db on the first, outsider on the second; web's port 80 is 8080. */
export async function setUp(topology: Topology): Promise<void> {
  for (const name of ["web", "db", "outsider"]) topology.addSandbox(name);
  const networks = [
    ["my_net", "172.32.0.0/24", "fd32::/64"],
    ["other_net", "172.33.0.0/24", "fd33::/64"],
  ];
  for (const [name, ipv4, ipv6] of networks)
    await topology.ok("POST", "/v1/networks", {
      name,
      subnets: [{ subnet: ipv4 }, { subnet: ipv6 }],
    });
  const endpoints = [
    ["web", "my_net", web],
    ["db", "my_net", db],
    ["outsider", "other_net", outsider],
  ] as const;
  for (const [name, network, fixed] of endpoints)
    await topology.ok("POST", "/v1/endpoints", {
      name,
      network,
      netns: `/run/netns/${topology.ns(name)}`,
      addresses: [fixed.ipv4, fixed.ipv6],
    });
  for (const protocol of protocols)
    await topology.ok("POST", "/v1/ports", {
      name: `web-${protocol}`,
      endpoint: "web",
      hostPort: 8080,
      containerPort: 80,
      protocol,
    });
  await Promise.all(["web", "db", "outsider"].map((name) => topology.serve(name, 80)));
  await Promise.all([topology.serve("client", 7000), topology.serve("other", 7000)]);
}

/** An exchange that must work; answers the client address the server saw. */
export async function reaches(
  topology: Topology,
  from: string,
  protocol: "tcp" | "udp",
  host: string,
  port: number,
): Promise<string> {
  const answer = await topology.connect(from, protocol, host, port);
  assert.ok(answer.ok, `${from} → ${protocol} ${host} port ${port}: ${answer.error}`);
  return answer.seen.split(" ")[0] ?? "";
}

export async function fails(
  topology: Topology,
  from: string,
  protocol: "tcp" | "udp",
  host: string,
  port: number,
): Promise<void> {
  const answer = await topology.connect(from, protocol, host, port);
  assert.not.ok(answer.ok, `${from} → ${protocol} ${host} port ${port} must not work`);
}

/**
 * A client sends to 127.0.0.1 over the wire, to a host whose kernel would take it: with
 * `route_localnet` it is no martian any more (net/ipv4/route.c, ip_route_input_slow).
 */
async function loopbackFromTheWire(topology: Topology, port: number): Promise<void> {
  const arrived =
    "table inet seen { chain c { type filter hook prerouting priority -500; ip daddr 127.0.0.1 counter; }; }";
  topology.must("host", `nft '${arrived}'; sysctl -qw net.ipv4.conf.up0.route_localnet=1`);
  topology.must(
    "client",
    `sysctl -qw net.ipv4.conf.eth0.route_localnet=1; ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via ${addresses.host.ipv4}`,
  );
  try {
    await fails(topology, "client", "tcp", "127.0.0.1", port);
    assert.match(topology.must("host", "nft list table inet seen"), /packets [1-9]/, "it came");
  } finally {
    topology.must(
      "client",
      "ip route del 127.0.0.1/32; ip addr add 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.eth0.route_localnet=0",
    );
    topology.must(
      "host",
      "nft delete table inet seen; sysctl -qw net.ipv4.conf.up0.route_localnet=0",
    );
  }
}

/** One scenario per family and protocol. */
function forAll(
  name: string,
  run: (topology: Topology, family: Family, protocol: "tcp" | "udp") => Promise<void>,
): Scenario[] {
  return families.flatMap((family) =>
    protocols.map((protocol) => ({
      name: `${name} (${family}, ${protocol})`,
      run: (topology: Topology) => run(topology, family, protocol),
    })),
  );
}

export const scenarios: Scenario[] = [
  ...forAll("publish-from-outside", async (topology, family, protocol) => {
    const seen = await reaches(topology, "client", protocol, addresses.host[family], 8080);
    assert.is(seen, addresses.client[family], "publish-remote-keeps-client-address");
  }),
  ...forAll("publish-from-another-uplink", async (topology, family, protocol) => {
    await reaches(topology, "other", protocol, addresses.hostOnSecondUplink[family], 8080);
  }),
  ...forAll("publish-from-host", async (topology, family, protocol) => {
    await reaches(topology, "host", protocol, addresses.host[family], 8080);
    await reaches(topology, "host", protocol, gateway[family], 8080);
  }),
  ...forAll("publish-from-loopback", async (topology, family, protocol) => {
    await reaches(topology, "host", protocol, family === "ipv4" ? "127.0.0.1" : "::1", 8080);
  }),
  ...forAll("publish-hairpin-same-network", async (topology, family, protocol) => {
    await reaches(topology, "db", protocol, addresses.host[family], 8080);
    await reaches(topology, "db", protocol, gateway[family], 8080);
  }),
  ...forAll("publish-hairpin-other-network", async (topology, family, protocol) => {
    await reaches(topology, "outsider", protocol, addresses.host[family], 8080);
  }),
  ...forAll("publish-hairpin-itself", async (topology, family, protocol) => {
    await reaches(topology, "web", protocol, addresses.host[family], 8080);
  }),
  ...forAll("masquerade-outbound", async (topology, family, protocol) => {
    const seen = await reaches(topology, "web", protocol, addresses.client[family], 7000);
    assert.is(seen, addresses.host[family]);
  }),
  ...forAll("same-network-reach", async (topology, family, protocol) => {
    const seen = await reaches(topology, "web", protocol, db[family], 80);
    assert.is(seen, web[family]);
  }),
  ...forAll("networks-isolated", async (topology, family, protocol) => {
    await fails(topology, "outsider", protocol, web[family], 80);
    await fails(topology, "web", protocol, outsider[family], 80);
  }),
  ...forAll("unpublished-is-unreachable", async (topology, family, protocol) => {
    const flag = family === "ipv6" ? "-6" : "";
    const subnet = family === "ipv6" ? "fd32::/64" : "172.32.0.0/24";
    topology.must("client", `ip ${flag} route replace ${subnet} via ${addresses.host[family]}`);
    await fails(topology, "client", protocol, web[family], 80);
    await fails(topology, "client", protocol, addresses.host[family], 80);
    topology.must("client", `ip ${flag} route del ${subnet}`);
  }),
  ...forAll("gateway-answers-host-services", async (topology, family, protocol) => {
    const stop = await topology.serve("host", 7500);
    try {
      await reaches(topology, "web", protocol, gateway[family], 7500);
    } finally {
      await stop();
    }
  }),
  {
    name: "gateway-is-not-localhost",
    run: async (topology) => {
      // 8090 is published on loopback only: the gateway's address does not have it.
      await topology.ok("POST", "/v1/ports", {
        name: "loopback-only",
        endpoint: "web",
        hostAddress: "127.0.0.1",
        hostPort: 8090,
        containerPort: 80,
      });
      await reaches(topology, "host", "tcp", "127.0.0.1", 8090);
      await fails(topology, "db", "tcp", gateway.ipv4, 8090);
      await fails(topology, "client", "tcp", addresses.host.ipv4, 8090);
      await loopbackFromTheWire(topology, 8090);
      await topology.ok("DELETE", "/v1/ports/loopback-only");
    },
  },
  {
    name: "default-networks-listed",
    run: async (topology) => {
      const { items } = await topology.ok<{ items: Network[] }>("GET", "/v1/networks");
      const predefined = items.filter((network) => network.predefined);
      assert.equal(
        predefined.map(({ name, driver, scope }) => `${name}/${driver}/${scope}`).sort(),
        ["bridge/bridge/local", "host/host/local", "none/null/local"],
      );
    },
  },
  {
    name: "default-bridge-created",
    run: async (topology) => {
      const link = topology.must("host", "ip -d -o addr show nb0; ip -d -o link show nb0");
      assert.match(link, /inet 172\.\d+\.0\.1\/16/);
      assert.match(link, /mtu 1500/);
      assert.match(link, /stp_state 0/);
    },
  },
  {
    name: "veth-pair-created",
    run: async (topology) => {
      const endpoint = await topology.ok<Endpoint>("GET", "/v1/endpoints/web");
      const inside = topology.must("web", `ip -o link show ${endpoint.interface}`);
      assert.match(inside, new RegExp(`eth0@if${endpoint.ifindex}:`), "veth-peer-ifindex");
      const outside = topology.must("host", `ip -o link show ${endpoint.hostInterface}`);
      const index = /^(\d+):/.exec(inside)?.[1];
      assert.match(outside, new RegExp(`@if${index}:`));
      assert.match(inside, /02:42:ac:20:00:0a/, "mac-from-ipv4");
    },
  },
  {
    name: "address-and-default-route",
    run: async (topology) => {
      assert.match(topology.must("web", "ip -4 route show default"), /via 172\.32\.0\.1 dev eth0/);
      assert.match(topology.must("web", "ip -6 route show default"), /via fd32::1 dev eth0/);
      assert.match(topology.must("web", "ip -o addr show lo"), /127\.0\.0\.1\/8/);
    },
  },
  {
    name: "static-ip-default-bridge-refused",
    run: async (topology) => {
      const answer = await topology.api<{ code: string }>("POST", "/v1/endpoints", {
        name: "fixed",
        network: "bridge",
        netns: `/run/netns/${topology.ns("outsider")}`,
        addresses: ["172.17.0.9"],
      });
      assert.equal([answer.status, answer.body.code], [400, "static_address_not_allowed"]);
    },
  },
  {
    name: "connect-hot-adds-eth1",
    run: async (topology) => {
      await topology.ok("POST", "/v1/endpoints", {
        name: "web-second",
        network: "other_net",
        netns: `/run/netns/${topology.ns("web")}`,
      });
      assert.match(topology.must("web", "ip -o -4 addr show eth1"), /172\.33\.0\.2\/24/);
      await reaches(topology, "web", "tcp", outsider.ipv4, 80);
      // It links nobody else: multihomed-no-transit.
      await fails(topology, "db", "tcp", outsider.ipv4, 80);
      // disconnect-moves-default-route: my_net has it by name; without my_net, other_net gets it.
      await topology.ok("DELETE", "/v1/endpoints/web-second");
      assert.is(topology.run("web", "ip link show eth1").code, 1);
      assert.match(topology.must("web", "ip -4 route show default"), /via 172\.32\.0\.1/);
    },
  },
  {
    name: "dynamic-address-order",
    run: async (topology) => {
      const made: string[] = [];
      for (const name of ["d1", "d2"]) {
        topology.addSandbox(name);
        const endpoint = await topology.ok<Endpoint>("POST", "/v1/endpoints", {
          name,
          network: "my_net",
          netns: `/run/netns/${topology.ns(name)}`,
        });
        made.push(endpoint.addresses[0] ?? "");
      }
      assert.equal(made, ["172.32.0.2/24", "172.32.0.3/24"]);
      for (const name of ["d1", "d2"]) {
        await topology.ok("DELETE", `/v1/endpoints/${name}`);
        topology.removeSandbox(name);
      }
    },
  },
  {
    name: "publish-same-inner-port",
    run: async (topology) => {
      await topology.ok("POST", "/v1/ports", {
        name: "db-8081",
        endpoint: "db",
        hostPort: 8081,
        containerPort: 80,
      });
      await reaches(topology, "client", "tcp", addresses.host.ipv4, 8081);
      const again = await topology.api<{ code: string; detail: string }>("POST", "/v1/ports", {
        endpoint: "web",
        hostPort: 8081,
        containerPort: 80,
      });
      assert.equal([again.status, again.body.code], [409, "port_in_use"]);
      assert.match(again.body.detail, /db-8081/);
      await topology.ok("DELETE", "/v1/ports/db-8081");
      await fails(topology, "client", "tcp", addresses.host.ipv4, 8081);
    },
  },
  {
    name: "port-held-by-a-process-names-it",
    run: async (topology) => {
      const stop = await topology.serve("host", 7600);
      const answer = await topology.api<{ code: string; detail: string }>("POST", "/v1/ports", {
        endpoint: "web",
        hostPort: 7600,
        containerPort: 80,
      });
      await stop();
      assert.equal([answer.status, answer.body.code], [409, "port_in_use"]);
      assert.match(answer.body.detail, /deno/);
    },
  },
  {
    name: "from-limits-clients",
    run: async (topology) => {
      await topology.ok("POST", "/v1/ports", {
        name: "limited",
        endpoint: "web",
        hostPort: 8085,
        containerPort: 80,
        from: [`${addresses.client.ipv4}/32`],
      });
      await reaches(topology, "client", "tcp", addresses.host.ipv4, 8085);
      await reaches(topology, "host", "tcp", "127.0.0.1", 8085);
      await fails(topology, "other", "tcp", addresses.hostOnSecondUplink.ipv4, 8085);
      await fails(topology, "client", "tcp", addresses.host.ipv6, 8085);
      await topology.ok("PATCH", "/v1/ports/limited", { from: [] });
      await reaches(topology, "other", "tcp", addresses.hostOnSecondUplink.ipv4, 8085);
      await topology.ok("DELETE", "/v1/ports/limited");
    },
  },
  {
    name: "port-ranges-and-ephemeral",
    run: async (topology) => {
      const range = await topology.ok<Port>("POST", "/v1/ports", {
        name: "range",
        endpoint: "web",
        hostAddress: "0.0.0.0",
        hostPort: "8100-8102",
        containerPort: "79-81",
      });
      assert.equal(
        range.bindings.map(({ hostPort, containerPort }) => [hostPort, containerPort]),
        [
          [8100, 79],
          [8101, 80],
          [8102, 81],
        ],
      );
      await reaches(topology, "client", "tcp", addresses.host.ipv4, 8101);
      const picked = await topology.ok<Port>("POST", "/v1/ports", {
        name: "picked",
        endpoint: "web",
        hostPort: 0,
        containerPort: 80,
      });
      const port = picked.bindings[0]?.hostPort ?? 0;
      assert.ok(port >= 32768, `${port} is an ephemeral port`);
      await reaches(topology, "client", "tcp", addresses.host.ipv4, port);
      for (const name of ["range", "picked"]) await topology.ok("DELETE", `/v1/ports/${name}`);
    },
  },
  {
    name: "internal-network",
    run: async (topology) => {
      topology.addSandbox("closed");
      await topology.ok("POST", "/v1/networks", {
        name: "closed_net",
        internal: true,
        subnets: [{ subnet: "172.34.0.0/24" }],
      });
      await topology.ok("POST", "/v1/endpoints", {
        name: "closed",
        network: "closed_net",
        netns: `/run/netns/${topology.ns("closed")}`,
      });
      await fails(topology, "closed", "tcp", addresses.client.ipv4, 7000);
      await fails(topology, "closed", "tcp", addresses.host.ipv4, 8080);
      const published = await topology.api<{ code: string }>("POST", "/v1/ports", {
        endpoint: "closed",
        hostPort: 8200,
        containerPort: 80,
      });
      assert.is(published.status, 400);
      const inUse = await topology.api<{ code: string }>("DELETE", "/v1/networks/closed_net");
      assert.equal([inUse.status, inUse.body.code], [409, "network_in_use"]);
      await topology.ok("DELETE", "/v1/networks/closed_net?force=true");
      assert.is((await topology.api("DELETE", "/v1/networks/closed_net")).status, 404);
      topology.removeSandbox("closed");
    },
  },
  {
    name: "isolated-network",
    run: async (topology) => {
      await topology.ok("POST", "/v1/networks", {
        name: "apart_net",
        isolated: true,
        subnets: [{ subnet: "172.35.0.0/24" }],
      });
      for (const name of ["apart1", "apart2"]) {
        topology.addSandbox(name);
        await topology.ok("POST", "/v1/endpoints", {
          name,
          network: "apart_net",
          netns: `/run/netns/${topology.ns(name)}`,
        });
        await topology.serve(name, 80);
      }
      await topology.ok("POST", "/v1/ports", {
        name: "apart-port",
        endpoint: "apart1",
        hostPort: 8300,
        containerPort: 80,
      });
      await fails(topology, "apart2", "tcp", "172.35.0.2", 80);
      // A published port stays reachable, from a neighbour too.
      await reaches(topology, "apart2", "tcp", addresses.host.ipv4, 8300);
      await reaches(topology, "apart1", "tcp", addresses.client.ipv4, 7000);
      await topology.ok("DELETE", "/v1/networks/apart_net?force=true");
      for (const name of ["apart1", "apart2"]) topology.removeSandbox(name);
    },
  },
  {
    name: "masquerade-off",
    run: async (topology) => {
      topology.addSandbox("routed");
      await topology.ok("POST", "/v1/networks", {
        name: "routed_net",
        masquerade: false,
        subnets: [{ subnet: "172.36.0.0/24" }],
      });
      await topology.ok("POST", "/v1/endpoints", {
        name: "routed",
        network: "routed_net",
        netns: `/run/netns/${topology.ns("routed")}`,
      });
      topology.must("client", `ip route replace 172.36.0.0/24 via ${addresses.host.ipv4}`);
      const seen = await reaches(topology, "routed", "tcp", addresses.client.ipv4, 7000);
      assert.is(seen, "172.36.0.2");
      topology.must("client", "ip route del 172.36.0.0/24");
      await topology.ok("DELETE", "/v1/networks/routed_net?force=true");
      topology.removeSandbox("routed");
    },
  },
  {
    name: "network-mtu",
    run: async (topology) => {
      topology.addSandbox("small");
      await topology.ok("POST", "/v1/networks", { name: "small_net", mtu: 1300 });
      await topology.ok("POST", "/v1/endpoints", {
        name: "small",
        network: "small_net",
        netns: `/run/netns/${topology.ns("small")}`,
      });
      assert.match(topology.must("small", "ip -o link show eth0"), /mtu 1300/);
      assert.is(
        topology.run("small", `ping -c1 -W1 -M do -s 1400 ${addresses.client.ipv4}`).code,
        1,
      );
      assert.is(
        topology.run("small", `ping -c1 -W1 -M do -s 1200 ${addresses.client.ipv4}`).code,
        0,
      );
      await topology.ok("DELETE", "/v1/networks/small_net?force=true");
      topology.removeSandbox("small");
    },
  },
  {
    name: "spoofed-source-dropped-and-counted",
    run: async (topology) => {
      if (topology.fastPath === "none") {
        const { warnings } = await topology.ok<DatapathStatus>("GET", "/v1/datapath");
        assert.ok(
          warnings.some((text) => /spoofed/.test(text)),
          "no warning that it is not checked",
        );
        return;
      }
      topology.must("web", "ip addr add 172.32.0.99/24 dev eth0");
      const sent = topology.run("web", `ping -c2 -W1 -I 172.32.0.99 ${gateway.ipv4}`);
      topology.must("web", "ip addr del 172.32.0.99/24 dev eth0");
      assert.is(sent.code, 1, "a spoofed ping must get no answer");
      const metrics = await topology.ok<string>("GET", "/metrics");
      assert.match(
        metrics,
        /natbridge_packets_dropped_total\{endpoint="web",reason="spoofed_[a-z0-9_]+"\} [1-9]/,
      );
    },
  },
];
