/**
 * Takes kernel, holder and disk from one desired state to the next. What is new is made first, in
 * steps that can be undone; the durable write is the last of them. Only then is removed what is gone,
 * which goes on after errors: what it leaves, the next reconciliation removes.
 */
import { DatapathError } from "../datapath/error.ts";
import type { Datapath, Family } from "../datapath/types.ts";
import type { Holder } from "../holder/types.ts";
import { reasonOf } from "../reason.ts";
import type { Mend } from "./changes.ts";
import type { Repair } from "./event-log.ts";
import type { BridgeFiltering } from "./host.ts";
import type { EndpointRecord } from "./records.ts";
import { repairEndpoint, repairNetwork, repairRoutes } from "./repairs.ts";
import { givenUp, reservationOf } from "./reservations.ts";
import { type StaleEntries, staleEntries } from "./stale-entries.ts";
import type { State, StateDifference } from "./state.ts";
import type { Steps } from "./steps.ts";
import {
  bridgeSpec,
  type DefaultRoutes,
  defaultRoutes,
  endpointSpec,
  firewallSpec,
  networkAlias,
} from "./wanted.ts";

export interface TransitionTools {
  datapath: Datapath;
  holder: Holder;
  /** Sets the sysctls this state needs; answers those it set for the first time. */
  applyHostSettings: (state: State) => string[];
  takeBackHostSettings: (keys: string[]) => void;
  /** Makes the reverse path filter of bridges loose where a sandbox has several; as it was elsewhere. */
  applyReversePath: (state: State) => void;
  strictForwarding: () => Family[];
  bridgeFiltering: () => BridgeFiltering;
  fastPathLoaded: () => boolean;
  /** Finds the endpoints' devices, and tells the programs of them if they are loaded. */
  describeDevices: (state: State) => Promise<void>;
  /** Tells the connect hooks of a state's ports. */
  setConnectPorts: (state: State) => Promise<void>;
  /** The durable write. */
  commit: (difference: StateDifference, stale: StaleEntries, after: State) => void;
  /** Deletes the conntrack entries that were noted with it. */
  clearNoted: () => Promise<void>;
  /** Ends or moves the host's sockets whose target is not theirs in this state. */
  settleSockets: (state: State) => Promise<void>;
  /** Deletes conntrack entries. */
  deleteEntries: (stale: StaleEntries) => Promise<void>;
}

/** Meanwhile somebody else may have made a device of that name. */
async function deleteOwn(datapath: Datapath, name: string, alias: string): Promise<void> {
  const links = await datapath.listLinks();
  if (links.some((link) => link.name === name && link.alias === alias))
    await datapath.deleteLink(name);
}

/** A sandbox that is gone by now needs no routes; the next reconciliation reports it. */
async function setRoutes(datapath: Datapath, netns: string, routes: DefaultRoutes): Promise<void> {
  try {
    await datapath.setDefaultRoutes(netns, routes);
  } catch (error) {
    if (!(error instanceof DatapathError) || error.kind !== "not_found") throw error;
  }
}

const noRoutes: DefaultRoutes = { ipv4: null, ipv6: null };

async function moveDefaultRoutes(
  tools: TransitionTools,
  steps: Steps,
  before: State,
  after: State,
): Promise<void> {
  for (const sandbox of after.sandbox.values()) {
    if (sandbox.lostSince !== null) continue;
    const old = before.sandbox.get(sandbox.id) ? defaultRoutes(before, sandbox.id) : noRoutes;
    const wanted = defaultRoutes(after, sandbox.id);
    if (JSON.stringify(old) === JSON.stringify(wanted)) continue;
    await steps.run(
      "default-routes",
      () => setRoutes(tools.datapath, sandbox.netns, wanted),
      () => setRoutes(tools.datapath, sandbox.netns, old),
    );
  }
}

/** What the call wants as it is recorded, and was found otherwise. What is put right is not undone. */
async function mendEndpoints(
  { datapath, bridgeFiltering }: TransitionTools,
  after: State,
  endpoints: Set<string>,
): Promise<Repair[]> {
  const filtering = bridgeFiltering();
  const repairs: Repair[] = [];
  const sandboxes = new Set<string>();
  for (const endpoint of after.endpoint.values()) {
    if (!endpoints.has(endpoint.id)) continue;
    repairs.push(...(await repairEndpoint(datapath, after, endpoint, filtering)));
    sandboxes.add(endpoint.sandboxId);
  }
  for (const id of sandboxes)
    repairs.push(...(await repairRoutes(datapath, after, after.sandbox.expect(id))));
  return repairs;
}

async function mendNetworks(
  { datapath }: TransitionTools,
  after: State,
  networks: Set<string>,
): Promise<Repair[]> {
  const repairs: Repair[] = [];
  for (const network of after.network.values())
    if (networks.has(network.id)) repairs.push(...(await repairNetwork(datapath, network)));
  return repairs;
}

async function reserve(
  { holder }: TransitionTools,
  steps: Steps,
  before: State,
  after: State,
): Promise<void> {
  const held = new Set((await holder.list()).map(({ key }) => key));
  const { forward, back } = reservationOf(before, after, held);
  if (forward.add.length + forward.retarget.length > 0)
    await steps.run(
      "reserve",
      () => holder.update(forward),
      () => holder.update(back),
    );
}

async function makeEndpoints(
  { datapath, bridgeFiltering }: TransitionTools,
  steps: Steps,
  after: State,
  added: EndpointRecord[],
): Promise<void> {
  const filtering = bridgeFiltering();
  for (const endpoint of added) {
    const spec = endpointSpec(after, endpoint, filtering);
    await steps.run(
      "endpoint",
      () => datapath.createEndpoint(spec),
      () => datapath.deleteLink(spec.hostInterface),
    );
  }
}

/**
 * Makes what is new or changed, and mends what was found otherwise than recorded; answers what it mended.
 *
 * @throws HolderError, DatapathError; the caller undoes `steps`.
 */
export async function advance(
  tools: TransitionTools,
  steps: Steps,
  before: State,
  after: State,
  difference: StateDifference,
  mend: Mend,
): Promise<Repair[]> {
  const { datapath } = tools;
  const strictBefore = tools.strictForwarding();
  await steps.run(
    "host-settings",
    () => tools.applyHostSettings(after),
    (keys) => tools.takeBackHostSettings(keys),
  );
  const { port, endpoint } = difference;
  if (port.added.length + port.changed.length + endpoint.changed.length > 0)
    await reserve(tools, steps, before, after);
  for (const network of difference.network.added) {
    const spec = bridgeSpec(network);
    if (spec)
      await steps.run(
        "bridge",
        () => datapath.createBridge(spec),
        () => datapath.deleteLink(spec.name),
      );
  }
  const repairs = await mendNetworks(tools, after, mend.networks);
  await steps.run(
    "firewall",
    () => datapath.applyFirewall(firewallSpec(after, tools.strictForwarding())),
    async () => {
      await datapath.applyFirewall(firewallSpec(before, strictBefore));
      // What was translated by the rules that are taken back.
      await tools.deleteEntries(staleEntries(after, before, endpoint.added));
    },
  );
  await steps.run("forward-accepts", () => datapath.ensureForwardAccepts());
  if (mend.endpoints.size > 0) repairs.push(...(await mendEndpoints(tools, after, mend.endpoints)));
  if (endpoint.added.length > 0) await makeEndpoints(tools, steps, after, endpoint.added);
  await steps.run(
    "reverse-path",
    () => tools.applyReversePath(after),
    () => tools.applyReversePath(before),
  );
  await moveDefaultRoutes(tools, steps, before, after);
  await steps.run(
    "device",
    () => tools.describeDevices(after),
    () => tools.describeDevices(before),
  );
  if (tools.fastPathLoaded())
    await steps.run(
      "connect-hook",
      () => tools.setConnectPorts(after),
      async () => {
        await tools.setConnectPorts(before);
        // What was sent by the ports that are taken back.
        await tools.settleSockets(before);
      },
    );
  tools.commit(difference, staleEntries(before, after, endpoint.removed), after);
  return repairs;
}

/** New endpoints with an address of one that is gone: until it was, it answered for it, too. */
function successors({ endpoint }: StateDifference): EndpointRecord[] {
  const left = new Set(endpoint.removed.flatMap(({ addresses }) => addresses));
  return endpoint.added.filter(({ addresses }) => addresses.some((address) => left.has(address)));
}

/** Removes what is gone; answers what could not be removed. */
export async function retire(
  tools: TransitionTools,
  before: State,
  after: State,
  difference: StateDifference,
): Promise<string[]> {
  const { datapath, holder } = tools;
  const failures: string[] = [];
  const attempt = async (what: string, work: () => Promise<unknown>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      failures.push(`${what}: ${reasonOf(error)}`);
    }
  };
  // First, while who was there is told: the hook sends nobody there any more.
  await attempt("the host's own connections", () => tools.settleSockets(after));
  for (const endpoint of difference.endpoint.removed)
    await attempt(`endpoint ${endpoint.name}`, () => datapath.deleteLink(endpoint.hostInterface));
  for (const endpoint of successors(difference))
    await attempt(`announcing ${endpoint.name}`, () =>
      datapath.announceEndpoint(endpointSpec(after, endpoint, tools.bridgeFiltering())),
    );
  await attempt("conntrack entries", () => tools.clearNoted());
  const remove = givenUp(before, after);
  if (remove.length > 0)
    await attempt("reserved ports", () => holder.update({ add: [], retarget: [], remove }));
  for (const { id, bridge } of difference.network.removed)
    if (bridge !== null)
      await attempt(`bridge ${bridge}`, () => deleteOwn(datapath, bridge, networkAlias(id)));
  if (difference.endpoint.removed.length > 0)
    await attempt("devices", () => tools.describeDevices(after));
  return failures;
}
