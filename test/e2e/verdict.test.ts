/**
 * The fast path needs a verdict on the host's rules that stands: none is carried on from the moment a
 * rule changes, none by the verdict of a daemon that is long dead, none by what a call has taken back.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import { families, setUp } from "./scenarios.ts";
import { addresses, sleep, Topology } from "./topology.ts";

const test = suite("verdict");
let topology: Topology;

const root = fileURLToPath(new URL("../..", import.meta.url));
const flowsFile = join(root, "test/e2e/flows.ts");
const deno = join(root, "node_modules/.bin/deno");

/** How long a verdict outlives the daemon that made it. */
const leaseMilliseconds = 4000;

const status = (): Promise<DatapathStatus> => topology.ok<DatapathStatus>("GET", "/v1/datapath");
const fastPackets = async (): Promise<number> => (await status()).cache.fastPackets;
const passed = async (reason: string): Promise<number> =>
  (await status()).passes.find((pass) => pass.reason === reason)?.packets ?? 0;
const rulesOff = async (): Promise<string> =>
  (await status()).off.map(({ rule, reason }) => `${rule} ${reason}`).join("\n");
const answered = async (reason: string): Promise<number> =>
  (await status()).connectHook.find((call) => call.reason === reason)?.calls ?? 0;

async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const started = performance.now();
  while (!(await isSo())) {
    if (performance.now() - started > 30_000) throw new Error(`not within 30 s: ${what}`);
    await sleep(20);
  }
}

/** Waits until packets of the flows under way are fast. */
async function becomesFast(when: string): Promise<void> {
  const before = await fastPackets();
  await until(`packets are fast ${when}`, async () => (await fastPackets()) > before + 40);
}

/** Demands that none was fast since the last reading, while some were looked at. */
async function noneIsFast(since: number, what: string): Promise<void> {
  const kernel = (await status()).cache.kernelPackets;
  await sleep(600);
  const { cache } = await status();
  assert.is(cache.fastPackets - since, 0, `${what}: packets were fast`);
  assert.ok(cache.kernelPackets > kernel, `${what}: there were no packets`);
}

/** Datagrams that have arrived in the sandbox, of both families. */
const datagrams = (): number =>
  Number(
    topology.must(
      "web",
      "{ awk '/^Udp:/ { four = $2 } END { print four }' /proc/net/snmp; awk '/^Udp6InDatagrams/ { print $2 }' /proc/net/snmp6; } | awk '{ sum += $1 } END { print sum }'",
    ),
  );

const pidFiles: string[] = [];

/** Begins to send datagrams of both families to a port, 400 a second in all; each is answered. */
function startFlows(port = 8080): void {
  for (const family of families) {
    const pidFile = join(topology.folder, `flow-${family}-${port}`);
    const words = `${flowsFile} udp ${addresses.host[family]} ${port} 600`;
    topology.background(
      "client",
      `echo $$ > ${pidFile}; exec ${deno} run -A --no-config --node-modules-dir=manual ${words}`,
    );
    pidFiles.push(pidFile);
  }
}

function stopFlows(): void {
  for (const pidFile of pidFiles.splice(0)) topology.run("client", `kill $(cat ${pidFile})`);
}

const meter = (limit: string): string =>
  `nft 'add table inet metered; add chain inet metered f { type filter hook forward priority 0; }; add rule inet metered f udp dport 80 ${limit}'`;
const unmeter = "nft delete table inet metered";

/** Adds a meter that all may pass, and watches what is fast from then on. */
async function measureNewMeter(load: string): Promise<void> {
  await becomesFast("before the meter");
  topology.must("host", meter("limit rate 1000000/second accept"));
  const committed = performance.now();
  const since = await fastPackets();
  await until("status says why", async () => /limit/.test(await rulesOff()));
  const judged = performance.now() - committed;
  assert.is((await fastPackets()) - since, 0, "packets were fast before the meter was applied");
  await noneIsFast(since, "with a meter");
  topology.must("host", unmeter);
  const removed = performance.now();
  await until("it is fast again", async () => (await rulesOff()) === "");
  await becomesFast("without the meter");
  const again = performance.now() - removed;
  console.log(
    `    ${load}: a new meter was judged after ${judged.toFixed(0)} ms; without it, fast after ${again.toFixed(0)} ms`,
  );
}

test.after.each(stopFlows);
test.before.each(() => {
  // One that failed half-way must not fail the others.
  topology?.run("host", `${unmeter}; nft delete table ip many`);
});

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  await topology.startDaemon();
  await setUp(topology);
});

test("from a new rule on, no packet is fast until it is judged", async () => {
  startFlows();
  await measureNewMeter("an empty host");
});

test("not one datagram passes beyond a new limit", async () => {
  startFlows();
  await becomesFast("before the limit");
  topology.must("host", meter("limit rate over 20/second burst 5 packets drop"));
  const before = datagrams();
  const started = performance.now();
  await sleep(1500);
  const count = datagrams() - before;
  const seconds = (performance.now() - started) / 1000;
  topology.must("host", unmeter);
  assert.ok(count <= 20 * seconds + 5 + 2, `${count} datagrams in ${seconds.toFixed(2)} s`);
  assert.ok(count >= 10, `only ${count} datagrams`);
});

test("a queueing discipline and a policy rule end it as a meter does", async () => {
  startFlows();
  for (const [add, remove, what] of [
    [
      "tc qdisc replace dev up0 root tbf rate 1gbit burst 100k latency 50ms",
      "tc qdisc del dev up0 root",
      /queueing/,
    ],
    [
      "iptables-legacy -A FORWARD -m limit --limit 10000/s -j ACCEPT",
      "iptables-legacy -F FORWARD",
      /limit/,
    ],
  ] as const) {
    await becomesFast(`before ${add}`);
    topology.must("host", add);
    // iptables-legacy announces itself to nobody: its lock file tells.
    await until(`status says ${what}`, async () => what.test(await rulesOff()));
    await noneIsFast(await fastPackets(), add);
    topology.must("host", remove);
    await until("nothing hinders", async () => (await rulesOff()) === "");
  }
});

test("natbridge's own changes leave the fast path of others alone", async () => {
  startFlows();
  await becomesFast("at first");
  await until("nothing hinders", async () => (await rulesOff()) === "");
  const [unjudged, fast] = [await passed("rules_unjudged"), await fastPackets()];
  topology.addSandbox("more");
  await topology.ok("POST", "/v1/networks", {
    name: "more",
    subnets: [{ subnet: "172.34.0.0/24" }],
  });
  await topology.ok("POST", "/v1/endpoints", {
    name: "more",
    network: "more",
    netns: `/run/netns/${topology.ns("more")}`,
  });
  for (let port = 9100; port < 9110; port++)
    await topology.ok("POST", "/v1/ports", { endpoint: "more", hostPort: port, containerPort: 80 });
  await topology.ok("DELETE", "/v1/networks/more?force=true");
  assert.is(await passed("rules_unjudged"), unjudged, "it waited for a verdict");
  assert.ok((await fastPackets()) > fast, "nothing was fast meanwhile");
  topology.removeSandbox("more");
});

/** What a call takes back is gone when it is answered. */
const endings: {
  name: string;
  port: number;
  end: () => Promise<unknown>;
  back: () => Promise<unknown>;
}[] = [
  {
    name: "DELETE of a port",
    port: 8081,
    end: () => topology.ok("DELETE", "/v1/ports/ending"),
    back: async () => undefined,
  },
  {
    name: "DELETE of an endpoint",
    port: 8081,
    end: () => topology.ok("DELETE", "/v1/endpoints/db"),
    back: () =>
      topology.ok("POST", "/v1/endpoints", {
        name: "db",
        network: "my_net",
        netns: `/run/netns/${topology.ns("db")}`,
        addresses: ["172.32.0.11", "fd32::11"],
      }),
  },
  {
    name: "an apply that leaves the port out",
    port: 8081,
    end: () => topology.ok("POST", "/v1/apply", { owner: "ending", prune: true }),
    back: async () => undefined,
  },
  {
    name: "PATCH that switches the network's fast path off",
    port: 8080,
    end: () => topology.ok("PATCH", "/v1/networks/my_net", { fastPath: "off" }),
    back: () => topology.ok("PATCH", "/v1/networks/my_net", { fastPath: "auto" }),
  },
  {
    name: "PATCH that switches the fast path off",
    port: 8080,
    end: () => topology.ok("PATCH", "/v1/datapath", { fastPath: false }),
    back: () => topology.ok("PATCH", "/v1/datapath", { fastPath: true }),
  },
];

for (const { name, port, end, back } of endings)
  test(`when it is answered, it is so: ${name}`, async () => {
    if (port !== 8080)
      await topology.ok("POST", "/v1/apply", {
        owner: "ending",
        ports: [
          { name: "ending", endpoint: "db", protocol: "udp", hostPort: port, containerPort: 80 },
        ],
      });
    startFlows(port);
    await becomesFast("at first");
    await end();
    await noneIsFast(await fastPackets(), name);
    await back();
  });

test("the connect hook is off when the call that switches it off is answered", async () => {
  const served = await answered("served");
  assert.ok((await topology.connect("host", "tcp", "127.0.0.1", 8080)).ok);
  assert.ok((await answered("served")) > served, "the hook did not serve at first");
  await topology.ok("PATCH", "/v1/datapath", { fastPath: false });
  const after = await answered("served");
  assert.ok((await topology.connect("host", "tcp", "127.0.0.1", 8080)).ok, "the forwarder");
  assert.is(await answered("served"), after, "the hook served on");
  await topology.ok("PATCH", "/v1/datapath", { fastPath: true });
  assert.ok((await topology.connect("host", "tcp", "127.0.0.1", 8080)).ok);
  assert.ok((await answered("served")) > after, "the hook does not serve again");
});

/** Packets of the clients' that went round the bridge, as only the fast path does; no daemon is asked. */
async function shareAround(bridge: string): Promise<number> {
  const packets = (device: string, way: "rx" | "tx"): number =>
    JSON.parse(topology.must("host", `ip -s -j link show dev ${device}`))[0].stats64[way].packets;
  const before = [packets("up0", "rx"), packets(bridge, "tx")] as const;
  await sleep(500);
  const arrived = packets("up0", "rx") - before[0];
  return 1 - (packets(bridge, "tx") - before[1]) / arrived;
}

test("a daemon that is killed and soon back loses neither a packet nor the fast path", async () => {
  const running = [
    topology.stream("client", addresses.host.ipv4, 8080, 8),
    topology.stream("client", addresses.host.ipv6, 8080, 8),
    ...families.map((family) =>
      topology.flow("client", ["tcp", addresses.host[family], "8080", "8"]),
    ),
  ];
  startFlows();
  await becomesFast("at first");
  const { bridge } = await topology.ok<{ bridge: string }>("GET", "/v1/networks/my_net");
  // Without a daemon no TCP connection is learned: all must be before.
  await until("all are fast", async () => (await shareAround(bridge)) > 0.9);
  const before = (await status()).cache;
  const killed = performance.now();
  await topology.killDaemon();
  const dead = await shareAround(bridge);
  assert.ok(dead > 0.5, `${dead} were fast without a daemon`);
  await topology.startDaemon();
  const after = (await status()).cache;
  const seconds = (performance.now() - killed) / 1000;
  const fast = after.fastPackets - before.fastPackets;
  const share = fast / (fast + after.kernelPackets - before.kernelPackets);
  console.log(
    `    ready again after ${seconds.toFixed(2)} s, ${(share * 100).toFixed(1)} % fast, ${(dead * 100).toFixed(1)} % without a daemon`,
  );
  // On a machine that is too busy to start it in time the kernel path takes over.
  if (seconds * 1000 < leaseMilliseconds - 500) assert.ok(share > 0.5, `${share} were fast`);
  await becomesFast("with the new daemon");
  for (const answer of await Promise.all(running)) assert.is(answer.error, "");
});

test("a dead daemon's verdict is over in four seconds: new rules apply, loopback too", async () => {
  await until("nothing hinders", async () => (await rulesOff()) === "");
  startFlows();
  await becomesFast("at first");
  await topology.killDaemon();
  topology.must("host", meter("limit rate over 20/second burst 5 packets drop"));
  // A rule that the connect hook would pass by: it looks at loopback's packets.
  topology.must(
    "host",
    "nft 'add chain inet metered o { type filter hook output priority 0; }; add rule inet metered o oifname lo tcp dport 8080 meta skuid 0 drop'",
  );
  await sleep(leaseMilliseconds + 300);
  const before = datagrams();
  const started = performance.now();
  await sleep(1500);
  const count = datagrams() - before;
  const seconds = (performance.now() - started) / 1000;
  assert.ok(count <= 20 * seconds + 5 + 2, `${count} datagrams in ${seconds.toFixed(2)} s`);
  assert.ok(count >= 10, `only ${count} datagrams`);
  for (const host of ["127.0.0.1", "::1"])
    assert.not.ok(
      (await topology.connect("host", "tcp", host, 8080)).ok,
      `${host}: rule passed by`,
    );
  topology.must("host", "nft flush chain inet metered o");
  for (const host of ["127.0.0.1", "::1"]) {
    const answer = await topology.connect("host", "tcp", host, 8080);
    assert.ok(answer.ok, `${host} by the forwarder: ${answer.error}`);
  }
  await topology.startDaemon();
  assert.match(await rulesOff(), /limit/);
  topology.must("host", unmeter);
  await until("nothing hinders", async () => (await rulesOff()) === "");
  await becomesFast("with the new daemon");
});

test("also with 4,000 published ports and 8,000 foreign rules", async () => {
  await topology.ok("POST", "/v1/ports", {
    name: "many",
    endpoint: "web",
    hostPort: "20000-23999",
    containerPort: "20000-23999",
  });
  const rules = Array.from(
    { length: 8000 },
    (_, index) =>
      `add rule ip many c ip saddr 10.${index >> 8}.${index & 255}.0/24 tcp dport ${1000 + (index % 4000)} counter accept`,
  );
  const chain = "add table ip many\nadd chain ip many c { type filter hook forward priority 5; }";
  writeFileSync(join(topology.folder, "many.nft"), `${chain}\n${rules.join("\n")}\n`);
  topology.must("host", `nft -f ${topology.folder}/many.nft`);
  await until("they are judged", async () => (await rulesOff()) === "");
  startFlows();
  await measureNewMeter("4,000 ports, 8,000 rules");
  topology.must("host", "nft delete table ip many");
  await topology.ok("DELETE", "/v1/ports/many");
});

test.after(async () => {
  await topology?.remove();
});
test.run();
