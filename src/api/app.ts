/** The HTTP API as a hono app: guards first, then one file of routes per resource. */
import { OpenAPIHono } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { routePath } from "hono/route";
import type { Logger } from "../log.ts";
import type { Metrics } from "../metrics/metrics.ts";
import type { Service } from "../network/service.ts";
import { ProblemError } from "../problem.ts";
import { type Access, requireAccess } from "./access.ts";
import { applyRoutes } from "./apply.ts";
import { limitBody } from "./body-limit.ts";
import { connectionRoutes } from "./connections.ts";
import { datapathRoutes } from "./datapath.ts";
import { docsRoutes } from "./docs.ts";
import { endpointRoutes } from "./endpoints.ts";
import { eventRoutes } from "./events.ts";
import { requireCall } from "./fallback.ts";
import { networkRoutes } from "./networks.ts";
import { portRoutes } from "./ports.ts";
import { errorResponse, type RequestPart, validationProblem } from "./problem.ts";
import type { Api } from "./route.ts";
import { sandboxRoutes } from "./sandboxes.ts";
import { systemRoutes } from "./system.ts";

export interface AppOptions {
  metrics: Metrics;
  log: Logger;
  /** Ends event streams when the daemon stops. */
  shutdown: AbortSignal;
  /** Who may call; null where the socket's own permissions say it. */
  access: Access | null;
}

const withBody = new Set(["POST", "PUT", "PATCH"]);

/** A form of another site can post text/plain without asking; it cannot post JSON. */
const requireJson: MiddlewareHandler = async (context, next) => {
  const type = (context.req.header("content-type") ?? "").split(";")[0]?.trim().toLowerCase();
  if (withBody.has(context.req.method) && type !== "application/json") {
    throw new ProblemError(
      "unsupported_media_type",
      `Send the body with content-type application/json${type ? `, not ${type}` : ""}.`,
      [{ pointer: "/header/content-type", message: "must be application/json" }],
    );
  }
  await next();
};

/** While starting and stopping, nothing is changed and nothing half-known is told. */
function requireReady(service: Service): MiddlewareHandler {
  return async (_context, next) => {
    if (!service.ready()) {
      throw new ProblemError(
        "not_ready",
        "natbridge is starting or stopping; ask again in a moment.",
      );
    }
    await next();
  };
}

const knownMethods = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]);

function measure(metrics: Metrics): MiddlewareHandler {
  return async (context, next) => {
    const start = performance.now();
    await next();
    const seconds = (performance.now() - start) / 1000;
    const route = routePath(context, -1);
    metrics.observeRequest(
      knownMethods.has(context.req.method) ? context.req.method : "other",
      context.res.status === 404 && route.includes("*") ? "unknown" : route,
      context.res.status,
      seconds,
    );
  };
}

const headers: MiddlewareHandler = async (context, next) => {
  await next();
  context.header("x-content-type-options", "nosniff");
};

/** An app that refuses in `application/problem+json`, without routes yet. */
export function createBareApp(log: Logger): Api {
  const api = new OpenAPIHono({
    defaultHook: (result) => {
      if (!result.success) throw validationProblem(result.error, result.target as RequestPart);
    },
  });
  api.onError((error, context) => errorResponse(error, context, log));
  return api;
}

/** The whole API over `service`; one per listener, all with the same `metrics`. */
export function createApp(service: Service, options: AppOptions): Api {
  const api = createBareApp(options.log);
  api.use(measure(options.metrics), headers);
  if (options.access !== null) api.use(requireAccess(options.access));
  api.use(requireCall(api));
  api.use("/v1/*", requireReady(service), requireJson);
  api.use("/v1/*", limitBody);
  networkRoutes(api, service);
  sandboxRoutes(api, service);
  endpointRoutes(api, service);
  portRoutes(api, service);
  applyRoutes(api, service);
  connectionRoutes(api, service);
  datapathRoutes(api, service);
  eventRoutes(api, service, options.shutdown);
  systemRoutes(api, service, options.metrics);
  docsRoutes(api, options.access !== null);
  return api;
}

/** What --metrics-listen serves: /metrics, /healthz and /readyz, nothing else. */
export function createMetricsApp(
  service: Pick<Service, "ready">,
  options: Pick<AppOptions, "metrics" | "log">,
): Api {
  const api = createBareApp(options.log);
  api.use(headers, requireCall(api));
  systemRoutes(api, service, options.metrics);
  return api;
}
