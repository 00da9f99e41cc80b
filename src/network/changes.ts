/**
 * What each call makes of the desired state: pure but for reading the host. Each function changes the
 * draft it is given; the core then takes kernel and disk there.
 */
import type { Datapath, SandboxInfo } from "../datapath/types.ts";
import { ProblemError } from "../problem.ts";
import { endpointStands, type LinksByName, networkStands } from "./endpoint-standing.ts";
import type {
  EndpointInput,
  EndpointPatch,
  NetworkInput,
  NetworkPatch,
  PortInput,
  PortPatch,
} from "./model.ts";
import { endpointDifferences, planEndpoint } from "./plan-endpoints.ts";
import {
  type HostView,
  invalidField,
  networkDifferences,
  planNetwork,
  type Request,
} from "./plan-networks.ts";
import {
  type PortView,
  planBindings,
  planFrom,
  planPort,
  portDifferences,
  refuseInternal,
} from "./plan-ports.ts";
import type { EndpointRecord, NetworkRecord, PortRecord, SandboxRecord } from "./records.ts";
import { findSandbox, planSandbox, sandboxNow, withLivePath } from "./sandbox-lookup.ts";
import type { State } from "./state.ts";

/** All that planning may look at besides the draft. */
export interface Planning {
  draft: State;
  datapath: Datapath;
  host: HostView;
  ports: PortView;
  request: Request;
  /** The state before the draft, and the host's devices: what stands, and what does not. */
  before: State;
  links: LinksByName;
  mend: Mend;
}

/** What a call wants as it is recorded, and the kernel does not have so. By id. */
export interface Mend {
  networks: Set<string>;
  endpoints: Set<string>;
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

const revised = <T extends { revision: number }>(record: T, patch: Partial<T>): T => ({
  ...record,
  ...patch,
  revision: record.revision + 1,
});

function refuseDifferences(kind: string, name: string, fields: string[]): void {
  if (fields.length === 0) return;
  throw new ProblemError(
    "immutable_field",
    `${kind} ${name} exists with another ${fields.join(", ")}, which can't be changed: remove it first.`,
    fields.map((field) => ({ pointer: `/${field}`, message: "can't be changed" })),
  );
}

// --- networks

export function createNetwork(planning: Planning, input: NetworkInput): NetworkRecord {
  const { draft, host, request } = planning;
  const record = planNetwork(draft, input, host, request);
  draft.network.put(record);
  return record;
}

/** The network as `input` wants it: made, changed where that is possible, or as it is. */
export function putNetwork(planning: Planning, input: NetworkInput): NetworkRecord {
  const known = planning.draft.network.named(input.name);
  if (!known || known.predefined) return createNetwork(planning, input);
  refuseDifferences("Network", known.name, networkDifferences(known, input));
  if (!networkStands(known, planning.links)) planning.mend.networks.add(known.id);
  return patchNetwork(planning, known, { labels: input.labels, fastPath: input.fastPath });
}

type Loose<T> = { [K in keyof T]?: T[K] | undefined };

export function patchNetwork(
  { draft }: Planning,
  network: NetworkRecord,
  patch: Loose<NetworkPatch>,
): NetworkRecord {
  const labels = patch.labels ?? network.labels;
  const fastPath = patch.fastPath ?? network.fastPath;
  if (same(labels, network.labels) && fastPath === network.fastPath) return network;
  const record = revised(network, { labels, fastPath });
  draft.network.put(record);
  return record;
}

export function removeNetwork({ draft }: Planning, network: NetworkRecord, force: boolean): void {
  if (network.predefined)
    throw new ProblemError(
      "predefined_network",
      `Network ${network.name} is predefined: it stays.`,
    );
  const endpoints = draft.endpoint.of(network.id);
  if (endpoints.length > 0 && !force) {
    const names = endpoints.slice(0, 5).map(({ name }) => name);
    throw new ProblemError(
      "network_in_use",
      `Network ${network.name} has endpoints (${names.join(", ")}${endpoints.length > 5 ? " …" : ""}): remove them first, or force it.`,
    );
  }
  for (const endpoint of endpoints) removeEndpoint(draft, endpoint);
  draft.network.delete(network.id);
}

// --- endpoints

export async function createEndpoint(
  planning: Planning,
  input: EndpointInput,
): Promise<EndpointRecord> {
  const { draft, datapath, request } = planning;
  const network = draft.network.resolve(input.network, "/network");
  const found = await findSandbox(datapath, draft, input);
  const sandbox = await withLivePath(datapath, planSandbox(draft, found, request), found);
  followNamespace(planning, sandbox);
  const record = planEndpoint(draft, network, sandbox, input, found.present, request);
  if (draft.sandbox.get(sandbox.id) !== sandbox) draft.sandbox.put(sandbox);
  draft.endpoint.put(record);
  return record;
}

export async function putEndpoint(
  planning: Planning,
  input: EndpointInput,
): Promise<EndpointRecord> {
  const { draft, datapath } = planning;
  const known = draft.endpoint.named(input.name);
  if (!known) return createEndpoint(planning, input);
  const found = await findSandbox(datapath, draft, input);
  const sandbox = draft.sandbox.expect(known.sandboxId);
  const now = await sandboxNow(datapath, draft, sandbox, found);
  refuseDifferences("Endpoint", known.name, endpointDifferences(draft, known, input, now !== null));
  if (now !== null) followNamespace(planning, now);
  lookAt(planning, known, found.info);
  return patchEndpoint(planning, known, { labels: input.labels, aliases: input.aliases });
}

/** All that is in a sandbox whose namespace was made anew is to be made anew. */
function followNamespace({ draft, mend }: Planning, sandbox: SandboxRecord): void {
  const before = draft.sandbox.get(sandbox.id);
  if (!before || before === sandbox) return;
  if (before.key !== sandbox.key || before.lostSince !== null)
    for (const { id } of draft.endpoint.of(sandbox.id)) mend.endpoints.add(id);
  draft.sandbox.put(sandbox);
}

/** "Unchanged" is only said of what is really there. */
function lookAt(planning: Planning, endpoint: EndpointRecord, info: SandboxInfo): void {
  const { before, links, mend } = planning;
  // What this call makes is not there yet.
  if (!before.endpoint.get(endpoint.id)) return;
  if (!endpointStands(before, endpoint, links, info)) mend.endpoints.add(endpoint.id);
}

export function patchEndpoint(
  { draft }: Planning,
  endpoint: EndpointRecord,
  patch: Loose<EndpointPatch>,
): EndpointRecord {
  const labels = patch.labels ?? endpoint.labels;
  const aliases = patch.aliases ?? endpoint.aliases;
  if (same(labels, endpoint.labels) && same(aliases, endpoint.aliases)) return endpoint;
  const record = revised(endpoint, { labels, aliases });
  draft.endpoint.put(record);
  return record;
}

/** With its ports, and with its sandbox if it was the last there. */
export function removeEndpoint(draft: State, endpoint: EndpointRecord): void {
  for (const port of draft.port.of(endpoint.id)) draft.port.delete(port.id);
  draft.endpoint.delete(endpoint.id);
  if (draft.endpoint.of(endpoint.sandboxId).length === 0) draft.sandbox.delete(endpoint.sandboxId);
}

// --- published ports

export function createPort(planning: Planning, input: PortInput): PortRecord {
  const { draft, ports, request } = planning;
  const record = planPort(draft, input, ports, request);
  ports.book.take(record);
  draft.port.put(record);
  return record;
}

export function putPort(planning: Planning, input: PortInput & { name: string }): PortRecord {
  const known = planning.draft.port.named(input.name);
  if (!known) return createPort(planning, input);
  refuseDifferences("Published port", known.name, portDifferences(known, input));
  return patchPort(planning, known, { ...input, from: input.from ?? [] });
}

export function patchPort(
  { draft, ports }: Planning,
  port: PortRecord,
  patch: Loose<PortPatch>,
): PortRecord {
  const endpoint =
    patch.endpoint === undefined
      ? draft.endpoint.expect(port.endpointId)
      : draft.endpoint.resolve(patch.endpoint, "/endpoint");
  refuseInternal(endpoint, draft.network.expect(endpoint.networkId));
  const hostPort = patch.hostPort ?? port.hostPort;
  const change: Partial<PortRecord> = {
    endpointId: endpoint.id,
    hostPort,
    from: patch.from === undefined ? port.from : planFrom(patch.from),
    labels: patch.labels ?? port.labels,
    bindings: hostPort === port.hostPort ? port.bindings : rebind(port, hostPort, ports),
  };
  if (same({ ...port, ...change }, port)) return port;
  const record = revised(port, change);
  ports.book.take(record);
  draft.port.put(record);
  return record;
}

function rebind(port: PortRecord, hostPort: number | string, view: PortView) {
  const { protocol, hostAddress, containerPort, id } = port;
  return planBindings({ protocol, hostAddress, hostPort, containerPort, except: id }, view);
}

// --- apply

/** Refuses to take over what somebody else made. */
export function requireOwner(
  kind: string,
  record: { name: string; owner: string | null } | undefined,
  owner: string,
): void {
  if (!record || record.owner === owner) return;
  const whose = record.owner === null ? "nobody's" : `${record.owner}'s`;
  throw new ProblemError(
    "name_taken",
    `${kind} ${record.name} is ${whose}, not ${owner}'s: choose another name.`,
  );
}

/** Refuses a list that names something twice. */
export function requireUnique(kind: string, names: string[]): void {
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw invalidField(`/${kind}`, `"${twice}" is there twice`);
}
