/** One natbridge per network namespace. */
import { rmSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { reasonOf } from "../reason.ts";

export interface InstanceLock {
  /** Gives it up. */
  release(): void;
}

/** In root's own folder: in a public one anybody could hold the lock. */
const lockPath = (inode: number): string => `/run/natbridge-${inode}.lock`;

/**
 * Takes the lock of a network namespace: SQLite's lock on a file, which both runtimes can take and
 * which ends with the process, however it ends.
 *
 * @param inode Of the namespace.
 * @throws Error if another process has it.
 */
export function lockInstance(inode: number): InstanceLock {
  const path = lockPath(inode);
  const database = new DatabaseSync(path);
  try {
    database.exec("PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE");
  } catch (cause) {
    database.close();
    const reason = reasonOf(cause);
    if (!/lock|busy/i.test(reason)) throw new Error(`${path}: ${reason}`, { cause });
    throw new Error(
      "another natbridge daemon already runs in this network namespace: stop it first (one host has one)",
      { cause },
    );
  }
  return {
    release: () => {
      database.close();
      rmSync(path, { force: true });
    },
  };
}
