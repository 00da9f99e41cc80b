/** Answers each ruleset, a line of JSON, with the meters found in it. */

import { createInterface } from "node:readline";
import { z } from "zod";
import { findMeters } from "../../../../src/firewall/meters.ts";
import { parseRuleset } from "../../../../src/firewall/ruleset.ts";

const question = z.object({ nft: z.string(), legacy: z.string() });

for await (const line of createInterface({ input: process.stdin }))
  process.stdout.write(
    `${JSON.stringify(findMeters(parseRuleset(question.parse(JSON.parse(line)))))}\n`,
  );
