/** The datapath of the native addon: the real kernel. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type * as Native from "../../crates/natbridge-node/index.js";
import { reasonOf } from "../reason.ts";
import { DatapathError, datapathErrorKinds } from "./error.ts";
import type {
  BridgeSpec,
  ConntrackFilter,
  Datapath,
  DefaultRoute,
  DeviceSpec,
  EndpointSpec,
  FastPathOptions,
  FirewallSpec,
  HostEvent,
  PortEntry,
  Standing,
} from "./types.ts";

/** From `src/` as it is, and from `dist/` as it is published. */
const folders = ["../../crates/natbridge-node/", "../../../crates/natbridge-node/"];

/**
 * Loads the addon.
 * @throws `unsupported` if it has not been built for this machine, or can't be loaded.
 */
export function loadDatapath(): Datapath {
  return new AddonDatapath(loadAddon());
}

function loadAddon(): typeof Native {
  const file = `natbridge.linux-${process.arch}-gnu.node`;
  const path = folders
    .map((folder) => fileURLToPath(new URL(folder + file, import.meta.url)))
    .find((candidate) => existsSync(candidate));
  if (path === undefined) {
    throw new DatapathError(
      "unsupported",
      `the native addon ${file} is not built: run \`npm run build:addon\``,
    );
  }
  try {
    // Deno loads a native addon by require() only.
    return createRequire(import.meta.url)(path);
  } catch (cause) {
    const reason = reasonOf(cause);
    throw new DatapathError(
      "unsupported",
      `the native addon ${path} can't be loaded (${reason}): run \`npm run build:addon\``,
    );
  }
}

const tagged = /^\[([a-z_]+)\] (.*)$/s;

/**
 * The error for one that the addon threw. The addon writes its kind in front of the message,
 * `[not_found] …`, because Node-API carries a message only. What has no kind is `invalid` where
 * Node-API found an argument of the wrong type, else (a panic) `io`.
 */
function toDatapathError(cause: unknown): DatapathError {
  const message = reasonOf(cause);
  const [, word, text] = tagged.exec(message) ?? [];
  const kind = datapathErrorKinds.find((known) => known === word);
  if (kind !== undefined && text !== undefined) return new DatapathError(kind, text);
  return new DatapathError(isArgumentError(cause) ? "invalid" : "io", message);
}

/** Node-API's status for an argument that is missing or of the wrong type, as `code`. */
function isArgumentError(cause: unknown): boolean {
  if (!(cause instanceof Error) || !("code" in cause)) return false;
  return typeof cause.code === "string" && /^(InvalidArg|\w+Expected)$/.test(cause.code);
}

/** Runs a call of the addon that answers at once. */
function now<T>(call: () => T): T {
  try {
    return call();
  } catch (cause) {
    throw toDatapathError(cause);
  }
}

/** Runs a call of the addon that answers later; wrong arguments make it throw at once. */
async function later<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (cause) {
    throw toDatapathError(cause);
  }
}

/** Hands every call to the addon and turns its errors into `DatapathError`. */
class AddonDatapath implements Datapath {
  readonly #native: typeof Native;

  constructor(native: typeof Native) {
    this.#native = native;
  }

  kernelFeatures = () => later(() => this.#native.kernelFeatures());
  hostNamespace = () => now(() => this.#native.hostNamespace());
  readSysctl = (key: string) => now(() => this.#native.readSysctl(key));
  writeSysctl = (key: string, value: string) => now(() => this.#native.writeSysctl(key, value));
  listLinks = () => later(() => this.#native.listLinks());
  listRoutes = () => later(() => this.#native.listRoutes());
  listPacketRouting = () => later(() => this.#native.listPacketRouting());
  countXfrmPolicies = () => later(() => this.#native.countXfrmPolicies());
  createBridge = (spec: BridgeSpec) => later(() => this.#native.createBridge(spec));
  ensureBridge = (spec: BridgeSpec) => later(() => this.#native.ensureBridge(spec));
  createEndpoint = (spec: EndpointSpec) => later(() => this.#native.createEndpoint(spec));
  ensureEndpoint = (spec: EndpointSpec) => later(() => this.#native.ensureEndpoint(spec));
  announceEndpoint = (spec: EndpointSpec) => later(() => this.#native.announceEndpoint(spec));
  deleteLink = (name: string) => later(() => this.#native.deleteLink(name));
  setDefaultRoutes = (
    sandboxPath: string,
    routes: { ipv4: DefaultRoute | null; ipv6: DefaultRoute | null },
  ) => later(() => this.#native.setDefaultRoutes(sandboxPath, routes));
  inspectSandbox = (path: string) => later(() => this.#native.inspectSandbox(path));
  glanceAtSandboxes = (paths: string[]) => later(() => this.#native.glanceAtSandboxes(paths));
  resolvePid = (pid: number) => later(() => this.#native.resolvePid(pid));
  watchHost = (listener: (event: HostEvent) => void, standIn: boolean) =>
    now(() => this.#native.watchHost(listener, standIn));
  stopWatching = () => now(() => this.#native.stopWatching());

  applyFirewall = (spec: FirewallSpec) => later(() => this.#native.applyFirewall(spec));
  listFirewall = () => later(() => this.#native.listFirewall());
  removeFirewall = () => later(() => this.#native.removeFirewall());
  readForeignRuleset = () => later(() => this.#native.readForeignRuleset());
  ensureForwardAccepts = () => later(() => this.#native.ensureForwardAccepts());
  removeForwardAccepts = () => later(() => this.#native.removeForwardAccepts());

  listConntrack = () => later(() => this.#native.listConntrack());
  deleteConntrack = (filters: ConntrackFilter[]) =>
    later(() => this.#native.deleteConntrack(filters));

  loadFastPath = (options: FastPathOptions) => later(() => this.#native.loadFastPath(options));
  closeFastPath = () => now(() => this.#native.closeFastPath());
  unloadFastPath = (pinDirectory: string) => later(() => this.#native.unloadFastPath(pinDirectory));
  setFastPathEnabled = (pinDirectory: string, enabled: boolean) =>
    later(() => this.#native.setFastPathEnabled(pinDirectory, enabled));
  fastPathEnabled = (pinDirectory: string) =>
    later(() => this.#native.fastPathEnabled(pinDirectory));
  setDevice = (spec: DeviceSpec) => later(() => this.#native.setDevice(spec));
  removeDevice = (ifindex: number) => later(() => this.#native.removeDevice(ifindex));
  listDevices = () => later(() => this.#native.listDevices());
  followPrograms = (ifindexes: number[]) => later(() => this.#native.followPrograms(ifindexes));
  setPorts = (ports: PortEntry[]) => later(() => this.#native.setPorts(ports));
  settleSockets = ({ ports, endpoints }: Standing) =>
    later(() => this.#native.settleSockets(ports, endpoints));
  endSockets = (pinDirectory: string) => later(() => this.#native.endSockets(pinDirectory));
  setLocalAddresses = (addresses: string[]) =>
    later(() => this.#native.setLocalAddresses(addresses));
  setConnectHook = (enabled: boolean) => later(() => this.#native.setConnectHook(enabled));
  rulesSeen = () => now(() => this.#native.rulesSeen());
  acceptVerdict = (seen: number) => now(() => this.#native.acceptVerdict(seen));
  renewVerdict = () => now(() => this.#native.renewVerdict());
  verdictStands = () => now(() => this.#native.verdictStands());
  bumpGeneration = () => later(() => this.#native.bumpGeneration());
  deviceCounters = () => later(() => this.#native.deviceCounters());
  portCounters = () => later(() => this.#native.portCounters());
  fastPathCounters = () => later(() => this.#native.fastPathCounters());
  listFlows = () => later(() => this.#native.listFlows());
  listPrograms = () => later(() => this.#native.listPrograms());
}
