/** What is measured, and on which topologies. */
import { type CaseName, connections, latency, loopback, type Measure, tcp, udp } from "./load.ts";
import type { Variant } from "./topologies.ts";

export interface Load {
  name: string;
  measure: Measure;
  variants: Variant[];
  loopback: boolean;
  /** Its figures differ by a tenth from second to second, more than the variants do. */
  wanders?: boolean;
}

const machines: Variant[] = ["hop", "routed", "kernel", "fast"];

export const loads: Load[] = [
  { name: "tcp", measure: tcp, variants: machines, loopback: false },
  { name: "udp64", measure: udp, variants: machines, loopback: false },
  {
    name: "connections",
    measure: connections,
    variants: machines,
    loopback: false,
    wanders: true,
  },
  { name: "latency", measure: latency, variants: machines, loopback: false },
  {
    name: "loopback",
    measure: loopback,
    variants: ["direct", "docker-proxy", "kernel", "fast"],
    loopback: true,
  },
];

/** How each case is told. */
export const cases: Record<CaseName, { title: string; unit: string; lowerIsBetter: boolean }> = {
  tcp: { title: "TCP throughput", unit: "Gbit/s", lowerIsBetter: false },
  "cpu-per-gb": { title: "CPU time, TCP", unit: "s/GB", lowerIsBetter: true },
  udp64: { title: "UDP, 64-byte payload", unit: "Mpkt/s", lowerIsBetter: false },
  "cpu-per-mpkt": { title: "CPU time, UDP", unit: "s/Mpkt", lowerIsBetter: true },
  connections: { title: "New connections", unit: "1/s", lowerIsBetter: false },
  "latency-p50": { title: "Request latency, p50", unit: "µs", lowerIsBetter: true },
  "latency-p99": { title: "Request latency, p99", unit: "µs", lowerIsBetter: true },
  "loopback-rps": { title: "Requests by 127.0.0.1", unit: "1/s", lowerIsBetter: false },
};

export const caseNames = Object.keys(cases).filter((name): name is CaseName => name in cases);
