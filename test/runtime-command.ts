/** How another program is run by the runtime that runs the tests. */
import { isDeno } from "../src/runtime/runtime.ts";

export const runtimeCommand: [string, ...string[]] = isDeno
  ? [process.execPath, "run", "--quiet", "-A"]
  : [process.execPath];
