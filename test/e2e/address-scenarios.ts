/** Who has an address, by which way: endpoints replaced, and sandboxes on several networks. */
import * as assert from "uvu/assert";
import type { Endpoint, Network } from "../../src/network/model.ts";
import { families, protocols, reaches, type Scenario } from "./scenarios.ts";
import { addresses, type Topology } from "./topology.ts";

const mover = { ipv4: "172.32.0.50", ipv6: "fd32::50" } as const;
const macs = ["02:42:00:00:00:01", "02:42:00:00:00:02", "02:42:00:00:00:03"] as const;

const endpointOf = (topology: Topology, mac: string) => ({
  name: `mover-${mac.at(-1)}`,
  network: "my_net",
  netns: `/run/netns/${topology.ns("mover")}`,
  addresses: [mover.ipv4, mover.ipv6],
  mac,
});

const portOf = (endpoint: string) => ({
  name: "mover-port",
  endpoint,
  hostPort: 8250,
  containerPort: 80,
});

/** From the host, a sibling and, by the published port, another machine: each with what it remembers. */
async function isReached(topology: Topology, what: string): Promise<void> {
  const started = performance.now();
  await Promise.all(
    families.flatMap((family) => [
      reaches(topology, "host", "tcp", mover[family], 80),
      reaches(topology, "db", "tcp", mover[family], 80),
      reaches(topology, "client", "tcp", addresses.host[family], 8250),
    ]),
  );
  const milliseconds = performance.now() - started;
  assert.ok(milliseconds < 10_000, `${what}: ${milliseconds} ms`);
}

const strict = (topology: Topology): string =>
  topology.must(
    "host",
    "sysctl -n net.ipv4.conf.all.rp_filter; sysctl -qw net.ipv4.conf.all.rp_filter=1",
  );

export const addressScenarios: Scenario[] = [
  {
    name: "same-address-with-another-mac",
    run: async (topology) => {
      topology.addSandbox("mover");
      await topology.serve("mover", 80);
      const [first, second, third] = macs.map((mac) => endpointOf(topology, mac));
      assert.ok(first && second && third);
      await topology.ok("POST", "/v1/endpoints", first);
      await topology.ok("POST", "/v1/ports", portOf(first.name));
      await isReached(topology, "the first");
      await topology.ok("DELETE", `/v1/endpoints/${first.name}`);
      await topology.ok("POST", "/v1/endpoints", second);
      await topology.ok("POST", "/v1/ports", portOf(second.name));
      await isReached(topology, "made after the first was removed");
      await topology.ok("DELETE", `/v1/endpoints/${second.name}`);

      // As one change: the old one answers until the new one is there.
      const apply = (endpoint: typeof first) =>
        topology.ok("POST", "/v1/apply", {
          owner: "mover",
          prune: true,
          endpoints: [endpoint],
          ports: [portOf(endpoint.name)],
        });
      topology.addSandbox("mover2");
      await topology.serve("mover2", 80);
      await apply(second);
      await isReached(topology, "the second by apply");
      await apply({ ...third, netns: `/run/netns/${topology.ns("mover2")}` });
      await isReached(topology, "the third in its place");
      await topology.ok("POST", "/v1/apply", { owner: "mover", prune: true });
    },
  },
  {
    name: "two-networks-in-one-sandbox-where-the-reverse-path-is-strict",
    run: async (topology) => {
      const before = strict(topology);
      topology.addSandbox("two");
      await topology.serve("two", 80);
      const bridges: string[] = [];
      try {
        for (const [index, network] of ["my_net", "other_net"].entries()) {
          const name = `two-${network}`;
          await topology.ok<Endpoint>("POST", "/v1/endpoints", {
            name,
            network,
            netns: `/run/netns/${topology.ns("two")}`,
          });
          for (const protocol of protocols)
            await topology.ok("POST", "/v1/ports", {
              ...{ name: `${name}-${protocol}`, endpoint: name, protocol },
              ...{ hostPort: 8260 + index, containerPort: 80 },
            });
          const { bridge } = await topology.ok<Network>("GET", `/v1/networks/${network}`);
          bridges.push(`net.ipv4.conf.${bridge}.rp_filter`);
        }
        // A UDP server on every address answers from that of its default route: TCP alone for the other.
        const asked = [
          ["tcp", 8260],
          ["udp", 8260],
          ["tcp", 8261],
        ] as const;
        for (const family of families)
          for (const [protocol, hostPort] of asked) {
            await reaches(topology, "client", protocol, addresses.host[family], hostPort);
            const uplink = addresses.hostOnSecondUplink[family];
            await reaches(topology, "other", protocol, uplink, hostPort);
          }
        const values = (): string => topology.must("host", `sysctl -n ${bridges.join(" ")}`);
        assert.is(values(), "2\n2\n");
        await topology.ok("DELETE", "/v1/endpoints/two-other_net");
        assert.not.match(values(), /2/);
      } finally {
        topology.must("host", `sysctl -qw net.ipv4.conf.all.rp_filter=${before.trim()}`);
        for (const name of ["two-my_net", "two-other_net"])
          await topology.api("DELETE", `/v1/endpoints/${name}`);
      }
    },
  },
];
