/** The addon in this process, for what works without the daemon. */
import type { Datapath } from "../datapath/types.ts";
import { reasonOf } from "../reason.ts";
import { FailedError } from "./errors.ts";

/** @throws FailedError if the addon is not built. */
export async function openLocalDatapath(): Promise<Datapath> {
  const { loadDatapath } = await import("../datapath/addon.ts");
  try {
    return loadDatapath();
  } catch (error) {
    throw new FailedError(reasonOf(error));
  }
}

/** Where a daemon in this network namespace pins its programs and maps. */
export function pinDirectory(datapath: { hostNamespace(): { inode: number } }): string {
  return `/sys/fs/bpf/natbridge/${datapath.hostNamespace().inode}`;
}
