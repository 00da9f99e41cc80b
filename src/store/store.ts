/** The durable state: SQLite in WAL mode, each change one transaction, synced before it is answered. */
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { z } from "zod";
import type { NatbridgeEvent } from "../network/events.ts";
import {
  endpointRecordSchema,
  type Kind,
  kinds,
  networkRecordSchema,
  portRecordSchema,
  type RecordsByKind,
  sandboxRecordSchema,
} from "../network/records.ts";
import { State } from "../network/state.ts";
import { reasonOf } from "../reason.ts";
import { migrations } from "./migrations.ts";

/** Events that are kept. */
export const keptEvents = 5000;

/** A host-wide setting natbridge changed. */
export interface HostSetting {
  /** Below /proc/sys: `net/ipv4/ip_forward`. */
  key: string;
  before: string;
  value: string;
}

/** One transaction. */
export interface StoreChange {
  put: { [K in Kind]?: RecordsByKind[K][] };
  delete: { [K in Kind]?: string[] };
  events: NatbridgeEvent[];
  settings?: Record<string, string>;
  /** Runs as the last thing inside the transaction; throwing rolls it back. */
  beforeCommit?: () => void;
}

const recordRow = z.object({ record: z.string() });
const eventSchema = z.object({
  id: z.int(),
  type: z.string(),
  time: z.string(),
  object: z
    .object({
      kind: z.enum(["network", "sandbox", "endpoint", "port"]),
      id: z.string(),
      name: z.string(),
    })
    .nullable(),
  message: z.string(),
}) satisfies z.ZodType<NatbridgeEvent>;
const settingRow = z.object({ key: z.string(), before: z.string(), value: z.string() });

const schemas = {
  network: networkRecordSchema,
  sandbox: sandboxRecordSchema,
  endpoint: endpointRecordSchema,
  port: portRecordSchema,
} as const;

/** What was written; undefined, which no schema takes, if it is no JSON. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export class Store {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  /**
   * Opens or makes the database, and brings its schema up to date.
   *
   * @param path File, or `:memory:`.
   * @throws Error if a newer natbridge wrote it, or it is damaged.
   */
  constructor(path: string) {
    this.#database = new DatabaseSync(path);
    let version: number;
    try {
      version = this.#open();
    } catch (cause) {
      this.#database.close();
      const reason = reasonOf(cause);
      throw new Error(
        `${path} can't be used: ${reason}. Put a copy of it back; without it natbridge begins anew, and removes what it made before.`,
        { cause },
      );
    }
    if (version > migrations.length) {
      this.#database.close();
      throw new Error(
        `${path} has schema version ${version}, this natbridge knows ${migrations.length}: use the newer natbridge that wrote it, or another --state-dir.`,
      );
    }
  }

  /** Brings the schema up to date unless it is newer than that; returns the version it had. */
  #open(): number {
    this.#database.exec(
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000;",
    );
    const row = z
      .object({ user_version: z.int() })
      .parse(this.#prepare("PRAGMA user_version").get());
    for (const [index, migration] of migrations.entries()) {
      if (index < row.user_version) continue;
      this.#transaction(() => {
        this.#database.exec(migration);
        this.#database.exec(`PRAGMA user_version = ${index + 1}`);
      });
    }
    return row.user_version;
  }

  /** The whole desired state. @throws Error naming what is damaged, or refers to nothing. */
  loadState(): State {
    const state = new State();
    for (const record of this.#records("network", schemas.network)) state.network.put(record);
    for (const record of this.#records("sandbox", schemas.sandbox)) state.sandbox.put(record);
    for (const record of this.#records("endpoint", schemas.endpoint)) state.endpoint.put(record);
    for (const record of this.#records("port", schemas.port)) state.port.put(record);
    for (const { networkId, sandboxId } of state.endpoint.values()) {
      state.network.expect(networkId);
      state.sandbox.expect(sandboxId);
    }
    for (const { endpointId } of state.port.values()) state.endpoint.expect(endpointId);
    return state;
  }

  #records<T>(kind: Kind, schema: z.ZodType<T>): T[] {
    const rows = this.#prepare(`SELECT record FROM ${kind} ORDER BY rowid`).all();
    return rows.map((row) => {
      const parsed = schema.safeParse(parseJson(recordRow.parse(row).record));
      if (!parsed.success) {
        throw new Error(`A ${kind} in the database is damaged: ${z.prettifyError(parsed.error)}`);
      }
      return parsed.data;
    });
  }

  /** Events still kept, oldest first. */
  loadEvents(): NatbridgeEvent[] {
    const rows = this.#prepare("SELECT event FROM event ORDER BY id").all();
    return rows.map((row) =>
      eventSchema.parse(JSON.parse(z.object({ event: z.string() }).parse(row).event)),
    );
  }

  /**
   * Makes a change durable, whole or not at all.
   *
   * @throws Error with the disk's reason, or if a record is one that could not be loaded again.
   */
  commit(change: StoreChange): void {
    this.#transaction(() => {
      for (const kind of kinds) {
        for (const id of change.delete[kind] ?? []) {
          this.#prepare(`DELETE FROM ${kind} WHERE id = ?`).run(id);
        }
        for (const record of change.put[kind] ?? []) {
          schemas[kind].parse(record);
          this.#prepare(
            `INSERT INTO ${kind} (id, record) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record`,
          ).run(record.id, JSON.stringify(record));
        }
      }
      this.#appendEvents(change.events);
      for (const [key, value] of Object.entries(change.settings ?? {}))
        this.saveSetting(key, value);
      change.beforeCommit?.();
    });
  }

  #appendEvents(events: NatbridgeEvent[]): void {
    for (const event of events) {
      this.#prepare("INSERT INTO event (id, event) VALUES (?, ?)").run(
        event.id,
        JSON.stringify(event),
      );
    }
    const last = events.at(-1);
    if (last) this.#prepare("DELETE FROM event WHERE id <= ?").run(last.id - keptEvents);
  }

  /** Host-wide settings natbridge changed, in the order of changing. */
  hostSettings(): HostSetting[] {
    const rows = this.#prepare(
      "SELECT key, before, value FROM host_setting ORDER BY position",
    ).all();
    return rows.map((row) => settingRow.parse(row));
  }

  recordHostSetting(setting: HostSetting): void {
    this.#prepare("INSERT INTO host_setting (key, before, value) VALUES (?, ?, ?)").run(
      setting.key,
      setting.before,
      setting.value,
    );
  }

  forgetHostSetting(key: string): void {
    this.#prepare("DELETE FROM host_setting WHERE key = ?").run(key);
  }

  /** A setting of natbridge's own; null if it was never set. */
  setting(key: string): string | null {
    const row = this.#prepare("SELECT value FROM setting WHERE key = ?").get(key);
    return row === undefined ? null : z.object({ value: z.string() }).parse(row).value;
  }

  saveSetting(key: string, value: string): void {
    this.#prepare(
      "INSERT INTO setting (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    ).run(key, value);
  }

  /** Folds the write-ahead log into the database and closes it. */
  close(): void {
    try {
      this.#database.exec("PRAGMA wal_checkpoint(TRUNCATE)");
    } finally {
      this.#statements.clear();
      this.#database.close();
    }
  }

  #prepare(sql: string): StatementSync {
    const known = this.#statements.get(sql);
    if (known) return known;
    const statement = this.#database.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }

  #transaction(work: () => void): void {
    this.#database.exec("BEGIN IMMEDIATE");
    try {
      work();
      this.#database.exec("COMMIT");
    } catch (error) {
      // A full disk may have ended the transaction already.
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      throw error;
    }
  }
}
