import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { seed } from "../api/support.ts";
import { addTraffic } from "../api/traffic.ts";
import { type Daemon, natbridge, startDaemon } from "./support.ts";

const test = suite<{ daemon: Daemon }>("commands");
test.before.each(async (context) => {
  context.daemon = await startDaemon();
  await seed(context.daemon.api);
});
test.after.each((context) => context.daemon.stop());

async function ok(daemon: Daemon, args: string[], input?: string): Promise<string> {
  const result = await daemon.run(args, input === undefined ? {} : { input });
  assert.is(result.code, 0, `natbridge ${args.join(" ")}: ${result.stderr}`);
  assert.is(result.stderr, "");
  return result.stdout;
}

test("the first session", async ({ daemon }) => {
  const { service } = daemon.api;
  const id = await ok(daemon, [
    "network",
    "create",
    "net2",
    "--subnet",
    "172.33.0.0/24",
    "--gateway",
    "172.33.0.1",
    "--ip-range",
    "172.33.0.128/25",
    "--reserved",
    "172.33.0.130",
    "--subnet",
    "fd00::/64",
    "--label",
    "a=b=c",
    "--no-masquerade",
    "--mtu",
    "1400",
  ]);
  assert.match(id, /^[0-9a-f]{64}\n$/);
  const network = service.networks.get("net2");
  assert.equal(network.subnets, [
    {
      subnet: "172.33.0.0/24",
      gateway: "172.33.0.1",
      range: "172.33.0.128/25",
      reserved: ["172.33.0.130"],
    },
    { subnet: "fd00::/64", gateway: "fd00::1", range: null, reserved: [] },
  ]);
  assert.is(network.masquerade, false);
  assert.is(network.mtu, 1400);
  assert.equal(network.labels, { a: "b=c" });

  await ok(daemon, [
    "endpoint",
    "create",
    "db",
    "--network",
    "net2",
    "--netns",
    "db",
    "--ip",
    "172.33.0.5",
    "--ip6",
    "fd00::5",
    "--alias",
    "sql",
    "--priority",
    "-3",
    "--no-source-check",
  ]);
  const endpoint = service.endpoints.get("db");
  assert.equal(endpoint.addresses, ["172.33.0.5/24", "fd00::5/64"]);
  assert.equal(endpoint.aliases, ["sql"]);
  assert.is(endpoint.defaultRoutePriority, -3);
  assert.is(endpoint.sourceCheck, false);

  const published = await ok(daemon, [
    "port",
    "publish",
    "db",
    "127.0.0.1:5353:53/udp",
    "[::1]:81:80",
    "--from",
    "10.0.0.0/8",
  ]);
  assert.match(published, /127\.0\.0\.1:5353->53\/udp/);
  assert.match(published, /\[::1\]:81->80\/tcp/);
  assert.equal((await service.ports.get("db-udp-5353")).from, ["10.0.0.0/8"]);
  // Any free port of the host's.
  assert.match(await ok(daemon, ["port", "publish", "db", "82"]), /0\.0\.0\.0:\d{5}->82\/tcp/);
});

test("lists are tables, ids or JSON", async ({ daemon }) => {
  const table = await ok(daemon, ["network", "ls"]);
  assert.match(
    table,
    /^NETWORK ID +NAME +DRIVER +SCOPE +SUBNETS +BRIDGE\n(?:.*\n)*[0-9a-f]{12} +my_net +bridge +local +172\.32\.0\.0\/24 +nb-[0-9a-f]{10}$/m,
  );
  assert.match(await ok(daemon, ["network", "ls", "-q"]), /^([0-9a-f]{12}\n){4}$/);
  for (const args of [
    ["--json", "network", "ls"],
    ["network", "ls", "--json"],
  ])
    assert.equal(
      JSON.parse(await ok(daemon, args)).map(({ name }: { name: string }) => name),
      ["bridge", "host", "my_net", "none"],
    );
  assert.match(await ok(daemon, ["endpoint", "ls"]), /web +my_net +web:eth0 +172\.32\.0\.10\/24/);
  assert.match(await ok(daemon, ["sandbox", "ls"]), /web +\/run\/netns\/web +present +eth0=web/);
  assert.match(
    await ok(daemon, ["port", "ls"]),
    /web-8080 +web +0\.0\.0\.0:8080->80\/tcp, \[::\]:8080->80\/tcp +any/,
  );
});

test("filters narrow lists", async ({ daemon }) => {
  await ok(daemon, ["network", "create", "other", "--label", "team=b"]);
  assert.match(await ok(daemon, ["network", "ls", "--filter", "label=team=b"]), /other/);
  assert.not.match(await ok(daemon, ["network", "ls", "--filter", "label=team=b"]), /my_net/);
  assert.not.match(await ok(daemon, ["network", "ls", "-f", "name=oth"]), /my_net/);
  assert.not.match(await ok(daemon, ["endpoint", "ls", "--filter", "network=other"]), /web/);
});

test("inspect answers an array, also when one is missing", async ({ daemon }) => {
  assert.is(JSON.parse(await ok(daemon, ["network", "inspect", "my_net"]))[0].name, "my_net");
  const result = await daemon.run(["endpoint", "inspect", "nope", "web"]);
  assert.is(result.code, 1);
  assert.is(JSON.parse(result.stdout).length, 1);
  assert.match(result.stderr, /nope.*endpoint_not_found/);
});

test("connect and disconnect by sandbox and by endpoint", async ({ daemon }) => {
  const { service } = daemon.api;
  await ok(daemon, ["network", "create", "other", "--internal"]);
  assert.is(service.networks.get("other").internal, true);
  await ok(daemon, ["network", "connect", "other", "web", "--ip", "172.18.0.9", "--priority", "5"]);
  const endpoint = service.endpoints.get("web-other");
  assert.is(endpoint.sandbox, "web");
  assert.is(endpoint.interface, "eth1");
  await ok(daemon, ["network", "disconnect", "other", "web"]);
  assert.throws(() => service.endpoints.get("web-other"));
  await ok(daemon, ["endpoint", "create", "named", "-n", "other", "--netns", "x"]);
  await ok(daemon, ["network", "connect", "my_net", "named"]);
  assert.is(service.endpoints.get("x-my_net").sandbox, "x");
  await ok(daemon, ["network", "disconnect", "other", "named"]);
  assert.throws(() => service.endpoints.get("named"));
});

test("prune asks, and removes only what is unused", async ({ daemon }) => {
  await ok(daemon, ["network", "create", "unused"]);
  const asked = await daemon.run(["network", "prune"]);
  assert.is(asked.code, 2);
  assert.match(asked.stderr, /--force/);
  assert.is(await ok(daemon, ["network", "prune", "--force"]), "unused\n");
  assert.equal(
    daemon.api.service.networks.list().map(({ name }) => name),
    ["bridge", "host", "none", "my_net"],
  );
});

test("rm goes on after a failure and tells it", async ({ daemon }) => {
  const result = await daemon.run(["port", "rm", "nope", "web-8080"]);
  assert.is(result.code, 1);
  assert.is(result.stdout, "web-8080\n");
  assert.match(result.stderr, /nope/);
  assert.is((await daemon.run(["network", "rm", "my_net"])).code, 1);
  await ok(daemon, ["network", "rm", "--force", "my_net"]);
});

test("what was published before one is refused is taken back", async ({ daemon }) => {
  const result = await daemon.run(["port", "publish", "web", "81:80", "82:80", "8080:80"]);
  assert.is(result.code, 1);
  assert.match(result.stderr, /web-8080/);
  assert.is((await daemon.api.service.ports.list()).length, 1);
});

test("port update moves a port", async ({ daemon }) => {
  await ok(daemon, ["port", "update", "web-8080", "--host-port", "8081", "--from", "10.0.0.0/8"]);
  const port = await daemon.api.service.ports.get("web-8080");
  assert.is(port.hostPort, 8081);
  assert.equal(port.from, ["10.0.0.0/8"]);
  await ok(daemon, ["port", "update", "web-8080", "--from-any"]);
  assert.equal((await daemon.api.service.ports.get("web-8080")).from, []);
});

test("connections, rules, status and datapath show", async ({ daemon }) => {
  const { host } = daemon.api;
  addTraffic(host);
  host.datapath.foreign = {
    nft: '{"nftables":[{"table":{"family":"ip","name":"filter"}},{"chain":{"family":"ip","table":"filter","name":"FORWARD","type":"filter","hook":"forward","prio":0,"policy":"accept"}},{"rule":{"family":"ip","table":"filter","chain":"FORWARD","handle":4,"expr":[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"eth0"}},{"limit":{"rate":1,"per":"second"}},{"accept":null}]}}]}',
    legacy: "",
  };
  const bridge = `"${(await daemon.api.service.networks.get("my_net")).bridge}"`;
  host.datapath.held = [
    { set: "bridges", key: bridge, value: "" },
    { set: "masquerade4", key: "172.32.0.0/24", value: "" },
  ];
  host.datapath.sysctls.set("net/bridge/bridge-nf-call-iptables", "1");
  await host.core.upkeep.now();
  assert.match(
    await ok(daemon, ["connections"]),
    /tcp +ESTABLISHED +inbound +198\.51\.100\.9:40000 +198\.51\.100\.1:8080 +198\.51\.100\.9:40000 -> 172\.32\.0\.10:80 +web +web-8080 +fast/,
  );
  assert.is(JSON.parse(await ok(daemon, ["connections", "--protocol", "udp", "--json"])).length, 1);
  assert.match(await ok(daemon, ["rules"]), /network my_net\n(?: {2}nft .*\n)+ {2}iptables/);
  const status = await ok(daemon, ["status"]);
  assert.match(status, /Fast path +on, 1 flows, 95\.0 % of packets fast/);
  assert.match(status, /off on eth0: it limits a rate: ip filter FORWARD/);
  assert.match(status, /4 networks, 1 sandboxes, 1 endpoints, 1 published ports/);
  assert.match(status, /Warnings +bridge-nf-call-iptables is 1/);
  assert.is(JSON.parse(await ok(daemon, ["status", "--json"])).counts.ports, 1);
  assert.match(await ok(daemon, ["datapath", "show"]), /net\/ipv4\/ip_forward = 1 \(was 0\)/);
});

test("datapath off and on reach the daemon", async ({ daemon }) => {
  assert.match(await ok(daemon, ["datapath", "off"]), /^fast path off/);
  assert.is(daemon.api.host.datapath.enabled, false);
  assert.match(await ok(daemon, ["datapath", "on"]), /^fast path on/);
  assert.is(daemon.api.host.datapath.enabled, true);
});

test("events follow and can be narrowed", async ({ daemon }) => {
  const lost = { type: "sandbox.lost", object: null, message: "web is gone" };
  daemon.api.service.events.record([lost], "2026-01-01T00:00:00.000Z");
  setTimeout(() => daemon.api.shutdown.abort(), 1500);
  const result = await daemon.run(["events", "--since", "0", "--type", "sandbox", "--json"]);
  assert.is(result.code, 1);
  const lines = result.stdout.trimEnd().split("\n");
  assert.equal(
    lines.map((line) => JSON.parse(line).type),
    ["sandbox.created", "sandbox.lost"],
  );
});

test("apply reads JSON, YAML and standard input", async ({ daemon }) => {
  const { service } = daemon.api;
  const json = join(daemon.folder, "a.json");
  writeFileSync(json, JSON.stringify({ owner: "me", networks: [{ name: "one" }] }));
  assert.match(
    await ok(daemon, ["apply", "-f", json, "--dry-run"]),
    /network one created\ndry run.*1 created/,
  );
  assert.is(service.networks.list().length, 4);
  assert.match(
    await ok(daemon, ["apply", "-f", json]),
    /1 created, 0 updated, 0 deleted, 0 unchanged/,
  );
  const yaml =
    "owner: me\nnetworks:\n  - name: two\n    labels: { a: b }\nports:\n  - { name: p, endpoint: web, hostPort: 82, containerPort: 80 }\n";
  await ok(daemon, ["apply", "-f", "-"], yaml);
  assert.equal(service.networks.get("two").labels, { a: "b" });
  assert.is((await service.ports.get("p")).hostPort, 82);
});

test("token create prints a token and its line", async () => {
  const result = await natbridge(["token", "create", "grafana", "--scope", "read", "--json"]);
  assert.is(result.code, 0, result.stderr);
  assert.match(JSON.parse(result.stdout).line, /^[0-9a-f]{64} read grafana$/);
});

test("names from elsewhere cannot move the terminal's cursor", async ({ daemon }) => {
  const { state } = daemon.api.service;
  const endpoint = state.endpoint.named("web");
  assert.ok(endpoint);
  state.endpoint.put({ ...endpoint, hostInterface: "nb\u001b[2J" });
  assert.not.ok((await ok(daemon, ["endpoint", "ls"])).includes("\u001b"));
});

test.run();
