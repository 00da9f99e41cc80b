/** `/v1/ports`: published ports. */
import { createRoute, z } from "@hono/zod-openapi";
import { nameSchema, portInputSchema } from "../network/model.ts";
import type { Service } from "../network/service.ts";
import { listQuery, page } from "./listing.ts";
import { nameParams, requireSameName } from "./parameters.ts";
import { problemResponses } from "./problem.ts";
import { type Api, bodyCodes, commonCodes, created, json, jsonBody, listOf } from "./route.ts";
import { port, portInput, portPatch, refParams } from "./schemas.ts";

const tags = ["ports"];
const createCodes = [
  "name_taken",
  "endpoint_not_found",
  "ambiguous_reference",
  "port_in_use",
  "pool_exhausted",
  "range_mismatch",
] as const;
const refCodes = ["port_not_found", "ambiguous_reference"] as const;

const list = createRoute({
  method: "get",
  path: "/v1/ports",
  operationId: "listPorts",
  tags,
  summary: "List published ports",
  request: { query: listQuery },
  responses: {
    200: json(listOf(port), "A page of published ports"),
    ...problemResponses(
      ...commonCodes,
      "network_not_found",
      "endpoint_not_found",
      "ambiguous_reference",
    ),
  },
});

const create = createRoute({
  method: "post",
  path: "/v1/ports",
  operationId: "createPort",
  tags,
  summary: "Publish a port",
  request: { query: z.strictObject({}), body: jsonBody(portInput) },
  responses: {
    201: json(port, "The published port"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...createCodes),
  },
});

const inspect = createRoute({
  method: "get",
  path: "/v1/ports/{ref}",
  operationId: "getPort",
  tags,
  summary: "Inspect a published port",
  request: { params: refParams, query: z.strictObject({}) },
  responses: {
    200: json(port, "The published port"),
    ...problemResponses(...commonCodes, ...refCodes),
  },
});

const put = createRoute({
  method: "put",
  path: "/v1/ports/{ref}",
  operationId: "putPort",
  tags,
  summary: "Publish a port if it is absent, or change what may change",
  request: {
    params: nameParams,
    query: z.strictObject({}),
    body: jsonBody(portInputSchema.extend({ name: nameSchema.optional() })),
  },
  responses: {
    200: json(port, "It was there"),
    201: json(port, "It was made"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...createCodes, "immutable_field"),
  },
});

const patch = createRoute({
  method: "patch",
  path: "/v1/ports/{ref}",
  operationId: "patchPort",
  tags,
  summary: "Move a published port; established connections finish on the old target",
  request: { params: refParams, query: z.strictObject({}), body: jsonBody(portPatch) },
  responses: {
    200: json(port, "The published port"),
    ...problemResponses(
      ...commonCodes,
      ...bodyCodes,
      ...refCodes,
      "endpoint_not_found",
      "port_in_use",
      "pool_exhausted",
      "range_mismatch",
    ),
  },
});

const remove = createRoute({
  method: "delete",
  path: "/v1/ports/{ref}",
  operationId: "deletePort",
  tags,
  summary: "Unpublish a port",
  request: { params: refParams, query: z.strictObject({}) },
  responses: { 204: { description: "Removed" }, ...problemResponses(...commonCodes, ...refCodes) },
});

/** Ids of the endpoints that a list call's filters leave; null: all. */
function endpointFilter(
  service: Service,
  query: { network?: string | undefined; endpoint?: string | undefined },
): Set<string> | null {
  if (query.network === undefined && query.endpoint === undefined) return null;
  const network = query.network === undefined ? null : service.networks.get(query.network).id;
  const endpoint = query.endpoint === undefined ? null : service.endpoints.get(query.endpoint).id;
  return new Set(
    service.endpoints
      .list()
      .filter(({ networkId }) => network === null || networkId === network)
      .filter(({ id }) => endpoint === null || id === endpoint)
      .map(({ id }) => id),
  );
}

/** Adds the calls about published ports. */
export function portRoutes(api: Api, service: Service): void {
  api.openapi(list, async (context) => {
    const query = context.req.valid("query");
    const wanted = endpointFilter(service, query);
    const items = (await service.ports.list()).filter(
      ({ endpointId }) => wanted === null || wanted.has(endpointId),
    );
    return context.json(page(items, query), 200);
  });
  api.openapi(create, async (context) => {
    const object = await service.ports.create(context.req.valid("json"));
    return context.json(object, 201, created("/v1/ports", object.id));
  });
  api.openapi(inspect, async (context) =>
    context.json(await service.ports.get(context.req.valid("param").ref), 200),
  );
  api.openapi(put, async (context) => {
    const input = requireSameName(context.req.valid("param").ref, context.req.valid("json"));
    const { object, created: made } = await service.ports.put(input);
    return made
      ? context.json(object, 201, created("/v1/ports", object.id))
      : context.json(object, 200);
  });
  api.openapi(patch, async (context) =>
    context.json(
      await service.ports.patch(context.req.valid("param").ref, context.req.valid("json")),
      200,
    ),
  );
  api.openapi(remove, async (context) => {
    await service.ports.remove(context.req.valid("param").ref);
    return context.body(null, 204);
  });
}
