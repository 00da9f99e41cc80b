/** `natbridge connections`: who talks to whom, before and after NAT, and by which path. */
import { isIP } from "node:net";
import { type Command, Option } from "commander";
import { z } from "zod";
import { type Connection, connectionSchema } from "../network/model.ts";
import { clientOf, examples, wantsJson } from "./command.ts";
import { printJson, printTable } from "./output.ts";

const place = (address: string, port: number): string =>
  `${isIP(address) === 6 ? `[${address}]` : address}:${port}`;

/** The reply runs the other way, so its source is whom the client really reached. */
function row(item: Connection): string[] {
  const { original, reply } = item;
  return [
    item.protocol,
    item.state || "-",
    item.direction,
    place(original.sourceAddress, original.sourcePort),
    place(original.destinationAddress, original.destinationPort),
    `${place(reply.destinationAddress, reply.destinationPort)} -> ${place(reply.sourceAddress, reply.sourcePort)}`,
    item.endpoint ?? "-",
    item.port ?? "-",
    item.path,
  ];
}

const headings = [
  "PROTO",
  "STATE",
  "DIRECTION",
  "SOURCE",
  "DESTINATION",
  "AFTER NAT",
  "ENDPOINT",
  "PORT",
  "PATH",
];

interface Flags {
  endpoint?: string;
  network?: string;
  port?: string;
  protocol?: string;
  state?: string;
}

/** Adds `connections`. */
export function register(program: Command): void {
  program
    .command("connections")
    .description("List live connections, before and after NAT")
    .option("--endpoint <endpoint>", "of this endpoint")
    .option("--network <network>", "of this network")
    .option("--port <port>", "through this published port")
    .addOption(
      new Option("--protocol <protocol>", "of this protocol").choices([
        "tcp",
        "udp",
        "sctp",
        "icmp",
        "other",
      ]),
    )
    .option("--state <state>", "in this conntrack state, such as ESTABLISHED")
    .addHelpText("after", examples("connections --endpoint web --state ESTABLISHED"))
    .action(async (flags: Flags, command: Command) => {
      const schema = z.object({ items: z.array(connectionSchema) });
      const { endpoint, network, port, protocol, state } = flags;
      const query = { endpoint, network, port, protocol, state };
      const { items } = await clientOf(command).get(schema, "/v1/connections", query);
      if (wantsJson(command)) printJson(items);
      else printTable(headings, items.map(row));
    });
}
