/**
 * What the host's own long-lived sockets hear when a published port moves, goes, or its endpoint does, and
 * from whom: the same whether the connect hook sent them to the container or the kernel path carries them.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import type { Port } from "../../src/network/model.ts";
import type { Command, Reply } from "./asker.ts";
import { type Family, families, type Scenario } from "./scenarios.ts";
import { addresses, sleep, type Topology } from "./topology.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const program = fileURLToPath(new URL("asker.ts", import.meta.url));
const node = `${root}/node_modules/.bin/node`;
const port = 90;
const patience = 1000;

function start(topology: Topology, name: string, words: string[]): ChildProcessWithoutNullStreams {
  return spawn(
    "nsenter",
    [`--net=/run/netns/${topology.ns(name)}`, node, "--no-warnings", program, ...words],
    { stdio: "pipe" },
  );
}

/** Tells who it is, on port 90 of a sandbox; answers how to end it. */
async function serve(topology: Topology, name: string): Promise<() => void> {
  const child = start(topology, name, ["serve", `${port}`, name]);
  await new Promise<void>((resolve, reject) => {
    child.stdout.once("data", () => resolve());
    child.once("exit", () => reject(new Error(`no server in ${name}`)));
  });
  return () => void child.kill("SIGKILL");
}

/** A test that waits for ever names no reason. */
async function late(command: Command): Promise<never> {
  await new Promise((resolve) => setTimeout(resolve, 20_000).unref());
  throw new Error(`no reply to ${JSON.stringify(command)}`);
}

/** Sockets of the host. */
export class Asker {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #replies: AsyncIterator<string>;

  constructor(topology: Topology) {
    this.#child = start(topology, "host", ["ask"]);
    this.#replies = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  async tell(command: Command): Promise<Reply> {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`);
    const answer = await Promise.race([this.#replies.next(), late(command)]);
    if (answer.done) throw new Error("the asker has ended");
    return JSON.parse(answer.value) as Reply;
  }

  /** One question on a connected socket. */
  ask(name: string, text = "hello"): Promise<Reply> {
    return this.tell({ do: "ask", name, text, patience });
  }

  /** Asks until the answer is from `who`; a lost datagram, or an error of one, is no harm to UDP. */
  async hears(name: string, who: string): Promise<void> {
    let reply: Reply = { answer: "", from: "", error: "" };
    for (let attempt = 0; attempt < 8; attempt++) {
      reply = await this.ask(name, `q${attempt}`);
      if (reply.answer === `${who} q${attempt}`) return;
      await sleep(50);
    }
    assert.unreachable(`${name} does not hear ${who}: ${JSON.stringify(reply)}`);
  }

  end(): void {
    this.#child.kill("SIGKILL");
  }
}

const loopback = { ipv4: "127.0.0.1", ipv6: "::1" } as const;
const number = { ipv4: 4, ipv6: 6 } as const;
const netns = (topology: Topology, name: string): string => `/run/netns/${topology.ns(name)}`;

/** What a scenario makes, to be taken away however it ends. */
const made = { ports: new Set<string>(), endpoints: new Set<string>() };

/** Runs with named servers in sandboxes and an asker in the host; all of it ends with it. */
export async function withSockets(
  topology: Topology,
  servers: string[],
  run: (asker: Asker) => Promise<void>,
): Promise<void> {
  const ends: (() => void)[] = [];
  const asker = new Asker(topology);
  try {
    for (const name of servers) ends.push(await serve(topology, name));
    await run(asker);
  } finally {
    asker.end();
    for (const end of ends) end();
    // Some are gone by now, or the daemon is.
    const remove = (path: string) => topology.api("DELETE", path).catch(() => null);
    for (const name of made.ports) await remove(`/v1/ports/${name}`);
    for (const name of made.endpoints) {
      await remove(`/v1/endpoints/${name}`);
      topology.removeSandbox(name);
    }
    made.ports.clear();
    made.endpoints.clear();
  }
}

/** A published port of `protocol`, as `POST /v1/ports` takes it. */
export function publish(
  topology: Topology,
  protocol: "tcp" | "udp",
  hostPort: number,
  endpoint: string,
  name = `${protocol}-${hostPort}`,
): Promise<Port> {
  made.ports.add(name);
  const wanted = { name, endpoint, hostPort, containerPort: port, protocol };
  return topology.ok<Port>("POST", "/v1/ports", wanted);
}

const openUdp = (asker: Asker, name: string, family: Family, hostPort: number): Promise<Reply> =>
  asker.tell({
    do: "open",
    name,
    protocol: "udp",
    family: number[family],
    host: loopback[family],
    port: hostPort,
  });

export const openTcp = (
  asker: Asker,
  name: string,
  family: Family,
  hostPort: number,
): Promise<Reply> =>
  asker.tell({ do: "open", name, protocol: "tcp", host: loopback[family], port: hostPort });

/** The connection is ended, by whoever carries it, and soon. */
export async function ends(asker: Asker, name: string): Promise<void> {
  const { error } = await asker.tell({ do: "end", name, patience: 5000 });
  assert.ok(error !== "", `${name} goes on`);
}

function forFamilies(
  name: string,
  run: (topology: Topology, family: Family) => Promise<void>,
): Scenario[] {
  return families.map((family) => ({
    name: `${name} (${family})`,
    run: (topology: Topology) => run(topology, family),
  }));
}

/** An endpoint on my_net with a server, whose address may be used again. */
async function lodge(topology: Topology, name: string, hosted: string[]): Promise<void> {
  topology.addSandbox(name);
  made.endpoints.add(name);
  await topology.ok("POST", "/v1/endpoints", {
    name,
    network: "my_net",
    netns: netns(topology, name),
    addresses: hosted,
  });
  await serve(topology, name);
}

/** How many datagrams the server at an address had heard, by its own words. */
async function heard(topology: Topology, address: string): Promise<string> {
  const asker = new Asker(topology);
  try {
    const family = address.includes(":") ? 6 : 4;
    await asker.tell({ do: "open", name: "x", protocol: "udp", family, host: address, port });
    return (await asker.ask("x", "how many")).answer;
  } finally {
    asker.end();
  }
}

/** The database, as a daemon leaves it that is killed right behind its durable write. */
function forgetPort(topology: Topology, name: string): void {
  const database = new DatabaseSync(`${topology.folder}/state/natbridge.sqlite`);
  const { changes } = database
    .prepare("DELETE FROM port WHERE json_extract(record, '$.name') = ?")
    .run(name);
  database.close();
  assert.is(Number(changes), 1);
}

export const hostSocketScenarios: Scenario[] = [
  ...forFamilies("connected-udp-socket-follows-its-port", (topology, family) =>
    withSockets(topology, ["web", "db", "outsider"], async (asker) => {
      await publish(topology, "udp", 8500, "web");
      await openUdp(asker, "a", family, 8500);
      await asker.hears("a", "web");
      await topology.ok("PATCH", "/v1/ports/udp-8500", { endpoint: "db" });
      await asker.hears("a", "db");
      // Another network: another source address.
      await topology.ok("PATCH", "/v1/ports/udp-8500", { endpoint: "outsider" });
      await asker.hears("a", "outsider");
      await topology.ok("PATCH", "/v1/ports/udp-8500", { hostPort: 8501 });
      assert.is((await asker.ask("a")).answer, "");
      await publish(topology, "udp", 8500, "web", "again");
      await asker.hears("a", "web");
      await topology.ok("DELETE", "/v1/ports/again");
      assert.is((await asker.ask("a")).answer, "");
    }),
  ),
  ...forFamilies("tcp-connection-of-the-host-finishes-or-ends", (topology, family) =>
    withSockets(topology, ["web", "db"], async (asker) => {
      await publish(topology, "tcp", 8502, "web");
      await openTcp(asker, "old", family, 8502);
      assert.is((await asker.ask("old")).answer, "web hello");
      await topology.ok("PATCH", "/v1/ports/tcp-8502", { endpoint: "db" });
      assert.is((await asker.ask("old")).answer, "web hello", "established connections finish");
      await openTcp(asker, "new", family, 8502);
      assert.is((await asker.ask("new")).answer, "db hello");
      await topology.ok("DELETE", "/v1/ports/tcp-8502");
      await ends(asker, "new");
      await ends(asker, "old");
    }),
  ),
  ...forFamilies("who-gets-an-address-gets-none-of-its-old-traffic", (topology, family) =>
    withSockets(topology, [], async (asker) => {
      const address = { ipv4: "172.32.0.60", ipv6: "fd32::60" } as const;
      await lodge(topology, "first", Object.values(address));
      for (const protocol of ["tcp", "udp"] as const)
        await publish(topology, protocol, 8503, "first");
      await openUdp(asker, "udp", family, 8503);
      await openTcp(asker, "tcp", family, 8503);
      await asker.hears("udp", "first");
      assert.is((await asker.ask("tcp")).answer, "first hello");
      await topology.ok("DELETE", "/v1/endpoints/first");
      await ends(asker, "tcp");
      await lodge(topology, "second", Object.values(address));
      for (let round = 0; round < 5; round++)
        await asker.tell({ do: "ask", name: "udp", text: "stray", patience: 50 });
      assert.is(await heard(topology, address[family]), "second 0");
    }),
  ),
  {
    name: "ipv6-socket-to-an-ipv4-endpoint-follows",
    run: (topology) =>
      withSockets(topology, [], async (asker) => {
        await lodge(topology, "first", ["172.32.0.61"]);
        await lodge(topology, "second", ["172.32.0.62"]);
        for (const protocol of ["tcp", "udp"] as const)
          await publish(topology, protocol, 8504, "first");
        await openUdp(asker, "udp", "ipv6", 8504);
        await openTcp(asker, "tcp", "ipv6", 8504);
        await asker.hears("udp", "first");
        assert.is((await asker.ask("tcp")).answer, "first hello");
        await topology.ok("PATCH", "/v1/ports/udp-8504", { endpoint: "second" });
        await asker.hears("udp", "second");
        await topology.ok("DELETE", "/v1/endpoints/first");
        await ends(asker, "tcp");
      }),
  },
  {
    name: "a-killed-daemon-leaves-no-socket-where-it-was",
    run: async (topology) => {
      await withSockets(topology, ["web"], async (asker) => {
        for (const protocol of ["tcp", "udp"] as const)
          await publish(topology, protocol, 8505, "web");
        await openUdp(asker, "udp", "ipv4", 8505);
        await openTcp(asker, "tcp", "ipv4", 8505);
        await asker.hears("udp", "web");
        assert.is((await asker.ask("tcp")).answer, "web hello");
        await topology.killDaemon();
        for (const protocol of ["tcp", "udp"]) forgetPort(topology, `${protocol}-8505`);
        await topology.startDaemon();
        await ends(asker, "tcp");
        assert.is((await asker.ask("udp")).answer, "");
        await publish(topology, "udp", 8505, "web");
        await asker.hears("udp", "web");
      });
    },
  },
  ...forFamilies("answers-come-from-what-was-asked", (topology, family) =>
    withSockets(topology, ["web"], async (asker) => {
      for (const hostPort of [8506, 8507]) await publish(topology, "udp", hostPort, "web");
      await asker.tell({ do: "open", name: "u", protocol: "udp", family: number[family] });
      const places = [loopback[family], addresses.host[family]].flatMap((host) =>
        [8506, 8507].map((hostPort): [string, number] => [host, hostPort]),
      );
      const right = places.map((place) => `web ${place.join(" ")} from ${place.join(" ")}`).sort();
      for (let round = 0; round < 5; round++) {
        const asked = { do: "ask-all", name: "u", places, patience: 5000 } as const;
        assert.equal((await asker.tell(asked)).answer.split("\n").sort(), right);
      }
    }),
  ),
];
