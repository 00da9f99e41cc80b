/** What every route file shares: the app's type, answers of one object, and schemas of lists. */
import { type OpenAPIHono, z } from "@hono/zod-openapi";
import type { ZodType } from "zod";
import type { Service } from "../network/service.ts";
import type { ProblemCode } from "../problem.ts";

export type Api = OpenAPIHono;

/** One resource's routes, added to `api`. */
export type Routes = (api: Api, service: Service) => void;

/** Codes that any call may answer. */
export const commonCodes = [
  "invalid_request",
  "unauthorized",
  "insufficient_scope",
  "not_ready",
  "internal",
] as const satisfies ProblemCode[];
/** Codes that any call with a body may answer. */
export const bodyCodes = [
  "body_too_large",
  "unsupported_media_type",
] as const satisfies ProblemCode[];

/** `content` of a JSON answer. */
export function json<T extends ZodType>(schema: T, description: string) {
  return { description, content: { "application/json": { schema } } };
}

/** The `request.body` of a call: always required, so that an empty one is refused. */
export function jsonBody<T extends ZodType>(schema: T) {
  return { required: true, content: { "application/json": { schema } } } as const;
}

export function listOf<T extends ZodType>(item: T) {
  return z.object({ items: z.array(item), nextCursor: z.string().optional() });
}

/** A created object: 201 and where it is. */
export function created(path: string, id: string): Record<string, string> {
  return { location: `${path}/${id}` };
}
