/** Pages and filters of the list calls: `limit`, `cursor`, `label`, `network`, `endpoint`. */
import { z } from "@hono/zod-openapi";
import { ProblemError } from "../problem.ts";

const defaultLimit = 500;
const maxLimit = 1000;

export const listQuery = z.strictObject({
  limit: z.coerce
    .number()
    .int()
    .min(1)
    .max(maxLimit)
    .optional()
    .openapi({
      type: "integer",
      minimum: 1,
      maximum: maxLimit,
      description: `Most items in one answer, ${defaultLimit} unless given`,
    }),
  cursor: z
    .string()
    .max(512)
    .optional()
    .openapi({ description: "`nextCursor` of the answer before" }),
  label: z
    .union([z.string(), z.array(z.string())])
    .optional()
    .openapi({
      type: "array",
      items: { type: "string" },
      description: "`key=value` or `key`; repeatable, all must match",
    }),
  network: z.string().min(1).max(64).optional().openapi({ description: "Name, id or id prefix" }),
  endpoint: z.string().min(1).max(64).optional().openapi({ description: "Name, id or id prefix" }),
});
export type ListQuery = z.infer<typeof listQuery>;

interface Listed {
  id: string;
  name: string;
  labels: Record<string, string>;
}

export interface Page<T> {
  items: T[];
  nextCursor?: string;
}

const cursorSchema = z.tuple([z.string(), z.string()]);
const asList = (value: string | string[] | undefined): string[] =>
  value === undefined ? [] : Array.isArray(value) ? value : [value];

/** By name, then id: an order that later creates and removes do not disturb. */
function compare(a: [string, string], b: [string, string]): number {
  if (a[0] !== b[0]) return a[0] < b[0] ? -1 : 1;
  return a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0;
}

function decodeCursor(cursor: string): [string, string] {
  try {
    return cursorSchema.parse(JSON.parse(Buffer.from(cursor, "base64url").toString("utf8")));
  } catch {
    throw new ProblemError("invalid_request", "cursor: give the nextCursor of an earlier answer.", [
      { pointer: "/query/cursor", message: "not a cursor of this list" },
    ]);
  }
}

function hasLabel(item: Listed, wanted: string): boolean {
  const at = wanted.indexOf("=");
  const key = at < 0 ? wanted : wanted.slice(0, at);
  if (!Object.hasOwn(item.labels, key)) return false;
  return at < 0 || item.labels[key] === wanted.slice(at + 1);
}

function checkLabels(labels: string[]): void {
  if (labels.some((label) => label === "" || label.startsWith("="))) {
    throw new ProblemError("invalid_request", "label: give key=value or key.", [
      { pointer: "/query/label", message: "must be key=value or key" },
    ]);
  }
}

/** The page of `items` that `query` asks for. */
export function page<T extends Listed>(items: T[], query: ListQuery): Page<T> {
  const labels = asList(query.label);
  checkLabels(labels);
  const after = query.cursor === undefined ? null : decodeCursor(query.cursor);
  const limit = query.limit ?? defaultLimit;
  const rest = items
    .filter((item) => labels.every((label) => hasLabel(item, label)))
    .filter((item) => after === null || compare([item.name, item.id], after) > 0)
    .sort((a, b) => compare([a.name, a.id], [b.name, b.id]));
  const last = rest[limit - 1];
  if (rest.length <= limit || last === undefined) return { items: rest };
  return {
    items: rest.slice(0, limit),
    nextCursor: Buffer.from(JSON.stringify([last.name, last.id])).toString("base64url"),
  };
}
