/** `natbridge completion bash|zsh|fish`, and the hidden call by which the shell asks for words. */
import createCompletion from "@bomb.sh/tab/commander";
import type { Command } from "commander";

/** Adds `completion`. It looks at the whole program, so it must be added last. */
export function register(program: Command): void {
  createCompletion(program, { completionCommandName: "completion" });
}
