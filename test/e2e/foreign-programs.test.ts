/** eBPF programs of others see every packet they would have seen without the fast path. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import type { Endpoint, Network } from "../../src/network/model.ts";
import { setUp } from "./scenarios.ts";
import { addresses, sleep, Topology } from "./topology.ts";

const test = suite("foreign programs");
const root = fileURLToPath(new URL("../..", import.meta.url));
const patience = 20_000;
let topology: Topology;

const status = (): Promise<DatapathStatus> => topology.ok<DatapathStatus>("GET", "/v1/datapath");

async function until(what: string, isSo: () => Promise<boolean> | boolean): Promise<void> {
  const started = performance.now();
  while (!(await isSo())) {
    assert.ok(performance.now() - started < patience, what);
    await sleep(20);
  }
}

/** A program on a device of the host. */
class Foreign {
  readonly #file: string;

  private constructor(file: string) {
    this.#file = file;
  }

  static async attach(device: string, hook: "ingress" | "egress"): Promise<Foreign> {
    const file = join(topology.folder, `${device}-${hook}-${performance.now()}`);
    const run = `${join(root, "node_modules/.bin/deno")} run -A --no-config`;
    const program = join(root, "test/e2e/foreign-program.ts");
    topology.background("host", `exec ${run} ${program} ${device} ${hook} ${file}`);
    const foreign = new Foreign(file);
    await until(`no program on ${device}`, () => foreign.#read() !== null);
    return foreign;
  }

  #read(): [number, number] | null {
    try {
      const [pid, seen] = readFileSync(this.#file, "utf8").trim().split(" ").map(Number);
      return pid === undefined || seen === undefined ? null : [pid, seen];
    } catch {
      return null;
    }
  }

  async seen(): Promise<number> {
    await sleep(100);
    const read = this.#read();
    return read === null ? this.seen() : read[1];
  }

  detach(): void {
    process.kill(this.#read()?.[0] ?? 0);
  }
}

/** Packets the container's interface has received. */
const received = (): number =>
  Number(topology.must("web", "awk '/eth0/ { print $3 }' /proc/net/dev"));

/** Of the packets to the container in a second, how many a program saw, and how many were fast. */
async function second(foreign: Foreign): Promise<{ all: number; seen: number; fast: number }> {
  const before = [await foreign.seen(), received(), (await status()).cache.fastPackets] as const;
  await sleep(1000);
  // The program is read last: what it has not seen by then it never will.
  const [fast, all] = [(await status()).cache.fastPackets, received()];
  return { all: all - before[1], seen: (await foreign.seen()) - before[0], fast: fast - before[2] };
}

const isOff = async (device: string): Promise<boolean> =>
  (await status()).off.some(
    ({ where, reason }) => where === device && /program policer \(id \d+\)/.test(reason),
  );

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  await topology.startDaemon();
  await setUp(topology);
});

for (const family of ["ipv4", "ipv6"] as const) {
  for (const place of ["bridge", "veth"] as const)
    test(`one on the egress hook of the ${place} keeps the fast path off (${family})`, async () => {
      const device =
        place === "bridge"
          ? (await topology.ok<Network>("GET", "/v1/networks/my_net")).bridge
          : (await topology.ok<Endpoint>("GET", "/v1/endpoints/web")).hostInterface;
      if (device === null) throw new Error("there is no such device");
      const flow = topology.flow("client", ["udp", addresses.host[family], "8080", "5"]);
      const { fastPackets } = (await status()).cache;
      await until("never fast", async () => (await status()).cache.fastPackets > fastPackets + 50);
      const foreign = await Foreign.attach(device, "egress");
      // Leases end with its arrival; the answer of the policy comes a moment later.
      await until("the program is not named", () => isOff(device));
      const { all, seen, fast } = await second(foreign);
      assert.ok(all > 20, `${all} packets came`);
      assert.ok(seen >= all, `${seen} of ${all} packets were seen`);
      assert.is(fast, 0);
      foreign.detach();
      await until("it is still named", async () => !(await isOff(device)));
      const { wrong, error } = await flow;
      assert.equal([wrong, error], [0, ""]);
    });

  test(`one on the uplink's ingress hook sees every packet, fast ones too (${family})`, async () => {
    const flow = topology.flow("client", ["udp", addresses.host[family], "8080", "6"]);
    const foreign = await Foreign.attach("up0", "ingress");
    const started = performance.now();
    let last = { all: 0, seen: 0, fast: 0 };
    while (last.seen < last.all || last.fast < 100) {
      assert.ok(performance.now() - started < 6000, JSON.stringify(last));
      last = await second(foreign);
    }
    assert.not.ok(await isOff("up0"));
    foreign.detach();
    const { wrong, error } = await flow;
    assert.equal([wrong, error], [0, ""]);
  });
}

test.after(async () => {
  await topology?.remove();
});
test.run();
