/** The file of a unix socket: taking over a stale one, and opening a new one to a group. */
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, lstatSync, rmSync } from "node:fs";
import { connect } from "node:net";

const answerMilliseconds = 2000;

/** Somebody accepts connections at `path`. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const end = (result: boolean) => {
      socket.destroy();
      resolve(result);
    };
    socket.once("connect", () => end(true));
    socket.once("error", (error: NodeJS.ErrnoException) =>
      end(error.code !== "ECONNREFUSED" && error.code !== "ENOENT"),
    );
    socket.setTimeout(answerMilliseconds, () => end(true));
  });
}

/**
 * Removes a socket that a killed process left at `path`.
 *
 * @throws Error if something else is there, or somebody answers.
 */
export async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new Error(
      `${path} is in the way: it is no socket; remove it or choose another --run-dir`,
    );
  }
  if (await answers(path)) {
    throw new Error(`another process answers at ${path}: stop it or choose another --run-dir`);
  }
  rmSync(path, { force: true });
}

/** @throws Error if there is no such group. */
export function groupId(name: string): number {
  let line: string;
  try {
    line = execFileSync("getent", ["group", "--", name], { encoding: "utf8" });
  } catch {
    throw new Error(`--socket-group: there is no group "${name}"; make it with groupadd ${name}`);
  }
  const id = Number(line.split(":")[2]);
  if (!Number.isInteger(id)) throw new Error(`--socket-group: getent does not know "${name}"`);
  return id;
}

/** Lets a group use the socket: its members then can do all that root can do through the API. */
export function openToGroup(path: string, gid: number): void {
  chownSync(path, 0, gid);
  chmodSync(path, 0o660);
}
