/** The results as JSON, as a table, and as the page `bench/README.md`. */
import { availableParallelism, cpus, hostname, release, totalmem } from "node:os";
import { caseNames, cases } from "./cases.ts";
import type { CaseName } from "./load.ts";
import { median } from "./statistics.ts";
import type { Variant } from "./topologies.ts";

export interface Result {
  case: CaseName;
  variant: Variant;
  unit: string;
  median: number;
  runs: number[];
}

export interface Report {
  machine: { cpu: string; cores: number; memoryGigabytes: number };
  kernel: string;
  runtime: string;
  date: string;
  bridgeNfCallIptables: number;
  secondsPerRun: number;
  results: Result[];
  /** Of the packets natbridge saw on the variant `fast`: the share that a cached flow carried. */
  fastShare: { load: string; share: number }[];
  /** What was left out or went wrong, in words. */
  notes: string[];
}

export const machine = () => ({
  cpu: cpus()[0]?.model.trim() || `unknown (${hostname()})`,
  cores: availableParallelism(),
  memoryGigabytes: Math.round(totalmem() / 2 ** 30),
});

export const kernel = (): string => release();

/** Runs by case and variant, as they were measured. */
export class Collected {
  readonly #runs = new Map<string, Result>();

  add(name: CaseName, variant: Variant, value: number): void {
    const key = `${name} ${variant}`;
    const before = this.#runs.get(key)?.runs ?? [];
    const runs = [...before, value];
    const { unit } = cases[name];
    this.#runs.set(key, { case: name, variant, unit, median: rounded(median(runs)), runs });
  }

  results(): Result[] {
    const all = [...this.#runs.values()];
    return caseNames.flatMap((name) => all.filter((result) => result.case === name));
  }
}

const rounded = (value: number) => Number(value.toPrecision(5));

/** How many times better than the kernel path; null where there is no such figure. */
export function ratio(results: Result[], result: Result): number | null {
  const base = results.find((it) => it.case === result.case && it.variant === "kernel");
  if (base === undefined || base === result || base.median === 0 || result.median === 0)
    return null;
  return cases[result.case].lowerIsBetter
    ? base.median / result.median
    : result.median / base.median;
}

const cell = (value: number) =>
  value >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);

/** Rows of the table: case, then each variant's median and its ratio to the kernel path. */
export function rows(results: Result[]): string[][] {
  return caseNames.flatMap((name) => {
    const of = results.filter((result) => result.case === name);
    if (of.length === 0) return [];
    const { title, unit } = cases[name];
    const cells = of.map((result) => {
      const times = ratio(results, result);
      const tail = times === null ? "" : ` (${times.toFixed(2)} ×)`;
      return `${result.variant} ${cell(result.median)}${tail}`;
    });
    return [[`${title}, ${unit}`, ...cells]];
  });
}

export function table(report: Report): string {
  const lines = rows(report.results);
  const width = Math.max(...lines.flat().map((text) => text.length)) + 2;
  return lines
    .map((line) =>
      line
        .map((text) => text.padEnd(width))
        .join("")
        .trimEnd(),
    )
    .join("\n");
}

/** One line on what it was measured on. */
export function setting(report: Report): string {
  const { cpu, cores, memoryGigabytes } = report.machine;
  return `${cpu}, ${cores} cores, ${memoryGigabytes} GB; Linux ${report.kernel}; bridge-nf-call-iptables ${report.bridgeNfCallIptables}; ${report.runtime}`;
}

const proofLines = (report: Report) =>
  report.fastShare.map(
    ({ load, share }) =>
      `- ${load}: ${(share * 100).toFixed(1)} % of the packets went the fast path`,
  );

/** `bench/README.md`. */
export function page(report: Report): string {
  const body = rows(report.results).map(
    ([title, ...cells]) => `| ${title} | ${cells.join(" | ")} |`,
  );
  const notes = report.notes.map((note) => `- ${note}`);
  return `# Benchmark

Made by \`npm run bench\` on ${report.date.slice(0, 10)}: ${setting(report)}.

![Ratios to the kernel path](chart.svg)

Medians of interleaved runs of ${report.secondsPerRun} s (new connections: more runs of 1 s, because that
rate wanders from second to second); in brackets how many times better than natbridge's own kernel
path. Everything is veth between network namespaces of one machine, so the load generators
share its cores with the datapath. Every run is in [results.json](results.json).

| case | | | | |
|---|---|---|---|---|
${body.join("\n")}

- **hop**: client and web server joined by one veth pair, the limit of all others
- **routed**: client, host, bridge, web server; routes only, no rule, no NAT, no conntrack
- **kernel**: natbridge's published port with the fast path off
- **fast**: natbridge's published port with the fast path on
- **direct**, **docker-proxy**: from the host to the container's address, and through Debian's
  docker-proxy on 127.0.0.1; there **kernel** is natbridge's userspace forwarder and **fast** its
  connect hook

TCP is one iperf3 connection. UDP counts packets that the receiver got. A new connection is connect,
request, response, close by the server, with eight clients. Latency is one request after another on a
kept connection; requests by 127.0.0.1 are on eight kept connections. CPU time is that of the whole
machine, load generators and interrupts included.
${report.fastShare.length === 0 ? "" : `\nWhich path was really taken:\n\n${proofLines(report).join("\n")}\n`}${
  notes.length === 0 ? "" : `\nNotes:\n\n${notes.join("\n")}\n`
}`;
}
