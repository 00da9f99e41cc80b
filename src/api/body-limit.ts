/** How large a body may be. */
import type { MiddlewareHandler } from "hono";
import { ProblemError } from "../problem.ts";

const mebibyte = 1024 * 1024;
const limitOf = (path: string): number => (path === "/v1/apply" ? 16 : 1);

function tooLarge(mebibytes: number): ProblemError {
  return new ProblemError("body_too_large", `The body must not exceed ${mebibytes} MiB.`);
}

/** Reads on only as far as the limit: what comes after it is never kept. */
async function readBody(stream: ReadableStream<Uint8Array>, mebibytes: number): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of stream) {
    size += chunk.length;
    if (size > mebibytes * mebibyte) throw tooLarge(mebibytes);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/**
 * Refuses a body over 1 MiB, or 16 MiB for apply. Where a length is announced the server holds the
 * sender to it; a chunked body is read here and put in the request's place. (hono's own limiter
 * copies every request with its abort signal, of which Deno complains on stderr.)
 */
export const limitBody: MiddlewareHandler = async (context, next) => {
  const { raw, path, method } = context.req;
  const mebibytes = limitOf(path);
  const announced = raw.headers.get("content-length");
  if (announced !== null && !raw.headers.has("transfer-encoding")) {
    if (!(Number(announced) <= mebibytes * mebibyte)) throw tooLarge(mebibytes);
  } else if (raw.body !== null && method !== "GET" && method !== "HEAD") {
    const body = await readBody(raw.body, mebibytes);
    context.req.raw = new Request(raw.url, { method, headers: raw.headers, body });
  }
  await next();
};
