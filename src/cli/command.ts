/** What the nouns' files share: the global flags, collecting flags, labels and filters. */
import { type Command, Option } from "commander";
import { Client, defaultHost, type Query } from "./client.ts";
import { UsageError } from "./errors.ts";

interface GlobalOptions {
  host?: string;
  json?: boolean;
}

/** One noun: adds its verbs to the program. */
export type Register = (program: Command) => void;

export function wantsJson(command: Command): boolean {
  return command.optsWithGlobals<GlobalOptions>().json === true;
}

/** A client for `--host`, NATBRIDGE_HOST or the default socket. */
export function clientOf(command: Command): Client {
  const host =
    command.optsWithGlobals<GlobalOptions>().host ?? process.env["NATBRIDGE_HOST"] ?? defaultHost;
  return new Client({ host, token: process.env["NATBRIDGE_TOKEN"] });
}

/** A flag that may be given several times. */
export function repeatable(flags: string, description: string): Option {
  return new Option(flags, description)
    .argParser<string[]>((value, before) => [...before, value])
    .default([], "none");
}

/** `Option.argParser` for a whole number. */
export function integer(flag: string, min: number, max: number): (value: string) => number {
  return (value) => {
    const number = Number(value);
    if (/^-?\d+$/.test(value) && number >= min && number <= max) return number;
    throw new UsageError(`${flag} ${value}: give a whole number from ${min} to ${max}`);
  };
}

/** `--label key=value` as an object. */
export function parseLabels(flags: string[], flag = "--label"): Record<string, string> {
  const labels: Record<string, string> = Object.create(null);
  for (const text of flags) {
    const at = text.indexOf("=");
    const key = at < 0 ? text : text.slice(0, at);
    if (key === "") throw new UsageError(`${flag} ${text}: give key=value`);
    labels[key] = at < 0 ? "" : text.slice(at + 1);
  }
  return labels;
}

/** `--filter key=value` as the query of a list call; `name` and `id` are looked at here. */
export interface Filter {
  query: Query;
  matches: (item: { id: string; name: string }) => boolean;
}

export function parseFilters(flags: string[], keys: string[]): Filter {
  const values = new Map<string, string[]>();
  for (const text of flags) {
    const at = text.indexOf("=");
    const key = at < 0 ? text : text.slice(0, at);
    if (at < 0 || !["name", "id", "label", ...keys].includes(key)) {
      const known = ["name", "id", "label", ...keys].map((name) => `${name}=`).join(", ");
      throw new UsageError(`--filter ${text}: give one of ${known}`);
    }
    values.set(key, [...(values.get(key) ?? []), text.slice(at + 1)]);
  }
  const query: Query = {};
  for (const key of ["label", ...keys]) {
    const given = values.get(key);
    if (given === undefined) continue;
    if (key !== "label" && given.length > 1) {
      throw new UsageError(`--filter ${key}= is given twice: give it once`);
    }
    query[key] = given;
  }
  const names = values.get("name") ?? [];
  const ids = values.get("id") ?? [];
  return {
    query,
    matches: (item) =>
      (names.length === 0 || names.some((name) => item.name.includes(name))) &&
      (ids.length === 0 || ids.some((id) => item.id.startsWith(id))),
  };
}

export const filterOption = (keys: string[]): Option =>
  repeatable(
    "-f, --filter <key=value>",
    `show only what matches (${["name", "id", "label", ...keys].join(", ")}); repeatable`,
  );

export const quietOption = (): Option => new Option("-q, --quiet", "print ids only").default(false);

/** `Examples:` at the end of a command's help. */
export function examples(...lines: string[]): string {
  return `\nExamples:\n${lines.map((line) => `  $ natbridge ${line}`).join("\n")}`;
}

/**
 * Does `action` for each of several references; goes on after a failure and throws at the end.
 */
export async function forEachReference(
  references: string[],
  action: (reference: string) => Promise<void>,
): Promise<void> {
  const failures: unknown[] = [];
  for (const reference of references) {
    try {
      await action(reference);
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length === 0) return;
  if (failures.length === 1) throw failures[0];
  throw new AggregateError(failures);
}
