/** `GET /v1/rules`: what the kernel's table holds, whatever it should hold. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { FirewallElement } from "../../src/datapath/types.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("rules");
test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  const { networks, endpoints } = host.core;
  await networks.create({
    name: "dual",
    bridge: ";id",
    subnets: [{ subnet: "172.32.0.0/24" }, { subnet: "fd32::/64" }],
  });
  await networks.create({ name: "four", bridge: "four0", subnets: [{ subnet: "10.4.0.0/24" }] });
  await endpoints.create({ name: "dual", network: "dual", netns: "web" });
  await endpoints.create({ name: "four", network: "four", netns: "db" });
});

/** `set { key : value }` lines as the kernel's answer. */
const held = (lines: string[]): FirewallElement[] =>
  lines.map((line) => {
    const [, set = "", body = ""] = /^(\S+) \{ (.*) \}$/.exec(line) ?? [];
    const [key = "", value = ""] = body.split(" : ");
    return { set, key, value };
  });

async function rulesOf(host: CoreHost, name: string) {
  const found = (await host.core.rules()).find((each) => each.name === name);
  assert.ok(found, name);
  return { nftables: found.nftables, iptables: found.iptables };
}

test("networks: names are quoted where a shell would read them", async ({ host }) => {
  const lines = [
    'bridges { ";id" }',
    'same_bridge { ";id" . ";id" }',
    'own_subnet4 { ";id" . 172.32.0.0/24 }',
    'own_subnet6 { ";id" . fd32::/64 }',
    "masquerade4 { 172.32.0.0/24 }",
    "masquerade6 { fd32::/64 }",
  ];
  host.datapath.held = held([...lines, 'bridges { "four0" }', "masquerade4 { 10.4.0.0/24 }"]);
  assert.equal(await rulesOf(host, "dual"), {
    nftables: lines,
    iptables: [
      "iptables -t nat -A POSTROUTING -s 172.32.0.0/24 ! -o ';id' -j MASQUERADE",
      "ip6tables -t nat -A POSTROUTING -s fd32::/64 ! -o ';id' -j MASQUERADE",
    ],
  });
  assert.equal((await rulesOf(host, "four")).iptables, [
    "iptables -t nat -A POSTROUTING -s 10.4.0.0/24 ! -o four0 -j MASQUERADE",
  ]);
  assert.is(
    (await host.core.rules()).some(({ name }) => name === "host"),
    false,
  );
});

test("ports: every element of theirs, and what the kernel has instead of ours", async ({
  host,
}) => {
  const { ports } = host.core;
  await ports.create({ name: "any", endpoint: "dual", hostPort: 8080, containerPort: 80 });
  await ports.create({
    name: "some",
    endpoint: "four",
    hostAddress: "198.51.100.1",
    hostPort: 53,
    containerPort: 5353,
    protocol: "udp",
    from: ["10.0.0.0/8", "fd00::/8"],
  });
  const any = [
    // Somebody changed the target by hand.
    "tcp_wildcard4 { 8080 : 172.32.0.99 . 81 }",
    "published4 { tcp . 8080 }",
    "published_wildcard4 { tcp . 8080 }",
    "target4 { tcp . 172.32.0.99 . 81 }",
    "published6 { tcp . 8080 }",
    "forwarded6 { tcp . 8080 }",
  ];
  const some = [
    "udp_exact4 { 198.51.100.1 . 53 : 10.4.0.2 . 5353 }",
    "restricted_exact4 { udp . 198.51.100.1 . 53 }",
    "allowed_exact4 { udp . 198.51.100.1 . 53 . 10.0.0.0/8 }",
    "allowed_exact4 { udp . 198.51.100.1 . 53 . 203.0.113.0/24 }",
    "exempt4 { udp . 198.51.100.1 . 53 }",
  ];
  host.datapath.held = held([...any, ...some, "tcp_wildcard4 { 8081 : 172.32.0.2 . 80 }"]);
  const dnat = "-m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DNAT --to-destination";
  assert.equal(await rulesOf(host, "any"), {
    nftables: any,
    iptables: [`iptables -t nat -A PREROUTING ${dnat} 172.32.0.99:81`],
  });
  const line = "-d 198.51.100.1 -p udp --dport 53 -j DNAT --to-destination 10.4.0.2:5353";
  assert.equal(await rulesOf(host, "some"), {
    nftables: some,
    iptables: [
      `iptables -t nat -A PREROUTING -s 10.0.0.0/8 ${line}`,
      `iptables -t nat -A PREROUTING -s 203.0.113.0/24 ${line}`,
    ],
  });
  // A port that lets nobody in is no iptables line; without a table nothing is told.
  host.datapath.held = host.datapath.held.filter(({ set }) => !set.startsWith("allowed"));
  assert.equal((await rulesOf(host, "some")).iptables, []);
  host.datapath.held = [];
  assert.equal(await rulesOf(host, "some"), { nftables: [], iptables: [] });
});

test.run();
