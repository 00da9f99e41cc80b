/**
 * Where sandboxes are by now. A sandbox is a wish for what is at its path: a namespace made anew there is
 * the same wish. One by process goes with the process for good.
 */
import { DatapathError } from "../datapath/error.ts";
import type { Datapath, SandboxInfo } from "../datapath/types.ts";
import { reasonOf } from "../reason.ts";
import { isOfProcess, isSameNamespace } from "./endpoint-standing.ts";
import type { SandboxRecord } from "./records.ts";

/** What is at each sandbox's path, by id: null for nothing. Those that could not be looked at are not in it. */
export type Found = Map<string, SandboxInfo | null>;

/** A namespace that can't be found any more, or is no namespace any more. */
const isGone = (error: unknown): boolean =>
  error instanceof DatapathError && ["not_found", "invalid"].includes(error.kind);

/** Looks at every path; `fail` hears of those that can't be looked at. */
export async function findAll(
  datapath: Datapath,
  sandboxes: SandboxRecord[],
  fail: (message: string) => void,
): Promise<Found> {
  const found: Found = new Map();
  for (const { id, name, netns } of sandboxes) {
    try {
      found.set(id, await datapath.inspectSandbox(netns));
    } catch (error) {
      if (isGone(error)) found.set(id, null);
      else fail(`sandbox ${name}: ${reasonOf(error)}`);
    }
  }
  return found;
}

export type Whereabouts =
  | { is: "there" }
  /** Another namespace than recorded, or the recorded one after it was lost. */
  | { is: "back"; key: string }
  /** `refused`: why what is at its path may not be it; null: nothing is there. */
  | { is: "lost"; refused: string | null };

/** What became of a sandbox. */
export function whereaboutsOf(
  sandbox: SandboxRecord,
  sandboxes: SandboxRecord[],
  found: Found,
): Whereabouts {
  const info = found.get(sandbox.id) ?? null;
  if (info === null) return { is: "lost", refused: null };
  const isRecorded = isSameNamespace(sandbox.key, info.key);
  const claim = claimOn(sandbox, info, sandboxes, found);
  if (claim !== null) return { is: "lost", refused: claim };
  if (!isRecorded && (isOfProcess(sandbox) || info.ofProcess))
    return { is: "lost", refused: `${sandbox.netns} is another process's by now` };
  if (sandbox.key === info.key && sandbox.lostSince === null) return { is: "there" };
  return { is: "back", key: info.key };
}

/** Who else has a right to what is at a sandbox's path. */
function claimOn(
  sandbox: SandboxRecord,
  info: SandboxInfo,
  sandboxes: SandboxRecord[],
  found: Found,
): string | null {
  if (info.isHost) return `${sandbox.netns} leads to the host's own namespace by now`;
  const others = sandboxes.filter(({ id }) => found.get(id)?.key === info.key);
  const owner =
    others.find(({ key, lostSince }) => lostSince === null && isSameNamespace(key, info.key)) ??
    others[0];
  return owner === undefined || owner.id === sandbox.id
    ? null
    : `${sandbox.netns} leads to the namespace of sandbox ${owner.name} by now`;
}

const placeOf = ({ key, lostSince }: SandboxRecord): string =>
  lostSince === null ? key.split(":").slice(0, 2).join(":") : "";

/**
 * Sees whether something changed at a sandbox's path: making and removing a namespace announces itself to
 * nobody.
 */
export class SandboxWatch {
  /** What was at a path that the record does not say, when it was last told of. */
  readonly #told = new Map<string, string>();

  /** True if something is there, or gone, that no record says and that was not told of before. */
  async look(datapath: Datapath, sandboxes: SandboxRecord[]): Promise<boolean> {
    if (sandboxes.length === 0) return false;
    const places = await datapath.glanceAtSandboxes(sandboxes.map(({ netns }) => netns));
    const ids = new Set(sandboxes.map(({ id }) => id));
    for (const id of this.#told.keys()) if (!ids.has(id)) this.#told.delete(id);
    let isNews = false;
    for (const [index, sandbox] of sandboxes.entries()) {
      const place = places[index] ?? "";
      const recorded = placeOf(sandbox);
      if (place === recorded) this.#told.delete(sandbox.id);
      else {
        const difference = `${place} for ${recorded}`;
        if (this.#told.get(sandbox.id) !== difference) isNews = true;
        this.#told.set(sandbox.id, difference);
      }
    }
    return isNews;
  }
}
