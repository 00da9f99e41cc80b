/** Opens and closes everything the daemon listens on: the unix socket, TCP, and the metrics. */
import { readFileSync, rmSync } from "node:fs";
import { isIP } from "node:net";
import type { Logger } from "../log.ts";
import { createMetrics } from "../metrics/metrics.ts";
import type { MetricsSource } from "../metrics/source.ts";
import type { Service } from "../network/service.ts";
import { reasonOf } from "../reason.ts";
import type { HostPort, ListenOptions } from "../runtime/daemon-options.ts";
import {
  type Handler,
  type RunningServer,
  type Serving,
  serveTcp,
  serveUnix,
} from "../runtime/serve.ts";
import { groupId, removeStaleSocket } from "../runtime/socket-file.ts";
import { type AppOptions, createApp, createMetricsApp } from "./app.ts";
import { boundsOf, type ListenerName } from "./bounds.ts";
import { isLoopback } from "./loopback.ts";
import { readTokens } from "./tokens.ts";

export interface Listeners {
  /** `unix:///run/natbridge/natbridge.sock`, `http://127.0.0.1:9652/metrics` … */
  readonly addresses: string[];
  /** Ends event streams, lets running requests finish, closes; never throws. */
  stop(): Promise<void>;
}

/** Requests that run when the daemon is asked to stop get this long. */
const graceSeconds = 3;

const urlHost = (host: string): string => (isIP(host) === 6 ? `[${host}]` : host);

/** Adds the flag's name to the system's error, such as EADDRINUSE. */
async function serveFor(flag: string, at: HostPort, serve: () => Promise<RunningServer>) {
  try {
    return await serve();
  } catch (error) {
    throw new Error(`${flag} ${urlHost(at.host)}:${at.port}: ${reasonOf(error)}`, { cause: error });
  }
}

function serving(
  listener: ListenerName,
  handler: Handler,
  { log }: Pick<AppOptions, "log">,
): Serving {
  const warn = (message: string) => log.warn({ listener }, message);
  return { handler, bounds: boundsOf(listener), warn };
}

async function listenUnix(
  service: Service,
  options: ListenOptions,
  app: Omit<AppOptions, "access">,
): Promise<RunningServer> {
  const { socketPath, socketGroup } = options;
  const gid = socketGroup === null ? null : groupId(socketGroup);
  await removeStaleSocket(socketPath);
  const api = createApp(service, { ...app, access: null });
  return serveUnix(serving("unix", api.fetch, app), socketPath, gid);
}

/** @throws Error naming the flag that is missing for this address. */
function requireSafe(listen: HostPort, { tokensFile, tls }: ListenOptions): string {
  if (tokensFile === null) {
    throw new Error("--listen needs --tokens FILE: make a token with natbridge token create");
  }
  if (tls === null && !isLoopback(listen.host)) {
    throw new Error(
      `--listen ${urlHost(listen.host)}:${listen.port} needs --tls-cert and --tls-key: only a loopback address goes without`,
    );
  }
  return tokensFile;
}

async function listenTcp(
  service: Service,
  listen: HostPort,
  options: ListenOptions,
  app: Omit<AppOptions, "access">,
): Promise<RunningServer> {
  const tokens = readTokens(requireSafe(listen, options));
  const tls =
    options.tls === null
      ? null
      : {
          cert: readFileSync(options.tls.certFile, "utf8"),
          key: readFileSync(options.tls.keyFile, "utf8"),
        };
  const api = createApp(service, { ...app, access: { tokens, host: listen.host } });
  return serveFor("--listen", listen, () =>
    serveTcp(serving("tcp", api.fetch, app), listen.host, listen.port, tls),
  );
}

/**
 * Listens as `options` say; all or nothing.
 *
 * @throws Error naming the flag that is wrong or the address that is taken.
 */
export async function startListeners(
  service: Service & MetricsSource,
  options: ListenOptions,
  log: Logger,
): Promise<Listeners> {
  const ending = new AbortController();
  const metrics = createMetrics(service);
  const app = { metrics, log, shutdown: ending.signal };
  const servers: RunningServer[] = [];
  const keep = (name: ListenerName, server: RunningServer): void => {
    servers.push(server);
    metrics.watchListener(name, () => server.connections);
  };
  const addresses: string[] = [];
  const close = async (): Promise<void> => {
    ending.abort();
    const results = await Promise.allSettled(servers.map((server) => server.stop(graceSeconds)));
    for (const result of results) {
      if (result.status === "rejected") log.warn({ err: result.reason }, "a listener did not stop");
    }
    if (servers.length > 0) rmSync(options.socketPath, { force: true });
  };
  let closing: Promise<void> | null = null;
  const stop = (): Promise<void> => {
    closing ??= close();
    return closing;
  };
  try {
    keep("unix", await listenUnix(service, options, app));
    addresses.push(`unix://${options.socketPath}`);
    if (options.listen !== null) {
      const server = await listenTcp(service, options.listen, options, app);
      keep("tcp", server);
      const scheme = options.tls === null ? "http" : "https";
      addresses.push(`${scheme}://${urlHost(options.listen.host)}:${server.port}`);
    }
    if (options.metricsListen !== null) {
      const { host, port } = options.metricsListen;
      const api = createMetricsApp(service, app);
      const server = await serveFor("--metrics-listen", options.metricsListen, () =>
        serveTcp(serving("metrics", api.fetch, app), host, port, null),
      );
      keep("metrics", server);
      addresses.push(`http://${urlHost(host)}:${server.port}/metrics`);
    }
  } catch (error) {
    await stop();
    throw error;
  }
  return { addresses, stop };
}
