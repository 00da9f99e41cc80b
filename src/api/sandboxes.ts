/** `/v1/sandboxes`: read only; a sandbox is made by its first endpoint. */
import { createRoute, z } from "@hono/zod-openapi";
import type { Service } from "../network/service.ts";
import { listQuery, page } from "./listing.ts";
import { problemResponses } from "./problem.ts";
import { type Api, commonCodes, json, listOf } from "./route.ts";
import { refParams, sandbox } from "./schemas.ts";

const tags = ["sandboxes"];

const list = createRoute({
  method: "get",
  path: "/v1/sandboxes",
  operationId: "listSandboxes",
  tags,
  summary: "List sandboxes",
  request: { query: listQuery },
  responses: {
    200: json(listOf(sandbox), "A page of sandboxes"),
    ...problemResponses(
      ...commonCodes,
      "network_not_found",
      "endpoint_not_found",
      "ambiguous_reference",
    ),
  },
});

const inspect = createRoute({
  method: "get",
  path: "/v1/sandboxes/{ref}",
  operationId: "getSandbox",
  tags,
  summary: "Inspect a sandbox",
  request: { params: refParams, query: z.strictObject({}) },
  responses: {
    200: json(sandbox, "The sandbox"),
    ...problemResponses(...commonCodes, "sandbox_not_found", "ambiguous_reference"),
  },
});

/** Ids of the sandboxes that have an endpoint in the network. */
function sandboxesOf(service: Service, networkRef: string): Set<string> {
  const { id } = service.networks.get(networkRef);
  return new Set(
    service.endpoints
      .list()
      .filter(({ networkId }) => networkId === id)
      .map(({ sandboxId }) => sandboxId),
  );
}

/** Adds the calls about sandboxes. */
export function sandboxRoutes(api: Api, service: Service): void {
  api.openapi(list, (context) => {
    const query = context.req.valid("query");
    const within = query.network === undefined ? null : sandboxesOf(service, query.network);
    const of =
      query.endpoint === undefined ? null : service.endpoints.get(query.endpoint).sandboxId;
    const items = service.sandboxes
      .list()
      .filter(({ id }) => (within === null || within.has(id)) && (of === null || id === of));
    return context.json(page(items, query), 200);
  });
  api.openapi(inspect, (context) =>
    context.json(service.sandboxes.get(context.req.valid("param").ref), 200),
  );
}
