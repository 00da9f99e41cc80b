/**
 * The objects of the API, as zod schemas and as types: what a caller may give (`…Input`) and what
 * natbridge answers. The HTTP routes, the command line and the store all use these.
 */
import { z } from "zod";
import {
  addressSchema,
  clientsSchema,
  macSchema,
  portRangeTextSchema,
  rangeSchema,
  subnetSchema,
  textSchema,
} from "./texts.ts";

export const nameSchema = z
  .string()
  .regex(
    /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$/,
    "must start with a letter or digit and hold at most 63 letters, digits, '_', '.' and '-'",
  );
/** A name, an id or a unique prefix of one. */
export const refSchema = textSchema(1, 64);
export const labelsSchema = z
  .record(textSchema(1, 128), textSchema(0, 256))
  .meta({ propertyNames: { minLength: 1, maxLength: 128 } });
/**
 * What the kernel takes as a name as it is (`dev_valid_name`; it counts up a `%d`), has no meaning of
 * its own to nft (`*`, quotes), and is no folder of /proc/sys/net/ipv4/conf (`all`, `default`).
 */
export const interfaceNameSchema = z
  .string()
  .regex(
    /^(?!(?:\.{1,2}|all|default)$)(?!.*["\\*/:%])[!-~]{1,15}$/,
    "must be 1 to 15 printable ASCII characters without '/', ':', '%', '*', quotes and backslashes, and neither all nor default",
  );
export const protocolSchema = z.enum(["tcp", "udp", "sctp"]);
export const mtuSchema = z.int().min(68).max(65535);
const portNumberSchema = z.int().min(1).max(65535);
/** A port, or a range `"8000-8010"`. */
export const portOrRangeSchema = z.union([portNumberSchema, portRangeTextSchema]);

export const conditionSchema = z.object({
  /** `Ready`, `Reserved`, `FastPath`, `SandboxPresent`. */
  type: z.string(),
  status: z.enum(["true", "false", "unknown"]),
  reason: z.string(),
  message: z.string(),
  since: z.iso.datetime(),
});
export const statusSchema = z.object({ conditions: z.array(conditionSchema) });

const objectShape = {
  id: z.string().regex(/^[0-9a-f]{64}$/),
  name: nameSchema,
  labels: labelsSchema,
  createdAt: z.iso.datetime(),
  revision: z.int().min(1),
  /** Owner of `POST /v1/apply` that made it; null otherwise. */
  owner: z.string().nullable(),
  status: statusSchema,
};

// --- networks
export const subnetInputSchema = z.strictObject({
  subnet: subnetSchema,
  gateway: addressSchema.optional(),
  /** Addresses are handed out from this part of the subnet only. */
  range: rangeSchema.optional(),
  /** Addresses that are never handed out. */
  reserved: z.array(addressSchema).optional(),
});
export const networkInputSchema = z.strictObject({
  name: nameSchema,
  driver: z.literal("bridge").optional(),
  scope: z.literal("local").optional(),
  subnets: z.array(subnetInputSchema).max(2).optional(),
  bridge: interfaceNameSchema.optional(),
  mtu: mtuSchema.optional(),
  ipv6: z.boolean().optional(),
  internal: z.boolean().optional(),
  isolated: z.boolean().optional(),
  masquerade: z.boolean().optional(),
  fastPath: z.enum(["auto", "off"]).optional(),
  labels: labelsSchema.optional(),
});
export const networkSchema = z.object({
  ...objectShape,
  driver: z.enum(["bridge", "host", "null"]),
  scope: z.literal("local"),
  subnets: z.array(
    z.object({
      subnet: z.string(),
      gateway: z.string().nullable(),
      range: z.string().nullable(),
      reserved: z.array(z.string()),
    }),
  ),
  /** Device name; null for the predefined `host` and `none`. */
  bridge: z.string().nullable(),
  mtu: mtuSchema,
  ipv6: z.boolean(),
  internal: z.boolean(),
  isolated: z.boolean(),
  masquerade: z.boolean(),
  fastPath: z.enum(["auto", "off"]),
  predefined: z.boolean(),
});
export const networkPatchSchema = z.strictObject({
  labels: labelsSchema.optional(),
  fastPath: z.enum(["auto", "off"]).optional(),
});

// --- sandboxes
export const sandboxSchema = z.object({
  ...objectShape,
  mode: z.literal("private"),
  /** Path it was given by. A namespace made anew there is the same sandbox, unless it is a process's. */
  netns: z.string(),
  /** `device:inode:cookie` of the namespace. */
  key: z.string(),
  endpoints: z.array(z.object({ id: z.string(), name: nameSchema, interface: z.string() })),
});

// --- endpoints
/** What a schema of an object's fields alone cannot say of an endpoint to be made. */
export const oneSandbox = {
  oneOf: (["sandbox", "netns", "pid"] as const).map((field) => ({ required: [field] })),
};
const endpointFieldsSchema = z.strictObject({
  name: nameSchema,
  network: refSchema,
  sandbox: refSchema.optional(),
  netns: z.string().min(1).max(4096).optional(),
  /** Up to the kernel's PID_MAX_LIMIT (include/linux/threads.h). */
  pid: z.int().min(1).max(4194304).optional(),
  interface: interfaceNameSchema.optional(),
  /** At most one per family. */
  addresses: z.array(addressSchema).max(2).optional(),
  mac: macSchema.optional(),
  aliases: z.array(nameSchema).max(64).optional(),
  mtu: mtuSchema.optional(),
  /** The endpoint with the highest number gives the sandbox its default route; 0 unless given. */
  defaultRoutePriority: z.int().min(-1000000).max(1000000).optional(),
  /** Drop packets from sources that are not the endpoint's own; true unless given. */
  sourceCheck: z.boolean().optional(),
  labels: labelsSchema.optional(),
});
export const endpointInputSchema = endpointFieldsSchema.meta(oneSandbox);
export const endpointSchema = z.object({
  ...objectShape,
  networkId: z.string(),
  network: nameSchema,
  sandboxId: z.string(),
  sandbox: nameSchema,
  interface: z.string(),
  /** With prefix length. */
  addresses: z.array(z.string()),
  /** The networks' gateways, one per family. */
  gateway: z.array(z.string()),
  mac: z.string(),
  mtu: mtuSchema,
  aliases: z.array(nameSchema),
  defaultRoutePriority: z.int(),
  sourceCheck: z.boolean(),
  hostInterface: z.string(),
  /** Of the host end; 0 while it is missing. */
  ifindex: z.int(),
});
export const endpointPatchSchema = z.strictObject({
  labels: labelsSchema.optional(),
  aliases: z.array(nameSchema).max(64).optional(),
});

// --- published ports
/** 0: one of the host's ephemeral ports; which one it became, the bindings say. */
const wantedHostPortSchema = z.union([z.literal(0), portOrRangeSchema]);
export const portInputSchema = z.strictObject({
  name: nameSchema.optional(),
  endpoint: refSchema,
  hostAddress: addressSchema.optional(),
  hostPort: wantedHostPortSchema,
  protocol: protocolSchema.optional(),
  containerPort: portOrRangeSchema,
  from: z.array(clientsSchema).max(1024).optional(),
  labels: labelsSchema.optional(),
});
export const bindingSchema = z.object({
  hostAddress: z.string(),
  hostPort: z.int(),
  containerPort: z.int(),
});
export const servedBySchema = z.enum(["fast", "kernel", "forwarder"]);
export const portSchema = z.object({
  ...objectShape,
  endpointId: z.string(),
  endpoint: nameSchema,
  hostAddress: z.string().nullable(),
  hostPort: wantedHostPortSchema,
  protocol: protocolSchema,
  containerPort: portOrRangeSchema,
  from: z.array(z.string()),
  bindings: z.array(bindingSchema),
  /** What the traffic of each binding last took, by where it came from; null: no traffic yet. */
  servedBy: z.array(
    z.object({
      hostAddress: z.string(),
      hostPort: z.int(),
      uplink: servedBySchema.nullable(),
      host: servedBySchema.nullable(),
      container: servedBySchema.nullable(),
    }),
  ),
});
export const portPatchSchema = z.strictObject({
  endpoint: refSchema.optional(),
  hostPort: wantedHostPortSchema.optional(),
  from: z.array(clientsSchema).max(1024).optional(),
  labels: labelsSchema.optional(),
});

// --- apply
export const applyInputSchema = z.strictObject({
  owner: nameSchema,
  networks: z.array(networkInputSchema).optional(),
  endpoints: z.array(endpointInputSchema).optional(),
  ports: z.array(portInputSchema.extend({ name: nameSchema })).optional(),
  prune: z.boolean().optional(),
});
const applyChangesSchema = z.object({
  networks: z.array(nameSchema),
  endpoints: z.array(nameSchema),
  ports: z.array(nameSchema),
});
export const applyResultSchema = z.object({
  dryRun: z.boolean(),
  created: applyChangesSchema,
  updated: applyChangesSchema,
  deleted: applyChangesSchema,
  unchanged: applyChangesSchema,
});

// --- what is read from the datapath
export const tupleSchema = z.object({
  sourceAddress: z.string(),
  sourcePort: z.int(),
  destinationAddress: z.string(),
  destinationPort: z.int(),
});
export const connectionSchema = z.object({
  protocol: z.enum(["tcp", "udp", "sctp", "icmp", "other"]),
  state: z.string(),
  timeoutSeconds: z.int(),
  original: tupleSchema,
  reply: tupleSchema,
  endpoint: z.string().nullable(),
  network: z.string().nullable(),
  /** Name of the published port it came through. */
  port: z.string().nullable(),
  direction: z.enum(["inbound", "outbound"]),
  path: servedBySchema,
});

export type Condition = z.infer<typeof conditionSchema>;
export type Status = z.infer<typeof statusSchema>;
export type NetworkInput = z.infer<typeof networkInputSchema>;
export type Network = z.infer<typeof networkSchema>;
export type NetworkPatch = z.infer<typeof networkPatchSchema>;
export type Sandbox = z.infer<typeof sandboxSchema>;
export type EndpointInput = z.infer<typeof endpointInputSchema>;
export type Endpoint = z.infer<typeof endpointSchema>;
export type EndpointPatch = z.infer<typeof endpointPatchSchema>;
export type PortInput = z.infer<typeof portInputSchema>;
export type Port = z.infer<typeof portSchema>;
export type PortPatch = z.infer<typeof portPatchSchema>;
export type Binding = z.infer<typeof bindingSchema>;
export type ServedBy = z.infer<typeof servedBySchema>;
export type ApplyInput = z.infer<typeof applyInputSchema>;
export type ApplyResult = z.infer<typeof applyResultSchema>;
export type Connection = z.infer<typeof connectionSchema>;
