/**
 * What the HTTP routes, the metrics and the command line may ask of natbridge's core. The
 * implementation is `Core` in `core.ts`; API tests run it on the fake datapath.
 *
 * Every method that refuses throws a `ProblemError` (`src/problem.ts`) with a code of the one table.
 */
import type { DatapathStatus } from "./datapath-status.ts";
import type { EventLog } from "./events.ts";
import type {
  ApplyInput,
  ApplyResult,
  Connection,
  Endpoint,
  EndpointInput,
  EndpointPatch,
  Network,
  NetworkInput,
  NetworkPatch,
  Port,
  PortInput,
  PortPatch,
  Sandbox,
} from "./model.ts";
import type { RuleDescription } from "./rules.ts";

/** Outcome of a PUT: 201 or 200. */
export interface PutResult<T> {
  object: T;
  created: boolean;
}

export interface Networks {
  list(): Network[];
  get(ref: string): Network;
  create(input: NetworkInput): Promise<Network>;
  put(input: NetworkInput): Promise<PutResult<Network>>;
  patch(ref: string, patch: NetworkPatch): Promise<Network>;
  remove(ref: string, options: { force: boolean }): Promise<void>;
}

export interface Sandboxes {
  list(): Sandbox[];
  get(ref: string): Sandbox;
}

export interface Endpoints {
  list(): Endpoint[];
  get(ref: string): Endpoint;
  create(input: EndpointInput): Promise<Endpoint>;
  put(input: EndpointInput): Promise<PutResult<Endpoint>>;
  patch(ref: string, patch: EndpointPatch): Promise<Endpoint>;
  remove(ref: string): Promise<void>;
}

/** Reading a port asks the datapath what its traffic last took, so it is asynchronous. */
export interface Ports {
  list(): Promise<Port[]>;
  get(ref: string): Promise<Port>;
  create(input: PortInput): Promise<Port>;
  put(input: PortInput & { name: string }): Promise<PutResult<Port>>;
  patch(ref: string, patch: PortPatch): Promise<Port>;
  remove(ref: string): Promise<void>;
}

export interface Service {
  readonly networks: Networks;
  readonly sandboxes: Sandboxes;
  readonly endpoints: Endpoints;
  readonly ports: Ports;
  readonly events: EventLog;
  apply(input: ApplyInput, options: { dryRun: boolean }): Promise<ApplyResult>;
  connections(): Promise<Connection[]>;
  datapathStatus(): Promise<DatapathStatus>;
  setFastPath(enabled: boolean): Promise<void>;
  /** Each network and port by what the kernel's table holds of it. */
  rules(): Promise<RuleDescription[]>;
  /** False until the first reconciliation is done and while shutting down. */
  ready(): boolean;
}
