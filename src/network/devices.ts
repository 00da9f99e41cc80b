/** Keeps the programs on every endpoint's veth and every uplink, and tells them what they need. */
import type { Datapath, DeviceSpec, LinkInfo } from "../datapath/types.ts";
import type { Logger } from "../log.ts";
import type { Policy } from "./fast-path-policy.ts";
import type { State } from "./state.ts";
import { endpointDevice } from "./wanted.ts";

export class Devices {
  readonly #datapath: Datapath;
  readonly #log: Pick<Logger, "warn">;
  #known: Map<number, string> | null = null;

  constructor(datapath: Datapath, log: Pick<Logger, "warn">) {
    this.#datapath = datapath;
    this.#log = log;
  }

  #wanted(state: State, links: LinkInfo[], uplinks: LinkInfo[], policy: Policy): DeviceSpec[] {
    const byName = new Map(links.map((link) => [link.name, link]));
    const allowed = (...names: string[]): boolean =>
      policy.host && !names.some((name) => policy.devices.has(name));
    const endpoints = state.endpoint.values().flatMap((endpoint) => {
      const link = byName.get(endpoint.hostInterface);
      const name = state.network.expect(endpoint.networkId).bridge ?? "";
      if (!link) return [];
      const isAllowed = allowed(link.name, name);
      return endpointDevice(state, endpoint, link.ifindex, byName.get(name), isAllowed);
    });
    const others = uplinks.map(
      (link): DeviceSpec => ({
        ifindex: link.ifindex,
        role: "uplink",
        mtu: link.mtu,
        mac: "",
        addresses: [],
        link: 0,
        reserved: [],
        spoofCheck: false,
        fastPath: allowed(link.name),
      }),
    );
    return [...endpoints, ...others];
  }

  /** Attaches, describes and detaches until the programs know exactly these devices. */
  async follow(
    state: State,
    links: LinkInfo[],
    uplinks: LinkInfo[],
    policy: Policy,
  ): Promise<void> {
    const known = this.#known ?? (await this.#adopt());
    const wanted = new Map(
      this.#wanted(state, links, uplinks, policy).map((spec) => [spec.ifindex, spec]),
    );
    for (const ifindex of known.keys()) {
      if (wanted.has(ifindex)) continue;
      await this.#datapath.removeDevice(ifindex);
      known.delete(ifindex);
    }
    for (const [ifindex, spec] of wanted) {
      const text = JSON.stringify(spec);
      if (known.get(ifindex) === text) continue;
      try {
        await this.#datapath.setDevice(spec);
        known.set(ifindex, text);
      } catch (error) {
        // It may have gone in between; the next notification tells.
        this.#log.warn({ ifindex, err: error }, "a device can't have the programs");
      }
    }
  }

  /** What pinned programs of an earlier daemon are on: described anew, whatever they were told. */
  async #adopt(): Promise<Map<number, string>> {
    const devices = await this.#datapath.listDevices();
    this.#known = new Map(devices.map(({ ifindex }) => [ifindex, ""]));
    return this.#known;
  }
}
