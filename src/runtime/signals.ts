/** Being asked to stop. */

const stopSignals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** Resolves with the first signal that asks to stop; a second one of any kind ends the process. */
export function stopRequested(): Promise<string> {
  return new Promise((resolve) => {
    let asked = false;
    for (const signal of stopSignals) {
      process.on(signal, () => {
        if (asked) process.exit(1);
        asked = true;
        resolve(signal);
      });
    }
  });
}
