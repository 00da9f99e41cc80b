/** `natbridge doctor`: looks at this host, with or without a daemon, and says what to do. */
import type { Command } from "commander";
import type { Datapath } from "../datapath/types.ts";
import { reasonOf } from "../reason.ts";
import { RefusedError } from "./client.ts";
import { clientOf, wantsJson } from "./command.ts";
import {
  checkConflicts,
  checkFirewall,
  checkKernel,
  checkSettings,
  checkTools,
  checkUser,
  type Finding,
} from "./doctor-checks.ts";
import { checkReversePath } from "./doctor-reverse-path.ts";
import { FailedError, UsageError } from "./errors.ts";
import { openLocalDatapath } from "./local-datapath.ts";
import { printable, printJson, printLine } from "./output.ts";

async function checkDaemon(command: Command): Promise<Finding> {
  try {
    const answer = await clientOf(command).send("GET", "/readyz", {});
    await answer.text();
    return { check: "daemon", level: "ok", message: "running and ready", fix: "" };
  } catch (error) {
    if (error instanceof UsageError) throw error;
    const message = reasonOf(error);
    const level = error instanceof RefusedError ? "warning" : "note";
    return { check: "daemon", level, message, fix: "" };
  }
}

/** A check that cannot be made is a finding like any other. */
async function guarded(
  check: string,
  look: () => Finding[] | Promise<Finding[]>,
): Promise<Finding[]> {
  try {
    return await look();
  } catch (error) {
    const message = reasonOf(error);
    return [{ check, level: "warning", message: `could not be looked at: ${message}`, fix: "" }];
  }
}

async function checkHost(): Promise<Finding[]> {
  let datapath: Datapath;
  try {
    datapath = await openLocalDatapath();
  } catch (error) {
    const message = reasonOf(error);
    return [{ check: "addon", level: "problem", message, fix: "npm run build:addon" }];
  }
  return [
    ...(await guarded("kernel", () => checkKernel(datapath))),
    ...(await guarded("settings", () => checkSettings(datapath))),
    ...(await guarded("reverse path", () => checkReversePath(datapath))),
    ...(await guarded("firewall", () => checkFirewall(datapath))),
    ...(await guarded("conflicts", () => checkConflicts(datapath))),
  ];
}

const marks = { ok: "ok", note: "note", warning: "WARNING", problem: "PROBLEM" } as const;

function print(findings: Finding[]): void {
  const width = Math.max(...findings.map(({ check }) => check.length));
  for (const { check, level, message, fix } of findings) {
    printLine(`${marks[level].padEnd(8)} ${check.padEnd(width)}  ${printable(message)}`);
    if (fix !== "") printLine(`${"".padEnd(8)} ${"".padEnd(width)}  -> ${fix}`);
  }
}

/** Adds `doctor`. */
export function register(program: Command): void {
  program
    .command("doctor")
    .description("Check kernel, tools, settings, firewall and conflicts; say what to do")
    .action(async (_flags: object, command: Command) => {
      const findings = [
        checkUser(),
        await checkDaemon(command),
        ...checkTools(),
        ...(await checkHost()),
      ];
      if (wantsJson(command)) printJson(findings);
      else print(findings);
      const problems = findings.filter(({ level }) => level === "problem");
      if (problems.length === 0) return;
      throw new FailedError(
        `natbridge cannot run here: ${problems.map(({ check }) => check).join(", ")}`,
      );
    });
}
