/** Steps that are undone, last first, when a later one fails. */
import type { Logger } from "../log.ts";

/** The steps of a change, in their order. */
export const stepNames = [
  "host-settings",
  "bridge",
  "endpoint",
  "reverse-path",
  "default-routes",
  "device",
  "reserve",
  "firewall",
  "forward-accepts",
  "connect-hook",
  "commit",
] as const;
export type StepName = (typeof stepNames)[number];

/**
 * Throws if the environment's `NATBRIDGE_FAIL_AFTER` names this step. A test hook: it proves that a
 * change that fails half-way leaves nothing behind.
 */
export function failpoint(name: StepName): void {
  if (process.env["NATBRIDGE_FAIL_AFTER"] === name) {
    throw new Error(`NATBRIDGE_FAIL_AFTER: stopped after step ${name}`);
  }
}

export class Steps {
  readonly #log: Pick<Logger, "error">;
  readonly #undo: { name: StepName; run: () => Promise<unknown> | unknown }[] = [];

  constructor(log: Pick<Logger, "error">) {
    this.#log = log;
  }

  /**
   * Does a step and remembers how to take it back. `action` itself must leave nothing when it throws.
   */
  async run<T>(
    name: StepName,
    action: () => Promise<T> | T,
    undo?: (value: T) => Promise<unknown> | unknown,
  ): Promise<T> {
    const value = await action();
    if (undo) this.#undo.push({ name, run: () => undo(value) });
    failpoint(name);
    return value;
  }

  /** Takes everything back, goes on after errors, and answers them. */
  async undoAll(): Promise<Error[]> {
    const failures: Error[] = [];
    for (const step of this.#undo.splice(0).reverse()) {
      try {
        await step.run();
      } catch (error) {
        const failure = error instanceof Error ? error : new Error(String(error));
        this.#log.error({ step: step.name, err: failure }, "could not undo a step");
        failures.push(failure);
      }
    }
    return failures;
  }
}
