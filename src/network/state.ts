/** The desired state: four tables of records, copied for each change and replaced as a whole. */
import { type ProblemCode, ProblemError } from "../problem.ts";
import type {
  EndpointRecord,
  Kind,
  NetworkRecord,
  PortRecord,
  RecordsByKind,
  SandboxRecord,
} from "./records.ts";

interface Named {
  id: string;
  name: string;
}

/** Records of one kind, found by id and by name, and grouped by what they belong to. */
export class Table<T extends Named> {
  readonly #kind: Kind;
  readonly #groupOf: (record: T) => string[];
  readonly #byId: Map<string, T>;
  readonly #byName: Map<string, T>;
  readonly #groups: Map<string, Set<string>>;

  constructor(kind: Kind, groupOf: (record: T) => string[], copyOf?: Table<T>) {
    this.#kind = kind;
    this.#groupOf = groupOf;
    this.#byId = new Map(copyOf ? copyOf.#byId : []);
    this.#byName = new Map(copyOf ? copyOf.#byName : []);
    this.#groups = new Map();
    const groups = copyOf ? copyOf.#groups : [];
    for (const [group, ids] of groups) this.#groups.set(group, new Set(ids));
  }

  copy(): Table<T> {
    return new Table(this.#kind, this.#groupOf, this);
  }

  get size(): number {
    return this.#byId.size;
  }

  values(): T[] {
    return [...this.#byId.values()];
  }

  /** By id; undefined if there is none. */
  get(id: string): T | undefined {
    return this.#byId.get(id);
  }

  /** By id, where other records prove that it is there. */
  expect(id: string): T {
    const record = this.#byId.get(id);
    if (!record) throw new Error(`No ${this.#kind} ${id}, though something refers to it`);
    return record;
  }

  named(name: string): T | undefined {
    return this.#byName.get(name);
  }

  /** Records that belong to the object with this id. */
  of(group: string): T[] {
    return [...(this.#groups.get(group) ?? [])].map((id) => this.expect(id));
  }

  /**
   * A record by name, id or unique prefix of an id.
   *
   * @param pointer Field of the request that holds `ref`, if one does.
   * @throws ProblemError `<kind>_not_found` or `ambiguous_reference`.
   */
  resolve(ref: string, pointer?: string): T {
    const exact = this.#byName.get(ref) ?? this.#byId.get(ref);
    if (exact) return exact;
    const matches = /^[0-9a-f]+$/.test(ref)
      ? this.values().filter((record) => record.id.startsWith(ref))
      : [];
    const [match, second] = matches;
    if (match && !second) return match;
    const code: ProblemCode = match ? "ambiguous_reference" : `${this.#kind}_not_found`;
    const detail = match
      ? `${ref} is the beginning of ${matches.length} ${this.#kind} ids: give more digits.`
      : `There is no ${this.#kind} ${JSON.stringify(ref)}.`;
    throw new ProblemError(code, detail, pointer ? [{ pointer, message: detail }] : []);
  }

  put(record: T): void {
    this.delete(record.id);
    this.#byId.set(record.id, record);
    this.#byName.set(record.name, record);
    for (const group of this.#groupOf(record)) {
      const ids = this.#groups.get(group) ?? new Set();
      this.#groups.set(group, ids.add(record.id));
    }
  }

  delete(id: string): void {
    const record = this.#byId.get(id);
    if (!record) return;
    this.#byId.delete(id);
    this.#byName.delete(record.name);
    for (const group of this.#groupOf(record)) {
      const ids = this.#groups.get(group);
      ids?.delete(id);
      if (ids?.size === 0) this.#groups.delete(group);
    }
  }
}

export class State {
  readonly network: Table<NetworkRecord>;
  readonly sandbox: Table<SandboxRecord>;
  readonly endpoint: Table<EndpointRecord>;
  readonly port: Table<PortRecord>;

  constructor(copyOf?: State) {
    this.network = copyOf?.network.copy() ?? new Table("network", () => []);
    this.sandbox = copyOf?.sandbox.copy() ?? new Table("sandbox", () => []);
    this.endpoint =
      copyOf?.endpoint.copy() ??
      new Table("endpoint", (endpoint) => [endpoint.networkId, endpoint.sandboxId]);
    this.port = copyOf?.port.copy() ?? new Table("port", (port) => [port.endpointId]);
  }

  copy(): State {
    return new State(this);
  }
}

/** What differs between two tables. A record that did not change is the same JavaScript object. */
export interface TableDifference<T> {
  added: T[];
  removed: T[];
  changed: { before: T; after: T }[];
}

function compareTables<T extends Named>(before: Table<T>, after: Table<T>): TableDifference<T> {
  const difference: TableDifference<T> = { added: [], removed: [], changed: [] };
  for (const record of after.values()) {
    const old = before.get(record.id);
    if (!old) difference.added.push(record);
    else if (old !== record) difference.changed.push({ before: old, after: record });
  }
  for (const record of before.values()) {
    if (!after.get(record.id)) difference.removed.push(record);
  }
  return difference;
}

export type StateDifference = { [K in Kind]: TableDifference<RecordsByKind[K]> };

export function compareStates(before: State, after: State): StateDifference {
  return {
    network: compareTables(before.network, after.network),
    sandbox: compareTables(before.sandbox, after.sandbox),
    endpoint: compareTables(before.endpoint, after.endpoint),
    port: compareTables(before.port, after.port),
  };
}
