/** What conntrack holds of TCP connections, and what comes of it, is the same whatever carries them. */
import { execFile } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { type Family, families, type Scenario } from "./scenarios.ts";
import { addresses, sleep, type Topology } from "./topology.ts";

const script = fileURLToPath(new URL("connection.py", import.meta.url));
const serverPort = 90;
const outsidePort = 7001;
const hostPort = 8090;

function python<T>(topology: Topology, name: string, words: (string | number)[]): Promise<T> {
  return new Promise((resolve, reject) => {
    execFile(
      "nsenter",
      [`--net=/run/netns/${topology.ns(name)}`, "python3", script, ...words.map(String)],
      { timeout: 90_000 },
      (error, output) => (error === null ? resolve(JSON.parse(output)) : reject(error)),
    );
  });
}

async function listening(topology: Topology, name: string, port: number): Promise<void> {
  topology.background(name, `exec python3 ${script} serve ${port}`);
  for (let tries = 0; tries < 500; tries++) {
    if (topology.run(name, `ss -Hltn sport = ${port} | grep -q .`).code === 0) return;
    await sleep(20);
  }
  throw new Error(`nothing listens in ${name}`);
}

/** Publishes a server in `web` as `hostPort`, and has one in `client`. */
async function withServers(topology: Topology, work: () => Promise<void>): Promise<void> {
  const isFirst = topology.run("web", `ss -Hltn sport = ${serverPort} | grep -q .`).code !== 0;
  if (isFirst)
    await Promise.all([
      listening(topology, "web", serverPort),
      listening(topology, "db", serverPort),
      listening(topology, "client", outsidePort),
    ]);
  const port = { name: "long-lived", endpoint: "web", hostPort, containerPort: serverPort };
  await topology.ok("POST", "/v1/ports", port);
  try {
    await work();
  } finally {
    await topology.api("DELETE", "/v1/ports/long-lived");
  }
}

/** Runs `work` with sysctls of the host's changed. */
async function withSysctls(
  topology: Topology,
  settings: Record<string, number>,
  work: () => Promise<void>,
): Promise<void> {
  const before = Object.keys(settings).map(
    (key) => [key, topology.must("host", `sysctl -n ${key}`).trim()] as const,
  );
  for (const [key, value] of Object.entries(settings))
    topology.must("host", `sysctl -qw ${key}=${value}`);
  try {
    await work();
  } finally {
    for (const [key, value] of before) topology.must("host", `sysctl -qw ${key}=${value}`);
  }
}

/** conntrack's line of the connection from this port of the client's. */
const entry = (topology: Topology, family: Family, localPort: number): string =>
  topology.run(
    "host",
    `conntrack -L -f ${family} -p tcp --orig-port-src ${localPort} --orig-port-dst ${hostPort} 2>/dev/null`,
  ).stdout;

async function until(what: string, isSo: () => boolean): Promise<void> {
  for (let tries = 0; tries < 250; tries++) {
    if (isSo()) return;
    await sleep(20);
  }
  throw new Error(`never: ${what}`);
}

interface Idled {
  right: number;
  results: unknown[];
}

export const connectionScenarios: Scenario[] = [
  {
    name: "an-idle-connection-outlives-the-timeout-of-unacknowledged-data",
    run: (topology) =>
      withServers(topology, () =>
        withSysctls(
          topology,
          {
            "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged": 2,
            "net.netfilter.nf_conntrack_tcp_timeout_max_retrans": 2,
          },
          async () => {
            const ways = families.flatMap(
              (family) =>
                [
                  ["client", addresses.host[family], hostPort],
                  ["web", addresses.client[family], outsidePort],
                ] as const,
            );
            const idled = await Promise.all(
              ways.map(([from, host, port]) =>
                python<Idled>(topology, from, ["idle", host, port, 4, 5]),
              ),
            );
            assert.equal(
              idled.map(({ right }) => right),
              ways.map(() => 4),
              JSON.stringify(idled),
            );
          },
        ),
      ),
  },
  ...families.map((family): Scenario => {
    return {
      name: `nobody-but-its-ends-closes-a-connection (${family})`,
      run: (topology) =>
        withServers(topology, async () => {
          const localPort = family === "ipv4" ? 40_001 : 40_002;
          const file = join(topology.folder, `blind-${family}`);
          const words = ["blind", addresses.host[family], hostPort, localPort, file];
          const running = python<{ right: boolean }>(topology, "client", words);
          await until("all were sent", () => existsSync(`${file}.ready`));
          // What believes a RST may take a moment to say so.
          await sleep(300);
          const before = entry(topology, family, localPort);
          assert.match(before, / ESTABLISHED /);
          const seconds = Number(/^tcp\s+6 (\d+) /.exec(before)?.[1]);
          assert.ok(seconds > 1000, before);
          writeFileSync(`${file}.go`, "");
          assert.ok((await running).right);
          await until("its own RST closed it", () =>
            / CLOSE /.test(entry(topology, family, localPort)),
          );
          for (const end of ["ready", "go"]) rmSync(`${file}.${end}`);
        }),
    };
  }),
  {
    name: "a-connection-survives-the-deletion-of-its-entry",
    run: (topology) =>
      withServers(topology, async () => {
        const host = `nsenter --net=/run/netns/${topology.ns("host")} conntrack`;
        const pingpong = (family: Family, localPort: number, deletion: string) =>
          python<{ ran: number; error: string }>(topology, "client", [
            ...["pingpong", addresses.host[family], hostPort, localPort, `${host} ${deletion}`],
          ]);
        const survived = { ran: 6, error: "" };
        const ways = families.flatMap((family) =>
          [41_001, 41_002].map((port) => [family, port] as const),
        );
        const outcomes = ways.map(([family, port]) =>
          pingpong(family, port, `-D -f ${family} -p tcp --orig-port-src ${port}`),
        );
        assert.equal(
          await Promise.all(outcomes),
          ways.map(() => survived),
        );
        assert.equal(await pingpong("ipv4", 41_003, "-F"), survived);
      }),
  },
  {
    name: "a-connection-survives-the-end-of-a-liberal-host",
    run: (topology) =>
      withServers(topology, () =>
        withSysctls(topology, { "net.netfilter.nf_conntrack_tcp_be_liberal": 1 }, async () => {
          const strict = "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=0";
          const command = `nsenter --net=/run/netns/${topology.ns("host")} ${strict}`;
          const outcomes = families.map((family) => {
            const localPort = family === "ipv4" ? 42_001 : 42_002;
            const words = ["pingpong", addresses.host[family], hostPort, localPort, command];
            return python(topology, "client", words);
          });
          const survived = { ran: 6, error: "" };
          assert.equal(
            await Promise.all(outcomes),
            families.map(() => survived),
          );
        }),
      ),
  },
];
