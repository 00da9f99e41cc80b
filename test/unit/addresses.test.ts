/** Addresses, subnets, MACs and ranges of ports: what is taken, and what is made of it. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  addressOf,
  isLoopback,
  isMulticast,
  isWildcard,
  lowestFree,
  macFromAddress,
  overlaps,
  parseAddress,
  parseInterfaceAddress,
  parseMac,
  parseSubnet,
  specialUse,
  subnetAround,
  subnetOf,
} from "../../src/network/addresses.ts";
import { formatPortRange, mapPorts, parsePortRange } from "../../src/network/port-ranges.ts";
import { ProblemError } from "../../src/problem.ts";

const addresses: [text: string, canonical: string | null][] = [
  ["172.32.0.10", "172.32.0.10"],
  ["fd00:0:0::A", "fd00::a"],
  ["fd00:0:0:1:0:0:0:1", "fd00:0:0:1::1"],
  ["::", "::"],
  ["010.0.0.1", null],
  ["10.1", null],
  ["10.0.0.256", null],
  ["10.0.0.1/24", null],
  ["10.0.0.1\n", null],
  [" 10.0.0.1", null],
  ["::ffff:10.0.0.1", null],
  ["::ffff:a00:1", null],
  ["fe80::1%eth0", null],
  ["[::1]", null],
  ["1::2::3", null],
  ["", null],
];
for (const [text, canonical] of addresses)
  test(`address ${JSON.stringify(text)} is ${canonical}`, () => {
    assert.is(parseAddress(text)?.text ?? null, canonical);
    if (canonical === null) assert.throws(() => addressOf(text), /Not an address/);
  });

test("subnets have no host bits and a whole prefix length", () => {
  assert.is(parseSubnet("172.32.0.0/24")?.text, "172.32.0.0/24");
  assert.is(parseSubnet("FD00:1::/64")?.text, "fd00:1::/64");
  assert.is(parseSubnet("0.0.0.0/0")?.last, 0xffffffffn);
  for (const text of ["172.32.0.1/24", "172.32.0.0", "172.32.0.0/33", "::/129", "10.0.0.0/08"])
    assert.is(parseSubnet(text), null, text);
  for (const text of ["10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/ 8", "/8"])
    assert.is(parseInterfaceAddress(text), null, text);
  assert.is(subnetAround(addressOf("10.9.8.7"), 20).text, "10.9.0.0/20");
  assert.throws(() => subnetOf("x"), /Not a subnet/);
});

test("overlapping is seen at the edges, and never over families", () => {
  const overlap = (a: string, b: string) => overlaps(subnetOf(a), subnetOf(b));
  assert.ok(overlap("10.0.0.0/8", "10.255.255.0/24"));
  assert.ok(overlap("10.1.0.0/16", "10.0.0.0/8"));
  assert.not.ok(overlap("10.0.0.0/24", "10.0.1.0/24"));
  assert.not.ok(overlap("0.0.0.0/0", "::/0"));
});

test("special subnets are named", () => {
  for (const text of ["0.1.0.0/16", "127.0.0.0/24", "169.254.9.0/24", "239.0.0.0/8", "250.0.0.0/8"])
    assert.ok(specialUse(subnetOf(text)), text);
  for (const text of ["fe80::/64", "ff02::/16", "::/64"])
    assert.ok(specialUse(subnetOf(text)), text);
  for (const text of ["10.0.0.0/8", "100.64.0.0/10", "fd00::/8", "2001:db8::/32"])
    assert.is(specialUse(subnetOf(text)), null, text);
});

test("loopback, wildcard and multicast addresses are told apart", () => {
  const are = (judge: (address: ReturnType<typeof addressOf>) => boolean) =>
    ["127.0.0.1", "127.255.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"]
      .concat(["126.0.0.1", "128.0.0.1", "223.255.255.255", "::2", "fe00::1"])
      .filter((text) => judge(addressOf(text)));
  assert.equal(are(isLoopback), ["127.0.0.1", "127.255.0.1", "::1"]);
  assert.equal(are(isWildcard), ["0.0.0.0", "::"]);
  assert.equal(are(isMulticast), ["224.0.0.1", "255.255.255.255", "ff02::1"]);
});

test("the lowest free address is neither network, broadcast nor router anycast", () => {
  const free = (subnet: string, range: string | null, ...taken: string[]) =>
    lowestFree(
      subnetOf(subnet),
      range === null ? null : subnetOf(range),
      new Set(taken.map((text) => addressOf(text).value)),
    )?.text ?? null;
  assert.is(free("10.0.0.0/30", null), "10.0.0.1");
  assert.is(free("10.0.0.0/30", null, "10.0.0.1"), "10.0.0.2");
  assert.is(free("10.0.0.0/30", null, "10.0.0.1", "10.0.0.2"), null);
  assert.is(free("fd00::/64", null), "fd00::1");
  assert.is(free("10.0.0.0/24", "10.0.0.64/30"), "10.0.0.64");
  assert.is(free("10.0.0.0/24", "10.0.0.252/30", "10.0.0.252", "10.0.0.253", "10.0.0.254"), null);
});

test("MACs are unicast, and made of the address", () => {
  assert.is(parseMac("02-42-AC-20-00-0A"), "02:42:ac:20:00:0a");
  for (const text of ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:42:ac:20"])
    assert.is(parseMac(text), null, text);
  for (const text of ["02:42:ac:20:00:0g", "0242ac20000a", "02:42:ac:20:00:0a\n"])
    assert.is(parseMac(text), null, text);
  assert.is(macFromAddress(addressOf("172.32.0.10")), "02:42:ac:20:00:0a");
  assert.is(macFromAddress(addressOf("255.0.0.1")), "02:42:ff:00:00:01");
  assert.is(macFromAddress(addressOf("fd00::ff:1:2")), "02:42:00:01:00:02");
});

const code = (work: () => unknown): string => {
  try {
    work();
    return "";
  } catch (error) {
    if (!(error instanceof ProblemError)) throw error;
    return `${error.code} ${error.errors[0]?.pointer}`;
  }
};

test("a port is a number or a rising range", () => {
  assert.equal(parsePortRange(8080, "/p"), { first: 8080, last: 8080 });
  assert.equal(parsePortRange("1-65535", "/p"), { first: 1, last: 65535 });
  for (const bad of [
    0,
    65536,
    -1,
    1.5,
    "",
    "a",
    "0-1",
    "1-65536",
    "2-1",
    "1-2-3",
    "1-",
    " 1",
    "1 -2",
  ])
    assert.is(
      code(() => parsePortRange(bad, "/p")),
      "invalid_request /p",
      String(bad),
    );
  assert.equal(
    [
      { first: 1, last: 1 },
      { first: 1, last: 2 },
    ].map(formatPortRange),
    [1, "1-2"],
  );
});

test("equal ranges map one to one, a range to one port picks, nothing else does", () => {
  const ephemeral = { first: 40000, last: 40009 };
  const map = (host: number | string | null, container: number | string) =>
    mapPorts(
      host === null ? null : parsePortRange(host, "/hostPort"),
      parsePortRange(container, "/containerPort"),
      ephemeral,
    );
  const one = [{ hostPort: 8080, containerPort: 80 }];
  assert.equal(map(8080, 80), { kind: "each", pairs: one });
  assert.equal(map("8000-8001", "80-81"), {
    kind: "each",
    pairs: [
      { hostPort: 8000, containerPort: 80 },
      { hostPort: 8001, containerPort: 81 },
    ],
  });
  const from = { first: 8000, last: 8001 };
  assert.equal(map("8000-8001", 80), { kind: "pick", from, containerPort: 80 });
  assert.equal(map(null, 80), { kind: "pick", from: ephemeral, containerPort: 80 });
  for (const [host, container] of [
    ["1-3", "1-2"],
    ["1-2", "1-3"],
    [1, "1-2"],
    [null, "1-2"],
  ] as const)
    assert.is(
      code(() => map(host, container)),
      "range_mismatch /hostPort",
    );
});

test.run();
