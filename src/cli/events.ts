/** `natbridge events`: follows what happens until it is interrupted. */
import { type Command, Option } from "commander";
import { z } from "zod";
import { clientOf, examples, integer, repeatable, wantsJson } from "./command.ts";
import { FailedError } from "./errors.ts";
import { printable, printLine } from "./output.ts";

const eventSchema = z.object({
  id: z.int(),
  type: z.string(),
  time: z.string(),
  object: z.object({ kind: z.string(), id: z.string(), name: z.string() }).nullable(),
  message: z.string(),
});

/** The `data` of each server-sent event in a stream of text. */
async function* readEvents(chunks: AsyncIterable<Buffer>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of chunks) {
    text += decoder.decode(chunk, { stream: true });
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const data = text
        .slice(0, end)
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart());
      text = text.slice(end + 2);
      if (data.length > 0) yield data.join("\n");
    }
  }
}

interface Flags {
  type: string[];
  object: string[];
  since?: number;
}

async function follow(flags: Flags, command: Command): Promise<void> {
  const answer = await clientOf(command).send("GET", "/v1/events", {
    query: { type: flags.type, object: flags.object },
    headers: flags.since === undefined ? {} : { "last-event-id": String(flags.since) },
    endless: true,
  });
  for await (const data of readEvents(answer.chunks())) {
    const event = eventSchema.parse(JSON.parse(data));
    if (wantsJson(command)) printLine(JSON.stringify(event));
    else
      printLine(
        `${event.time}  ${event.type}  ${printable(`${event.object?.name ?? "-"}  ${event.message}`)}`,
      );
  }
  throw new FailedError("the daemon ended the stream: it is stopping");
}

/** Adds `events`. */
export function register(program: Command): void {
  program
    .command("events")
    .description("Follow what happens; with --json one object a line")
    .addOption(repeatable("--type <type>", "port.created, or port for all of a kind; repeatable"))
    .addOption(repeatable("--object <name|id>", "about this object; repeatable"))
    .addOption(
      new Option("--since <id>", "go on after this event").argParser(
        integer("--since", 0, 2 ** 53 - 1),
      ),
    )
    .addHelpText("after", examples("events --type port --type sandbox.lost"))
    .action(follow);
}
