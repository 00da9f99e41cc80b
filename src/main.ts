/** The command `natbridge`. */
import { run } from "./cli/run.ts";

// A reader such as `head` may leave early; that is no failure of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

const exitCode = await run(process.argv.slice(2));
// Not by running out of work: Deno would free the heap while V8 may still compile in the background,
// and now and then end by SIGSEGV instead.
process.exit(exitCode);
