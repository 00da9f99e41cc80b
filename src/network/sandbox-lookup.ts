/** From what a caller names (a sandbox, a netns, a process) to a network namespace. */
import { basename } from "node:path";
import { DatapathError } from "../datapath/error.ts";
import type { Datapath, SandboxInfo } from "../datapath/types.ts";
import { ProblemError } from "../problem.ts";
import type { EndpointInput } from "./model.ts";
import { invalidField, newId, type Request } from "./plan-networks.ts";
import type { SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";

export interface FoundSandbox {
  path: string;
  info: SandboxInfo;
  /** Names of its interfaces. */
  present: string[];
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
): Promise<{ path: string; pointer: string; key: string | null }> {
  const given = [input.sandbox, input.netns, input.pid].filter((value) => value !== undefined);
  if (given.length !== 1)
    throw invalidField("/sandbox", "give exactly one of sandbox, netns and pid");
  if (input.sandbox !== undefined) {
    const sandbox = state.sandbox.resolve(input.sandbox, "/sandbox");
    return { path: sandbox.netns, pointer: "/sandbox", key: sandbox.key };
  }
  if (input.netns !== undefined)
    return { path: netnsPath(input.netns), pointer: "/netns", key: null };
  const { path, key } = await datapath.resolvePid(input.pid ?? 0);
  return { path, pointer: "/pid", key };
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
    // A path outlives what it led to: a netns is made again, a process number is given again.
    if (found.key !== null && found.key !== info.key)
      throw refuse(
        pointer,
        `${found.path} leads to another namespace by now (${info.key}, not ${found.key}): name the one that is meant by netns or pid.`,
      );
    if (info.isHost)
      throw refuse(
        pointer,
        `${found.path} is the host's own namespace: an endpoint needs another.`,
      );
    return { path: found.path, info, present: info.interfaces.map(({ name }) => name) };
  } catch (error) {
    if (!(error instanceof DatapathError)) throw error;
    const isTheirs = ["not_found", "invalid", "denied"].includes(error.kind);
    if (!isTheirs) throw error;
    throw refuse(input.pid === undefined ? pointer : "/pid", error.message);
  }
}

/** The sandbox with the path it was found by, if the path it is known by leads there no more. */
export async function withLivePath(
  datapath: Datapath,
  sandbox: SandboxRecord,
  found: FoundSandbox,
): Promise<SandboxRecord> {
  if (sandbox.netns === found.path) return sandbox;
  try {
    const { key } = await datapath.inspectSandbox(sandbox.netns);
    if (key === sandbox.key) return sandbox;
  } catch (error) {
    if (!(error instanceof DatapathError)) throw error;
  }
  return { ...sandbox, netns: found.path, revision: sandbox.revision + 1 };
}

/** The sandbox of this namespace, as it is known or as a new record. */
export function planSandbox(state: State, found: FoundSandbox, request: Request): SandboxRecord {
  const known = state.sandbox
    .values()
    .find((sandbox) => sandbox.key === found.info.key && sandbox.lostSince === null);
  if (known) return known;
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
