/**
 * Namespaces made anew at their paths, interfaces renamed in them: with the programs on, loaded but off,
 * and none.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { ApplyResult, Endpoint, Sandbox } from "../../src/network/model.ts";
import { reaches } from "./scenarios.ts";
import { addresses, sleep, Topology, type TopologyOptions } from "./topology.ts";

const families = ["ipv4", "ipv6"] as const;

function wish(topology: Topology) {
  return {
    owner: "test",
    networks: [{ name: "anew", subnets: [{ subnet: "172.34.0.0/24" }, { subnet: "fd34::/64" }] }],
    endpoints: ["web", "db"].map((name, index) => ({
      name,
      network: "anew",
      netns: `/run/netns/${topology.ns(name)}`,
      addresses: [`172.34.0.1${index}`, `fd34::1${index}`],
    })),
    ports: (["tcp", "udp"] as const).map((protocol) => ({
      name: `web-${protocol}`,
      endpoint: "web",
      hostPort: 8080,
      containerPort: 80,
      protocol,
    })),
  };
}

const apply = async (topology: Topology) => {
  const { updated, unchanged } = await topology.ok<ApplyResult>(
    "POST",
    "/v1/apply",
    wish(topology),
  );
  return { updated: updated.endpoints, unchanged: unchanged.endpoints };
};

async function isServed(topology: Topology): Promise<void> {
  for (const family of families) {
    for (const protocol of ["tcp", "udp"] as const)
      await reaches(topology, "client", protocol, addresses.host[family], 8080);
    await reaches(topology, "web", "tcp", addresses.client[family], 7000);
  }
  await reaches(topology, "host", "tcp", "127.0.0.1", 8080);
  await reaches(topology, "db", "tcp", "172.34.0.10", 80);
}

/** Until the sandbox's interface has its addresses and default routes; answers how long that took. */
async function isBack(topology: Topology, name = "web"): Promise<number> {
  const started = performance.now();
  const look = "ip -o addr; ip route show default; ip -6 route show default";
  for (;;) {
    const seen = topology.must(name, look);
    const waited = performance.now() - started;
    if (/172\.34\.0\.1\d\/24.*fd34::1\d\/64.*via 172\.34\.0\.1 .*via fd34::1 /s.test(seen))
      return waited;
    if (waited > 20_000) throw new Error(`not back after ${waited} ms:\n${seen}`);
    await sleep(50);
  }
}

function makeAnew(topology: Topology): void {
  topology.removeSandbox("web");
  topology.addSandbox("web");
}

export function runAnew(options: TopologyOptions): void {
  const test = suite(`made anew, fast path ${options.fastPath}`);
  let topology: Topology;
  test("set up", async () => {
    topology = new Topology(options);
    await topology.startDaemon();
    for (const name of ["web", "db"]) topology.addSandbox(name);
    await topology.serve("client", 7000);
    assert.equal(await apply(topology), { updated: [], unchanged: [] });
    await Promise.all(["web", "db"].map((name) => topology.serve(name, 80)));
    await isServed(topology);
    assert.equal(await apply(topology), { updated: [], unchanged: ["web", "db"] });
  });

  test("apply of the same file makes what was made anew work, at once", async () => {
    makeAnew(topology);
    const { updated, unchanged } = await apply(topology);
    // Reconciling may have been quicker.
    assert.ok([...updated, ...unchanged].includes("web"), JSON.stringify({ updated, unchanged }));
    assert.ok((await isBack(topology)) < 500, "when the call is answered, it is so");
    await topology.serve("web", 80);
    await isServed(topology);
  });

  test("so does PUT, also while the daemon has not looked since", async () => {
    makeAnew(topology);
    const [endpoint] = wish(topology).endpoints;
    await topology.ok("PUT", "/v1/endpoints/web", endpoint);
    assert.ok((await isBack(topology)) < 500, "when the call is answered, it is so");
    await topology.serve("web", 80);
    await isServed(topology);
  });

  test("reconciling does without being asked, soon after it is made", async () => {
    topology.removeSandbox("web");
    const conditions = async () =>
      (await topology.ok<Endpoint>("GET", "/v1/endpoints/web")).status.conditions;
    for (let waited = 0; waited < 100; waited++) {
      if ((await conditions()).some(({ reason }) => reason === "SandboxLost")) break;
      await sleep(100);
    }
    assert.match(JSON.stringify(await conditions()), /come back with the next one/);
    topology.addSandbox("web");
    const milliseconds = await isBack(topology);
    // A look each second and the swarm's pause; the regular look is every 30 s.
    assert.ok(milliseconds < 8000, `${milliseconds} ms`);
    await topology.serve("web", 80);
    await isServed(topology);
    const sandbox = await topology.ok<Sandbox>("GET", `/v1/sandboxes/${topology.ns("web")}`);
    assert.is(sandbox.status.conditions[0]?.status, "true");
  });

  test("and when the old one lives on without its path", async () => {
    topology.background("web", "exec sleep 60");
    const before = topology.must("web", "stat -Lc %i /proc/self/ns/net");
    const pids = topology.must("host", `ip netns pids ${topology.ns("web")}`);
    topology.must("host", `ip netns del ${topology.ns("web")}`);
    topology.addSandbox("web");
    assert.is.not(topology.must("web", "stat -Lc %i /proc/self/ns/net"), before);
    const milliseconds = await isBack(topology);
    assert.ok(milliseconds < 8000, `${milliseconds} ms`);
    await topology.serve("web", 80);
    await isServed(topology);
    topology.must("host", `kill -9 ${pids.trim().split(/\s+/).join(" ")}`);
  });

  test("also while the daemon is down, as after a reboot", async () => {
    await topology.killDaemon();
    makeAnew(topology);
    await topology.startDaemon();
    await isBack(topology);
    await topology.serve("web", 80);
    await isServed(topology);
  });

  test("an interface renamed in the sandbox keeps its routes, addresses and ports", async () => {
    topology.must("web", "ip link set eth0 down; ip link set eth0 name net0; ip link set net0 up");
    const milliseconds = await isBack(topology);
    assert.ok(milliseconds < 8000, `${milliseconds} ms`);
    await isServed(topology);
    // By the host's side it is found under whatever name: routes, changes, other endpoints.
    topology.must("web", "ip route del default; ip -6 route del default");
    assert.equal(await apply(topology), { updated: ["web"], unchanged: ["db"] });
    assert.ok((await isBack(topology)) < 500, "when the call is answered, it is so");
    await topology.ok("POST", "/v1/networks", { name: "aside" });
    const aside = { name: "aside", network: "aside", sandbox: topology.ns("web") };
    const second = await topology.ok<Endpoint>("POST", "/v1/endpoints", {
      ...aside,
      defaultRoutePriority: 1,
    });
    assert.match(topology.must("web", "ip route show default"), new RegExp(second.interface));
    await topology.ok("DELETE", "/v1/endpoints/aside");
    assert.match(topology.must("web", "ip route show default"), /via 172\.34\.0\.1 dev net0/);
    await topology.ok("PATCH", "/v1/endpoints/web", { labels: { a: "b" } });
    await topology.killDaemon();
    topology.must("web", "ip route del default");
    await topology.startDaemon();
    await isBack(topology);
    assert.match(topology.must("web", "ip -o link"), / net0@/);
    await isServed(topology);
  });

  test("one that is set down, and a route that is taken away, are left so", async () => {
    topology.must("web", "ip link set net0 down");
    await sleep(2000);
    assert.match(topology.must("web", "ip -o link show net0"), /state DOWN/);
    topology.must("web", "ip link set net0 up");
    await isBack(topology);
    topology.must("web", "ip route del default");
    await sleep(2000);
    assert.is(topology.must("web", "ip route show default"), "");
  });

  test("an endpoint whose interface was renamed is removed whole", async () => {
    await topology.ok("DELETE", "/v1/endpoints/web");
    assert.is(topology.run("web", "ip link show net0").code, 1);
  });

  test.after(async () => {
    await topology?.remove();
  });
  test.run();
}

for (const fastPath of ["on", "off", "none"] as const) runAnew({ fastPath, bridgeNfCall: 1 });
