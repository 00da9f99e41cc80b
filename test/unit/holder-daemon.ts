/** A stand-in for the daemon: starts the holder, prints its pid, and waits to be killed. */
import { startHolder } from "../../src/holder/start.ts";

const [socketPath, logPath] = process.argv.slice(2);
if (socketPath === undefined || logPath === undefined) throw new Error("socket and log paths");
const { pid } = await startHolder({ socketPath, logPath });
process.stdout.write(`${pid}\n`);
setInterval(() => {}, 1000);
