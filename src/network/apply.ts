/** `POST /v1/apply`: many objects as one change. */
import {
  type Mend,
  type Planning,
  putEndpoint,
  putNetwork,
  putPort,
  removeEndpoint,
  removeNetwork,
  requireOwner,
  requireUnique,
} from "./changes.ts";
import type { ApplyInput, ApplyResult } from "./model.ts";
import { invalidField } from "./plan-networks.ts";
import { SocketBook } from "./plan-ports.ts";
import type { EndpointRecord } from "./records.ts";
import { compareStates, type State, type StateDifference } from "./state.ts";

/** Changes the draft to what `input` wants of its owner. */
export async function planApply(planning: Planning, input: ApplyInput): Promise<void> {
  const { draft } = planning;
  const { owner } = input;
  const networks = input.networks ?? [];
  const endpoints = input.endpoints ?? [];
  const ports = input.ports ?? [];
  for (const [kind, objects] of Object.entries({ networks, endpoints, ports }))
    requireUnique(
      kind,
      objects.map(({ name }) => name),
    );
  for (const { name } of networks) requireOwner("Network", draft.network.named(name), owner);
  for (const { name } of endpoints) requireOwner("Endpoint", draft.endpoint.named(name), owner);
  for (const { name } of ports) requireOwner("Published port", draft.port.named(name), owner);
  // First what goes, so that its names, addresses and ports are free.
  if (input.prune) {
    prune(planning, input);
    planning.ports.book = new SocketBook(draft);
  }
  for (const network of networks) putNetwork(planning, network);
  for (const endpoint of endpoints) await putEndpoint(planning, endpoint);
  // Then what moves, so that ports may swap their host ports, whatever their order.
  for (const { name, hostPort } of ports) {
    const known = draft.port.named(name);
    if (known && known.hostPort !== hostPort) planning.ports.book.release(known.id);
  }
  for (const port of ports) putPort(planning, port);
}

function prune(planning: Planning, input: ApplyInput): void {
  const { draft } = planning;
  const named = {
    network: new Set((input.networks ?? []).map(({ name }) => name)),
    endpoint: new Set((input.endpoints ?? []).map(({ name }) => name)),
    port: new Set((input.ports ?? []).map(({ name }) => name)),
  };
  const isStale = (kind: keyof typeof named, record: { name: string; owner: string | null }) =>
    record.owner === input.owner && !named[kind].has(record.name);
  for (const port of draft.port.values()) if (isStale("port", port)) draft.port.delete(port.id);
  for (const endpoint of draft.endpoint.values())
    if (isStale("endpoint", endpoint)) {
      requireNoOther(draft, endpoint, input.owner);
      removeEndpoint(draft, endpoint);
    }
  for (const network of draft.network.values())
    if (isStale("network", network)) removeNetwork(planning, network, false);
}

/** Pruning an endpoint would take along ports that others published on it. */
function requireNoOther(draft: State, endpoint: EndpointRecord, owner: string): void {
  const other = draft.port.of(endpoint.id).find((port) => port.owner !== owner);
  if (!other) return;
  const whose = other.owner === null ? "which no apply made" : `which is ${other.owner}'s`;
  throw invalidField(
    "/prune",
    `endpoint ${endpoint.name} has published port ${other.name}, ${whose}: remove that port first, or keep the endpoint`,
  );
}

const names = (records: { name: string }[]): string[] => records.map(({ name }) => name);

/** What the change did to the objects `input` names, and what it pruned. */
export function applyResult(
  before: State,
  after: State,
  input: ApplyInput,
  mend: Mend,
  dryRun: boolean,
): ApplyResult {
  const difference: StateDifference = compareStates(before, after);
  const pick = (choose: (kind: "network" | "endpoint" | "port") => string[]) => ({
    networks: choose("network"),
    endpoints: choose("endpoint"),
    ports: choose("port"),
  });
  const given = {
    network: names(input.networks ?? []),
    endpoint: names(input.endpoints ?? []),
    port: names(input.ports ?? []),
  };
  const created = pick((kind) => names(difference[kind].added));
  const mended = {
    network: after.network.values().filter(({ id }) => mend.networks.has(id)),
    endpoint: after.endpoint.values().filter(({ id }) => mend.endpoints.has(id)),
    port: [],
  };
  const updated = pick((kind) => [
    ...new Set([
      ...difference[kind].changed.map(({ after: { name } }) => name),
      ...names(mended[kind]).filter((name) => !created[`${kind}s`].includes(name)),
    ]),
  ]);
  const touched = {
    network: new Set([...created.networks, ...updated.networks]),
    endpoint: new Set([...created.endpoints, ...updated.endpoints]),
    port: new Set([...created.ports, ...updated.ports]),
  };
  return {
    dryRun,
    created,
    updated,
    deleted: pick((kind) => names(difference[kind].removed)),
    unchanged: pick((kind) => given[kind].filter((name) => !touched[kind].has(name))),
  };
}
