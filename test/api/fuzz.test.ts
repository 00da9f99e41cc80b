/**
 * 10,000 malformed requests from a seeded generator: each takes a valid request and spoils one thing
 * that must be refused. All are answered 4xx with a problem, and nothing changes.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { at, createTestApp, seed } from "./support.ts";

const test = suite("fuzz");
const requests = 10_000;
const seedNumber = Number(process.env["NATBRIDGE_FUZZ_SEED"] ?? 20260101);

/** mulberry32: small, and the same everywhere. */
function generator(start: number): () => number {
  let state = start >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

type Pick = <T>(items: readonly [T, ...T[]]) => T;
interface Spoiled {
  method: string;
  path: string;
  body?: string;
  headers?: Record<string, string>;
}

type Call = readonly [method: string, path: string, body: object];
const valid: readonly [Call, ...Call[]] = [
  [
    "POST",
    "/v1/networks",
    {
      name: "n",
      subnets: [{ subnet: "10.9.0.0/24" }],
      mtu: 1400,
      internal: false,
      labels: { a: "b" },
    },
  ],
  ["PUT", "/v1/networks/n", { name: "n", subnets: [{ subnet: "10.9.0.0/24" }], ipv6: false }],
  ["PATCH", "/v1/networks/my_net", { labels: { a: "b" }, fastPath: "off" }],
  [
    "POST",
    "/v1/endpoints",
    {
      name: "e",
      network: "my_net",
      netns: "x",
      addresses: ["172.32.0.9"],
      aliases: ["al"],
      mtu: 1400,
    },
  ],
  ["PUT", "/v1/endpoints/e", { name: "e", network: "my_net", pid: 77 }],
  ["PATCH", "/v1/endpoints/web", { labels: { a: "b" }, aliases: ["q"] }],
  [
    "POST",
    "/v1/ports",
    {
      name: "p",
      endpoint: "web",
      hostPort: 81,
      containerPort: 80,
      from: ["10.0.0.0/8"],
      protocol: "tcp",
    },
  ],
  ["PUT", "/v1/ports/p", { endpoint: "web", hostPort: "81-82", containerPort: "81-82" }],
  ["PATCH", "/v1/ports/web-8080", { hostPort: 82, from: [] }],
  [
    "POST",
    "/v1/apply",
    {
      owner: "o",
      networks: [{ name: "n" }],
      endpoints: [{ name: "e", network: "n", netns: "x" }],
      ports: [{ name: "p", endpoint: "e", hostPort: 1, containerPort: 1 }],
    },
  ],
  ["PATCH", "/v1/datapath", { fastPath: true }],
];
const readable = [
  "/v1/networks",
  "/v1/sandboxes",
  "/v1/endpoints",
  "/v1/ports",
  "/v1/connections",
  "/v1/rules",
  "/v1/datapath",
  "/v1/events",
  "/v1/networks/my_net",
] as const;

/** Values that no field of any input accepts in any place. */
const poison = [
  null,
  -1,
  1.5,
  1e308,
  "",
  "\u0000",
  "../../etc/passwd\n",
  "a b",
  "x".repeat(5000),
  [[]],
  { $ref: "#" },
  [null],
  "💥",
  { toString: 1 },
] as const;

function places(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== "object" || value === null) return [path];
  return [
    ...(path.length > 0 ? [path] : []),
    ...Object.entries(value).flatMap(([key, inner]) => places(inner, [...path, key])),
  ];
}

/** Replaces what is at `path`; the copy is plain JSON. */
function replace(value: unknown, path: string[], by: unknown): unknown {
  const [key, ...rest] = path;
  if (key === undefined) return by;
  if (Array.isArray(value))
    return value.map((item, index) => (String(index) === key ? replace(item, rest, by) : item));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [
      name,
      name === key ? replace(item, rest, by) : item,
    ]),
  );
}

/** Label texts are free, addresses and paths are judged by the core: those places take no poison. */
const free = new Set(["labels", "subnet", "netns", "addresses", "from", "fastPath"]);

function poisoned(random: () => number, pick: Pick): Spoiled {
  const [method, path, body] = pick(valid);
  const spots = places(body).filter((spot) => !spot.some((key) => free.has(key)));
  const spot = spots[Math.floor(random() * spots.length)];
  const by = pick(poison);
  // An empty list of objects is a list; a lone null is none.
  const spoiled = spot === undefined ? [body] : replace(body, spot, by);
  return { method, path, body: JSON.stringify(spoiled) };
}

function unknownField(random: () => number, pick: Pick): Spoiled {
  const [method, path, body] = pick(valid);
  const key = pick(["__proto__x", "constructor", "Name", " name", "x", "$where", ""]);
  return {
    method,
    path,
    body: JSON.stringify({ ...body, [`${key}_${Math.floor(random() * 1e6)}`]: 1 }),
  };
}

function brokenJson(random: () => number, pick: Pick): Spoiled {
  const [method, path, body] = pick(valid);
  const text = JSON.stringify(body);
  const cut = 1 + Math.floor(random() * (text.length - 2));
  return {
    method,
    path,
    body: pick([
      text.slice(0, cut),
      text.slice(cut),
      `${text}}`,
      `\u0000${text}`,
      "[".repeat(cut * 50),
    ]),
  };
}

function unknownParameter(random: () => number, pick: Pick): Spoiled {
  const path = pick(readable);
  const name = pick(["x", "Limit", "limit[]", "__proto__", "constructor", "label.a"]);
  return {
    method: "GET",
    path: `${path}?${encodeURIComponent(name)}=${Math.floor(random() * 1e9)}`,
  };
}

function wrongPath(random: () => number, pick: Pick): Spoiled {
  const part = pick(["%", "%ff", "..%2f..", "%00", "a".repeat(3000), "nope"]);
  const path = pick([
    `/v1/networks/${part}`,
    `/v1/${part}`,
    `/${part}`,
    `/v1/ports/${part}/${part}`,
  ]);
  const method = pick(["GET", "DELETE", "PATCH", "PUT", "POST"]);
  const body =
    method === "GET" || method === "DELETE" ? {} : { body: random() < 0.5 ? "[]" : '{"x":1}' };
  return { method, path, ...body };
}

function wrongMethodOrType(_random: () => number, pick: Pick): Spoiled {
  const [method, path, body] = pick(valid);
  const text = JSON.stringify(body);
  return pick<Spoiled>([
    { method: "OPTIONS", path },
    { method: "DELETE", path: "/v1/apply" },
    { method, path, body: text, headers: { "content-type": "text/plain" } },
    { method, path, body: text, headers: { "content-type": "multipart/form-data; boundary=x" } },
    { method, path, body: text, headers: { "content-type": "application/x-www-form-urlencoded" } },
  ]);
}

const makers = [
  poisoned,
  poisoned,
  unknownField,
  brokenJson,
  unknownParameter,
  wrongPath,
  wrongMethodOrType,
] as const;

test(`${requests} malformed requests are refused and change nothing (seed ${seedNumber})`, async () => {
  const random = generator(seedNumber);
  const pick: Pick = (items) => items[Math.floor(random() * items.length)] ?? items[0];
  const api = await createTestApp();
  await seed(api);
  const before = api.host.dump();
  const statuses = new Map<number, number>();
  for (let number = 0; number < requests; number += 1) {
    const { method, path, body, headers } = pick(makers)(random, pick);
    const answer = await api.request(method, path, body, headers);
    const told = `#${number} ${method} ${path.slice(0, 80)} ${body?.slice(0, 300) ?? ""} -> ${answer.status} ${answer.text.slice(0, 200)}`;
    assert.ok(answer.status >= 400 && answer.status < 500, told);
    assert.is(answer.headers.get("content-type"), "application/problem+json", told);
    assert.is(at(answer, "/status"), answer.status, told);
    assert.is(api.host.dump(), before, told);
    statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1);
  }
  for (const status of [400, 404, 405, 415])
    assert.ok((statuses.get(status) ?? 0) > 50, `few ${status}`);
  assert.is(api.log.errors.length, 0);
  assert.is((await api.request("GET", "/v1/networks/my_net")).status, 200);
});

test.run();
