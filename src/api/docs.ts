/** `/openapi.json`, and `/docs`: the same as one HTML page without scripts or outside assets. */

import { createRoute, z } from "@hono/zod-openapi";
import { html, raw } from "hono/html";
import { type OpenApiDocument, openApiDocument } from "./openapi.ts";
import { problemResponses } from "./problem.ts";
import { type Api, json } from "./route.ts";

/** What the page shows of an operation; the document's own type is far wider. */
const schemaRef: z.ZodType<{ schema?: Record<string, unknown> | undefined }> = z.object({
  schema: z.record(z.string(), z.unknown()).optional(),
});
const contentSchema = z.record(z.string(), schemaRef);
const operationSchema = z.object({
  summary: z.string().optional(),
  tags: z.array(z.string()).optional(),
  parameters: z
    .array(
      z.object({
        name: z.string(),
        in: z.string(),
        required: z.boolean().optional(),
        description: z.string().optional(),
        schema: z.record(z.string(), z.unknown()).optional(),
      }),
    )
    .optional(),
  requestBody: z.object({ content: contentSchema }).optional(),
  responses: z.record(
    z.string(),
    z.object({ description: z.string(), content: contentSchema.optional() }),
  ),
});
const documentSchema = z.object({
  info: z.object({ title: z.string(), version: z.string(), description: z.string() }),
  paths: z.record(z.string(), z.record(z.string(), operationSchema)),
  components: z.object({ schemas: z.record(z.string(), z.unknown()) }),
});
type Operation = z.infer<typeof operationSchema>;

const style = `
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: .4rem; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 4.2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
h2 { margin-top: 2.2rem; }
`;

function typeName(schema: Record<string, unknown> | undefined): string {
  const reference = schema?.["$ref"];
  if (typeof reference === "string") return reference.split("/").at(-1) ?? "";
  return JSON.stringify(schema ?? {});
}

function content(of: Record<string, { schema?: Record<string, unknown> | undefined }> | undefined) {
  return Object.entries(of ?? {}).map(([type, { schema }]) => {
    const name = typeName(schema);
    const known = schema?.["$ref"] !== undefined;
    const shown = known ? html`<a href="#schema-${name}">${name}</a>` : html`<code>${name}</code>`;
    return html`<div><code>${type}</code> ${shown}</div>`;
  });
}

function operation(method: string, path: string, call: Operation) {
  const parameters = (call.parameters ?? []).map(
    (item) => html`<tr>
      <td><code>${item.name}</code></td>
      <td>${item.in}${item.required ? ", required" : ""}</td>
      <td>${item.description ?? ""} <code>${JSON.stringify(item.schema ?? {})}</code></td>
    </tr>`,
  );
  const responses = Object.entries(call.responses).map(
    ([status, response]) => html`<tr>
      <td><code>${status}</code></td>
      <td>${response.description}</td>
      <td>${content(response.content)}</td>
    </tr>`,
  );
  return html`<details>
    <summary><b>${method.toUpperCase()}</b> <code>${path}</code> ${call.summary ?? ""}</summary>
    ${parameters.length > 0 ? html`<h4>Parameters</h4><table>${parameters}</table>` : ""}
    ${call.requestBody ? html`<h4>Body</h4>${content(call.requestBody.content)}` : ""}
    <h4>Answers</h4>
    <table>${responses}</table>
  </details>`;
}

/** The document as a page for people. */
export function renderDocs(document: OpenApiDocument) {
  const { info, paths, components } = documentSchema.parse(JSON.parse(JSON.stringify(document)));
  const byTag = new Map<string, ReturnType<typeof operation>[]>();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, call] of Object.entries(methods)) {
      const tag = call.tags?.[0] ?? "other";
      byTag.set(tag, [...(byTag.get(tag) ?? []), operation(method, path, call)]);
    }
  }
  const sections = [...byTag].map(([tag, calls]) => html`<h2>${tag}</h2>${calls}`);
  const schemas = Object.entries(components.schemas).map(
    ([name, schema]) => html`<details id="schema-${name}">
      <summary><code>${name}</code></summary>
      <pre>${JSON.stringify(schema, null, 2)}</pre>
    </details>`,
  );
  return html`<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>natbridge API</title><style>${raw(style)}</style></head>
<body>
<h1>natbridge API <small>${info.version}</small></h1>
<p>${info.description}</p>
<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>
${sections}
<h2>Schemas</h2>
${schemas}
</body>
</html>`;
}

const contentSecurityPolicy = [
  "default-src 'none'",
  "style-src 'unsafe-inline'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

const codes = ["invalid_request", "unauthorized", "internal"] as const;
const documentRoute = createRoute({
  method: "get",
  path: "/openapi.json",
  operationId: "getOpenApi",
  tags: ["system"],
  summary: "This description of the API",
  responses: {
    200: json(z.object({ openapi: z.string() }), "The document"),
    ...problemResponses(...codes),
  },
});
const pageRoute = createRoute({
  method: "get",
  path: "/docs",
  operationId: "getDocs",
  tags: ["system"],
  summary: "The same for people",
  responses: {
    200: { description: "The page", content: { "text/html": { schema: z.string() } } },
    ...problemResponses(...codes),
  },
});

/** Adds both; call it after all other routes were added. */
export function docsRoutes(api: Api, needsToken: boolean): void {
  let document: OpenApiDocument | null = null;
  const read = (): OpenApiDocument => {
    document ??= openApiDocument(api, needsToken);
    return document;
  };
  api.openapi(documentRoute, (context) => context.json({ ...read() }, 200));
  api.openapi(pageRoute, (context) => {
    context.header("content-security-policy", contentSecurityPolicy);
    context.header("referrer-policy", "no-referrer");
    return context.html(renderDocs(read()), 200);
  });
}
