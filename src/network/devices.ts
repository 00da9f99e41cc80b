/** Keeps the programs on every endpoint's veth and every uplink, and tells them what they need. */

import { DatapathError } from "../datapath/error.ts";
import type { Datapath, DeviceSpec, LinkInfo } from "../datapath/types.ts";
import type { Logger } from "../log.ts";
import { nothingKnown, type Policy } from "./fast-path-policy.ts";
import { Mutex } from "./mutex.ts";
import type { State } from "./state.ts";
import { endpointDevice } from "./wanted.ts";

interface Wish {
  /** As if nothing of the host hindered. */
  spec: DeviceSpec;
  /** The device and the bridge it is on. */
  names: string[];
}

/** What the programs were told, and of which wish that came. */
interface Known extends Wish {
  told: string;
}

export class Devices {
  readonly #datapath: Datapath;
  readonly #log: Pick<Logger, "warn">;
  readonly #mutex = new Mutex();
  #policy: Policy = nothingKnown;
  #known: Map<number, Known> | null = null;

  constructor(datapath: Datapath, log: Pick<Logger, "warn">) {
    this.#datapath = datapath;
    this.#log = log;
  }

  #wanted(state: State, links: LinkInfo[], uplinks: LinkInfo[]): Wish[] {
    const byName = new Map(links.map((link) => [link.name, link]));
    const endpoints = state.endpoint.values().flatMap((endpoint): Wish[] => {
      const link = byName.get(endpoint.hostInterface);
      const { bridge, fastPath } = state.network.expect(endpoint.networkId);
      if (!link) return [];
      const master = byName.get(bridge ?? "");
      const spec = endpointDevice(state, endpoint, link.ifindex, master, fastPath !== "off");
      return [{ spec, names: [link.name, bridge ?? ""] }];
    });
    const others = uplinks.map(
      (link): Wish => ({
        spec: {
          ifindex: link.ifindex,
          role: "uplink",
          mtu: link.mtu,
          mac: "",
          addresses: [],
          link: 0,
          reserved: [],
          spoofCheck: false,
          fastPath: true,
        },
        names: [link.name],
      }),
    );
    return [...endpoints, ...others];
  }

  /** The wish, as far as the verdict allows it. */
  #allowed({ spec, names }: Wish): DeviceSpec {
    const { host, devices } = this.#policy;
    const fastPath = spec.fastPath && host && !names.some((name) => devices.has(name));
    return { ...spec, fastPath };
  }

  /** Attaches, describes and detaches until the programs know exactly these devices. */
  follow(state: State, links: LinkInfo[], uplinks: LinkInfo[]): Promise<void> {
    return this.#mutex.run(async () => {
      const known = this.#known ?? (await this.#adopt(links));
      const wanted = new Map(
        this.#wanted(state, links, uplinks).map((wish) => [wish.spec.ifindex, wish]),
      );
      for (const ifindex of known.keys()) {
        if (wanted.has(ifindex)) continue;
        await this.#datapath.removeDevice(ifindex);
        known.delete(ifindex);
      }
      for (const [ifindex, wish] of wanted) {
        try {
          await this.#tell(known, wish);
        } catch (error) {
          // It may have gone in between; the next notification tells.
          this.#log.warn({ ifindex, err: error }, "a device can't have the programs");
        }
      }
    });
  }

  /**
   * Takes the fast path from devices that may not have it, and gives it to those that may again.
   *
   * @throws DatapathError if a device that is there could not be told.
   */
  obey(policy: Policy, links: LinkInfo[]): Promise<void> {
    return this.#mutex.run(async () => {
      this.#policy = policy;
      const known = this.#known ?? (await this.#adopt(links));
      const byIfindex = new Map(links.map((link) => [link.ifindex, link]));
      for (const [ifindex, { spec, names }] of known) {
        const link = byIfindex.get(ifindex);
        // By the name it has now: that is what rules ask for.
        const wish = { spec, names: link ? [link.name, ...names.slice(1)] : names };
        try {
          await this.#tell(known, wish);
        } catch (error) {
          if (!(error instanceof DatapathError) || error.kind !== "not_found") throw error;
        }
      }
    });
  }

  async #tell(known: Map<number, Known>, wish: Wish): Promise<void> {
    const spec = this.#allowed(wish);
    const told = JSON.stringify(spec);
    if (known.get(spec.ifindex)?.told !== told) await this.#datapath.setDevice(spec);
    known.set(spec.ifindex, { ...wish, told });
  }

  /** What pinned programs of an earlier daemon are on. They may lose the fast path, not gain it. */
  async #adopt(links: LinkInfo[]): Promise<Map<number, Known>> {
    const byIfindex = new Map(links.map((link) => [link.ifindex, link]));
    const devices = await this.#datapath.listDevices();
    this.#known = new Map(
      devices.map((spec) => {
        const link = byIfindex.get(spec.ifindex);
        const bridge = byIfindex.get(link?.master ?? 0);
        const names = [link?.name ?? "", bridge?.name ?? ""];
        return [spec.ifindex, { spec, names, told: "" }];
      }),
    );
    return this.#known;
  }
}
