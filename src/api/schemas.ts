/** The schemas of the API as they appear, by name, in its OpenAPI document. */
import { z } from "@hono/zod-openapi";
import { datapathStatusSchema } from "../network/datapath-status.ts";
import {
  applyInputSchema,
  applyResultSchema,
  connectionSchema,
  endpointInputSchema,
  endpointPatchSchema,
  endpointSchema,
  labelsSchema,
  networkInputSchema,
  networkPatchSchema,
  networkSchema,
  portInputSchema,
  portPatchSchema,
  portSchema,
  refSchema,
  sandboxSchema,
} from "../network/model.ts";
import { ruleDescriptionSchema } from "../network/rules.ts";
import { type ProblemCode, problems } from "../problem.ts";

// A schema made before @hono/zod-openapi was loaded has no `openapi` method; its clone has.
export const network = networkSchema.clone().openapi("Network");
export const networkInput = networkInputSchema.clone().openapi("NetworkInput");
export const networkPatch = networkPatchSchema.clone().openapi("NetworkPatch");
export const sandbox = sandboxSchema.clone().openapi("Sandbox");
export const endpoint = endpointSchema.clone().openapi("Endpoint");
export const endpointInput = endpointInputSchema.clone().openapi("EndpointInput");
export const endpointPatch = endpointPatchSchema.clone().openapi("EndpointPatch");
export const port = portSchema.clone().openapi("Port");
export const portInput = portInputSchema.clone().openapi("PortInput");
export const portPatch = portPatchSchema.clone().openapi("PortPatch");
export const applyInput = applyInputSchema.clone().openapi("ApplyInput");
export const applyResult = applyResultSchema.clone().openapi("ApplyResult");
export const connection = connectionSchema.clone().openapi("Connection");
export const datapathStatus = datapathStatusSchema.clone().openapi("DatapathStatus");
export const ruleDescription = ruleDescriptionSchema.clone().openapi("RuleDescription");
export const datapathPatch = z.strictObject({ fastPath: z.boolean() }).openapi("DatapathPatch");
export const labels = labelsSchema;

const codes = Object.keys(problems) as [ProblemCode, ...ProblemCode[]];

/** RFC 9457. `pointer` is a JSON pointer into the body, or `/query/…`, `/path/…`, `/header/…`. */
export const problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.enum(codes),
    errors: z.array(z.object({ pointer: z.string(), message: z.string() })).optional(),
  })
  .openapi("Problem");
export type Problem = z.infer<typeof problem>;

/** The `{ref}` of a path. */
export const refParams = z.object({
  ref: refSchema
    .clone()
    .openapi({ param: { name: "ref", in: "path" }, description: "Name, id or unique id prefix" }),
});
