/** The event log behind `GET /v1/events`: a bounded, numbered history that can be followed. */

export interface NatbridgeEvent {
  /** Counts up by one, over restarts too. */
  id: number;
  /** `network.created`, `sandbox.lost`, `datapath.degraded`, `reconcile.repaired` … */
  type: string;
  time: string;
  /** What it is about; null for datapath events. */
  object: { kind: "network" | "sandbox" | "endpoint" | "port"; id: string; name: string } | null;
  message: string;
}

export interface EventLog {
  /** Events after `lastId`; null when some of them are no longer kept. */
  since(lastId: number): NatbridgeEvent[] | null;
  /** Id of the newest event. */
  lastId(): number;
  /** Calls `listener` for each new event until the answered function is called. */
  subscribe(listener: (event: NatbridgeEvent) => void): () => void;
}
