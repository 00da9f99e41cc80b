/** Which conntrack entries a change ends: those that would mislead, and nobody else's. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DatapathError } from "../../src/datapath/error.ts";
import type { ConntrackEntry, Protocol } from "../../src/datapath/types.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("conntrack");
test.before.each(async (context) => {
  const host = await new CoreHost().start();
  context.host = host;
  const { networks, endpoints } = host.core;
  await networks.create({ name: "net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await endpoints.create({ name: "web", network: "net", netns: "web" });
  await endpoints.create({ name: "db", network: "net", netns: "db" });
  host.datapath.addLink({ name: "eth1", addresses: ["203.0.113.1/24"] });
});

const client = "192.0.2.9";
const [web, db] = ["172.32.0.2", "172.32.0.3"];

/** From the client (or `source`) to `to`, translated to `target` if that is another. */
function add(host: CoreHost, protocol: Protocol, to: string, target = to, source = client): number {
  const [destinationAddress = "", destinationPort] = to.split(" ");
  const [replyAddress = "", replyPort] = target.split(" ");
  const entry: ConntrackEntry = {
    id: host.datapath.conntrack.length + 1,
    protocol,
    original: {
      sourceAddress: source,
      sourcePort: 40000,
      destinationAddress,
      destinationPort: Number(destinationPort),
    },
    reply: {
      sourceAddress: replyAddress,
      sourcePort: Number(replyPort),
      destinationAddress: source,
      destinationPort: 40000,
    },
    state: protocol === "udp" ? "" : "ESTABLISHED",
    timeoutSeconds: 100,
    assured: true,
    seenReply: true,
    destinationNat: target !== to,
    sourceNat: false,
    mark: 0,
  };
  host.datapath.conntrack.push(entry);
  return entry.id;
}
const left = ({ datapath }: CoreHost): number[] => datapath.conntrack.map(({ id }) => id);
const port = { name: "p", endpoint: "web", hostPort: 8080, containerPort: 80 } as const;

test("a port that is removed ends its connections, not those of other ports", async ({ host }) => {
  const { ports } = host.core;
  await ports.create({ ...port, hostAddress: "198.51.100.1" });
  await ports.create({ ...port, name: "q", hostAddress: "203.0.113.1" });
  await ports.create({ ...port, name: "u", hostAddress: "198.51.100.1", protocol: "udp" });
  const own = add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  add(host, "tcp", "203.0.113.1 8080", `${web} 80`);
  add(host, "udp", "198.51.100.1 8080", `${web} 80`);
  add(host, "tcp", "198.51.100.1 8080", "10.9.9.9 80");
  add(host, "tcp", "198.51.100.1 8080");
  assert.is(own, 1);
  await ports.remove("p");
  assert.equal(left(host), [2, 3, 4, 5]);
});

test("a number that is published is nobody's masqueraded source port any more", async ({
  host,
}) => {
  const masqueraded = (destinationPort: number): void => {
    const id = add(host, "udp", "9.9.9.9 5353", undefined, db);
    const entry = host.datapath.conntrack.find((one) => one.id === id);
    assert.ok(entry);
    entry.sourceNat = true;
    entry.original.destinationPort = destinationPort;
    entry.reply.destinationAddress = "203.0.113.1";
    entry.reply.destinationPort = destinationPort;
  };
  for (const number of [5353, 5354]) masqueraded(number);
  await host.core.ports.create({ ...port, hostPort: 5353, protocol: "udp" });
  assert.equal(left(host), [2]);
});

test("wildcards of two families are two ports", async ({ host }) => {
  const { ports } = host.core;
  await ports.create({ ...port, name: "v4", hostAddress: "0.0.0.0" });
  await ports.create({ ...port, name: "v6", hostAddress: "::" });
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  await ports.remove("v6");
  assert.equal(left(host), [1]);
  await ports.remove("v4");
  assert.equal(left(host), []);
});

test("a port that moves leaves established connections, but no UDP flow behind", async ({
  host,
}) => {
  const { ports } = host.core;
  await ports.create(port);
  await ports.create({ ...port, name: "u", protocol: "udp" });
  for (const patch of [{ hostPort: 8081 }, { endpoint: "db" }] as const) {
    host.datapath.conntrack = [];
    const [number] = (await ports.get("p")).bindings.map(({ hostPort }) => hostPort);
    add(host, "tcp", `198.51.100.1 ${number}`, `${web} 80`);
    add(host, "udp", `198.51.100.1 ${number}`, `${web} 80`);
    await ports.patch("p", patch);
    await ports.patch("u", patch);
    assert.equal(left(host), [1], JSON.stringify(patch));
  }
});

test("of the numbers of a range, those that are left keep their connections", async ({ host }) => {
  const { ports } = host.core;
  await ports.create({ ...port, hostPort: "8000-8001", containerPort: "80-81", protocol: "udp" });
  add(host, "udp", "198.51.100.1 8000", `${web} 80`);
  add(host, "udp", "198.51.100.1 8001", `${web} 81`);
  await ports.patch("p", { labels: { a: "b" } });
  await ports.patch("p", { from: ["10.0.0.0/8"] });
  assert.equal(left(host), [1, 2]);
});

test("a new UDP port takes over what already comes to it, and nobody else's", async ({ host }) => {
  add(host, "udp", "198.51.100.1 53");
  add(host, "udp", "203.0.113.1 53");
  add(host, "udp", "9.9.9.9 53", undefined, web);
  add(host, "udp", "198.51.100.1 54");
  add(host, "tcp", "198.51.100.1 53");
  add(host, "udp", "198.51.100.1 53", "10.9.9.9 53");
  const dns = { ...port, protocol: "udp", hostPort: 53, containerPort: 53 } as const;
  await host.core.ports.create({ ...dns, hostAddress: "203.0.113.1" });
  assert.equal(left(host), [1, 3, 4, 5, 6]);
  await host.core.ports.remove("p");
  await host.core.ports.create(dns);
  assert.equal(left(host), [3, 4, 5, 6]);
});

test("an endpoint that is removed takes all of its connections along", async ({ host }) => {
  await host.core.ports.create(port);
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  add(host, "udp", "9.9.9.9 53", undefined, web);
  add(host, "tcp", "198.51.100.1 8080", `${db} 80`);
  add(host, "udp", "9.9.9.9 53", undefined, db);
  await host.core.endpoints.remove("web");
  assert.equal(left(host), [3, 4]);
});

/** The daemon dies where entries should have been deleted; another one starts. */
async function withKill(host: CoreHost, change: () => Promise<unknown>): Promise<void> {
  host.datapath.failNext("deleteConntrack", new DatapathError("io", "killed"));
  await change();
  await host.core.stop();
  host.core = host.makeCore();
  await host.core.upkeep.begin();
}

test("entries that were not deleted with a change are when the daemon starts", async ({ host }) => {
  await host.core.ports.create(port);
  await host.core.ports.create({ ...port, name: "u", protocol: "udp" });
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  add(host, "udp", "198.51.100.1 8080", `${web} 80`);
  await withKill(host, () => host.core.ports.remove("p"));
  assert.equal(left(host), [2]);
  await withKill(host, () => host.core.ports.patch("u", { endpoint: "db" }));
  assert.equal(left(host), []);
  add(host, "udp", "198.51.100.1 53");
  const dns = { ...port, name: "dns", protocol: "udp", hostPort: 53, containerPort: 53 } as const;
  await withKill(host, () => host.core.ports.create(dns));
  assert.equal(left(host), []);
  add(host, "udp", "9.9.9.9 53", undefined, db);
  await withKill(host, () => host.core.endpoints.remove("db"));
  assert.equal(left(host), []);
});

test("an address that is in use again by then keeps its connections", async ({ host }) => {
  const wanted = (name: string) => ({
    owner: "test",
    prune: true,
    endpoints: [{ name, network: "net", netns: "x" }],
    ports: [{ ...port, name, endpoint: name }],
  });
  await host.core.apply(wanted("v1"), { dryRun: false });
  const address = (await host.core.endpoints.get("v1")).addresses[0]?.split("/")[0];
  await withKill(host, async () => {
    await host.core.apply(wanted("v2"), { dryRun: false });
    assert.match((await host.core.endpoints.get("v2")).addresses[0] ?? "", `${address}/`);
    add(host, "tcp", "198.51.100.1 8080", `${address} 80`);
    add(host, "udp", "9.9.9.9 53", undefined, address);
  });
  assert.equal(left(host), [1, 2]);
});

test("what was translated by a change that failed ends with it", async ({ host }) => {
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  add(host, "tcp", "198.51.100.1 8081", `${web} 80`);
  host.datapath.failNext("setPorts", new DatapathError("io", "no"));
  let failed = false;
  await host.core.ports.create(port).catch(() => {
    failed = true;
  });
  assert.ok(failed);
  assert.equal(left(host), [2]);
});

test("nothing is deleted a second time", async ({ host }) => {
  await host.core.ports.create(port);
  await host.core.ports.remove("p");
  await host.core.ports.create(port);
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  await host.core.upkeep.now();
  host.core = host.makeCore();
  await host.core.upkeep.begin();
  assert.equal(left(host), [1]);
});

test("entries that could not be deleted are tried again, with those of later changes", async ({
  host,
}) => {
  for (const name of ["p", "q"] as const)
    await host.core.ports.create({ ...port, name, hostPort: name === "p" ? 8080 : 8081 });
  add(host, "tcp", "198.51.100.1 8080", `${web} 80`);
  add(host, "tcp", "198.51.100.1 8081", `${web} 80`);
  host.datapath.failNext("deleteConntrack", new DatapathError("io", "no buffer space"));
  await host.core.ports.remove("p");
  assert.equal(left(host), [1, 2]);
  await host.core.ports.remove("q");
  assert.equal(left(host), []);
});

test("a note of them that can't be read hinders nothing", async ({ host }) => {
  for (const note of ["", "{", '{"filters":[{"port":1}],"sockets":[]}']) {
    host.store.saveSetting("stale-conntrack", note);
    await host.core.ports.create(port);
    await host.core.ports.remove("p");
    await host.core.upkeep.now();
  }
});

test.run();
