/** `natbridge endpoint …` */
import { type Command, Option } from "commander";
import { type Endpoint, endpointSchema } from "../network/model.ts";
import { step } from "./client.ts";
import {
  clientOf,
  examples,
  filterOption,
  forEachReference,
  integer,
  parseFilters,
  parseLabels,
  quietOption,
  repeatable,
  wantsJson,
} from "./command.ts";
import { UsageError } from "./errors.ts";
import { inspect } from "./inspect.ts";
import { type Column, printJson, printLine, printList, shortId } from "./output.ts";

const columns: Column<Endpoint>[] = [
  { heading: "ENDPOINT ID", cell: ({ id }) => shortId(id) },
  { heading: "NAME", cell: ({ name }) => name },
  { heading: "NETWORK", cell: ({ network }) => network },
  { heading: "SANDBOX", cell: (item) => `${item.sandbox}:${item.interface}` },
  { heading: "ADDRESSES", cell: ({ addresses }) => addresses.join(", ") },
  { heading: "HOST INTERFACE", cell: ({ hostInterface }) => hostInterface },
];

interface CreateFlags {
  network: string;
  netns?: string;
  pid?: number;
  sandbox?: string;
  ip?: string;
  ip6?: string;
  mac?: string;
  interface?: string;
  mtu?: number;
  alias: string[];
  priority?: number;
  sourceCheck: boolean;
  label: string[];
}

async function create(name: string, flags: CreateFlags, command: Command): Promise<void> {
  const { netns, pid, sandbox } = flags;
  const given = [netns, pid, sandbox].filter((value) => value !== undefined).length;
  if (given !== 1) {
    throw new UsageError("endpoint create needs exactly one of --netns, --pid and --sandbox");
  }
  const addresses = [flags.ip, flags.ip6].filter((address) => address !== undefined);
  const endpoint = await clientOf(command).write(endpointSchema, "POST", "/v1/endpoints", {
    name,
    network: flags.network,
    netns,
    pid,
    sandbox,
    interface: flags.interface,
    ...(addresses.length > 0 ? { addresses } : {}),
    mac: flags.mac,
    mtu: flags.mtu,
    ...(flags.alias.length > 0 ? { aliases: flags.alias } : {}),
    defaultRoutePriority: flags.priority,
    sourceCheck: flags.sourceCheck ? undefined : false,
    labels: parseLabels(flags.label),
  });
  if (wantsJson(command)) printJson(endpoint);
  else printLine(endpoint.id);
}

function registerCreate(endpoint: Command): void {
  endpoint
    .command("create <name>")
    .description("Connect a network namespace to a network")
    .requiredOption("-n, --network <network>", "network")
    .option("--netns <name|path>", "network namespace: a name of ip netns, or a path")
    .addOption(
      new Option("--pid <pid>", "the namespace of this process").argParser(
        integer("--pid", 1, 2 ** 31 - 1),
      ),
    )
    .option("--sandbox <sandbox>", "a sandbox natbridge knows")
    .option("--ip <address>", "IPv4 address; the lowest free one unless given")
    .option("--ip6 <address>", "IPv6 address")
    .option("--mac <address>", "MAC address; made from the IPv4 address unless given")
    .option("--interface <name>", "its name in the sandbox; the next ethN unless given")
    .addOption(new Option("--mtu <bytes>", "MTU").argParser(integer("--mtu", 68, 65535)))
    .addOption(repeatable("--alias <name>", "another name in the network; repeatable"))
    .addOption(
      new Option("--priority <number>", "the highest gives the default route").argParser(
        integer("--priority", -1000000, 1000000),
      ),
    )
    .option("--no-source-check", "let it send from addresses that are not its own (routers)")
    .addOption(repeatable("-l, --label <key=value>", "label; repeatable"))
    .addHelpText(
      "after",
      examples("endpoint create web --network my_net --netns web --ip 172.32.0.10"),
    )
    .action(create);
}

/** Adds `endpoint` and its verbs. */
export function register(program: Command): void {
  const endpoint = program.command("endpoint").description("Manage endpoints");
  registerCreate(endpoint);
  endpoint
    .command("ls")
    .alias("list")
    .description("List endpoints")
    .addOption(quietOption())
    .addOption(filterOption(["network"]))
    .action(async (flags: { quiet: boolean; filter: string[] }, command: Command) => {
      const filter = parseFilters(flags.filter, ["network"]);
      const items = await clientOf(command).list(endpointSchema, "/v1/endpoints", filter.query);
      const json = wantsJson(command);
      printList(items.filter(filter.matches), { json, quiet: flags.quiet }, columns);
    });
  endpoint
    .command("inspect <endpoint...>")
    .description("Show all of one or more endpoints, in JSON")
    .action((references: string[], _flags: object, command: Command) =>
      inspect(command, endpointSchema, "/v1/endpoints", references),
    );
  endpoint
    .command("rm <endpoint...>")
    .alias("remove")
    .description("Remove endpoints and their published ports")
    .action((references: string[], _flags: object, command: Command) =>
      forEachReference(references, async (reference) => {
        await clientOf(command).remove(`/v1/endpoints/${step(reference)}`);
        printLine(reference);
      }),
    );
}
