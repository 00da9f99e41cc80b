/**
 * `npm run bench`: natbridge's paths side by side with what they stand between. Each load gets fresh
 * namespaces; its variants take turns, so that a slow minute of the machine hits all of them.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { runtime } from "../../src/version.ts";
import { type Load, loads } from "./cases.ts";
import { chart } from "./chart.ts";
import { buildLoadProgram, type CaseName, type Figures } from "./load.ts";
import { cleanUp, removeLeftovers } from "./namespaces.ts";
import { type Options, parseOptions, usage } from "./options.ts";
import { Collected, kernel, machine, page, type Report, setting, table } from "./report.ts";
import { build, dockerProxy, type Topology, type Variant } from "./topologies.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

function options(): Options {
  try {
    return parseOptions(process.argv.slice(2));
  } catch (error) {
    console.error(`bench: ${error instanceof Error ? error.message : error}\n${usage}`);
    process.exit(2);
  }
}

/** Also after Ctrl-C nothing stays: namespaces, processes, pins. */
function cleanUpOnSignals(): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      console.error(`bench: ${signal}: cleaning up`);
      cleanUp().finally(() => process.exit(130));
    });
  }
}

function wantedVariants(load: Load, { variants }: Options, notes: string[]): Variant[] {
  return load.variants.filter((variant) => {
    if (variants.length > 0 && !variants.includes(variant)) return false;
    if (variant !== "docker-proxy" || dockerProxy !== undefined) return true;
    notes.push("docker-proxy was left out: it is not installed (Debian package docker.io)");
    return false;
  });
}

function record(collected: Collected, variant: Variant, figures: Figures): void {
  for (const [name, value] of Object.entries(figures)) {
    collected.add(name as CaseName, variant, value);
  }
}

/** A rate that wanders from second to second is compared in many short turns. */
function schedule(load: Load, { repeats, secondsPerRun }: Options) {
  return load.wanders
    ? { turns: 2 * repeats * secondsPerRun, seconds: 1 }
    : { turns: repeats, seconds: secondsPerRun };
}

/** All variants of one load, each in its own namespaces, by turns. */
async function runLoad(load: Load, options: Options, report: Report, collected: Collected) {
  const topologies: { variant: Variant; topology: Topology }[] = [];
  for (const variant of wantedVariants(load, options, report.notes)) {
    const topology = await build(variant, { ...options, loopback: load.loopback });
    topologies.push({ variant, topology });
  }
  const { turns, seconds } = schedule(load, options);
  for (let turn = 0; turn < turns; turn++) {
    // Every variant begins a turn once, so that none always follows the same one.
    const shift = turn % Math.max(1, topologies.length);
    for (const { variant, topology } of [
      ...topologies.slice(shift),
      ...topologies.slice(0, shift),
    ]) {
      const figures = await load.measure(topology, seconds);
      record(collected, variant, figures);
      console.error(`${load.name} ${turn + 1}/${turns} ${variant}: ${summary(figures)}`);
    }
  }
  for (const { variant, topology } of topologies) await prove(load, variant, topology, report);
}

const summary = (figures: Figures) =>
  Object.entries(figures)
    .map(([name, value]) => `${name} ${value.toPrecision(4)}`)
    .join(", ");

/** A figure called `fast` is one only if the fast path carried its packets. */
async function prove(load: Load, variant: Variant, topology: Topology, report: Report) {
  const status = await topology.status();
  if (status === null) return;
  if (variant === "kernel" && status.cache.fastPackets > 0) {
    report.notes.push(`${load.name}: the variant kernel had packets on the fast path`);
  }
  if (variant !== "fast") return;
  for (const { where, reason } of status.off) {
    report.notes.push(`${load.name}: the fast path was off at ${where}: ${reason}`);
  }
  if (!load.loopback) {
    report.fastShare.push({ load: load.name, share: status.cache.hitRate ?? 0 });
  }
}

function write(report: Report, { json }: Options): void {
  const text = `${JSON.stringify(report, null, 2)}\n`;
  if (json !== null) {
    writeFileSync(json, text);
    return;
  }
  const folder = join(root, "bench");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "results.json"), text);
  writeFileSync(join(folder, "chart.svg"), chart(report));
  writeFileSync(join(folder, "README.md"), page(report));
}

async function main(): Promise<void> {
  const wanted = options();
  cleanUpOnSignals();
  removeLeftovers();
  buildLoadProgram();
  const collected = new Collected();
  const report: Report = {
    machine: machine(),
    kernel: kernel(),
    runtime,
    date: new Date().toISOString(),
    bridgeNfCallIptables: wanted.bridgeNfCallIptables,
    secondsPerRun: wanted.secondsPerRun,
    results: [],
    fastShare: [],
    notes: [],
  };
  try {
    for (const load of loads) {
      if (wanted.loads.length > 0 && !wanted.loads.includes(load.name)) continue;
      await runLoad(load, wanted, report, collected);
      await cleanUp();
    }
  } finally {
    await cleanUp();
  }
  report.results = collected.results();
  write(report, wanted);
  console.log(`${setting(report)}\n\n${table(report)}`);
  for (const { load, share } of report.fastShare) {
    console.log(`${load}: ${(share * 100).toFixed(1)} % of the packets on the fast path`);
  }
  for (const note of report.notes) console.log(`note: ${note}`);
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
