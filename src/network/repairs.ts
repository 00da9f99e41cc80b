/** Puts right in the kernel what differs from a record; each answers what it put right. */
import type { Datapath } from "../datapath/types.ts";
import type { NewEvent, Repair } from "./event-log.ts";
import type { BridgeFiltering } from "./host.ts";
import type { EndpointRecord, NetworkRecord, SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";
import { bridgeSpec, defaultRoutes, endpointSpec } from "./wanted.ts";

type Kind = NonNullable<NewEvent["object"]>["kind"];

const told = (
  kind: Kind,
  { id, name }: { id: string; name: string },
  repairs: string[],
): Repair[] =>
  repairs.map((what) => ({ message: `${kind} ${name}: ${what}`, object: { kind, id, name } }));

/** @throws DatapathError */
export async function repairNetwork(datapath: Datapath, network: NetworkRecord): Promise<Repair[]> {
  const spec = bridgeSpec(network);
  return spec === null ? [] : told("network", network, await datapath.ensureBridge(spec));
}

/** @throws DatapathError */
export async function repairEndpoint(
  datapath: Datapath,
  state: State,
  endpoint: EndpointRecord,
  filtering: BridgeFiltering,
): Promise<Repair[]> {
  const spec = endpointSpec(state, endpoint, filtering);
  return told("endpoint", endpoint, await datapath.ensureEndpoint(spec));
}

/**
 * The default routes of a sandbox.
 *
 * @throws DatapathError
 */
export async function repairRoutes(
  datapath: Datapath,
  state: State,
  sandbox: SandboxRecord,
): Promise<Repair[]> {
  const routes = defaultRoutes(state, sandbox.id);
  return told("sandbox", sandbox, await datapath.setDefaultRoutes(sandbox.netns, routes));
}
