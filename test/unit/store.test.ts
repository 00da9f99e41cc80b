/** The durable state: what is committed is there after a reopening, and nothing else is. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { planPlainNetwork } from "../../src/network/plan-networks.ts";
import type { PortRecord } from "../../src/network/records.ts";
import { keptEvents, Store } from "../../src/store/store.ts";

const test = suite<{ path: string }>("store");
const folder = mkdtempSync(join(tmpdir(), "nb-store-"));
let count = 0;
test.before.each((context) => {
  context.path = join(folder, `${count++}.sqlite`);
});
test.after(() => rmSync(folder, { recursive: true, force: true }));

const record = planPlainNetwork("host", "2026-01-01T00:00:00.000Z");
const event = (id: number) => ({
  id,
  type: "a.b",
  time: record.createdAt,
  object: null,
  message: "",
});

function reopened<T>(path: string, work: (store: Store) => T): T {
  const store = new Store(path);
  try {
    return work(store);
  } finally {
    store.close();
  }
}

test("what was committed is there again", ({ path }) => {
  reopened(path, (store) => {
    store.commit({ put: { network: [record] }, delete: {}, events: [event(1)] });
    store.recordHostSetting({ key: "a/b", before: "0", value: "1" });
    store.saveSetting("fast-path", "off");
  });
  reopened(path, (store) => {
    assert.equal(store.loadState().network.values(), [record]);
    assert.equal(store.loadEvents(), [event(1)]);
    assert.equal(store.hostSettings(), [{ key: "a/b", before: "0", value: "1" }]);
    assert.is(store.setting("fast-path"), "off");
    store.commit({ put: {}, delete: { network: [record.id] }, events: [] });
  });
  reopened(path, (store) => assert.is(store.loadState().network.size, 0));
});

test("a change that throws at its end is no change", ({ path }) => {
  reopened(path, (store) => {
    assert.throws(() =>
      store.commit({
        put: { network: [record] },
        delete: {},
        events: [event(1)],
        beforeCommit: () => {
          throw new Error("no");
        },
      }),
    );
    assert.is(store.loadState().network.size, 0);
    assert.is(store.loadEvents().length, 0);
  });
});

test("what could not be loaded again is not written", ({ path }) => {
  reopened(path, (store) => {
    const unreadable = { ...record, name: "no name" };
    assert.throws(
      () => store.commit({ put: { network: [unreadable] }, delete: {}, events: [event(1)] }),
      /name/,
    );
    assert.is(store.loadState().network.size, 0);
    assert.is(store.loadEvents().length, 0);
  });
});

test("only the newest events are kept", ({ path }) => {
  reopened(path, (store) => {
    const events = Array.from({ length: keptEvents + 10 }, (_, index) => event(index + 1));
    store.commit({ put: {}, delete: {}, events });
    const kept = store.loadEvents();
    assert.is(kept.length, keptEvents);
    assert.is(kept[0]?.id, 11);
  });
});

test("a database of a newer natbridge is refused, and left alone", ({ path }) => {
  reopened(path, () => undefined);
  const database = new DatabaseSync(path);
  database.exec("PRAGMA user_version = 999");
  database.close();
  assert.throws(() => new Store(path), /schema version 999/);
});

test("a damaged file is named, and left alone", ({ path }) => {
  const noise = "no database, but long enough to be looked at as one. ".repeat(40);
  writeFileSync(path, noise);
  assert.throws(
    () => new Store(path),
    new RegExp(`${path} can't be used: .*Put a copy of it back`),
  );
  assert.is(readFileSync(path, "utf8"), noise);
});

for (const damaged of ['{"id":"x"}', '{"id":', ""])
  test(`a damaged record is named: ${damaged}`, ({ path }) => {
    reopened(path, (store) => store.commit({ put: { network: [record] }, delete: {}, events: [] }));
    const database = new DatabaseSync(path);
    database.prepare("UPDATE network SET record = ?").run(damaged);
    database.close();
    reopened(path, (store) => assert.throws(() => store.loadState(), /A network in the database/));
  });

test("a record that refers to nothing is named", ({ path }) => {
  const port: PortRecord = {
    id: "b".repeat(64),
    name: "p",
    labels: {},
    createdAt: record.createdAt,
    revision: 1,
    owner: null,
    endpointId: "e".repeat(64),
    hostAddress: null,
    hostPort: 1,
    protocol: "tcp",
    containerPort: 1,
    from: [],
    bindings: [],
  };
  reopened(path, (store) => {
    store.commit({ put: { port: [port] }, delete: {}, events: [] });
    assert.throws(() => store.loadState(), /No endpoint eeee/);
  });
});

test("a change replaces the record and keeps its place", ({ path }) => {
  const other = planPlainNetwork("none", record.createdAt);
  reopened(path, (store) => {
    store.commit({ put: { network: [record, other] }, delete: {}, events: [] });
    const changed = { ...record, revision: 2 };
    store.commit({ put: { network: [changed] }, delete: {}, events: [] });
    assert.equal(store.loadState().network.values(), [changed, other]);
  });
});

test("host settings come back in their order, and are forgotten one by one", ({ path }) => {
  reopened(path, (store) => {
    for (const key of ["c", "a", "b"]) store.recordHostSetting({ key, before: "0", value: "1" });
    store.forgetHostSetting("a");
    store.forgetHostSetting("never there");
  });
  reopened(path, (store) =>
    assert.equal(
      store.hostSettings().map(({ key }) => key),
      ["c", "b"],
    ),
  );
});

test.run();
