/** `natbridge demo`: a first session in namespaces of its own, explained and cleaned up. */
import type { Command } from "commander";
import { stopRequested } from "../runtime/signals.ts";
import { examples, integer, wantsJson } from "./command.ts";
import { isDemoName, Place, removeDemo, removeLeftovers } from "./demo/place.ts";
import { FailedError, UsageError } from "./errors.ts";
import { printJson, printLine } from "./output.ts";

interface Flags {
  keep?: boolean;
  remove?: string;
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return;
  throw new FailedError("demo needs root, for it makes network namespaces: run it with sudo");
}

async function remove(name: string): Promise<void> {
  if (!isDemoName(name)) {
    throw new UsageError(`--remove ${name}: give a name that demo --keep printed, as nbdemo1234`);
  }
  await removeDemo(name);
  printLine(name);
}

function tellHowToEnter(place: Place): void {
  const enter = (name: "host" | "client" | "web"): string =>
    `  nsenter --net=/run/netns/${place.ns(name)} bash`;
  printLine(
    [
      `\nKept as ${place.name}. Enter it by`,
      ...(["host", "client", "web"] as const).map(enter),
      "talk to its daemon by",
      `  export NATBRIDGE_HOST=${place.host}`,
      "and remove it by",
      `  natbridge demo --remove ${place.name}`,
    ].join("\n"),
  );
}

async function demo(flags: Flags, command: Command): Promise<void> {
  requireRoot();
  if (flags.remove !== undefined) return remove(flags.remove);
  const isJson = wantsJson(command);
  const { playSession, Story } = await import("./demo/session.ts");
  const stop = stopRequested();
  await removeLeftovers();
  const story = new Story(isJson);
  const place = new Place();
  let isKept = false;
  try {
    const interrupted = stop.then((signal) => {
      throw new FailedError(`stopped by ${signal}`);
    });
    await Promise.race([playSession(place, story), interrupted]);
    isKept = flags.keep === true;
  } finally {
    if (isKept) place.keep();
    else {
      place.close();
      await removeDemo(place.name);
    }
  }
  if (isJson) printJson({ name: place.name, kept: isKept, steps: story.steps });
  else if (isKept) tellHowToEnter(place);
  else printLine("\nRemoved: daemon, bridge, rules, programs, namespaces, folder.");
}

/** Adds `demo`, and the hidden commands that are the two ends of its requests. */
export function register(program: Command): void {
  program
    .command("demo")
    .description("Play a first session in private namespaces, and explain each request's path")
    .option("--keep", "leave everything in place afterwards")
    .option("--remove <name>", "remove a demo that was kept")
    .addHelpText("after", examples("demo", "demo --keep", "demo --remove nbdemo1234"))
    .action(demo);
  program
    .command("demo-server <port>", { hidden: true })
    .action(async (port: string) =>
      (await import("./demo/peer.ts")).serve(integer("port", 1, 65535)(port)),
    );
  program
    .command("demo-request <url>", { hidden: true })
    .action(async (url: string) => (await import("./demo/peer.ts")).ask(url));
  program
    .command("demo-requests <url>", { hidden: true })
    .action(async (url: string) => (await import("./demo/peer.ts")).askOnAndOn(url));
}
