/** `NOUN inspect REF…`: an array of whole objects, in the order they were named. */
import type { Command } from "commander";
import type { ZodType } from "zod";
import { step } from "./client.ts";
import { clientOf, forEachReference } from "./command.ts";
import { printJson } from "./output.ts";

/** Prints what was found even if one of them is missing. */
export async function inspect<T>(
  command: Command,
  schema: ZodType<T>,
  path: string,
  references: string[],
): Promise<void> {
  const client = clientOf(command);
  const found: T[] = [];
  try {
    await forEachReference(references, async (reference) => {
      found.push(await client.get(schema, `${path}/${step(reference)}`));
    });
  } finally {
    printJson(found);
  }
}
