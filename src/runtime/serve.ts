/** Serving HTTP on a unix socket or on TCP, the same on Deno and on Node, and stopping in order. */

import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { Server } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { isDeno } from "./runtime.ts";

export type Handler = (request: Request) => Response | Promise<Response>;

export interface RunningServer {
  /** The TCP port; 0 for a unix socket. */
  readonly port: number;
  /** Takes no new connections, lets requests finish for `graceSeconds`, then cuts them off. */
  stop(graceSeconds: number): Promise<void>;
}

export interface Tls {
  cert: string;
  key: string;
}

/** Headers larger than this are refused by the server itself. */
const requestTimeoutMilliseconds = 60_000;

const delay = (seconds: number): { done: Promise<void>; cancel: () => void } => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const done = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, seconds * 1000);
  });
  return { done, cancel: () => clearTimeout(timer) };
};

function denoServer(server: Deno.HttpServer<Deno.Addr>, abort: AbortController): RunningServer {
  return {
    port: server.addr.transport === "tcp" ? server.addr.port : 0,
    async stop(graceSeconds) {
      const grace = delay(graceSeconds);
      // An idle kept-alive connection keeps shutdown() waiting, so it races with a timer.
      const closed = server.shutdown().then(() => true);
      const inTime = await Promise.race([closed, grace.done.then(() => false)]);
      grace.cancel();
      if (!inTime) abort.abort();
    },
  };
}

/** What both kinds of Node's servers can do. */
type NodeServer = Server & { closeIdleConnections(): void; closeAllConnections(): void };

function nodeHttpServer(handler: Handler, tls: Tls | null): NodeServer {
  const options = { requestTimeout: requestTimeoutMilliseconds, headersTimeout: 20_000 };
  const server =
    tls === null
      ? createAdaptorServer({
          fetch: handler,
          createServer: createHttpServer,
          serverOptions: options,
        })
      : createAdaptorServer({
          fetch: handler,
          createServer: createHttpsServer,
          serverOptions: { ...options, cert: tls.cert, key: tls.key },
        });
  if (!("closeIdleConnections" in server)) throw new Error("this HTTP server cannot be stopped");
  return server;
}

function listening(server: Server, listen: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.once("listening", () => {
      server.off("error", reject);
      resolve();
    });
    listen();
  });
}

function nodeServer(server: NodeServer): RunningServer {
  const address = server.address();
  return {
    port: address !== null && typeof address === "object" ? address.port : 0,
    async stop(graceSeconds) {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      const idle = setInterval(() => server.closeIdleConnections(), 20);
      const grace = delay(graceSeconds);
      await Promise.race([closed, grace.done]);
      grace.cancel();
      clearInterval(idle);
      server.closeAllConnections();
      await closed;
    },
  };
}

/** Runs `action` so that files it makes are born with `mode`: nobody can connect in between. */
function bornWithMode<T>(mode: number, action: () => T): T {
  const before = process.umask(0o777 & ~mode);
  try {
    return action();
  } finally {
    process.umask(before);
  }
}

/**
 * Serves on a unix socket that must not exist yet.
 *
 * @param mode Permissions the socket is born with, such as 0o600.
 */
export async function serveUnix(
  handler: Handler,
  path: string,
  mode: number,
): Promise<RunningServer> {
  if (isDeno) {
    const abort = new AbortController();
    const options = { path, signal: abort.signal, onListen: () => {} };
    return denoServer(
      bornWithMode(mode, () => Deno.serve(options, handler)),
      abort,
    );
  }
  const server = nodeHttpServer(handler, null);
  // listen() binds a path before it returns; only its event comes later.
  await listening(server, () => bornWithMode(mode, () => server.listen(path)));
  return nodeServer(server);
}

/**
 * Serves on TCP.
 *
 * @param port 0 takes a free one.
 */
export async function serveTcp(
  handler: Handler,
  host: string,
  port: number,
  tls: Tls | null,
): Promise<RunningServer> {
  if (isDeno) {
    const abort = new AbortController();
    const options = { hostname: host, port, signal: abort.signal, onListen: () => {} };
    const server =
      tls === null
        ? Deno.serve(options, handler)
        : Deno.serve({ ...options, cert: tls.cert, key: tls.key }, handler);
    return denoServer(server, abort);
  }
  const server = nodeHttpServer(handler, tls);
  await listening(server, () => server.listen(port, host));
  return nodeServer(server);
}
