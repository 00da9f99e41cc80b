/** Runs every scenario in one topology. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import { addressScenarios } from "./address-scenarios.ts";
import { connectionScenarios } from "./connection-scenarios.ts";
import { edgeScenarios } from "./edge-scenarios.ts";
import { fieldScenarios } from "./field-scenarios.ts";
import { hostSocketScenarios } from "./host-socket-scenarios.ts";
import { scenarios, setUp } from "./scenarios.ts";
import { tableScenarios } from "./table-scenarios.ts";
import { addresses, Topology, type TopologyOptions } from "./topology.ts";

const all = [
  ...scenarios,
  ...fieldScenarios,
  ...edgeScenarios,
  ...tableScenarios,
  ...hostSocketScenarios,
  ...connectionScenarios,
  ...addressScenarios,
];

export function runScenarios(options: TopologyOptions): void {
  const test = suite(
    `fast path ${options.fastPath}, bridge-nf-call-iptables ${options.bridgeNfCall}`,
  );
  let topology: Topology | null = null;
  // A failing hook would end the run without a failed test: the first test sets up instead.
  test("set up", async () => {
    topology = new Topology(options);
    await topology.startDaemon();
    await setUp(topology);
  });
  for (const scenario of all)
    test(scenario.name, async () => {
      if (topology === null) throw new Error("there is no topology");
      await scenario.run(topology);
    });
  test("what carried all this", async () => {
    const bulk = await topology?.stream("client", addresses.host.ipv4, 8080, 1);
    assert.ok(bulk?.ok, bulk?.error);
    const status = await topology?.ok<DatapathStatus>("GET", "/v1/datapath");
    assert.is(status?.mode, options.fastPath === "on" ? "fast" : "kernel");
    assert.is((status?.cache.fastPackets ?? 0) > 0, options.fastPath === "on", "fast packets");
    assert.is((status?.programs.length ?? 0) > 0, options.fastPath !== "none", "programs");
  });
  test.after(async () => {
    await topology?.remove();
  });
  test.run();
}
