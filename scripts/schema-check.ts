/**
 * Tests the API by its own description, with schemathesis: what the schema allows must be understood,
 * what it forbids refused, and every answer be one that it announces. The real core serves, on a host
 * in memory, at a port of loopback. Words after the command are schemathesis' own:
 *
 *     npm run test:schema                                     as in npm test, under half a minute
 *     npm run test:schema -- --max-examples 300 --seed 7      longer, by hand
 *     … --runtime node                                        the server's; deno unless given
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = join(root, "test/schema");
const { values, tokens } = parseArgs({
  options: { runtime: { type: "string", default: "deno" } },
  strict: false,
  tokens: true,
});
const runtime = values.runtime === "node" ? "node" : "deno";
const own = new Set(
  tokens
    .filter((token) => token.kind === "option" && token.name === "runtime")
    .map(({ index }) => index),
);
const given = process.argv.slice(2).filter((_, index) => !own.has(index) && !own.has(index - 1));

const flags =
  runtime === "deno" ? ["run", "--quiet", "-A", "--no-config", "--node-modules-dir=manual"] : [];
const server = spawn(
  join(root, "node_modules/.bin", runtime),
  [...flags, join(folder, "server.ts")],
  { stdio: ["pipe", "pipe", "inherit"], env: { ...process.env, NODE_NO_WARNINGS: "1" } },
);
const [line] = await once(server.stdout, "data");
const { url, token } = JSON.parse(String(line));

const work = mkdtempSync(join(tmpdir(), "natbridge-schema-"));
const defaults = [
  "--workers=1",
  "--max-examples=10",
  "--seed=1",
  "--no-shrink",
  "--request-timeout=30",
];
const words = [
  ...["--config-file", join(folder, "schemathesis.toml")],
  ...["run", `${url}/openapi.json`, "--header", `Authorization: Bearer ${token}`],
  ...["--exclude-checks=positive_data_acceptance", "--continue-on-failure", "--warnings=off"],
  // Progress is drawn over itself in colour: in a log it would bury what failed.
  ...(process.stdout.isTTY ? [] : ["--no-color"]),
  ...[...defaults, ...given],
];
const fuzzer = spawn(join(root, ".setup/venv/bin/st"), words, {
  cwd: work,
  stdio: ["ignore", "inherit", "inherit"],
  env: {
    ...process.env,
    SCHEMATHESIS_HOOKS: "checks",
    PYTHONPATH: folder,
    PYTHONDONTWRITEBYTECODE: "1",
  },
});
fuzzer.on("error", ({ message }) => console.error(`${message}: run sh scripts/setup.sh test`));
const ended = once(fuzzer, "close").catch(() => [1]);
const [exitCode] = await ended;
server.stdin.end();
rmSync(work, { recursive: true, force: true });
process.exitCode = exitCode === 0 ? 0 : 1;
