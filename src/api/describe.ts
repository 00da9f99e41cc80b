/** The OpenAPI document without a daemon: the routes are added to an app that nobody calls. */
import type { Logger } from "../log.ts";
import type { Metrics } from "../metrics/metrics.ts";
import type { Service } from "../network/service.ts";
import { createApp } from "./app.ts";
import { type OpenApiDocument, openApiDocument } from "./openapi.ts";

/** Adding routes only keeps its service for later calls, so any use of this one is a mistake. */
function unused(what: string): unknown {
  return new Proxy(
    {},
    {
      get: (_target, key) => {
        throw new Error(`${what}.${String(key)} was used while describing the API`);
      },
    },
  );
}

export function describeApi(): OpenApiDocument {
  const api = createApp(unused("service") as Service, {
    metrics: unused("metrics") as Metrics,
    log: unused("log") as Logger,
    shutdown: new AbortController().signal,
    access: null,
  });
  return openApiDocument(api, false);
}
