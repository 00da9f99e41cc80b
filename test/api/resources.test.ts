import { suite } from "uvu";
import * as assert from "uvu/assert";
import { at, createTestApp, seed, type TestApp } from "./support.ts";
import { addTraffic } from "./traffic.ts";

const test = suite<{ api: TestApp }>("resources");
test.before.each(async (context) => {
  context.api = await createTestApp();
  await seed(context.api);
});

test("a created object is answered with 201 and where it is", async ({ api }) => {
  const made = await api.request("POST", "/v1/networks", { name: "other" });
  assert.is(made.status, 201);
  assert.is(made.headers.get("location"), `/v1/networks/${at(made, "/id")}`);
  const read = await api.request("GET", made.headers.get("location") ?? "");
  assert.equal(read.body, made.body);
});

test("an object is found by name, id and unique prefix", async ({ api }) => {
  const id = String(at(await api.request("GET", "/v1/networks/my_net"), "/id"));
  for (const ref of [id, id.slice(0, 12), "my_net"]) {
    assert.is(at(await api.request("GET", `/v1/networks/${ref}`), "/name"), "my_net");
  }
});

test("each kind says that it was not found", async ({ api }) => {
  for (const kind of ["network", "sandbox", "endpoint", "port"]) {
    const answer = await api.request(
      "GET",
      `/v1/${kind === "sandbox" ? "sandboxes" : `${kind}s`}/nope`,
    );
    assert.is(answer.status, 404);
    assert.is(at(answer, "/code"), `${kind}_not_found`);
    assert.is(answer.headers.get("content-type"), "application/problem+json");
  }
});

test("PUT creates with 201, then finds with 200, and takes the name from the path", async ({
  api,
}) => {
  const body = { endpoint: "web", hostPort: 9090, containerPort: 90 };
  const first = await api.request("PUT", "/v1/ports/p", body);
  assert.is(first.status, 201);
  assert.is(at(first, "/name"), "p");
  assert.ok(first.headers.get("location"));
  const second = await api.request("PUT", "/v1/ports/p", { ...body, name: "p" });
  assert.is(second.status, 200);
  assert.is(at(second, "/id"), at(first, "/id"));
});

test("PUT refuses a body with another name", async ({ api }) => {
  const answer = await api.request("PUT", "/v1/networks/a", { name: "b" });
  assert.is(answer.status, 400);
  assert.is(at(answer, "/errors/0/pointer"), "/name");
});

test("PATCH changes and answers the object", async ({ api }) => {
  const answer = await api.request("PATCH", "/v1/networks/my_net", { labels: { a: "b" } });
  assert.is(answer.status, 200);
  assert.equal(at(answer, "/labels"), { a: "b" });
});

test("DELETE answers 204, then 404", async ({ api }) => {
  assert.is((await api.request("DELETE", "/v1/ports/web-8080")).status, 204);
  assert.is((await api.request("DELETE", "/v1/ports/web-8080")).status, 404);
});

test("a network in use goes only with force", async ({ api }) => {
  const refused = await api.request("DELETE", "/v1/networks/my_net");
  assert.is(refused.status, 409);
  assert.is(at(refused, "/code"), "network_in_use");
  assert.is((await api.request("DELETE", "/v1/networks/my_net?force=false")).status, 409);
  assert.is((await api.request("DELETE", "/v1/networks/my_net?force=true")).status, 204);
  assert.is((await api.request("GET", "/v1/endpoints/web")).status, 404);
});

test("pages cover a list once, also while it changes", async ({ api }) => {
  for (let index = 0; index < 25; index += 1) {
    await api.request("POST", "/v1/networks", { name: `n${String(index).padStart(2, "0")}` });
  }
  const names: unknown[] = [];
  let path = "/v1/networks?limit=10";
  for (let pages = 0; pages < 5; pages += 1) {
    const answer = await api.request("GET", path);
    const items = at(answer, "/items");
    assert.ok(Array.isArray(items) && items.length <= 10);
    for (let index = 0; index < items.length; index += 1)
      names.push(at(answer, `/items/${index}/name`));
    const cursor = at(answer, "/nextCursor");
    if (cursor === undefined) break;
    await api.request("DELETE", "/v1/networks/n00");
    path = `/v1/networks?limit=10&cursor=${cursor}`;
  }
  // Those of the loop, my_net and the three predefined ones.
  assert.is(names.length, 29);
  assert.is(new Set(names).size, 29);
});

test("labels, network and endpoint filter lists", async ({ api }) => {
  await api.request("POST", "/v1/networks", { name: "other", labels: { team: "b", x: "" } });
  await api.request("POST", "/v1/endpoints", { name: "db", network: "other", netns: "db" });
  const names = async (path: string) => {
    const items = at(await api.request("GET", path), "/items");
    assert.ok(Array.isArray(items), path);
    return items.map((item: { name: string }) => item.name);
  };
  assert.equal(await names("/v1/networks?label=team%3Da"), ["my_net"]);
  assert.equal(await names("/v1/networks?label=team"), ["my_net", "other"]);
  assert.equal(await names("/v1/networks?label=team%3Db&label=x"), ["other"]);
  assert.equal(await names("/v1/networks?label=team%3Da&label=x"), []);
  assert.equal(await names("/v1/networks?label=__proto__"), []);
  assert.equal(await names("/v1/networks?endpoint=db"), ["other"]);
  assert.equal(await names("/v1/endpoints?network=other"), ["db"]);
  assert.equal(await names("/v1/sandboxes?network=my_net"), ["web"]);
  assert.equal(await names("/v1/sandboxes?endpoint=db"), ["db"]);
  assert.equal(await names("/v1/ports?network=my_net"), ["web-8080"]);
  assert.equal(await names("/v1/ports?endpoint=db"), []);
  assert.is((await api.request("GET", "/v1/ports?endpoint=nope")).status, 404);
});

test("connections are filtered, and answered as lines on demand", async ({ api }) => {
  addTraffic(api.host);
  const count = async (query: string) => {
    const items = at(await api.request("GET", `/v1/connections${query}`), "/items");
    assert.ok(Array.isArray(items));
    return items.length;
  };
  assert.is(await count(""), 2);
  assert.is(await count("?protocol=udp"), 1);
  assert.equal(
    at(await api.request("GET", "/v1/connections?protocol=tcp"), "/items/0/path"),
    "fast",
  );
  assert.is(await count("?state=established"), 1);
  assert.is(await count("?port=web-8080"), 1);
  assert.is(await count("?endpoint=web&network=my_net"), 2);
  const lines = await api.request("GET", "/v1/connections", undefined, {
    accept: "application/x-ndjson",
  });
  assert.is(lines.headers.get("content-type"), "application/x-ndjson");
  assert.is(lines.text.trimEnd().split("\n").length, 2);
  for (const line of lines.text.trimEnd().split("\n")) JSON.parse(line);
});

test("the fast path is switched and shown", async ({ api }) => {
  const off = await api.request("PATCH", "/v1/datapath", { fastPath: false });
  assert.is(off.status, 200);
  assert.is(at(off, "/enabled"), false);
  assert.is(at(await api.request("GET", "/v1/datapath"), "/enabled"), false);
});

test("a dry run of apply changes nothing", async ({ api }) => {
  const before = api.host.dump();
  const input = { owner: "me", networks: [{ name: "n1" }] };
  const dry = await api.request("POST", "/v1/apply?dryRun=true", input);
  assert.is(at(dry, "/dryRun"), true);
  assert.is(api.host.dump(), before);
  await api.request("POST", "/v1/apply", input);
  assert.is.not(api.host.dump(), before);
});

test("an answer that nobody expected tells nothing, and is logged", async ({ api }) => {
  api.service.datapathStatus = () => Promise.reject(new TypeError("secret /root/path"));
  const answer = await api.request("GET", "/v1/datapath");
  assert.is(answer.status, 500);
  assert.is(at(answer, "/code"), "internal");
  assert.not.match(answer.text, /secret|TypeError| at /);
  assert.is(api.log.errors.length, 1);
});

test("before it is ready the daemon says so, and is alive", async ({ api }) => {
  api.service.ready = () => false;
  for (const path of ["/v1/networks", "/readyz"]) {
    const answer = await api.request("GET", path);
    assert.is(answer.status, 503);
    assert.is(at(answer, "/code"), "not_ready");
  }
  assert.is((await api.request("GET", "/healthz")).status, 200);
});

test("the docs page needs nothing from outside and runs no script", async ({ api }) => {
  const answer = await api.request("GET", "/docs");
  assert.is(answer.status, 200);
  assert.match(answer.headers.get("content-security-policy") ?? "", /default-src 'none'/);
  assert.not.match(answer.text, /<script|src=|href="http/);
  assert.match(answer.text, /\/v1\/connections/);
});

test.run();
