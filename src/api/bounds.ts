/** How many connections each listener keeps, of whom, and for how long. */
import type { Bounds } from "../runtime/admission.ts";
import { connectionShare } from "../runtime/file-limit.ts";

export type ListenerName = "unix" | "tcp" | "metrics";

const wanted: Record<ListenerName, number> = { unix: 512, tcp: 512, metrics: 256 };

export function boundsOf(listener: ListenerName): Bounds {
  const connections = connectionShare(wanted[listener]);
  return {
    connections,
    // All clients of the unix socket look alike, and are as good as root.
    perClient: listener === "unix" ? connections : Math.ceil(connections / 4),
    headSeconds: 10,
    // Longer than Prometheus usually waits between scrapes.
    idleSeconds: 75,
    // The API's event streams have no end; metrics are a matter of a moment.
    answerSeconds: listener === "metrics" ? 30 : null,
  };
}
