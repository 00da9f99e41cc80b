/**
 * Sends datagrams that are small first, then small and large by turns: what is learned from the small
 * ones must not let the large ones through.
 *
 *     datagrams.ts HOST PORT SMALL LARGE
 */
import { createSocket } from "node:dgram";

const [host = "", port, small, large] = process.argv.slice(2);
const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
/** Datagrams of the first kind, and of both. */
const turns = { small: 300, both: 300 };

// Whoever heeds what the path tells is refused at once.
socket.on("error", () => undefined);
let count = 0;
const timer = setInterval(() => {
  for (let burst = 0; burst < 5; burst++, count++) {
    const isLarge = count > turns.small && count % 2 === 1;
    socket.send(
      Buffer.alloc(Number(isLarge ? large : small), 1),
      Number(port),
      host,
      () => undefined,
    );
  }
  if (count < turns.small + turns.both) return;
  clearInterval(timer);
  console.log("{}");
  process.exit(0);
}, 5);
