/**
 * Under load: eight flows through published ports and out by masquerade, flows that the connect hook
 * and the forwarder serve, and a client that opens a connection every millisecond, while the fast
 * path is switched and the daemon is killed. Nothing may be lost.
 */
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Port } from "../../src/network/model.ts";
import type { FlowAnswer } from "./flows.ts";
import { setUp } from "./scenarios.ts";
import { addresses, sleep, Topology } from "./topology.ts";

const test = suite("under load");
const seconds = 40;
let topology: Topology;

interface Flow {
  name: string;
  answer: Promise<FlowAnswer>;
}

function start(name: string, from: string, words: (string | number)[]): Flow {
  return { name, answer: topology.flow(from, words.map(String)) };
}

function startAll(): Flow[] {
  const flows: Flow[] = [];
  for (const protocol of ["tcp", "udp"] as const)
    for (const family of ["ipv4", "ipv6"] as const) {
      const [host, client] = [addresses.host[family], addresses.client[family]];
      const of = `${protocol} over ${family}`;
      flows.push(start(`published ${of}`, "client", [protocol, host, 8080, seconds]));
      flows.push(start(`masqueraded ${of}`, "web", [protocol, client, 7000, seconds]));
    }
  for (const protocol of ["tcp", "udp"] as const)
    flows.push(start(`hook ${protocol}`, "host", [protocol, "127.0.0.1", 8080, seconds]));
  // Bound to loopback before connecting: the container could not answer, so the forwarder does.
  const bound = ["tcp", "127.0.0.1", 8080, seconds, "127.0.0.1"];
  flows.push(start("forwarder tcp", "host", bound));
  flows.push(start("knocking", "client", ["knock", addresses.host.ipv4, 8082, seconds]));
  return flows;
}

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 1 });
  // A connection every millisecond uses up the usual range before TIME_WAIT gives ports back.
  topology.must("client", 'sysctl -qw net.ipv4.ip_local_port_range="1024 65535"');
  await topology.startDaemon();
  await setUp(topology);
  // A server of its own: what it lacks in speed must not look like a loss of the flows.
  await topology.ok("POST", "/v1/ports", {
    name: "knocking",
    endpoint: "web",
    hostPort: 8082,
    containerPort: 82,
  });
  await topology.serve("web", 82);
});

test("switched ten times and killed five times, nothing is lost", async () => {
  const flows = startAll();
  await sleep(2000);
  for (let round = 0; round < 10; round++) {
    await topology.ok("PATCH", "/v1/datapath", { fastPath: false });
    await sleep(600);
    await topology.ok("PATCH", "/v1/datapath", { fastPath: true });
    await sleep(600);
  }
  const ports = await topology.ok<{ items: Port[] }>("GET", "/v1/ports");
  for (let round = 0; round < 5; round++) {
    await topology.killDaemon();
    await sleep(500);
    await topology.startDaemon();
    await sleep(500);
  }
  const served = ports.items.flatMap(({ servedBy }) => servedBy);
  assert.ok(
    served.some(({ uplink }) => uplink === "fast"),
    "the fast path carried none of it",
  );
  const bad: string[] = [];
  const overflows = ["host", "client", "web"].map((name) =>
    topology.must(name, "nstat -asz UdpRcvbufErrors | awk '/Udp/ { print $2 }'").trim(),
  );
  console.log(`    datagrams a busy receiver dropped: ${overflows.join(", ")}`);
  for (const { name, answer } of flows) {
    const { right, wrong, error } = await answer;
    const line = `${name}: ${right} right, ${wrong} wrong ${error}`;
    console.log(`    ${line}`);
    if (error !== "" || wrong > 0 || right < 100) bad.push(line);
  }
  assert.is(bad.join("\n"), "");
});

/** The host's TCP entries that an awk pattern chooses: `$3` seconds are left, `$4` is the state. */
function tracked(pattern: string): string {
  const listing = join(topology.folder, "conntrack");
  // By a file: the end of a pipe would hide that there is no listing.
  topology.must("host", `conntrack -L -p tcp >${listing} 2>/dev/null`);
  return topology.must("host", `awk '${pattern}' ${listing} | head -n 5`);
}

test("5 GiB without a pause, then a reset, closes on both sides", async () => {
  await topology.ok("POST", "/v1/ports", {
    name: "sink",
    endpoint: "web",
    hostPort: 8081,
    containerPort: 81,
  });
  topology.background("web", "socat -u TCP-LISTEN:81,reuseaddr /dev/null");
  await sleep(500);
  topology.must(
    "client",
    `timeout 120 socat -u OPEN:/dev/zero,readbytes=5368709120 TCP:${addresses.host.ipv4}:8081,so-linger=0,shut-none`,
  );
  await sleep(1000);
  assert.is(topology.must("web", "ss -Htn state established '( sport = :81 )'"), "");
  // A reset that conntrack can't place by its number leaves the state, and ten seconds to live.
  assert.is(tracked('/dport=8081/ && $3 > 10 && $4 == "ESTABLISHED"'), "");
  const cache = await topology.ok<{ cache: { fastPackets: number } }>("GET", "/v1/datapath");
  assert.ok(cache.cache.fastPackets > 80_000, `${cache.cache.fastPackets} fast packets`);
});

test("closed connections leave conntrack within five minutes", () => {
  assert.is.not(tracked("$3 <= 300"), "", "what was closed just now is still listed");
  assert.is(tracked("$3 > 300"), "");
});

test.after(async () => {
  await topology?.remove();
});
test.run();
