/** The tables of the desired state, what differs between two of them, and steps that are undone. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { planPlainNetwork } from "../../src/network/plan-networks.ts";
import { compareStates, State, Table } from "../../src/network/state.ts";
import { Steps } from "../../src/network/steps.ts";
import { ProblemError } from "../../src/problem.ts";

interface Item {
  id: string;
  name: string;
  group: string;
}
const item = (id: string, name: string, group = "g"): Item => ({
  id: id.padEnd(64, "0"),
  name,
  group,
});
const makeTable = (...items: Item[]): Table<Item> => {
  const table = new Table<Item>("port", ({ group }) => [group]);
  for (const each of items) table.put(each);
  return table;
};

function refusal(work: () => unknown): ProblemError {
  try {
    work();
  } catch (error) {
    if (error instanceof ProblemError) return error;
    throw error;
  }
  throw new Error("was not refused");
}

test("a reference is a name, an id, or a prefix that only one id has", () => {
  const [a, b] = [item("ab1", "a"), item("ab2", "b")];
  const table = makeTable(a, b, item("cc", "ab1"));
  assert.is(table.resolve("a"), a);
  assert.is(table.resolve(b.id), b);
  assert.is(table.resolve("ab2"), b);
  // A name goes before a prefix.
  assert.is(table.resolve("ab1").name, "ab1");
  const several = refusal(() => table.resolve("ab", "/endpoint"));
  assert.is(several.code, "ambiguous_reference");
  assert.match(several.message, /2 port ids/);
  assert.equal(several.errors[0]?.pointer, "/endpoint");
  for (const nothing of ["abc", "AB1", "", "b0", `${a.id}0`])
    assert.is(refusal(() => table.resolve(nothing)).code, "port_not_found", nothing);
});

test("records are found by name and group as they are now", () => {
  const table = makeTable(item("a", "old", "g"), item("b", "b", "g"));
  table.put(item("a", "new", "h"));
  assert.is(table.named("old"), undefined);
  assert.is(table.named("new")?.group, "h");
  assert.equal(
    [table.of("g"), table.of("h")].map((group) => group.map(({ name }) => name)),
    [["b"], ["new"]],
  );
  table.delete(item("b", "").id);
  table.delete("never there");
  assert.equal([table.size, table.of("g").length], [1, 0]);
  assert.throws(() => table.expect("x"), /No port x/);
});

test("a change of a copy leaves the original", () => {
  const table = makeTable(item("a", "a"));
  const copy = table.copy();
  copy.put(item("b", "b"));
  copy.delete(item("a", "").id);
  assert.equal([table.size, table.of("g").length, copy.of("g").length], [1, 1, 1]);
  assert.is(table.named("b"), undefined);
  assert.is(copy.named("a"), undefined);
});

test("a difference tells what is new, other and gone", () => {
  const [a, b, c] = (["host", "none", "host"] as const).map((name) => planPlainNetwork(name, ""));
  assert.ok(a && b && c);
  const before = new State();
  for (const record of [a, b]) before.network.put(record);
  const after = before.copy();
  const other = { ...b, revision: 2 };
  after.network.delete(a.id);
  after.network.put(other);
  after.network.put(c);
  const { network, port } = compareStates(before, after);
  assert.equal(network, { added: [c], removed: [a], changed: [{ before: b, after: other }] });
  assert.equal(port, { added: [], removed: [], changed: [] });
});

test("steps are undone last first, past errors, and once", async () => {
  const told: string[] = [];
  const logged: unknown[] = [];
  const steps = new Steps({ error: (...what: unknown[]) => void logged.push(what) });
  for (const name of ["bridge", "endpoint", "reserve"] as const)
    await steps.run(
      name,
      () => name.length,
      (value) => {
        told.push(`${name} ${value}`);
        if (name === "endpoint") throw new Error("busy");
      },
    );
  await steps.run("commit", () => 0);
  const failing = steps.run(
    "device",
    () => Promise.reject(new Error("no")),
    () => told.push("must not be undone"),
  );
  await failing.then(
    () => assert.unreachable(),
    () => undefined,
  );
  assert.equal(
    (await steps.undoAll()).map(({ message }) => message),
    ["busy"],
  );
  assert.equal(told, ["reserve 7", "endpoint 8", "bridge 6"]);
  assert.is(logged.length, 1);
  assert.equal(await steps.undoAll(), []);
  assert.is(told.length, 3);
});

test("a step that fails after its work is undone, too", async () => {
  const steps = new Steps({ error: () => undefined });
  let isDone = false;
  process.env["NATBRIDGE_FAIL_AFTER"] = "bridge";
  try {
    await steps.run(
      "bridge",
      () => {
        isDone = true;
      },
      () => {
        isDone = false;
      },
    );
    assert.unreachable();
  } catch (error) {
    assert.match(String(error), /stopped after step bridge/);
  } finally {
    delete process.env["NATBRIDGE_FAIL_AFTER"];
  }
  assert.ok(isDone);
  await steps.undoAll();
  assert.not.ok(isDone);
});

test.run();
