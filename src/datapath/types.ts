/**
 * The typed face of the datapath: all that TypeScript may ask of the kernel.
 *
 * Two things implement it: the native addon (`addon.ts`) and the fake of the API tests
 * (`fake.ts`). Addresses are strings in canonical form (`172.32.0.10`, `fd00::a`), subnets and
 * interface addresses are CIDR strings, times are seconds, sizes are bytes, unless a name says
 * otherwise. Every call that creates is atomic, every call that removes is idempotent.
 */

export type Family = "ipv4" | "ipv6";
export type Protocol = "tcp" | "udp" | "sctp";

// ---------------------------------------------------------------------------------------------
// Host links, addresses, routes, settings

/** A network device of the host's namespace. */
export interface LinkInfo {
  ifindex: number;
  name: string;
  /** rtnetlink kind: `bridge`, `veth`, `dummy` …; empty for hardware. */
  kind: string;
  /** Hardware type is Ethernet. */
  ethernet: boolean;
  loopback: boolean;
  mac: string;
  mtu: number;
  up: boolean;
  /** ifindex of the bridge it is a port of; 0 for none. */
  master: number;
  /** ifindex of the other end of a veth pair, in its own namespace; 0 for none. */
  peer: number;
  /** The other end is up, or the cable is in. */
  carrier: boolean;
  /** How often that changed. */
  carrierChanges: number;
  /** IFLA_IFALIAS; natbridge writes `natbridge:network:<id>` and `natbridge:endpoint:<id>`. */
  alias: string;
  /** `address/prefix`, all scopes. */
  addresses: string[];
  /** Names of queueing disciplines on it that are not the kernel's defaults, `kind handle`. */
  qdiscs: string[];
}

export interface RouteInfo {
  /** CIDR; `0.0.0.0/0` or `::/0` for a default route. */
  destination: string;
  gateway: string;
  interface: string;
  table: number;
}

export interface BridgeSpec {
  /** Device name, 15 bytes at most. */
  name: string;
  alias: string;
  mtu: number;
  /** Gateway addresses with prefix; none for an internal network without a gateway. */
  addresses: string[];
  /** A bridge that exists without our alias is an error (`exists`). */
}

/** One end of a veth pair in the host, the other as `interface` in a sandbox. */
export interface EndpointSpec {
  id: string;
  alias: string;
  hostInterface: string;
  bridge: string;
  /** Path of a network namespace: `/run/netns/web`, `/proc/123/ns/net`. */
  sandboxPath: string;
  interface: string;
  mac: string;
  mtu: number;
  /** `address/prefix`. */
  addresses: string[];
  /** Bridge port isolation (IFLA_BRPORT_ISOLATED): set for networks without inter-endpoint traffic. */
  isolatedPort: boolean;
}

export interface EndpointLink {
  /** ifindex of the host end, in the host's namespace. */
  ifindex: number;
  /** ifindex of the sandbox end, in the sandbox. */
  sandboxIfindex: number;
}

export interface DefaultRoute {
  gateway: string;
  /** Host end of the endpoint it leads over: the other end may have any name in the sandbox. */
  hostInterface: string;
}

export interface SandboxInfo {
  /** Its identity, `dev:inode:cookie`: an inode number that became free is given again, a cookie is not. */
  key: string;
  /** The path belongs to a process, and does not outlive it. */
  ofProcess: boolean;
  /** It is the host's own namespace. */
  isHost: boolean;
  interfaces: SandboxInterface[];
  /** natbridge's own. */
  defaultRoutes: SandboxRoute[];
}

export interface SandboxRoute {
  gateway: string;
  /** In the sandbox. */
  ifindex: number;
}

export interface ResolvedPid {
  /** `/proc/<pid>/ns/net`. */
  path: string;
  /** The namespace's identity, as in `SandboxInfo`. */
  key: string;
}

export interface SandboxInterface {
  name: string;
  ifindex: number;
  /** ifindex of the other end of a veth pair, in its own namespace; 0 for none. */
  peer: number;
  mac: string;
  mtu: number;
  up: boolean;
  addresses: string[];
  receiveBytes: number;
  receivePackets: number;
  transmitBytes: number;
  transmitPackets: number;
}

/** Something of the host changed; several changes of one kind may arrive as one event. */
export interface HostEvent {
  /** `elements`: of natbridge's own table; `program`: others' eBPF; `overrun`: notifications were lost. */
  kind:
    | "link"
    | "address"
    | "route"
    | "neighbour"
    | "qdisc"
    | "ruleset"
    | "elements"
    | "program"
    | "overrun";
  /** For link and address events: the device; 0 otherwise. */
  ifindex: number;
  removed: boolean;
}

// ---------------------------------------------------------------------------------------------
// nftables

/** All that the one nftables table `inet natbridge` must say. */
export interface FirewallSpec {
  /** natbridge turned their forwarding on: drop what is not of its own bridges. */
  strictForwarding: Family[];
  networks: FirewallNetwork[];
  ports: FirewallPort[];
}

export interface FirewallNetwork {
  bridge: string;
  subnets: { subnet: string; masquerade: boolean }[];
  internal: boolean;
  /** Endpoints of the network do not reach each other. */
  isolated: boolean;
}

export interface FirewallPort {
  protocol: Protocol;
  /** Host address; `0.0.0.0` or `::` for every address of that family. */
  hostAddress: string;
  hostPort: number;
  /**
   * Same family as `hostAddress`. Empty where only the forwarder can serve the port (a v6 host
   * address of a v4 endpoint): then the table only keeps out clients not in `from`, and those of
   * internal networks.
   */
  targetAddress: string;
  targetPort: number;
  /** Client subnets of either family that may connect; empty: all. The host itself always may. */
  from: string[];
}

export interface FirewallChange {
  /** Anything differed from the kernel's table. */
  changed: boolean;
  elementsAdded: number;
  elementsRemoved: number;
  /** The table itself was missing or its rules had been altered, and was written anew. */
  rebuilt: boolean;
}

/** An element of a set or map of the kernel's table, in nft's words. */
export interface FirewallElement {
  set: string;
  key: string;
  /** Empty in a set. */
  value: string;
}

/** A foreign filter table whose forward chain has policy drop, and our one accept in it. */
export interface ForwardAccept {
  /** `nft ip filter FORWARD`, `iptables-legacy filter FORWARD` … */
  chain: string;
  inserted: boolean;
}

// ---------------------------------------------------------------------------------------------
// conntrack

export interface Tuple {
  sourceAddress: string;
  sourcePort: number;
  destinationAddress: string;
  destinationPort: number;
}

/** One conntrack entry. */
export interface ConntrackEntry {
  id: number;
  protocol: Protocol | "icmp" | "other";
  original: Tuple;
  reply: Tuple;
  /** TCP/SCTP state in conntrack's words (`ESTABLISHED`); empty for UDP. */
  state: string;
  timeoutSeconds: number;
  assured: boolean;
  seenReply: boolean;
  destinationNat: boolean;
  sourceNat: boolean;
  mark: number;
}

/** Deletes entries for which every given field matches. */
export interface ConntrackFilter {
  protocol?: Protocol;
  /** Destination of the original direction (the published address); port 0 is never given. */
  originalDestinationAddress?: string;
  originalDestinationPort?: number;
  /** Source of the reply direction: the endpoint's address behind DNAT. */
  replySourceAddress?: string;
  replySourcePort?: number;
  /** Source of the original direction. */
  originalSourceAddress?: string;
  /** Only entries with (true) or without (false) destination NAT. */
  destinationNat?: boolean;
}

// ---------------------------------------------------------------------------------------------
// eBPF

/** What this kernel offers; `missing` says in words what keeps the fast path off. */
export interface KernelFeatures {
  release: string;
  bpffs: boolean;
  cgroup2: string;
  btf: boolean;
  tcx: boolean;
  conntrackLookup: boolean;
  cgroupHooks: boolean;
  sctpSockets: boolean;
  /** Other processes' sockets can be ended (CONFIG_INET_DIAG_DESTROY). */
  socketDestroy: boolean;
  fastPath: boolean;
  missing: string[];
}

export interface FastPathOptions {
  /** Folder under bpffs for this instance's pins. */
  pinDirectory: string;
  /** cgroup2 mount to attach the connect hooks to; empty: no connect hooks. */
  cgroupPath: string;
  maxFlows: number;
  maxDevices: number;
  maxPorts: number;
}

export interface LoadedFastPath {
  adopted: boolean;
  /** Why the connect hook stays off on this kernel; empty: it need not. */
  connectHookHindrance: string;
}

/** What the programs must know of a device they are attached to. */
export interface DeviceSpec {
  ifindex: number;
  role: "endpoint" | "uplink";
  mtu: number;
  /** Endpoint only: its MAC in the sandbox. */
  mac: string;
  /** Endpoint only: the addresses its frames may bear, without prefix, its own first; 8 at most. */
  addresses: string[];
  /** Endpoint only: ifindex of its bridge; 0 for an uplink. */
  link: number;
  /** Endpoint only: link-local addresses that are the bridge's; 4 at most. */
  reserved: string[];
  /**
   * Drop packets whose source is none of these addresses, nor a link-local one of its own: that of
   * its MAC, and those it was the first to use.
   */
  spoofCheck: boolean;
  /** Learn and use cached flows on it. */
  fastPath: boolean;
}

/** A DNAT entry for the connect hook. */
export interface PortEntry {
  protocol: "tcp" | "udp";
  hostAddress: string;
  hostPort: number;
  targetAddress: string;
  targetPort: number;
  /** Ids of the port and of the endpoint the target address is of: a socket sent there bears them. */
  portId: string;
  endpointId: string;
}

/** Ids of what there is, for the sockets that the connect hook has sent somewhere. */
export interface Standing {
  ports: string[];
  endpoints: string[];
}

/** How often the connect hook sent a host socket straight to a port's target. */
export interface PortCounters {
  protocol: "tcp" | "udp";
  hostAddress: string;
  hostPort: number;
  connects: number;
}

export interface DeviceCounters {
  ifindex: number;
  /** From the device into the host: for an endpoint, what its sandbox sent. */
  fromDevicePackets: number;
  fromDeviceBytes: number;
  /** To the device: for an endpoint, what its sandbox received. */
  toDevicePackets: number;
  toDeviceBytes: number;
  /** Of the packets from the device: those that a cached flow carried on. */
  fastPackets: number;
  /** Of the packets from the device: those left to the kernel path. */
  kernelPackets: number;
  drops: { reason: string; packets: number }[];
}

/** Counters of the whole fast path. */
export interface FastPathCounters {
  flows: number;
  maxFlows: number;
  learned: number;
  expired: number;
  invalidated: number;
  /** Why a packet that was looked at was not learned or not forwarded, by reason. */
  passes: { reason: string; packets: number }[];
  connectHook: { reason: string; calls: number }[];
  generation: number;
}

export interface ProgramInfo {
  name: string;
  id: number;
  runTimeSeconds: number;
  runCount: number;
  attached: string[];
}

/** Somebody else's eBPF program on a device. */
export interface ForeignProgram {
  ifindex: number;
  hook: "ingress" | "egress" | "xdp";
  id: number;
  /** Empty if it was gone before it could be asked. */
  name: string;
  /** It would not see the packets of cached flows, or changes them before they are learned. */
  hinders: boolean;
}

/** A cached flow, as the fast path holds it now. */
export interface FlowInfo {
  ifindex: number;
  outputIfindex: number;
  protocol: "tcp" | "udp";
  original: Tuple;
  translated: Tuple;
  packets: number;
  bytes: number;
  /** Seconds until its lease ends; negative: expired and kept for its next packet. */
  leaseSeconds: number;
}

// ---------------------------------------------------------------------------------------------

/** The whole of it. One instance per daemon, acting on the namespace the process runs in. */
export interface Datapath {
  // Host
  kernelFeatures(): Promise<KernelFeatures>;
  /** The kernel's cookie and inode of the namespace the process runs in. */
  hostNamespace(): { cookie: string; inode: number };
  /** Value of `/proc/sys/<key>`, e.g. `net/ipv4/ip_forward`; null where the kernel has no such key. */
  readSysctl(key: string): string | null;
  writeSysctl(key: string, value: string): void;
  listLinks(): Promise<LinkInfo[]>;
  listRoutes(): Promise<RouteInfo[]>;
  /** Routing rules and routes that ask for what differs between packets of one connection, in words. */
  listPacketRouting(): Promise<string[]>;
  /** Number of xfrm (IPsec) policies in force. */
  countXfrmPolicies(): Promise<number>;
  createBridge(spec: BridgeSpec): Promise<LinkInfo>;
  /** Mends what differs from `spec` (missing device, down, addresses, MTU); answers what it mended. */
  ensureBridge(spec: BridgeSpec): Promise<string[]>;
  createEndpoint(spec: EndpointSpec): Promise<EndpointLink>;
  ensureEndpoint(spec: EndpointSpec): Promise<string[]>;
  /** Tells the host and the bridge's other endpoints where its addresses are now; making it does so too. */
  announceEndpoint(spec: EndpointSpec): Promise<void>;
  /** Deletes a link of the host by name, if it is there; false if it was not. */
  deleteLink(name: string): Promise<boolean>;
  /** Replaces the default routes in a sandbox; null removes natbridge's. Answers what it changed. */
  setDefaultRoutes(
    sandboxPath: string,
    routes: { ipv4: DefaultRoute | null; ipv6: DefaultRoute | null },
  ): Promise<string[]>;
  /** @throws `not_found` if the path is gone, `invalid` if it is no network namespace. */
  inspectSandbox(path: string): Promise<SandboxInfo>;
  /** Where each path leads now, `dev:inode`; empty: to no network namespace. Quick, to be asked often. */
  glanceAtSandboxes(paths: string[]): Promise<string[]>;
  /**
   * The network namespace of a process, held by a pidfd while it is looked up. The path is good as
   * long as the process lives.
   * @throws `not_found` if there is no such process, `invalid` if `pid` is no process number.
   */
  resolvePid(pid: number): Promise<ResolvedPid>;
  /**
   * Meanwhile the table `inet natbridge` is restored when somebody removes it.
   *
   * @param standIn Whether another table keeps translating until it is restored.
   */
  watchHost(listener: (event: HostEvent) => void, standIn: boolean): void;
  stopWatching(): void;

  // nftables
  applyFirewall(spec: FirewallSpec): Promise<FirewallChange>;
  /** What the kernel's table holds at this moment; nothing without a table. */
  listFirewall(): Promise<FirewallElement[]>;
  removeFirewall(): Promise<void>;
  /** `nft -j list ruleset` without natbridge's own table, and iptables-legacy's rules as `legacy`. */
  readForeignRuleset(): Promise<{ nft: string; legacy: string }>;
  /** Puts the tagged accept at the end of every forward chain with policy drop. */
  ensureForwardAccepts(): Promise<ForwardAccept[]>;
  removeForwardAccepts(): Promise<void>;

  // conntrack
  listConntrack(): Promise<ConntrackEntry[]>;
  deleteConntrack(filters: ConntrackFilter[]): Promise<number>;

  // eBPF. All of these throw `unsupported` before loadFastPath().
  /** Loads the programs, or adopts what is pinned and replaces the programs atomically. */
  loadFastPath(options: FastPathOptions): Promise<LoadedFastPath>;
  /** Lets go; pins, links and traffic stay. */
  closeFastPath(): void;
  /** Detaches and unpins everything under `pinDirectory`; works without loadFastPath(). */
  unloadFastPath(pinDirectory: string): Promise<void>;
  /** Turns learning and use of flows on or off by the pinned configuration; works without loadFastPath(). */
  setFastPathEnabled(pinDirectory: string, enabled: boolean): Promise<void>;
  fastPathEnabled(pinDirectory: string): Promise<boolean>;
  /** Attaches (if need be) and describes a device. */
  setDevice(spec: DeviceSpec): Promise<void>;
  removeDevice(ifindex: number): Promise<void>;
  listDevices(): Promise<DeviceSpec[]>;
  /**
   * Programs of others on these devices, after natbridge's own took their places again among them.
   * From then on a change of them ends all leases, and `watchHost` tells of it as `program`.
   */
  followPrograms(ifindexes: number[]): Promise<ForeignProgram[]>;
  /** Makes the connect hook's ports exactly these. */
  setPorts(ports: PortEntry[]): Promise<void>;
  /**
   * Settles the host's sockets that the connect hook would not send to their target again. TCP is ended if
   * its port or its endpoint is gone. UDP is connected to what it had asked for anew, also where the hook
   * is off by now; where that can't be done and the target is another one, it is ended.
   */
  settleSockets(standing: Standing): Promise<{ followed: number; ended: number }>;
  /** Ends or settles all of them, as if nothing were there any more; works without loadFastPath(). */
  endSockets(pinDirectory: string): Promise<number>;
  /** Makes the host's own addresses, loopback left out, exactly these. */
  setLocalAddresses(addresses: string[]): Promise<void>;
  /** Connect hooks serve loopback and local addresses, or leave all to the forwarder and kernel path. */
  setConnectHook(enabled: boolean): Promise<void>;
  /** Ends every lease at once. */
  bumpGeneration(): Promise<void>;
  /** How often the host's rules may have changed: to be read before they are read. */
  rulesSeen(): number;
  /**
   * The rules as they were at that count are judged, and the devices told. False if they have changed
   * meanwhile, or nobody listens whether they do: then nothing is learned or used.
   */
  acceptVerdict(seen: number): boolean;
  /** Stands for the verdict for some seconds more. False if there is none to stand for. */
  renewVerdict(): boolean;
  /** Whether flows may be learned and used for all that is known of the host's rules. */
  verdictStands(): boolean;
  deviceCounters(): Promise<DeviceCounters[]>;
  portCounters(): Promise<PortCounters[]>;
  fastPathCounters(): Promise<FastPathCounters>;
  listFlows(): Promise<FlowInfo[]>;
  listPrograms(): Promise<ProgramInfo[]>;
}
