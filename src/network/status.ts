/** What is read for `GET /v1/datapath` and for the metrics. */
import type { DeviceCounters, FastPathCounters, ProgramInfo } from "../datapath/types.ts";
import type { EndpointSample, HookSample, MetricsSnapshot } from "../metrics/source.ts";
import type { Core } from "./core.ts";
import type { DatapathStatus } from "./datapath-status.ts";
import { bridgeFiltering } from "./host.ts";
import type { EndpointRecord } from "./records.ts";

interface Counts {
  enabled: boolean;
  fastPath: FastPathCounters;
  devices: DeviceCounters[];
  programs: ProgramInfo[];
}

async function readCounts({ options }: Core): Promise<Counts | null> {
  const { datapath, fastPathLoaded, pinDirectory } = options;
  if (!fastPathLoaded) return null;
  const [enabled, fastPath, devices, programs] = await Promise.all([
    datapath.fastPathEnabled(pinDirectory),
    datapath.fastPathCounters(),
    datapath.deviceCounters(),
    datapath.listPrograms(),
  ]);
  return { enabled, fastPath, devices, programs };
}

function sum<T>(items: T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}

function cacheOf(counts: Counts | null): DatapathStatus["cache"] {
  const { flows, maxFlows, learned, expired, invalidated } = counts?.fastPath ?? {
    flows: 0,
    maxFlows: 0,
    learned: 0,
    expired: 0,
    invalidated: 0,
  };
  const fastPackets = sum(counts?.devices ?? [], (device) => device.fastPackets);
  const kernelPackets = sum(counts?.devices ?? [], (device) => device.kernelPackets);
  const all = fastPackets + kernelPackets;
  const hitRate = all === 0 ? null : fastPackets / all;
  const packets = { fastPackets, kernelPackets, hitRate };
  return { flows, maxFlows, learned, expired, invalidated, ...packets };
}

/** Endpoints by the ifindex of their host end. */
function byIfindex(core: Core): Map<number, EndpointRecord> {
  const { state, observed } = core;
  return new Map(
    state.endpoint.values().map((endpoint) => [observed.ifindexes.get(endpoint.id) ?? 0, endpoint]),
  );
}

function dropsOf(core: Core, counts: Counts | null): DatapathStatus["drops"] {
  const endpoints = byIfindex(core);
  return (counts?.devices ?? []).flatMap(({ ifindex, drops }) => {
    const endpoint = endpoints.get(ifindex);
    return endpoint ? drops.map((drop) => ({ endpoint: endpoint.name, ...drop })) : [];
  });
}

function warningsOf(core: Core): string[] {
  const { options, upkeep, uplinks } = core;
  const warnings = [...upkeep.failures];
  if (options.features.missing.length > 0)
    warnings.push(`no fast path on this kernel: ${options.features.missing.join("; ")}`);
  if (!options.fastPathLoaded)
    warnings.push(
      "without eBPF programs spoofed sources from containers are neither dropped nor counted",
    );
  if (uplinks.length === 0) warnings.push("no uplink was found: name it with --uplink");
  for (const name of options.uplinks)
    if (!uplinks.some((link) => link.name === name))
      warnings.push(`--uplink ${name}: there is no such Ethernet device that is up`);
  if (bridgeFiltering(options.datapath).ipv4)
    warnings.push(
      "bridge-nf-call-iptables is 1: traffic between endpoints of one network passes the host's rules too, and is slower",
    );
  return warnings;
}

export async function readDatapathStatus(core: Core): Promise<DatapathStatus> {
  const counts = await readCounts(core);
  const { features } = core.options;
  const { release, missing, fastPath, cgroup2, ...flags } = features;
  const enabled = counts?.enabled ?? false;
  return {
    mode: enabled && core.judge.allowsHost ? "fast" : "kernel",
    enabled,
    programs: counts?.programs ?? [],
    kernel: {
      release,
      features: { ...flags, cgroup2: cgroup2 !== "", fastPath },
      missing,
    },
    uplinks: core.uplinks.map(({ name, ifindex, addresses }) => ({ name, ifindex, addresses })),
    off: counts === null ? [] : core.judge.hindrances(),
    cache: cacheOf(counts),
    passes: counts?.fastPath.passes ?? [],
    drops: dropsOf(core, counts),
    connectHook: counts?.fastPath.connectHook ?? [],
    sysctls: core.settings.list(),
    forwardAccepts: core.forwardAccepts,
    forwarder: await forwarderOf(core),
    warnings: warningsOf(core),
  };
}

// --- metrics

type Traffic = EndpointSample["traffic"];

/** The programs see what passes the host end: what the sandbox sends arrives there. */
function countedByPrograms(device: DeviceCounters): Traffic {
  return {
    receiveBytes: device.toDeviceBytes,
    receivePackets: device.toDevicePackets,
    transmitBytes: device.fromDeviceBytes,
    transmitPackets: device.fromDevicePackets,
  };
}

/** Without programs the sandbox's own interfaces are asked. */
async function countedBySandboxes(core: Core): Promise<Map<string, Traffic>> {
  const counted = new Map<string, Traffic>();
  for (const sandbox of core.state.sandbox.values()) {
    if (sandbox.lostSince !== null) continue;
    const info = await core.options.datapath.inspectSandbox(sandbox.netns).catch(() => null);
    for (const endpoint of core.state.endpoint.of(sandbox.id)) {
      const device = info?.interfaces.find(({ name }) => name === endpoint.interface);
      if (!device) continue;
      const { receiveBytes, receivePackets, transmitBytes, transmitPackets } = device;
      counted.set(endpoint.id, { receiveBytes, receivePackets, transmitBytes, transmitPackets });
    }
  }
  return counted;
}

async function endpointSamples(core: Core, counts: Counts | null): Promise<EndpointSample[]> {
  const { state, observed } = core;
  const devices = new Map((counts?.devices ?? []).map((device) => [device.ifindex, device]));
  const bySandbox = counts === null ? await countedBySandboxes(core) : null;
  return state.endpoint.values().map((endpoint) => {
    const ifindex = observed.ifindexes.get(endpoint.id) ?? 0;
    const device = devices.get(ifindex);
    return {
      endpoint: endpoint.name,
      network: state.network.expect(endpoint.networkId).name,
      sandbox: state.sandbox.expect(endpoint.sandboxId).name,
      veth: endpoint.hostInterface,
      ifindex,
      interface: endpoint.interface,
      traffic: device ? countedByPrograms(device) : (bySandbox?.get(endpoint.id) ?? null),
      drops: device?.drops ?? [],
    };
  });
}

function hooksOf(core: Core, devices: DeviceCounters[]): HookSample[] {
  const endpoints = byIfindex(core);
  return (["endpoint", "uplink"] as const).flatMap((role) => {
    const own = devices.filter(({ ifindex }) => endpoints.has(ifindex) === (role === "endpoint"));
    return [
      { role, path: "fast" as const, packets: sum(own, ({ fastPackets }) => fastPackets) },
      { role, path: "kernel" as const, packets: sum(own, ({ kernelPackets }) => kernelPackets) },
    ];
  });
}

async function connectionCounts(core: Core): Promise<MetricsSnapshot["connections"]> {
  const counts = new Map<string, MetricsSnapshot["connections"][number]>();
  for (const { protocol, path } of await core.connections()) {
    const key = `${protocol} ${path}`;
    const known = counts.get(key) ?? { protocol, path, count: 0 };
    counts.set(key, { ...known, count: known.count + 1 });
  }
  return [...counts.values()];
}

async function forwarderOf(core: Core): Promise<MetricsSnapshot["forwarder"]> {
  const listing = await core.options.holder.inspect().catch(() => null);
  if (listing === null) return null;
  const { bindings, limits } = listing;
  return {
    bindings: bindings.length,
    sessions: sum(bindings, ({ active }) => active),
    sessionsTotal: sum(bindings, ({ connections }) => connections),
    bytesTotal: sum(bindings, ({ bytes }) => bytes),
    limits,
  };
}

export async function readMetrics(core: Core): Promise<MetricsSnapshot> {
  const counts = await readCounts(core);
  const { state, upkeep } = core;
  return {
    networks: state.network.size,
    sandboxes: state.sandbox.size,
    publishedPorts: state.port.size,
    endpoints: await endpointSamples(core, counts),
    connections: await connectionCounts(core),
    reconcile: { ...upkeep.counts },
    fastPath: counts && {
      enabled: counts.enabled,
      hooks: hooksOf(core, counts.devices),
      ...counts.fastPath,
      programs: counts.programs,
    },
    forwarder: await forwarderOf(core),
  };
}
