/** What is on the host already: other software's bridges, ports and monitoring. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Network } from "../../src/network/model.ts";
import { setUp } from "./scenarios.ts";
import { addresses, sleep, Topology } from "./topology.ts";

const test = suite("beside others");
let topology: Topology;

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  topology.must(
    "host",
    "ip link add virbr0 type bridge && ip addr add 192.168.122.1/24 dev virbr0 && ip link set virbr0 up",
  );
  topology.must("host", "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0");
  topology.must("host", "ip route add 172.18.0.0/16 via 198.51.100.2");
  await topology.startDaemon(["--metrics-listen", "127.0.0.1:9652"]);
  await setUp(topology);
});

test("pool-skips-what-overlaps: docker0, a route, and virbr0's subnet", async () => {
  const names = Array.from({ length: 17 }, (_, index) => `pool${index}`);
  const taken: string[] = [];
  for (const name of names) {
    const { subnets } = await topology.ok<Network>("POST", "/v1/networks", { name });
    taken.push(subnets[0]?.subnet ?? "");
  }
  assert.is(taken[0], "172.19.0.0/16", "172.17 is docker0's, 172.18 is routed");
  const inside192 = taken.filter((subnet) => subnet.startsWith("192.168."));
  assert.ok(inside192.length > 0, "the second pool was not reached");
  assert.not.ok(inside192.includes("192.168.112.0/20"), "it would hold 192.168.122.0/24");
  for (const name of names) await topology.ok("DELETE", `/v1/networks/${name}`);
});

test("no network `bridge` on a host where Docker runs", async () => {
  assert.is((await topology.api("GET", "/v1/networks/bridge")).status, 404);
  assert.is(topology.run("host", "ip link show nb0").code, 1);
});

test("subnet-overlap-names-the-owner", async () => {
  const answer = await topology.api<{ code: string; detail: string }>("POST", "/v1/networks", {
    name: "clash",
    subnets: [{ subnet: "192.168.120.0/21" }],
  });
  assert.is(answer.status, 409);
  assert.is(answer.body.code, "subnet_overlap");
  assert.match(answer.body.detail, /virbr0/);
});

test("a port that somebody holds is refused, and the holder is named", async () => {
  topology.background("host", "socat TCP-LISTEN:9100,fork /dev/null");
  await sleep(300);
  const answer = await topology.api<{ code: string; detail: string }>("POST", "/v1/ports", {
    endpoint: "web",
    hostPort: 9100,
    containerPort: 80,
  });
  assert.is(answer.status, 409);
  assert.is(answer.body.code, "port_in_use");
  assert.match(answer.body.detail, /socat \(pid \d+\)/);
});

test("a published port can't be taken by others", async () => {
  for (const kind of ["TCP-LISTEN", "UDP-LISTEN"])
    assert.is(topology.run("host", `timeout 2 socat ${kind}:8080 /dev/null`).code, 1, kind);
});

test("a real Prometheus scrapes it", async () => {
  const config = join(topology.folder, "prometheus.yml");
  writeFileSync(
    config,
    `scrape_configs:
  - job_name: natbridge
    scrape_interval: 1s
    static_configs: [{ targets: ["127.0.0.1:9652"] }]
`,
  );
  topology.background(
    "host",
    `exec prometheus --config.file=${config} --storage.tsdb.path=${topology.folder}/tsdb --web.listen-address=127.0.0.1:9090 --log.level=error`,
  );
  await topology.stream("client", addresses.host.ipv4, 8080, 2);
  const query = (expression: string): string =>
    topology.run(
      "host",
      `curl -sG --data-urlencode 'query=${expression}' http://127.0.0.1:9090/api/v1/query`,
    ).stdout;
  const metric = 'natbridge_endpoint_receive_bytes_total{endpoint="web"} > 1000000';
  let found = "";
  for (let waited = 0; waited < 60 && !found.includes('"web"'); waited++) {
    await sleep(500);
    found = query(metric);
  }
  assert.match(found, /"endpoint":"web"/);
  assert.match(query('up{job="natbridge"}'), /"1"/);
  assert.match(query("natbridge_endpoint_info"), /"network":"my_net"/);
});

test("an uplink that comes later is followed, and forgotten when it goes", async () => {
  const uplinks = async (): Promise<string[]> =>
    (await topology.ok<{ uplinks: { name: string }[] }>("GET", "/v1/datapath")).uplinks.map(
      ({ name }) => name,
    );
  topology.must("host", "ip link add late0 type veth peer name late1");
  topology.must("host", "ip addr add 203.0.113.129/28 dev late0");
  topology.must("host", "ip link set late1 up && ip link set late0 up");
  for (let waited = 0; waited < 40 && !(await uplinks()).includes("late0"); waited++)
    await sleep(100);
  assert.ok((await uplinks()).includes("late0"));
  topology.must("host", "ip link del late0");
  for (let waited = 0; waited < 40 && (await uplinks()).includes("late0"); waited++)
    await sleep(100);
  assert.not.ok((await uplinks()).includes("late0"));
});

test("a rule of the host's that compares whole marks goes on matching", async () => {
  const rules = (verb: string): string =>
    [
      `iptables-nft -t mangle ${verb} PREROUTING -s 198.51.100.2 -j MARK --set-mark 7`,
      `iptables-nft ${verb} FORWARD -m mark --mark 7 -j DROP`,
    ].join("; ");
  topology.must("host", rules("-A"));
  await sleep(500);
  assert.not.ok((await topology.connect("client", "tcp", addresses.host.ipv4, 8080)).ok);
  topology.must("host", rules("-D"));
  assert.ok((await topology.connect("client", "tcp", addresses.host.ipv4, 8080)).ok);
});

test("a rule that must see every packet keeps the fast path off, and status says which", async () => {
  const off = async (): Promise<{ where: string; rule: string | null }[]> =>
    (await topology.ok<{ off: { where: string; rule: string | null }[] }>("GET", "/v1/datapath"))
      .off;
  topology.must(
    "host",
    "nft 'add table ip metered; add chain ip metered f { type filter hook forward priority 0; }; add rule ip metered f limit rate 100000/second accept'",
  );
  // At first it says that the rules have changed, and names none.
  const isNamed = async () => (await off()).some(({ rule }) => rule !== null);
  for (let waited = 0; waited < 50 && !(await isNamed()); waited++) await sleep(100);
  const found = await off();
  assert.match(found.map(({ rule }) => rule).join("\n"), /limit/);
  // Until the devices have been told, too.
  await sleep(500);
  const fast = async (): Promise<number> =>
    (await topology.ok<{ cache: { fastPackets: number } }>("GET", "/v1/datapath")).cache
      .fastPackets;
  const before = await fast();
  await topology.stream("client", addresses.host.ipv4, 8080, 1);
  assert.is(await fast(), before, "packets were fast all the same");
  topology.must("host", "nft delete table ip metered");
  for (let waited = 0; waited < 50 && (await off()).length > 0; waited++) await sleep(100);
  await topology.stream("client", addresses.host.ipv4, 8080, 1);
  assert.ok((await fast()) > before);
});

test.after(async () => {
  await topology?.remove();
});
test.run();
