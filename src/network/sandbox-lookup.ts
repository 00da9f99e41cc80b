/** From what a caller names (a sandbox, a netns, a process) to a network namespace. */
import { basename } from "node:path";
import { DatapathError } from "../datapath/error.ts";
import type { Datapath, SandboxInfo } from "../datapath/types.ts";
import { ProblemError } from "../problem.ts";
import { isOfProcess, isSameNamespace } from "./endpoint-standing.ts";
import type { EndpointInput } from "./model.ts";
import { invalidField, newId, type Request } from "./plan-networks.ts";
import type { SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";

export interface FoundSandbox {
  path: string;
  info: SandboxInfo;
  /** Names of its interfaces. */
  present: string[];
  /** The sandbox that was named by its name or id. */
  named: SandboxRecord | null;
}

function refuse(pointer: string, message: string): ProblemError {
  return new ProblemError("sandbox_invalid", message, [{ pointer, message }]);
}

function netnsPath(netns: string): string {
  if (netns.startsWith("/")) return netns;
  if (netns.includes("/") || netns === "." || netns === "..")
    throw refuse("/netns", `"${netns}" is neither a name below /run/netns nor an absolute path.`);
  return `/run/netns/${netns}`;
}

async function pathOf(
  datapath: Datapath,
  state: State,
  input: EndpointInput,
): Promise<{
  path: string;
  pointer: string;
  /** The namespace it must be. */
  key: string | null;
  named: SandboxRecord | null;
}> {
  const given = [input.sandbox, input.netns, input.pid].filter((value) => value !== undefined);
  if (given.length !== 1)
    throw invalidField("/sandbox", "give exactly one of sandbox, netns and pid");
  if (input.sandbox !== undefined) {
    const sandbox = state.sandbox.resolve(input.sandbox, "/sandbox");
    // A namespace made anew at its path is what the sandbox is by now.
    const key = isOfProcess(sandbox) ? sandbox.key : null;
    return { path: sandbox.netns, pointer: "/sandbox", key, named: sandbox };
  }
  if (input.netns !== undefined)
    return { path: netnsPath(input.netns), pointer: "/netns", key: null, named: null };
  const { path, key } = await datapath.resolvePid(input.pid ?? 0);
  return { path, pointer: "/pid", key, named: null };
}

/**
 * The namespace an endpoint is to be put into.
 *
 * @throws ProblemError `sandbox_invalid`, `sandbox_not_found`, `invalid_request`
 */
export async function findSandbox(
  datapath: Datapath,
  state: State,
  input: EndpointInput,
): Promise<FoundSandbox> {
  let pointer = "/netns";
  try {
    const found = await pathOf(datapath, state, input);
    pointer = found.pointer;
    const info = await datapath.inspectSandbox(found.path);
    // A process number is given again.
    if (found.key !== null && !isSameNamespace(found.key, info.key))
      throw refuse(
        pointer,
        `${found.path} leads to another namespace by now (${info.key}, not ${found.key}): name the one that is meant by netns or pid.`,
      );
    if (info.isHost)
      throw refuse(
        pointer,
        `${found.path} is the host's own namespace: an endpoint needs another.`,
      );
    const present = info.interfaces.map(({ name }) => name);
    return { path: found.path, info, present, named: found.named };
  } catch (error) {
    if (!(error instanceof DatapathError)) throw error;
    const isTheirs = ["not_found", "invalid", "denied"].includes(error.kind);
    if (!isTheirs) throw error;
    throw refuse(input.pid === undefined ? pointer : "/pid", error.message);
  }
}

/**
 * The sandbox with the path it was found by, if the path it is known by leads there no more, or is a
 * process's and this one is not.
 */
export async function withLivePath(
  datapath: Datapath,
  sandbox: SandboxRecord,
  found: FoundSandbox,
): Promise<SandboxRecord> {
  if (sandbox.netns === found.path) return sandbox;
  const isBetter = isOfProcess(sandbox) && !isOfProcess({ netns: found.path });
  if (!isBetter && (await leadsTo(datapath, sandbox, found))) return sandbox;
  return { ...sandbox, netns: found.path, revision: sandbox.revision + 1 };
}

/** The path a sandbox is known by leads to this namespace. */
async function leadsTo(
  datapath: Datapath,
  sandbox: SandboxRecord,
  found: FoundSandbox,
): Promise<boolean> {
  if (sandbox.netns === found.path) return true;
  try {
    return (await datapath.inspectSandbox(sandbox.netns)).key === found.info.key;
  } catch (error) {
    if (!(error instanceof DatapathError)) throw error;
    return false;
  }
}

const isAt = (sandbox: SandboxRecord, { info }: FoundSandbox): boolean =>
  sandbox.lostSince === null && isSameNamespace(sandbox.key, info.key);

/**
 * The sandbox as it is by now, if it is this namespace: the one it was, or one that was made anew at its
 * path. Null: it is another.
 *
 * @throws ProblemError if the namespace is another sandbox's.
 */
export async function sandboxNow(
  datapath: Datapath,
  state: State,
  sandbox: SandboxRecord,
  found: FoundSandbox,
): Promise<SandboxRecord | null> {
  if (isAt(sandbox, found)) return sandbox;
  const isItself = isSameNamespace(sandbox.key, found.info.key);
  // Of a process there is none anew: the number may be a stranger's by now.
  if (!isItself && isOfProcess(sandbox)) return null;
  return (await leadsTo(datapath, sandbox, found)) ? madeAnew(state, sandbox, found) : null;
}

function madeAnew(state: State, sandbox: SandboxRecord, found: FoundSandbox): SandboxRecord {
  const { key } = found.info;
  const other = state.sandbox.values().find((each) => each.id !== sandbox.id && isAt(each, found));
  if (other)
    throw refuse(
      "/sandbox",
      `${found.path} leads to the namespace of sandbox ${other.name} by now: it can't be sandbox ${sandbox.name}, too.`,
    );
  return { ...sandbox, key, lostSince: null, revision: sandbox.revision + 1 };
}

/** The sandbox of this namespace, as it is known, as it came back, or as a new record. */
export function planSandbox(state: State, found: FoundSandbox, request: Request): SandboxRecord {
  const { named, path } = found;
  const sandboxes = named ? [named] : state.sandbox.values();
  const known = sandboxes.find((sandbox) => isAt(sandbox, found));
  if (known) return known;
  const gone = sandboxes.find(
    (sandbox) => sandbox === named || (sandbox.netns === path && !isOfProcess(sandbox)),
  );
  if (gone) return madeAnew(state, gone, found);
  const pid = /^\/proc\/(\d+)\/ns\/net$/.exec(found.path)?.[1];
  const plain = (pid === undefined ? basename(found.path) : `pid-${pid}`)
    .replaceAll(/[^a-zA-Z0-9_.-]/g, "-")
    .replace(/^[^a-zA-Z0-9]+/, "")
    .slice(0, 50);
  const base = plain === "" ? "sandbox" : plain;
  let name = base;
  for (let count = 2; state.sandbox.named(name); count++) name = `${base}-${count}`;
  return {
    id: newId(),
    name,
    labels: {},
    createdAt: request.now,
    revision: 1,
    owner: request.owner,
    mode: "private",
    netns: found.path,
    key: found.info.key,
    lostSince: null,
  };
}
