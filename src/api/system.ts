/** `/metrics`, `/healthz` and `/readyz`: what a monitor asks. */
import { createRoute, z } from "@hono/zod-openapi";
import type { Metrics } from "../metrics/metrics.ts";
import type { Service } from "../network/service.ts";
import { ProblemError } from "../problem.ts";
import { problemResponses } from "./problem.ts";
import type { Api } from "./route.ts";

const tags = ["system"];
const text = (description: string) => ({
  description,
  content: { "text/plain": { schema: z.string() } },
});

const metricsRoute = createRoute({
  method: "get",
  path: "/metrics",
  operationId: "getMetrics",
  tags,
  summary: "Metrics in Prometheus' text format",
  responses: {
    200: text("The metrics"),
    ...problemResponses("invalid_request", "unauthorized", "internal"),
  },
});
const health = createRoute({
  method: "get",
  path: "/healthz",
  operationId: "getHealth",
  tags,
  summary: "The daemon is alive",
  security: [],
  responses: { 200: text("It is"), ...problemResponses("invalid_request") },
});
const ready = createRoute({
  method: "get",
  path: "/readyz",
  operationId: "getReadiness",
  tags,
  summary: "The first reconciliation is done",
  security: [],
  responses: { 200: text("It is"), ...problemResponses("invalid_request", "not_ready") },
});

/** Adds the calls of monitors. */
export function systemRoutes(api: Api, service: Pick<Service, "ready">, metrics: Metrics): void {
  api.openapi(metricsRoute, async (context) =>
    context.text(await metrics.scrape(), 200, { "content-type": metrics.contentType }),
  );
  api.openapi(health, (context) => context.text("ok\n", 200));
  api.openapi(ready, (context) => {
    if (service.ready()) return context.text("ready\n", 200);
    throw new ProblemError(
      "not_ready",
      "natbridge is starting or stopping; ask again in a moment.",
    );
  });
}
