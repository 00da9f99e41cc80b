/**
 * A thousand published ports and two hundred endpoints in one call, and what they cost. The times are
 * printed; the limits are wide, because a test must not fail for a busy machine.
 */
import { readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { ApplyInput, ApplyResult, Port } from "../../src/network/model.ts";
import { type Answer, addresses, Topology } from "./topology.ts";

const test = suite("scale");
const endpointCount = 200;
const portsPerEndpoint = 5;
const firstPort = 20_000;
let topology: Topology;

const sandboxName = (index: number): string => `s${index}`;

function wanted(): ApplyInput {
  const endpoints = Array.from({ length: endpointCount }, (_, index) => index);
  return {
    owner: "scale",
    networks: [{ name: "wide", subnets: [{ subnet: "172.40.0.0/16" }, { subnet: "fd40::/64" }] }],
    endpoints: endpoints.map((index) => ({
      name: `e${index}`,
      network: "wide",
      netns: `/run/netns/${topology.ns(sandboxName(index))}`,
    })),
    ports: endpoints.flatMap((index) =>
      Array.from({ length: portsPerEndpoint }, (_, port) => ({
        name: `e${index}-${port}`,
        endpoint: `e${index}`,
        hostPort: firstPort + index * portsPerEndpoint + port,
        containerPort: 80,
      })),
    ),
  };
}

/** Resident memory of daemon and holder, in megabytes. */
async function residentMegabytes(): Promise<number> {
  const pids = [topology.daemonPid, await topology.holderPid()];
  return pids.reduce<number>((sum, pid) => {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    return sum + Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
  }, 0);
}

async function timed<T>(work: () => Promise<T>): Promise<{ seconds: number; value: T }> {
  const started = performance.now();
  const value = await work();
  return { seconds: (performance.now() - started) / 1000, value };
}

async function servesPort(hostPort: number): Promise<void> {
  const answer = await topology.connect("client", "tcp", addresses.host.ipv4, hostPort, 100);
  assert.ok(answer.ok, `port ${hostPort}: ${answer.error}`);
}

const apply = (input: ApplyInput, query = ""): Promise<Answer<ApplyResult>> =>
  topology.api<ApplyResult>("POST", `/v1/apply${query}`, input);

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  for (let index = 0; index < endpointCount; index++) topology.addSandbox(sandboxName(index));
  await topology.startDaemon();
});

test("one apply makes all of it", async () => {
  const dry = await apply(wanted(), "?dryRun=true");
  assert.is(dry.body.created.ports.length, endpointCount * portsPerEndpoint);
  const { seconds, value } = await timed(() => apply(wanted()));
  assert.is(value.status, 200, JSON.stringify(value.body).slice(0, 500));
  assert.is(value.body.created.endpoints.length, endpointCount);
  assert.is(value.body.created.ports.length, endpointCount * portsPerEndpoint);
  console.log(`    apply: ${seconds.toFixed(2)} s, ${(await residentMegabytes()).toFixed(0)} MB`);
  assert.ok(seconds < 40, `${seconds} s`);
});

test("all of it works, and the same again changes nothing", async () => {
  await topology.serve(sandboxName(0), 80);
  await topology.serve(sandboxName(endpointCount - 1), 80);
  await servesPort(firstPort);
  await servesPort(firstPort + endpointCount * portsPerEndpoint - 1);
  const again = await apply(wanted());
  assert.is(again.body.unchanged.ports.length, endpointCount * portsPerEndpoint);
  assert.is(again.body.updated.endpoints.length, 0);
});

test("daemon and holder stay under 150 MB", async () => {
  const megabytes = await residentMegabytes();
  assert.ok(megabytes > 10 && megabytes < 150, `${megabytes} MB`);
});

test("a killed daemon is back at once, traffic untouched", async () => {
  const flow = topology.flow("client", ["tcp", addresses.host.ipv4, `${firstPort}`, "6"]);
  await topology.killDaemon();
  const { seconds } = await timed(() => topology.startDaemon());
  console.log(
    `    ready again: ${seconds.toFixed(2)} s, ${(await residentMegabytes()).toFixed(0)} MB`,
  );
  assert.ok(seconds < 8, `${seconds} s`);
  const { error, wrong } = await flow;
  assert.is(`${error}${wrong}`, "0");
  const repaired = await topology.ok<string>("GET", "/metrics");
  assert.match(repaired, /^natbridge_reconcile_repairs_total 0$/m, "nothing needed repair");
});

test("pruning removes all of it, and nothing is left behind", async () => {
  const { seconds, value } = await timed(() => apply({ owner: "scale", prune: true }));
  assert.is(value.status, 200, JSON.stringify(value.body).slice(0, 500));
  assert.is(value.body.deleted.ports.length, endpointCount * portsPerEndpoint);
  console.log(`    removed: ${seconds.toFixed(2)} s`);
  const { items } = await topology.ok<{ items: Port[] }>("GET", "/v1/ports");
  assert.is(items.length, 0);
  assert.is(
    topology
      .must("host", "ip -o link show type veth | awk '{ print $2 }' | grep -c ^nb || true")
      .trim(),
    "0",
  );
  assert.not.match(topology.must("host", "nft list table inet natbridge"), /172\.40\.|\b20000\b/);
  assert.is(topology.must("host", "ss -Hltn '( sport >= 20000 and sport < 21000 )'"), "");
});

test.after(async () => {
  await topology?.remove();
});
test.run();
