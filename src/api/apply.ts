/** `POST /v1/apply` */
import { createRoute } from "@hono/zod-openapi";
import type { Service } from "../network/service.ts";
import { dryRunQuery } from "./parameters.ts";
import { problemResponses } from "./problem.ts";
import { type Api, bodyCodes, commonCodes, json, jsonBody } from "./route.ts";
import { applyInput, applyResult } from "./schemas.ts";

const apply = createRoute({
  method: "post",
  path: "/v1/apply",
  operationId: "apply",
  tags: ["apply"],
  summary: "Make networks, endpoints and ports so; all or nothing",
  request: { query: dryRunQuery, body: jsonBody(applyInput) },
  responses: {
    200: json(applyResult, "What was, or would be, done"),
    ...problemResponses(
      ...commonCodes,
      ...bodyCodes,
      "ambiguous_reference",
      "address_outside_subnet",
      "static_address_not_allowed",
      "sandbox_invalid",
      "range_mismatch",
      "predefined_network",
      "network_not_found",
      "endpoint_not_found",
      "sandbox_not_found",
      "name_taken",
      "port_in_use",
      "address_in_use",
      "subnet_overlap",
      "pool_exhausted",
      "network_in_use",
      "interface_exists",
      "immutable_field",
    ),
  },
});

/** Adds the one call that makes many objects at once. */
export function applyRoutes(api: Api, service: Service): void {
  api.openapi(apply, async (context) => {
    const dryRun = context.req.valid("query").dryRun === "true";
    return context.json(await service.apply(context.req.valid("json"), { dryRun }), 200);
  });
}
