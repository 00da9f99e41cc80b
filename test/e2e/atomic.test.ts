/** A change that fails half-way leaves kernel, holder and database as they were. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { stepNames } from "../../src/network/steps.ts";
import { Topology } from "./topology.ts";

const test = suite("all or nothing");
let topology: Topology;

/** All that a change may touch: host, sandboxes, pins, sockets, and what the API tells. */
async function everything(): Promise<string> {
  const host = topology.must(
    "host",
    [
      "ip -o link show | sed 's/^[0-9]*: //' | awk '{ print $1, $3, $5 }' | sort",
      "ip -o addr show | awk '{ print $2, $3, $4 }' | sort",
      "ip route show table all | sort",
      "ip -6 route show table all | grep -v ^ff | sed 's/ pref.*//' | sort",
      // The guard table hears of a change a moment after it; what the host binds is looked up anew.
      "nft list ruleset | sed '/natbridge_keep/,/^}/d; /set bound_udp {/,/^\\t}/d' | sort",
      "ss -Hlntu | awk '{ print $1, $5 }' | sort",
      "sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.up0.accept_ra",
      "find /sys/fs/bpf/natbridge/$(stat -Lc %i /proc/self/ns/net) | sort",
    ].join("; "),
  );
  const sandboxes = ["a", "b"].map((name) =>
    topology.must(name, "ip -o addr show | sed 's/^[0-9]*: //' | sort; ip route; ip -6 route"),
  );
  const objects = [];
  for (const kind of ["networks", "sandboxes", "endpoints", "ports"])
    objects.push(JSON.stringify(await topology.ok("GET", `/v1/${kind}`)));
  return [host, ...sandboxes, ...objects].join("\n");
}

const wanted = {
  owner: "test",
  networks: [{ name: "made", subnets: [{ subnet: "172.35.0.0/24" }, { subnet: "fd35::/64" }] }],
  endpoints: ["a", "b"].map((name) => ({ name, network: "made", netns: "" })),
  ports: [
    { name: "p", endpoint: "a", hostPort: 9000, containerPort: 80 },
    { name: "q", endpoint: "b", hostPort: "9001-9003", containerPort: "80-82", protocol: "udp" },
  ],
};

test("set up", async () => {
  topology = new Topology({ fastPath: "on", bridgeNfCall: 1 });
  for (const name of ["a", "b"]) topology.addSandbox(name);
  for (const endpoint of wanted.endpoints)
    endpoint.netns = `/run/netns/${topology.ns(endpoint.name)}`;
  await topology.startDaemon();
});

for (const step of stepNames)
  test(`failing after step ${step}`, async () => {
    await topology.killDaemon();
    await topology.startDaemon([], { NATBRIDGE_FAIL_AFTER: step });
    const before = await everything();
    const { status } = await topology.api("POST", "/v1/apply", wanted);
    assert.is(status, 500, "the failure was injected");
    assert.is(await everything(), before);
  });

test("without a failure it works, and its removal leaves nothing either", async () => {
  await topology.killDaemon();
  await topology.startDaemon();
  const before = await everything();
  assert.is((await topology.api("POST", "/v1/apply", wanted)).status, 200);
  assert.is.not(await everything(), before);
  const removed = await topology.api("POST", "/v1/apply", { owner: "test", prune: true });
  assert.is(removed.status, 200);
  // A setting stays while natbridge is installed: only uninstalling puts it back.
  const sysctls = ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.up0.accept_ra"];
  const now = topology.must("host", `sysctl -n ${sysctls.join(" ")}`).split("\n");
  assert.equal(now.slice(0, 2), ["1", "2"]);
  topology.must("host", `sysctl -qw ${sysctls[0]}=0 ${sysctls[1]}=1`);
  // As long as natbridge forwards IPv6 for itself, it forwards none for others.
  const strict = (await everything()).replace("elements = { ipv4, ipv6 }", "elements = { ipv4 }");
  assert.is(strict, before);
  topology.must("host", `sysctl -qw ${sysctls[0]}=1 ${sysctls[1]}=2`);
});

test("a disk that is full refuses the change and leaves all as it was", async () => {
  await topology.killDaemon("SIGTERM");
  const state = `${topology.folder}/state`;
  topology.must("host", `cp -a ${state} ${state}.kept`);
  topology.must(
    "host",
    `mount -t tmpfs -o size=256k tmpfs ${state} && cp -a ${state}.kept/. ${state}`,
  );
  try {
    await topology.startDaemon();
    topology.run("host", `dd if=/dev/zero of=${state}/ballast bs=1k count=1024 2>/dev/null`);
    const before = await everything();
    const { status, body } = await topology.api("POST", "/v1/apply", wanted);
    assert.is(status, 500, JSON.stringify(body));
    assert.is(await everything(), before);
    topology.must("host", `rm ${state}/ballast`);
    assert.is((await topology.api("POST", "/v1/apply", wanted)).status, 200);
    await topology.killDaemon("SIGTERM");
  } finally {
    topology.must("host", `umount -l ${state}`);
  }
});

test.after(async () => {
  await topology?.remove();
});
test.run();
