/**
 * The native addon through its TypeScript face, on the kernel of a network namespace of its own:
 * the file runs itself again inside one. Needs root and a built addon.
 */

import { strict as assert } from "node:assert";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import { loadDatapath } from "../../src/datapath/addon.ts";
import { DatapathError } from "../../src/datapath/error.ts";
import type { BridgeSpec, Datapath, EndpointSpec, HostEvent } from "../../src/datapath/types.ts";
import { runtimeCommand } from "../runtime-command.ts";

const inside = "NATBRIDGE_TEST_INSIDE";
const file = fileURLToPath(import.meta.url);

/** Runs this file again, in a new network namespace unless `here`. */
function again(role: string, here = false) {
  const command = here ? [...runtimeCommand, file] : ["unshare", "--net", ...runtimeCommand, file];
  const [program = "", ...args] = command;
  const env = { ...process.env, [inside]: role };
  return spawnSync(program, args, { stdio: "inherit", env, timeout: 60_000 });
}

const bridge: BridgeSpec = {
  name: "nb-addon",
  alias: "natbridge:network:1",
  mtu: 1500,
  addresses: ["172.32.0.1/24", "fd00:32::1/64"],
};

function endpoint(sandboxPath: string): EndpointSpec {
  return {
    id: "1",
    alias: "natbridge:endpoint:1",
    hostInterface: "nbaddon1",
    bridge: bridge.name,
    sandboxPath,
    interface: "eth0",
    mac: "02:42:ac:20:00:0a",
    mtu: 1500,
    addresses: ["172.32.0.10/24", "fd00:32::a/64"],
    isolatedPort: false,
  };
}

async function refusal(call: () => unknown): Promise<DatapathError> {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof DatapathError, String(error));
    return error;
  }
  throw new Error("it was not refused");
}

/** A process in a network namespace of its own: a sandbox as long as it lives. */
async function startSandbox(datapath: Datapath): Promise<{ child: ChildProcess; path: string }> {
  const child = spawn("unshare", ["--net", "sleep", "60"], { stdio: "ignore" });
  for (let wait = 0; wait < 500; wait++) {
    const { path } = await datapath.resolvePid(child.pid ?? 0);
    if (!(await datapath.inspectSandbox(path)).isHost) return { child, path };
    await sleep(10);
  }
  throw new Error("unshare made no namespace");
}

async function until(what: string, done: () => boolean) {
  for (let wait = 0; wait < 500; wait++) {
    if (done()) return;
    await sleep(10);
  }
  throw new Error(`${what} did not happen`);
}

function addTests(datapath: Datapath) {
  test("settings are read and written", async () => {
    assert.equal(datapath.readSysctl("net/ipv4/no_such_key"), null);
    datapath.writeSysctl("net/ipv4/ip_forward", "1");
    assert.equal(datapath.readSysctl("net/ipv4/ip_forward"), "1");
    const missing = await refusal(() => datapath.writeSysctl("net/ipv4/no_such_key", "1"));
    assert.equal(missing.kind, "not_found");
    assert.equal((await refusal(() => datapath.readSysctl("../etc/passwd"))).kind, "invalid");
  });

  test("an endpoint is made, carries packets, is mended and goes", async () => {
    const link = await datapath.createBridge(bridge);
    assert.equal(link.alias, bridge.alias);
    assert.deepEqual(await datapath.ensureBridge(bridge), []);
    const { child, path } = await startSandbox(datapath);
    try {
      const spec = endpoint(path);
      const made = await datapath.createEndpoint(spec);
      const links = await datapath.listLinks();
      assert.equal(links.find((known) => known.name === "nbaddon1")?.ifindex, made.ifindex);
      const via = { gateway: "172.32.0.1", hostInterface: "nbaddon1" };
      await datapath.setDefaultRoutes(path, { ipv4: via, ipv6: null });
      const shown = spawnSync("nsenter", [`--net=${path}`, "ip", "route"], { encoding: "utf8" });
      assert.match(shown.stdout, /default via 172\.32\.0\.1 dev eth0/);
      const ping = spawnSync("ping", ["-c1", "-W2", "172.32.0.10"], { encoding: "utf8" });
      assert.equal(ping.status, 0, ping.stdout);
      const { interfaces } = await datapath.inspectSandbox(path);
      const eth0 = interfaces.find(({ name }) => name === "eth0");
      assert.equal(eth0?.mac, spec.mac);
      assert.ok((eth0?.receivePackets ?? 0) > 0);
      assert.ok((await datapath.listRoutes()).some((r) => r.destination === "172.32.0.0/24"));
      assert.deepEqual(await datapath.ensureEndpoint(spec), []);
      assert.equal((await refusal(() => datapath.createEndpoint(spec))).kind, "exists");
      assert.equal(await datapath.deleteLink("nbaddon1"), true);
      assert.equal(await datapath.deleteLink("nbaddon1"), false);
    } finally {
      child.kill("SIGKILL");
    }
  });

  test("refusals have a kind and a message without it", async () => {
    const gone = await refusal(() => datapath.inspectSandbox("/run/netns/no-such"));
    assert.deepEqual([gone.kind, gone.message], ["not_found", "/run/netns/no-such does not exist"]);
    assert.equal((await refusal(() => datapath.inspectSandbox("/etc/passwd"))).kind, "invalid");
    assert.equal((await refusal(() => datapath.deleteConntrack([{}]))).kind, "invalid");
    const untyped = JSON.parse('{"name": 5}');
    assert.equal((await refusal(() => datapath.createBridge(untyped))).kind, "invalid");
    const own = endpoint("/proc/self/ns/net");
    assert.equal((await refusal(() => datapath.createEndpoint(own))).kind, "invalid");
    assert.equal((await refusal(() => datapath.resolvePid(-1))).kind, "invalid");
  });

  test("conntrack and IPsec policies are counted", async () => {
    assert.ok(Array.isArray(await datapath.listConntrack()));
    const nothing = await datapath.deleteConntrack([{ protocol: "udp", replySourcePort: 9 }]);
    assert.equal(nothing, 0);
    assert.equal(await datapath.countXfrmPolicies(), 0);
  });

  test("changes are heard until watching stops", async () => {
    const events: HostEvent[] = [];
    datapath.watchHost((event) => events.push(event), true);
    spawnSync("ip", ["link", "set", "lo", "up"]);
    await until("a link event", () => events.some(({ kind }) => kind === "link"));
    spawnSync("nft", ["add", "table", "inet", "foreign"]);
    await until("a ruleset event", () => events.some(({ kind }) => kind === "ruleset"));
    datapath.stopWatching();
    await sleep(100);
    events.length = 0;
    spawnSync("ip", ["link", "set", "lo", "down"]);
    await sleep(200);
    assert.deepEqual(events, []);
  });

  test("a change has ended every lease when it is heard", async () => {
    const { fastPath, missing } = await datapath.kernelFeatures();
    assert.ok(fastPath, missing.join("; "));
    const pinDirectory = `/sys/fs/bpf/natbridge-addon-${process.pid}`;
    const limits = { maxFlows: 1024, maxDevices: 16, maxPorts: 16 };
    await datapath.loadFastPath({ pinDirectory, cgroupPath: "", ...limits });
    try {
      const before = (await datapath.fastPathCounters()).generation;
      let heard = false;
      datapath.watchHost(() => {
        heard = true;
      }, false);
      spawnSync("nft", ["add", "table", "inet", "another"]);
      await until("an event", () => heard);
      assert.ok((await datapath.fastPathCounters()).generation > before);
    } finally {
      datapath.stopWatching();
      datapath.closeFastPath();
      await datapath.unloadFastPath(pinDirectory);
    }
  });

  test("watching does not keep the process alive", () => {
    const { status, signal } = again("watch", true);
    assert.deepEqual([status, signal], [0, null]);
  });
}

switch (process.env[inside]) {
  case undefined:
    process.exit(again("tests").status ?? 1);
    break;
  case "watch":
    loadDatapath().watchHost(() => {}, true);
    break;
  default:
    addTests(loadDatapath());
    test.run();
}
