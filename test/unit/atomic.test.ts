/** Every kind of change, stopped after every step: kernel, holder and database are as before. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import type { Datapath } from "../../src/datapath/types.ts";
import type { Core } from "../../src/network/core.ts";
import { type StepName, stepNames } from "../../src/network/steps.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("atomic");
const stop = (): void => {
  delete process.env["NATBRIDGE_FAIL_AFTER"];
};
test.before.each(async (context) => {
  stop();
  const host = await new CoreHost().start();
  context.host = host;
  // IPv4 only: the first IPv6 network turns on forwarding, and takes router advertisements along.
  host.datapath.sysctls.set("net/ipv6/conf/eth0/accept_ra", "1");
  const { networks, endpoints, ports } = host.core;
  await networks.create({ name: "net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await networks.create({ name: "second", subnets: [{ subnet: "172.33.0.0/24" }] });
  await endpoints.create({ name: "web", network: "net", netns: "web" });
  await endpoints.create({ name: "db", network: "net", netns: "db" });
  await ports.create({ name: "p", endpoint: "web", hostPort: 8080, containerPort: 80 });
});
test.after.each(stop);

const six = [{ subnet: "10.1.0.0/24" }, { subnet: "fd01::/64" }];
const port = { endpoint: "web", containerPort: 80 } as const;
type Work = (core: Core) => Promise<unknown>;
/** Steps of every change. */
const always = ["host-settings", "firewall", "forward-accepts", "device", "connect-hook", "commit"];
const changes: [what: string, further: StepName[], work: Work][] = [
  ["network create", ["bridge"], (core) => core.networks.create({ name: "n", subnets: six })],
  ["network put", ["bridge"], (core) => core.networks.put({ name: "n", subnets: six })],
  ["network patch", [], (core) => core.networks.patch("net", { labels: { a: "b" } })],
  ["network remove", [], (core) => core.networks.remove("net", { force: true })],
  [
    "endpoint create",
    ["endpoint", "default-routes"],
    ({ endpoints }) =>
      endpoints.create({ name: "e", network: "second", netns: "web", defaultRoutePriority: 1 }),
  ],
  [
    "endpoint put",
    ["endpoint", "default-routes"],
    ({ endpoints }) => endpoints.put({ name: "e", network: "net", netns: "x" }),
  ],
  ["endpoint patch", [], (core) => core.endpoints.patch("web", { aliases: ["w"] })],
  ["endpoint remove", [], (core) => core.endpoints.remove("web")],
  [
    "port create",
    ["reserve"],
    ({ ports }) => ports.create({ ...port, hostPort: 9000, from: ["10.0.0.0/8"] }),
  ],
  ["port put", ["reserve"], (core) => core.ports.put({ ...port, name: "q", hostPort: "90-99" })],
  ["port to an endpoint", ["reserve"], (core) => core.ports.patch("p", { endpoint: "db" })],
  ["port to a number", ["reserve"], (core) => core.ports.patch("p", { hostPort: 8081 })],
  ["port limited", ["reserve"], (core) => core.ports.patch("p", { from: ["10.0.0.0/8"] })],
  ["port remove", [], (core) => core.ports.remove("p")],
  [
    "apply",
    ["bridge", "endpoint", "default-routes", "reserve"],
    (core) =>
      core.apply(
        {
          owner: "o",
          networks: [{ name: "n", subnets: six }],
          endpoints: [{ name: "e", network: "n", netns: "x" }],
          ports: [{ name: "q", endpoint: "e", hostPort: 9000, containerPort: 80 }],
        },
        { dryRun: false },
      ),
  ],
];

async function message(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

for (const [what, further, work] of changes)
  test(`${what}: whole, or nothing after any step`, async ({ host }) => {
    const before = host.dump();
    for (const step of stepNames.filter((name) => [...always, ...further].includes(name))) {
      process.env["NATBRIDGE_FAIL_AFTER"] = step;
      assert.match(await message(work(host.core)), /stopped after step/, step);
      assert.is(host.dump(), before, step);
    }
    stop();
    assert.is(await message(work(host.core)), "");
    assert.is.not(host.dump(), before);
  });

const failing: [method: keyof Datapath, what: string][] = [
  ["writeSysctl", "network create"],
  ["createBridge", "network create"],
  ["createEndpoint", "apply"],
  ["setDefaultRoutes", "endpoint create"],
  ["applyFirewall", "apply"],
  ["ensureForwardAccepts", "apply"],
  ["setPorts", "port create"],
  ["listLinks", "apply"],
];
for (const [method, what] of failing)
  test(`${what}: nothing when the kernel refuses ${method}`, async ({ host }) => {
    const work = changes.find(([name]) => name === what)?.[2];
    assert.ok(work);
    const before = host.dump();
    host.datapath.failNext(method, new DatapathError("io", "no memory"));
    assert.is(await message(work(host.core)), "no memory");
    assert.is(host.dump(), before);
    assert.is(await message(work(host.core)), "");
  });

test("of several settings, those set before one that fails are taken back", async ({ host }) => {
  const write = host.datapath.writeSysctl.bind(host.datapath);
  host.datapath.writeSysctl = (key, value) => {
    if (key === "net/ipv6/conf/all/forwarding" && value === "1")
      throw new DatapathError("denied", "read-only");
    write(key, value);
  };
  const before = host.dump();
  const work = host.core.networks.create({ name: "n", subnets: six });
  assert.is(await message(work), "read-only");
  assert.is(host.dump(), before);
});

test("a full disk changes nothing", async ({ host }) => {
  const before = host.dump();
  const commit = host.store.commit.bind(host.store);
  for (const [what, , work] of changes) {
    host.store.commit = () => {
      throw new Error("database or disk is full");
    };
    assert.is(await message(work(host.core)), "database or disk is full", what);
    host.store.commit = commit;
    assert.is(host.dump(), before, what);
  }
});

test.run();
