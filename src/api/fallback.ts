/** 404 and 405, as problems that say which calls there are. */
import type { MiddlewareHandler } from "hono";
import { problemResponse } from "./problem.ts";
import type { Api } from "./route.ts";

interface KnownPath {
  pattern: RegExp;
  methods: Set<string>;
}

const escapePattern = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

function knownPaths(api: Api): KnownPath[] {
  const paths = new Map<string, Set<string>>();
  for (const { method, path } of api.routes) {
    if (method === "ALL" || path.includes("*")) continue;
    paths.set(path, (paths.get(path) ?? new Set()).add(method));
  }
  return [...paths].map(([path, methods]) => ({
    pattern: new RegExp(
      `^${path
        .split("/")
        .map((step) => (step.startsWith(":") ? "[^/]+" : escapePattern(step)))
        .join("/")}$`,
    ),
    methods: methods.has("GET") ? new Set([...methods, "HEAD"]) : methods,
  }));
}

/**
 * Refuses what is no call before anything else of it is looked at: a path that is not there, or a
 * method that a path does not have. `api` may get its routes later.
 */
export function requireCall(api: Api): MiddlewareHandler {
  let known: KnownPath[] | null = null;
  return async (context, next) => {
    known ??= knownPaths(api);
    const { method, path } = context.req;
    const methods = known.flatMap((item) => (item.pattern.test(path) ? [...item.methods] : []));
    if (methods.length === 0)
      return problemResponse("not_found", `There is no ${path}; /openapi.json lists all calls.`);
    if (methods.includes(method)) return next();
    const allow = [...new Set(methods)].sort().join(", ");
    return problemResponse(
      "method_not_allowed",
      `${path} cannot be called with ${method}, only with ${allow}.`,
      [],
      { allow },
    );
  };
}
