/** The real core on a host in memory. */
import { FakeDatapath } from "../../src/datapath/fake.ts";
import { FakeHolder } from "../../src/holder/fake.ts";
import type { Logger } from "../../src/log.ts";
import { Core, type CoreOptions } from "../../src/network/core.ts";
import { Store } from "../../src/store/store.ts";

const quiet = (): undefined => undefined;
const silent = { debug: quiet, info: quiet, warn: quiet, error: quiet, child: () => silent };

export class CoreHost {
  readonly datapath = new FakeDatapath();
  readonly holder = new FakeHolder();
  readonly store: Store;
  core: Core;

  /** @param path Of the database. */
  constructor(path = ":memory:") {
    this.store = new Store(path);
    for (const name of ["web", "db", "x"]) this.datapath.addSandbox(`/run/netns/${name}`);
    this.datapath.addSandbox("/proc/77/ns/net");
    this.core = this.makeCore();
  }

  /** Another core on the same kernel, holder and database, as after a restart. */
  makeCore(options: Partial<CoreOptions> = {}): Core {
    return new Core({
      datapath: this.datapath,
      holder: this.holder,
      reviveHolder: async () => {
        this.holder.isDead = false;
        this.holder.bindings.clear();
      },
      store: this.store,
      log: silent as unknown as Logger,
      features: this.datapath.features,
      fastPathLoaded: true,
      pinDirectory: "/pins",
      uplinks: [],
      ...options,
    });
  }

  async start(): Promise<this> {
    await this.core.upkeep.begin();
    return this;
  }

  /** All of kernel, holder and database, to compare before and after. */
  dump(): string {
    const { datapath, holder, store } = this;
    const state = store.loadState();
    return JSON.stringify({
      links: [...datapath.links.values()].sort((a, b) => (a.name < b.name ? -1 : 1)),
      sysctls: [...datapath.sysctls],
      sandboxes: [...datapath.sandboxes],
      firewall: datapath.firewall,
      devices: [...datapath.devices].sort(([a], [b]) => a - b),
      ports: datapath.ports,
      enabled: datapath.enabled,
      bindings: [...holder.bindings].sort(([a], [b]) => (a < b ? -1 : 1)),
      state: (["network", "sandbox", "endpoint", "port"] as const).map((kind) =>
        state[kind].values(),
      ),
      settings: store.hostSettings(),
      events: store.loadEvents().length,
    });
  }
}
