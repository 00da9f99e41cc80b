/** Which subnets, addresses, interfaces and host ports are chosen, and which are refused. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { EndpointInput, NetworkInput, PortInput } from "../../src/network/model.ts";
import { ProblemError } from "../../src/problem.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("plans");
test.before.each(async (context) => {
  context.host = await new CoreHost().start();
});

const since = "172.32.0.0/24";
const seed = async ({ core }: CoreHost): Promise<void> => {
  await core.networks.create({ name: "net", subnets: [{ subnet: since }] });
  await core.endpoints.create({ name: "web", network: "net", netns: "web" });
};

/** `code: detail` of a refusal; empty if it was none. */
async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    return `${error.code}: ${error.message}`;
  }
}

// --- networks

test("the next free pool skips addresses, routes and networks of others", async ({ host }) => {
  const { core, datapath } = host;
  datapath.addLink({ name: "docker0", kind: "bridge", addresses: ["172.18.0.1/16"] });
  datapath.routes.push({
    destination: "172.19.0.0/24",
    gateway: "198.51.100.9",
    interface: "eth0",
    table: 254,
  });
  datapath.addLink({ name: "virbr0", kind: "bridge", addresses: ["192.168.122.1/24"] });
  const got: string[] = [];
  for (let index = 0; index < 16; index++)
    got.push((await core.networks.create({ name: `n${index}` })).subnets[0]?.subnet ?? "");
  // 172.17 is the network bridge's.
  assert.is(got[0], "172.20.0.0/16");
  assert.is(got[12], "192.168.0.0/20");
  assert.not.ok(got.includes("192.168.112.0/20"), "virbr0 is in it");
  assert.is(new Set(got).size, got.length);
});

test("pools that are used up are an error", async ({ host }) => {
  host.datapath.addLink({ name: "wide", addresses: ["172.16.0.1/12"] });
  host.datapath.addLink({ name: "home", addresses: ["192.168.0.1/16"] });
  assert.match(await refusal(host.core.networks.create({ name: "n" })), /^pool_exhausted/);
});

const badNetworks: [what: string, input: Partial<NetworkInput>, refusal: RegExp][] = [
  ["overlap", { subnets: [{ subnet: "172.32.0.128/25" }] }, /^subnet_overlap: .*net/],
  ["host's own", { subnets: [{ subnet: "198.51.0.0/16" }] }, /^subnet_overlap: .*eth0/],
  ["no subnet", { subnets: [{ subnet: "10.0.0.0" }] }, /^invalid_request/],
  ["host bits", { subnets: [{ subnet: "10.0.0.1/24" }] }, /^invalid_request/],
  ["loopback", { subnets: [{ subnet: "127.0.0.0/24" }] }, /^invalid_request/],
  ["multicast", { subnets: [{ subnet: "224.1.0.0/24" }] }, /^invalid_request/],
  [
    "gateway outside",
    { subnets: [{ subnet: "10.0.0.0/24", gateway: "10.0.1.1" }] },
    /^address_outside_subnet/,
  ],
  [
    "two of a family",
    { subnets: [{ subnet: "10.0.0.0/24" }, { subnet: "10.1.0.0/24" }] },
    /^invalid/,
  ],
  ["ipv6 denied", { ipv6: false, subnets: [{ subnet: "fd00::/64" }] }, /^invalid_request/],
  ["small MTU for IPv6", { ipv6: true, mtu: 1000 }, /^invalid_request/],
  ["device of others", { bridge: "eth0" }, /^interface_exists/],
];
for (const [what, input, expected] of badNetworks)
  test(`network refused: ${what}`, async ({ host }) => {
    await seed(host);
    const before = host.dump();
    assert.match(await refusal(host.core.networks.create({ name: "n", ...input })), expected);
    assert.is(host.dump(), before);
  });

test("gateway and range as given; the lowest address otherwise", async ({ host }) => {
  const { core } = host;
  const subnet = { subnet: "10.0.0.0/24", gateway: "10.0.0.254", range: "10.0.0.64/26" };
  await core.networks.create({ name: "n", subnets: [{ ...subnet, reserved: ["10.0.0.64"] }] });
  const made = await core.endpoints.create({ name: "e", network: "n", netns: "web" });
  assert.equal(made.addresses, ["10.0.0.65/24"]);
  assert.equal(made.gateway, ["10.0.0.254"]);
  assert.is(made.mac, "02:42:0a:00:00:41");
});

// --- endpoints

test("addresses are the lowest free ones, interfaces the next ethN", async ({ host }) => {
  await seed(host);
  const { core } = host;
  const second = await core.endpoints.create({ name: "db", network: "net", netns: "db" });
  assert.equal(second.addresses, ["172.32.0.3/24"]);
  await core.endpoints.remove("web");
  const third = await core.endpoints.create({ name: "x", network: "net", netns: "x" });
  assert.equal(third.addresses, ["172.32.0.2/24"]);
  const fourth = await core.endpoints.create({ name: "y", network: "bridge", sandbox: "x" });
  assert.is(fourth.interface, "eth1");
});

const badEndpoints: [what: string, input: Partial<EndpointInput>, refusal: RegExp][] = [
  ["two sandboxes", { netns: "db", pid: 77 }, /^invalid_request/],
  ["no such netns", { netns: "nope" }, /^sandbox_invalid/],
  ["no such network", { network: "nope" }, /^network_not_found/],
  ["address outside", { addresses: ["10.9.9.9"] }, /^address_outside_subnet/],
  ["the gateway's", { addresses: ["172.32.0.1"] }, /^address_in_use/],
  ["taken", { addresses: ["172.32.0.2"] }, /^address_in_use/],
  ["network address", { addresses: ["172.32.0.0"] }, /^(invalid_request|address_)/],
  ["broadcast address", { addresses: ["172.32.0.255"] }, /^(invalid_request|address_)/],
  [
    "fixed on bridge",
    { network: "bridge", addresses: ["172.17.0.9"] },
    /^static_address_not_allowed/,
  ],
  ["multicast MAC", { mac: "01:00:5e:00:00:01" }, /^invalid_request/],
  ["MAC of another", { mac: "02-42-AC-20-00-02" }, /^address_in_use: .*endpoint web/],
  ["name taken", { name: "web" }, /^name_taken/],
  ["a second time on one network", { netns: "web" }, /^invalid_request: .*already/],
  ["interface taken", { network: "bridge", netns: "web", interface: "eth0" }, /^interface_exists/],
  ["MTU above", { mtu: 9000 }, /^invalid_request/],
];
for (const [what, input, expected] of badEndpoints)
  test(`endpoint refused: ${what}`, async ({ host }) => {
    await seed(host);
    const before = host.dump();
    const base = { name: "e", network: "net", ...(input.pid ? {} : { netns: "db" }) };
    const told = await refusal(host.core.endpoints.create({ ...base, ...input }));
    assert.match(told, expected, told);
    assert.is(host.dump(), before);
  });

test("no two MACs of a network are the same", async ({ host: { core } }) => {
  await core.networks.create({ name: "six", subnets: [{ subnet: "fd01::/64" }] });
  const macs: string[] = [];
  for (const [netns, address] of [
    ["web", "fd01::a:0:2"],
    ["db", "fd01::b:0:2"],
    ["x", "fd01::c:0:2"],
  ] as const) {
    const input = { name: netns, network: "six", netns, addresses: [address] };
    macs.push((await core.endpoints.create(input)).mac);
  }
  assert.is(macs[0], "02:42:00:00:00:02");
  assert.is(new Set(macs).size, 3);
  for (const mac of macs) assert.match(mac, /^02:42(:[0-9a-f]{2}){4}$/);
});

// --- published ports

test("ranges, ephemeral ports and addresses as asked for", async ({ host }) => {
  await seed(host);
  const { core } = host;
  const publish = async (input: Partial<PortInput>) =>
    (
      await core.ports.create({ endpoint: "web", hostPort: 0, containerPort: 80, ...input })
    ).bindings.map((one) => `${one.hostAddress} ${one.hostPort} ${one.containerPort}`);
  const both = (hostPort: number, containerPort: number): string[] =>
    ["0.0.0.0", "::"].map((address) => `${address} ${hostPort} ${containerPort}`);
  const [ephemeral = ""] = await publish({});
  const picked = Number(ephemeral.split(" ")[1]);
  assert.ok(picked >= 32768 && picked <= 60999, ephemeral);
  assert.equal(await publish({ hostPort: "8000-8002" }), both(8000, 80));
  assert.equal(await publish({ hostPort: "8000-8002" }), both(8001, 80));
  assert.equal(await publish({ hostPort: "9000-9001", containerPort: "90-91" }), [
    ...both(9000, 90),
    ...both(9001, 91),
  ]);
  assert.equal(await publish({ hostAddress: "127.0.0.1", hostPort: 7000 }), ["127.0.0.1 7000 80"]);
  assert.equal(await publish({ hostAddress: "198.51.100.1", hostPort: 7000 }), [
    "198.51.100.1 7000 80",
  ]);
  assert.equal(await publish({ hostPort: 7000, protocol: "udp" }), both(7000, 80));
});

const badPorts: [what: string, input: Partial<PortInput>, refusal: RegExp][] = [
  ["same again", { hostPort: 8080 }, /^port_in_use: .*"taken"/],
  ["under a wildcard", { hostPort: 8080, hostAddress: "127.0.0.1" }, /^port_in_use/],
  ["wildcard over an address", { hostPort: 7000 }, /^port_in_use/],
  ["unequal ranges", { hostPort: "1-3", containerPort: "1-2" }, /^range_mismatch/],
  ["range to the left", { hostPort: "9-5", containerPort: "5-9" }, /^(range_mismatch|invalid)/],
  ["no address of the host's family", { hostPort: 1, hostAddress: "nowhere" }, /^invalid_request/],
  ["multicast address", { hostPort: 1, hostAddress: "224.0.0.1" }, /^invalid_request/],
  ["from is no subnet", { hostPort: 1, from: ["10.0.0.1/33"] }, /^invalid_request/],
  ["no such endpoint", { hostPort: 1, endpoint: "nope" }, /^endpoint_not_found/],
];
for (const [what, input, expected] of badPorts)
  test(`published port refused: ${what}`, async ({ host }) => {
    await seed(host);
    const { core } = host;
    const base = { endpoint: "web", containerPort: 80 } as const;
    await core.ports.create({ ...base, name: "taken", hostPort: 8080 });
    await core.ports.create({ ...base, hostAddress: "127.0.0.1", hostPort: 7000 });
    const before = host.dump();
    assert.match(await refusal(core.ports.create({ ...base, hostPort: 1, ...input })), expected);
    assert.is(host.dump(), before);
  });

test("nothing is published from an internal network", async ({ host }) => {
  const { core } = host;
  await core.networks.create({ name: "inside", internal: true });
  await core.endpoints.create({ name: "e", network: "inside", netns: "web" });
  const told = await refusal(core.ports.create({ endpoint: "e", hostPort: 1, containerPort: 1 }));
  assert.match(told, /internal/);
});

test("PUT: equal is unchanged, an immutable difference is refused", async ({ host }) => {
  await seed(host);
  const { core } = host;
  const same = await core.networks.put({ name: "net", subnets: [{ subnet: since }] });
  assert.equal([same.created, same.object.revision], [false, 1]);
  const labelled = await core.networks.put({ name: "net", labels: { a: "b" } });
  assert.equal([labelled.created, labelled.object.revision], [false, 2]);
  assert.match(
    await refusal(core.networks.put({ name: "net", mtu: 1400 })),
    /^immutable_field: .*mtu/,
  );
  const moved = core.endpoints.put({ name: "web", network: "net", netns: "db" });
  assert.match(await refusal(moved), /^immutable_field/);
});

test.run();
