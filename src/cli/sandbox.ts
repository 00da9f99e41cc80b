/** `natbridge sandbox …` */
import type { Command } from "commander";
import { type Sandbox, sandboxSchema } from "../network/model.ts";
import { clientOf, filterOption, parseFilters, quietOption, wantsJson } from "./command.ts";
import { inspect } from "./inspect.ts";
import { type Column, printList, shortId } from "./output.ts";

function presence({ status }: Sandbox): string {
  const condition = status.conditions.find(({ type }) => type === "SandboxPresent");
  return condition?.status === "false" ? "lost" : "present";
}

const columns: Column<Sandbox>[] = [
  { heading: "SANDBOX ID", cell: ({ id }) => shortId(id) },
  { heading: "NAME", cell: ({ name }) => name },
  { heading: "NETNS", cell: ({ netns }) => netns },
  { heading: "STATE", cell: presence },
  {
    heading: "ENDPOINTS",
    cell: ({ endpoints }) => endpoints.map((item) => `${item.interface}=${item.name}`).join(", "),
  },
];

/** Adds `sandbox` and its verbs. */
export function register(program: Command): void {
  const sandbox = program.command("sandbox").description("Show sandboxes");
  sandbox
    .command("ls")
    .alias("list")
    .description("List sandboxes")
    .addOption(quietOption())
    .addOption(filterOption(["network", "endpoint"]))
    .action(async (flags: { quiet: boolean; filter: string[] }, command: Command) => {
      const filter = parseFilters(flags.filter, ["network", "endpoint"]);
      const items = await clientOf(command).list(sandboxSchema, "/v1/sandboxes", filter.query);
      const json = wantsJson(command);
      printList(items.filter(filter.matches), { json, quiet: flags.quiet }, columns);
    });
  sandbox
    .command("inspect <sandbox...>")
    .description("Show all of one or more sandboxes, in JSON")
    .action((references: string[], _flags: object, command: Command) =>
      inspect(command, sandboxSchema, "/v1/sandboxes", references),
    );
}
