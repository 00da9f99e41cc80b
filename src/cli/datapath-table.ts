/** The fast path's state for people. */
import type { DatapathStatus } from "../network/datapath-status.ts";
import { printable, printLine, printTable } from "./output.ts";

const percent = (share: number | null): string =>
  share === null ? "-" : `${(share * 100).toFixed(1)} %`;

/** Where the fast path is off, one line each; nothing if it is nowhere off. */
export function offLines({ off }: DatapathStatus): string[] {
  return off.map(({ where, reason, rule }) =>
    printable(`${where}: ${reason}${rule === null ? "" : `: ${rule}`}`),
  );
}

/** What the holder carries in userspace, and whom it had no place for. */
export function forwarderLines({ forwarder }: DatapathStatus): string[] {
  if (forwarder === null) return ["the holder does not answer"];
  const { bindings, sessions, limits } = forwarder;
  const carried = `${sessions} connections and sessions on ${bindings} reserved ports`;
  if (limits === null) return [carried];
  const kinds = Object.entries({ connections: limits.connections, sessions: limits.sessions });
  return [
    `${carried}; room for ${kinds.map(([kind, { capacity }]) => `${capacity} ${kind}`).join(", ")}`,
    ...kinds
      .filter(([, { evicted, refused }]) => evicted + refused > 0)
      .map(
        ([kind, { evicted, refused }]) =>
          `was full: ${evicted} ${kind} ended for others, ${refused} refused`,
      ),
  ];
}

function section(heading: string, lines: string[]): void {
  if (lines.length === 0) return;
  printLine(heading);
  for (const line of lines) printLine(`  ${line}`);
}

/** `datapath show`. */
export function printDatapath(status: DatapathStatus): void {
  const { cache, kernel } = status;
  printLine(`Mode        ${status.mode} (${status.enabled ? "enabled" : "disabled"})`);
  printLine(`Kernel      ${kernel.release}`);
  printLine(
    `Flows       ${cache.flows} of ${cache.maxFlows}, ${percent(cache.hitRate)} of packets fast`,
  );
  printLine(
    `Since load  ${cache.learned} learned, ${cache.expired} expired, ${cache.invalidated} invalidated`,
  );
  section("Missing in this kernel", kernel.missing.map(printable));
  section("Forwarder", forwarderLines(status));
  section("Off where", offLines(status));
  section(
    "Uplinks",
    status.uplinks.map(({ name, addresses }) => printable(`${name}  ${addresses.join(", ")}`)),
  );
  section(
    "Host settings changed",
    status.sysctls.map(({ key, value, before }) => printable(`${key} = ${value} (was ${before})`)),
  );
  section("Accepts in forward chains", status.forwardAccepts.map(printable));
  section("Warnings", status.warnings.map(printable));
  if (status.programs.length === 0) return;
  printLine();
  printTable(
    ["PROGRAM", "ID", "RUNS", "RUN TIME", "ATTACHED"],
    status.programs.map((program) => [
      program.name,
      String(program.id),
      String(program.runCount),
      `${program.runTimeSeconds.toFixed(3)} s`,
      program.attached.join(", "),
    ]),
  );
  printCounters(
    "PASSED TO THE KERNEL PATH",
    status.passes.map((item) => [item.reason, item.packets]),
  );
  printCounters(
    "CONNECT HOOK",
    status.connectHook.map((item) => [item.reason, item.calls]),
  );
  printCounters(
    "DROPPED",
    status.drops.map((item) => [`${item.endpoint} ${item.reason}`, item.packets]),
  );
}

function printCounters(heading: string, counters: [string, number][]): void {
  const seen = counters.filter(([, count]) => count > 0);
  if (seen.length === 0) return;
  printLine();
  printTable(
    [heading, "COUNT"],
    seen.map(([reason, count]) => [reason, String(count)]),
  );
}
