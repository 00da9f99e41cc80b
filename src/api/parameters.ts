/** Path and query parameters that several resources share. */
import { z } from "@hono/zod-openapi";
import { nameSchema } from "../network/model.ts";
import { ProblemError } from "../problem.ts";

/**
 * What a PUT names. The path's parameter is called `ref` as in the other calls, since OpenAPI knows
 * one name per path, but here it is the object's whole name.
 */
export const nameParams = z.object({
  ref: nameSchema
    .clone()
    .openapi({ param: { name: "ref", in: "path" }, description: "The whole name" }),
});

export const forceQuery = z.strictObject({
  force: z.enum(["true", "false"]).optional().openapi({ description: "Remove what uses it, too" }),
});
export const isForced = (query: { force?: "true" | "false" | undefined }): boolean =>
  query.force === "true";

export const dryRunQuery = z.strictObject({
  dryRun: z
    .enum(["true", "false"])
    .optional()
    .openapi({ description: "Say what would change, and change nothing" }),
});

/**
 * The body of a PUT with the path's name in it.
 *
 * @throws `invalid_request` if the body names another one.
 */
export function requireSameName<T extends { name?: string | undefined }>(
  name: string,
  body: T,
): Omit<T, "name"> & { name: string } {
  if (body.name !== undefined && body.name !== name) {
    throw new ProblemError(
      "invalid_request",
      `/name: the body says "${body.name}", the path "${name}": leave the body's out or make them equal.`,
      [{ pointer: "/name", message: `must be "${name}", as in the path, or absent` }],
    );
  }
  return { ...body, name };
}
