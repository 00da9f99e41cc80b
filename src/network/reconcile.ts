/**
 * One reconciliation: what is wanted against what kernel and holder have. It mends what differs, goes
 * on after an error, removes leftovers that bear natbridge's mark, and touches nothing else.
 */
import type { HolderBinding, HolderBindingState, HolderUpdate } from "../holder/types.ts";
import { reasonOf } from "../reason.ts";
import type { Core } from "./core.ts";
import { byName, hostEndStands, type LinksByName, routesStand } from "./endpoint-standing.ts";
import { type NewEvent, type Repair, repairEvents } from "./event-log.ts";
import { servedAddresses } from "./fast-path-policy.ts";
import { type BridgeFiltering, bridgeFiltering, findUplinks, localAddresses } from "./host.ts";
import type { EndpointRecord, SandboxRecord } from "./records.ts";
import { repairEndpoint, repairNetwork, repairRoutes } from "./repairs.ts";
import { type Found, findAll, whereaboutsOf } from "./sandbox-upkeep.ts";
import { clearNoted } from "./stale-note.ts";
import { compareStates, type State } from "./state.ts";
import {
  endpointAlias,
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

class Reconciliation {
  readonly #core: Core;
  /** The first one of this daemon: nothing is known yet of what was told to kernel and programs. */
  readonly #isFirst: boolean;
  readonly #repairs: Repair[] = [];
  readonly #failures: string[] = [];
  readonly #events: NewEvent[] = [];
  readonly #failing = new Set<string>();
  /** Sandboxes whose default routes may be missing. */
  readonly #mendedSandboxes = new Set<string>();
  /** Sandboxes whose namespace was made anew: nothing of theirs is there. */
  readonly #newSandboxes = new Set<string>();

  constructor(core: Core, isFirst: boolean) {
    this.#core = core;
    this.#isFirst = isFirst;
  }

  async run(): Promise<Outcome> {
    const { fastPathLoaded } = this.#core.options;
    const isSeen = await this.#attempt("the host's devices and routes", () => this.#look());
    await this.#attempt("host-wide settings", () => this.#settings());
    await this.#bridges();
    await this.#attempt("the bridges' reverse path filter", () => this.#reversePath());
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

  async #reversePath(): Promise<void> {
    const { settings, state } = this.#core;
    for (const key of settings.applyReversePath(state))
      this.#mended(`sysctl ${key.replaceAll("/", ".")} set`);
  }

  async #bridges(): Promise<void> {
    const { state, options } = this.#core;
    for (const network of state.network.values())
      await this.#attemptFor("network", network, async () => {
        this.#repairs.push(...(await repairNetwork(options.datapath, network)));
      });
  }

  async #sandboxes(): Promise<void> {
    const { options, state } = this.#core;
    const sandboxes = state.sandbox.values();
    const found = await findAll(options.datapath, sandboxes, (message) =>
      this.#failures.push(message),
    );
    const after = state.copy();
    for (const sandbox of sandboxes)
      if (found.has(sandbox.id)) this.#sandbox(sandbox, sandboxes, found, after);
    const difference = compareStates(state, after);
    if (difference.sandbox.changed.length === 0) return;
    await this.#attempt("sandboxes", async () => {
      this.#core.commit(difference);
      this.#core.state = after;
    });
  }

  /** Notes in `after` what became of a sandbox. */
  #sandbox(sandbox: SandboxRecord, sandboxes: SandboxRecord[], found: Found, after: State): void {
    const { id, name, netns, key, lostSince } = sandbox;
    const now = whereaboutsOf(sandbox, sandboxes, found);
    if (now.is === "there") {
      this.#lookForRoutes(sandbox, found);
      return;
    }
    const revision = sandbox.revision + 1;
    const object = { kind: "sandbox", id, name } as const;
    if (now.is === "back") {
      after.sandbox.put({ ...sandbox, key: now.key, lostSince: null, revision });
      this.#newSandboxes.add(id);
      this.#mendedSandboxes.add(id);
      // A record of an earlier version merely learns the rest of its key.
      if (!now.key.startsWith(key) || lostSince !== null)
        this.#mended(`sandbox ${name}: there is a namespace at ${netns} again`, object);
      return;
    }
    if (now.refused !== null) this.#fail(id, "SandboxRefused", now.refused);
    if (lostSince !== null) return;
    after.sandbox.put({ ...sandbox, lostSince: this.#core.now(), revision });
    const why = now.refused === null ? "" : `: ${now.refused}`;
    const message = `the network namespace ${netns} (${key}) of sandbox ${name} is gone${why}`;
    this.#events.push({ type: "sandbox.lost", object, message });
  }

  /** What happens to them later is the sandbox's own affair, but for what its interface takes along. */
  #lookForRoutes({ id }: SandboxRecord, found: Found): void {
    const { state, links } = this.#core;
    const info = found.get(id);
    if (this.#isFirst && info && !routesStand(state, id, byName(links), info))
      this.#mendedSandboxes.add(id);
  }

  async #endpoints(): Promise<void> {
    const { state, observed } = this.#core;
    const links = byName(this.#core.links);
    const filtering = bridgeFiltering(this.#core.options.datapath);
    const isolatesAsBefore = JSON.stringify(filtering) === JSON.stringify(this.#core.filtering);
    const failures = this.#failures.length;
    for (const endpoint of state.endpoint.values()) {
      if (state.sandbox.expect(endpoint.sandboxId).lostSince !== null) continue;
      const { isolated } = state.network.expect(endpoint.networkId);
      if ((isolatesAsBefore || !isolated) && this.#isAsWanted(endpoint, links)) continue;
      await this.#attemptFor("endpoint", endpoint, async () => {
        await this.#mendEndpoint(endpoint, filtering);
        const link = links.get(endpoint.hostInterface);
        if (link) observed.carriers.set(endpoint.id, link.carrierChanges);
      });
    }
    if (this.#failures.length === failures) this.#core.filtering = filtering;
  }

  /** By the host end alone: how a sandbox sets up its own end later is its own affair. */
  #isAsWanted(endpoint: EndpointRecord, links: LinksByName): boolean {
    return (
      !this.#isFirst &&
      !this.#newSandboxes.has(endpoint.sandboxId) &&
      hostEndStands(this.#core.state, endpoint, links) &&
      !this.#hasBeenDown(endpoint, links)
    );
  }

  /**
   * The sandbox's end was down and is up again, as when it is renamed: the kernel took its routes and
   * IPv6 addresses meanwhile. Somebody who sets it down, or takes a route away, is left alone.
   */
  #hasBeenDown({ id, hostInterface, sandboxId }: EndpointRecord, links: LinksByName): boolean {
    const link = links.get(hostInterface);
    if (!link?.carrier) return false;
    const { carriers } = this.#core.observed;
    const before = carriers.get(id);
    carriers.set(id, link.carrierChanges);
    if (before === undefined || before === link.carrierChanges) return false;
    this.#mendedSandboxes.add(sandboxId);
    return true;
  }

  async #mendEndpoint(endpoint: EndpointRecord, filtering: BridgeFiltering): Promise<void> {
    const { state, options } = this.#core;
    const repairs = await repairEndpoint(options.datapath, state, endpoint, filtering);
    if (repairs.length > 0) this.#mendedSandboxes.add(endpoint.sandboxId);
    this.#repairs.push(...repairs);
  }

  async #sandboxRoutes(): Promise<void> {
    const { state, options } = this.#core;
    for (const id of this.#mendedSandboxes) {
      const sandbox = state.sandbox.expect(id);
      if (sandbox.lostSince !== null) continue;
      await this.#attempt(`default routes of sandbox ${sandbox.name}`, async () => {
        this.#repairs.push(...(await repairRoutes(options.datapath, state, sandbox)));
      });
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
    try {
      core.events.record([...this.#events, ...repairEvents(this.#repairs)], core.now());
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
