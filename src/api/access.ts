/** Who may call over TCP: tokens, scopes, and the Host header against DNS rebinding. */

import { isIP } from "node:net";
import type { MiddlewareHandler } from "hono";
import { ProblemError } from "../problem.ts";
import { findToken, type Token } from "./tokens.ts";

export interface Access {
  tokens: Token[];
  /** Name given to --listen: besides IP addresses and localhost, the only Host that is served. */
  host: string;
}

const withoutToken = new Set(["/healthz", "/readyz"]);
const reading = new Set(["GET", "HEAD"]);

/** The host of a Host header, without port and brackets; empty if it is none. */
function hostOf(header: string): string {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+))(?::\d{1,5})?$/.exec(header);
  return (match?.[1] ?? match?.[2] ?? "").toLowerCase();
}

/**
 * A page of another site can make its own name resolve to this host, but then its name stands in
 * the Host header; an IP address there was typed by someone.
 */
function requireHost(header: string | undefined, own: string): void {
  const host = hostOf(header ?? "");
  if (isIP(host) !== 0 || host === "localhost" || host === own.toLowerCase()) return;
  throw new ProblemError(
    "invalid_request",
    `/header/host: call natbridge by IP address, localhost or the name given to --listen, not "${host}".`,
    [{ pointer: "/header/host", message: "not a name of this listener" }],
  );
}

function requireToken(header: string | undefined, access: Access): Token {
  const secret = /^Bearer ([\x21-\x7e]+)$/i.exec(header ?? "")?.[1];
  if (secret === undefined) {
    throw new ProblemError("unauthorized", "Send a token: Authorization: Bearer …");
  }
  const token = findToken(access.tokens, secret);
  if (token === null) throw new ProblemError("unauthorized", "This token is not known.");
  return token;
}

/** Lets in who has a token; writing needs one of scope `write`. */
export function requireAccess(access: Access): MiddlewareHandler {
  return async (context, next) => {
    requireHost(context.req.header("host"), access.host);
    if (!withoutToken.has(context.req.path)) {
      const token = requireToken(context.req.header("authorization"), access);
      if (token.scope === "read" && !reading.has(context.req.method)) {
        throw new ProblemError(
          "insufficient_scope",
          `Token "${token.name}" may only read: this call needs one of scope write.`,
        );
      }
    }
    await next();
  };
}
