import { suite } from "uvu";
import * as assert from "uvu/assert";
import { FakeDatapath } from "../../src/datapath/fake.ts";
import { readPolicy } from "../../src/network/fast-path-policy.ts";

const test = suite("fast path policy");

test("routing that tells packets of one connection apart keeps it off the host", async () => {
  const datapath = new FakeDatapath();
  const read = async () => (await readPolicy(datapath)).policy;
  assert.ok((await read()).host);
  datapath.packetRouting = ["ip rule 100: tos 0x10"];
  const policy = await read();
  assert.not.ok(policy.host);
  assert.equal(policy.hindrances, [
    {
      where: "host",
      rule: "ip rule 100: tos 0x10",
      reason: "it routes packets of one connection apart",
    },
  ]);
});

test("routing that can't be read is no verdict", async () => {
  const datapath = new FakeDatapath();
  datapath.listPacketRouting = async () => {
    throw new Error("no netlink");
  };
  let refused = "";
  await readPolicy(datapath).catch((error: Error) => {
    refused = error.message;
  });
  assert.is(refused, "no netlink");
});

test.run();
