/** Whose traffic is there now, and which way it takes: connections, and what serves each port. */
import type {
  ConntrackEntry,
  Datapath,
  FlowInfo,
  LinkInfo,
  PortCounters,
  Tuple,
} from "../datapath/types.ts";
import type { Holder, HolderBindingState } from "../holder/types.ts";
import { familyOf, wildcardOf, withoutPrefix } from "./addresses.ts";
import { localAddresses } from "./host.ts";
import type { Connection, Port, ServedBy } from "./model.ts";
import type { EndpointRecord, PortRecord } from "./records.ts";
import type { State } from "./state.ts";
import { bindingKey } from "./wanted.ts";

type Origin = "uplink" | "host" | "container";

interface Snapshot {
  entries: ConntrackEntry[];
  flows: FlowInfo[];
  connects: PortCounters[];
  bindings: HolderBindingState[];
  /** The host's own addresses. */
  local: Set<string>;
}

const tupleKey = (protocol: string, tuple: Tuple): string =>
  `${protocol} ${tuple.sourceAddress} ${tuple.sourcePort} ${tuple.destinationAddress} ${tuple.destinationPort}`;

/** Addresses of endpoints, and published ports by what clients dial. */
class Index {
  readonly endpoints = new Map<string, EndpointRecord>();
  readonly ports = new Map<string, PortRecord>();

  constructor(state: State) {
    for (const endpoint of state.endpoint.values())
      for (const address of endpoint.addresses)
        this.endpoints.set(withoutPrefix(address), endpoint);
    for (const port of state.port.values())
      for (const binding of port.bindings) this.ports.set(bindingKey(port.protocol, binding), port);
  }

  /** The binding a client that dialled this address and port has reached. */
  dialled(protocol: string, address: string, port: number): [string, PortRecord] | null {
    for (const hostAddress of [address, wildcardOf(familyOf(address))]) {
      const key = bindingKey(protocol, { hostAddress, hostPort: port });
      const found = this.ports.get(key);
      if (found) return [key, found];
    }
    return null;
  }
}

export class Traffic {
  readonly #datapath: Datapath;
  readonly #holder: Holder;
  readonly #fastPathLoaded: () => boolean;
  /** What each binding's traffic last took. */
  readonly #served = new Map<string, Map<Origin, ServedBy>>();
  readonly #connects = new Map<string, number>();
  readonly #forwarded = new Map<string, number>();
  #last: Promise<Snapshot> | null = null;
  #lastAt = 0;

  constructor(datapath: Datapath, holder: Holder, fastPathLoaded: () => boolean) {
    this.#datapath = datapath;
    this.#holder = holder;
    this.#fastPathLoaded = fastPathLoaded;
  }

  /** Reads once for calls that come within a quarter of a second. */
  #snapshot(links: LinkInfo[]): Promise<Snapshot> {
    if (this.#last !== null && performance.now() - this.#lastAt < 250) return this.#last;
    this.#lastAt = performance.now();
    this.#last = this.#read(links);
    return this.#last;
  }

  async #read(links: LinkInfo[]): Promise<Snapshot> {
    const loaded = this.#fastPathLoaded();
    const [entries, flows, connects, bindings] = await Promise.all([
      this.#datapath.listConntrack(),
      loaded ? this.#datapath.listFlows() : [],
      loaded ? this.#datapath.portCounters() : [],
      this.#holder.list().catch(() => []),
    ]);
    const local = new Set(localAddresses(links));
    return { entries, flows, connects, bindings, local };
  }

  /** Connections of endpoints. */
  async connections(state: State, links: LinkInfo[]): Promise<Connection[]> {
    const snapshot = await this.#snapshot(links);
    const index = new Index(state);
    const fast = new Set(
      snapshot.flows
        .filter(({ leaseSeconds }) => leaseSeconds > 0)
        .map((flow) => tupleKey(flow.protocol, flow.original)),
    );
    this.#learn(index, snapshot);
    return snapshot.entries.flatMap((entry) => {
      const inbound = index.endpoints.get(entry.reply.sourceAddress);
      const outbound = index.endpoints.get(entry.original.sourceAddress);
      const endpoint = inbound ?? outbound;
      if (!endpoint) return [];
      const dialled = entry.destinationNat
        ? index.dialled(
            entry.protocol,
            entry.original.destinationAddress,
            entry.original.destinationPort,
          )
        : null;
      const isFast =
        fast.has(tupleKey(entry.protocol, entry.original)) ||
        fast.has(tupleKey(entry.protocol, entry.reply));
      return {
        protocol: entry.protocol,
        state: entry.state,
        timeoutSeconds: entry.timeoutSeconds,
        original: entry.original,
        reply: entry.reply,
        endpoint: endpoint.name,
        network: state.network.expect(endpoint.networkId).name,
        port: dialled?.[1].name ?? null,
        direction: inbound ? ("inbound" as const) : ("outbound" as const),
        path: isFast ? ("fast" as const) : ("kernel" as const),
      };
    });
  }

  /** What serves the bindings of a port, by origin. */
  async observe(state: State, links: LinkInfo[]): Promise<void> {
    this.#learn(new Index(state), await this.#snapshot(links));
  }

  servedBy(port: PortRecord): Port["servedBy"] {
    return port.bindings.map(({ hostAddress, hostPort }) => {
      const served = this.#served.get(bindingKey(port.protocol, { hostAddress, hostPort }));
      return {
        hostAddress,
        hostPort,
        uplink: served?.get("uplink") ?? null,
        host: served?.get("host") ?? null,
        container: served?.get("container") ?? null,
      };
    });
  }

  #learn(index: Index, snapshot: Snapshot): void {
    const originOf = (address: string): Origin =>
      index.endpoints.has(address) ? "container" : snapshot.local.has(address) ? "host" : "uplink";
    for (const entry of snapshot.entries) {
      if (!entry.destinationNat) continue;
      const { destinationAddress, destinationPort, sourceAddress } = entry.original;
      const found = index.dialled(entry.protocol, destinationAddress, destinationPort);
      if (found) this.#note(found[0], originOf(sourceAddress), "kernel");
    }
    for (const flow of snapshot.flows) {
      const { destinationAddress, destinationPort, sourceAddress } = flow.original;
      const found = index.dialled(flow.protocol, destinationAddress, destinationPort);
      if (found && flow.leaseSeconds > 0) this.#note(found[0], originOf(sourceAddress), "fast");
    }
    for (const { protocol, hostAddress, hostPort, connects } of snapshot.connects) {
      const key = bindingKey(protocol, { hostAddress, hostPort });
      if (connects > (this.#connects.get(key) ?? 0)) this.#note(key, "host", "fast");
      this.#connects.set(key, connects);
    }
    for (const { key, connections } of snapshot.bindings) {
      if (connections > (this.#forwarded.get(key) ?? 0)) this.#note(key, "host", "forwarder");
      this.#forwarded.set(key, connections);
    }
  }

  #note(key: string, origin: Origin, by: ServedBy): void {
    const served = this.#served.get(key) ?? new Map<Origin, ServedBy>();
    this.#served.set(key, served.set(origin, by));
  }
}
