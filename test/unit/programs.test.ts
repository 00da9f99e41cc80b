/** Loading the eBPF programs when the daemon starts: those of the last run never go on unfed. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { loadPrograms } from "../../src/daemon.ts";
import { DatapathError } from "../../src/datapath/error.ts";
import { CoreHost } from "../api/core-host.ts";

const test = suite<{ host: CoreHost }>("programs");

test.before.each((context) => {
  context.host = new CoreHost();
  context.host.datapath.loaded = true;
});

test("those of the last run are adopted", async ({ host: { datapath, store } }) => {
  const { loaded, note } = await loadPrograms(datapath, datapath.features, true, store);
  assert.equal([loaded, note], [true, "on, programs of the last run adopted"]);
});

test("refused by the verifier: they are unloaded", async ({ host: { datapath, store } }) => {
  datapath.failNext("loadFastPath", new DatapathError("io", "the verifier refuses nb_ingress"));
  const { loaded, note } = await loadPrograms(datapath, datapath.features, true, store);
  assert.is(loaded, false);
  assert.match(note, /the verifier refuses nb_ingress/);
  assert.is(datapath.loaded, false);
});

test("not wanted, or not possible on this kernel: they are unloaded", async ({ host }) => {
  const { datapath, store } = host;
  await loadPrograms(datapath, datapath.features, false, store);
  assert.is(datapath.loaded, false);
  datapath.loaded = true;
  const lacking = { ...datapath.features, fastPath: false, missing: ["BTF"] };
  const { note } = await loadPrograms(datapath, lacking, true, store);
  assert.is(note, "off: this kernel lacks BTF");
  assert.is(datapath.loaded, false);
});

test.run();
