/**
 * The core: one desired state, one change of it at a time, and the upkeep that holds the kernel to it.
 */
import { DatapathError } from "../datapath/error.ts";
import type { Datapath, KernelFeatures, LinkInfo } from "../datapath/types.ts";
import { findPortOwner } from "../holder/owner.ts";
import { type Holder, HolderError } from "../holder/types.ts";
import type { Logger } from "../log.ts";
import type { MetricsSnapshot, MetricsSource } from "../metrics/source.ts";
import { ProblemError } from "../problem.ts";
import type { Store } from "../store/store.ts";
import { applyResult, planApply } from "./apply.ts";
import * as changes from "./changes.ts";
import { ConnectHook } from "./connect-hook.ts";
import type { DatapathStatus } from "./datapath-status.ts";
import { Devices } from "./devices.ts";
import { byName } from "./endpoint-standing.ts";
import { DurableEventLog, type NewEvent, type Repair, repairEvents } from "./event-log.ts";
import {
  type BridgeFiltering,
  bridgeFiltering,
  ephemeralPorts,
  findUplinks,
  hostView,
  localAddresses,
} from "./host.ts";
import { HostSettings } from "./host-settings.ts";
import { Judge } from "./judge.ts";
import type { ApplyInput, ApplyResult, Connection } from "./model.ts";
import { Mutex } from "./mutex.ts";
import { type PortView, SocketBook } from "./plan-ports.ts";
import { type EndpointRecord, kinds, type PortRecord } from "./records.ts";
import { describeRules } from "./rule-text.ts";
import type { RuleDescription } from "./rules.ts";
import type { Endpoints, Networks, Ports, PutResult, Sandboxes, Service } from "./service.ts";
import { clearNoted, deleteEntries, noteOf } from "./stale-note.ts";
import { standing } from "./standing.ts";
import { compareStates, type State, type StateDifference } from "./state.ts";
import { readDatapathStatus, readMetrics } from "./status.ts";
import { failpoint, Steps } from "./steps.ts";
import { Traffic } from "./traffic.ts";
import { advance, retire, type TransitionTools } from "./transition.ts";
import { Upkeep } from "./upkeep.ts";
import { endpointView, networkView, type Observed, portView, sandboxView } from "./views.ts";
import { portEntries } from "./wanted.ts";

export interface CoreOptions {
  datapath: Datapath;
  holder: Holder;
  /** Starts a holder in place of one that died. */
  reviveHolder: () => Promise<void>;
  store: Store;
  log: Logger;
  features: KernelFeatures;
  /** The programs are loaded. */
  fastPathLoaded: boolean;
  /** Why the connect hook stays off on this kernel; empty: it need not. */
  connectHookHindrance?: string;
  /** Where they are pinned. */
  pinDirectory: string;
  /** Uplinks by name; empty: found out. */
  uplinks: string[];
  /** A second table keeps translating while somebody flushes all of them; it does unless told not to. */
  standInTable?: boolean;
  now?: () => string;
}

/** Attempts at an ephemeral port that turns out to be held by somebody else. */
const portAttempts = 32;

export class Core implements Service, MetricsSource {
  readonly options: CoreOptions;
  readonly events: DurableEventLog;
  readonly settings: HostSettings;
  readonly devices: Devices;
  readonly connectHook: ConnectHook;
  readonly judge: Judge;
  readonly traffic: Traffic;
  readonly upkeep: Upkeep;
  readonly observed: Observed = { ifindexes: new Map(), carriers: new Map(), failures: new Map() };
  readonly now: () => string;
  state: State;
  links: LinkInfo[] = [];
  uplinks: LinkInfo[] = [];
  forwardAccepts: string[] = [];
  /** What isolated endpoints were last made for. */
  filtering: BridgeFiltering | null = null;
  readonly #mutex = new Mutex();
  #isReady = false;

  constructor(options: CoreOptions) {
    this.options = options;
    this.now = options.now ?? (() => new Date().toISOString());
    this.state = options.store.loadState();
    this.events = new DurableEventLog(options.store);
    this.settings = new HostSettings(options.datapath, options.store);
    this.devices = new Devices(options.datapath, options.log);
    this.connectHook = new ConnectHook(
      options.datapath,
      options.pinDirectory,
      portEntries(this.state),
      options.connectHookHindrance ?? "",
    );
    this.judge = new Judge(this);
    const loaded = (): boolean => options.fastPathLoaded;
    this.traffic = new Traffic(options.datapath, options.holder, loaded);
    this.upkeep = new Upkeep(this);
  }

  ready(): boolean {
    return this.#isReady;
  }

  /** Adopts what is there, mends it, and is ready. */
  async start(): Promise<void> {
    // Whoever judges the host's rules must hear of their changes.
    this.upkeep.watch();
    await this.upkeep.begin();
    this.#isReady = true;
  }

  /** Answers nothing more; kernel and holder stay as they are. */
  async stop(): Promise<void> {
    this.#isReady = false;
    this.upkeep.stop();
    await this.judge.stop();
    await this.exclusive(async () => undefined);
  }

  /** Runs with no change of the state under way. */
  exclusive<T>(work: () => Promise<T>): Promise<T> {
    return this.#mutex.run(work);
  }

  // --- changing the state

  get tools(): TransitionTools {
    const { datapath, holder, store, fastPathLoaded } = this.options;
    return {
      datapath,
      holder,
      applyHostSettings: (state) => this.settings.applyWhole(state),
      takeBackHostSettings: (keys) => void this.settings.takeBack(keys),
      applyReversePath: (state) => void this.settings.applyReversePath(state),
      strictForwarding: () => this.settings.turnedForwardingOn(),
      bridgeFiltering: () => bridgeFiltering(datapath),
      fastPathLoaded: () => fastPathLoaded,
      describeDevices: (state) => this.describeDevices(state),
      setConnectPorts: (state) => this.connectHook.setPorts(portEntries(state)),
      commit: (difference, stale, after) => this.commit(difference, noteOf(store, stale, after)),
      clearNoted: () => clearNoted(datapath, store, localAddresses(this.links), null),
      settleSockets: (state) => this.settleSockets(state),
      deleteEntries: (stale) => deleteEntries(datapath, stale, localAddresses(this.links)),
    };
  }

  /** Finds the devices of this state's endpoints, and tells the programs of them. */
  async describeDevices(state: State): Promise<void> {
    const { datapath, fastPathLoaded } = this.options;
    this.links = await datapath.listLinks();
    const links = byName(this.links);
    this.observed.ifindexes.clear();
    for (const { id, hostInterface } of state.endpoint.values())
      this.observed.ifindexes.set(id, links.get(hostInterface)?.ifindex ?? 0);
    if (!fastPathLoaded) return;
    await this.devices.follow(state, this.links, this.uplinks);
  }

  /** Ends or moves the host's sockets whose target is not theirs in this state. */
  async settleSockets(state: State): Promise<void> {
    const { datapath, fastPathLoaded, log } = this.options;
    if (!fastPathLoaded) return;
    const settled = await datapath.settleSockets(standing(state, this.links));
    if (settled.followed + settled.ended > 0) log.debug(settled, "sockets of the host settled");
  }

  /** Makes a difference durable, and then tells of it. */
  commit(difference: StateDifference, settings: Record<string, string> = {}): void {
    const events = this.events.number(eventsOf(difference), this.now());
    this.options.store.commit({
      put: {
        network: written(difference.network),
        sandbox: written(difference.sandbox),
        endpoint: written(difference.endpoint),
        port: written(difference.port),
      },
      delete: Object.fromEntries(
        kinds.map((kind) => [kind, difference[kind].removed.map(({ id }) => id)]),
      ),
      events,
      settings,
      beforeCommit: () => failpoint("commit"),
    });
    this.events.tell(events);
  }

  async #planning(
    draft: State,
    held: Set<string>,
    owner: string | null,
  ): Promise<changes.Planning> {
    const before = this.state;
    const { datapath } = this.options;
    const [links, routes] = await Promise.all([datapath.listLinks(), datapath.listRoutes()]);
    this.links = links;
    this.uplinks = findUplinks(links, routes, this.options.uplinks);
    this.settings.followUplinks(this.uplinks.map(({ name }) => name));
    const ports: PortView = {
      book: new SocketBook(draft),
      ephemeral: ephemeralPorts(datapath),
      held,
    };
    const request = { owner, now: this.now() };
    const mend: changes.Mend = { networks: new Set(), endpoints: new Set() };
    const host = hostView(links, routes);
    return { draft, datapath, host, ports, request, before, links: byName(links), mend };
  }

  /** Plans on a copy, takes the kernel there, and makes it the state; or leaves all as it was. */
  change<T>(
    plan: (planning: changes.Planning) => Promise<T> | T,
    owner: string | null = null,
  ): Promise<T> {
    return this.exclusive(async () => {
      const held = new Set<string>();
      let hasRevived = false;
      for (let attempt = 1; ; attempt++) {
        const before = this.state;
        const after = before.copy();
        const planning = await this.#planning(after, held, owner);
        const result = await plan(planning);
        try {
          await this.#transition(before, after, planning.mend);
          return result;
        } catch (error) {
          if (!hasRevived && error instanceof HolderError && error.kind === "unavailable") {
            // It died since the last look: revived, it holds what it held before, and may hold more.
            hasRevived = true;
            await this.upkeep.duringChange();
            continue;
          }
          const picked = pickedPort(after, error);
          if (picked === null || attempt === portAttempts) throw await this.#explain(error);
          held.add(picked);
        }
      }
    });
  }

  async #transition(before: State, after: State, mend: changes.Mend): Promise<void> {
    const difference = compareStates(before, after);
    const steps = new Steps(this.options.log);
    let repairs: Repair[];
    try {
      repairs = await advance(this.tools, steps, before, after, difference, mend);
    } catch (error) {
      await steps.undoAll();
      throw error;
    }
    this.state = after;
    this.events.record(repairEvents(repairs), this.now());
    // A network that switches the fast path off, or on again, is told of as what the host's rules do.
    this.judge.tell();
    const failures = await retire(this.tools, before, after, difference);
    const { endpoint, port } = difference;
    // A socket that was connecting meanwhile may have been overlooked.
    if (endpoint.removed.length + port.removed.length + port.changed.length > 0) this.upkeep.soon();
    if (failures.length > 0) {
      this.options.log.warn(
        { failures },
        "not all could be removed; the next reconciliation tries again",
      );
      this.upkeep.soon();
    }
  }

  /** From what a lower layer says to a refusal with a code. */
  async #explain(error: unknown): Promise<unknown> {
    if (error instanceof HolderError && error.kind === "address_in_use" && error.key !== null) {
      const [protocol = "tcp", hostAddress = "", port = "0"] = error.key.split("/");
      const owner = await findPortOwner(
        protocol === "udp" ? "udp" : protocol === "sctp" ? "sctp" : "tcp",
        hostAddress,
        Number(port),
      ).catch(() => null);
      const who = owner ? `${owner.name} (pid ${owner.pid})` : "another process";
      const message = owner?.name.startsWith("natbridge")
        ? `${protocol} ${hostAddress} port ${port} is reserved for another published port: choose another port`
        : `${protocol} ${hostAddress} port ${port} is held by ${who}: stop it or choose another port`;
      return new ProblemError("port_in_use", message, [{ pointer: "/hostPort", message }]);
    }
    if (error instanceof HolderError && error.kind === "address_not_available")
      return new ProblemError("invalid_request", error.message, [
        { pointer: "/hostAddress", message: error.message },
      ]);
    if (error instanceof HolderError && error.kind === "unavailable")
      return new ProblemError(
        "not_ready",
        `The holder of the host's ports can't be had: ${error.message}. Nothing was changed; try again.`,
      );
    if (error instanceof DatapathError && error.kind === "exists")
      return new ProblemError("interface_exists", error.message);
    return error;
  }

  // --- objects

  readonly networks: Networks = {
    list: () => this.state.network.values().map((record) => networkView(record, this.observed)),
    get: (ref) => networkView(this.state.network.resolve(ref), this.observed),
    create: async (input) =>
      networkView(await this.change((p) => changes.createNetwork(p, input)), this.observed),
    put: (input) =>
      this.#put(
        "network",
        input.name,
        (p) => changes.putNetwork(p, input),
        (record) => networkView(record, this.observed),
      ),
    patch: async (ref, patch) => {
      const record = await this.change((p) =>
        changes.patchNetwork(p, p.draft.network.resolve(ref), patch),
      );
      return networkView(record, this.observed);
    },
    remove: (ref, { force }) =>
      this.change((p) => changes.removeNetwork(p, p.draft.network.resolve(ref), force)),
  };

  readonly sandboxes: Sandboxes = {
    list: () =>
      this.state.sandbox.values().map((record) => sandboxView(this.state, record, this.observed)),
    get: (ref) => sandboxView(this.state, this.state.sandbox.resolve(ref), this.observed),
  };

  readonly endpoints: Endpoints = {
    list: () => this.state.endpoint.values().map((record) => this.#endpointView(record)),
    get: (ref) => this.#endpointView(this.state.endpoint.resolve(ref)),
    create: async (input) =>
      this.#endpointView(await this.change((p) => changes.createEndpoint(p, input))),
    put: (input) =>
      this.#put(
        "endpoint",
        input.name,
        (p) => changes.putEndpoint(p, input),
        (record) => this.#endpointView(record),
      ),
    patch: async (ref, patch) =>
      this.#endpointView(
        await this.change((p) => changes.patchEndpoint(p, p.draft.endpoint.resolve(ref), patch)),
      ),
    remove: (ref) =>
      this.change((p) => changes.removeEndpoint(p.draft, p.draft.endpoint.resolve(ref))),
  };

  readonly ports: Ports = {
    list: async () => {
      await this.traffic.observe(this.state, this.links);
      return this.state.port.values().map((record) => this.#portView(record));
    },
    get: async (ref) => {
      this.state.port.resolve(ref);
      await this.traffic.observe(this.state, this.links);
      // It may be gone by now.
      return this.#portView(this.state.port.resolve(ref));
    },
    create: async (input) => this.#portView(await this.change((p) => changes.createPort(p, input))),
    put: (input) =>
      this.#put(
        "port",
        input.name,
        (p) => changes.putPort(p, input),
        (record) => this.#portView(record),
      ),
    patch: async (ref, patch) =>
      this.#portView(
        await this.change((p) => changes.patchPort(p, p.draft.port.resolve(ref), patch)),
      ),
    remove: (ref) => this.change((p) => p.draft.port.delete(p.draft.port.resolve(ref).id)),
  };

  #endpointView(record: EndpointRecord) {
    return endpointView(this.state, record, this.observed);
  }

  #portView(record: PortRecord) {
    return portView(this.state, record, this.traffic.servedBy(record), this.observed);
  }

  /** A PUT: whether it made the object is seen by whether the name was there before. */
  async #put<R, T>(
    kind: "network" | "endpoint" | "port",
    name: string,
    plan: (planning: changes.Planning) => Promise<R> | R,
    view: (record: R) => T,
  ): Promise<PutResult<T>> {
    let created = false;
    const record = await this.change((planning) => {
      created = planning.draft[kind].named(name) === undefined;
      return plan(planning);
    });
    return { object: view(record), created };
  }

  async apply(input: ApplyInput, { dryRun }: { dryRun: boolean }): Promise<ApplyResult> {
    if (dryRun)
      return this.exclusive(async () => {
        const before = this.state;
        const draft = before.copy();
        const planning = await this.#planning(draft, new Set(), input.owner);
        await planApply(planning, input);
        return applyResult(before, draft, input, planning.mend, true);
      });
    const { before, draft, mend } = await this.change(async (planning) => {
      await planApply(planning, input);
      return planning;
    }, input.owner);
    return applyResult(before, draft, input, mend, false);
  }

  // --- what is read from the datapath

  connections(): Promise<Connection[]> {
    return this.traffic.connections(this.state, this.links);
  }

  datapathStatus(): Promise<DatapathStatus> {
    return readDatapathStatus(this);
  }

  metricsSnapshot(): Promise<MetricsSnapshot> {
    return readMetrics(this);
  }

  async rules(): Promise<RuleDescription[]> {
    return describeRules(this.state, await this.options.datapath.listFirewall());
  }

  async setFastPath(enabled: boolean): Promise<void> {
    const { datapath, fastPathLoaded, pinDirectory, features, store } = this.options;
    if (!fastPathLoaded) {
      if (!enabled) return;
      const why = features.fastPath
        ? "the daemon runs with --no-fast-path"
        : features.missing.join("; ");
      throw new ProblemError("fast_path_unavailable", `There is no fast path: ${why}.`);
    }
    await this.exclusive(async () => {
      await datapath.setFastPathEnabled(pinDirectory, enabled);
      await this.connectHook.followSwitch();
      store.saveSetting("fast-path", enabled ? "on" : "off");
      const type = enabled ? "datapath.enabled" : "datapath.disabled";
      this.events.record([{ type, object: null, message: "asked for" }], this.now());
    });
    this.upkeep.soon();
  }
}

function written<T>(difference: { added: T[]; changed: { after: T }[] }): T[] {
  return [...difference.added, ...difference.changed.map(({ after }) => after)];
}

function eventsOf(difference: StateDifference): NewEvent[] {
  return kinds.flatMap((kind) => {
    const { added, changed, removed } = difference[kind];
    const event = (what: string, { id, name }: { id: string; name: string }): NewEvent => ({
      type: `${kind}.${what}`,
      object: { kind, id, name },
      message: `${kind} ${name} ${what}`,
    });
    return [
      ...added.map((record) => event("created", record)),
      ...changed.map(({ after }) => event("updated", after)),
      ...removed.map((record) => event("removed", record)),
    ];
  });
}

/** `protocol/port` of a port natbridge picked itself and somebody else turned out to hold. */
function pickedPort(after: State, error: unknown): string | null {
  if (!(error instanceof HolderError) || error.kind !== "address_in_use" || error.key === null)
    return null;
  const [protocol, hostAddress, hostPort] = error.key.split("/");
  const port = after.port
    .values()
    .find(
      (candidate) =>
        candidate.protocol === protocol &&
        candidate.bindings.some(
          (binding) => binding.hostAddress === hostAddress && binding.hostPort === Number(hostPort),
        ),
    );
  const isPicked =
    port !== undefined &&
    (port.hostPort === 0 ||
      (typeof port.hostPort === "string" && typeof port.containerPort === "number"));
  return isPicked ? `${protocol}/${hostPort}` : null;
}
