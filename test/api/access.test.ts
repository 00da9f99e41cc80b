import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createToken, findToken, parseTokens } from "../../src/api/tokens.ts";
import { at, createTestApp, seed } from "./support.ts";

const test = suite("access over TCP");
const reader = createToken("grafana", "read");
const writer = createToken("operator", "write");
const tokens = parseTokens(`# tokens\n${reader.line}\n\n  ${writer.line}  # a comment\n`, "tokens");
const host = "nat.example";
const protectedApp = () => createTestApp({ tokens, host });
const bearer = (secret: string) => ({ host: "127.0.0.1:9000", authorization: `Bearer ${secret}` });

test("without a known token nothing is told", async () => {
  const api = await protectedApp();
  for (const authorization of [
    "",
    "Bearer ",
    "Bearer wrong",
    "Basic eA==",
    `Bearer ${reader.line.split(" ")[0]}`,
  ]) {
    const answer = await api.request("GET", "/v1/networks", undefined, {
      host: "127.0.0.1",
      authorization,
    });
    assert.is(answer.status, 401, authorization);
    assert.is(at(answer, "/code"), "unauthorized");
  }
  assert.is((await api.request("GET", "/metrics", undefined, { host: "127.0.0.1" })).status, 401);
  assert.is((await api.request("GET", "/nothing", undefined, { host: "127.0.0.1" })).status, 401);
});

test("health needs no token", async () => {
  const api = await protectedApp();
  for (const path of ["/healthz", "/readyz"])
    assert.is((await api.request("GET", path, undefined, { host: "127.0.0.1" })).status, 200);
});

test("scope read reads, scope write writes", async () => {
  const api = await protectedApp();
  assert.is(
    (await api.request("GET", "/v1/networks", undefined, bearer(reader.secret))).status,
    200,
  );
  for (const [method, path] of [
    ["POST", "/v1/networks"],
    ["PATCH", "/v1/datapath"],
    ["DELETE", "/v1/networks/x"],
    ["POST", "/v1/apply"],
  ] as const) {
    const refused = await api.request(
      method,
      path,
      method === "DELETE" ? undefined : { name: "n" },
      bearer(reader.secret),
    );
    assert.is(refused.status, 403, path);
    assert.is(at(refused, "/code"), "insufficient_scope");
  }
  assert.is(
    (await api.request("POST", "/v1/networks", { name: "n" }, bearer(writer.secret))).status,
    201,
  );
});

test("the Host header must be an address or the listener's name", async () => {
  const api = await protectedApp();
  const ask = async (name: string) =>
    (await api.request("GET", "/healthz", undefined, { host: name })).status;
  for (const name of [
    "127.0.0.1",
    "127.0.0.1:9000",
    "[::1]:9000",
    "localhost:9000",
    "NAT.example",
    "198.51.100.1",
  ])
    assert.is(await ask(name), 200, name);
  for (const name of [
    "evil.example",
    "evil.example:9000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "a@b",
    "",
  ])
    assert.is(await ask(name), 400, name);
});

test("a token file is read line by line, and a wrong line is named", () => {
  assert.is(tokens.length, 2);
  assert.is(findToken(tokens, writer.secret)?.name, "operator");
  assert.is(findToken(tokens, "other"), null);
  assert.throws(
    () => parseTokens(`${reader.line}\nabc read x`, "/etc/tokens"),
    /\/etc\/tokens, line 2/,
  );
  assert.throws(() => parseTokens(reader.line.replace("read", "admin"), "f"), /line 1/);
  assert.throws(() => parseTokens("# none\n", "f"), /no token/);
});

test("a token is not guessable and its line does not hold it", () => {
  assert.is.not(createToken("a", "read").secret, createToken("a", "read").secret);
  assert.ok(reader.secret.length > 40);
  assert.not.ok(reader.line.includes(reader.secret));
});

test("the unix socket's own app asks for none", async () => {
  const api = await createTestApp();
  await seed(api);
  assert.is(
    (await api.request("GET", "/v1/networks", undefined, { host: "anything" })).status,
    200,
  );
});

test.run();
