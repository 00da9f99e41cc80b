/** What the connect hooks are told: published ports, the host's own addresses, and whether to serve. */
import type { Datapath, PortEntry } from "../datapath/types.ts";
import type { Hindrance, Policy } from "./fast-path-policy.ts";
import { nothingKnown } from "./fast-path-policy.ts";
import { Mutex } from "./mutex.ts";

export class ConnectHook {
  readonly #datapath: Datapath;
  readonly #pinDirectory: string;
  readonly #mutex = new Mutex();
  /** Why this kernel can't have it; empty if it can. */
  readonly #kernelReason: string;
  #policy: Policy = nothingKnown;
  #ports: PortEntry[];
  /** Why it serves no port; null if it may. */
  hindrance: Hindrance | null = null;

  /**
   * @param ports What an earlier daemon told pinned programs.
   * @param kernelReason Why this kernel can't have it; empty if it can.
   */
  constructor(datapath: Datapath, pinDirectory: string, ports: PortEntry[], kernelReason: string) {
    this.#datapath = datapath;
    this.#pinDirectory = pinDirectory;
    this.#kernelReason = kernelReason;
    this.#ports = ports;
  }

  /** Serves as the verdict allows. */
  obey(policy: Policy): Promise<void> {
    return this.#mutex.run(async () => {
      this.#policy = policy;
      this.#judge();
      if (this.hindrance !== null) await this.#switch();
      await this.#datapath.setLocalAddresses(policy.localAddresses);
      await this.#switch();
    });
  }

  /** Makes its ports exactly these; it steps aside first if a rule looks at one of them. */
  setPorts(ports: PortEntry[]): Promise<void> {
    return this.#mutex.run(async () => {
      this.#ports = ports;
      this.#judge();
      if (this.hindrance !== null) await this.#switch();
      await this.#datapath.setPorts(ports);
      await this.#switch();
    });
  }

  /** Follows what the operator has switched on or off. */
  followSwitch(): Promise<void> {
    return this.#mutex.run(() => this.#switch());
  }

  #judge(): void {
    this.hindrance = null;
    if (this.#kernelReason !== "") {
      this.hindrance = { where: "loopback", reason: this.#kernelReason, rule: null };
      return;
    }
    for (const { hostAddress, hostPort, protocol } of this.#ports) {
      const family = hostAddress.includes(":") ? "ipv6" : "ipv4";
      const verdict = this.#policy.loopback({ family, protocol, port: hostPort });
      if (!verdict.hindered) continue;
      this.hindrance = { where: "loopback", reason: verdict.reason, rule: verdict.rule };
      return;
    }
  }

  async #switch(): Promise<void> {
    const isWanted = await this.#datapath.fastPathEnabled(this.#pinDirectory);
    await this.#datapath.setConnectHook(isWanted && this.hindrance === null);
  }
}
