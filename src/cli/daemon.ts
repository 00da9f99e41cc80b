/** `natbridge daemon`: runs in the foreground until it is asked to stop. */
import type { Command } from "commander";
import { examples } from "./command.ts";
import { addDaemonFlags, type DaemonFlags, daemonOptions } from "./daemon-flags.ts";

/** Adds `daemon`. */
export function register(program: Command): void {
  addDaemonFlags(program.command("daemon"))
    .description("Run natbridge's daemon in the foreground")
    .addHelpText(
      "after",
      examples("daemon", "daemon --metrics-listen 127.0.0.1:9652 --uplink eth0"),
    )
    .action(async (flags: DaemonFlags) => {
      const options = daemonOptions(flags);
      const { runDaemon } = await import("../daemon.ts");
      await runDaemon(options);
    });
}
