/**
 * One reconciliation: what is wanted against what kernel and holder have. It mends what differs, goes
 * on after an error, removes leftovers that bear natbridge's mark, and touches nothing else.
 */
import { DatapathError } from "../datapath/error.ts";
import type { LinkInfo, SandboxInfo } from "../datapath/types.ts";
import type { HolderBinding, HolderBindingState, HolderUpdate } from "../holder/types.ts";
import { reasonOf } from "../reason.ts";
import type { Core } from "./core.ts";
import type { NewEvent } from "./event-log.ts";
import { servedAddresses } from "./fast-path-policy.ts";
import { type BridgeFiltering, bridgeFiltering, findUplinks, localAddresses } from "./host.ts";
import type { EndpointRecord, SandboxRecord } from "./records.ts";
import { clearNoted } from "./stale-note.ts";
import { compareStates } from "./state.ts";
import {
  bridgeSpec,
  defaultRoutes,
  endpointAlias,
  endpointSpec,
  firewallSpec,
  holderBindings,
  networkAlias,
  portEntries,
} from "./wanted.ts";

export interface Outcome {
  /** What was mended, in words. */
  repairs: string[];
  /** What could not be, in words. */
  failures: string[];
}

/** A namespace that can't be found any more, or is no namespace any more. */
const isGone = (error: unknown): boolean =>
  error instanceof DatapathError && ["not_found", "invalid"].includes(error.kind);

class Reconciliation {
  readonly #core: Core;
  /** The first one of this daemon: nothing is known yet of what was told to kernel and programs. */
  readonly #isFirst: boolean;
  readonly #repairs: { message: string; object: NewEvent["object"] }[] = [];
  readonly #failures: string[] = [];
  readonly #events: NewEvent[] = [];
  readonly #failing = new Set<string>();
  readonly #mendedSandboxes = new Set<string>();

  constructor(core: Core, isFirst: boolean) {
    this.#core = core;
    this.#isFirst = isFirst;
  }

  async run(): Promise<Outcome> {
    const { fastPathLoaded } = this.#core.options;
    const isSeen = await this.#attempt("the host's devices and routes", () => this.#look());
    await this.#attempt("host-wide settings", () => this.#settings());
    await this.#bridges();
    await this.#sandboxes();
    await this.#endpoints();
    await this.#sandboxRoutes();
    await this.#attempt("firewall", () => this.#firewall());
    await this.#attempt("forward accepts", () => this.#forwardAccepts());
    await this.#leftovers();
    // Without the host's addresses it can't be told which entries they are.
    if (isSeen) await this.#attempt("conntrack entries", () => this.#conntrack());
    if (this.#repairs.length > 0)
      await this.#attempt("the host's devices and routes", () => this.#look());
    await this.#attempt("devices", () => this.#devices());
    if (fastPathLoaded) await this.#attempt("connect hook", () => this.#connectHook());
    await this.#attempt("reserved ports", () => this.#reservations());
    return this.#close();
  }

  async #attempt(what: string, work: () => Promise<void>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      this.#failures.push(`${what}: ${reasonOf(error)}`);
      return false;
    }
  }

  /** As `#attempt`, and the object's condition says why. */
  async #attemptFor(
    kind: "network" | "endpoint" | "port",
    record: { id: string; name: string },
    work: () => Promise<void>,
  ): Promise<void> {
    try {
      await work();
    } catch (error) {
      const message = reasonOf(error);
      this.#failures.push(`${kind} ${record.name}: ${message}`);
      this.#fail(record.id, "NotMended", message);
    }
  }

  #fail(id: string, reason: string, message: string): void {
    const known = this.#core.observed.failures.get(id);
    const since = known?.reason === reason ? known.since : this.#core.now();
    this.#core.observed.failures.set(id, { reason, message, since });
    this.#failing.add(id);
  }

  #mended(message: string, object: NewEvent["object"] = null): void {
    this.#repairs.push({ message, object });
  }

  async #look(): Promise<void> {
    const core = this.#core;
    const { datapath } = core.options;
    const [links, routes] = await Promise.all([datapath.listLinks(), datapath.listRoutes()]);
    core.links = links;
    core.uplinks = findUplinks(links, routes, core.options.uplinks);
    core.settings.followUplinks(core.uplinks.map(({ name }) => name));
  }

  async #settings(): Promise<void> {
    const { settings, state } = this.#core;
    const known = new Set(settings.list().map(({ key }) => key));
    for (const key of settings.apply(state))
      if (known.has(key)) this.#mended(`sysctl ${key.replaceAll("/", ".")} set again`);
  }

  async #bridges(): Promise<void> {
    const { state, options } = this.#core;
    for (const network of state.network.values()) {
      const spec = bridgeSpec(network);
      if (!spec) continue;
      await this.#attemptFor("network", network, async () => {
        const { id, name } = network;
        for (const what of await options.datapath.ensureBridge(spec))
          this.#mended(`network ${name}: ${what}`, { kind: "network", id, name });
      });
    }
  }

  async #sandboxes(): Promise<void> {
    for (const sandbox of this.#core.state.sandbox.values())
      await this.#attempt(`sandbox ${sandbox.name}`, () => this.#sandbox(sandbox));
  }

  async #sandbox(sandbox: SandboxRecord): Promise<void> {
    const info = await this.#inspect(sandbox);
    const isThere = info !== null && info.key === sandbox.key;
    if (isThere === (sandbox.lostSince === null)) return;
    const after = this.#core.state.copy();
    const { id, name } = sandbox;
    after.sandbox.put({
      ...sandbox,
      lostSince: isThere ? null : this.#core.now(),
      revision: sandbox.revision + 1,
    });
    this.#core.commit(compareStates(this.#core.state, after));
    this.#core.state = after;
    if (isThere) return void this.#mendedSandboxes.add(id);
    this.#events.push({
      type: "sandbox.lost",
      object: { kind: "sandbox", id, name },
      message: `the network namespace ${sandbox.netns} (${sandbox.key}) of sandbox ${name} is gone`,
    });
  }

  async #inspect(sandbox: SandboxRecord): Promise<SandboxInfo | null> {
    try {
      return await this.#core.options.datapath.inspectSandbox(sandbox.netns);
    } catch (error) {
      if (isGone(error)) return null;
      throw error;
    }
  }

  async #endpoints(): Promise<void> {
    const { state, links } = this.#core;
    const byName = new Map(links.map((link) => [link.name, link]));
    const filtering = bridgeFiltering(this.#core.options.datapath);
    const isolatesAsBefore = JSON.stringify(filtering) === JSON.stringify(this.#core.filtering);
    const failures = this.#failures.length;
    for (const endpoint of state.endpoint.values()) {
      if (state.sandbox.expect(endpoint.sandboxId).lostSince !== null) continue;
      const { isolated } = state.network.expect(endpoint.networkId);
      if ((isolatesAsBefore || !isolated) && this.#isAsWanted(endpoint, byName)) continue;
      await this.#attemptFor("endpoint", endpoint, () => this.#mendEndpoint(endpoint, filtering));
    }
    if (this.#failures.length === failures) this.#core.filtering = filtering;
  }

  /** By the host end alone: how a sandbox sets up its own end later is its own affair. */
  #isAsWanted(endpoint: EndpointRecord, byName: Map<string, LinkInfo>): boolean {
    const { bridge } = this.#core.state.network.expect(endpoint.networkId);
    const link = byName.get(endpoint.hostInterface);
    const master = byName.get(bridge ?? "");
    return (
      !this.#isFirst &&
      link !== undefined &&
      link.alias === endpointAlias(endpoint.id) &&
      link.up &&
      link.mtu === endpoint.mtu &&
      link.master === master?.ifindex
    );
  }

  async #mendEndpoint(endpoint: EndpointRecord, filtering: BridgeFiltering): Promise<void> {
    const { state, options } = this.#core;
    const spec = endpointSpec(state, endpoint, filtering);
    const mended = await options.datapath.ensureEndpoint(spec);
    if (mended.length > 0) this.#mendedSandboxes.add(endpoint.sandboxId);
    const { id, name } = endpoint;
    for (const what of mended)
      this.#mended(`endpoint ${name}: ${what}`, { kind: "endpoint", id, name });
  }

  async #sandboxRoutes(): Promise<void> {
    const { state, options } = this.#core;
    for (const id of this.#mendedSandboxes) {
      const sandbox = state.sandbox.expect(id);
      await this.#attempt(`default routes of sandbox ${sandbox.name}`, () =>
        options.datapath.setDefaultRoutes(sandbox.netns, defaultRoutes(state, id)),
      );
    }
  }

  async #firewall(): Promise<void> {
    const { state, settings, options } = this.#core;
    const change = await options.datapath.applyFirewall(
      firewallSpec(state, settings.turnedForwardingOn()),
    );
    // Before the first object there was no table to mend.
    if (!change.changed || state.network.size === 0) return;
    this.#mended(
      change.rebuilt
        ? "nftables: table inet natbridge written anew"
        : `nftables: ${change.elementsAdded} elements added, ${change.elementsRemoved} removed`,
    );
  }

  /** What a change could not delete, or was killed before it did. */
  async #conntrack(): Promise<void> {
    const { options, state, links } = this.#core;
    await clearNoted(options.datapath, options.store, localAddresses(links), state);
  }

  async #forwardAccepts(): Promise<void> {
    const accepts = await this.#core.options.datapath.ensureForwardAccepts();
    this.#core.forwardAccepts = accepts.map(({ chain }) => chain);
    for (const { chain, inserted } of accepts)
      if (inserted) this.#mended(`accept for natbridge's bridges put into ${chain}`);
  }

  async #leftovers(): Promise<void> {
    const { state, links, options } = this.#core;
    const wanted = new Set([
      ...state.network.values().map(({ id }) => networkAlias(id)),
      ...state.endpoint.values().map(({ id }) => endpointAlias(id)),
    ]);
    const leftovers = links.filter(
      ({ alias }) => alias.startsWith("natbridge:") && !wanted.has(alias),
    );
    for (const { name } of leftovers)
      await this.#attempt(`leftover ${name}`, async () => {
        if (await options.datapath.deleteLink(name))
          this.#mended(`leftover device ${name} removed`);
      });
  }

  async #devices(): Promise<void> {
    const core = this.#core;
    await core.judge.ifDue();
    await core.describeDevices(core.state);
  }

  async #connectHook(): Promise<void> {
    const { state, links, judge, connectHook } = this.#core;
    const judged = new Set(judge.policy.localAddresses);
    const local = servedAddresses(links);
    const isSame = local.length === judged.size && local.every((address) => judged.has(address));
    if (!isSame) await judge.now();
    await connectHook.setPorts(portEntries(state));
    // What a daemon that was killed, or a connect under way during a change, has left.
    await this.#core.settleSockets(state);
  }

  async #reservations(): Promise<void> {
    const { state, options } = this.#core;
    const wanted = holderBindings(state);
    const held = new Map((await options.holder.list()).map((binding) => [binding.key, binding]));
    const update = bindingRepairs(wanted, held);
    if (update.remove.length + update.retarget.length > 0)
      await options.holder.update({ ...update, add: [] });
    if (update.add.length === 0) return;
    try {
      await options.holder.update({ add: update.add, remove: [], retarget: [] });
    } catch {
      await this.#reserveOneByOne(update.add);
      return;
    }
    this.#mended(`${update.add.length} host ports reserved again`);
  }

  async #reserveOneByOne(bindings: HolderBinding[]): Promise<void> {
    const { state, options } = this.#core;
    for (const port of state.port.values()) {
      const keys = port.bindings.map(
        ({ hostAddress, hostPort }) => `${port.protocol}/${hostAddress}/${hostPort}`,
      );
      const add = bindings.filter(({ key }) => keys.includes(key));
      if (add.length === 0) continue;
      await this.#attemptFor("port", port, async () => {
        await options.holder.update({ add, remove: [], retarget: [] });
        const { id, name } = port;
        this.#mended(`port ${name} reserved again`, { kind: "port", id, name });
      });
    }
  }

  #close(): Outcome {
    const core = this.#core;
    for (const id of core.observed.failures.keys())
      if (!this.#failing.has(id)) core.observed.failures.delete(id);
    const repaired = this.#repairs.map(({ message, object }) => ({
      type: "reconcile.repaired",
      object,
      message,
    }));
    try {
      core.events.record([...this.#events, ...repaired], core.now());
    } catch (error) {
      this.#failures.push(`event log: ${reasonOf(error)}`);
    }
    return { repairs: this.#repairs.map(({ message }) => message), failures: this.#failures };
  }
}

function bindingRepairs(
  wanted: Map<string, HolderBinding>,
  held: Map<string, HolderBindingState>,
): HolderUpdate {
  const update: HolderUpdate = { add: [], remove: [], retarget: [] };
  for (const [key, binding] of wanted) {
    const found = held.get(key);
    const { targetAddress, targetPort } = binding;
    const from = binding.from ?? [];
    if (!found) update.add.push(binding);
    else if (
      found.targetAddress !== targetAddress ||
      found.targetPort !== targetPort ||
      (found.from ?? []).join() !== from.join()
    )
      update.retarget.push({ key, targetAddress, targetPort, from });
  }
  for (const key of held.keys()) if (!wanted.has(key)) update.remove.push(key);
  return update;
}

/**
 * Reconciles once. The caller sees to it that no change is under way.
 *
 * @param isFirst The first time in this process: endpoints are looked into, not only looked at.
 */
export function reconcile(core: Core, isFirst: boolean): Promise<Outcome> {
  return new Reconciliation(core, isFirst).run();
}
