/**
 * Judges the host's rules, and stands for the verdict while this daemon lives.
 *
 * The datapath neither learns nor uses a flow from the moment it hears of a change of rules until they
 * are judged here. So judging has a lane of its own: it waits for no change of the desired state and for
 * no reconciliation.
 */
import { reasonOf } from "../reason.ts";
import type { Core } from "./core.ts";
import {
  type Hindrance,
  networksOff,
  nothingKnown,
  type Policy,
  readPolicy,
} from "./fast-path-policy.ts";
import { Mutex } from "./mutex.ts";

/** The datapath takes the verdict for untrue some seconds after the last time. */
const renewMilliseconds = 500;
/** Changes come in bursts: it begins when none has come for so long. */
const settleMilliseconds = 3;
const settleTries = 10;
/** Of a host that changes all the time: as long as a judging took, but no longer. */
const longestPauseMilliseconds = 1000;
const retryMilliseconds = 1000;
/** What announces itself to nobody is looked for that often. */
const regularMilliseconds = 20_000;

const pause = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Judge {
  readonly #core: Core;
  readonly #lane = new Mutex();
  #policy: Policy = nothingKnown;
  /** Why the rules can't be judged; null if they are. */
  #failure: string | null = null;
  #isAsked = false;
  #isStopped = false;
  #judgedAt = Number.NEGATIVE_INFINITY;
  #heartbeat: ReturnType<typeof setInterval> | null = null;
  #retry: ReturnType<typeof setTimeout> | null = null;
  /** Texts of the hindrances that events told of. */
  #told = new Set<string>();

  constructor(core: Core) {
    this.#core = core;
  }

  get policy(): Policy {
    return this.#policy;
  }

  /** Stands for the verdict from now on. */
  begin(): void {
    if (!this.#core.options.fastPathLoaded || this.#heartbeat !== null) return;
    this.#heartbeat = setInterval(() => this.#renew(), renewMilliseconds);
  }

  /** Ends with what is under way. The verdict stands for some seconds more, for the next daemon. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    if (this.#heartbeat !== null) clearInterval(this.#heartbeat);
    if (this.#retry !== null) clearTimeout(this.#retry);
    await this.idle();
  }

  #renew(): void {
    let isRenewed = false;
    try {
      isRenewed = this.#failure === null && this.#core.options.datapath.renewVerdict();
    } catch (error) {
      this.#core.options.log.warn(
        { err: error },
        "the verdict on the host's rules can't be renewed",
      );
    }
    if (!isRenewed) this.soon();
  }

  /** Judges at once, unless it is about to; again and again until the verdict stands. Never throws. */
  soon(): void {
    // What came while it judged has made it pause: then all that comes meanwhile is seen as well.
    if (this.#isAsked || this.#retry !== null || this.#isStopped) return;
    if (!this.#core.options.fastPathLoaded) return;
    this.#isAsked = true;
    void this.#lane.run(async () => {
      this.#isAsked = false;
      const started = performance.now();
      if ((await this.#once()) || this.#isStopped || this.#retry !== null) return;
      const took = performance.now() - started;
      const milliseconds =
        this.#failure === null ? Math.min(took, longestPauseMilliseconds) : retryMilliseconds;
      this.#retry = setTimeout(() => {
        this.#retry = null;
        this.soon();
      }, milliseconds);
    });
  }

  /** Judges what is there when it is called. Never throws. */
  async now(): Promise<void> {
    if (this.#isStopped || !this.#core.options.fastPathLoaded) return;
    await this.#lane.run(() => this.#once());
  }

  /** Waits for what is under way: it needs the processor more urgently than any other work. */
  async idle(): Promise<void> {
    await this.#lane.run(async () => undefined);
  }

  /** As `now`, unless that was done lately and nothing is known to have changed. */
  async ifDue(): Promise<void> {
    const { fastPathLoaded, datapath } = this.#core.options;
    if (!fastPathLoaded) return;
    const isRecent = performance.now() - this.#judgedAt < regularMilliseconds;
    if (!isRecent || !datapath.verdictStands()) await this.now();
    this.tell();
  }

  /** Whether the verdict stands. */
  async #once(): Promise<boolean> {
    if (this.#isStopped) return false;
    const { datapath } = this.#core.options;
    try {
      const seen = await this.#settled();
      const { policy, links } = await readPolicy(datapath);
      this.#policy = policy;
      await this.#core.devices.obey(policy, links);
      await this.#core.connectHook.obey(policy);
      this.#failure = null;
      this.#judgedAt = performance.now();
      const stands = datapath.acceptVerdict(seen);
      this.tell();
      return stands;
    } catch (error) {
      const reason = `the host's rules can't be judged: ${reasonOf(error)}`;
      if (reason !== this.#failure) this.#core.options.log.warn({ err: error }, reason);
      this.#failure = reason;
      this.tell();
      return false;
    }
  }

  /** The count of changes, once a burst of them is over. */
  async #settled(): Promise<number> {
    const { datapath } = this.#core.options;
    let seen = datapath.rulesSeen();
    for (let tries = 0; tries < settleTries; tries++) {
      await pause(settleMilliseconds);
      const now = datapath.rulesSeen();
      if (now === seen) break;
      seen = now;
    }
    return seen;
  }

  /** The whole host may have the fast path now. */
  get allowsHost(): boolean {
    return (
      this.#failure === null && this.#policy.host && this.#core.options.datapath.verdictStands()
    );
  }

  /** Where the fast path is off at this moment. */
  hindrances(): Hindrance[] {
    const lasting = this.#lasting();
    if (this.#failure !== null || this.#core.options.datapath.verdictStands()) return lasting;
    const reason =
      "the host's rules have changed or may have: nothing is learned or used until they are judged";
    return [{ where: "host", reason, rule: null }, ...lasting];
  }

  /** Those that are not over as soon as the rules are judged. */
  #lasting(): Hindrance[] {
    const { state, connectHook } = this.#core;
    const concerned = this.#concerned();
    const failures = (this.#failure === null ? [] : ["host", "loopback"]).map((where) => ({
      where,
      reason: this.#failure ?? "",
      rule: null,
    }));
    return [
      ...failures,
      ...this.#policy.hindrances.filter(({ where }) => where === "host" || concerned.has(where)),
      ...(connectHook.hindrance === null ? [] : [connectHook.hindrance]),
      ...networksOff(state),
    ];
  }

  /** Devices whose rules and queueing the fast path would skip. */
  #concerned(): Set<string> {
    const { state, uplinks } = this.#core;
    return new Set([
      ...uplinks.map(({ name }) => name),
      ...state.endpoint.values().map(({ hostInterface }) => hostInterface),
      ...state.network.values().flatMap(({ bridge }) => bridge ?? []),
    ]);
  }

  /** Events for what hinders now and did not, and the other way round. */
  tell(): void {
    if (!this.#core.options.fastPathLoaded) return;
    const now = new Set(
      this.#lasting().map(
        ({ where, reason, rule }) => `${where}: ${reason}${rule === null ? "" : ` (${rule})`}`,
      ),
    );
    const news = [
      ...[...now]
        .filter((text) => !this.#told.has(text))
        .map((text) => ({
          type: "datapath.degraded",
          object: null,
          message: `off on ${text}`,
        })),
      ...[...this.#told]
        .filter((text) => !now.has(text))
        .map((text) => ({
          type: "datapath.enabled",
          object: null,
          message: `again on ${text}`,
        })),
    ];
    this.#told = now;
    if (news.length === 0) return;
    try {
      this.#core.events.record(news, this.#core.now());
    } catch (error) {
      this.#core.options.log.error({ err: error }, "events could not be written");
    }
  }
}
