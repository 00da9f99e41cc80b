/**
 * natbridge's metrics: read from the core when scraped, except the API's own latencies. Names
 * follow Prometheus' conventions: base units, `_total` for counters, no address or port in a label.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { ConnectionCounts } from "../runtime/admission.ts";
import { runtime, version } from "../version.ts";
import type { EndpointSample, MetricsSnapshot, MetricsSource } from "./source.ts";

export interface Metrics {
  readonly contentType: string;
  /** All metrics in the text format, freshly read. */
  scrape(): Promise<string>;
  /** One answered API request. `route` is the pattern, never the path. */
  observeRequest(method: string, route: string, code: number, seconds: number): void;
  /** Adds a listener's connections, read at each scrape. */
  watchListener(listener: string, read: () => ConnectionCounts): void;
}

const unwantedDefaults = [
  // They end with `_total` and are gauges, which `promtool check metrics` refuses.
  "nodejs_active_handles_total",
  "nodejs_active_requests_total",
  "nodejs_active_resources_total",
  // Measured by waking up a hundred times a second, which costs the host's packets 4 % of their rate;
  // `nodejs_eventloop_lag_seconds` is measured when it is asked for.
  ...["min", "max", "mean", "stddev", "p50", "p90", "p99"].map(
    (which) => `nodejs_eventloop_lag_${which}_seconds`,
  ),
];
/** The longest timer there is: prom-client has no switch for what it measures by waking up. */
const neverMilliseconds = 2 ** 31 - 1;

type Labels = Record<string, string>;

/** Everything that `update` sets anew from a snapshot: a series not set in it vanishes. */
class Sampled {
  readonly #registry: Registry;
  readonly #metrics = new Map<string, { metric: Counter | Gauge; labelled: boolean }>();

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  counter(name: string, help: string, labelNames: string[] = []): void {
    const metric = new Counter({ name, help, labelNames, registers: [this.#registry] });
    this.#metrics.set(name, { metric, labelled: labelNames.length > 0 });
  }

  gauge(name: string, help: string, labelNames: string[] = []): void {
    const metric = new Gauge({ name, help, labelNames, registers: [this.#registry] });
    this.#metrics.set(name, { metric, labelled: labelNames.length > 0 });
  }

  /** Forgets all series; one without labels would come back as 0, so it is removed too. */
  clear(): void {
    for (const { metric, labelled } of this.#metrics.values()) {
      metric.reset();
      if (!labelled) metric.remove();
    }
  }

  /** Adds to a series, so that two samples of one label set sum up. */
  add(name: string, value: number, labels: Labels = {}): void {
    this.#metrics.get(name)?.metric.inc(labels, value);
  }
}

const traffic = [
  [
    "receiveBytes",
    "natbridge_endpoint_receive_bytes_total",
    "Bytes the endpoint's sandbox received, Ethernet header included; a GSO packet counts once with all its bytes",
  ],
  [
    "receivePackets",
    "natbridge_endpoint_receive_packets_total",
    "Packets the endpoint's sandbox received; a GSO packet counts once",
  ],
  [
    "transmitBytes",
    "natbridge_endpoint_transmit_bytes_total",
    "Bytes the endpoint's sandbox sent, Ethernet header included; a GSO packet counts once with all its bytes",
  ],
  [
    "transmitPackets",
    "natbridge_endpoint_transmit_packets_total",
    "Packets the endpoint's sandbox sent; a GSO packet counts once",
  ],
] as const;

function define(sampled: Sampled): void {
  for (const [, name, help] of traffic) sampled.counter(name, help, ["endpoint", "network"]);
  sampled.gauge("natbridge_endpoint_info", "Where an endpoint is", [
    "endpoint",
    "network",
    "sandbox",
    "veth",
    "ifindex",
    "interface",
  ]);
  sampled.counter("natbridge_packets_dropped_total", "Packets natbridge dropped", [
    "endpoint",
    "reason",
  ]);
  sampled.gauge("natbridge_networks", "Networks, predefined ones included");
  sampled.gauge("natbridge_sandboxes", "Sandboxes");
  sampled.gauge("natbridge_endpoints", "Endpoints");
  sampled.gauge("natbridge_published_ports", "Published ports");
  sampled.gauge("natbridge_connections", "Live conntrack entries of natbridge's traffic", [
    "protocol",
    "path",
  ]);
  sampled.counter(
    "natbridge_reconcile_runs_total",
    "Reconciliations of the kernel with the wanted state",
  );
  sampled.counter("natbridge_reconcile_failures_total", "Reconciliations that ended with an error");
  sampled.counter(
    "natbridge_reconcile_repairs_total",
    "Things found changed behind natbridge's back and repaired",
  );
  sampled.gauge("natbridge_fast_path_enabled", "1 while the fast path is on");
  sampled.counter(
    "natbridge_datapath_packets_total",
    "Packets that arrived from the devices of a role, by the path that carried them on",
    ["role", "path"],
  );
  sampled.counter(
    "natbridge_datapath_passes_total",
    "Packets the fast path left to the kernel path, by reason",
    ["reason"],
  );
  sampled.counter("natbridge_connect_hook_calls_total", "Calls of the connect hook, by outcome", [
    "reason",
  ]);
  sampled.gauge("natbridge_flow_cache_entries", "Learned flows in the cache");
  sampled.gauge("natbridge_flow_cache_limit", "Flows the cache can hold");
  sampled.counter("natbridge_flow_cache_learned_total", "Flows learned from the kernel path");
  sampled.counter("natbridge_flow_cache_expired_total", "Leases that ended");
  sampled.counter(
    "natbridge_flow_cache_invalidated_total",
    "Flows dropped before their lease ended",
  );
  sampled.counter(
    "natbridge_bpf_program_run_seconds_total",
    "Run time of an eBPF program, while kernel.bpf_stats_enabled is 1",
    ["program"],
  );
  sampled.counter(
    "natbridge_bpf_program_runs_total",
    "Runs of an eBPF program, while kernel.bpf_stats_enabled is 1",
    ["program"],
  );
  sampled.gauge(
    "natbridge_http_connections",
    "Connections that a listener of the daemon has open",
    ["listener"],
  );
  sampled.counter(
    "natbridge_http_connections_turned_away_total",
    "Connections that a listener ended or refused: evicted for a new one, refused where none was idle, or too slow",
    ["listener", "reason"],
  );
  sampled.gauge("natbridge_forwarder_bindings", "Host ports the holder has reserved");
  sampled.gauge("natbridge_forwarder_sessions", "Sessions the forwarder carries now");
  sampled.counter("natbridge_forwarder_sessions_total", "Sessions the forwarder has carried");
  sampled.counter(
    "natbridge_forwarder_bytes_total",
    "Bytes the forwarder has carried, both directions",
  );
  sampled.gauge(
    "natbridge_forwarder_places",
    "Connections and UDP sessions the holder has room for",
    ["kind"],
  );
  sampled.gauge("natbridge_forwarder_places_taken", "Of them: taken", ["kind"]);
  sampled.counter(
    "natbridge_forwarder_evicted_total",
    "Connections and UDP sessions that the full holder ended for others",
    ["kind"],
  );
  sampled.counter(
    "natbridge_forwarder_refused_total",
    "Connections and UDP sessions that found the holder full",
    ["kind"],
  );
}

function updateEndpoint(sampled: Sampled, sample: EndpointSample): void {
  const { endpoint, network, sandbox, veth, ifindex } = sample;
  const labels = { endpoint, network };
  if (sample.traffic !== null) {
    for (const [key, name] of traffic) sampled.add(name, sample.traffic[key], labels);
  }
  sampled.add("natbridge_endpoint_info", 1, {
    ...labels,
    sandbox,
    veth,
    ifindex: String(ifindex),
    interface: sample.interface,
  });
  for (const { reason, packets } of sample.drops) {
    sampled.add("natbridge_packets_dropped_total", packets, { endpoint, reason });
  }
}

function updateFastPath(sampled: Sampled, fastPath: MetricsSnapshot["fastPath"]): void {
  sampled.add("natbridge_fast_path_enabled", fastPath?.enabled ? 1 : 0);
  if (fastPath === null) return;
  for (const { role, path, packets } of fastPath.hooks) {
    sampled.add("natbridge_datapath_packets_total", packets, { role, path });
  }
  for (const { reason, packets } of fastPath.passes) {
    sampled.add("natbridge_datapath_passes_total", packets, { reason });
  }
  for (const { reason, calls } of fastPath.connectHook) {
    sampled.add("natbridge_connect_hook_calls_total", calls, { reason });
  }
  sampled.add("natbridge_flow_cache_entries", fastPath.flows);
  sampled.add("natbridge_flow_cache_limit", fastPath.maxFlows);
  sampled.add("natbridge_flow_cache_learned_total", fastPath.learned);
  sampled.add("natbridge_flow_cache_expired_total", fastPath.expired);
  sampled.add("natbridge_flow_cache_invalidated_total", fastPath.invalidated);
  for (const { name: program, runTimeSeconds, runCount } of fastPath.programs) {
    sampled.add("natbridge_bpf_program_run_seconds_total", runTimeSeconds, { program });
    sampled.add("natbridge_bpf_program_runs_total", runCount, { program });
  }
}

function update(sampled: Sampled, snapshot: MetricsSnapshot): void {
  sampled.clear();
  sampled.add("natbridge_networks", snapshot.networks);
  sampled.add("natbridge_sandboxes", snapshot.sandboxes);
  sampled.add("natbridge_endpoints", snapshot.endpoints.length);
  sampled.add("natbridge_published_ports", snapshot.publishedPorts);
  for (const sample of snapshot.endpoints) updateEndpoint(sampled, sample);
  for (const { protocol, path, count } of snapshot.connections) {
    sampled.add("natbridge_connections", count, { protocol, path });
  }
  sampled.add("natbridge_reconcile_runs_total", snapshot.reconcile.runs);
  sampled.add("natbridge_reconcile_failures_total", snapshot.reconcile.failures);
  sampled.add("natbridge_reconcile_repairs_total", snapshot.reconcile.repairs);
  updateFastPath(sampled, snapshot.fastPath);
  if (snapshot.forwarder !== null) updateForwarder(sampled, snapshot.forwarder);
}

type Forwarder = NonNullable<MetricsSnapshot["forwarder"]>;

function updateForwarder(sampled: Sampled, forwarder: Forwarder): void {
  sampled.add("natbridge_forwarder_bindings", forwarder.bindings);
  sampled.add("natbridge_forwarder_sessions", forwarder.sessions);
  sampled.add("natbridge_forwarder_sessions_total", forwarder.sessionsTotal);
  sampled.add("natbridge_forwarder_bytes_total", forwarder.bytesTotal);
  if (forwarder.limits === null) return;
  const { connections, sessions } = forwarder.limits;
  for (const [kind, places] of Object.entries({ connections, sessions })) {
    sampled.add("natbridge_forwarder_places", places.capacity, { kind });
    sampled.add("natbridge_forwarder_places_taken", places.open, { kind });
    sampled.add("natbridge_forwarder_evicted_total", places.evicted, { kind });
    sampled.add("natbridge_forwarder_refused_total", places.refused, { kind });
  }
}

function updateListener(sampled: Sampled, listener: string, counts: ConnectionCounts): void {
  sampled.add("natbridge_http_connections", counts.open, { listener });
  for (const [reason, count] of Object.entries(counts.turned))
    sampled.add("natbridge_http_connections_turned_away_total", count, { listener, reason });
}

/** Metrics with a registry of their own, so that two apps in one process do not collide. */
export function createMetrics(source: MetricsSource): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: neverMilliseconds });
  for (const name of unwantedDefaults) registry.removeSingleMetric(name);
  new Gauge({
    name: "natbridge_build_info",
    help: "Version and runtime of the daemon",
    labelNames: ["version", "runtime"],
    registers: [registry],
  }).set({ version, runtime }, 1);
  const requests = new Histogram({
    name: "natbridge_api_request_duration_seconds",
    help: "Time from an API request's arrival to the head of its answer",
    labelNames: ["method", "route", "code"],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    registers: [registry],
  });
  const sampled = new Sampled(registry);
  define(sampled);
  const listeners = new Map<string, () => ConnectionCounts>();
  const scrape = async (): Promise<string> => {
    update(sampled, await source.metricsSnapshot());
    for (const [listener, read] of listeners) updateListener(sampled, listener, read());
    return registry.metrics();
  };
  let running: Promise<string> | null = null;
  return {
    contentType: registry.contentType,
    // Two scrapes at once share one reading: the second must not clear what the first is writing.
    scrape: () => {
      running ??= scrape().finally(() => {
        running = null;
      });
      return running;
    },
    observeRequest: (method, route, code, seconds) =>
      requests.observe({ method, route, code: String(code) }, seconds),
    watchListener: (listener, read) => void listeners.set(listener, read),
  };
}
