/** `natbridge network …` */
import { createInterface } from "node:readline/promises";
import { type Command, Option } from "commander";
import { Address4, Address6 } from "ip-address";
import {
  type Endpoint,
  endpointSchema,
  type Network,
  networkSchema,
  sandboxSchema,
} from "../network/model.ts";
import { type Client, RefusedError, step } from "./client.ts";
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
import { FailedError, UsageError } from "./errors.ts";
import { inspect } from "./inspect.ts";
import { type Column, printJson, printLine, printList, shortId } from "./output.ts";

const columns: Column<Network>[] = [
  { heading: "NETWORK ID", cell: ({ id }) => shortId(id) },
  { heading: "NAME", cell: ({ name }) => name },
  { heading: "DRIVER", cell: ({ driver }) => driver },
  { heading: "SCOPE", cell: ({ scope }) => scope },
  { heading: "SUBNETS", cell: ({ subnets }) => subnets.map(({ subnet }) => subnet).join(", ") },
  { heading: "BRIDGE", cell: ({ bridge }) => bridge ?? "" },
];

interface CreateFlags {
  driver?: string;
  subnet: string[];
  gateway: string[];
  ipRange: string[];
  reserved: string[];
  ipv6?: boolean;
  internal?: boolean;
  isolated?: boolean;
  masquerade: boolean;
  mtu?: number;
  bridge?: string;
  fastPath?: string;
  label: string[];
}

interface Subnet {
  subnet: string;
  gateway?: string;
  range?: string;
  reserved?: string[];
}

/** An address or a CIDR; null if it is neither. */
function parseAddress(text: string): Address4 | Address6 | null {
  if (Address4.isValid(text)) return new Address4(text);
  return Address6.isValid(text) ? new Address6(text) : null;
}

function contains(subnet: string, text: string): boolean {
  const [outer, inner] = [parseAddress(subnet), parseAddress(text)];
  if (outer instanceof Address4 && inner instanceof Address4) return inner.isInSubnet(outer);
  return outer instanceof Address6 && inner instanceof Address6 && inner.isInSubnet(outer);
}

/** The subnet that `value` of `flag` belongs to. */
function subnetOf(subnets: Subnet[], flag: string, value: string): Subnet {
  if (parseAddress(value) === null) {
    throw new UsageError(`${flag} ${value} is not an address: give one such as 172.32.0.1`);
  }
  const subnet = subnets.find((item) => contains(item.subnet, value));
  if (subnet !== undefined) return subnet;
  const hint =
    subnets.length === 0
      ? "give --subnet too"
      : `give one inside ${subnets.map((item) => item.subnet).join(" or ")}`;
  throw new UsageError(`${flag} ${value} is in no --subnet: ${hint}`);
}

/** --gateway, --ip-range and --reserved each go to the --subnet they are in. */
function collectSubnets(flags: CreateFlags): Subnet[] {
  const subnets: Subnet[] = flags.subnet.map((subnet) => {
    if (!subnet.includes("/") || parseAddress(subnet) === null) {
      throw new UsageError(`--subnet ${subnet} is not a subnet: give one such as 172.32.0.0/24`);
    }
    return { subnet };
  });
  for (const gateway of flags.gateway) {
    const subnet = subnetOf(subnets, "--gateway", gateway);
    if (subnet.gateway !== undefined) {
      throw new UsageError(`--gateway ${gateway}: ${subnet.subnet} already has ${subnet.gateway}`);
    }
    subnet.gateway = gateway;
  }
  for (const range of flags.ipRange) subnetOf(subnets, "--ip-range", range).range = range;
  for (const address of flags.reserved) {
    const subnet = subnetOf(subnets, "--reserved", address);
    subnet.reserved = [...(subnet.reserved ?? []), address];
  }
  return subnets;
}

async function create(name: string, flags: CreateFlags, command: Command): Promise<void> {
  const subnets = collectSubnets(flags);
  const network = await clientOf(command).write(networkSchema, "POST", "/v1/networks", {
    name,
    driver: flags.driver,
    ...(subnets.length > 0 ? { subnets } : {}),
    bridge: flags.bridge,
    mtu: flags.mtu,
    ipv6: flags.ipv6,
    internal: flags.internal,
    isolated: flags.isolated,
    masquerade: flags.masquerade ? undefined : false,
    fastPath: flags.fastPath,
    labels: parseLabels(flags.label),
  });
  if (wantsJson(command)) printJson(network);
  else printLine(network.id);
}

/** Asks a person; a script has to say --force. */
async function confirmed(question: string): Promise<boolean> {
  if (!process.stdin.isTTY) {
    throw new UsageError("network prune asks before it removes: give --force where nobody answers");
  }
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await lines.question(`${question} [y/N] `)).trim());
  } finally {
    lines.close();
  }
}

async function prune(flags: { force?: boolean; filter: string[] }, command: Command) {
  const client = clientOf(command);
  const filter = parseFilters(flags.filter, []);
  const networks = await client.list(networkSchema, "/v1/networks", filter.query);
  const used = new Set(
    (await client.list(endpointSchema, "/v1/endpoints")).map(({ networkId }) => networkId),
  );
  const unused = networks.filter(
    (item) => !item.predefined && !used.has(item.id) && filter.matches(item),
  );
  const names = unused.map(({ name }) => name);
  if (names.length > 0 && !flags.force) {
    const question = `Remove the networks without endpoints: ${names.join(", ")}?`;
    if (!(await confirmed(question))) throw new FailedError("nothing was removed");
  }
  const removed: string[] = [];
  try {
    await forEachReference(
      unused.map(({ id }) => id),
      async (id) => {
        await client.remove(`/v1/networks/${id}`);
        removed.push(unused.find((item) => item.id === id)?.name ?? id);
      },
    );
  } finally {
    if (wantsJson(command)) printJson({ removed });
    else for (const name of removed) printLine(name);
  }
}

const sandboxRefSchema = sandboxSchema.pick({ id: true, name: true });

/** `web` as the name of a sandbox, or of one of its endpoints. */
async function findSandbox(client: Client, reference: string) {
  try {
    return await client.get(sandboxRefSchema, `/v1/sandboxes/${step(reference)}`);
  } catch (error) {
    if (!(error instanceof RefusedError) || error.code !== "sandbox_not_found") throw error;
  }
  try {
    const endpoint = await client.get(endpointSchema, `/v1/endpoints/${step(reference)}`);
    return { id: endpoint.sandboxId, name: endpoint.sandbox };
  } catch (error) {
    if (!(error instanceof RefusedError) || error.code !== "endpoint_not_found") throw error;
    throw new FailedError(
      `there is no sandbox and no endpoint "${reference}": natbridge sandbox ls lists them`,
    );
  }
}

interface ConnectFlags {
  name?: string;
  ip?: string;
  ip6?: string;
  alias: string[];
  priority?: number;
  interface?: string;
}

async function connect(
  network: string,
  reference: string,
  flags: ConnectFlags,
  command: Command,
): Promise<void> {
  const client = clientOf(command);
  const sandbox = await findSandbox(client, reference);
  const { name: networkName } = await client.get(networkSchema, `/v1/networks/${step(network)}`);
  const addresses = [flags.ip, flags.ip6].filter((address) => address !== undefined);
  const endpoint = await client.write(endpointSchema, "POST", "/v1/endpoints", {
    name: flags.name ?? `${sandbox.name}-${networkName}`.slice(0, 63),
    network,
    sandbox: sandbox.id,
    interface: flags.interface,
    ...(addresses.length > 0 ? { addresses } : {}),
    ...(flags.alias.length > 0 ? { aliases: flags.alias } : {}),
    defaultRoutePriority: flags.priority,
  });
  if (wantsJson(command)) printJson(endpoint);
  else printLine(endpoint.name);
}

/** The one endpoint that `reference`, an endpoint or its sandbox, has in the network. */
async function findConnection(
  client: Client,
  network: Network,
  reference: string,
): Promise<Endpoint> {
  const within = await client.list(endpointSchema, "/v1/endpoints", { network: network.id });
  const named = within.find(({ name, id }) => name === reference || id === reference);
  if (named !== undefined) return named;
  const sandbox = await findSandbox(client, reference);
  const found = within.filter(({ sandboxId }) => sandboxId === sandbox.id);
  const [first, second] = found;
  if (first === undefined) {
    throw new FailedError(`${sandbox.name} is not connected to network ${network.name}`);
  }
  if (second !== undefined) {
    const names = found.map(({ name }) => name).join(", ");
    throw new FailedError(
      `${sandbox.name} has several endpoints in ${network.name}: name one of ${names}`,
    );
  }
  return first;
}

async function disconnect(network: string, reference: string, _flags: object, command: Command) {
  const client = clientOf(command);
  const found = await client.get(networkSchema, `/v1/networks/${step(network)}`);
  const endpoint = await findConnection(client, found, reference);
  await client.remove(`/v1/endpoints/${endpoint.id}`);
  if (wantsJson(command)) printJson({ removed: [endpoint.name] });
  else printLine(endpoint.name);
}

function registerCreate(network: Command): void {
  network
    .command("create <name>")
    .description("Create a bridge network")
    .addOption(new Option("-d, --driver <driver>", "only bridge").choices(["bridge"]))
    .addOption(repeatable("--subnet <cidr>", "subnet, one per family; chosen unless given"))
    .addOption(repeatable("--gateway <address>", "the bridge's address; the first unless given"))
    .addOption(repeatable("--ip-range <cidr>", "hand out addresses from this part only"))
    .addOption(repeatable("--reserved <address>", "never hand out this address"))
    .option("--ipv6", "choose an IPv6 subnet too")
    .option("--internal", "no way out of the network and none in")
    .option("--isolated", "endpoints do not reach each other")
    .option("--no-masquerade", "keep endpoints' own addresses on the way out")
    .addOption(new Option("--mtu <bytes>", "MTU").argParser(integer("--mtu", 68, 65535)))
    .option("--bridge <device>", "name of the bridge device")
    .addOption(new Option("--fast-path <mode>", "fast path").choices(["auto", "off"]))
    .addOption(repeatable("-l, --label <key=value>", "label; repeatable"))
    .addHelpText(
      "after",
      examples(
        "network create my_net --subnet 172.32.0.0/24 --gateway 172.32.0.1",
        "network create back --internal --label team=db",
      ),
    )
    .action(create);
}

/** Adds `network` and its verbs. */
export function register(program: Command): void {
  const network = program.command("network").description("Manage networks");
  registerCreate(network);
  network
    .command("ls")
    .alias("list")
    .description("List networks")
    .addOption(quietOption())
    .addOption(filterOption(["endpoint"]))
    .action(async (flags: { quiet: boolean; filter: string[] }, command: Command) => {
      const filter = parseFilters(flags.filter, ["endpoint"]);
      const items = await clientOf(command).list(networkSchema, "/v1/networks", filter.query);
      const json = wantsJson(command);
      printList(items.filter(filter.matches), { json, quiet: flags.quiet }, columns);
    });
  network
    .command("inspect <network...>")
    .description("Show all of one or more networks, in JSON")
    .action((references: string[], _flags: object, command: Command) =>
      inspect(command, networkSchema, "/v1/networks", references),
    );
  network
    .command("rm <network...>")
    .alias("remove")
    .description("Remove networks")
    .option("-f, --force", "remove their endpoints too")
    .action((references: string[], flags: { force?: boolean }, command: Command) =>
      forEachReference(references, async (reference) => {
        const query = flags.force ? { force: "true" } : {};
        await clientOf(command).remove(`/v1/networks/${step(reference)}`, query);
        printLine(reference);
      }),
    );
  network
    .command("prune")
    .description("Remove all networks without endpoints")
    .option("-f, --force", "do not ask")
    .addOption(repeatable("--filter <key=value>", "only those that match (name, id, label)"))
    .action(prune);
  network
    .command("connect <network> <sandbox>")
    .description("Connect a sandbox, named by itself or by one of its endpoints, to a network")
    .option("--ip <address>", "IPv4 address")
    .option("--ip6 <address>", "IPv6 address")
    .addOption(repeatable("--alias <name>", "another name in the network; repeatable"))
    .addOption(
      new Option("--priority <number>", "the highest gives the default route").argParser(
        integer("--priority", -1000000, 1000000),
      ),
    )
    .option("--interface <name>", "its name in the sandbox; the next ethN unless given")
    .option("--name <name>", "name of the new endpoint; SANDBOX-NETWORK unless given")
    .addHelpText("after", examples("network connect my_net web --ip 172.32.0.5"))
    .action(connect);
  network
    .command("disconnect <network> <sandbox>")
    .description("Disconnect a sandbox from a network; its published ports there go too")
    .action(disconnect);
}
