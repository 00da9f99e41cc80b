/** Host-wide settings natbridge needs: recorded before they are changed, restored on uninstall. */
import type { Datapath, Family } from "../datapath/types.ts";
import { reasonOf } from "../reason.ts";
import type { HostSetting, Store } from "../store/store.ts";
import type { State } from "./state.ts";

const forwarding4 = "net/ipv4/ip_forward";
const forwarding6 = "net/ipv6/conf/all/forwarding";
/** Set by earlier versions for all connections; now conntrack is told of each one that needs it. */
const formerlySet = ["net/netfilter/nf_conntrack_tcp_be_liberal"];

const reversePath = (name: string): string => `net/ipv4/conf/${name}/rp_filter`;
const strict = "1";
const loose = "2";

/**
 * Bridges with a sandbox that is on another network, too: what was asked of it there it answers by its
 * default route's interface, a source that the strict filter does not expect here (RFC 3704).
 */
function bridgesOfManyHomed(state: State): string[] {
  const bridges = state.sandbox.values().flatMap(({ id }) => {
    const endpoints = state.endpoint.of(id);
    return endpoints.length < 2
      ? []
      : endpoints.flatMap(({ networkId }) => state.network.expect(networkId).bridge ?? []);
  });
  return [...new Set(bridges)];
}

export class HostSettings {
  readonly #datapath: Datapath;
  readonly #store: Store;
  #uplinks: string[] = [];

  constructor(datapath: Datapath, store: Store) {
    this.#datapath = datapath;
    this.#store = store;
  }

  /** Names of the uplinks, whose router advertisements must go on being heard. */
  followUplinks(names: string[]): void {
    this.#uplinks = names;
  }

  /** Sets what this state needs; answers the keys it changed, those anew that it changed before too. */
  apply(state: State): string[] {
    this.takeBack(formerlySet);
    const changed: string[] = [];
    const need = (key: string, value: string): void => {
      const before = this.#datapath.readSysctl(key);
      if (before === null || before === value) return;
      this.#set(key, before, value);
      changed.push(key);
    };
    if (state.network.values().some(({ bridge }) => bridge !== null)) need(forwarding4, "1");
    if (state.network.values().some(({ ipv6 }) => ipv6)) {
      changed.push(...this.#keepRouterAdvertisements());
      need(forwarding6, "1");
    }
    return changed;
  }

  /**
   * Makes the reverse path filter of those bridges loose that need it, where the host's is strict, and
   * gives the others back theirs; answers the keys it changed. The bridges must be there. The higher
   * number of all and the device counts (kernel: ip-sysctl, rp_filter).
   */
  applyReversePath(state: State): string[] {
    const needed = new Set(bridgesOfManyHomed(state).map(reversePath));
    const isOurs = new RegExp(`^${reversePath("[^/]+")}$`);
    const over = this.list().filter(({ key }) => isOurs.test(key) && !needed.has(key));
    this.takeBack(over.map(({ key }) => key));
    const all = this.#datapath.readSysctl(reversePath("all"));
    const changed: string[] = [];
    for (const key of needed) {
      const before = this.#datapath.readSysctl(key);
      if (before === null || before === loose || (before !== strict && all !== strict)) continue;
      try {
        this.#set(key, before, loose);
      } catch (error) {
        this.takeBack(changed);
        throw error;
      }
      changed.push(key);
    }
    return changed;
  }

  /** As `apply`, all of it or nothing anew; answers the keys set for the first time. */
  applyWhole(state: State): string[] {
    const known = new Set(this.list().map(({ key }) => key));
    try {
      return this.apply(state).filter((key) => !known.has(key));
    } catch (error) {
      const anew = this.list().filter(({ key }) => !known.has(key));
      this.takeBack(anew.map(({ key }) => key));
      throw error;
    }
  }

  #set(key: string, before: string, value: string): void {
    const isKnown = this.list().some((setting) => setting.key === key);
    if (!isKnown) this.#store.recordHostSetting({ key, before, value });
    try {
      this.#datapath.writeSysctl(key, value);
    } catch (error) {
      if (!isKnown) this.#store.forgetHostSetting(key);
      throw error;
    }
  }

  /** A host that forwards ignores them unless accept_ra is 2 (kernel: ip-sysctl). */
  #keepRouterAdvertisements(): string[] {
    // Who forwarded before natbridge has decided about them; later uplinks of ours have not.
    const isOurs = this.list().some(({ key }) => key === forwarding6);
    if (this.#datapath.readSysctl(forwarding6) === "1" && !isOurs) return [];
    const keys = this.#uplinks
      .map((name) => `net/ipv6/conf/${name}/accept_ra`)
      .filter((key) => this.#datapath.readSysctl(key) === "1");
    for (const key of keys) this.#set(key, "1", "2");
    return keys;
  }

  list(): HostSetting[] {
    return this.#store.hostSettings();
  }

  /** Families whose forwarding natbridge turned on: what is not its own must not profit from it. */
  turnedForwardingOn(): Family[] {
    const keys = new Set(this.list().map(({ key }) => key));
    return (["ipv4", "ipv6"] as const).filter((family) =>
      keys.has(family === "ipv4" ? forwarding4 : forwarding6),
    );
  }

  /** Puts back every setting that still has natbridge's value; answers what could not be. */
  restore(): string[] {
    return this.takeBack(this.list().map(({ key }) => key));
  }

  /** As `restore`, for these keys. */
  takeBack(keys: string[]): string[] {
    const failures: string[] = [];
    const settings = this.list().filter(({ key }) => keys.includes(key));
    for (const { key, before, value } of settings.toReversed()) {
      try {
        if (this.#datapath.readSysctl(key) === value) this.#datapath.writeSysctl(key, before);
        this.#store.forgetHostSetting(key);
      } catch (error) {
        failures.push(`${key}: ${reasonOf(error)}`);
      }
    }
    return failures;
  }
}
