/**
 * Long-lived, paced, checked traffic for tests that disturb it. One line of JSON is the answer.
 *
 *     flows.ts tcp|udp HOST PORT SECONDS [LOCAL_ADDRESS]   one flow to an echo server of probe.ts
 *     flows.ts knock HOST PORT SECONDS                     a new connection every millisecond
 */
import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect } from "node:net";

export interface FlowAnswer {
  /** Blocks, datagrams or connections that came back right. */
  right: number;
  /** That did not come back, or came back wrong. */
  wrong: number;
  error: string;
}

/** Time for the last answers to arrive, on a machine whose every core is busy. */
const graceMilliseconds = 15_000;
/** As much may wait to be sent. */
const mostWaiting = 262_144;
const blockBytes = 16_384;
/** On a busy machine connections wait for each other; more at once would end in EMFILE. */
const mostOpen = 400;

function answer(result: FlowAnswer): never {
  console.log(JSON.stringify(result));
  process.exit(0);
}

/** Block number `index`: its bytes follow from its number, so that a mix-up shows. */
function block(index: number, bytes: number): Buffer {
  const seed = createHash("sha256").update(`${index}`).digest();
  const filled = Buffer.alloc(bytes, seed);
  filled.writeUInt32BE(index);
  return filled;
}

/** Calls `work` every `milliseconds` on average, however late the timer is, for some seconds. */
function pace(milliseconds: number, seconds: number, work: () => void, done: () => void): void {
  const started = performance.now();
  let count = 0;
  const timer = setInterval(() => {
    const elapsed = performance.now() - started;
    for (; count < elapsed / milliseconds; count++) work();
    if (elapsed < seconds * 1000) return;
    clearInterval(timer);
    done();
  }, milliseconds);
}

/** Every byte sent must come back in its place, to the last one behind our FIN. */
function tcp(host: string, port: number, seconds: number, localAddress: string | undefined): void {
  const socket = connect({
    host,
    port,
    allowHalfOpen: true,
    ...(localAddress === undefined ? {} : { localAddress }),
  });
  let sent = 0;
  let right = 0;
  let pending = Buffer.alloc(0);
  let greeted = false;
  const finish = (error: string): never => answer({ right, wrong: sent - right, error });
  socket.on("error", (error: NodeJS.ErrnoException) => finish(error.code ?? error.message));
  socket.on("connect", () =>
    pace(
      10,
      seconds,
      () => {
        if (socket.writableLength < mostWaiting) socket.write(block(sent++, blockBytes));
      },
      () => {
        socket.end();
        setTimeout(() => finish("not all came back"), graceMilliseconds);
      },
    ),
  );
  socket.on("data", (data: Buffer) => {
    pending = Buffer.concat([pending, data]);
    if (!greeted) {
      const split = pending.indexOf(10);
      if (split < 0) return;
      greeted = true;
      pending = pending.subarray(split + 1);
    }
    for (; pending.length >= blockBytes; pending = pending.subarray(blockBytes)) {
      if (!pending.subarray(0, blockBytes).equals(block(right, blockBytes))) finish("wrong bytes");
      right++;
    }
  });
  socket.on("end", () => finish(right === sent ? "" : "ended early"));
}

/** One datagram every five milliseconds; each must come back once. */
function udp(host: string, port: number, seconds: number): void {
  const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
  const waiting = new Set<number>();
  let sent = 0;
  let right = 0;
  let strange = 0;
  socket.on("error", (error) => answer({ right, wrong: waiting.size, error: error.message }));
  socket.on("message", (message) => {
    const payload = message.subarray(message.indexOf(10) + 1);
    const index = payload.readUInt32BE();
    if (waiting.delete(index) && payload.equals(block(index, 512))) right++;
    else strange++;
  });
  pace(
    5,
    seconds,
    () => {
      waiting.add(sent);
      socket.send(block(sent++, 512), port, host);
    },
    () => {
      const finish = (): never => answer({ right, wrong: waiting.size + strange, error: "" });
      setInterval(() => waiting.size === 0 && finish(), 500);
      setTimeout(finish, graceMilliseconds);
    },
  );
}

function knock(host: string, port: number, seconds: number): void {
  let right = 0;
  let wrong = 0;
  let open = 0;
  let error = "";
  let isDone = false;
  const settle = (): void => {
    open--;
    if (isDone && open === 0) answer({ right, wrong, error });
  };
  const request = Buffer.from("a request of some length\n");
  const one = (): void => {
    if (open >= mostOpen) return;
    open++;
    const socket = connect({ host, port, allowHalfOpen: true });
    let got = "";
    let failed = "";
    socket.setTimeout(15_000, () => socket.destroy(new Error("timeout")));
    socket.on("connect", () => socket.end(request));
    socket.on("data", (data: Buffer) => {
      got += data.toString();
    });
    socket.on("error", (cause: NodeJS.ErrnoException) => {
      failed = cause.code ?? cause.message;
    });
    socket.on("close", () => {
      const isRight = failed === "" && got.endsWith(`\n${request.toString()}`);
      if (isRight) right++;
      else {
        wrong++;
        error = failed || "another answer";
      }
      settle();
    });
  };
  pace(1, seconds, one, () => {
    isDone = true;
    setTimeout(() => answer({ right, wrong: wrong + open, error }), 20_000);
  });
}

const [verb, host = "", port, seconds, localAddress] = process.argv.slice(2);
const time = Number(seconds);
if (verb === "tcp") tcp(host, Number(port), time, localAddress);
else if (verb === "udp") udp(host, Number(port), time);
else if (verb === "knock") knock(host, Number(port), time);
else {
  console.error("flows.ts tcp|udp|knock HOST PORT SECONDS");
  process.exit(2);
}
