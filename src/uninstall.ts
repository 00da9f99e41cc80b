/** Takes natbridge off a host: all that it made goes, all that it changed is put back. */
import { existsSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pinDirectory } from "./cli/local-datapath.ts";
import { databaseName, holderSocketName } from "./daemon.ts";
import { loadDatapath } from "./datapath/addon.ts";
import type { Datapath } from "./datapath/types.ts";
import { HolderClient } from "./holder/client.ts";
import { HolderError } from "./holder/types.ts";
import { HostSettings } from "./network/host-settings.ts";
import { entriesOf } from "./network/stale-entries.ts";
import { noted } from "./network/stale-note.ts";
import { reasonOf } from "./reason.ts";
import { lockInstance } from "./runtime/instance-lock.ts";
import { Store } from "./store/store.ts";

export interface UninstallOptions {
  stateDir: string;
  runDir: string;
}

/** Ends the holder; false if there was none. */
async function endHolder(runDir: string): Promise<boolean> {
  const holder = new HolderClient(join(runDir, holderSocketName));
  try {
    await holder.shutdown();
    return true;
  } catch (error) {
    if (error instanceof HolderError && error.kind === "unavailable") return false;
    throw error;
  } finally {
    holder.close();
  }
}

async function deleteLinks(datapath: Datapath): Promise<string[]> {
  const own = (await datapath.listLinks()).filter(({ alias }) => alias.startsWith("natbridge:"));
  for (const { name } of own) await datapath.deleteLink(name);
  return own.map(({ name }) => name);
}

/** Entries that would go on translating towards containers that are gone. */
async function forgetConnections(datapath: Datapath, store: Store | null): Promise<number> {
  if (!store) return 0;
  const endpoints = store.loadState().endpoint.values();
  const filters = [
    ...endpoints.flatMap(({ addresses }) => entriesOf(addresses)),
    ...noted(store).filters,
  ];
  return filters.length === 0 ? 0 : datapath.deleteConntrack(filters);
}

function removeFiles({ stateDir, runDir }: UninstallOptions): void {
  for (const suffix of ["", "-wal", "-shm"])
    rmSync(join(stateDir, `${databaseName}${suffix}`), { force: true });
  rmSync(join(stateDir, "holder.log"), { force: true });
  for (const name of [holderSocketName, "natbridge.sock"])
    rmSync(join(runDir, name), { force: true });
  for (const folder of [stateDir, runDir])
    if (existsSync(folder) && readdirSync(folder).length === 0) rmdirSync(folder);
}

/**
 * Removes everything, goes on after an error, and works where half of it is gone already.
 *
 * @returns What it did, one line each.
 * @throws Error naming all that could not be removed.
 */
export async function uninstall(options: UninstallOptions): Promise<string[]> {
  const datapath = loadDatapath();
  const lock = lockInstance(datapath.hostNamespace().inode);
  const done: string[] = [];
  const failures: string[] = [];
  const attempt = async (what: string, work: () => Promise<string> | string): Promise<void> => {
    try {
      const line = await work();
      if (line !== "") done.push(line);
    } catch (error) {
      failures.push(`${what}: ${reasonOf(error)}`);
    }
  };
  let store: Store | null = null;
  try {
    const path = join(options.stateDir, databaseName);
    await attempt("database", () => {
      if (existsSync(path)) store = new Store(path);
      return existsSync(path) ? "" : `no state in ${options.stateDir}: sysctls are not restored`;
    });
    // While it is known which they are: nobody will be there to tell them.
    await attempt("the host's own connections", async () => {
      const count = await datapath.endSockets(pinDirectory(datapath));
      return count === 0 ? "" : `${count} connections of the host to published ports ended`;
    });
    await attempt("fast path", async () => {
      await datapath.unloadFastPath(pinDirectory(datapath));
      return "no eBPF program or map of natbridge is left";
    });
    await attempt("forward accepts", async () => {
      await datapath.removeForwardAccepts();
      return "no accept of natbridge is left in foreign FORWARD chains";
    });
    await attempt("firewall", async () => {
      await datapath.removeFirewall();
      return "no nftables table inet natbridge is left";
    });
    await attempt("devices", async () => {
      const names = await deleteLinks(datapath);
      return names.length === 0 ? "" : `devices removed: ${names.join(", ")}`;
    });
    // Behind the table: with it the next packet of a busy client would make its entry again.
    await attempt("connections", async () => {
      const count = await forgetConnections(datapath, store);
      return count === 0 ? "" : `${count} conntrack entries of endpoints deleted`;
    });
    await attempt("holder", async () =>
      (await endHolder(options.runDir)) ? "reserved ports given up" : "",
    );
    await attempt("sysctls", () => restoreSettings(datapath, store));
    if (failures.length === 0)
      await attempt("files", () => {
        closeStore(store);
        store = null;
        removeFiles(options);
        return `state in ${options.stateDir} removed`;
      });
  } finally {
    closeStore(store);
    lock.release();
  }
  if (failures.length > 0) throw new Error(`not all could be removed: ${failures.join("; ")}`);
  return done;
}

function closeStore(store: Store | null): void {
  store?.close();
}

function restoreSettings(datapath: Datapath, store: Store | null): string {
  if (store === null) return "";
  const settings = new HostSettings(datapath, store);
  const names = settings.list().map(({ key }) => key.replaceAll("/", "."));
  const failures = settings.restore();
  if (failures.length > 0) throw new Error(failures.join("; "));
  return names.length === 0 ? "" : `sysctls restored: ${names.join(", ")}`;
}
