/** `GET /v1/connections`: JSON, or one object a line for who asks for it. */
import { createRoute, z } from "@hono/zod-openapi";
import type { Connection } from "../network/model.ts";
import { protocolSchema, refSchema } from "../network/model.ts";
import type { Service } from "../network/service.ts";
import { problemResponses } from "./problem.ts";
import { type Api, commonCodes } from "./route.ts";
import { connection } from "./schemas.ts";

const ndjsonType = "application/x-ndjson";
const reference = refSchema.clone().optional();

const query = z.strictObject({
  endpoint: reference.openapi({ description: "Name, id or id prefix" }),
  network: reference.openapi({ description: "Name, id or id prefix" }),
  port: reference.openapi({ description: "Name, id or id prefix of a published port" }),
  protocol: z.union([protocolSchema, z.enum(["icmp", "other"])]).optional(),
  state: z
    .string()
    .regex(/^[A-Za-z_]{1,32}$/, "must be a conntrack state such as ESTABLISHED")
    .optional()
    .openapi({ description: "conntrack's word, such as ESTABLISHED" }),
});

const list = createRoute({
  method: "get",
  path: "/v1/connections",
  operationId: "listConnections",
  tags: ["connections"],
  summary: "Live connections, before and after NAT, and the path they take",
  request: { query },
  responses: {
    200: {
      description: "The connections",
      content: {
        "application/json": { schema: z.object({ items: z.array(connection) }) },
        "application/x-ndjson": { schema: z.string() },
      },
    },
    ...problemResponses(
      ...commonCodes,
      "endpoint_not_found",
      "network_not_found",
      "port_not_found",
      "ambiguous_reference",
    ),
  },
});

/** The filters with references made names, as connections carry them. */
async function resolve(
  service: Service,
  { endpoint, network, port, protocol, state }: z.infer<typeof query>,
): Promise<(item: Connection) => boolean> {
  const endpointName = endpoint === undefined ? null : service.endpoints.get(endpoint).name;
  const networkName = network === undefined ? null : service.networks.get(network).name;
  const portName = port === undefined ? null : (await service.ports.get(port)).name;
  const wantedState = state?.toUpperCase();
  return (item) =>
    (endpointName === null || item.endpoint === endpointName) &&
    (networkName === null || item.network === networkName) &&
    (portName === null || item.port === portName) &&
    (protocol === undefined || item.protocol === protocol) &&
    (wantedState === undefined || item.state.toUpperCase() === wantedState);
}

function wantsLines(accept: string | undefined): boolean {
  return (accept ?? "").toLowerCase().includes(ndjsonType);
}

/** Adds the call that lists connections. */
export function connectionRoutes(api: Api, service: Service): void {
  api.openapi(list, async (context) => {
    const matches = await resolve(service, context.req.valid("query"));
    const items = (await service.connections()).filter(matches);
    if (!wantsLines(context.req.header("accept"))) return context.json({ items }, 200);
    const lines = items.map((item) => `${JSON.stringify(item)}\n`).join("");
    // The route's type knows one format per status; this second one is declared in its content.
    return context.text(lines, 200, { "content-type": ndjsonType }) as never;
  });
}
