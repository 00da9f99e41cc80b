/** `natbridge uninstall`: leaves the host as natbridge found it. */
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Command } from "commander";
import { socketName } from "../runtime/daemon-options.ts";
import { sendHttp } from "../runtime/http-client.ts";
import { wantsJson } from "./command.ts";
import { addPlaces } from "./daemon-flags.ts";
import { FailedError } from "./errors.ts";
import { printJson, printLine } from "./output.ts";

async function requireNoDaemon(socketPath: string): Promise<void> {
  if (!existsSync(socketPath)) return;
  try {
    const answer = await sendHttp(
      { kind: "unix", socketPath },
      { method: "GET", path: "/healthz", timeoutMilliseconds: 3000 },
    );
    await answer.text();
  } catch {
    return;
  }
  throw new FailedError(`a daemon runs at ${socketPath}: stop it first, it would put all back`);
}

/** Adds `uninstall`. */
export function register(program: Command): void {
  addPlaces(program.command("uninstall"))
    .description("Remove all that natbridge made, and restore the host's settings")
    .action(async (flags: { stateDir: string; runDir: string }, command: Command) => {
      const [stateDir, runDir] = [resolve(flags.stateDir), resolve(flags.runDir)];
      await requireNoDaemon(join(runDir, socketName));
      const { uninstall } = await import("../uninstall.ts");
      const done = await uninstall({ stateDir, runDir });
      if (wantsJson(command)) printJson({ done });
      else for (const line of done) printLine(line);
    });
}
