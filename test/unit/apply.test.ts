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

test("prune takes nothing that others made", async ({ host }) => {
  const { core } = host;
  await apply(host, { owner: "o", endpoints: [{ name: "e", network: "net", netns: "db" }] });
  const theirs = { ...port("theirs", 8080), endpoint: "e" };
  await apply(host, { owner: "p", ports: [theirs] });
  const before = host.dump();
  for (const dryRun of [true, false])
    assert.match(
      await refusal(apply(host, { owner: "o", prune: true }, dryRun)),
      /^invalid_request: .*theirs, which is p's/,
    );
  assert.is(host.dump(), before);
  await core.ports.remove("theirs");
  await core.ports.create({ ...theirs, name: "hand-made" });
  assert.match(
    await refusal(apply(host, { owner: "o", prune: true })),
    /hand-made, which no apply/,
  );
  await core.ports.remove("hand-made");
  await apply(host, { owner: "o", endpoints: [{ name: "e", network: "net", netns: "db" }] });
  await apply(host, { owner: "o", ports: [{ ...port("own", 8080), endpoint: "e" }] });
  const done = await apply(host, { owner: "o", prune: true });
  assert.equal(done.deleted, { networks: [], endpoints: ["e"], ports: ["own"] });
});

test("prune of a network with endpoints of others is refused", async ({ host }) => {
  await apply(host, { owner: "o", networks: [{ name: "n" }] });
  await host.core.endpoints.create({ name: "e", network: "n", netns: "db" });
  const before = host.dump();
  assert.match(await refusal(apply(host, { owner: "o", prune: true })), /^network_in_use: .*\(e\)/);
  assert.is(host.dump(), before);
});

test("what prune frees can be used in the same call", async ({ host }) => {
  const net = (name: string) => ({ name, subnets: [{ subnet: "10.1.0.0/24" }] });
  await apply(host, { owner: "o", networks: [net("a")], ports: [port("p", 8080)] });
  const input = { owner: "o", networks: [net("b")], ports: [port("q", 8080)], prune: true };
  const done = await apply(host, input);
  assert.equal(done.deleted, { networks: ["a"], endpoints: [], ports: ["p"] });
  assert.equal(done.created, { networks: ["b"], endpoints: [], ports: ["q"] });
});

test("the same again is unchanged, a dry run tells what would be", async ({ host }) => {
  const input = {
    owner: "o",
    networks: [{ name: "n", labels: { a: "1" } }],
    endpoints: [{ name: "e", network: "n", netns: "db" }],
    ports: [{ ...port("p", 8080), endpoint: "e" }],
  };
  const before = host.dump();
  const dry = await apply(host, input, true);
  assert.is(host.dump(), before);
  const done = await apply(host, input);
  assert.equal({ ...dry, dryRun: false }, done);
  assert.equal(done.created, { networks: ["n"], endpoints: ["e"], ports: ["p"] });
  const settled = host.dump();
  const again = await apply(host, input);
  assert.equal(again.unchanged, done.created);
  assert.is(host.dump(), settled);
  const changed = await apply(host, { ...input, networks: [{ name: "n", labels: { a: "2" } }] });
  assert.equal(changed.updated, { networks: ["n"], endpoints: [], ports: [] });
});

test("a list that names something twice is refused", async ({ host }) => {
  const before = host.dump();
  const told = await refusal(apply(host, { owner: "o", networks: [{ name: "n" }, { name: "n" }] }));
  assert.match(told, /^invalid_request: networks: "n" is there twice/);
  assert.is(host.dump(), before);
});

test.run();
