/** `natbridge datapath on|off|show` */
import type { Command } from "commander";
import { datapathStatusSchema } from "../network/datapath-status.ts";
import { clientOf, wantsJson } from "./command.ts";
import { printDatapath } from "./datapath-table.ts";
import { FailedError } from "./errors.ts";
import { openLocalDatapath, pinDirectory } from "./local-datapath.ts";
import { printJson, printLine } from "./output.ts";

async function turn(enabled: boolean, command: Command): Promise<void> {
  const status = await clientOf(command).write(datapathStatusSchema, "PATCH", "/v1/datapath", {
    fastPath: enabled,
  });
  if (wantsJson(command)) printJson(status);
  else printLine(`fast path ${status.enabled ? "on" : "off"}, mode ${status.mode}`);
}

/** Writes the pinned switch itself, for the time when no daemon answers. */
async function turnOffHere(command: Command): Promise<void> {
  const datapath = await openLocalDatapath();
  const directory = pinDirectory(datapath);
  await datapath.setFastPathEnabled(directory, false);
  if (wantsJson(command)) printJson({ enabled: false, daemon: false });
  else
    printLine(
      "fast path off; no daemon answers, so the next one turns it on again unless started with --no-fast-path",
    );
}

/** `--host` names a daemon elsewhere: then nothing is done here in its place. */
function mayActHere(command: Command): boolean {
  const { host = process.env["NATBRIDGE_HOST"] } = command.optsWithGlobals<{ host?: string }>();
  return host === undefined || host.startsWith("unix://");
}

/** Adds `datapath` and its verbs. */
export function register(program: Command): void {
  const datapath = program.command("datapath").description("Show and switch the fast path");
  datapath
    .command("on")
    .description("Turn the fast path on, live")
    .action((_flags: object, command: Command) => turn(true, command));
  datapath
    .command("off")
    .description("Turn the fast path off, live; works without the daemon too")
    .action(async (_flags: object, command: Command) => {
      try {
        await turn(false, command);
      } catch (error) {
        if (!(error instanceof FailedError) || !mayActHere(command)) throw error;
        await turnOffHere(command);
      }
    });
  datapath
    .command("show")
    .description("Show what the fast path does, and where and why it is off")
    .action(async (_flags: object, command: Command) => {
      const status = await clientOf(command).get(datapathStatusSchema, "/v1/datapath");
      if (wantsJson(command)) printJson(status);
      else printDatapath(status);
    });
}
