/** HTTP requests over a unix socket or TCP, by node:http, which both runtimes have. */
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest, type RequestOptions } from "node:https";

/** Where an HTTP server is. */
export type HttpTarget =
  | { kind: "unix"; socketPath: string }
  | {
      kind: "tcp";
      /** Null: plain HTTP. `ca`: certificates trusted besides none others; undefined: the system's. */
      tls: { ca: string | undefined } | null;
      host: string;
      port: number;
    };

export interface HttpCall {
  method: string;
  /** Path with query. */
  path: string;
  headers?: Record<string, string>;
  body?: string;
  /** Silence of the server after which the call fails; 0: never. */
  timeoutMilliseconds?: number;
}

/** An answer whose body is still to be read. */
export interface HttpAnswer {
  status: number;
  header(name: string): string;
  text(): Promise<string>;
  /** The body as it comes. */
  chunks(): AsyncIterable<Buffer>;
  /** Stops reading. */
  close(): void;
}

const defaultTimeoutMilliseconds = 120_000;

function answer(message: IncomingMessage): HttpAnswer {
  return {
    status: message.statusCode ?? 0,
    header(name) {
      const value = message.headers[name];
      return Array.isArray(value) ? value.join(", ") : (value ?? "");
    },
    async text() {
      const chunks: Buffer[] = [];
      for await (const chunk of message) chunks.push(Buffer.from(chunk));
      return Buffer.concat(chunks).toString("utf8");
    },
    chunks: () => message,
    close: () => message.destroy(),
  };
}

/**
 * Sends a request and resolves with the head of its answer.
 *
 * @throws the system's error (`ECONNREFUSED`, `ENOENT` …) if nobody answers.
 */
export function sendHttp(target: HttpTarget, call: HttpCall): Promise<HttpAnswer> {
  const body = call.body === undefined ? undefined : Buffer.from(call.body, "utf8");
  const options: RequestOptions = {
    method: call.method,
    path: call.path,
    agent: false,
    headers: {
      host: target.kind === "unix" ? "localhost" : target.host,
      ...call.headers,
      ...(body === undefined ? {} : { "content-length": String(body.length) }),
    },
    ...(target.kind === "unix"
      ? { socketPath: target.socketPath }
      : {
          hostname: target.host,
          port: target.port,
          ...(target.tls?.ca ? { ca: target.tls.ca } : {}),
        }),
  };
  const send = target.kind === "tcp" && target.tls !== null ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    const request = send(options, (message) => resolve(answer(message)));
    const timeout = call.timeoutMilliseconds ?? defaultTimeoutMilliseconds;
    if (timeout > 0) {
      request.setTimeout(timeout, () =>
        request.destroy(new Error(`no answer within ${timeout / 1000} s`)),
      );
    }
    request.on("error", reject);
    request.end(body);
  });
}
