/** Both ends of the demo's requests: an HTTP server for web, and a client that holds its connection. */
import { Agent, createServer, type IncomingMessage, request } from "node:http";
import type { Socket } from "node:net";
import { z } from "zod";

const socketEnd = z.object({
  localAddress: z.string(),
  localPort: z.int(),
  remoteAddress: z.string(),
  remotePort: z.int(),
});

/** A connection as each side's socket sees it. */
const headSchema = z.object({ status: z.int(), client: socketEnd, server: socketEnd });
export type Head = z.infer<typeof headSchema>;

const reportSchema = z.object({
  head: headSchema.optional(),
  bytes: z.number().optional(),
  /** When each request of a stream ended, in milliseconds since 1970, and its status; 0: none. */
  stream: z.array(z.object({ at: z.number(), status: z.int() })).optional(),
});
export type Report = z.infer<typeof reportSchema>;

export const parseReport = (line: string): Report => reportSchema.parse(JSON.parse(line));

/** An IPv4 client of an IPv6 socket is shown as IPv4. */
const plain = (address = ""): string => address.replace(/^::ffff:(?=\d+\.)/, "");

const endOf = (socket: Socket): z.infer<typeof socketEnd> => ({
  localAddress: plain(socket.localAddress),
  localPort: socket.localPort ?? 0,
  remoteAddress: plain(socket.remoteAddress),
  remotePort: socket.remotePort ?? 0,
});

const endHeader = "x-server-socket";
const chunk = Buffer.alloc(65_536, "natbridge ");

/** Answers `/`, and `/bulk?seconds=N` with bytes for that long. Goes on until it is killed. */
export function serve(port: number): Promise<never> {
  const server = createServer((incoming, answer) => {
    answer.setHeader(endHeader, JSON.stringify(endOf(incoming.socket)));
    const url = new URL(incoming.url ?? "/", "http://web");
    if (url.pathname !== "/bulk") {
      answer.end("hello from web\n");
      return;
    }
    const until = performance.now() + 1000 * Math.min(60, Number(url.searchParams.get("seconds")));
    const write = (): void => {
      if (answer.destroyed) return;
      if (performance.now() >= until) answer.end();
      else if (answer.write(chunk)) setImmediate(write);
      else answer.once("drain", write);
    };
    write();
  });
  return new Promise((_, reject) => {
    server.on("error", reject);
    server.listen(port, "::", () => process.stdout.write("listening\n"));
  });
}

const report = (line: Report): boolean => process.stdout.write(`${JSON.stringify(line)}\n`);

function send(url: string, agent: Agent | false): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const call = request(url, { agent, timeout: 10_000 }, resolve);
    call.on("timeout", () => call.destroy(new Error("no answer within 10 s")));
    call.on("error", reject);
    call.end();
  });
}

/** One request; its connection is held until stdin ends. */
export async function ask(url: string): Promise<void> {
  const agent = new Agent({ keepAlive: true });
  const answer = await send(url, agent);
  const server = socketEnd.parse(JSON.parse(String(answer.headers[endHeader] ?? "null")));
  report({ head: { status: answer.statusCode ?? 0, client: endOf(answer.socket), server } });
  let bytes = 0;
  for await (const part of answer) bytes += Buffer.from(part).length;
  report({ bytes });
  for await (const _ of process.stdin);
  agent.destroy();
}

/** One request after another, each by a new connection, until stdin ends. */
export async function askOnAndOn(url: string): Promise<void> {
  let stopped = false;
  process.stdin.once("end", () => {
    stopped = true;
  });
  process.stdin.resume();
  const stream: { at: number; status: number }[] = [];
  while (!stopped) {
    const status = await send(url, false).then(
      (answer) => {
        answer.resume();
        return answer.statusCode ?? 0;
      },
      () => 0,
    );
    stream.push({ at: Date.now(), status });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  report({ stream });
}
