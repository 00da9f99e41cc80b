/** `/v1/datapath` and `/v1/rules` */
import { createRoute, z } from "@hono/zod-openapi";
import type { Service } from "../network/service.ts";
import { problemResponses } from "./problem.ts";
import { type Api, bodyCodes, commonCodes, json, jsonBody } from "./route.ts";
import { datapathPatch, datapathStatus, ruleDescription } from "./schemas.ts";

const tags = ["datapath"];

const show = createRoute({
  method: "get",
  path: "/v1/datapath",
  operationId: "getDatapath",
  tags,
  summary: "What the fast path does, and where and why it is off",
  request: { query: z.strictObject({}) },
  responses: { 200: json(datapathStatus, "The state"), ...problemResponses(...commonCodes) },
});

const patch = createRoute({
  method: "patch",
  path: "/v1/datapath",
  operationId: "patchDatapath",
  tags,
  summary: "Turn the fast path on or off, live",
  request: { query: z.strictObject({}), body: jsonBody(datapathPatch) },
  responses: {
    200: json(datapathStatus, "The state after it"),
    ...problemResponses(...commonCodes, ...bodyCodes, "fast_path_unavailable"),
  },
});

const rules = createRoute({
  method: "get",
  path: "/v1/rules",
  operationId: "listRules",
  tags,
  summary: "Each network and port as nftables elements and as iptables lines",
  request: { query: z.strictObject({}) },
  responses: {
    200: json(z.object({ items: z.array(ruleDescription) }), "The rules"),
    ...problemResponses(...commonCodes),
  },
});

/** Adds the calls about the datapath. */
export function datapathRoutes(api: Api, service: Service): void {
  api.openapi(show, async (context) => context.json(await service.datapathStatus(), 200));
  api.openapi(patch, async (context) => {
    await service.setFastPath(context.req.valid("json").fastPath);
    return context.json(await service.datapathStatus(), 200);
  });
  api.openapi(rules, async (context) => context.json({ items: await service.rules() }, 200));
}
