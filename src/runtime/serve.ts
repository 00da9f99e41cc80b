/**
 * Serving HTTP on a unix socket or on TCP, the same on Deno and on Node, and stopping in order. Both
 * serve by node:http: Deno's own server ends with the first accept that fails, and tells nothing of its
 * connections.
 */
import { rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, connect, type Server } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { reasonOf } from "../reason.ts";
import { Admission, type Bounds, type ConnectionCounts } from "./admission.ts";
import { openToGroup } from "./socket-file.ts";

export type Handler = (request: Request) => Response | Promise<Response>;

export interface RunningServer {
  /** The TCP port; 0 for a unix socket. */
  readonly port: number;
  readonly connections: ConnectionCounts;
  /** Takes no new connections, lets requests finish for `graceSeconds`, then cuts them off. */
  stop(graceSeconds: number): Promise<void>;
}

export interface Tls {
  cert: string;
  key: string;
}

/** What a listener needs besides its address. */
export interface Serving {
  handler: Handler;
  bounds: Bounds;
  /** Told of what is wrong with a listener, which then goes on. */
  warn: (message: string) => void;
}

const requestTimeoutMilliseconds = 60_000;
/** Longest queue of connections that wait to be accepted; the kernel may make it shorter. */
const backlog = 1024;
const sweepMilliseconds = 1000;
/** How often a listener to which nobody comes is asked whether it still accepts. */
const probeMilliseconds = 5000;
const probePatienceMilliseconds = 3000;

/** What both kinds of node:http's servers can do. */
type HttpServer = Server & { closeIdleConnections(): void; closeAllConnections(): void };

/** Where to listen, and how to reach it from here. */
interface Place {
  listen(server: Server, port: number): void;
  /** Done once it listens. */
  opened(): void;
  target(port: number): { path: string } | { host: string; port: number };
}

function makeServer({ handler, bounds }: Serving, tls: Tls | null): HttpServer {
  const options = {
    requestTimeout: requestTimeoutMilliseconds,
    headersTimeout: bounds.headSeconds * 1000,
    keepAliveTimeout: bounds.idleSeconds * 1000,
    connectionsCheckingInterval: sweepMilliseconds,
  };
  const adaptor = { fetch: handler, overrideGlobalObjects: false };
  const server =
    tls === null
      ? createAdaptorServer({ ...adaptor, createServer: createHttpServer, serverOptions: options })
      : createAdaptorServer({
          ...adaptor,
          createServer: createHttpsServer,
          serverOptions: {
            ...options,
            handshakeTimeout: bounds.headSeconds * 1000,
            cert: tls.cert,
            key: tls.key,
          },
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

/** Runs `action` so that files it makes are born with `mode`: nobody can connect in between. */
function bornWithMode<T>(mode: number, action: () => T): T {
  const before = process.umask(0o777 & ~mode);
  try {
    return action();
  } finally {
    process.umask(before);
  }
}

/** Whether a connection to `target` can be made; null where that cannot be found out. */
function reachable(target: ReturnType<Place["target"]>): Promise<boolean | null> {
  return new Promise((resolve) => {
    const socket = connect(target);
    const end = (answer: boolean | null): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(answer);
    };
    const timer = setTimeout(() => end(false), probePatienceMilliseconds);
    socket.once("connect", () => end(true));
    socket.once("error", (error: NodeJS.ErrnoException) =>
      // A full queue: EAGAIN on a unix socket; on TCP the attempt stays unanswered.
      end(error.code === "EAGAIN" || error.code === "ECONNRESET" ? false : null),
    );
  });
}

const sleep = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * A listener that outlives its sockets: where accepting has stopped for good, as it does on Deno after
 * an accept without a free descriptor, another socket takes the place.
 */
class Listener implements RunningServer {
  readonly #serving: Serving;
  readonly #tls: Tls | null;
  readonly #place: Place;
  readonly #admission: Admission;
  readonly #servers = new Set<HttpServer>();
  readonly #timers: ReturnType<typeof setInterval>[] = [];
  /** The one that listens; null while none can. */
  #current: HttpServer | null = null;
  #port: number;
  #probing = false;
  #stopped = false;
  #seen = 0;

  /** @param port 0 takes a free one, and goes without on a unix socket. */
  constructor(serving: Serving, tls: Tls | null, place: Place, port: number) {
    this.#serving = serving;
    this.#port = port;
    this.#tls = tls;
    this.#place = place;
    this.#admission = new Admission(serving.bounds);
  }

  get port(): number {
    return this.#port;
  }

  get connections(): ConnectionCounts {
    return this.#admission.counts;
  }

  async start(): Promise<this> {
    await this.#open();
    this.#timers.push(
      setInterval(() => this.#admission.sweep(), sweepMilliseconds),
      setInterval(() => void this.#probe(), probeMilliseconds),
    );
    return this;
  }

  async #open(): Promise<void> {
    const server = makeServer(this.#serving, this.#tls);
    server.on("connection", (socket) => this.#admission.enter(socket));
    server.on("request", (request, response) =>
      response.once("close", this.#admission.begin(request.socket)),
    );
    await listening(server, () => this.#place.listen(server, this.#port));
    // An accept that failed: the next one may do.
    server.on("error", ({ message }) => this.#serving.warn(message));
    this.#place.opened();
    const address: AddressInfo | string | null = server.address();
    if (address !== null && typeof address === "object") this.#port = address.port ?? 0;
    this.#servers.add(server);
    server.once("close", () => this.#servers.delete(server));
    this.#current = server;
  }

  /** Looks after a listener to which nobody has come since the last look. */
  async #probe(): Promise<void> {
    const isQuiet = this.#admission.accepted === this.#seen;
    this.#seen = this.#admission.accepted;
    if (!isQuiet || this.#probing) return;
    this.#probing = true;
    try {
      if (this.#current !== null && (await this.#accepts())) return;
      if (this.#current !== null)
        this.#serving.warn("a listener has stopped accepting: it is opened anew");
      this.#current?.close();
      this.#current = null;
      if (!this.#stopped) await this.#open();
    } catch (error) {
      this.#serving.warn(`a listener cannot be opened anew yet: ${reasonOf(error)}`);
    } finally {
      this.#probing = false;
    }
  }

  /** Connects, and expects to see that come. True also where it cannot be found out. */
  async #accepts(): Promise<boolean> {
    const before = this.#admission.accepted;
    const answer = await reachable(this.#place.target(this.#port));
    if (answer === true) await sleep(probePatienceMilliseconds);
    return answer === null || this.#admission.accepted !== before;
  }

  async stop(graceSeconds: number): Promise<void> {
    this.#stopped = true;
    for (const timer of this.#timers) clearInterval(timer);
    const servers = [...this.#servers];
    const closed = Promise.all(
      servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve()))),
    );
    const idle = setInterval(() => {
      for (const server of servers) server.closeIdleConnections();
    }, 20);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const grace = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, graceSeconds * 1000);
    });
    await Promise.race([closed, grace]);
    clearTimeout(timer);
    clearInterval(idle);
    for (const server of servers) server.closeAllConnections();
    await closed;
  }
}

/**
 * Serves on a unix socket that must not exist yet.
 *
 * @param group Whose members may use it besides root; null: nobody.
 */
export function serveUnix(
  serving: Serving,
  path: string,
  group: number | null,
): Promise<RunningServer> {
  let isFirst = true;
  const place: Place = {
    listen: (server) => {
      // Of the socket before: a listener closes its own file, or not.
      if (!isFirst) rmSync(path, { force: true });
      isFirst = false;
      // listen() binds a path before it returns; only its event comes later.
      bornWithMode(0o600, () => server.listen({ path, backlog }));
    },
    opened: () => {
      if (group !== null) openToGroup(path, group);
    },
    target: () => ({ path }),
  };
  return new Listener(serving, null, place, 0).start();
}

const anyAddress: Record<string, string> = { "0.0.0.0": "127.0.0.1", "::": "::1" };

/**
 * Serves on TCP.
 *
 * @param port 0 takes a free one.
 */
export function serveTcp(
  serving: Serving,
  host: string,
  port: number,
  tls: Tls | null,
): Promise<RunningServer> {
  const place: Place = {
    listen: (server, wanted) => server.listen({ host, port: wanted, backlog }),
    opened: () => {},
    target: (actual) => ({ host: anyAddress[host] ?? host, port: actual }),
  };
  return new Listener(serving, tls, place, port).start();
}
