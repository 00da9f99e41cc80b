/** Runs every scenario in one topology. */
import { suite } from "uvu";
import { scenarios, setUp } from "./scenarios.ts";
import { Topology, type TopologyOptions } from "./topology.ts";

export function runScenarios(options: TopologyOptions): void {
  const path = options.fastPath ? "fast path on" : "fast path off";
  const test = suite(`${path}, bridge-nf-call-iptables ${options.bridgeNfCall}`);
  let topology: Topology | null = null;
  // A failing hook would end the run without a failed test: the first test sets up instead.
  test("set up", async () => {
    topology = new Topology(options);
    await topology.startDaemon();
    await setUp(topology);
  });
  for (const scenario of scenarios)
    test(scenario.name, async () => {
      if (topology === null) throw new Error("there is no topology");
      await scenario.run(topology);
    });
  test.after(async () => {
    await topology?.remove();
  });
  test.run();
}
