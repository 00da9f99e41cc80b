/**
 * What runs inside the namespaces of a test: an echo server that tells whom it sees, and a client
 * that checks what comes back. One line of JSON on standard output is the answer.
 *
 *     probe.ts serve PORT            TCP and UDP, both families, until killed
 *     probe.ts connect tcp|udp HOST PORT BYTES
 *     probe.ts stream HOST PORT SECONDS    keeps a checked TCP transfer going
 */
import { createHash, randomBytes } from "node:crypto";
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";

export interface ProbeAnswer {
  ok: boolean;
  /** Client address and port as the server saw them. */
  seen: string;
  error: string;
  bytes: number;
}

const timeoutMilliseconds = 1500;

function answer(result: Partial<ProbeAnswer>): never {
  const whole: ProbeAnswer = { ok: false, seen: "", error: "", bytes: 0, ...result };
  console.log(JSON.stringify(whole));
  process.exit(0);
}

const plain = (address: string | undefined): string => (address ?? "").replace(/^::ffff:/, "");

function serve(port: number): void {
  createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => socket.destroy());
    socket.write(`${plain(socket.remoteAddress)} ${socket.remotePort}\n`);
    socket.pipe(socket);
  }).listen({ port, host: "::", backlog: 1024 }, () => console.log("listening"));
  for (const type of ["udp4", "udp6"] as const) {
    const socket = createSocket({ type, ipv6Only: true, reuseAddr: true });
    socket.on("message", (message, from) => {
      socket.send(
        Buffer.concat([Buffer.from(`${plain(from.address)} ${from.port}\n`), message]),
        from.port,
        from.address,
      );
    });
    socket.on("error", () => undefined);
    socket.bind(port);
  }
}

function connectTcp(host: string, port: number, bytes: number): void {
  const payload = randomBytes(bytes);
  const received: Buffer[] = [];
  const socket = connect({ host, port, allowHalfOpen: true });
  socket.setTimeout(timeoutMilliseconds, () => answer({ error: "timeout" }));
  socket.on("error", (error: NodeJS.ErrnoException) =>
    answer({ error: error.code ?? error.message }),
  );
  // Half-close: everything must still come back after our FIN.
  socket.on("connect", () => socket.end(payload));
  socket.on("data", (data) => received.push(data));
  socket.on("end", () => {
    const all = Buffer.concat(received);
    const split = all.indexOf(10);
    const echo = all.subarray(split + 1);
    const same = hash(echo) === hash(payload);
    answer({
      ok: split > 0 && same,
      seen: all.subarray(0, Math.max(split, 0)).toString(),
      error: same ? "" : `got ${echo.length} of ${bytes} bytes`,
      bytes: echo.length,
    });
  });
}

const hash = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

function connectUdp(host: string, port: number, bytes: number): void {
  const payload = randomBytes(Math.min(Math.max(bytes, 1), 1200));
  const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
  const timer = setTimeout(() => answer({ error: "timeout" }), timeoutMilliseconds);
  socket.on("error", (error: NodeJS.ErrnoException) =>
    answer({ error: error.code ?? error.message }),
  );
  socket.on("message", (message, from) => {
    clearTimeout(timer);
    const split = message.indexOf(10);
    const same = message.subarray(split + 1).equals(payload);
    const fromRightPlace = from.port === port && plain(from.address) === plain(host);
    answer({
      ok: same && fromRightPlace,
      seen: message.subarray(0, split).toString(),
      error: fromRightPlace
        ? same
          ? ""
          : "other payload"
        : `answer from ${from.address}:${from.port}`,
      bytes: message.length - split - 1,
    });
  });
  socket.send(payload, port, host);
}

/** Sends numbered blocks and checks the echo until time is up; reports what came back right. */
function stream(host: string, port: number, seconds: number): void {
  const block = randomBytes(65536);
  const socket = connect({ host, port });
  let header = "";
  let seen = "";
  let received = 0;
  let offset = 0;
  const finish = (error: string): never =>
    answer({ ok: error === "", error, bytes: received, seen });
  const pump = (): void => {
    while (socket.writable && socket.write(block)) if (socket.writableLength > 1 << 20) return;
  };
  socket.on("connect", pump);
  socket.on("drain", pump);
  socket.on("error", (error: NodeJS.ErrnoException) => finish(error.code ?? error.message));
  socket.on("data", (data) => {
    let rest = data;
    if (seen === "") {
      const split = rest.indexOf(10);
      if (split < 0) {
        header += rest.toString();
        return;
      }
      seen = header + rest.subarray(0, split).toString();
      rest = rest.subarray(split + 1);
    }
    while (rest.length > 0) {
      const part = rest.subarray(0, block.length - offset);
      if (!part.equals(block.subarray(offset, offset + part.length))) finish("other payload");
      received += part.length;
      offset = (offset + part.length) % block.length;
      rest = rest.subarray(part.length);
    }
  });
  socket.on("close", () => finish("closed"));
  setTimeout(() => finish(received > 0 ? "" : "nothing came back"), seconds * 1000);
  setInterval(() => console.error(received), 100);
}

const [verb, ...words] = process.argv.slice(2);
switch (verb) {
  case "serve":
    serve(Number(words[0]));
    break;
  case "connect": {
    const [protocol, host = "", port, bytes] = words;
    if (protocol === "udp") connectUdp(host, Number(port), Number(bytes));
    else connectTcp(host, Number(port), Number(bytes));
    break;
  }
  case "stream":
    stream(words[0] ?? "", Number(words[1]), Number(words[2]));
    break;
  default:
    console.error("probe.ts serve|connect|stream");
    process.exit(2);
}
