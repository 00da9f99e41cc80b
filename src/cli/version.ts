/** `natbridge version` */
import type { Command } from "commander";
import { runtime, version } from "../version.ts";
import { wantsJson } from "./command.ts";
import { printJson, printLine } from "./output.ts";

/** Adds `version`. */
export function register(program: Command): void {
  program
    .command("version")
    .description("Show natbridge's version")
    .action((_flags: object, command: Command) => {
      if (wantsJson(command)) printJson({ version, runtime });
      else printLine(`natbridge ${version} (${runtime})`);
    });
}
