/** Being killed, mended, broken half-way, started twice, and taken away. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Endpoint } from "../../src/network/model.ts";
import { setUp } from "./scenarios.ts";
import { addresses, isAlive, sleep, Topology } from "./topology.ts";

const test = suite("life cycle");
let topology: Topology;
let pristine: string;

/** All of the host that natbridge touches. */
function hostState(): string {
  return topology.must(
    "host",
    [
      "ip -o link show | sed 's/^[0-9]*: //' | awk '{print $1, $2}' | sort",
      "ip -o addr show | awk '{print $2, $3, $4}' | sort",
      "ip route show table all | sort; ip -6 route show table all | grep -v '^ff' | sed 's/ pref.*//' | sort",
      "nft list ruleset",
      "iptables-save | sed '/^#/d'; ip6tables-save | sed '/^#/d'",
      "sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.netfilter.nf_conntrack_tcp_be_liberal",
      "sysctl -n net.ipv6.conf.up0.accept_ra net.ipv6.conf.up1.accept_ra",
      "bpftool net show | sed -nE '/up[01]/p'",
    ].join("; "),
  );
}

async function isServed(): Promise<void> {
  for (const family of ["ipv4", "ipv6"] as const) {
    const answer = await topology.connect("client", "tcp", addresses.host[family], 8080);
    assert.ok(answer.ok, `${family}: ${answer.error}`);
  }
  const loopback = await topology.connect("host", "tcp", "127.0.0.1", 8080);
  assert.ok(loopback.ok, `loopback: ${loopback.error}`);
}

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 1 });
  pristine = hostState();
  await topology.startDaemon();
  await setUp(topology);
  await isServed();
  assert.is.not(hostState(), pristine);
});

test("killed with -9 and started again five times under traffic, nothing is lost", async () => {
  const streams = [
    topology.stream("client", addresses.host.ipv4, 8080, 12),
    topology.stream("client", addresses.host.ipv6, 8080, 12),
    topology.stream("web", addresses.client.ipv4, 7000, 12),
    topology.stream("host", "127.0.0.1", 8080, 12),
    topology.stream("host", "::1", 8080, 12),
  ];
  let failures = 0;
  let requests = 0;
  let stop = false;
  const requester = (async () => {
    while (!stop) {
      const answer = await topology.connect("client", "tcp", addresses.host.ipv4, 8080, 100);
      requests++;
      if (!answer.ok) failures++;
    }
  })();
  for (let round = 0; round < 5; round++) {
    await topology.killDaemon();
    await sleep(300);
    await topology.startDaemon();
  }
  for (const stream of await Promise.all(streams)) assert.ok(stream.ok, stream.error);
  stop = true;
  await requester;
  assert.is(failures, 0);
  assert.ok(requests > 3);
});

test("puts right what was removed behind its back", async () => {
  const endpoint = await topology.ok<Endpoint>("GET", "/v1/endpoints/web");
  topology.must("host", `ip link del ${endpoint.hostInterface}`);
  topology.must("host", "nft delete table inet natbridge");
  topology.must("host", "sysctl -qw net.ipv4.ip_forward=0");
  topology.must("host", "ip link del nb0");
  for (let waited = 0; waited < 40; waited++) {
    await sleep(250);
    const mended = topology.run(
      "host",
      `ip link show ${endpoint.hostInterface} && ip link show nb0 && nft list table inet natbridge && [ $(sysctl -n net.ipv4.ip_forward) = 1 ]`,
    );
    if (mended.code === 0) break;
  }
  await isServed();
});

test("also what was removed while it was not running", async () => {
  const endpoint = await topology.ok<Endpoint>("GET", "/v1/endpoints/web");
  await topology.killDaemon();
  topology.must("host", `ip link del ${endpoint.hostInterface}; nft delete table inet natbridge`);
  await topology.startDaemon();
  await isServed();
});

const killHolder = async () => process.kill(await topology.holderPid(), "SIGKILL");

test("a holder killed with -9 is replaced at once, and what it held is reserved again", async () => {
  const listening = "ss -Hltn | awk '{print $4}' | sort";
  const before = topology.must("host", listening);
  assert.match(before, /:8080/);
  await killHolder();
  const killed = performance.now();
  while (topology.must("host", listening) !== before && performance.now() - killed < 10_000)
    await sleep(50);
  assert.is(topology.must("host", listening), before);
  // The regular look is every 30 s: it has been told.
  assert.ok(performance.now() - killed < 5000, `${performance.now() - killed} ms`);
  await isServed();
});

test("a change that meets a dead holder is made with the next one", async () => {
  await killHolder();
  const port = { endpoint: "web", containerPort: 80, hostPort: 8099 };
  await topology.ok("POST", "/v1/ports", port);
  assert.match(topology.must("host", "ss -Hltn"), /:8099 /);
  assert.match(topology.must("host", "ss -Hltn"), /:8080 /);
  await topology.ok("DELETE", "/v1/ports/web-tcp-8099");
});

test("a second daemon refuses to start and changes nothing", async () => {
  const second = topology.cli(
    `daemon --state-dir ${topology.folder}/state2 --run-dir ${topology.folder}/run2`,
  );
  assert.is(second.code, 1);
  assert.match(second.stderr + second.stdout, /already|another/i);
  await isServed();
});

test("a FORWARD policy of DROP is met, whoever set it", async () => {
  for (const policy of [
    [
      "iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP",
      "iptables-nft -P FORWARD ACCEPT; ip6tables-nft -P FORWARD ACCEPT; nft delete table ip filter; nft delete table ip6 filter",
    ],
    [
      "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP",
      "iptables-legacy -P FORWARD ACCEPT; ip6tables-legacy -P FORWARD ACCEPT",
    ],
  ] as const) {
    topology.must("host", policy[0]);
    let answer = await topology.connect("client", "tcp", addresses.host.ipv4, 8080);
    // A legacy policy announces itself to nobody; the regular reconciliation finds it.
    for (let waited = 0; !answer.ok && waited < 45; waited++) {
      await sleep(1000);
      answer = await topology.connect("client", "tcp", addresses.host.ipv4, 8080);
    }
    topology.must("host", policy[1]);
    assert.ok(answer.ok, `${policy[0]}: ${answer.error}`);
  }
});

test("a sandbox that is gone is reported, not lost", async () => {
  topology.addSandbox("gone");
  await topology.ok("POST", "/v1/endpoints", {
    name: "gone",
    network: "my_net",
    netns: `/run/netns/${topology.ns("gone")}`,
  });
  topology.removeSandbox("gone");
  let lost = false;
  for (let waited = 0; waited < 40 && !lost; waited++) {
    await sleep(250);
    const endpoint = await topology.ok<Endpoint>("GET", "/v1/endpoints/gone");
    lost = endpoint.status.conditions.some(({ status }) => status === "false");
  }
  assert.ok(lost, "no condition says so");
  await topology.ok("DELETE", "/v1/endpoints/gone");
});

const pins = "/sys/fs/bpf/natbridge/$(stat -Lc %i /proc/self/ns/net)";
const idsIn = (json: string): number[] =>
  [...json.matchAll(/"id":(\d+)/g)].map(([, id]) => Number(id));

test("uninstalling leaves the host as it was found", async () => {
  await topology.killDaemon("SIGTERM");
  // By their own ids: the root cgroup's connect hooks are shared with other network namespaces.
  const links = idsIn(
    topology.must("host", `for pin in ${pins}/links/*; do bpftool -j link show pinned $pin; done`),
  );
  assert.ok(links.length > 8, `${links.length} links are pinned`);
  const holder = await topology.holderPid();
  assert.ok(isAlive(holder));
  const result = topology.cli(
    `uninstall --state-dir ${topology.folder}/state --run-dir ${topology.folder}/run`,
  );
  assert.is(result.code, 0, result.stderr);
  assert.is(topology.run("host", `ls -d ${pins}`).code, 2);
  const left = new Set(idsIn(topology.must("host", "bpftool -j link show")));
  assert.equal(
    links.filter((id) => left.has(id)),
    [],
  );
  assert.not.ok(isAlive(holder), "the holder has ended");
  assert.is(hostState(), pristine);
});

test.after(async () => {
  await topology?.remove();
});
test.run();
