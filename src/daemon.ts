/** The daemon: what is opened in which order, and closed in the opposite one. */
import { chmodSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Listeners, startListeners } from "./api/listeners.ts";
import { pinDirectory } from "./cli/local-datapath.ts";
import { loadDatapath } from "./datapath/addon.ts";
import type { Datapath, KernelFeatures } from "./datapath/types.ts";
import { type StartedHolder, startHolder } from "./holder/start.ts";
import { createLogger, type Logger } from "./log.ts";
import { Core } from "./network/core.ts";
import { reasonOf } from "./reason.ts";
import type { DaemonOptions } from "./runtime/daemon-options.ts";
import { lockInstance } from "./runtime/instance-lock.ts";
import { stopRequested } from "./runtime/signals.ts";
import { Store } from "./store/store.ts";
import { runtime, version } from "./version.ts";

/** Sizes of the fast path's maps. They are kept while the daemon is replaced. */
const limits = { maxFlows: 131_072, maxDevices: 4096, maxPorts: 65_536 };

export const databaseName = "natbridge.sqlite";
export const holderSocketName = "holder.sock";

/** Things that are open, closed last first. */
class Opened {
  readonly #log: Logger;
  readonly #closers: { what: string; close: () => Promise<void> | void }[] = [];

  constructor(log: Logger) {
    this.#log = log;
  }

  add(what: string, close: () => Promise<void> | void): void {
    this.#closers.push({ what, close });
  }

  async close(): Promise<void> {
    for (const { what, close } of this.#closers.splice(0).reverse()) {
      try {
        await close();
      } catch (error) {
        this.#log.error({ err: error }, `${what} could not be closed`);
      }
    }
  }
}

function makeFolders({ stateDir, runDir }: DaemonOptions): void {
  const make = (flag: string, path: string, mode: number, isPrivate: boolean): void => {
    try {
      mkdirSync(path, { recursive: true, mode });
      if (isPrivate) chmodSync(path, mode);
    } catch (cause) {
      throw new Error(`${flag} ${path} can't be used: ${reasonOf(cause)}`, { cause });
    }
  };
  make("--state-dir", stateDir, 0o700, true);
  make("--run-dir", runDir, 0o755, false);
}

/** Loads the programs if that is wanted and possible; answers why not otherwise. */
export async function loadPrograms(
  datapath: Datapath,
  features: KernelFeatures,
  isWanted: boolean,
  store: Store,
): Promise<{ loaded: boolean; note: string; connectHookHindrance?: string }> {
  const directory = pinDirectory(datapath);
  if (!isWanted) {
    await datapath.unloadFastPath(directory);
    return { loaded: false, note: "off (--no-fast-path)" };
  }
  // What an earlier run loaded must not go on unfed: its ports and addresses would be yesterday's.
  const unload = (reason: string) =>
    datapath.unloadFastPath(directory).then(
      () => reason,
      (error: unknown) => `${reason}; those of the last run can't be unloaded: ${reasonOf(error)}`,
    );
  if (!features.fastPath)
    return {
      loaded: false,
      note: await unload(`off: this kernel lacks ${features.missing.join("; ")}`),
    };
  try {
    const cgroupPath = features.cgroupHooks ? features.cgroup2 : "";
    const { adopted, connectHookHindrance } = await datapath.loadFastPath({
      pinDirectory: directory,
      cgroupPath,
      ...limits,
    });
    const enabled = store.setting("fast-path") !== "off";
    await datapath.setFastPathEnabled(directory, enabled);
    const how = adopted ? "programs of the last run adopted" : "programs loaded";
    return {
      loaded: true,
      note: enabled ? `on, ${how}` : `${how}, turned off: natbridge datapath on`,
      connectHookHindrance,
    };
  } catch (error) {
    // The kernel path is complete by itself: a verifier's refusal must not take the network down.
    const reason = `off: the programs can't be loaded: ${reasonOf(error)}`;
    return { loaded: false, note: await unload(reason) };
  }
}

/** What a newcomer types first; whoever has networks already looks at them. */
function nextCommand({ state }: Core): string {
  return state.network.values().every(({ predefined }) => predefined)
    ? "natbridge network create my_net --subnet 172.32.0.0/24 --gateway 172.32.0.1"
    : "natbridge status";
}

function announce(core: Core, listeners: Listeners, fastPath: string, holder: StartedHolder): void {
  const { features } = core.options;
  const sysctls = core.settings
    .list()
    .map(({ key, before, value }) => `${key.replaceAll("/", ".")} ${before} → ${value}`);
  const networks = core.networks.list().flatMap(({ name, bridge, subnets }) => {
    const ranges = subnets.map(({ subnet }) => subnet).join(", ");
    return bridge === null ? [] : `${name} on ${bridge} (${ranges})`;
  });
  const uplinks = core.uplinks.map(({ name }) => name);
  const lines = [
    `natbridge ${version} is ready (${runtime}, Linux ${features.release})`,
    `  API        ${listeners.addresses.join("  ")}`,
    `  fast path  ${fastPath}`,
    `  uplinks    ${uplinks.join(", ") || "none found: name one with --uplink"}`,
    `  networks   ${networks.join(", ") || "none yet"}`,
    `  holder     pid ${holder.pid}, ${holder.how}`,
    `  changed    nftables table inet natbridge; ${sysctls.join(", ") || "no sysctl"}`,
    "             natbridge uninstall takes all of it back",
    "",
    "Next, in another terminal:",
    "",
    `    ${nextCommand(core)}`,
    "",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

/**
 * Runs the daemon until it is asked to stop. Kernel, holder and traffic stay as they are then.
 *
 * @throws Error saying what keeps it from starting.
 */
export async function runDaemon(options: DaemonOptions): Promise<void> {
  const log = createLogger(options.logLevel);
  const stop = stopRequested();
  const opened = new Opened(log);
  try {
    await open(options, log, opened);
    const signal = await stop;
    log.info({ signal }, "stopping; networks, published ports and traffic go on");
  } finally {
    await opened.close();
  }
}

async function open(options: DaemonOptions, log: Logger, opened: Opened): Promise<void> {
  if (process.getuid?.() !== 0) throw new Error("natbridge needs root: run it with sudo");
  const { stateDir, runDir } = options;
  const datapath = loadDatapath();
  const lock = lockInstance(datapath.hostNamespace().inode);
  opened.add("lock", () => lock.release());
  makeFolders(options);
  const store = new Store(join(stateDir, databaseName));
  opened.add("database", () => store.close());
  const features = await datapath.kernelFeatures();
  const fastPath = await loadPrograms(datapath, features, options.fastPath, store);
  if (fastPath.loaded) opened.add("fast path", () => datapath.closeFastPath());
  else log.warn(`fast path ${fastPath.note}`);
  const holderOptions = {
    socketPath: join(runDir, holderSocketName),
    logPath: join(stateDir, "holder.log"),
  };
  const holder = await startHolder(holderOptions);
  opened.add("connection to the holder", () => holder.holder.close());
  const core = new Core({
    datapath,
    holder: holder.holder,
    reviveHolder: async () => (await startHolder(holderOptions)).holder.close(),
    store,
    log,
    features,
    fastPathLoaded: fastPath.loaded,
    connectHookHindrance: fastPath.connectHookHindrance ?? "",
    pinDirectory: pinDirectory(datapath),
    uplinks: options.uplinks,
    standInTable: options.standInTable,
  });
  opened.add("core", () => core.stop());
  await core.start();
  const listeners = await startListeners(core, options, log);
  opened.add("listeners", () => listeners.stop());
  announce(core, listeners, fastPath.note, holder);
}
