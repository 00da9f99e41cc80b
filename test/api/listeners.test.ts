import { spawn, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Listeners, startListeners } from "../../src/api/listeners.ts";
import { createToken } from "../../src/api/tokens.ts";
import type { Logger } from "../../src/log.ts";
import type { ListenOptions } from "../../src/runtime/daemon-options.ts";
import { type HttpTarget, sendHttp } from "../../src/runtime/http-client.ts";
import { StandIn } from "./stand-in.ts";
import { QuietLog } from "./support.ts";

interface Context {
  folder: string;
  running: Listeners[];
}
const test = suite<Context>("listeners");
test.before.each((context) => {
  context.folder = mkdtempSync(join(tmpdir(), "natbridge-test-"));
  context.running = [];
});
test.after.each(async ({ folder, running }) => {
  for (const listeners of running) await listeners.stop();
  rmSync(folder, { recursive: true, force: true });
});

const plain = (folder: string): ListenOptions => ({
  socketPath: join(folder, "natbridge.sock"),
  socketGroup: null,
  listen: null,
  tokensFile: null,
  tls: null,
  metricsListen: null,
});

async function start(
  context: Context,
  options: Partial<ListenOptions> = {},
  service = new StandIn(),
) {
  const log = new QuietLog() as unknown as Logger;
  const listeners = await startListeners(service, { ...plain(context.folder), ...options }, log);
  context.running.push(listeners);
  return listeners;
}

const unix = (folder: string): HttpTarget => ({
  kind: "unix",
  socketPath: join(folder, "natbridge.sock"),
});
const mode = (path: string): number => statSync(path).mode & 0o777;

/** Like spawnSync, but lets this process's server answer meanwhile. */
function runProgram(command: string, args: string[], input: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", "ignore"] });
    let text = "";
    child.stdout.on("data", (chunk: Buffer) => {
      text += chunk.toString();
    });
    child.on("error", reject);
    child.on("close", () => resolve(text));
    child.stdin.on("error", () => {});
    child.stdin.end(input);
  });
}

async function get(target: HttpTarget, path: string, headers: Record<string, string> = {}) {
  const answer = await sendHttp(target, {
    method: "GET",
    path,
    headers,
    timeoutMilliseconds: 5000,
  });
  return { status: answer.status, text: await answer.text() };
}

function portOf(listeners: Listeners, scheme: string): number {
  const address = listeners.addresses.find((item) => item.startsWith(scheme));
  assert.ok(address, listeners.addresses.join(" "));
  return Number(new URL(address).port);
}

test("the socket is root's own, served, and gone after stop", async (context) => {
  const path = join(context.folder, "natbridge.sock");
  const umask = process.umask();
  const listeners = await start(context);
  assert.is(process.umask(), umask);
  assert.is(mode(path), 0o600);
  assert.is((await get(unix(context.folder), "/readyz")).status, 200);
  await listeners.stop();
  assert.not.ok(existsSync(path));
});

test("--socket-group opens it to a group that exists", async (context) => {
  await start(context, { socketGroup: "daemon" });
  const path = join(context.folder, "natbridge.sock");
  assert.is(mode(path), 0o660);
  const line = spawnSync("getent", ["group", "daemon"], { encoding: "utf8" }).stdout;
  assert.is(statSync(path).gid, Number(line.split(":")[2]));
});

/** The message of a start that must fail. */
async function refusal(context: Context, options: Partial<ListenOptions>): Promise<string> {
  try {
    await start(context, options);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  throw new Error("it listens");
}

test("a group that does not exist is refused", async (context) => {
  assert.match(
    await refusal(context, { socketGroup: "no-such-group" }),
    /--socket-group.*no-such-group/,
  );
});

test("a socket that a killed process left is taken over", async (context) => {
  const path = join(context.folder, "natbridge.sock");
  const script = `require("node:net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  spawnSync("node", ["-e", script]);
  assert.ok(existsSync(path), "the killed process left its socket");
  await start(context);
  assert.is((await get(unix(context.folder), "/healthz")).status, 200);
});

test("a socket where somebody answers is not taken", async (context) => {
  const path = join(context.folder, "natbridge.sock");
  const other = createServer((socket) => socket.end());
  await new Promise<void>((resolve) => other.listen(path, resolve));
  try {
    assert.match(await refusal(context, {}), /another process answers/);
    assert.ok(existsSync(path));
  } finally {
    await new Promise((resolve) => other.close(resolve));
  }
});

test("a file that is no socket is not removed", async (context) => {
  const path = join(context.folder, "natbridge.sock");
  writeFileSync(path, "precious");
  assert.match(await refusal(context, {}), /no socket/);
  assert.ok(existsSync(path));
});

test("TCP needs tokens, and TLS unless it is loopback", async (context) => {
  const listen = { host: "127.0.0.1", port: 0 };
  assert.match(await refusal(context, { listen }), /--tokens/);
  const tokensFile = join(context.folder, "tokens");
  writeFileSync(tokensFile, createToken("a", "read").line);
  assert.match(
    await refusal(context, { listen: { host: "0.0.0.0", port: 0 }, tokensFile }),
    /--tls-cert/,
  );
  assert.not.ok(existsSync(join(context.folder, "natbridge.sock")), "all or nothing");
});

test("a wrong token file is named, and nothing listens", async (context) => {
  const tokensFile = join(context.folder, "tokens");
  writeFileSync(tokensFile, "nonsense\n");
  assert.match(
    await refusal(context, { listen: { host: "127.0.0.1", port: 0 }, tokensFile }),
    /tokens, line 1/,
  );
  assert.not.ok(existsSync(join(context.folder, "natbridge.sock")));
});

test("TCP serves who has a token", async (context) => {
  const tokensFile = join(context.folder, "tokens");
  const token = createToken("a", "read");
  writeFileSync(tokensFile, token.line);
  const listeners = await start(context, { listen: { host: "127.0.0.1", port: 0 }, tokensFile });
  const target: HttpTarget = {
    kind: "tcp",
    tls: null,
    host: "127.0.0.1",
    port: portOf(listeners, "http:"),
  };
  assert.is((await get(target, "/v1/networks")).status, 401);
  assert.is(
    (await get(target, "/v1/networks", { authorization: `Bearer ${token.secret}` })).status,
    200,
  );
  assert.is((await get(target, "/healthz", { host: "evil.example" })).status, 400);
});

test("TCP with TLS", async (context) => {
  const [certFile, keyFile] = [join(context.folder, "cert"), join(context.folder, "key")];
  const made = spawnSync("openssl", [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=localhost",
    "-addext",
    "subjectAltName=DNS:localhost,IP:127.0.0.1",
    "-keyout",
    keyFile,
    "-out",
    certFile,
  ]);
  assert.is(made.status, 0);
  const tokensFile = join(context.folder, "tokens");
  const token = createToken("a", "read");
  writeFileSync(tokensFile, token.line);
  const listeners = await start(context, {
    listen: { host: "127.0.0.1", port: 0 },
    tokensFile,
    tls: { certFile, keyFile },
  });
  const port = portOf(listeners, "https:");
  const cert = spawnSync("cat", [certFile], { encoding: "utf8" }).stdout;
  const trusting: HttpTarget = { kind: "tcp", tls: { ca: cert }, host: "127.0.0.1", port };
  assert.is(
    (await get(trusting, "/v1/networks", { authorization: `Bearer ${token.secret}` })).status,
    200,
  );
  try {
    await get({ ...trusting, tls: { ca: undefined } }, "/healthz");
    assert.unreachable("an unknown certificate was trusted");
  } catch (error) {
    assert.not.instance(error, assert.Assertion);
  }
});

test("the metrics listener tells metrics and nothing else", async (context) => {
  const listeners = await start(context, { metricsListen: { host: "127.0.0.1", port: 0 } });
  const target: HttpTarget = {
    kind: "tcp",
    tls: null,
    host: "127.0.0.1",
    port: portOf(listeners, "http:"),
  };
  assert.match((await get(target, "/metrics")).text, /natbridge_build_info/);
  assert.is((await get(target, "/v1/networks")).status, 404);
});

test("a taken TCP address is an error, and the socket goes again", async (context) => {
  const other = createServer();
  const port = await new Promise<number>((resolve) => {
    other.listen(0, "127.0.0.1", () => {
      const address = other.address();
      resolve(typeof address === "object" && address !== null ? address.port : 0);
    });
  });
  try {
    const message = await refusal(context, { metricsListen: { host: "127.0.0.1", port } });
    assert.match(message, /in use|EADDRINUSE/i);
    assert.match(message, /--metrics-listen/);
    assert.not.ok(existsSync(join(context.folder, "natbridge.sock")));
  } finally {
    await new Promise((resolve) => other.close(resolve));
  }
});

test("stop ends an event stream and lets a running request finish", async (context) => {
  const service = new StandIn();
  let release: (() => void) | undefined;
  service.datapathStatus = () =>
    new Promise((_resolve, reject) => {
      release = () => reject(new TypeError("late"));
    });
  const listeners = await start(context, {}, service);
  const stream = await sendHttp(unix(context.folder), {
    method: "GET",
    path: "/v1/events",
    timeoutMilliseconds: 0,
  });
  const ended = stream.text();
  const slow = get(unix(context.folder), "/v1/datapath");
  for (let tries = 0; release === undefined && tries < 100; tries += 1)
    await new Promise((resolve) => setTimeout(resolve, 20));
  const start_ = performance.now();
  const stopped = listeners.stop();
  setTimeout(() => release?.(), 100);
  assert.is((await slow).status, 500);
  assert.match(await ended, /natbridge events/);
  await stopped;
  assert.ok(performance.now() - start_ < 4000, "it stops soon");
});

test("a client that sends nothing does not keep it from stopping", async (context) => {
  const listeners = await start(context);
  const path = join(context.folder, "natbridge.sock");
  const idle = spawn("socat", ["-", `UNIX-CONNECT:${path}`], {
    stdio: ["pipe", "ignore", "ignore"],
  });
  await new Promise((resolve) => setTimeout(resolve, 200));
  const begun = performance.now();
  await listeners.stop();
  assert.ok(performance.now() - begun < 5000);
  idle.kill();
});

test("a body without a length is limited while it is read", async (context) => {
  await start(context);
  const path = join(context.folder, "natbridge.sock");
  const send = (mebibytes: number) => {
    const body = `{"name":"n","labels":{"a":"${"x".repeat(mebibytes * 1024 * 1024)}"}}`;
    const args = [
      "-s",
      "--unix-socket",
      path,
      "-H",
      "transfer-encoding: chunked",
      "-H",
      "content-type: application/json",
      "--data-binary",
      "@-",
      "http://localhost/v1/networks",
    ];
    return runProgram("curl", args, body);
  };
  assert.match(await send(4), /body_too_large/);
  assert.match(await send(0.5), /\/labels\/a/);
});

test("who may not write the socket cannot connect", async (context) => {
  chmodSync(context.folder, 0o755);
  await start(context);
  const path = join(context.folder, "natbridge.sock");
  const tried = spawnSync(
    "setpriv",
    ["--reuid=65534", "--clear-groups", "socat", "-", `UNIX-CONNECT:${path}`],
    { encoding: "utf8", input: "" },
  );
  assert.match(tried.stderr, /Permission denied/);
});

test.run();
