/** Pages and filters of the list calls: `limit`, `cursor`, `label`, `network`, `endpoint`. */
import { z } from "@hono/zod-openapi";
import { refSchema } from "../network/model.ts";

const defaultLimit = 500;
const maxLimit = 1000;

const label = z.string().regex(/^[^=]/, "must be key=value or key");

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
    .regex(
      /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}~[0-9a-f]{64}$/,
      "must be the nextCursor of an earlier answer",
    )
    .optional()
    .openapi({ description: "`nextCursor` of the answer before" }),
  label: z
    .union([label, z.array(label)])
    .optional()
    .openapi({
      type: "array",
      items: { type: "string", pattern: "^[^=]" },
      description: "`key=value` or `key`; repeatable, all must match",
    }),
  network: refSchema.clone().optional().openapi({ description: "Name, id or id prefix" }),
  endpoint: refSchema.clone().optional().openapi({ description: "Name, id or id prefix" }),
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

const asList = (value: string | string[] | undefined): string[] =>
  value === undefined ? [] : Array.isArray(value) ? value : [value];

/** By name, then id: an order that later creates and removes do not disturb. */
function compare(a: [string, string], b: [string, string]): number {
  if (a[0] !== b[0]) return a[0] < b[0] ? -1 : 1;
  return a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0;
}

/** Where a page ended: the last item's name and id. */
function decodeCursor(cursor: string): [string, string] {
  const at = cursor.lastIndexOf("~");
  return [cursor.slice(0, at), cursor.slice(at + 1)];
}

function hasLabel(item: Listed, wanted: string): boolean {
  const at = wanted.indexOf("=");
  const key = at < 0 ? wanted : wanted.slice(0, at);
  if (!Object.hasOwn(item.labels, key)) return false;
  return at < 0 || item.labels[key] === wanted.slice(at + 1);
}

/** The page of `items` that `query` asks for. */
export function page<T extends Listed>(items: T[], query: ListQuery): Page<T> {
  const labels = asList(query.label);
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
    nextCursor: `${last.name}~${last.id}`,
  };
}
