/** When to reconcile: at the start, soon after the host changed, and every half minute. */
import type { HostEvent } from "../datapath/types.ts";
import { HolderError } from "../holder/types.ts";
import { reasonOf } from "../reason.ts";
import type { Core } from "./core.ts";
import { dockerRuns } from "./host.ts";
import { planDefaultNetwork, planPlainNetwork } from "./plan-networks.ts";
import { type Outcome, reconcile } from "./reconcile.ts";
import { SandboxWatch } from "./sandbox-upkeep.ts";

/** Notifications come in swarms: wait for the rest of the swarm. */
const swarmMilliseconds = 300;
/** What announces itself to nobody (iptables-legacy, sysctls) is found by then. */
const regularMilliseconds = 30_000;
/** How often the sandboxes' paths are looked at. */
const glanceMilliseconds = 1000;
/** At most this share of the time goes into reconciling a host that changes all the time. */
const busyShare = 0.2;

export class Upkeep {
  readonly #core: Core;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #regular: ReturnType<typeof setInterval> | null = null;
  #glance: ReturnType<typeof setTimeout> | null = null;
  readonly #sandboxWatch = new SandboxWatch();
  #isFirst = true;
  #isStopped = false;
  #lastMilliseconds = 0;
  #reported = "";
  /** Since the start of the daemon. */
  readonly counts = { runs: 0, failures: 0, repairs: 0 };
  /** What the last reconciliation could not mend. */
  failures: string[] = [];

  constructor(core: Core) {
    this.#core = core;
  }

  /** Adopts what is there, mends it, and makes the predefined networks that are missing. */
  async begin(): Promise<void> {
    // First of all: an earlier daemon's verdict on the host's rules is good for seconds only.
    await this.#core.judge.now();
    await this.now();
    const { state, options } = this.#core;
    const missing = (["bridge", "host", "none"] as const).filter(
      (name) => !state.network.named(name) && !(name === "bridge" && dockerRuns(this.#core.links)),
    );
    for (const name of missing) {
      try {
        await this.#core.change(({ draft, host, request }) => {
          draft.network.put(
            name === "bridge"
              ? planDefaultNetwork(draft, host, request.now)
              : planPlainNetwork(name, request.now),
          );
        });
      } catch (error) {
        options.log.warn({ err: error }, `the predefined network ${name} can't be made`);
      }
    }
  }

  /** Follows the host from now on. */
  watch(): void {
    const { datapath, holder, standInTable = true } = this.#core.options;
    datapath.watchHost((event) => this.#hear(event), standInTable);
    this.#core.judge.begin();
    holder.onLost(() => this.soon());
    this.#regular = setInterval(() => this.soon(), regularMilliseconds);
    this.soon();
    this.#glanceLater(glanceMilliseconds);
  }

  /** Namespaces that are made and removed at a sandbox's path announce themselves to nobody. */
  #glanceLater(pause: number): void {
    if (this.#isStopped) return;
    this.#glance = setTimeout(async () => {
      const started = performance.now();
      try {
        const sandboxes = this.#core.state.sandbox.values();
        if (await this.#sandboxWatch.look(this.#core.options.datapath, sandboxes)) this.soon();
      } catch (error) {
        this.#core.options.log.warn({ err: error }, "the sandboxes' paths can't be looked at");
      }
      this.#glanceLater(Math.max(glanceMilliseconds, (performance.now() - started) / busyShare));
    }, pause);
  }

  #hear({ kind }: HostEvent): void {
    // The connect hook serves the host's addresses, and rules may tell them apart.
    if (["ruleset", "qdisc", "program", "overrun", "address"].includes(kind))
      this.#core.judge.soon();
    // Neighbours end leases in the datapath itself; nothing here depends on them.
    if (kind !== "neighbour") this.soon();
  }

  /** Reconciles after a short while; calls until then are one. */
  soon(): void {
    if (this.#timer !== null || this.#isStopped) return;
    const pause = Math.max(swarmMilliseconds, this.#lastMilliseconds / busyShare);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      void this.now();
    }, pause);
  }

  /** Reconciles when no change is under way. Never throws. */
  async now(): Promise<void> {
    await this.#core.judge.idle();
    await this.#core.exclusive(() => this.duringChange());
  }

  /** As `now`, for a change that is under way and has undone its steps. Never throws. */
  async duringChange(): Promise<void> {
    if (this.#isStopped) return;
    const started = performance.now();
    await this.#reviveHolder();
    this.#report(await this.#outcome());
    this.#lastMilliseconds = performance.now() - started;
  }

  /** An error that no part of it expected must not end the daemon: nobody waits for a timer's promise. */
  async #outcome(): Promise<Outcome> {
    try {
      const outcome = await reconcile(this.#core, this.#isFirst);
      this.#isFirst = false;
      return outcome;
    } catch (error) {
      this.#core.options.log.error({ err: error }, "reconciling stopped half-way");
      return { repairs: [], failures: [`reconciling stopped half-way: ${reasonOf(error)}`] };
    }
  }

  /** A holder that died is started anew; what it held is then reserved again. */
  async #reviveHolder(): Promise<void> {
    const { holder, reviveHolder, log } = this.#core.options;
    try {
      await holder.list();
    } catch (error) {
      if (!(error instanceof HolderError) || error.kind !== "unavailable") return;
      try {
        await reviveHolder();
        log.warn("the holder had died: a new one runs");
      } catch (cause) {
        log.error({ err: cause }, "the holder has died, and no new one can be started");
      }
    }
  }

  #report({ repairs, failures }: Outcome): void {
    const { log } = this.#core.options;
    this.counts.runs += 1;
    this.counts.repairs += repairs.length;
    if (failures.length > 0) this.counts.failures += 1;
    this.failures = failures;
    if (repairs.length > 0) log.info({ repairs }, "put right what differed");
    const text = failures.join("\n");
    // The same failure every half minute is one line in the log.
    if (text !== "" && text !== this.#reported)
      log.warn({ failures }, "not all could be put right; it is tried again");
    this.#reported = text;
  }

  stop(): void {
    this.#isStopped = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    if (this.#regular !== null) clearInterval(this.#regular);
    if (this.#glance !== null) clearTimeout(this.#glance);
    if (this.#regular !== null) this.#core.options.datapath.stopWatching();
  }
}
