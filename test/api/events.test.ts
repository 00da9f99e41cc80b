import { suite } from "uvu";
import * as assert from "uvu/assert";
import { at, createStandInApp, type StandInApp } from "./support.ts";

const test = suite<{ api: StandInApp }>("events");
test.before.each((context) => {
  context.api = createStandInApp();
});
test.after.each((context) => context.api.shutdown.abort());

/** Reads an event stream until `enough` says so, or two seconds are over. */
async function follow(
  api: StandInApp,
  path: string,
  headers: Record<string, string>,
  enough: (text: string) => boolean,
) {
  const leaving = new AbortController();
  const response = await api.app.request(path, { headers, signal: leaving.signal });
  const reader = response.body?.getReader();
  if (reader === undefined) throw new Error("no body");
  const decoder = new TextDecoder();
  let text = "";
  const timer = setTimeout(() => void reader.cancel(), 2000);
  try {
    while (!enough(text)) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
    }
  } finally {
    clearTimeout(timer);
    await reader.cancel();
  }
  return { response, text };
}

const ids = (text: string): string[] =>
  [...text.matchAll(/^id: (\d+)$/gm)].map(([, id]) => id ?? "");

test("events arrive as they happen", async ({ api }) => {
  const create = async () => {
    await new Promise((resolve) => setTimeout(resolve, 50));
    await api.request("POST", "/v1/networks", { name: "later" });
  };
  const [{ response, text }] = await Promise.all([
    follow(api, "/v1/events", {}, (seen) => seen.includes("data:")),
    create(),
  ]);
  assert.match(response.headers.get("content-type") ?? "", /^text\/event-stream/);
  assert.match(text, /^event: network\.created$/m);
  assert.match(text, /"name":"later"/);
});

test("Last-Event-ID goes on after it, without gap or repetition", async ({ api }) => {
  for (let index = 1; index <= 5; index += 1) api.service.events.emit("port.created", null);
  const { text } = await follow(
    api,
    "/v1/events",
    { "last-event-id": "2" },
    (seen) => ids(seen).length >= 3,
  );
  assert.equal(ids(text), ["3", "4", "5"]);
});

test("events that are no longer kept are answered 410", async ({ api }) => {
  api.service.events.forgotten = 3;
  const answer = await api.request("GET", "/v1/events", undefined, { "last-event-id": "2" });
  assert.is(answer.status, 410);
  assert.is(at(answer, "/code"), "events_expired");
});

test("type and object filter", async ({ api }) => {
  const object = (name: string) => ({
    kind: "port" as const,
    id: name.repeat(64).slice(0, 64),
    name,
  });
  api.service.events.emit("port.created", object("a"));
  api.service.events.emit("network.created", object("b"));
  api.service.events.emit("port.removed", object("a"));
  api.service.events.emit("portal.created", object("a"));
  const read = async (query: string, count: number) =>
    ids(
      (
        await follow(
          api,
          `/v1/events?${query}`,
          { "last-event-id": "0" },
          (seen) => ids(seen).length >= count,
        )
      ).text,
    );
  assert.equal(await read("type=port", 2), ["1", "3"]);
  assert.equal(await read("type=port.*", 2), ["1", "3"]);
  assert.equal(await read("type=port.removed&type=network.created", 2), ["2", "3"]);
  assert.equal(await read("object=b", 1), ["2"]);
});

test("who leaves is forgotten", async ({ api }) => {
  await follow(api, "/v1/events", {}, (seen) => seen.length > 0);
  await new Promise((resolve) => setTimeout(resolve, 50));
  api.service.events.emit("port.created", null);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.is(api.service.events.followers, 0);
});

test("stopping ends streams", async ({ api }) => {
  setTimeout(() => api.shutdown.abort(), 50);
  const start = performance.now();
  await follow(api, "/v1/events", {}, () => false);
  assert.ok(performance.now() - start < 1000);
});

test.run();
