/** The OpenAPI document: generated from the routes, which also validate. */
import { version } from "../version.ts";
import type { Api } from "./route.ts";

export type OpenApiDocument = ReturnType<Api["getOpenAPI31Document"]>;

const description = `Container networking for a Linux host: bridge networks, endpoints, published ports, and a learned eBPF fast path.

Errors are \`application/problem+json\` (RFC 9457) with a stable \`code\`. A \`pointer\` in \`errors\` is a JSON pointer into the body, or begins with \`/query\`, \`/path\` or \`/header\`.`;

/**
 * @param api An app with all its routes.
 * @param needsToken True of the TCP listener: the unix socket asks nobody.
 */
export function openApiDocument(api: Api, needsToken: boolean): OpenApiDocument {
  api.openAPIRegistry.registerComponent("securitySchemes", "token", {
    type: "http",
    scheme: "bearer",
    description: "On the TCP listener only: natbridge token create",
  });
  return api.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "natbridge",
      version,
      description,
      license: { name: "GPL-2.0-only OR Apache-2.0" },
    },
    servers: [{ url: "/", description: "The unix socket, or --listen" }],
    security: needsToken ? [{ token: [] }] : [{}, { token: [] }],
  });
}
