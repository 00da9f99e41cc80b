/** `natbridge rules`: what natbridge tells the kernel, in nftables' and in iptables' words. */
import type { Command } from "commander";
import { z } from "zod";
import { ruleDescriptionSchema } from "../network/rules.ts";
import { clientOf, wantsJson } from "./command.ts";
import { printable, printJson, printLine } from "./output.ts";

/** Adds `rules`. */
export function register(program: Command): void {
  program
    .command("rules")
    .description("Show each network and port as nftables elements and as iptables lines")
    .action(async (_flags: object, command: Command) => {
      const schema = z.object({ items: z.array(ruleDescriptionSchema) });
      const { items } = await clientOf(command).get(schema, "/v1/rules");
      if (wantsJson(command)) return printJson(items);
      for (const { kind, name, nftables, iptables } of items) {
        printLine(`${kind} ${name}`);
        for (const line of nftables) printLine(`  nft       ${printable(line)}`);
        for (const line of iptables) printLine(`  iptables  ${printable(line)}`);
      }
    });
}
