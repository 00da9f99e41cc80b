/** How many files this process may have open. */
import { readFileSync } from "node:fs";

/** What Linux gives a process whose starter said nothing. */
const usual = 1024;

/** The soft limit (proc(5)); both runtimes raise it to the hard one when they start. */
export function fileLimit(): number {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8");
    const soft = /^Max open files +(\d+|unlimited)/m.exec(limits)?.[1];
    return soft === "unlimited" ? Number.MAX_SAFE_INTEGER : Number(soft ?? usual);
  } catch {
    return usual;
  }
}

/**
 * The descriptors one listener's connections may take: at most `wanted`, and of all an eighth. With
 * three listeners more than half are left for the database, the kernel's sockets and `nft`.
 */
export function connectionShare(wanted: number, limit = fileLimit()): number {
  return Math.max(8, Math.min(wanted, Math.floor(limit / 8)));
}
