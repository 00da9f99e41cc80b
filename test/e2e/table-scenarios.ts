/** What the kernel's table does beside translating: scopes, masqueraded numbers, reloads. */
import * as assert from "uvu/assert";
import type { RuleDescription } from "../../src/network/rules.ts";
import { type Family, families, reaches, type Scenario } from "./scenarios.ts";
import { addresses, sleep, type Topology } from "./topology.ts";

const reloads = 5;

/** The host's link-local address on its first uplink. */
function linkLocal(topology: Topology): string {
  const line = topology.must("host", "ip -6 -o addr show dev up0 scope link");
  const address = /inet6 (fe80::[0-9a-f:]+)\//.exec(line)?.[1];
  if (address === undefined) throw new Error("up0 has no link-local address");
  return address;
}

const target: Record<Family, string> = addresses.host;

export const tableScenarios: Scenario[] = [
  {
    name: "link-local-clients-reach-published-ports",
    run: async (topology) => {
      // Neither runtime connects to an address with a scope; socat does.
      for (const protocol of ["TCP6", "UDP6"]) {
        const socket = `${protocol}:[${linkLocal(topology)}%eth0]:8080`;
        const seen = topology.must("client", `echo who | socat -t 3 - '${socket}'`);
        assert.match(seen, /^\S+ \d+\nwho\n/, protocol);
      }
    },
  },
  {
    name: "rules-are-what-the-table-holds",
    run: async (topology) => {
      const { items } = await topology.ok<{ items: RuleDescription[] }>("GET", "/v1/rules");
      const listing = topology.must("host", "nft list table inet natbridge");
      const port = items.find(({ name }) => name === "web-tcp");
      assert.ok(port?.nftables.includes("tcp_wildcard4 { 8080 : 172.32.0.10 . 80 }"));
      assert.match(listing, /8080 : 172\.32\.0\.10 \. 80/);
      assert.ok(port?.nftables.includes("published6 { tcp . 8080 }"));
    },
  },
  {
    name: "netns-that-is-no-path",
    run: async (topology) => {
      for (const netns of [
        `/${"n".repeat(4000)}`,
        "n".repeat(4000),
        "/etc/hostname/x",
        "/a\u0000b",
      ]) {
        const answer = await topology.api<{ errors?: { pointer: string }[] }>(
          "POST",
          "/v1/endpoints",
          { name: "nowhere", network: "my_net", netns },
        );
        assert.is(answer.status, 400, netns.slice(0, 20));
        assert.equal(
          answer.body.errors?.map(({ pointer }) => pointer),
          ["/netns"],
        );
      }
    },
  },
  ...families.map((family) => ({
    name: `flushed-ruleset-breaks-no-connection ${family}`,
    run: async (topology: Topology) => {
      const flows = [
        topology.flow("client", ["tcp", target[family], "8080", "4"]),
        topology.flow("client", ["tcp", target[family], "8080", "4"]),
        topology.flow("web", ["tcp", addresses.client[family], "7000", "4"]),
      ];
      await sleep(1000);
      for (let round = 0; round < reloads; round++) {
        topology.must("host", "nft flush ruleset");
        await sleep(400);
      }
      for (const { error, wrong } of await Promise.all(flows))
        assert.equal([error, wrong], ["", 0]);
      await reaches(topology, "client", "tcp", target[family], 8080);
    },
  })),
];
