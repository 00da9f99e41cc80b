/** What `/metrics` reads from the core at scrape time. The core implements it. */
import type { HolderLimits } from "../holder/types.ts";
import type { ServedBy } from "../network/model.ts";

/** Counters of one endpoint, seen from its sandbox: `receive` is what the sandbox received. */
export interface EndpointSample {
  endpoint: string;
  network: string;
  sandbox: string;
  /** Host end of the veth pair. */
  veth: string;
  /** Of the host end. */
  ifindex: number;
  /** Name in the sandbox. */
  interface: string;
  /** Null while nothing can count it (sandbox lost, link missing): no series then. */
  traffic: {
    receiveBytes: number;
    receivePackets: number;
    transmitBytes: number;
    transmitPackets: number;
  } | null;
  drops: { reason: string; packets: number }[];
}

/** Packets that arrived at one of the fast path's hooks. */
export interface HookSample {
  /** Device role: what stands before the hook. */
  role: "endpoint" | "uplink";
  path: "fast" | "kernel";
  packets: number;
}

export interface MetricsSnapshot {
  networks: number;
  sandboxes: number;
  publishedPorts: number;
  endpoints: EndpointSample[];
  connections: { protocol: string; path: ServedBy; count: number }[];
  /** Reconciliations so far, and what they repaired. */
  reconcile: { runs: number; failures: number; repairs: number };
  /** Null where no fast path is loaded. */
  fastPath: {
    enabled: boolean;
    hooks: HookSample[];
    flows: number;
    maxFlows: number;
    learned: number;
    expired: number;
    invalidated: number;
    passes: { reason: string; packets: number }[];
    connectHook: { reason: string; calls: number }[];
    programs: { name: string; runTimeSeconds: number; runCount: number }[];
  } | null;
  /** Null while the holder does not answer. */
  forwarder: {
    bindings: number;
    /** Sessions open now. */
    sessions: number;
    /** Sessions since the holder started. */
    sessionsTotal: number;
    bytesTotal: number;
    /** Null of a holder that does not tell. */
    limits: HolderLimits | null;
  } | null;
}

export interface MetricsSource {
  /** Read once per scrape; throws only if nothing at all can be read. */
  metricsSnapshot(): Promise<MetricsSnapshot>;
}
