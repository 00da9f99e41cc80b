/** `apply`: what it tells, what it may take, and that the order of its objects does not matter. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { ApplyInput } from "../../src/network/model.ts";
import { ProblemError } from "../../src/problem.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("apply");
test.before.each(async (context) => {
  context.host = await new CoreHost().start();
  await context.host.core.networks.create({ name: "net", subnets: [{ subnet: "172.32.0.0/24" }] });
  await context.host.core.endpoints.create({ name: "web", network: "net", netns: "web" });
});

const apply = ({ core }: CoreHost, input: ApplyInput, dryRun = false) =>
  core.apply(input, { dryRun });
const port = (name: string, hostPort: number) => ({
  name,
  endpoint: "web",
  hostPort,
  containerPort: hostPort + 1000,
});
const bound = ({ holder }: CoreHost) =>
  [...holder.bindings.values()]
    .filter(({ hostAddress }) => hostAddress === "0.0.0.0")
    .map(({ hostPort, targetPort }) => `${hostPort} ${targetPort}`)
    .sort();

async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    return `${error.code}: ${error.message}`;
  }
}

test("a host port that one port leaves is free for another", async ({ host }) => {
  await apply(host, { owner: "o", ports: [port("p", 8080)] });
  for (const ports of [
    [{ ...port("p", 8080), hostPort: 8081 }, port("q", 8080)],
    [port("r", 8081), { ...port("p", 8080), hostPort: 8082 }],
  ])
    await apply(host, { owner: "o", ports });
  assert.equal(bound(host), ["8080 9080", "8081 9081", "8082 9080"]);
});

test("ports swap their host ports; one that stays is in the way", async ({ host }) => {
  await apply(host, { owner: "o", ports: [port("p", 8080), port("q", 8081)] });
  const swapped = [
    { ...port("p", 8080), hostPort: 8081 },
    { ...port("q", 8081), hostPort: 8080 },
  ];
  const done = await apply(host, { owner: "o", ports: swapped });
  assert.equal(done.updated.ports.sort(), ["p", "q"]);
  assert.equal(bound(host), ["8080 9081", "8081 9080"]);
  const before = host.dump();
  const ports = [{ ...port("p", 8080), hostPort: 8080 }];
  assert.match(await refusal(apply(host, { owner: "o", ports })), /^port_in_use: .*"q"/);
  assert.match(
    await refusal(apply(host, { owner: "o", ports: [...ports, port("r", 8081), port("s", 8080)] })),
    /^port_in_use/,
  );
  assert.is(host.dump(), before);
});

test.run();
