/** The holder through its client: start, adopt, replace, survive, errors; and who owns a port. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { HolderClient, holderProtocol } from "../../src/holder/client.ts";
import { findPortOwner } from "../../src/holder/owner.ts";
import { startHolder } from "../../src/holder/start.ts";
import { type HolderBinding, HolderError } from "../../src/holder/types.ts";
import { version } from "../../src/version.ts";
import { runtimeCommand } from "../runtime-command.ts";

interface Context {
  folder: string;
  socketPath: string;
  logPath: string;
  cleanups: (() => unknown)[];
}

const test = suite<Context>("holder", { folder: "", socketPath: "", logPath: "", cleanups: [] });

test.before.each((context) => {
  context.folder = mkdtempSync(join(tmpdir(), "nb-holder-"));
  context.socketPath = join(context.folder, "holder.sock");
  context.logPath = join(context.folder, "holder.log");
  context.cleanups = [];
});

test.after.each(async (context) => {
  for (const cleanup of context.cleanups.reverse()) await cleanup();
  await new HolderClient(context.socketPath).shutdown().catch(() => {});
  rmSync(context.folder, { recursive: true, force: true });
});

function listen(server: Server, port = 0, host = "127.0.0.1"): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => {
      const address = server.address();
      if (address === null || typeof address === "string") reject(new Error("no port"));
      else resolve(address.port);
    });
  });
}

/** Answers what it is sent, with a name before it. */
async function echo(context: Context, name: string): Promise<number> {
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.write(name);
    socket.pipe(socket);
  });
  context.cleanups.push(() => server.close());
  return await listen(server);
}

async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listen(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function ask(port: number, question: string, host = "127.0.0.1"): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = "";
    const socket = connect(port, host, () => socket.end(question));
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      answer += chunk;
    });
    socket.on("end", () => resolve(answer));
    socket.on("error", reject);
    socket.setTimeout(5000, () => socket.destroy(new Error("no answer in 5 s")));
  });
}

function binding(hostPort: number, targetPort: number, more: Partial<HolderBinding> = {}) {
  return {
    key: `tcp/127.0.0.1/${hostPort}`,
    protocol: "tcp" as const,
    hostAddress: "127.0.0.1",
    hostPort,
    targetAddress: "127.0.0.1",
    targetPort,
    ...more,
  };
}

const onlyAdd = (add: HolderBinding[]) => ({ add, remove: [], retarget: [] });

async function refusal(promise: Promise<unknown>): Promise<HolderError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof HolderError) return error;
    throw error;
  }
  throw new Error("it was not refused");
}

test("starts in a session of its own and tells its version", async (context) => {
  const { holder, pid, how } = await startHolder(context);
  assert.is(how, "started");
  assert.equal(await holder.hello(), { protocol: holderProtocol, version, pid });
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  const [, parent, group, session] = stat.map(Number);
  assert.is(session, pid, "it leads its session");
  assert.is(group, pid, "it leads its process group");
  assert.is.not(parent, process.pid, "it is nobody's child here");
  holder.close();
});

test("forwards, counts and lists", async (context) => {
  const { holder } = await startHolder(context);
  const [port, target] = [await freePort(), await echo(context, "a:")];
  await holder.update(onlyAdd([binding(port, target)]));
  assert.is(await ask(port, "hello"), "a:hello");
  const [state] = await holder.list();
  assert.equal(state, {
    ...binding(port, target),
    from: [],
    connections: 1,
    active: 0,
    bytes: 12,
    refused: 0,
    lastError: null,
  });
  holder.close();
});

test("is adopted by the next daemon, with what it holds", async (context) => {
  const first = await startHolder(context);
  const [port, target] = [await freePort(), await echo(context, "a:")];
  await first.holder.update(onlyAdd([binding(port, target)]));
  first.holder.close();
  const second = await startHolder(context);
  assert.is(second.how, "adopted");
  assert.is(second.pid, first.pid);
  assert.is((await second.holder.list()).length, 1);
  assert.is(await ask(port, "x"), "a:x");
  second.holder.close();
});

test("survives SIGKILL to the process group of the daemon that started it", async (context) => {
  const script = fileURLToPath(new URL("./holder-daemon.ts", import.meta.url));
  const { socketPath, logPath } = context;
  const daemon: ChildProcess = spawn("setsid", [...runtimeCommand, script, socketPath, logPath], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  context.cleanups.push(() => daemon.kill("SIGKILL"));
  if (daemon.stdout === null || daemon.pid === undefined) throw new Error("no daemon");
  const [line] = await once(daemon.stdout, "data");
  const pid = Number(String(line));
  execFileSync("kill", ["-9", "--", `-${daemon.pid}`]);
  await once(daemon, "exit");
  await sleep(50);
  const { holder, how, pid: adopted } = await startHolder(context);
  assert.is(how, "adopted");
  assert.is(adopted, pid);
  holder.close();
});

test("names the binding and the kind of a conflict, and does nothing of the update", async (context) => {
  const { holder } = await startHolder(context);
  const other = createServer();
  context.cleanups.push(() => other.close());
  const [taken, free, target] = [await listen(other), await freePort(), await echo(context, "a:")];
  const error = await refusal(
    holder.update(onlyAdd([binding(free, target), binding(taken, target)])),
  );
  assert.is(error.kind, "address_in_use");
  assert.is(error.key, `tcp/127.0.0.1/${taken}`);
  assert.match(error.message, `127.0.0.1:${taken}/tcp`);
  assert.equal(await holder.list(), []);
  const owner = await findPortOwner("tcp", "127.0.0.1", taken);
  assert.is(owner?.pid, process.pid);
  holder.close();
});

test("retargets: new connections go to the new target", async (context) => {
  const { holder } = await startHolder(context);
  const [port, old, next] = [
    await freePort(),
    await echo(context, "o:"),
    await echo(context, "n:"),
  ];
  const { key } = binding(port, old);
  await holder.update(onlyAdd([binding(port, old)]));
  assert.is(await ask(port, "1"), "o:1");
  const retarget = [{ key, targetAddress: "127.0.0.1", targetPort: next }];
  await holder.update({ add: [], remove: [], retarget });
  assert.is(await ask(port, "2"), "n:2");
  await holder.update({ add: [], remove: [key], retarget: [] });
  await ask(port, "3").then(
    () => assert.unreachable("the port is closed"),
    (error: NodeJS.ErrnoException) => assert.is(error.code, "ECONNREFUSED"),
  );
  holder.close();
});

test("picks a free port for both families", async (context) => {
  const { holder } = await startHolder(context);
  const target = await echo(context, "a:");
  const bindings = ["0.0.0.0", "::"].map((hostAddress) => {
    const { hostPort: _, ...rest } = binding(0, target, { key: hostAddress, hostAddress });
    return rest;
  });
  const other = createServer();
  context.cleanups.push(() => other.close());
  const firstPort = await listen(other, 0, "0.0.0.0");
  const port = await holder.reserve({ bindings, firstPort, lastPort: firstPort + 20 });
  assert.ok(port > firstPort && port <= firstPort + 20, `${port}`);
  assert.is(await ask(port, "4"), "a:4");
  assert.is(await ask(port, "6", "::1"), "a:6");
  holder.close();
});

test("tells what it has places for; a holder that does not know of them is listed too", async (context) => {
  const { holder } = await startHolder(context);
  const { limits } = await holder.inspect();
  holder.close();
  assert.ok(limits !== null && limits.files >= 64);
  for (const places of [limits.connections, limits.sessions]) {
    assert.ok(places.capacity > 0);
    assert.equal({ ...places, capacity: 0 }, { open: 0, capacity: 0, evicted: 0, refused: 0 });
  }
  const older = createServer((socket) => {
    socket.on("data", () => socket.write('{"id":1,"result":{"bindings":[]}}\n'));
  });
  context.cleanups.push(() => older.close());
  const path = join(context.folder, "older.sock");
  older.listen(path);
  await once(older, "listening");
  const client = new HolderClient(path);
  assert.equal(await client.inspect(), { bindings: [], limits: null });
  client.close();
});

test("connects again after the holder went away, and says so meanwhile", async (context) => {
  const first = await startHolder(context);
  process.kill(first.pid, "SIGKILL");
  await sleep(50);
  assert.is((await refusal(first.holder.list())).kind, "unavailable");
  const second = await startHolder(context);
  assert.is(second.how, "started");
  assert.equal(await first.holder.list(), [], "the first client found the new holder");
  first.holder.close();
  second.holder.close();
});

test("keeps an older holder in service where taking over from it fails", async (context) => {
  const { holder, pid } = await startHolder(context);
  const [port, target] = [await freePort(), await echo(context, "a:")];
  await holder.update(onlyAdd([binding(port, target)]));
  // A holder of another version, as far as its hello tells: a relay that changes the answer.
  const front = join(context.folder, "front.sock");
  const relay = createServer((client) => {
    const back = connect(context.socketPath);
    client.pipe(back);
    client.on("error", () => back.destroy());
    back.on("data", (data) => client.write(String(data).replace(`"${version}"`, '"0.0.1"')));
    back.on("close", () => client.destroy());
  });
  context.cleanups.push(() => relay.close());
  await new Promise<void>((resolve) => relay.listen(front, resolve));
  const old = new HolderClient(front);
  assert.is((await old.hello()).version, "0.0.1");
  old.close();
  holder.close();
  // The relay passes no descriptors: taking over fails, and the old holder stays in service.
  const kept = await startHolder({ ...context, socketPath: front });
  assert.is(kept.how, "adopted");
  assert.is(kept.pid, pid);
  kept.holder.close();
  assert.is(await ask(port, "x"), "a:x");
});

test("says what is wrong when the program cannot run", async (context) => {
  const missing = await refusal(startHolder({ ...context, binary: "/nonexistent/holder" }));
  assert.is(missing.kind, "unavailable");
  assert.match(missing.message, "/nonexistent/holder");
  const socketPath = join(context.folder, "no", "such", "folder.sock");
  const refused = await refusal(startHolder({ ...context, socketPath }));
  assert.match(refused.message, "No such file");
});

test("a thousand bindings at once", async (context) => {
  const { holder } = await startHolder(context);
  const target = await echo(context, "a:");
  const add = Array.from({ length: 1000 }, (_, n) =>
    binding(20_000 + n, target, {
      key: `${n}`,
      hostAddress: "127.0.3.1",
      protocol: n % 2 ? "udp" : "tcp",
    }),
  );
  await holder.update(onlyAdd(add));
  assert.is((await holder.list()).length, 1000);
  await holder.update({ add: [], remove: add.map(({ key }) => key), retarget: [] });
  assert.equal(await holder.list(), []);
  holder.close();
});

test("finds the owner of a port by address, wildcard and protocol", async (context) => {
  const tcp = createServer();
  const tcp6 = createServer();
  const udp = createSocket("udp4");
  context.cleanups.push(
    () => tcp.close(),
    () => tcp6.close(),
    () => udp.close(),
  );
  const port = await listen(tcp, 0, "127.4.5.6");
  const port6 = await listen(tcp6, 0, "::1");
  await new Promise<void>((resolve) => udp.bind(0, "0.0.0.0", resolve));
  const udpPort = udp.address().port;
  const pid = async (...wanted: Parameters<typeof findPortOwner>) =>
    (await findPortOwner(...wanted))?.pid ?? null;
  assert.is(await pid("tcp", "127.4.5.6", port), process.pid);
  assert.is(await pid("tcp", "0.0.0.0", port), process.pid, "a wildcard collides");
  assert.is(await pid("tcp", "127.4.5.7", port), null, "another address does not");
  assert.is(await pid("udp", "127.4.5.6", port), null, "nor another protocol");
  assert.is(await pid("tcp", "::1", port6), process.pid);
  assert.is(await pid("tcp", "::", port6), process.pid);
  assert.is(await pid("udp", "127.0.0.1", udpPort), process.pid, "bound to every address");
  assert.is(await pid("sctp", "0.0.0.0", port), null);
  const owner = await findPortOwner("tcp", "127.4.5.6", port);
  assert.is(owner?.name, readFileSync("/proc/self/comm", "utf8").trim());
});

test.run();
