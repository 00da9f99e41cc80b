/**
 * More connections than a process may have files, of clients that say nothing or nearly nothing: the
 * listeners go on answering whoever asks, and so does everything else in the process.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createToken } from "../../src/api/tokens.ts";
import type { ListenOptions } from "../../src/runtime/daemon-options.ts";
import { type HttpTarget, sendHttp } from "../../src/runtime/http-client.ts";
import { runtimeCommand } from "../runtime-command.ts";

/** Of the server's process; what a host gives is a matter of scale only. */
const files = 400;
const flooding = 3000;
const program = fileURLToPath(new URL("flood-server.ts", import.meta.url));

interface Server {
  pid: number;
  process: ChildProcess;
  addresses: string[];
}
interface Context {
  folder: string;
  servers: Server[];
  sockets: Socket[];
}
const test = suite<Context>("floods");
test.before.each((context) => {
  context.folder = mkdtempSync(join(tmpdir(), "natbridge-flood-"));
  context.servers = [];
  context.sockets = [];
});
test.after.each(async ({ folder, servers, sockets }) => {
  for (const socket of sockets) socket.destroy();
  for (const server of servers) {
    const gone = once(server.process, "exit");
    if (server.process.kill("SIGKILL")) await gone;
  }
  rmSync(folder, { recursive: true, force: true });
});

async function start(context: Context, options: Partial<ListenOptions>): Promise<Server> {
  const whole: ListenOptions = {
    socketPath: join(context.folder, "natbridge.sock"),
    socketGroup: null,
    listen: null,
    tokensFile: null,
    tls: null,
    metricsListen: null,
    ...options,
  };
  const command = ["prlimit", `--nofile=${files}`, ...runtimeCommand, program];
  const [file = "", ...args] = [...command, JSON.stringify(whole)];
  const child = spawn(file, args, { stdio: ["pipe", "pipe", "inherit"] });
  const [line] = await once(child.stdout, "data");
  const server = { pid: child.pid ?? 0, process: child, addresses: JSON.parse(String(line)) };
  context.servers.push(server);
  return server;
}

const isRunning = ({ process: { exitCode, signalCode } }: Server): boolean =>
  exitCode === null && signalCode === null;
const openFiles = ({ pid }: Server): number => readdirSync(`/proc/${pid}/fd`).length;

function portOf({ addresses }: Server, scheme: string): number {
  const address = addresses.find((item) => item.startsWith(scheme));
  assert.ok(address, addresses.join(" "));
  return Number(new URL(address).port);
}

/** Opens connections from addresses of loopback in turn, each of which sends `text`, and no more. */
async function flood(
  { sockets }: Context,
  port: number,
  addresses: string[],
  text = "",
): Promise<void> {
  const settled: Promise<unknown>[] = [];
  for (let index = 0; index < flooding; index += 1) {
    const socket = connect({
      host: "127.0.0.1",
      port,
      localAddress: addresses[index % addresses.length] ?? "127.0.0.1",
    });
    sockets.push(socket);
    const done = new Promise((resolve) => {
      socket.once("connect", () => resolve(socket.write(text)));
      socket.once("error", resolve);
    });
    settled.push(done);
    if (index % 100 === 99) await Promise.race([Promise.all(settled.splice(0)), sleep(500)]);
  }
}

async function ask(target: HttpTarget, path: string) {
  const answer = await sendHttp(target, { method: "GET", path, timeoutMilliseconds: 10_000 });
  return { status: answer.status, text: await answer.text() };
}

const tcp = (port: number): HttpTarget => ({ kind: "tcp", tls: null, host: "127.0.0.1", port });
const unix = ({ folder }: Context): HttpTarget => ({
  kind: "unix",
  socketPath: join(folder, "natbridge.sock"),
});

const crowd = Array.from({ length: 200 }, (_, index) => `127.0.1.${index + 1}`);
const floods = {
  "of one client that says nothing": [["127.0.0.1"], ""],
  "of 200 clients that say nothing": [crowd, ""],
  "of 200 clients that stop in the middle of a head": [crowd, "GET /metrics HTTP/1.1\r\nHost: "],
} as const;

for (const [name, [addresses, text]] of Object.entries(floods))
  test(`--metrics-listen answers in a flood ${name}`, async (context) => {
    const server = await start(context, { metricsListen: { host: "127.0.0.1", port: 0 } });
    const port = portOf(server, "http:");
    await flood(context, port, [...addresses], text);
    assert.is((await ask(unix(context), "/v1/networks")).status, 200);
    const metrics = await ask(tcp(port), "/metrics");
    assert.is(metrics.status, 200);
    assert.match(
      metrics.text,
      /^natbridge_http_connections_turned_away_total\{listener="metrics",reason="evicted"\} \d{4}/m,
    );
    assert.ok(openFiles(server) < files / 2, `${openFiles(server)} open files`);
    assert.ok(isRunning(server));
  });

function certificate(folder: string): { certFile: string; keyFile: string } {
  const [certFile, keyFile] = [join(folder, "cert"), join(folder, "key")];
  const words =
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1";
  const made = spawnSync("openssl", [...words.split(" "), "-keyout", keyFile, "-out", certFile]);
  assert.is(made.status, 0, String(made.stderr));
  return { certFile, keyFile };
}

test("--listen with TLS answers in a flood of connections without a handshake", async (context) => {
  const tokensFile = join(context.folder, "tokens");
  writeFileSync(tokensFile, createToken("a", "read").line);
  const tls = certificate(context.folder);
  const listen = { host: "127.0.0.1", port: 0 };
  const server = await start(context, { listen, tokensFile, tls });
  const port = portOf(server, "https:");
  await flood(context, port, crowd);
  const ca = readFileSync(tls.certFile, "utf8");
  const target: HttpTarget = { kind: "tcp", tls: { ca }, host: "127.0.0.1", port };
  assert.is((await ask(target, "/healthz")).status, 200);
  assert.is((await ask(unix(context), "/healthz")).status, 200);
  assert.ok(openFiles(server) < files / 2, `${openFiles(server)} open files`);
  assert.ok(isRunning(server));
});

test("the unix socket answers in a flood", async (context) => {
  const server = await start(context, {});
  for (let index = 0; index < 1000; index += 1) {
    const socket = connect(join(context.folder, "natbridge.sock"));
    socket.on("error", () => {});
    context.sockets.push(socket);
    if (index % 100 === 99) await sleep(20);
  }
  assert.is((await ask(unix(context), "/v1/networks")).status, 200);
  assert.ok(openFiles(server) < files / 2, `${openFiles(server)} open files`);
});

test("accepting goes on after there was no file left", async (context) => {
  const server = await start(context, { metricsListen: { host: "127.0.0.1", port: 0 } });
  const port = portOf(server, "http:");
  assert.is((await ask(tcp(port), "/healthz")).status, 200);
  const limit = (value: number) =>
    execFileSync("prlimit", [`--pid=${server.pid}`, `--nofile=${value}:`]);
  // A new descriptor is the lowest that is free, and must be below the limit (getrlimit(2)).
  const taken = new Set(readdirSync(`/proc/${server.pid}/fd`).map(Number));
  limit(Array.from({ length: files }, (_, index) => index).find((index) => !taken.has(index)) ?? 0);
  for (let index = 0; index < 40; index += 1) {
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    context.sockets.push(socket);
  }
  await sleep(1000);
  assert.ok(isRunning(server), "it lives");
  limit(files);
  for (const socket of context.sockets) socket.destroy();
  const deadline = performance.now() + 60_000;
  for (const target of [tcp(port), unix(context)]) {
    let status = 0;
    while (status !== 200 && performance.now() < deadline)
      status = await sendHttp(target, {
        method: "GET",
        path: "/healthz",
        timeoutMilliseconds: 2000,
      })
        .then((answer) => answer.status)
        .catch(() => sleep(200, 0));
    assert.is(status, 200, target.kind);
  }
  assert.ok(isRunning(server));
});

test.run();
