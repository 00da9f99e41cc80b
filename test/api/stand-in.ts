/** A service in memory with as much truth as tests of the HTTP layer need; nothing behind it. */
import { createHash } from "node:crypto";
import type { MetricsSnapshot, MetricsSource } from "../../src/metrics/source.ts";
import type { DatapathStatus } from "../../src/network/datapath-status.ts";
import type { EventLog, NatbridgeEvent } from "../../src/network/events.ts";
import type {
  Connection,
  Endpoint,
  EndpointInput,
  Network,
  NetworkInput,
  Port,
  PortInput,
  Sandbox,
} from "../../src/network/model.ts";
import type { Service } from "../../src/network/service.ts";
import { type ProblemCode, ProblemError } from "../../src/problem.ts";

const since = "2026-01-01T00:00:00.000Z";

class Events implements EventLog {
  readonly #kept: NatbridgeEvent[] = [];
  readonly #listeners = new Set<(event: NatbridgeEvent) => void>();
  /** Events up to this one are forgotten. */
  forgotten = 0;

  emit(type: string, object: NatbridgeEvent["object"], message = type): void {
    const event = { id: this.lastId() + 1, type, time: since, object, message };
    this.#kept.push(event);
    for (const listener of this.#listeners) listener(event);
  }

  since(lastId: number): NatbridgeEvent[] | null {
    if (lastId < this.forgotten) return null;
    return this.#kept.filter(({ id }) => id > lastId);
  }

  lastId(): number {
    return this.#kept.length;
  }

  subscribe(listener: (event: NatbridgeEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  get followers(): number {
    return this.#listeners.size;
  }
}

interface Named {
  id: string;
  name: string;
}

function find<T extends Named>(items: Map<string, T>, ref: string, code: ProblemCode): T {
  const all = [...items.values()];
  const exact = all.find(({ id, name }) => id === ref || name === ref);
  const starting = all.filter(({ id }) => id.startsWith(ref));
  const [first, second] = exact ? [exact] : starting;
  if (second !== undefined) throw new ProblemError("ambiguous_reference", `"${ref}" is several`);
  if (first === undefined) throw new ProblemError(code, `there is no "${ref}"`);
  return first;
}

export const status: DatapathStatus = {
  mode: "fast",
  enabled: true,
  programs: [{ name: "ingress", id: 7, runTimeSeconds: 1.5, runCount: 10, attached: ["eth0"] }],
  kernel: { release: "6.18.0", features: { tcx: true }, missing: [] },
  uplinks: [{ name: "eth0", ifindex: 2, addresses: ["198.51.100.1/24"] }],
  off: [
    { where: "eth0", reason: "it limits a rate", rule: "ip filter FORWARD limit rate 1/second" },
  ],
  cache: {
    flows: 3,
    maxFlows: 1024,
    learned: 9,
    expired: 4,
    invalidated: 1,
    fastPackets: 95,
    kernelPackets: 5,
    hitRate: 0.95,
  },
  passes: [{ reason: "fragment", packets: 2 }],
  drops: [],
  connectHook: [],
  sysctls: [{ key: "net.ipv4.ip_forward", value: "1", before: "0" }],
  forwardAccepts: [],
  forwarder: null,
  warnings: ["a warning"],
};

export const connections: Connection[] = [
  {
    protocol: "tcp",
    state: "ESTABLISHED",
    timeoutSeconds: 431999,
    original: {
      sourceAddress: "198.51.100.9",
      sourcePort: 40000,
      destinationAddress: "198.51.100.1",
      destinationPort: 8080,
    },
    reply: {
      sourceAddress: "172.32.0.10",
      sourcePort: 80,
      destinationAddress: "198.51.100.9",
      destinationPort: 40000,
    },
    endpoint: "web",
    network: "my_net",
    port: "web-8080",
    direction: "inbound",
    path: "fast",
  },
  {
    protocol: "udp",
    state: "",
    timeoutSeconds: 30,
    original: {
      sourceAddress: "172.32.0.10",
      sourcePort: 5000,
      destinationAddress: "203.0.113.5",
      destinationPort: 53,
    },
    reply: {
      sourceAddress: "203.0.113.5",
      sourcePort: 53,
      destinationAddress: "198.51.100.1",
      destinationPort: 5000,
    },
    endpoint: "web",
    network: "my_net",
    port: null,
    direction: "outbound",
    path: "kernel",
  },
];

/** All methods are synchronous inside, so that a test sees a call's effect as soon as it is answered. */
export class StandIn implements Service, MetricsSource {
  readonly events = new Events();
  readonly #networks = new Map<string, Network>();
  readonly #sandboxes = new Map<string, Sandbox>();
  readonly #endpoints = new Map<string, Endpoint>();
  readonly #ports = new Map<string, Port>();
  #made = 0;
  isReady = true;
  fastPath = true;
  /** Thrown by the next read of the datapath. */
  failure: Error | null = null;

  /** All objects, for comparing before and after. */
  dump(): string {
    return JSON.stringify(
      [this.#networks, this.#sandboxes, this.#endpoints, this.#ports].map((map) => [
        ...map.values(),
      ]),
    );
  }

  #base(name: string, labels: Record<string, string> = {}) {
    this.#made += 1;
    const id = createHash("sha256").update(String(this.#made)).digest("hex");
    return {
      id,
      name,
      labels,
      createdAt: since,
      revision: 1,
      owner: null,
      status: { conditions: [] },
    };
  }

  #requireFree(items: Map<string, Named>, name: string): void {
    if ([...items.values()].some((item) => item.name === name)) {
      throw new ProblemError("name_taken", `the name "${name}" is taken`, [
        { pointer: "/name", message: "taken" },
      ]);
    }
  }

  #createNetwork(input: NetworkInput): Network {
    this.#requireFree(this.#networks, input.name);
    const network: Network = {
      ...this.#base(input.name, input.labels),
      driver: "bridge",
      scope: "local",
      subnets: (input.subnets ?? [{ subnet: "172.18.0.0/16" }]).map((item) => ({
        subnet: item.subnet,
        gateway: item.gateway ?? null,
        range: item.range ?? null,
        reserved: item.reserved ?? [],
      })),
      bridge: input.bridge ?? "nb-0123456789",
      mtu: input.mtu ?? 1500,
      ipv6: input.ipv6 ?? false,
      internal: input.internal ?? false,
      isolated: input.isolated ?? false,
      masquerade: input.masquerade ?? true,
      fastPath: input.fastPath ?? "auto",
      predefined: false,
    };
    this.#networks.set(network.id, network);
    this.events.emit("network.created", { kind: "network", id: network.id, name: network.name });
    return network;
  }

  #sandboxFor(input: EndpointInput): Sandbox {
    if (input.sandbox !== undefined)
      return find(this.#sandboxes, input.sandbox, "sandbox_not_found");
    const name = input.netns ?? `pid-${input.pid}`;
    const known = [...this.#sandboxes.values()].find((item) => item.netns === name);
    if (known !== undefined) return known;
    const sandbox: Sandbox = {
      ...this.#base(name.replaceAll("/", "_").replace(/^_+/, "")),
      mode: "private",
      netns: name,
      key: `4:${this.#made}`,
      endpoints: [],
    };
    this.#sandboxes.set(sandbox.id, sandbox);
    return sandbox;
  }

  #createEndpoint(input: EndpointInput): Endpoint {
    this.#requireFree(this.#endpoints, input.name);
    const network = find(this.#networks, input.network, "network_not_found");
    const sandbox = this.#sandboxFor(input);
    const endpoint: Endpoint = {
      ...this.#base(input.name, input.labels),
      networkId: network.id,
      network: network.name,
      sandboxId: sandbox.id,
      sandbox: sandbox.name,
      interface: input.interface ?? `eth${sandbox.endpoints.length}`,
      addresses: (input.addresses ?? ["172.18.0.2"]).map((address) => `${address}/24`),
      gateway: ["172.18.0.1"],
      mac: input.mac ?? "02:42:ac:12:00:02",
      mtu: input.mtu ?? network.mtu,
      aliases: input.aliases ?? [],
      defaultRoutePriority: input.defaultRoutePriority ?? 0,
      sourceCheck: input.sourceCheck ?? true,
      hostInterface: `nb${this.#made}`,
      ifindex: 10 + this.#made,
    };
    this.#endpoints.set(endpoint.id, endpoint);
    sandbox.endpoints.push({ id: endpoint.id, name: endpoint.name, interface: endpoint.interface });
    return endpoint;
  }

  #createPort(input: PortInput): Port {
    const endpoint = find(this.#endpoints, input.endpoint, "endpoint_not_found");
    const name = input.name ?? `${endpoint.name}-${input.hostPort}`;
    this.#requireFree(this.#ports, name);
    const taken = [...this.#ports.values()].find(({ hostPort }) => hostPort === input.hostPort);
    if (taken !== undefined)
      throw new ProblemError("port_in_use", `${input.hostPort} is held by port ${taken.name}`);
    const port: Port = {
      ...this.#base(name, input.labels),
      endpointId: endpoint.id,
      endpoint: endpoint.name,
      hostAddress: input.hostAddress ?? null,
      hostPort: input.hostPort,
      protocol: input.protocol ?? "tcp",
      containerPort: input.containerPort,
      from: input.from ?? [],
      bindings: [
        {
          hostAddress: input.hostAddress ?? "0.0.0.0",
          hostPort: Number(input.hostPort) || 49152,
          containerPort: Number(input.containerPort) || 80,
        },
      ],
      servedBy: [],
    };
    this.#ports.set(port.id, port);
    this.events.emit("port.created", { kind: "port", id: port.id, name: port.name });
    return port;
  }

  #removeEndpoint(endpoint: Endpoint): void {
    for (const port of this.#ports.values())
      if (port.endpointId === endpoint.id) this.#ports.delete(port.id);
    this.#endpoints.delete(endpoint.id);
    const sandbox = this.#sandboxes.get(endpoint.sandboxId);
    if (sandbox === undefined) return;
    sandbox.endpoints = sandbox.endpoints.filter(({ id }) => id !== endpoint.id);
    if (sandbox.endpoints.length === 0) this.#sandboxes.delete(sandbox.id);
  }

  #put<T extends Named>(items: Map<string, T>, name: string, create: () => T) {
    const object = [...items.values()].find((item) => item.name === name);
    return object ? { object, created: false } : { object: create(), created: true };
  }

  readonly networks = {
    list: () => [...this.#networks.values()],
    get: (ref: string) => find(this.#networks, ref, "network_not_found"),
    create: async (input: NetworkInput) => this.#createNetwork(input),
    put: async (input: NetworkInput) =>
      this.#put(this.#networks, input.name, () => this.#createNetwork(input)),
    patch: async (ref: string, patch: Parameters<Service["networks"]["patch"]>[1]) => {
      const network = find(this.#networks, ref, "network_not_found");
      if (patch.labels !== undefined) network.labels = patch.labels;
      if (patch.fastPath !== undefined) network.fastPath = patch.fastPath;
      network.revision += 1;
      return network;
    },
    remove: async (ref: string, { force }: { force: boolean }) => {
      const network = find(this.#networks, ref, "network_not_found");
      const endpoints = [...this.#endpoints.values()].filter(
        ({ networkId }) => networkId === network.id,
      );
      if (endpoints.length > 0 && !force)
        throw new ProblemError("network_in_use", `${network.name} has endpoints`);
      for (const endpoint of endpoints) this.#removeEndpoint(endpoint);
      this.#networks.delete(network.id);
    },
  };

  readonly sandboxes = {
    list: () => [...this.#sandboxes.values()],
    get: (ref: string) => find(this.#sandboxes, ref, "sandbox_not_found"),
  };

  readonly endpoints = {
    list: () => [...this.#endpoints.values()],
    get: (ref: string) => find(this.#endpoints, ref, "endpoint_not_found"),
    create: async (input: EndpointInput) => this.#createEndpoint(input),
    put: async (input: EndpointInput) =>
      this.#put(this.#endpoints, input.name, () => this.#createEndpoint(input)),
    patch: async (ref: string, patch: Parameters<Service["endpoints"]["patch"]>[1]) => {
      const endpoint = find(this.#endpoints, ref, "endpoint_not_found");
      if (patch.labels !== undefined) endpoint.labels = patch.labels;
      if (patch.aliases !== undefined) endpoint.aliases = patch.aliases;
      return endpoint;
    },
    remove: async (ref: string) =>
      this.#removeEndpoint(find(this.#endpoints, ref, "endpoint_not_found")),
  };

  readonly ports = {
    list: async () => [...this.#ports.values()],
    get: async (ref: string) => find(this.#ports, ref, "port_not_found"),
    create: async (input: PortInput) => this.#createPort(input),
    put: async (input: PortInput & { name: string }) =>
      this.#put(this.#ports, input.name, () => this.#createPort(input)),
    patch: async (ref: string, patch: Parameters<Service["ports"]["patch"]>[1]) => {
      const port = find(this.#ports, ref, "port_not_found");
      if (patch.endpoint !== undefined)
        port.endpoint = find(this.#endpoints, patch.endpoint, "endpoint_not_found").name;
      if (patch.hostPort !== undefined) port.hostPort = patch.hostPort;
      if (patch.from !== undefined) port.from = patch.from;
      if (patch.labels !== undefined) port.labels = patch.labels;
      return port;
    },
    remove: async (ref: string) => {
      this.#ports.delete(find(this.#ports, ref, "port_not_found").id);
    },
  };

  async apply(input: Parameters<Service["apply"]>[0], { dryRun }: { dryRun: boolean }) {
    const none = () => ({ networks: [], endpoints: [], ports: [] });
    const names = (items: { name: string }[] | undefined) => (items ?? []).map(({ name }) => name);
    const created = {
      networks: names(input.networks),
      endpoints: names(input.endpoints),
      ports: names(input.ports),
    };
    if (dryRun) return { dryRun, created, updated: none(), deleted: none(), unchanged: none() };
    const maps = [this.#networks, this.#sandboxes, this.#endpoints, this.#ports] as Map<
      string,
      unknown
    >[];
    const before = maps.map((map) => structuredClone([...map]));
    try {
      for (const item of input.networks ?? []) this.#createNetwork(item);
      for (const item of input.endpoints ?? []) this.#createEndpoint(item);
      for (const item of input.ports ?? []) this.#createPort(item);
    } catch (error) {
      for (const [index, map] of maps.entries()) {
        map.clear();
        for (const [key, value] of before[index] ?? []) map.set(key, value);
      }
      throw error;
    }
    return { dryRun, created, updated: none(), deleted: none(), unchanged: none() };
  }

  async connections() {
    return connections;
  }

  async datapathStatus() {
    if (this.failure !== null) throw this.failure;
    return { ...status, enabled: this.fastPath };
  }

  async setFastPath(enabled: boolean) {
    this.fastPath = enabled;
  }

  async rules() {
    return this.networks.list().map(({ id, name }) => ({
      kind: "network" as const,
      id,
      name,
      nftables: ["add element …"],
      iptables: ["-A …"],
    }));
  }

  ready() {
    return this.isReady;
  }

  async metricsSnapshot(): Promise<MetricsSnapshot> {
    return {
      networks: this.#networks.size,
      sandboxes: this.#sandboxes.size,
      publishedPorts: this.#ports.size,
      endpoints: [...this.#endpoints.values()].map((item) => ({
        endpoint: item.name,
        network: item.network,
        sandbox: item.sandbox,
        veth: item.hostInterface,
        ifindex: item.ifindex,
        interface: item.interface,
        traffic: { receiveBytes: 1500, receivePackets: 1, transmitBytes: 3000, transmitPackets: 2 },
        drops: [{ reason: "spoofed_source", packets: 4 }],
      })),
      connections: [{ protocol: "tcp", path: "fast", count: 1 }],
      reconcile: { runs: 1, failures: 0, repairs: 0 },
      fastPath: {
        enabled: true,
        hooks: [
          { role: "uplink", path: "fast", packets: 95 },
          { role: "uplink", path: "kernel", packets: 5 },
        ],
        flows: 3,
        maxFlows: 1024,
        learned: 9,
        expired: 4,
        invalidated: 1,
        passes: [{ reason: "fragment", packets: 2 }],
        connectHook: [{ reason: "served", calls: 1 }],
        programs: [{ name: "ingress", runTimeSeconds: 1.5, runCount: 10 }],
      },
      forwarder: {
        bindings: 2,
        sessions: 1,
        sessionsTotal: 5,
        bytesTotal: 1000,
        limits: {
          files: 4096,
          connections: { open: 1, capacity: 512, evicted: 3, refused: 4 },
          sessions: { open: 0, capacity: 1024, evicted: 0, refused: 0 },
        },
      },
    };
  }
}
