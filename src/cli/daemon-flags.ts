/** The daemon's flags, checked one by one and against each other. */
import { join, resolve } from "node:path";
import { type Command, Option } from "commander";
import { isLoopback } from "../api/loopback.ts";
import { logLevels } from "../log.ts";
import { interfaceNameSchema } from "../network/model.ts";
import {
  type DaemonOptions,
  defaultRunDir,
  defaultStateDir,
  type HostPort,
  socketName,
} from "../runtime/daemon-options.ts";
import { repeatable } from "./command.ts";
import { UsageError } from "./errors.ts";

export interface DaemonFlags {
  stateDir: string;
  runDir: string;
  uplink: string[];
  fastPath: boolean;
  standInTable: boolean;
  listen?: HostPort;
  tokens?: string;
  tlsCert?: string;
  tlsKey?: string;
  metricsListen?: HostPort;
  socketGroup?: string;
  logLevel: DaemonOptions["logLevel"];
}

/** `127.0.0.1:9652`, `[::1]:9652`, `localhost:9652`. */
function hostPort(flag: string): (text: string) => HostPort {
  return (text) => {
    const match = /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(text);
    const host = match?.[1] ?? match?.[2];
    const port = Number(match?.[3]);
    if (host === undefined || port > 65535) {
      throw new UsageError(`${flag} ${text}: give HOST:PORT, such as 127.0.0.1:9652 or [::1]:9652`);
    }
    return { host, port };
  };
}

function checkUplinks(names: string[]): string[] {
  for (const name of names) {
    const parsed = interfaceNameSchema.safeParse(name);
    if (!parsed.success) {
      throw new UsageError(
        `--uplink ${name}: ${parsed.error.issues[0]?.message ?? "not a device"}`,
      );
    }
  }
  return [...new Set(names)];
}

function checkListen(flags: DaemonFlags): void {
  const { listen, tokens, tlsCert, tlsKey } = flags;
  if ((tlsCert === undefined) !== (tlsKey === undefined)) {
    throw new UsageError("--tls-cert and --tls-key belong together: give both");
  }
  if (listen === undefined) {
    if (tokens !== undefined)
      throw new UsageError("--tokens is of use with --listen only: give it");
    if (tlsCert !== undefined)
      throw new UsageError("--tls-cert is of use with --listen only: give it");
    return;
  }
  if (tokens === undefined) {
    throw new UsageError("--listen needs --tokens FILE: make a token with natbridge token create");
  }
  if (tlsCert === undefined && !isLoopback(listen.host)) {
    throw new UsageError(
      `--listen ${listen.host} needs --tls-cert and --tls-key: only a loopback address goes without`,
    );
  }
}

/** @throws UsageError naming the flag that is wrong. */
export function daemonOptions(flags: DaemonFlags): DaemonOptions {
  checkListen(flags);
  const runDir = resolve(flags.runDir);
  return {
    stateDir: resolve(flags.stateDir),
    runDir,
    socketPath: join(runDir, socketName),
    socketGroup: flags.socketGroup ?? null,
    uplinks: checkUplinks(flags.uplink),
    fastPath: flags.fastPath,
    standInTable: flags.standInTable,
    listen: flags.listen ?? null,
    tokensFile: flags.tokens ?? null,
    tls:
      flags.tlsCert === undefined || flags.tlsKey === undefined
        ? null
        : { certFile: flags.tlsCert, keyFile: flags.tlsKey },
    metricsListen: flags.metricsListen ?? null,
    logLevel: flags.logLevel,
  };
}

/** The flags that say where state and socket are; `uninstall` has them too. */
export function addPlaces(command: Command): Command {
  return command
    .option("--state-dir <folder>", "where the wanted state is kept", defaultStateDir)
    .option("--run-dir <folder>", "where the socket is", defaultRunDir);
}

export function addDaemonFlags(command: Command): Command {
  return addPlaces(command)
    .addOption(repeatable("--uplink <device>", "exactly these are uplinks; found out unless given"))
    .option("--no-fast-path", "load no eBPF program: kernel path only")
    .option(
      "--no-stand-in-table",
      "do without the nftables table that keeps translating while a reload flushes all rules",
    )
    .addOption(
      new Option("--listen <host:port>", "serve the API on TCP too").argParser(
        hostPort("--listen"),
      ),
    )
    .option("--tokens <file>", "tokens for --listen, one line each: natbridge token create")
    .option("--tls-cert <file>", "certificate for --listen, PEM")
    .option("--tls-key <file>", "its key, PEM")
    .addOption(
      new Option(
        "--metrics-listen <host:port>",
        "serve /metrics, /healthz and /readyz on TCP, without token",
      ).argParser(hostPort("--metrics-listen")),
    )
    .option(
      "--socket-group <group>",
      "let this group use the socket; that is the same as giving its members root",
    )
    .addOption(
      new Option("--log-level <level>", "least severe level logged")
        .choices([...logLevels])
        .default("info"),
    );
}
