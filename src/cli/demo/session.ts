/** The first session: what the demo does, step by step, and what it tells of each step. */
import { setTimeout as sleep } from "node:timers/promises";
import { FailedError } from "../errors.ts";
import { printable, printLine } from "../output.ts";
import { addresses, type Place, type PlaceName } from "./place.ts";
import { Requester } from "./requester.ts";
import { examine, printedPlace, readCounters, type Testimony } from "./witness.ts";

export type Step = { step: string } & Record<string, unknown>;

/** Tells each step: to people at once, to programs as a list at the end. */
export class Story {
  readonly steps: Step[] = [];
  readonly #isJson: boolean;

  constructor(isJson: boolean) {
    this.#isJson = isJson;
  }

  tell(step: Step, lines: string[]): void {
    this.steps.push(step);
    if (!this.#isJson) for (const line of lines) printLine(printable(line));
  }

  title(text: string): void {
    if (!this.#isJson) printLine(`\n== ${text}`);
  }
}

const webPort = 80;
const bulkSeconds = 3;

async function runCommand(place: Place, story: Story, args: string[]): Promise<void> {
  const { code, stdout, stderr } = await place.cli(args);
  const output = `${stdout}${stderr}`.trimEnd();
  const line = `natbridge ${args.join(" ")}`;
  story.tell({ step: "command", command: line, code, output }, [
    `$ ${line}`,
    ...output.split("\n"),
  ]);
  if (code !== 0) throw new FailedError(`the demo stops: "${line}" failed`);
}

function testimonyLines({ path, original, afterNat, counters }: Testimony): string[] {
  const { fastPackets, kernelPackets, connectsServed } = counters;
  return [
    `  path       ${path}`,
    `  original   ${original}`,
    `  after NAT  ${afterNat}`,
    `  counters   +${connectsServed} connect hook, +${kernelPackets} kernel and +${fastPackets} fast packets`,
  ];
}

interface Asked {
  from: PlaceName;
  to: string;
  how: string;
}

async function request(place: Place, story: Story, { from, to, how }: Asked): Promise<void> {
  const url = `http://${printedPlace(to, 8080)}/`;
  const before = await readCounters(place.client);
  const requester = new Requester(place, from, ["demo-request", url]);
  try {
    const head = await requester.head();
    await requester.report();
    const testimony = await examine(place.client, head, before);
    const saw = printedPlace(head.server.remoteAddress, head.server.remotePort);
    const { status } = head;
    story.tell({ step: "request", from, url, status, serverSaw: saw, ...testimony }, [
      `${from}, ${how}: GET ${url}`,
      `  status     ${status}; the server saw ${saw}`,
      ...testimonyLines(testimony),
    ]);
  } finally {
    requester.finish();
  }
}

async function bulk(place: Place, story: Story): Promise<void> {
  const url = `http://${printedPlace(addresses.host.ipv4, 8080)}/bulk?seconds=${bulkSeconds}`;
  const before = await readCounters(place.client);
  const requester = new Requester(place, "client", ["demo-request", url]);
  try {
    const head = await requester.head();
    await sleep(700 * bulkSeconds);
    const testimony = await examine(place.client, head, before);
    const { bytes = 0 } = await requester.report();
    const saw = printedPlace(head.server.remoteAddress, head.server.remotePort);
    const { status } = head;
    story.tell({ step: "bulk", from: "client", url, status, serverSaw: saw, bytes, ...testimony }, [
      `client, ${bulkSeconds} s over one connection: GET ${url}`,
      `  status     ${status}; ${Math.round(bytes / 1e6)} MB; the server saw ${saw}`,
      ...testimonyLines(testimony),
    ]);
  } finally {
    requester.finish();
  }
}

async function survive(place: Place, story: Story): Promise<void> {
  const url = `http://${printedPlace(addresses.host.ipv4, 8080)}/`;
  const requester = new Requester(place, "client", ["demo-requests", url]);
  try {
    await sleep(1500);
    const killedAt = Date.now();
    const group = await place.killDaemon();
    story.tell({ step: "kill", group }, [`$ kill -9 -${group}`, "the daemon is gone"]);
    await sleep(2000);
    const startingAt = Date.now();
    const output = await place.startDaemon();
    const facts = output.filter((line) => /^ {2}(fast path|holder|networks) /.test(line));
    story.tell({ step: "start", output: facts }, [place.daemonCommand, ...facts]);
    await sleep(500);
    requester.finish();
    const { stream = [] } = await requester.report();
    const without = stream.filter(({ at }) => at > killedAt && at < startingAt);
    const failed = stream.filter(({ status }) => status !== 200).length;
    const counts = { requests: stream.length, withoutDaemon: without.length, failed };
    story.tell({ step: "survived", ...counts }, [
      `client: ${stream.length} requests, ${without.length} of them while no daemon ran; ${failed} failed`,
    ]);
  } finally {
    requester.finish();
  }
}

async function metrics(place: Place, story: Story): Promise<void> {
  const answer = await place.client.send("GET", "/metrics", {});
  const lines = (await answer.text())
    .split("\n")
    .filter((line) => /^natbridge_endpoint_\w+\{/.test(line) && !line.endsWith(" 0"));
  story.tell({ step: "metrics", lines }, ["GET /metrics, of the endpoint and not zero:", ...lines]);
}

/** @throws FailedError at the first step that fails. */
export async function playSession(place: Place, story: Story): Promise<void> {
  story.title("A host with a daemon, a client beyond its uplink, and an empty sandbox: web");
  await place.build();
  const output = await place.startDaemon();
  story.tell({ step: "start", output, pins: place.pins }, [
    place.daemonCommand,
    ...output.slice(0, 8),
  ]);
  const server = new Requester(place, "web", ["demo-server", String(webPort)]);
  await server.line();
  server.leave();

  story.title("The first session");
  const create = "network create my_net --subnet 172.32.0.0/24 --gateway 172.32.0.1";
  await runCommand(place, story, create.split(" "));
  await runCommand(place, story, [
    ...["endpoint", "create", "web", "--network", "my_net"],
    ...["--netns", `/run/netns/${place.ns("web")}`],
  ]);
  await runCommand(place, story, ["port", "publish", "web", "8080:80"]);

  story.title("Requests");
  const { ipv4, ipv6 } = addresses.host;
  for (const asked of [
    { from: "host", to: "127.0.0.1", how: "by IPv4 loopback" },
    { from: "host", to: "::1", how: "by IPv6 loopback" },
    { from: "host", to: ipv4, how: "by its own address" },
    { from: "client", to: ipv4, how: "over the uplink" },
    { from: "client", to: ipv6, how: "over the uplink, IPv6" },
    { from: "web", to: ipv4, how: "to itself by the host (hairpin)" },
  ] as const)
    await request(place, story, asked);

  story.title("A bulk transfer");
  await bulk(place, story);

  story.title("The daemon is killed among requests, and started again");
  await survive(place, story);

  story.title("Counters of the endpoint");
  await metrics(place, story);
}
