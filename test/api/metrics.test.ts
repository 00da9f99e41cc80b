import { spawnSync } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { createMetricsApp } from "../../src/api/app.ts";
import type { Logger } from "../../src/log.ts";
import { createStandInApp, QuietLog, type StandInApp, seed } from "./support.ts";

const test = suite<{ api: StandInApp }>("metrics");
test.before.each(async (context) => {
  context.api = createStandInApp();
  await seed(context.api);
});

/** `name{labels} value` lines of one metric. */
const series = (text: string, name: string): string[] =>
  text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));

test("endpoints are counted from the sandbox's side", async ({ api }) => {
  const { text, headers } = await api.request("GET", "/metrics");
  assert.match(headers.get("content-type") ?? "", /^text\/plain; version=0\.0\.4/);
  assert.equal(series(text, "natbridge_endpoint_receive_bytes_total"), [
    'natbridge_endpoint_receive_bytes_total{endpoint="web",network="my_net"} 1500',
  ]);
  assert.equal(series(text, "natbridge_endpoint_transmit_bytes_total"), [
    'natbridge_endpoint_transmit_bytes_total{endpoint="web",network="my_net"} 3000',
  ]);
  assert.equal(series(text, "natbridge_packets_dropped_total"), [
    'natbridge_packets_dropped_total{endpoint="web",reason="spoofed_source"} 4',
  ]);
  assert.match(
    series(text, "natbridge_endpoint_info")[0] ?? "",
    /sandbox="web",veth="nb\d+",ifindex="\d+",interface="eth0"\} 1$/,
  );
  assert.equal(series(text, "natbridge_published_ports"), ["natbridge_published_ports 1"]);
  assert.is(series(text, "natbridge_build_info").length, 1);
});

test("what the holder has places for is told, and who found none", async ({ api }) => {
  const { text } = await api.request("GET", "/metrics");
  for (const line of [
    'natbridge_forwarder_places{kind="connections"} 512',
    'natbridge_forwarder_places_taken{kind="connections"} 1',
    'natbridge_forwarder_evicted_total{kind="connections"} 3',
    'natbridge_forwarder_refused_total{kind="connections"} 4',
    'natbridge_forwarder_places{kind="sessions"} 1024',
  ])
    assert.ok(text.includes(`${line}\n`), line);
});

test("a second scrape counts nothing twice", async ({ api }) => {
  await api.request("GET", "/metrics");
  const { text } = await api.request("GET", "/metrics");
  assert.match(series(text, "natbridge_endpoint_receive_bytes_total")[0] ?? "", / 1500$/);
});

test("scrapes at once agree", async ({ api }) => {
  const texts = await Promise.all([1, 2, 3, 4].map(() => api.request("GET", "/metrics")));
  for (const { text } of texts)
    assert.match(series(text, "natbridge_endpoint_receive_bytes_total")[0] ?? "", / 1500$/);
});

test("an endpoint's series go with it", async ({ api }) => {
  await api.request("GET", "/metrics");
  await api.request("DELETE", "/v1/endpoints/web");
  const { text } = await api.request("GET", "/metrics");
  for (const name of [
    "natbridge_endpoint_receive_bytes_total",
    "natbridge_endpoint_info",
    "natbridge_packets_dropped_total",
  ]) {
    assert.equal(series(text, name), [], name);
  }
});

test("requests are measured by route, never by path", async ({ api }) => {
  await api.request("GET", "/v1/networks/my_net");
  await api.request("GET", "/v1/networks/some-other-name");
  await api.request("GET", "/some-unknown-path");
  await api.request("POST", "/v1/networks", "{");
  await api.request("BREW", "/v1/networks");
  const { text } = await api.request("GET", "/metrics");
  const counts = series(text, "natbridge_api_request_duration_seconds_count");
  const has = (part: string) =>
    assert.ok(
      counts.some((line) => line.includes(part)),
      `${part}\n${counts.join("\n")}`,
    );
  has('method="GET",route="/v1/networks/:ref",code="200"');
  has('method="GET",route="/v1/networks/:ref",code="404"');
  has('method="POST",route="/v1/networks",code="400"');
  has('method="other"');
  assert.not.match(text, /some-other-name|some-unknown-path|BREW/);
});

test("promtool finds nothing to complain about", async ({ api }) => {
  const { text } = await api.request("GET", "/metrics");
  const result = spawnSync("promtool", ["check", "metrics"], { input: text, encoding: "utf8" });
  assert.is(result.error, undefined, "promtool is missing: apt-get install prometheus");
  assert.is(result.stderr + result.stdout, "");
  assert.is(result.status, 0);
});

test("the metrics listener serves three paths only", async ({ api }) => {
  const app = createMetricsApp(api.service, {
    metrics: api.metrics,
    log: new QuietLog() as unknown as Logger,
  });
  for (const path of ["/metrics", "/healthz", "/readyz"])
    assert.is((await app.request(path)).status, 200, path);
  for (const path of ["/v1/networks", "/openapi.json", "/docs", "/"])
    assert.is((await app.request(path)).status, 404, path);
});

test.run();
