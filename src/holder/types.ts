/**
 * What the daemon asks of the holder: the process that owns the reserved sockets and forwards what
 * no rule and no hook can serve. `client.ts` speaks to the real one.
 */
import type { Protocol } from "../datapath/types.ts";

/** A reserved host port and where the forwarder sends what reaches it. Families may differ. */
export interface HolderBinding {
  /** `tcp/0.0.0.0/8080`: protocol, host address, host port. Unique. */
  key: string;
  protocol: Protocol;
  /** `0.0.0.0` binds IPv4 only, `::` IPv6 only. */
  hostAddress: string;
  hostPort: number;
  targetAddress: string;
  targetPort: number;
  /** Subnets whose clients may use it; empty or absent: all. This host's own clients always may. */
  from?: string[];
}

export interface HolderBindingState extends HolderBinding {
  /** TCP connections or UDP sessions forwarded since the binding was made. */
  connections: number;
  /** Of them: open now. */
  active: number;
  /** Forwarded in both directions. */
  bytes: number;
  /** Clients turned away because of `from`. */
  refused?: number;
  lastError: string | null;
}

/** Places of the holder for connections, or for UDP sessions. */
export interface HolderPlaces {
  /** Taken now. */
  open: number;
  capacity: number;
  /** Idle ones, or those of a client or port over its share, that went for others. */
  evicted: number;
  /** Newcomers that found no place. */
  refused: number;
}

/** What the holder may have open, and has. */
export interface HolderLimits {
  /** Descriptors. */
  files: number;
  /** TCP and SCTP. */
  connections: HolderPlaces;
  /** UDP. */
  sessions: HolderPlaces;
}

export interface HolderListing {
  bindings: HolderBindingState[];
  /** Null of a holder that does not tell, which an earlier daemon has left. */
  limits: HolderLimits | null;
}

/** Done whole or not at all. A binding that is retargeted keeps its open connections. */
export interface HolderUpdate {
  add: HolderBinding[];
  /** Keys; one that is not there is no error. */
  remove: string[];
  retarget: HolderRetarget[];
}

export interface HolderRetarget {
  key: string;
  targetAddress: string;
  targetPort: number;
  /** Absent: as before. */
  from?: string[];
}

/** Asks for one port that is free for all of `bindings`, which are then reserved on it. */
export interface HolderReservation {
  bindings: Omit<HolderBinding, "hostPort">[];
  firstPort: number;
  lastPort: number;
  /** Where the search begins; it wraps around at `lastPort`. Absent: at `firstPort`. */
  startPort?: number;
}

export interface HolderHello {
  /** Version of the control protocol. */
  protocol: number;
  /** Version of the program. */
  version: string;
  pid: number;
}

export type HolderErrorKind =
  | "address_in_use"
  | "address_not_available"
  | "unsupported"
  | "denied"
  /** The holder does not answer. */
  | "unavailable"
  | "other";

export class HolderError extends Error {
  readonly kind: HolderErrorKind;
  /** The binding that failed, where one did. */
  readonly key: string | null;

  constructor(kind: HolderErrorKind, message: string, key: string | null = null) {
    super(message);
    this.name = "HolderError";
    this.kind = kind;
    this.key = key;
  }
}

export interface Holder {
  /** @throws HolderError */
  list(): Promise<HolderBindingState[]>;
  /** The same, and what limits it. @throws HolderError */
  inspect(): Promise<HolderListing>;
  /** @throws HolderError; nothing has changed then. */
  update(update: HolderUpdate): Promise<void>;
  /** Calls `listener` whenever the holder ends the connection, which it does by dying alone. */
  onLost(listener: () => void): void;
  /** Lets go of the connection; the holder lives on. */
  close(): void;
  /** Ends the holder: every reserved port is given up. */
  shutdown(): Promise<void>;
}

/** A process of the host that holds a port. */
export interface PortOwner {
  pid: number;
  name: string;
}
