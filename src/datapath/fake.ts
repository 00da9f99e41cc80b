/**
 * A host in memory for tests of what stands above the datapath: devices, routes, settings, sandboxes,
 * and what the kernel was last told of rules, ports and devices. It carries no packet.
 */
import { DatapathError } from "./error.ts";
import type {
  BridgeSpec,
  ConntrackEntry,
  ConntrackFilter,
  Datapath,
  DefaultRoute,
  DeviceCounters,
  DeviceSpec,
  EndpointLink,
  EndpointSpec,
  FastPathCounters,
  FastPathOptions,
  FirewallChange,
  FirewallElement,
  FirewallSpec,
  FlowInfo,
  ForeignProgram,
  ForwardAccept,
  HostEvent,
  KernelFeatures,
  LinkInfo,
  LoadedFastPath,
  PortCounters,
  PortEntry,
  ProgramInfo,
  ResolvedPid,
  RouteInfo,
  SandboxInfo,
  SandboxInterface,
  Standing,
} from "./types.ts";

type Routes = { ipv4: DefaultRoute | null; ipv6: DefaultRoute | null };
export interface FakeSandbox extends SandboxInfo {
  routes: Routes;
}

const features: KernelFeatures = {
  release: "6.6.0-fake",
  bpffs: true,
  cgroup2: "/sys/fs/cgroup",
  btf: true,
  tcx: true,
  conntrackLookup: true,
  cgroupHooks: true,
  sctpSockets: true,
  socketDestroy: true,
  fastPath: true,
  missing: [],
};

const noTraffic = { receiveBytes: 0, receivePackets: 0, transmitBytes: 0, transmitPackets: 0 };
const noFirewall: FirewallSpec = { strictForwarding: [], networks: [], ports: [] };

function makeLink(link: Partial<LinkInfo> & { ifindex: number; name: string }): LinkInfo {
  return {
    kind: "",
    ethernet: true,
    loopback: false,
    mac: "02:00:00:00:00:01",
    mtu: 1500,
    up: true,
    master: 0,
    peer: 0,
    carrier: true,
    carrierChanges: 1,
    alias: "",
    addresses: [],
    qdiscs: [],
    ...link,
  };
}

export class FakeDatapath implements Datapath {
  readonly features: KernelFeatures = { ...features };
  readonly links = new Map<string, LinkInfo>();
  routes: RouteInfo[] = [];
  readonly sysctls = new Map([
    ["net/ipv4/ip_forward", "0"],
    ["net/ipv6/conf/all/forwarding", "0"],
    ["net/netfilter/nf_conntrack_tcp_be_liberal", "0"],
    ["net/bridge/bridge-nf-call-iptables", "0"],
    ["net/ipv4/ip_local_port_range", "32768\t60999"],
  ]);
  /** By path. */
  readonly sandboxes = new Map<string, FakeSandbox>();
  firewall: FirewallSpec = noFirewall;
  /** What the kernel says its table holds: whatever a test wants it to say. */
  held: FirewallElement[] = [];
  conntrack: ConntrackEntry[] = [];
  foreignPrograms: ForeignProgram[] = [];
  packetRouting: string[] = [];
  #foreign = { nft: '{"nftables":[]}', legacy: "" };
  #xfrmPolicies = 0;
  #rulesSeen = 0;
  #rulesJudged = -1;
  readonly devices = new Map<number, DeviceSpec>();
  ports: PortEntry[] = [];
  localAddresses: string[] = [];
  connectHook = false;
  connectHookHindrance = "";
  /** TCP connections of the host that the hook sent to a target: what they rely on. */
  connections: { portId: string; endpointId: string }[] = [];
  enabled = true;
  loaded = false;
  flows: FlowInfo[] = [];
  counters: DeviceCounters[] = [];
  portCounts: PortCounters[] = [];
  #nextIfindex = 10;
  #nextKey = 4026532000;
  #listener: ((event: HostEvent) => void) | null = null;
  /** Host ends whose bridge port is isolated. */
  readonly isolatedPorts = new Set<string>();
  /** By host end: takes the sandbox end away. */
  readonly #peers = new Map<string, () => void>();
  readonly #failures = new Map<string, DatapathError>();

  constructor() {
    this.addLink({ name: "lo", ethernet: false, loopback: true, addresses: ["127.0.0.1/8"] });
    this.addLink({ name: "eth0", addresses: ["198.51.100.1/24", "2001:db8:1::1/64"] });
  }

  // --- for tests

  addLink(link: Partial<LinkInfo> & { name: string }): LinkInfo {
    const made = makeLink({ ifindex: this.#nextIfindex++, ...link });
    this.links.set(made.name, made);
    return made;
  }

  addSandbox(path: string): FakeSandbox {
    const sandbox: FakeSandbox = {
      key: `4:${this.#nextKey}:${this.#nextKey++}`,
      ofProcess: path.startsWith("/proc/"),
      isHost: false,
      interfaces: [],
      defaultRoutes: [],
      routes: { ipv4: null, ipv6: null },
    };
    this.sandboxes.set(path, sandbox);
    return sandbox;
  }

  /** The next call of this method throws. */
  failNext(method: keyof Datapath, error: DatapathError): void {
    this.#failures.set(method, error);
  }

  /** Tells the listener of `watchHost` of a change. */
  announce(kind: HostEvent["kind"]): void {
    this.#listener?.({ kind, ifindex: 0, removed: false });
  }

  get foreign(): { nft: string; legacy: string } {
    return this.#foreign;
  }

  set foreign(foreign: { nft: string; legacy: string }) {
    this.#foreign = foreign;
    this.changeRules();
  }

  get xfrmPolicies(): number {
    return this.#xfrmPolicies;
  }

  set xfrmPolicies(count: number) {
    this.#xfrmPolicies = count;
    this.changeRules();
  }

  /** The host's rules may have changed, as the datapath hears of it. */
  changeRules(): void {
    this.#rulesSeen += 1;
  }

  #mayFail(method: keyof Datapath): void {
    const error = this.#failures.get(method);
    this.#failures.delete(method);
    if (error) throw error;
  }

  // --- host

  async kernelFeatures(): Promise<KernelFeatures> {
    return { ...this.features };
  }

  hostNamespace(): { cookie: string; inode: number } {
    return { cookie: "1", inode: 4026531840 };
  }

  readSysctl(key: string): string | null {
    return this.sysctls.get(key) ?? null;
  }

  writeSysctl(key: string, value: string): void {
    this.#mayFail("writeSysctl");
    if (!this.sysctls.has(key)) throw new DatapathError("not_found", `no sysctl ${key}`);
    this.sysctls.set(key, value);
  }

  async listLinks(): Promise<LinkInfo[]> {
    this.#mayFail("listLinks");
    return [...this.links.values()].map((link) => ({ ...link }));
  }

  async listRoutes(): Promise<RouteInfo[]> {
    return [...this.routes];
  }

  async listPacketRouting(): Promise<string[]> {
    return [...this.packetRouting];
  }

  async countXfrmPolicies(): Promise<number> {
    return this.xfrmPolicies;
  }

  async createBridge(spec: BridgeSpec): Promise<LinkInfo> {
    this.#mayFail("createBridge");
    await this.ensureBridge(spec);
    const link = this.links.get(spec.name);
    if (!link) throw new DatapathError("io", `no ${spec.name}`);
    return link;
  }

  async ensureBridge(spec: BridgeSpec): Promise<string[]> {
    const { name, alias, mtu, addresses } = spec;
    const found = this.links.get(name);
    if (found && found.alias !== alias)
      throw new DatapathError("exists", `${name} is there and is not natbridge's`);
    if (!found) {
      this.addLink({ name, alias, mtu, kind: "bridge", addresses: [...addresses] });
      return ["made"];
    }
    const mended: string[] = [];
    if (!found.up) mended.push("set up");
    if (found.mtu !== mtu) mended.push("MTU set");
    const missing = addresses.filter((address) => !found.addresses.includes(address));
    mended.push(...missing.map((address) => `${address} added`));
    Object.assign(found, { up: true, mtu, addresses: [...found.addresses, ...missing] });
    return mended;
  }

  async createEndpoint(spec: EndpointSpec): Promise<EndpointLink> {
    this.#mayFail("createEndpoint");
    const bridge = this.links.get(spec.bridge);
    if (!bridge) throw new DatapathError("not_found", `no bridge ${spec.bridge}`);
    const sandbox = this.#sandbox(spec.sandboxPath);
    if (this.links.has(spec.hostInterface))
      throw new DatapathError("exists", `${spec.hostInterface} is there`);
    if (sandbox.interfaces.some(({ name }) => name === spec.interface))
      throw new DatapathError("exists", `${spec.interface} is there in the sandbox`);
    const link = this.addLink({
      name: spec.hostInterface,
      alias: spec.alias,
      kind: "veth",
      mtu: spec.mtu,
      master: bridge.ifindex,
    });
    this.#isolate(spec);
    const end = this.#sandboxEnd(spec, link.ifindex);
    link.peer = end.ifindex;
    sandbox.interfaces.push(end);
    this.#peers.set(spec.hostInterface, () => {
      sandbox.interfaces = sandbox.interfaces.filter((device) => device !== end);
    });
    return { ifindex: link.ifindex, sandboxIfindex: end.ifindex };
  }

  #sandboxEnd(spec: EndpointSpec, peer: number): SandboxInterface {
    const { interface: name, mac, mtu, addresses } = spec;
    const ifindex = this.#nextIfindex++;
    return { name, ifindex, peer, mac, mtu, up: true, addresses: [...addresses], ...noTraffic };
  }

  #isolate({ hostInterface, isolatedPort }: EndpointSpec): void {
    if (isolatedPort) this.isolatedPorts.add(hostInterface);
    else this.isolatedPorts.delete(hostInterface);
  }

  async ensureEndpoint(spec: EndpointSpec): Promise<string[]> {
    this.#mayFail("ensureEndpoint");
    const link = this.links.get(spec.hostInterface);
    const { interfaces } = this.#sandbox(spec.sandboxPath);
    if (link?.alias === spec.alias && !interfaces.some(({ peer }) => peer === link.ifindex))
      await this.deleteLink(spec.hostInterface);
    else if (link?.alias === spec.alias) {
      const mended = link.up ? [] : ["set up"];
      link.up = true;
      if (this.isolatedPorts.has(spec.hostInterface) !== spec.isolatedPort)
        mended.push("port isolation set");
      this.#isolate(spec);
      return mended;
    }
    const sandbox = this.#sandbox(spec.sandboxPath);
    sandbox.interfaces = sandbox.interfaces.filter(({ name }) => name !== spec.interface);
    await this.createEndpoint(spec);
    return ["made again"];
  }

  async announceEndpoint(_spec: EndpointSpec): Promise<void> {}

  async deleteLink(name: string): Promise<boolean> {
    this.#mayFail("deleteLink");
    const link = this.links.get(name);
    if (!link) return false;
    this.links.delete(name);
    this.devices.delete(link.ifindex);
    this.isolatedPorts.delete(name);
    this.#peers.get(name)?.();
    this.#peers.delete(name);
    return true;
  }

  async setDefaultRoutes(path: string, routes: Routes): Promise<string[]> {
    this.#mayFail("setDefaultRoutes");
    const sandbox = this.#sandbox(path);
    const isSame = JSON.stringify(sandbox.routes) === JSON.stringify(routes);
    sandbox.routes = routes;
    return isSame ? [] : ["default routes set"];
  }

  #sandbox(path: string): FakeSandbox {
    const sandbox = this.sandboxes.get(path);
    if (!sandbox) throw new DatapathError("not_found", `${path}: no such namespace`);
    return sandbox;
  }

  async inspectSandbox(path: string): Promise<SandboxInfo> {
    this.#mayFail("inspectSandbox");
    const { key, ofProcess, isHost, interfaces, routes } = this.#sandbox(path);
    const defaultRoutes = [routes.ipv4, routes.ipv6].flatMap((route) =>
      route === null
        ? []
        : { gateway: route.gateway, ifindex: this.links.get(route.hostInterface)?.peer ?? 0 },
    );
    const devices = interfaces.map((device) => ({ ...device }));
    return { key, ofProcess, isHost, interfaces: devices, defaultRoutes };
  }

  async glanceAtSandboxes(paths: string[]): Promise<string[]> {
    const keys = paths.map((path) => this.sandboxes.get(path)?.key ?? "");
    return keys.map((key) => key.split(":").slice(0, 2).join(":"));
  }

  async resolvePid(pid: number): Promise<ResolvedPid> {
    const path = `/proc/${pid}/ns/net`;
    return { path, key: this.#sandbox(path).key };
  }

  watchHost(listener: (event: HostEvent) => void): void {
    this.#listener = listener;
  }

  stopWatching(): void {
    this.#listener = null;
  }

  // --- nftables and conntrack

  async applyFirewall(spec: FirewallSpec): Promise<FirewallChange> {
    this.#mayFail("applyFirewall");
    const changed = JSON.stringify(spec) !== JSON.stringify(this.firewall);
    this.firewall = structuredClone(spec);
    return { changed, elementsAdded: 0, elementsRemoved: 0, rebuilt: false };
  }

  async listFirewall(): Promise<FirewallElement[]> {
    this.#mayFail("listFirewall");
    return [...this.held];
  }

  async removeFirewall(): Promise<void> {
    this.firewall = noFirewall;
  }

  async readForeignRuleset(): Promise<{ nft: string; legacy: string }> {
    this.#mayFail("readForeignRuleset");
    return { ...this.foreign };
  }

  async ensureForwardAccepts(): Promise<ForwardAccept[]> {
    this.#mayFail("ensureForwardAccepts");
    return [];
  }

  async removeForwardAccepts(): Promise<void> {}

  async listConntrack(): Promise<ConntrackEntry[]> {
    return [...this.conntrack];
  }

  async deleteConntrack(filters: ConntrackFilter[]): Promise<number> {
    this.#mayFail("deleteConntrack");
    const before = this.conntrack.length;
    this.conntrack = this.conntrack.filter((entry) => !filters.some((one) => matches(one, entry)));
    return before - this.conntrack.length;
  }

  // --- eBPF

  async loadFastPath(_options: FastPathOptions): Promise<LoadedFastPath> {
    this.#mayFail("loadFastPath");
    const adopted = this.loaded;
    this.loaded = true;
    return { adopted, connectHookHindrance: this.connectHookHindrance };
  }

  closeFastPath(): void {}

  async unloadFastPath(_pinDirectory: string): Promise<void> {
    this.loaded = false;
    this.devices.clear();
  }

  async setFastPathEnabled(_pinDirectory: string, enabled: boolean): Promise<void> {
    this.enabled = enabled;
  }

  async fastPathEnabled(_pinDirectory: string): Promise<boolean> {
    return this.enabled;
  }

  async setDevice(spec: DeviceSpec): Promise<void> {
    this.#mayFail("setDevice");
    this.devices.set(spec.ifindex, structuredClone(spec));
  }

  async removeDevice(ifindex: number): Promise<void> {
    this.devices.delete(ifindex);
  }

  async listDevices(): Promise<DeviceSpec[]> {
    return [...this.devices.values()];
  }

  async followPrograms(ifindexes: number[]): Promise<ForeignProgram[]> {
    this.#mayFail("followPrograms");
    return this.foreignPrograms.filter(({ ifindex }) => ifindexes.includes(ifindex));
  }

  async setPorts(ports: PortEntry[]): Promise<void> {
    this.#mayFail("setPorts");
    this.ports = structuredClone(ports);
  }

  async settleSockets({
    ports,
    endpoints,
  }: Standing): Promise<{ followed: number; ended: number }> {
    this.#mayFail("settleSockets");
    const before = this.connections.length;
    this.connections = this.connections.filter(
      ({ portId, endpointId }) => ports.includes(portId) && endpoints.includes(endpointId),
    );
    return { followed: 0, ended: before - this.connections.length };
  }

  async endSockets(_pinDirectory: string): Promise<number> {
    return this.connections.splice(0).length;
  }

  async setLocalAddresses(addresses: string[]): Promise<void> {
    this.localAddresses = [...addresses];
  }

  async setConnectHook(enabled: boolean): Promise<void> {
    this.connectHook = enabled;
  }

  async bumpGeneration(): Promise<void> {}

  rulesSeen(): number {
    return this.#rulesSeen;
  }

  acceptVerdict(seen: number): boolean {
    this.#rulesJudged = seen;
    return this.verdictStands();
  }

  renewVerdict(): boolean {
    return this.verdictStands();
  }

  verdictStands(): boolean {
    return this.#rulesSeen === this.#rulesJudged;
  }

  async deviceCounters(): Promise<DeviceCounters[]> {
    return [...this.counters];
  }

  async portCounters(): Promise<PortCounters[]> {
    return [...this.portCounts];
  }

  async fastPathCounters(): Promise<FastPathCounters> {
    return {
      flows: this.flows.length,
      maxFlows: 1024,
      learned: this.flows.length,
      expired: 0,
      invalidated: 0,
      passes: [],
      connectHook: [],
      generation: 1,
    };
  }

  async listFlows(): Promise<FlowInfo[]> {
    return [...this.flows];
  }

  async listPrograms(): Promise<ProgramInfo[]> {
    return [];
  }
}

function matches(filter: ConntrackFilter, entry: ConntrackEntry): boolean {
  const facts: [unknown, unknown][] = [
    [filter.protocol, entry.protocol],
    [filter.originalDestinationAddress, entry.original.destinationAddress],
    [filter.originalDestinationPort, entry.original.destinationPort],
    [filter.replySourceAddress, entry.reply.sourceAddress],
    [filter.replySourcePort, entry.reply.sourcePort],
    [filter.originalSourceAddress, entry.original.sourceAddress],
    [filter.destinationNat, entry.destinationNat],
  ];
  return facts.every(([wanted, found]) => wanted === undefined || wanted === found);
}
