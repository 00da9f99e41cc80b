/** The command `natbridge`. */
import { run } from "./cli/run.ts";

// A reader such as `head` may leave early; that is no failure of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

const exitCode = await run(process.argv.slice(2));
// Pipes may take the rest of the output only now.
for (const stream of [process.stdout, process.stderr])
  await new Promise<void>((resolve) => void stream.write("", () => resolve()));
// Not by running out of work: Deno would free the heap while V8 may still compile in the background,
// and now and then end by SIGSEGV instead.
process.exit(exitCode);
