/** Runs one command line and turns whatever happens into an exit code: 0 done, 1 failed, 2 misused. */
import { Command, CommanderError } from "commander";
import { RefusedError } from "./client.ts";
import { FailedError, UsageError } from "./errors.ts";
import { findNoun, nouns } from "./nouns.ts";

/** Each noun's file is read only when its noun is used, or when help needs them all. */
export async function createProgram(argv: string[]): Promise<Command> {
  const program = new Command("natbridge")
    .description("Container networking for a Linux host, with a learned eBPF fast path")
    .option(
      "-H, --host <address>",
      "where the daemon listens: unix:///path, http://… or https://… (NATBRIDGE_HOST)",
    )
    .option("--json", "print JSON")
    .exitOverride()
    .showHelpAfterError("(--help shows the command's arguments and flags)")
    .configureOutput({ writeErr: (text) => process.stderr.write(text) })
    .addHelpText(
      "after",
      "\nExit status: 0 done, 1 failed, 2 misused.\nEnvironment: NATBRIDGE_HOST, NATBRIDGE_TOKEN, NATBRIDGE_CA (certificates trusted for https).",
    );
  const noun = findNoun(argv);
  const wanted = noun === null ? nouns : nouns.filter(({ name }) => name === noun);
  for (const { load } of wanted) (await load())(program);
  return program;
}

/** `400` says that what was asked makes no sense: the caller's mistake. */
function exitCode(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  if (error instanceof UsageError) return 2;
  if (error instanceof RefusedError) return error.status === 400 ? 2 : 1;
  if (error instanceof AggregateError) return Math.max(...error.errors.map(exitCode));
  return 1;
}

function messages(error: unknown): string[] {
  if (error instanceof AggregateError) return error.errors.flatMap(messages);
  // Commander has already printed its own.
  if (error instanceof CommanderError) return [];
  if (error instanceof RefusedError) return [`${error.message} (${error.code})`];
  if (error instanceof UsageError || error instanceof FailedError) return [error.message];
  if (error instanceof Error) return [error.message];
  return [String(error)];
}

/**
 * @param argv What follows the program's name.
 * @returns The exit code.
 */
export async function run(argv: string[]): Promise<number> {
  try {
    const program = await createProgram(argv);
    await program.parseAsync(argv, { from: "user" });
    return 0;
  } catch (error) {
    for (const message of messages(error)) process.stderr.write(`natbridge: ${message}\n`);
    return exitCode(error);
  }
}
