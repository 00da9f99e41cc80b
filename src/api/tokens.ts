/**
 * Tokens of the TCP listener. The file holds no token, only their hashes: one
 * `<sha256 in hex> <read|write> <name>` a line, `#` begins a comment.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { z } from "zod";
import { nameSchema } from "../network/model.ts";

export const scopeSchema = z.enum(["read", "write"]);
export type Scope = z.infer<typeof scopeSchema>;

export interface Token {
  hash: Buffer;
  scope: Scope;
  name: string;
}

const lineSchema = z.tuple([
  z.string().regex(/^[0-9a-f]{64}$/i, "must be a SHA-256 in 64 hex digits"),
  scopeSchema,
  nameSchema,
]);

const sha256 = (text: string): Buffer => createHash("sha256").update(text, "utf8").digest();

/**
 * Reads the lines of a token file.
 *
 * @throws Error naming the line that is wrong.
 */
export function parseTokens(text: string, path: string): Token[] {
  const tokens: Token[] = [];
  for (const [index, raw] of text.split("\n").entries()) {
    const line = raw.replace(/#.*/, "").trim();
    if (line === "") continue;
    const parsed = lineSchema.safeParse(line.split(/\s+/));
    if (!parsed.success) {
      throw new Error(
        `${path}, line ${index + 1}: expected "<sha256> <read|write> <name>", as natbridge token create prints it`,
      );
    }
    const [hash, scope, name] = parsed.data;
    tokens.push({ hash: Buffer.from(hash, "hex"), scope, name });
  }
  if (tokens.length === 0) {
    throw new Error(`${path} holds no token: make one with natbridge token create`);
  }
  return tokens;
}

export function readTokens(path: string): Token[] {
  return parseTokens(readFileSync(path, "utf8"), path);
}

/** The token that `secret` is; compares with every one, each in constant time. */
export function findToken(tokens: Token[], secret: string): Token | null {
  const hash = sha256(secret);
  let found: Token | null = null;
  for (const token of tokens) {
    if (timingSafeEqual(hash, token.hash)) found = token;
  }
  return found;
}

/** A new secret, and the line of the token file that lets it in. */
export function createToken(name: string, scope: Scope): { secret: string; line: string } {
  const secret = `nb_${randomBytes(32).toString("base64url")}`;
  return { secret, line: `${sha256(secret).toString("hex")} ${scope} ${name}` };
}
