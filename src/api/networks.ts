/** `/v1/networks` */
import { createRoute, z } from "@hono/zod-openapi";
import { nameSchema, networkInputSchema } from "../network/model.ts";
import type { Service } from "../network/service.ts";
import { listQuery, page } from "./listing.ts";
import { forceQuery, isForced, nameParams, requireSameName } from "./parameters.ts";
import { problemResponses } from "./problem.ts";
import { type Api, bodyCodes, commonCodes, created, json, jsonBody, listOf } from "./route.ts";
import { network, networkInput, networkPatch, refParams } from "./schemas.ts";

const tags = ["networks"];
const createCodes = [
  "name_taken",
  "subnet_overlap",
  "pool_exhausted",
  "address_outside_subnet",
  "address_in_use",
  "interface_exists",
] as const;
const refCodes = ["network_not_found", "ambiguous_reference"] as const;

const list = createRoute({
  method: "get",
  path: "/v1/networks",
  operationId: "listNetworks",
  tags,
  summary: "List networks",
  request: { query: listQuery },
  responses: {
    200: json(listOf(network), "A page of networks"),
    ...problemResponses(...commonCodes, ...refCodes, "endpoint_not_found"),
  },
});

const create = createRoute({
  method: "post",
  path: "/v1/networks",
  operationId: "createNetwork",
  tags,
  summary: "Create a network",
  request: { query: z.strictObject({}), body: jsonBody(networkInput) },
  responses: {
    201: json(network, "The network"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...createCodes),
  },
});

const inspect = createRoute({
  method: "get",
  path: "/v1/networks/{ref}",
  operationId: "getNetwork",
  tags,
  summary: "Inspect a network",
  request: { params: refParams, query: z.strictObject({}) },
  responses: {
    200: json(network, "The network"),
    ...problemResponses(...commonCodes, ...refCodes),
  },
});

const put = createRoute({
  method: "put",
  path: "/v1/networks/{ref}",
  operationId: "putNetwork",
  tags,
  summary: "Create a network if it is absent, or change what may change",
  request: {
    params: nameParams,
    query: z.strictObject({}),
    body: jsonBody(networkInputSchema.extend({ name: nameSchema.optional() })),
  },
  responses: {
    200: json(network, "It was there"),
    201: json(network, "It was made"),
    ...problemResponses(
      ...commonCodes,
      ...bodyCodes,
      ...createCodes,
      "immutable_field",
      "predefined_network",
    ),
  },
});

const patch = createRoute({
  method: "patch",
  path: "/v1/networks/{ref}",
  operationId: "patchNetwork",
  tags,
  summary: "Change a network's labels or fastPath",
  request: { params: refParams, query: z.strictObject({}), body: jsonBody(networkPatch) },
  responses: {
    200: json(network, "The network"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...refCodes, "predefined_network"),
  },
});

const remove = createRoute({
  method: "delete",
  path: "/v1/networks/{ref}",
  operationId: "deleteNetwork",
  tags,
  summary: "Remove a network; with force its endpoints too",
  request: { params: refParams, query: forceQuery },
  responses: {
    204: { description: "Removed" },
    ...problemResponses(...commonCodes, ...refCodes, "network_in_use", "predefined_network"),
  },
});

/** Adds the calls about networks. */
export function networkRoutes(api: Api, service: Service): void {
  api.openapi(list, (context) => {
    const query = context.req.valid("query");
    const only = query.network === undefined ? null : service.networks.get(query.network).id;
    const of =
      query.endpoint === undefined ? null : service.endpoints.get(query.endpoint).networkId;
    const items = service.networks
      .list()
      .filter(({ id }) => (only === null || id === only) && (of === null || id === of));
    return context.json(page(items, query), 200);
  });
  api.openapi(create, async (context) => {
    const object = await service.networks.create(context.req.valid("json"));
    return context.json(object, 201, created("/v1/networks", object.id));
  });
  api.openapi(inspect, (context) =>
    context.json(service.networks.get(context.req.valid("param").ref), 200),
  );
  api.openapi(put, async (context) => {
    const input = requireSameName(context.req.valid("param").ref, context.req.valid("json"));
    const { object, created: made } = await service.networks.put(input);
    return made
      ? context.json(object, 201, created("/v1/networks", object.id))
      : context.json(object, 200);
  });
  api.openapi(patch, async (context) =>
    context.json(
      await service.networks.patch(context.req.valid("param").ref, context.req.valid("json")),
      200,
    ),
  );
  api.openapi(remove, async (context) => {
    const force = isForced(context.req.valid("query"));
    await service.networks.remove(context.req.valid("param").ref, { force });
    return context.body(null, 204);
  });
}
