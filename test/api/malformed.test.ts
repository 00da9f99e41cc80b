import { suite } from "uvu";
import * as assert from "uvu/assert";
import { at, createTestApp, seed } from "./support.ts";

const test = suite("malformed requests");

interface Case {
  call: [method: string, path: string, body?: unknown, headers?: Record<string, string>];
  status?: number;
  code?: string;
  /** Expected among `errors[].pointer`. */
  pointer?: string;
}

const network = (body: object, pointer: string): Case => ({
  call: ["POST", "/v1/networks", { name: "n", ...body }],
  pointer,
});
const endpoint = (body: object, pointer: string): Case => ({
  call: ["POST", "/v1/endpoints", { name: "e", network: "my_net", netns: "x", ...body }],
  pointer,
});
const port = (body: object, pointer: string): Case => ({
  call: ["POST", "/v1/ports", { endpoint: "web", hostPort: 1, containerPort: 1, ...body }],
  pointer,
});

const cases: Case[] = [
  // Names and fields of networks
  { call: ["POST", "/v1/networks", {}], pointer: "/name" },
  network({ name: "" }, "/name"),
  network({ name: "-a" }, "/name"),
  network({ name: "a b" }, "/name"),
  network({ name: "x".repeat(64) }, "/name"),
  network({ name: 5 }, "/name"),
  network({ name: "a\n" }, "/name"),
  network({ driver: "overlay" }, "/driver"),
  network({ scope: "global" }, "/scope"),
  network({ subnets: {} }, "/subnets"),
  network({ subnets: [{}] }, "/subnets/0/subnet"),
  network({ subnets: [{ subnet: "10.0.0.0/8", mask: 1 }] }, "/subnets/0/mask"),
  network({ subnets: [{ subnet: "a" }, { subnet: "b" }, { subnet: "c" }] }, "/subnets"),
  network({ subnets: [{ subnet: "10.0.0.0" }] }, "/subnets/0/subnet"),
  network({ subnets: [{ subnet: "10.0.0.0/8/8" }] }, "/subnets/0/subnet"),
  network({ subnets: [{ subnet: "10.0.0.0/8", gateway: "x" }] }, "/subnets/0/gateway"),
  network({ subnets: [{ subnet: "10.0.0.0/8", range: "10.0.0.1" }] }, "/subnets/0/range"),
  network(
    { subnets: [{ subnet: "10.0.0.0/8", reserved: ["fe80::1%eth0"] }] },
    "/subnets/0/reserved/0",
  ),
  network({ bridge: "sixteen-bytes-xx" }, "/bridge"),
  network({ bridge: "a/b" }, "/bridge"),
  ...["é".repeat(8), "nb%d", "v*", 'a"b', "a\\b", "a\u0000", "all", "default", ".."].map((bridge) =>
    network({ bridge }, "/bridge"),
  ),
  network({ mtu: 67 }, "/mtu"),
  network({ mtu: 65536 }, "/mtu"),
  network({ mtu: 1500.5 }, "/mtu"),
  network({ mtu: "1500" }, "/mtu"),
  network({ ipv6: "yes" }, "/ipv6"),
  network({ internal: 1 }, "/internal"),
  network({ isolated: null }, "/isolated"),
  network({ masquerade: "no" }, "/masquerade"),
  network({ fastPath: "on" }, "/fastPath"),
  network({ labels: [] }, "/labels"),
  network({ labels: { a: 1 } }, "/labels/a"),
  network({ labels: { "a/b~c": 1 } }, "/labels/a~1b~0c"),
  network({ labels: { a: "x".repeat(257) } }, "/labels/a"),
  network({ unknown: 1 }, "/unknown"),
  { call: ["POST", "/v1/networks?dryRun=true", { name: "n" }], pointer: "/query/dryRun" },
  { call: ["PATCH", "/v1/networks/my_net", { mtu: 1500 }], pointer: "/mtu" },
  { call: ["PATCH", "/v1/networks/my_net", { fastPath: true }], pointer: "/fastPath" },
  { call: ["PUT", "/v1/networks/my_net", { name: "other" }], pointer: "/name" },
  { call: ["PUT", `/v1/networks/${"x".repeat(64)}`, {}], pointer: "/path/ref" },
  { call: ["DELETE", "/v1/networks/my_net?force=yes"], pointer: "/query/force" },
  { call: ["DELETE", "/v1/networks/my_net?force=true&force=true"], pointer: "/query/force" },
  { call: ["DELETE", `/v1/networks/${"x".repeat(65)}`], pointer: "/path/ref" },
  // Endpoints
  endpoint({ netns: undefined }, "/netns"),
  endpoint({ pid: 1 }, "/pid"),
  endpoint({ sandbox: "web" }, "/netns"),
  endpoint({ netns: "" }, "/netns"),
  endpoint({ netns: undefined, pid: 0 }, "/pid"),
  endpoint({ netns: undefined, pid: "1" }, "/pid"),
  endpoint({ network: "" }, "/network"),
  endpoint({ network: undefined }, "/network"),
  endpoint({ addresses: "172.32.0.5" }, "/addresses"),
  endpoint({ addresses: ["172.32.0.5/24"] }, "/addresses/0"),
  endpoint({ addresses: ["::ffff:172.32.0.5"] }, "/addresses/0"),
  endpoint({ mac: "02:42:ac:20:00" }, "/mac"),
  endpoint({ mac: "01:42:ac:20:00:0a" }, "/mac"),
  endpoint({ mac: "00:00:00:00:00:00" }, "/mac"),
  endpoint({ netns: undefined, pid: 4194305 }, "/pid"),
  endpoint({ addresses: ["a", "b", "c"] }, "/addresses"),
  endpoint({ interface: "eth 0" }, "/interface"),
  endpoint({ interface: "eth%d" }, "/interface"),
  endpoint({ interface: "default" }, "/interface"),
  endpoint({ aliases: ["ok", ""] }, "/aliases/1"),
  endpoint({ defaultRoutePriority: 1e9 }, "/defaultRoutePriority"),
  endpoint({ sourceCheck: 0 }, "/sourceCheck"),
  endpoint({ gateway: "172.32.0.1" }, "/gateway"),
  { call: ["PATCH", "/v1/endpoints/web", { network: "x" }], pointer: "/network" },
  // Ports
  port({ endpoint: undefined }, "/endpoint"),
  port({ hostPort: undefined }, "/hostPort"),
  port({ hostPort: -1 }, "/hostPort"),
  port({ hostPort: 65536 }, "/hostPort"),
  port({ hostPort: "80" }, "/hostPort"),
  port({ hostPort: "a-b" }, "/hostPort"),
  port({ hostPort: [80] }, "/hostPort"),
  port({ containerPort: 0 }, "/containerPort"),
  port({ containerPort: "1-2-3" }, "/containerPort"),
  port({ protocol: "icmp" }, "/protocol"),
  port({ protocol: "TCP" }, "/protocol"),
  port({ from: "10.0.0.0/8" }, "/from"),
  port({ from: [1] }, "/from/0"),
  port({ from: ["10.0.0.0/33"] }, "/from/0"),
  port({ hostAddress: "localhost" }, "/hostAddress"),
  port({ hostPort: "70000-70001" }, "/hostPort"),
  port({ bindings: [] }, "/bindings"),
  { call: ["PATCH", "/v1/ports/web-8080", { containerPort: 1 }], pointer: "/containerPort" },
  // Apply
  { call: ["POST", "/v1/apply", {}], pointer: "/owner" },
  {
    call: [
      "POST",
      "/v1/apply",
      { owner: "a", ports: [{ endpoint: "web", hostPort: 1, containerPort: 1 }] },
    ],
    pointer: "/ports/0/name",
  },
  {
    call: ["POST", "/v1/apply", { owner: "a", networks: [{ name: "a" }, { name: "b", mtu: 1 }] }],
    pointer: "/networks/1/mtu",
  },
  { call: ["POST", "/v1/apply?dryRun=1", { owner: "a" }], pointer: "/query/dryRun" },
  { call: ["POST", "/v1/apply", { owner: "a", prune: "yes" }], pointer: "/prune" },
  // Datapath
  { call: ["PATCH", "/v1/datapath", {}], pointer: "/fastPath" },
  { call: ["PATCH", "/v1/datapath", { fastPath: "off" }], pointer: "/fastPath" },
  { call: ["PATCH", "/v1/datapath", { fastPath: true, more: 1 }], pointer: "/more" },
  // Queries
  ...["networks", "sandboxes", "endpoints", "ports"].flatMap((kind): Case[] => [
    { call: ["GET", `/v1/${kind}?nope=1`], pointer: "/query/nope" },
    { call: ["GET", `/v1/${kind}?limit=0`], pointer: "/query/limit" },
    { call: ["GET", `/v1/${kind}?limit=1001`], pointer: "/query/limit" },
    { call: ["GET", `/v1/${kind}?limit=ten`], pointer: "/query/limit" },
    { call: ["GET", `/v1/${kind}?limit=1&limit=2`], pointer: "/query/limit" },
    { call: ["GET", `/v1/${kind}?cursor=%21`], pointer: "/query/cursor" },
    { call: ["GET", `/v1/${kind}?cursor=e30`], pointer: "/query/cursor" },
    { call: ["GET", `/v1/${kind}?label=`], pointer: "/query/label" },
    { call: ["GET", `/v1/${kind}?label=%3Dx`], pointer: "/query/label" },
    { call: ["GET", `/v1/${kind}?network=`], pointer: "/query/network" },
    { call: ["GET", `/v1/${kind}/x?verbose=1`], pointer: "/query/verbose" },
    { call: ["GET", `/v1/${kind}/${"x".repeat(65)}`], pointer: "/path/ref" },
  ]),
  { call: ["GET", "/v1/connections?protocol=ip"], pointer: "/query/protocol" },
  { call: ["GET", "/v1/connections?state=%00"], pointer: "/query/state" },
  { call: ["GET", "/v1/connections?limit=1"], pointer: "/query/limit" },
  { call: ["GET", "/v1/rules?x=1"], pointer: "/query/x" },
  { call: ["GET", "/v1/datapath?x=1"], pointer: "/query/x" },
  { call: ["GET", "/v1/events?type=Port!"], pointer: "/query/type" },
  { call: ["GET", "/v1/events?x=1"], pointer: "/query/x" },
  {
    call: ["GET", "/v1/events", undefined, { "last-event-id": "abc" }],
    pointer: "/header/last-event-id",
  },
  // Bodies
  ...["/v1/networks", "/v1/endpoints", "/v1/ports", "/v1/apply"].flatMap((path): Case[] => [
    { call: ["POST", path, "{"] },
    { call: ["POST", path, ""] },
    { call: ["POST", path, "null"] },
    { call: ["POST", path, "[]"] },
    { call: ["POST", path, '"text"'] },
    { call: ["POST", path, "1e999"] },
    { call: ["POST", path, "[".repeat(100_000)] },
    { call: ["POST", path, `${'{"a":'.repeat(20_000)}1${"}".repeat(20_000)}`] },
    {
      call: ["POST", path, "{}", { "content-type": "text/plain" }],
      status: 415,
      code: "unsupported_media_type",
    },
    {
      call: ["POST", path, "{}", { "content-type": "application/jsonp" }],
      status: 415,
      code: "unsupported_media_type",
    },
    {
      call: ["POST", path, "{}", { "content-type": "" }],
      status: 415,
      code: "unsupported_media_type",
    },
  ]),
  {
    call: [
      "POST",
      "/v1/networks",
      JSON.stringify({ name: "n", labels: { a: "x".repeat(1024 * 1024) } }),
    ],
    status: 413,
    code: "body_too_large",
  },
  {
    call: ["POST", "/v1/apply", JSON.stringify({ owner: "x".repeat(16 * 1024 * 1024) })],
    status: 413,
    code: "body_too_large",
  },
  {
    call: ["POST", "/v1/apply", JSON.stringify({ owner: "x".repeat(2 * 1024 * 1024) })],
    pointer: "/owner",
  },
  // Paths and methods
  { call: ["GET", "/"], status: 404, code: "not_found" },
  { call: ["GET", "/v2/networks"], status: 404, code: "not_found" },
  { call: ["GET", "/v1/networks/a/b"], status: 404, code: "not_found" },
  { call: ["GET", "/v1/networks/%"], status: 404, code: "network_not_found" },
  { call: ["GET", "/v1/networks/%00"], status: 404, code: "network_not_found" },
  { call: ["DELETE", "/v1/networks"], status: 405, code: "method_not_allowed" },
  { call: ["PUT", "/v1/sandboxes/web", {}], status: 405, code: "method_not_allowed" },
  { call: ["POST", "/v1/sandboxes", {}], status: 405, code: "method_not_allowed" },
  { call: ["DELETE", "/v1/datapath"], status: 405, code: "method_not_allowed" },
  { call: ["POST", "/metrics", {}], status: 405, code: "method_not_allowed" },
  { call: ["OPTIONS", "/v1/networks"], status: 405, code: "method_not_allowed" },
  // What is no call is refused before its body, its query or its type is looked at.
  ...(
    [
      ["PUT", "/v1/networks", 405, "method_not_allowed"],
      ["PUT", "/v1/datapath?x=1", 405, "method_not_allowed"],
      ["POST", "/v1/ports/web-8080", 405, "method_not_allowed"],
      ["PATCH", "/v1/apply", 405, "method_not_allowed"],
      ["POST", "/v1/nothing", 404, "not_found"],
      ["PUT", "/nothing", 404, "not_found"],
    ] as const
  ).flatMap(([method, path, status, code]): Case[] =>
    [
      ["", {}],
      ["{", { "content-type": "application/json" }],
      ["a=b", { "content-type": "application/x-www-form-urlencoded" }],
      ["x".repeat(2 * 1024 * 1024), { "content-type": "application/json" }],
    ].map(([body, headers]) => ({
      call: [method, path, body, headers as Record<string, string>],
      status,
      code,
    })),
  ),
];

for (const { call, status = 400, code = "invalid_request", pointer } of cases) {
  const [method, path, body, headers] = call;
  const shown = typeof body === "string" ? body.slice(0, 20) : JSON.stringify(body)?.slice(0, 60);
  test(`${method} ${path.slice(0, 60)} ${shown ?? ""} ${headers ? JSON.stringify(headers) : ""}`, async () => {
    const api = await createTestApp();
    await seed(api);
    const before = api.host.dump();
    const answer = await api.request(method, path, body, headers);
    assert.is(answer.status, status, answer.text.slice(0, 300));
    assert.is(answer.headers.get("content-type"), "application/problem+json");
    assert.is(at(answer, "/code"), code);
    assert.is(at(answer, "/status"), status);
    assert.is(at(answer, "/type"), `urn:natbridge:problem:${code}`);
    const detail = at(answer, "/detail");
    assert.ok(typeof detail === "string" && detail.length > 0);
    if (pointer !== undefined) {
      const errors = at(answer, "/errors");
      assert.ok(Array.isArray(errors), answer.text);
      const pointers = errors.map((error: { pointer: string }) => error.pointer);
      assert.ok(pointers.includes(pointer), `${pointer} is not among ${pointers.join(" ")}`);
      for (const error of errors) assert.ok(error.message.length > 0);
    }
    if (status === 405) assert.ok(answer.headers.get("allow"));
    assert.is(api.host.dump(), before);
  });
}

test.run();
