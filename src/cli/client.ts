/** The command line's side of the HTTP API: every answer is checked before it is used. */
import { readFileSync } from "node:fs";
import type { ZodType } from "zod";
import { z } from "zod";
import { reasonOf } from "../reason.ts";
import { defaultRunDir, socketName } from "../runtime/daemon-options.ts";
import { type HttpAnswer, type HttpTarget, sendHttp } from "../runtime/http-client.ts";
import { FailedError, UsageError } from "./errors.ts";

const problemSchema = z.object({
  status: z.int(),
  detail: z.string(),
  code: z.string(),
  errors: z.array(z.object({ pointer: z.string(), message: z.string() })).optional(),
});

/** The daemon refused. */
export class RefusedError extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, detail: string) {
    super(detail);
    this.name = "RefusedError";
    this.status = status;
    this.code = code;
  }
}

/** NATBRIDGE_CA: a PEM file for a daemon whose certificate the system does not know. */
function trustedCertificates(): string | undefined {
  const path = process.env["NATBRIDGE_CA"];
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new UsageError(`NATBRIDGE_CA: ${reasonOf(error)}`);
  }
}

const hostHint = "give --host unix:///path/to.sock, http://127.0.0.1:PORT or https://HOST:PORT";

/**
 * Takes `--host` or NATBRIDGE_HOST apart.
 *
 * @throws UsageError if it is no address natbridge can call.
 */
export function parseTarget(host: string): HttpTarget {
  if (host.startsWith("unix://")) {
    const socketPath = host.slice("unix://".length);
    if (socketPath.startsWith("/")) return { kind: "unix", socketPath };
    throw new UsageError(`--host ${host}: the socket's path must be absolute; ${hostHint}`);
  }
  let url: URL;
  try {
    url = new URL(host);
  } catch {
    throw new UsageError(`--host ${host} is not an address; ${hostHint}`);
  }
  const tls = url.protocol === "https:";
  if ((!tls && url.protocol !== "http:") || url.hostname === "") {
    throw new UsageError(`--host ${host} is not an address; ${hostHint}`);
  }
  const port = url.port === "" ? (tls ? 443 : 80) : Number(url.port);
  return {
    kind: "tcp",
    tls: tls ? { ca: trustedCertificates() } : null,
    host: url.hostname.replace(/^\[|\]$/g, ""),
    port,
  };
}

export const defaultHost = `unix://${defaultRunDir}/${socketName}`;

function unreachable(host: string, error: unknown): FailedError {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (code === "EACCES" || code === "EPERM") {
    return new FailedError(
      `no permission for ${host}: run this as root, or join the socket's group`,
    );
  }
  if (code === "ENOENT" || code === "ECONNREFUSED") {
    return new FailedError(`no daemon answers at ${host}: start it with natbridge daemon`);
  }
  return new FailedError(`${host}: ${reasonOf(error)}`);
}

async function refusal(answer: HttpAnswer): Promise<Error> {
  const text = await answer.text();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  const parsed = problemSchema.safeParse(body);
  if (!parsed.success)
    return new FailedError(`the server answered ${answer.status}, not as natbridge does`);
  const { status, code, detail, errors = [] } = parsed.data;
  const more = errors.slice(1).map(({ pointer, message }) => `  ${pointer}: ${message}`);
  return new RefusedError(status, code, [detail, ...more].join("\n"));
}

export type Query = Record<string, string | string[] | undefined>;

function withQuery(path: string, query: Query = {}): string {
  const parameters = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined) parameters.append(key, one);
    }
  }
  const text = parameters.toString();
  return text === "" ? path : `${path}?${text}`;
}

/** A `{ref}` or `{name}` as a step of a path. */
export const step = (reference: string): string => encodeURIComponent(reference);

export interface ClientOptions {
  host: string;
  token: string | undefined;
}

export class Client {
  readonly #host: string;
  readonly #target: HttpTarget;
  readonly #headers: Record<string, string>;

  constructor({ host, token }: ClientOptions) {
    this.#host = host;
    this.#target = parseTarget(host);
    this.#headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
  }

  /** @throws RefusedError if the daemon refuses, FailedError if it cannot be reached. */
  async send(
    method: string,
    path: string,
    options: { query?: Query; body?: unknown; headers?: Record<string, string>; endless?: boolean },
  ): Promise<HttpAnswer> {
    const { query, body, headers, endless } = options;
    let answer: HttpAnswer;
    try {
      answer = await sendHttp(this.#target, {
        method,
        path: withQuery(path, query),
        headers: {
          ...this.#headers,
          ...headers,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        ...(endless ? { timeoutMilliseconds: 0 } : {}),
      });
    } catch (error) {
      throw unreachable(this.#host, error);
    }
    if (answer.status >= 200 && answer.status < 300) return answer;
    throw await refusal(answer);
  }

  async #read<T>(schema: ZodType<T>, answer: HttpAnswer): Promise<T> {
    let body: unknown;
    try {
      body = JSON.parse(await answer.text());
    } catch {
      throw new FailedError(`${this.#host} did not answer in JSON`);
    }
    const parsed = schema.safeParse(body);
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    throw new FailedError(
      `${this.#host} answered what this version of natbridge does not understand (${issue?.path.join(".")}: ${issue?.message}); natbridge version tells both versions`,
    );
  }

  async get<T>(schema: ZodType<T>, path: string, query?: Query): Promise<T> {
    return this.#read(schema, await this.send("GET", path, query === undefined ? {} : { query }));
  }

  async write<T>(
    schema: ZodType<T>,
    method: "POST" | "PUT" | "PATCH",
    path: string,
    body: unknown,
    query?: Query,
  ): Promise<T> {
    return this.#read(
      schema,
      await this.send(method, path, query === undefined ? { body } : { body, query }),
    );
  }

  async remove(path: string, query?: Query): Promise<void> {
    const answer = await this.send("DELETE", path, query === undefined ? {} : { query });
    await answer.text();
  }

  /** All pages of a list. */
  async list<T>(item: ZodType<T>, path: string, query: Query = {}): Promise<T[]> {
    const schema = z.object({ items: z.array(item), nextCursor: z.string().optional() });
    const items: T[] = [];
    let cursor: string | undefined;
    do {
      const page = await this.get(schema, path, { ...query, ...(cursor ? { cursor } : {}) });
      items.push(...page.items);
      cursor = page.nextCursor;
    } while (cursor !== undefined);
    return items;
  }
}
