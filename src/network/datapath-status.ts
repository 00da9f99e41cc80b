/** What `GET /v1/datapath` and `natbridge status` say of the fast path. */
import { z } from "zod";

/** The holder's places for connections or UDP sessions, and who had to go or stay out for want of them. */
const places = z.object({
  open: z.int(),
  capacity: z.int(),
  evicted: z.number(),
  refused: z.number(),
});

export const datapathStatusSchema = z.object({
  /** `fast`: learned flows in use; `kernel`: kernel path only. */
  mode: z.enum(["fast", "kernel"]),
  /** Wanted by the operator (PATCH /v1/datapath, --no-fast-path). */
  enabled: z.boolean(),
  programs: z.array(
    z.object({
      name: z.string(),
      id: z.int(),
      runTimeSeconds: z.number(),
      runCount: z.number(),
      attached: z.array(z.string()),
    }),
  ),
  kernel: z.object({
    release: z.string(),
    features: z.record(z.string(), z.boolean()),
    missing: z.array(z.string()),
  }),
  uplinks: z.array(
    z.object({ name: z.string(), ifindex: z.int(), addresses: z.array(z.string()) }),
  ),
  /** Where the fast path is off, and which rule or reason keeps it off. */
  off: z.array(
    z.object({
      /** `host`, `loopback`, a device or a network. */
      where: z.string(),
      reason: z.string(),
      /** The rule's text, where a rule is the reason. */
      rule: z.string().nullable(),
    }),
  ),
  cache: z.object({
    flows: z.int(),
    maxFlows: z.int(),
    learned: z.number(),
    expired: z.number(),
    invalidated: z.number(),
    fastPackets: z.number(),
    kernelPackets: z.number(),
    /** fastPackets ÷ (fastPackets + kernelPackets); null before any packet. */
    hitRate: z.number().nullable(),
  }),
  passes: z.array(z.object({ reason: z.string(), packets: z.number() })),
  drops: z.array(z.object({ endpoint: z.string(), reason: z.string(), packets: z.number() })),
  connectHook: z.array(z.object({ reason: z.string(), calls: z.number() })),
  /** Host-wide settings natbridge changed, and what they were. */
  sysctls: z.array(z.object({ key: z.string(), value: z.string(), before: z.string() })),
  forwardAccepts: z.array(z.string()),
  /** What the holder forwards in userspace; null while it does not answer. */
  forwarder: z
    .object({
      bindings: z.int(),
      sessions: z.int(),
      sessionsTotal: z.number(),
      bytesTotal: z.number(),
      limits: z.object({ files: z.int(), connections: places, sessions: places }).nullable(),
    })
    .nullable(),
  warnings: z.array(z.string()),
});

export type DatapathStatus = z.infer<typeof datapathStatusSchema>;
