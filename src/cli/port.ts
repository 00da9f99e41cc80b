/** `natbridge port …`: published ports. */
import { isIP } from "node:net";
import { type Command, Option } from "commander";
import { type Port, portSchema } from "../network/model.ts";
import { step } from "./client.ts";
import {
  clientOf,
  examples,
  filterOption,
  forEachReference,
  parseFilters,
  parseLabels,
  quietOption,
  repeatable,
  wantsJson,
} from "./command.ts";
import { UsageError } from "./errors.ts";
import { inspect } from "./inspect.ts";
import { type Column, printJson, printLine, printList, shortId } from "./output.ts";
import { parsePortSpec } from "./port-spec.ts";

const bracket = (address: string): string => (isIP(address) === 6 ? `[${address}]` : address);

function bindings({ bindings: list, protocol }: Port): string {
  return list
    .map(
      (item) => `${bracket(item.hostAddress)}:${item.hostPort}->${item.containerPort}/${protocol}`,
    )
    .join(", ");
}

/** What each binding's traffic last took, all origins together. */
function servedBy({ servedBy: list }: Port): string {
  const paths = new Set(
    list
      .flatMap(({ uplink, host, container }) => [uplink, host, container])
      .filter((path) => path !== null),
  );
  return paths.size === 0 ? "-" : [...paths].sort().join(", ");
}

const columns: Column<Port>[] = [
  { heading: "PORT ID", cell: ({ id }) => shortId(id) },
  { heading: "NAME", cell: ({ name }) => name },
  { heading: "ENDPOINT", cell: ({ endpoint }) => endpoint },
  { heading: "BINDINGS", cell: bindings },
  { heading: "FROM", cell: ({ from }) => (from.length === 0 ? "any" : from.join(", ")) },
  { heading: "SERVED BY", cell: servedBy },
];

interface PublishFlags {
  from: string[];
  name?: string;
  label: string[];
}

/** All of them or none: what was published before one was refused is taken back. */
async function publish(
  endpoint: string,
  words: string[],
  flags: PublishFlags,
  command: Command,
): Promise<void> {
  const specs = words.map(parsePortSpec);
  if (flags.name !== undefined && specs.length > 1) {
    throw new UsageError("--name names one port: publish them one by one, or leave it out");
  }
  const client = clientOf(command);
  const labels = parseLabels(flags.label);
  const made: Port[] = [];
  try {
    for (const spec of specs) {
      const body = { ...spec, endpoint, name: flags.name, from: flags.from, labels };
      made.push(await client.write(portSchema, "POST", "/v1/ports", body));
    }
  } catch (error) {
    await forEachReference(
      made.map(({ id }) => id),
      (id) => client.remove(`/v1/ports/${id}`),
    ).catch((undo: unknown) => {
      throw new AggregateError([error, undo]);
    });
    throw error;
  }
  if (wantsJson(command)) printJson(made);
  else for (const port of made) printLine(`${port.name}  ${bindings(port)}`);
}

interface UpdateFlags {
  endpoint?: string;
  hostPort?: string;
  from: string[];
  fromAny?: boolean;
  label: string[];
}

function parseHostPort(text: string): number | string {
  if (/^\d{1,5}$/.test(text) && Number(text) <= 65535) return Number(text);
  if (/^\d{1,5}-\d{1,5}$/.test(text)) return text;
  throw new UsageError(`--host-port ${text}: give a port, or a range such as 8000-8010`);
}

async function update(reference: string, flags: UpdateFlags, command: Command): Promise<void> {
  if (flags.fromAny && flags.from.length > 0) {
    throw new UsageError("--from-any and --from exclude each other: give one of them");
  }
  const patch = {
    ...(flags.endpoint === undefined ? {} : { endpoint: flags.endpoint }),
    ...(flags.hostPort === undefined ? {} : { hostPort: parseHostPort(flags.hostPort) }),
    ...(flags.from.length > 0 ? { from: flags.from } : flags.fromAny ? { from: [] } : {}),
    ...(flags.label.length > 0 ? { labels: parseLabels(flags.label) } : {}),
  };
  if (Object.keys(patch).length === 0) {
    throw new UsageError(
      "port update changes nothing: give --endpoint, --host-port, --from, --from-any or --label",
    );
  }
  const path = `/v1/ports/${step(reference)}`;
  const port = await clientOf(command).write(portSchema, "PATCH", path, patch);
  if (wantsJson(command)) printJson(port);
  else printLine(`${port.name}  ${bindings(port)}`);
}

function registerPublish(port: Command): void {
  port
    .command("publish <endpoint> <port...>")
    .description("Publish ports of an endpoint on the host")
    .addOption(repeatable("--from <cidr>", "only clients of this subnet may connect; repeatable"))
    .option("--name <name>", "name of the published port")
    .addOption(repeatable("-l, --label <key=value>", "label; repeatable"))
    .addHelpText(
      "after",
      `\nPORT is [HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/tcp|udp|sctp].\n${examples(
        "port publish web 8080:80",
        "port publish web 8080:80/tcp 127.0.0.1:5353:53/udp --from 10.0.0.0/8",
        "port publish web [::1]:80:80 8000-8010:8000-8010",
      )}`,
    )
    .action(publish);
}

/** Adds `port` and its verbs. */
export function register(program: Command): void {
  const port = program.command("port").description("Publish ports");
  registerPublish(port);
  port
    .command("ls")
    .alias("list")
    .description("List published ports")
    .addOption(quietOption())
    .addOption(filterOption(["network", "endpoint"]))
    .action(async (flags: { quiet: boolean; filter: string[] }, command: Command) => {
      const filter = parseFilters(flags.filter, ["network", "endpoint"]);
      const items = await clientOf(command).list(portSchema, "/v1/ports", filter.query);
      const json = wantsJson(command);
      printList(items.filter(filter.matches), { json, quiet: flags.quiet }, columns);
    });
  port
    .command("inspect <port...>")
    .description("Show all of one or more published ports, in JSON")
    .action((references: string[], _flags: object, command: Command) =>
      inspect(command, portSchema, "/v1/ports", references),
    );
  port
    .command("update <port>")
    .description("Move a published port; established connections finish on the old target")
    .option("--endpoint <endpoint>", "send new connections to this endpoint")
    .addOption(new Option("--host-port <port>", "publish it here instead"))
    .addOption(repeatable("--from <cidr>", "only clients of this subnet may connect; repeatable"))
    .option("--from-any", "all clients may connect")
    .addOption(repeatable("-l, --label <key=value>", "replace the labels; repeatable"))
    .addHelpText("after", examples("port update web-80 --endpoint web2"))
    .action(update);
  port
    .command("rm <port...>")
    .alias("remove")
    .description("Unpublish ports")
    .action((references: string[], _flags: object, command: Command) =>
      forEachReference(references, async (reference) => {
        await clientOf(command).remove(`/v1/ports/${step(reference)}`);
        printLine(reference);
      }),
    );
}
