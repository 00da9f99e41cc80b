/** What kernel and holder are told of networks, endpoints and ports, and how it is told to people. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  defaultRoutes,
  endpointDevice,
  endpointSpec,
  firewallSpec,
  holderBindings,
  portEntries,
} from "../../src/network/wanted.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("wanted");
test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  const { networks, endpoints } = host.core;
  await networks.create({
    name: "dual",
    bridge: "dual0",
    subnets: [{ subnet: "172.32.0.0/24" }, { subnet: "fd32::/64" }],
  });
  await networks.create({ name: "four", bridge: "four0", subnets: [{ subnet: "10.4.0.0/24" }] });
  await networks.create({ name: "six", bridge: "six0", subnets: [{ subnet: "fd06::/64" }] });
  await endpoints.create({ name: "dual", network: "dual", netns: "web" });
  await endpoints.create({ name: "four", network: "four", netns: "db" });
  await endpoints.create({ name: "six", network: "six", netns: "x" });
});

const portsOf = ({ core }: CoreHost) =>
  firewallSpec(core.state, []).ports.map(
    ({ protocol, hostAddress, hostPort, targetAddress, targetPort, from }) =>
      `${protocol} ${hostAddress} ${hostPort} ${targetAddress || "-"} ${targetPort} ${from.join()}`,
  );
/** Those the kernel translates. */
const translated = (host: CoreHost) => portsOf(host).filter((port) => !port.includes(" - "));
const bound = ({ core }: CoreHost) =>
  [...holderBindings(core.state)].map(
    ([key, { targetAddress, targetPort }]) => `${key} ${targetAddress} ${targetPort}`,
  );
const hooked = ({ core }: CoreHost) =>
  portEntries(core.state).map(
    ({ protocol, hostAddress, targetAddress }) => `${protocol} ${hostAddress} ${targetAddress}`,
  );

test("frames of a sandbox's endpoint may bear its other endpoints' addresses, its own first", async ({
  host,
}) => {
  await host.core.endpoints.create({ name: "second", network: "four", netns: "web" });
  const { state } = host.core;
  const sourcesOf = (name: string) => {
    const endpoint = state.endpoint.named(name);
    assert.ok(endpoint);
    return endpointDevice(state, endpoint, 1, undefined, true).addresses;
  };
  assert.equal(sourcesOf("dual"), ["172.32.0.2", "fd32::2", "10.4.0.3"]);
  assert.equal(sourcesOf("second"), ["10.4.0.3", "172.32.0.2", "fd32::2"]);
  assert.equal(sourcesOf("four"), ["10.4.0.2"]);
});

test("a wildcard port goes to the endpoint's address of the same family", async ({ host }) => {
  await host.core.ports.create({ endpoint: "dual", hostPort: 8080, containerPort: 80 });
  assert.equal(portsOf(host), ["tcp 0.0.0.0 8080 172.32.0.2 80 ", "tcp :: 8080 fd32::2 80 "]);
  assert.equal(bound(host), ["tcp/0.0.0.0/8080 172.32.0.2 80", "tcp/::/8080 fd32::2 80"]);
  assert.equal(hooked(host), ["tcp 0.0.0.0 172.32.0.2", "tcp :: fd32::2"]);
});

test("what crosses families is the forwarder's; the table only keeps clients out", async ({
  host,
}) => {
  const { ports } = host.core;
  const port = { endpoint: "four", hostPort: 8080, containerPort: 80 } as const;
  await ports.create({ ...port, name: "p" });
  assert.equal(translated(host), ["tcp 0.0.0.0 8080 10.4.0.2 80 "]);
  assert.equal(bound(host), ["tcp/0.0.0.0/8080 10.4.0.2 80", "tcp/::/8080 10.4.0.2 80"]);
  // An IPv6 socket reaches an IPv4 address, an IPv4 socket no IPv6 address.
  assert.equal(hooked(host), ["tcp 0.0.0.0 10.4.0.2", "tcp :: 10.4.0.2"]);
  await ports.patch("p", { from: ["10.0.0.0/8"] });
  assert.equal(portsOf(host), [
    "tcp 0.0.0.0 8080 10.4.0.2 80 10.0.0.0/8",
    "tcp :: 8080 - 80 10.0.0.0/8",
  ]);
  await ports.remove("p");
  await ports.create({ ...port, endpoint: "six" });
  assert.equal(translated(host), ["tcp :: 8080 fd06::2 80 "]);
  assert.equal(bound(host), ["tcp/0.0.0.0/8080 fd06::2 80", "tcp/::/8080 fd06::2 80"]);
  assert.equal(hooked(host), ["tcp :: fd06::2"]);
});

test("a loopback port is no rule, and SCTP has no hook", async ({ host }) => {
  const { ports } = host.core;
  const port = { endpoint: "dual", hostPort: 8080, containerPort: 80 } as const;
  await ports.create({ ...port, hostAddress: "127.0.0.1", from: ["10.0.0.0/8"] });
  await ports.create({ ...port, hostAddress: "::1" });
  assert.equal(portsOf(host), []);
  assert.equal(hooked(host), ["tcp 127.0.0.1 172.32.0.2", "tcp ::1 fd32::2"]);
  await ports.create({ ...port, hostAddress: "198.51.100.1", protocol: "sctp" });
  assert.equal(portsOf(host), ["sctp 198.51.100.1 8080 172.32.0.2 80 "]);
  assert.is(hooked(host).length, 2);
  assert.is(bound(host).length, 3);
});

test("networks are told with what is masqueraded, inside or apart", async ({ host }) => {
  const { networks } = host.core;
  const subnets = (text: string) => [{ subnet: text }];
  await networks.create({
    name: "in",
    bridge: "in0",
    internal: true,
    subnets: subnets("10.5.0.0/24"),
  });
  await networks.create({
    name: "plain",
    bridge: "plain0",
    masquerade: false,
    subnets: subnets("10.6.0.0/24"),
  });
  await networks.create({
    name: "apart",
    bridge: "apart0",
    isolated: true,
    subnets: subnets("10.7.0.0/24"),
  });
  const spec = firewallSpec(host.core.state, ["ipv6"]);
  assert.equal(spec.strictForwarding, ["ipv6"]);
  assert.equal(
    spec.networks.map(({ bridge, internal, isolated, subnets: all }) =>
      [bridge, internal, isolated, ...all.map((one) => `${one.subnet} ${one.masquerade}`)].join(
        " ",
      ),
    ),
    [
      "nb0 false false 172.17.0.0/16 true",
      "dual0 false false 172.32.0.0/24 true fd32::/64 true",
      "four0 false false 10.4.0.0/24 true",
      "six0 false false fd06::/64 true",
      "in0 true false 10.5.0.0/24 false",
      "plain0 false false 10.6.0.0/24 false",
      "apart0 false true 10.7.0.0/24 true",
    ],
  );
});

test("isolation is the bridge port's, unless bridged packets pass netfilter", async ({ host }) => {
  const { core } = host;
  await core.networks.create({ name: "apart", isolated: true });
  await core.endpoints.create({ name: "e", network: "apart", netns: "x" });
  const isolated = (name: string, ipv4: boolean, ipv6 = ipv4) => {
    const endpoint = core.state.endpoint.named(name);
    assert.ok(endpoint);
    return endpointSpec(core.state, endpoint, { ipv4, ipv6 }).isolatedPort;
  };
  assert.equal(
    [isolated("e", false), isolated("e", true), isolated("four", false)],
    [true, false, false],
  );
});

test("a rule isolates only if it sees both families", async ({ host }) => {
  const { core } = host;
  await core.networks.create({ name: "both", isolated: true, ipv6: true });
  await core.endpoints.create({ name: "e6", network: "both", netns: "x" });
  const endpoint = core.state.endpoint.named("e6");
  assert.ok(endpoint);
  const isolatedPort = (ipv4: boolean, ipv6: boolean) =>
    endpointSpec(core.state, endpoint, { ipv4, ipv6 }).isolatedPort;
  assert.equal(
    [isolatedPort(true, true), isolatedPort(true, false), isolatedPort(false, true)],
    [false, true, true],
  );
});

test("default routes: by priority, then by the network's name, per family", async ({ host }) => {
  const { core } = host;
  const { endpoints } = core;
  const routes = () => {
    const sandbox = core.state.sandbox.named("web");
    assert.ok(sandbox);
    const { ipv4, ipv6 } = defaultRoutes(core.state, sandbox.id);
    const interfaces = new Map(
      core.state.endpoint.values().map((endpoint) => [endpoint.hostInterface, endpoint.interface]),
    );
    return [ipv4, ipv6].map(
      (route) => `${route?.gateway} ${interfaces.get(route?.hostInterface ?? "")}`,
    );
  };
  assert.equal(routes(), ["172.32.0.1 eth0", "fd32::1 eth0"]);
  await endpoints.create({ name: "f", network: "four", sandbox: "web" });
  assert.equal(routes(), ["172.32.0.1 eth0", "fd32::1 eth0"], "dual goes before four");
  await endpoints.remove("f");
  await endpoints.create({ name: "f", network: "four", sandbox: "web", defaultRoutePriority: 1 });
  assert.equal(routes(), ["10.4.0.1 eth1", "fd32::1 eth0"], "four has no IPv6");
  await endpoints.create({ name: "s", network: "six", sandbox: "web", defaultRoutePriority: -1 });
  assert.equal(routes(), ["10.4.0.1 eth1", "fd32::1 eth0"]);
  await endpoints.remove("dual");
  assert.equal(routes(), ["10.4.0.1 eth1", "fd06::1 eth2"]);
});

test.run();
