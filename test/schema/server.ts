/**
 * The API over the real core, on a host in memory, at a free port of loopback: for programs that test
 * it from outside. Prints `{url, token}` as one line of JSON, then serves until its standard input ends.
 * Event streams end at once, so that whoever reads one to its end does so.
 */
import { createApp } from "../../src/api/app.ts";
import { boundsOf } from "../../src/api/bounds.ts";
import { createToken, parseTokens } from "../../src/api/tokens.ts";
import type { Logger } from "../../src/log.ts";
import { createMetrics } from "../../src/metrics/metrics.ts";
import { serveTcp } from "../../src/runtime/serve.ts";
import { CoreHost } from "../api/core-host.ts";
import { QuietLog } from "../api/support.ts";
import { addTraffic } from "../api/traffic.ts";

/** What went wrong inside is for who reads the test's output. */
class TellingLog extends QuietLog {
  override error(...what: unknown[]): void {
    console.error(...what);
  }
}

const host = await new CoreHost().start();
host.core.ready = () => true;
// Names that schemathesis.toml asks for.
await host.core.networks.create({ name: "my_net", subnets: [{ subnet: "172.32.0.0/24" }] });
await host.core.endpoints.create({ name: "web", network: "my_net", netns: "web" });
await host.core.ports.create({
  name: "web-8080",
  endpoint: "web",
  hostPort: 8080,
  containerPort: 80,
});
addTraffic(host);
const { secret, line } = createToken("tester", "write");
const app = createApp(host.core, {
  metrics: createMetrics(host.core),
  log: new TellingLog() as unknown as Logger,
  shutdown: AbortSignal.abort(),
  access: { tokens: parseTokens(line, "tokens"), host: "127.0.0.1" },
});
const server = await serveTcp(
  { handler: app.fetch, bounds: boundsOf("unix"), warn: console.error },
  "127.0.0.1",
  0,
  null,
);
console.log(JSON.stringify({ url: `http://127.0.0.1:${server.port}`, token: secret }));
process.stdin.on("end", () => process.exit(0)).resume();
