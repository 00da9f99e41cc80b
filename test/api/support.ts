/** An app over a fresh service, and requests to it. */

import type { Access } from "../../src/api/access.ts";
import { createApp } from "../../src/api/app.ts";
import type { Logger } from "../../src/log.ts";
import { createMetrics } from "../../src/metrics/metrics.ts";
import type { MetricsSource } from "../../src/metrics/source.ts";
import type { Service } from "../../src/network/service.ts";
import { CoreHost } from "./core-host.ts";
import { StandIn } from "./stand-in.ts";

/** Keeps what was logged as errors, and prints nothing. */
export class QuietLog {
  readonly errors: unknown[] = [];
  debug(): void {}
  info(): void {}
  warn(): void {}
  error(...what: unknown[]): void {
    this.errors.push(what);
  }
  child(): this {
    return this;
  }
}

export interface Answer {
  status: number;
  headers: Headers;
  text: string;
  /** Parsed, if it is JSON; null otherwise. */
  body: unknown;
}

/** What a JSON pointer finds in an answer's body; undefined if nothing is there. */
export function at({ body }: Pick<Answer, "body">, pointer: string): unknown {
  let value = body;
  for (const key of pointer.split("/").slice(1)) {
    if (typeof value !== "object" || value === null) return undefined;
    value = Object.entries(value).find(([name]) => name === key)?.[1];
  }
  return value;
}

/** The routes over the real core, on a host in memory. */
export async function createTestApp(access: Access | null = null) {
  const host = await new CoreHost().start();
  // Ready, without the upkeep's timers.
  host.core.ready = () => true;
  return { ...serve(host.core, access), host };
}

/** The routes over a service that can be put into any state, for tests of HTTP itself. */
export const createStandInApp = () => serve(new StandIn(), null);

function serve<T extends Service & MetricsSource>(service: T, access: Access | null) {
  const log = new QuietLog();
  const shutdown = new AbortController();
  const metrics = createMetrics(service);
  const app = createApp(service, {
    metrics,
    log: log as unknown as Logger,
    shutdown: shutdown.signal,
    access,
  });
  const request = async (
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer> => {
    const init: RequestInit = {
      method,
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
    };
    if (body !== undefined) init.body = typeof body === "string" ? body : JSON.stringify(body);
    const response = await app.request(path, init);
    const text = await response.text();
    const isJson =
      (response.headers.get("content-type") ?? "").includes("json") &&
      !(response.headers.get("content-type") ?? "").includes("ndjson");
    return {
      status: response.status,
      headers: response.headers,
      text,
      body: isJson && text !== "" ? JSON.parse(text) : null,
    };
  };
  return { app, service, log, shutdown, metrics, request };
}

export type TestApp = Awaited<ReturnType<typeof createTestApp>>;
export type StandInApp = ReturnType<typeof createStandInApp>;
type Requester = Pick<StandInApp, "request">;

/** my_net, web in it, and port 8080 published. */
export async function seed({ request }: Requester): Promise<void> {
  await request("POST", "/v1/networks", {
    name: "my_net",
    subnets: [{ subnet: "172.32.0.0/24" }],
    labels: { team: "a" },
  });
  await request("POST", "/v1/endpoints", {
    name: "web",
    network: "my_net",
    netns: "web",
    addresses: ["172.32.0.10"],
  });
  await request("POST", "/v1/ports", {
    name: "web-8080",
    endpoint: "web",
    hostPort: 8080,
    containerPort: 80,
  });
}
