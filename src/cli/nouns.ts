/** All nouns of the command line, and the file that knows each. */
import type { Register } from "./command.ts";

interface Noun {
  name: string;
  load: () => Promise<Register>;
}

export const nouns: Noun[] = [
  { name: "network", load: async () => (await import("./network.ts")).register },
  { name: "endpoint", load: async () => (await import("./endpoint.ts")).register },
  { name: "port", load: async () => (await import("./port.ts")).register },
  { name: "sandbox", load: async () => (await import("./sandbox.ts")).register },
  { name: "connections", load: async () => (await import("./connections.ts")).register },
  { name: "rules", load: async () => (await import("./rules.ts")).register },
  { name: "events", load: async () => (await import("./events.ts")).register },
  { name: "status", load: async () => (await import("./status.ts")).register },
  { name: "doctor", load: async () => (await import("./doctor.ts")).register },
  { name: "datapath", load: async () => (await import("./datapath.ts")).register },
  { name: "apply", load: async () => (await import("./apply.ts")).register },
  { name: "daemon", load: async () => (await import("./daemon.ts")).register },
  { name: "demo", load: async () => (await import("./demo.ts")).register },
  { name: "token", load: async () => (await import("./token.ts")).register },
  { name: "uninstall", load: async () => (await import("./uninstall.ts")).register },
  { name: "completion", load: async () => (await import("./completion.ts")).register },
  { name: "version", load: async () => (await import("./version.ts")).register },
];

const flagsWithValue = new Set(["-H", "--host"]);

/** The noun that `argv` names; null where it names none, or where all are needed. */
export function findNoun(argv: string[]): string | null {
  for (let index = 0; index < argv.length; index += 1) {
    const word = argv[index] ?? "";
    if (flagsWithValue.has(word)) index += 1;
    else if (word === "--help" || word === "-h") return null;
    else if (!word.startsWith("-")) {
      // The demo's hidden commands are in its file.
      if (word.startsWith("demo-")) return "demo";
      const known = nouns.some(({ name }) => name === word);
      return known && word !== "completion" ? word : null;
    }
  }
  return null;
}
