/** One natbridge per network namespace. */
import { closeSync, fstatSync, openSync, rmSync, statSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { reasonOf } from "../reason.ts";

export interface InstanceLock {
  /** Gives it up. */
  release(): void;
}

/** In root's own folder: in a public one anybody could hold the lock. */
const lockPath = (inode: number): string => `/run/natbridge-${inode}.lock`;

/** @throws Error if another process has it. */
function lockFile(path: string): DatabaseSync {
  const database = new DatabaseSync(path);
  try {
    database.exec("PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE");
    return database;
  } catch (cause) {
    database.close();
    const reason = reasonOf(cause);
    if (!/lock|busy/i.test(reason)) throw new Error(`${path}: ${reason}`, { cause });
    throw new Error(
      "another natbridge daemon already runs in this network namespace: stop it first (one host has one)",
      { cause },
    );
  }
}

/**
 * Takes the lock of a network namespace: SQLite's lock on a file, which both runtimes can take and
 * which ends with the process, however it ends. Once per process: the end of a second try would end
 * the first one's lock (fcntl(2): a process's locks go with any of its descriptors of the file).
 *
 * @param inode Of the namespace.
 * @throws Error if another process has it.
 */
export function lockInstance(inode: number): InstanceLock {
  const path = lockPath(inode);
  for (;;) {
    // Open all the while, so that no later file can have this one's number.
    const file = openSync(path, "a", 0o600);
    let database: DatabaseSync | null = null;
    const end = (): void => {
      database?.close();
      closeSync(file);
    };
    try {
      database = lockFile(path);
      if (statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(file).ino)
        return {
          release: () => {
            rmSync(path, { force: true });
            end();
          },
        };
    } catch (error) {
      end();
      throw error;
    }
    // Who had the lock until now has taken its file away: the next to come would lock another.
    end();
  }
}
