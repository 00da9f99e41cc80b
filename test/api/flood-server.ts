/**
 * Listeners of the daemon in a process of their own: a limit of open files is a process's. Prints
 * their addresses as one line of JSON, then serves until its standard input ends.
 *
 *     flood-server.ts OPTIONS     ListenOptions as JSON
 */
import { startListeners } from "../../src/api/listeners.ts";
import { createLogger } from "../../src/log.ts";
import { stopRequested } from "../../src/runtime/signals.ts";
import { StandIn } from "./stand-in.ts";

// As the daemon: signals need files of their own.
void stopRequested().then(() => process.exit(0));
const options = JSON.parse(process.argv[2] ?? "{}");
const listeners = await startListeners(new StandIn(), options, createLogger("warn"));
console.log(JSON.stringify(listeners.addresses));
process.stdin.on("end", () => process.exit(0)).resume();
