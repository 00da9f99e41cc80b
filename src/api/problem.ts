/** From whatever was thrown to `application/problem+json`: the only place that makes one. */
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import type { z } from "zod";
import { DatapathError } from "../datapath/error.ts";
import type { Logger } from "../log.ts";
import { type FieldError, type ProblemCode, ProblemError, problems } from "../problem.ts";
import { type Problem, problem as problemSchema } from "./schemas.ts";

const problemType = "application/problem+json";

/** Body of the answer to a refused request (RFC 9457, section 3). */
export function problemBody(code: ProblemCode, detail: string, errors: FieldError[] = []): Problem {
  const { status, title } = problems[code];
  return {
    type: `urn:natbridge:problem:${code}`,
    title,
    status,
    detail,
    code,
    ...(errors.length > 0 ? { errors } : {}),
  };
}

/** The answer itself, with the status of the code's row in the table. */
export function problemResponse(
  code: ProblemCode,
  detail: string,
  errors: FieldError[] = [],
  headers: Record<string, string> = {},
): Response {
  return new Response(JSON.stringify(problemBody(code, detail, errors)), {
    status: problems[code].status,
    headers: { "content-type": problemType, ...headers },
  });
}

/** Where a validator looked; the body's pointers stand alone, the others get this as first step. */
export type RequestPart = "json" | "query" | "param" | "header";
const pointerPrefix: Record<RequestPart, string> = {
  json: "",
  query: "/query",
  param: "/path",
  header: "/header",
};

/** RFC 6901: `~` and `/` are escaped in a step. */
function pointerStep(key: PropertyKey): string {
  return `/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}

function toPointer(part: RequestPart, path: PropertyKey[]): string {
  return pointerPrefix[part] + path.map(pointerStep).join("");
}

/** A union's own message says nothing; the messages of the branch that came furthest do. */
function flatten(part: RequestPart, issue: z.core.$ZodIssue, path: PropertyKey[]): FieldError[] {
  const here = [...path, ...issue.path];
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => ({
      pointer: toPointer(part, [...here, key]),
      message: part === "query" ? `unknown parameter "${key}"` : `unknown field "${key}"`,
    }));
  }
  if (issue.code === "invalid_union" && issue.errors.length > 0) {
    const messages = issue.errors.flatMap((branch) => branch.map((inner) => inner.message));
    return [{ pointer: toPointer(part, here), message: [...new Set(messages)].join(", or ") }];
  }
  return [{ pointer: toPointer(part, here), message: issue.message }];
}

/** More than this many wrong fields are not listed one by one. */
const maxFieldErrors = 50;

/** What zod found, field by field. */
export function validationProblem(error: z.core.$ZodError, part: RequestPart): ProblemError {
  const errors: FieldError[] = [];
  for (const issue of error.issues) {
    if (errors.length >= maxFieldErrors) break;
    errors.push(...flatten(part, issue, []));
  }
  errors.length = Math.min(errors.length, maxFieldErrors);
  const first = errors[0];
  const detail = first
    ? `${first.pointer || "the body"}: ${first.message}`
    : "The request is not valid.";
  const more = error.issues.length > 1 ? ` (and ${error.issues.length - 1} more)` : "";
  return new ProblemError("invalid_request", detail + more, errors);
}

function fromHttpException(error: HTTPException): Response {
  if (error.status === 413) return problemResponse("body_too_large", "The body is too large.");
  if (error.status === 415) {
    return problemResponse(
      "unsupported_media_type",
      "Send the body as content-type application/json.",
    );
  }
  return problemResponse("invalid_request", error.message || "The request is not valid.", [
    { pointer: "", message: error.message || "not valid" },
  ]);
}

/**
 * Answers for anything thrown by a handler. What is not a refusal of ours is logged whole and
 * answered without its text: a stack trace or a path never leaves the daemon.
 */
export function errorResponse(error: Error, context: Context, log: Logger): Response {
  if (error instanceof ProblemError) {
    if (error.status >= 500) log.error({ err: error }, "request failed");
    return problemResponse(error.code, error.message, error.errors);
  }
  if (error instanceof HTTPException) return fromHttpException(error);
  if (error instanceof DatapathError) {
    log.error({ err: error, kind: error.kind }, "the kernel refused");
    return problemResponse("internal", `The kernel refused: ${error.message}`);
  }
  log.error({ err: error, method: context.req.method, path: context.req.path }, "request failed");
  return problemResponse(
    "internal",
    "natbridge could not do this; the daemon's log says why. Nothing was changed.",
  );
}

/** OpenAPI `responses` for the codes a call can answer, grouped by status. */
export function problemResponses(...codes: ProblemCode[]) {
  const byStatus = new Map<number, ProblemCode[]>();
  for (const code of new Set(codes)) {
    const { status } = problems[code];
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  const responses: Record<
    string,
    { description: string; content: Record<string, { schema: typeof problemSchema }> }
  > = {};
  for (const [status, list] of [...byStatus].sort(([a], [b]) => a - b)) {
    responses[status] = {
      description: list.map((code) => `\`${code}\``).join(", "),
      content: { [problemType]: { schema: problemSchema } },
    };
  }
  return responses;
}
