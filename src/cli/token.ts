/** `natbridge token create` */
import { type Command, Option } from "commander";
import { createToken, type Scope } from "../api/tokens.ts";
import { nameSchema } from "../network/model.ts";
import { examples, wantsJson } from "./command.ts";
import { UsageError } from "./errors.ts";
import { printJson, printLine } from "./output.ts";

/** Adds `token` and its verb. */
export function register(program: Command): void {
  const token = program.command("token").description("Make tokens for the TCP listener");
  token
    .command("create <name>")
    .description("Print a new token and its line for the daemon's --tokens file")
    .addOption(
      new Option("--scope <scope>", "what it may do").choices(["read", "write"]).default("read"),
    )
    .addHelpText("after", examples("token create grafana --scope read"))
    .action((name: string, flags: { scope: Scope }, command: Command) => {
      const parsed = nameSchema.safeParse(name);
      if (!parsed.success) {
        throw new UsageError(`name "${name}": ${parsed.error.issues[0]?.message ?? "not valid"}`);
      }
      const { secret, line } = createToken(name, flags.scope);
      if (wantsJson(command)) return printJson({ token: secret, line });
      printLine(`Token, shown only now:      ${secret}`);
      printLine(`Line for the --tokens file: ${line}`);
    });
}
