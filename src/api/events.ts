/** `GET /v1/events`: server-sent events that go on where `Last-Event-ID` ends. */
import { createRoute, z } from "@hono/zod-openapi";
import { type SSEStreamingApi, streamSSE } from "hono/streaming";
import type { NatbridgeEvent } from "../network/events.ts";
import { refSchema } from "../network/model.ts";
import type { Service } from "../network/service.ts";
import { ProblemError } from "../problem.ts";
import { problemResponses } from "./problem.ts";
import { type Api, commonCodes } from "./route.ts";

/** Comment lines keep idle connections open through proxies. */
const heartbeatMilliseconds = 15_000;
/** A reader this far behind is cut off; it comes back with Last-Event-ID and misses nothing. */
const maxQueued = 10_000;

const several = <T extends z.ZodType>(one: T) => z.union([one, z.array(one)]).optional();
const typePattern = /^[a-z]+(\.[a-z]+|\.\*)?$/;

const query = z.strictObject({
  type: several(
    z
      .string()
      .regex(
        typePattern,
        'must be an event type such as "port.created", or "port" for all of a kind',
      ),
  ).openapi({
    type: "array",
    items: { type: "string", pattern: typePattern.source },
    description: "`port.created` or `port`; repeatable",
  }),
  object: several(refSchema.clone()).openapi({
    type: "array",
    items: { type: "string", minLength: 1, maxLength: 64 },
    description: "Name or id of what the event is about; repeatable",
  }),
});
type Query = z.infer<typeof query>;

const follow = createRoute({
  method: "get",
  path: "/v1/events",
  operationId: "followEvents",
  tags: ["events"],
  summary: "Follow what happens",
  request: {
    query,
    headers: z.object({
      "last-event-id": z
        .string()
        .regex(/^[0-9]{1,15}$/, "must be the id of an event")
        .optional()
        .openapi({ description: "Go on after this event" }),
    }),
  },
  responses: {
    200: { description: "The events", content: { "text/event-stream": { schema: z.string() } } },
    ...problemResponses(...commonCodes, "events_expired"),
  },
});

const asList = (value: string | string[] | undefined): string[] =>
  value === undefined ? [] : Array.isArray(value) ? value : [value];

function matcher({ type, object }: Query): (event: NatbridgeEvent) => boolean {
  const types = asList(type).map((item) => (item.endsWith(".*") ? item.slice(0, -2) : item));
  const objects = asList(object);
  return (event) =>
    (types.length === 0 ||
      types.some((wanted) => event.type === wanted || event.type.startsWith(`${wanted}.`))) &&
    (objects.length === 0 ||
      objects.some((wanted) => event.object?.name === wanted || event.object?.id === wanted));
}

function missedEvents(service: Service, lastId: string | undefined): NatbridgeEvent[] {
  if (lastId === undefined) return [];
  const events = service.events.since(Number(lastId));
  if (events !== null) return events;
  throw new ProblemError(
    "events_expired",
    `Events after ${lastId} are no longer all kept: read the lists anew, and follow without Last-Event-ID.`,
    [{ pointer: "/header/last-event-id", message: "too old" }],
  );
}

/** Writes queued events, and a comment whenever nothing happened for a while, until `ended`. */
async function pump(
  stream: SSEStreamingApi,
  queue: NatbridgeEvent[],
  waiting: { wake: () => void },
  ended: () => boolean,
): Promise<void> {
  await stream.write(": natbridge events\n\n");
  while (!ended()) {
    const event = queue.shift();
    if (event !== undefined) {
      await stream.writeSSE({
        id: String(event.id),
        event: event.type,
        data: JSON.stringify(event),
      });
      continue;
    }
    let timer: ReturnType<typeof setTimeout> | undefined;
    const idle = await new Promise<boolean>((resolve) => {
      waiting.wake = () => resolve(false);
      timer = setTimeout(() => resolve(true), heartbeatMilliseconds);
    });
    clearTimeout(timer);
    if (idle && !ended()) await stream.write(": heartbeat\n\n");
  }
}

/**
 * Adds the event stream.
 *
 * @param shutdown Ends every stream, so that the server can stop.
 */
export function eventRoutes(api: Api, service: Service, shutdown: AbortSignal): void {
  api.openapi(follow, (context) => {
    const matches = matcher(context.req.valid("query"));
    const queue = missedEvents(service, context.req.valid("header")["last-event-id"]).filter(
      matches,
    );
    context.header("cache-control", "no-store");
    context.header("x-accel-buffering", "no");
    return streamSSE(context, async (stream) => {
      const waiting = { wake: () => {} };
      let over = shutdown.aborted;
      const end = () => {
        over = true;
        waiting.wake();
      };
      const unsubscribe = service.events.subscribe((event) => {
        if (over || !matches(event)) return;
        queue.push(event);
        if (queue.length > maxQueued) end();
        else waiting.wake();
      });
      shutdown.addEventListener("abort", end);
      stream.onAbort(end);
      try {
        await pump(stream, queue, waiting, () => over || stream.aborted);
      } finally {
        unsubscribe();
        shutdown.removeEventListener("abort", end);
      }
    });
  });
}
