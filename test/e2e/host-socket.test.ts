/** Open connections of the host to published ports, when natbridge is taken off it. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ends, openTcp, publish, withSockets } from "./host-socket-scenarios.ts";
import { families } from "./scenarios.ts";
import { Topology } from "./topology.ts";

const test = suite("sockets of the host");
let topology: Topology;

test("uninstalling ends the connections whose other end it removes", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 0 });
  await topology.startDaemon();
  topology.addSandbox("web");
  const subnets = [{ subnet: "172.32.0.0/24" }, { subnet: "fd32::/64" }];
  await topology.ok("POST", "/v1/networks", { name: "net", subnets });
  const netns = `/run/netns/${topology.ns("web")}`;
  await topology.ok("POST", "/v1/endpoints", { name: "web", network: "net", netns });
  await withSockets(topology, ["web"], async (asker) => {
    await publish(topology, "tcp", 8510, "web");
    for (const family of families) {
      await openTcp(asker, family, family, 8510);
      assert.is((await asker.ask(family)).answer, "web hello");
    }
    await topology.killDaemon();
    const { code, stderr } = topology.cli(
      `uninstall --state-dir ${topology.folder}/state --run-dir ${topology.folder}/run`,
    );
    assert.is(code, 0, stderr);
    for (const family of families) await ends(asker, family);
  });
});

test.after(async () => {
  await topology?.remove();
});
test.run();
