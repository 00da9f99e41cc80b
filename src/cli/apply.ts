/** `natbridge apply -f FILE` */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { parse as parseYaml } from "yaml";
import { type ApplyResult, applyResultSchema } from "../network/model.ts";
import { reasonOf } from "../reason.ts";
import { clientOf, examples, wantsJson } from "./command.ts";
import { UsageError } from "./errors.ts";
import { printJson, printLine } from "./output.ts";

function readText(path: string): string {
  try {
    return readFileSync(path === "-" ? 0 : path, "utf8");
  } catch (error) {
    throw new UsageError(`--file ${path}: ${reasonOf(error)}`);
  }
}

/** JSON is YAML too, but JSON.parse says better where it is broken. */
function parseText(text: string): unknown {
  if (text.trimStart().startsWith("{")) return JSON.parse(text);
  const document: unknown = parseYaml(text, { maxAliasCount: 100 });
  // YAML can refer to itself, JSON cannot: this throws then.
  JSON.stringify(document);
  return document;
}

/** @throws UsageError saying where `text` is neither JSON nor YAML. */
export function parseDocument(text: string, path: string): unknown {
  try {
    return parseText(text);
  } catch (error) {
    throw new UsageError(`--file ${path} is neither JSON nor YAML: ${reasonOf(error)}`);
  }
}

const verbs = ["created", "updated", "deleted", "unchanged"] as const;
const kinds = ["networks", "endpoints", "ports"] as const;

function print(result: ApplyResult): void {
  for (const verb of verbs) {
    for (const kind of kinds) {
      for (const name of result[verb][kind]) {
        if (verb !== "unchanged") printLine(`${kind.slice(0, -1)} ${name} ${verb}`);
      }
    }
  }
  const count = (verb: (typeof verbs)[number]) =>
    kinds.reduce((sum, kind) => sum + result[verb][kind].length, 0);
  const summary = verbs.map((verb) => `${count(verb)} ${verb}`).join(", ");
  printLine(result.dryRun ? `dry run, nothing was changed: ${summary}` : summary);
}

/** Adds `apply`. */
export function register(program: Command): void {
  program
    .command("apply")
    .description("Make networks, endpoints and ports as a file says; all or nothing")
    .requiredOption("-f, --file <file>", "JSON or YAML; - reads standard input")
    .option("--dry-run", "say what would change, and change nothing")
    .addHelpText("after", examples("apply -f web.yaml --dry-run", "apply -f - < web.json"))
    .action(async (flags: { file: string; dryRun?: boolean }, command: Command) => {
      const body = parseDocument(readText(flags.file), flags.file);
      const query = flags.dryRun ? { dryRun: "true" } : {};
      const client = clientOf(command);
      const result = await client.write(
        applyResultSchema,
        "POST",
        "/v1/apply",
        body ?? null,
        query,
      );
      if (wantsJson(command)) printJson(result);
      else print(result);
    });
}
