/** `/v1/endpoints` */
import { createRoute, z } from "@hono/zod-openapi";
import {
  type EndpointInput,
  endpointInputSchema,
  nameSchema,
  oneSandbox,
} from "../network/model.ts";
import type { Service } from "../network/service.ts";
import { ProblemError } from "../problem.ts";
import { listQuery, page } from "./listing.ts";
import { nameParams, requireSameName } from "./parameters.ts";
import { problemResponses } from "./problem.ts";
import { type Api, bodyCodes, commonCodes, created, json, jsonBody, listOf } from "./route.ts";
import { endpoint, endpointInput, endpointPatch, refParams } from "./schemas.ts";

const tags = ["endpoints"];
const createCodes = [
  "name_taken",
  "network_not_found",
  "sandbox_not_found",
  "ambiguous_reference",
  "sandbox_invalid",
  "address_outside_subnet",
  "static_address_not_allowed",
  "address_in_use",
  "pool_exhausted",
  "interface_exists",
  "predefined_network",
] as const;
const refCodes = ["endpoint_not_found", "ambiguous_reference"] as const;

const list = createRoute({
  method: "get",
  path: "/v1/endpoints",
  operationId: "listEndpoints",
  tags,
  summary: "List endpoints",
  request: { query: listQuery },
  responses: {
    200: json(listOf(endpoint), "A page of endpoints"),
    ...problemResponses(...commonCodes, ...refCodes, "network_not_found"),
  },
});

const create = createRoute({
  method: "post",
  path: "/v1/endpoints",
  operationId: "createEndpoint",
  tags,
  summary: "Create an endpoint: a veth pair from a network into a sandbox",
  request: { query: z.strictObject({}), body: jsonBody(endpointInput) },
  responses: {
    201: json(endpoint, "The endpoint"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...createCodes),
  },
});

const inspect = createRoute({
  method: "get",
  path: "/v1/endpoints/{ref}",
  operationId: "getEndpoint",
  tags,
  summary: "Inspect an endpoint",
  request: { params: refParams, query: z.strictObject({}) },
  responses: {
    200: json(endpoint, "The endpoint"),
    ...problemResponses(...commonCodes, ...refCodes),
  },
});

const put = createRoute({
  method: "put",
  path: "/v1/endpoints/{ref}",
  operationId: "putEndpoint",
  tags,
  summary: "Create an endpoint if it is absent, or change what may change",
  request: {
    params: nameParams,
    query: z.strictObject({}),
    body: jsonBody(endpointInputSchema.extend({ name: nameSchema.optional() }).meta(oneSandbox)),
  },
  responses: {
    200: json(endpoint, "It was there"),
    201: json(endpoint, "It was made"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...createCodes, "immutable_field"),
  },
});

const patch = createRoute({
  method: "patch",
  path: "/v1/endpoints/{ref}",
  operationId: "patchEndpoint",
  tags,
  summary: "Change an endpoint's labels or aliases",
  request: { params: refParams, query: z.strictObject({}), body: jsonBody(endpointPatch) },
  responses: {
    200: json(endpoint, "The endpoint"),
    ...problemResponses(...commonCodes, ...bodyCodes, ...refCodes),
  },
});

const remove = createRoute({
  method: "delete",
  path: "/v1/endpoints/{ref}",
  operationId: "deleteEndpoint",
  tags,
  summary: "Remove an endpoint and its published ports",
  request: { params: refParams, query: z.strictObject({}) },
  responses: { 204: { description: "Removed" }, ...problemResponses(...commonCodes, ...refCodes) },
});

/** @throws `invalid_request` unless exactly one of sandbox, netns and pid is given. */
function requireOneSandbox(input: Pick<EndpointInput, "sandbox" | "netns" | "pid">): void {
  const given = (["sandbox", "netns", "pid"] as const).filter((key) => input[key] !== undefined);
  if (given.length === 1) return;
  const message = "give exactly one of sandbox, netns and pid";
  const pointers = given.length === 0 ? ["/netns"] : given.slice(1).map((key) => `/${key}`);
  throw new ProblemError(
    "invalid_request",
    `${pointers[0]}: ${message}.`,
    pointers.map((pointer) => ({ pointer, message })),
  );
}

/** Adds the calls about endpoints. */
export function endpointRoutes(api: Api, service: Service): void {
  api.openapi(list, (context) => {
    const query = context.req.valid("query");
    const within = query.network === undefined ? null : service.networks.get(query.network).id;
    const only = query.endpoint === undefined ? null : service.endpoints.get(query.endpoint).id;
    const items = service.endpoints
      .list()
      .filter(
        (item) =>
          (within === null || item.networkId === within) && (only === null || item.id === only),
      );
    return context.json(page(items, query), 200);
  });
  api.openapi(create, async (context) => {
    const input = context.req.valid("json");
    requireOneSandbox(input);
    const object = await service.endpoints.create(input);
    return context.json(object, 201, created("/v1/endpoints", object.id));
  });
  api.openapi(inspect, (context) =>
    context.json(service.endpoints.get(context.req.valid("param").ref), 200),
  );
  api.openapi(put, async (context) => {
    const input = requireSameName(context.req.valid("param").ref, context.req.valid("json"));
    requireOneSandbox(input);
    const { object, created: made } = await service.endpoints.put(input);
    return made
      ? context.json(object, 201, created("/v1/endpoints", object.id))
      : context.json(object, 200);
  });
  api.openapi(patch, async (context) =>
    context.json(
      await service.endpoints.patch(context.req.valid("param").ref, context.req.valid("json")),
      200,
    ),
  );
  api.openapi(remove, async (context) => {
    await service.endpoints.remove(context.req.valid("param").ref);
    return context.body(null, 204);
  });
}
