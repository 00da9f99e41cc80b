/** Version and runtime, as `natbridge version`, `/metrics` and the OpenAPI document tell them. */
import packageJson from "../package.json" with { type: "json" };

export const version: string = packageJson.version;

/** `deno 2.9.5` or `node 24.21.0`. */
export const runtime: string =
  process.versions.deno === undefined
    ? `node ${process.versions.node}`
    : `deno ${process.versions.deno}`;
