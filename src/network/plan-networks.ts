/** Planning a network: from what was asked to a record, or a refusal. No I/O. */
import { randomBytes } from "node:crypto";
import { ProblemError } from "../problem.ts";
import {
  addressFrom,
  contains,
  overlaps,
  parseAddress,
  parseInterfaceAddress,
  parseSubnet,
  type Subnet,
  specialUse,
  subnetAround,
  subnetOf,
  unusableAddresses,
} from "./addresses.ts";
import type { NetworkInput } from "./model.ts";
import type { NetworkRecord } from "./records.ts";
import type { State } from "./state.ts";

/** A subnet that is taken, and by what. */
export interface TakenSubnet {
  subnet: Subnet;
  by: string;
}

/** What planning must know of the host. */
export interface HostView {
  /** Subnets of the host's routes and addresses, natbridge's own left out. */
  taken: TakenSubnet[];
  /** Names of the host's devices, natbridge's own left out. */
  devices: Set<string>;
}

/** Who asks, and when. */
export interface Request {
  /** Of `POST /v1/apply`; null otherwise. */
  owner: string | null;
  /** ISO 8601. */
  now: string;
}

type SubnetInput = NonNullable<NetworkInput["subnets"]>[number];
type SubnetRecord = NetworkRecord["subnets"][number];

export const predefinedNames = ["bridge", "host", "none"];

/** 64 random hexadecimal digits. */
export const newId = (): string => randomBytes(32).toString("hex");

/** A refusal about one field. */
export function invalidField(pointer: string, message: string): ProblemError {
  return new ProblemError(
    "invalid_request",
    `${pointer.slice(1).replaceAll("/", ".")}: ${message}`,
    [{ pointer, message }],
  );
}

/** Docker's pools: 172.17.0.0/16 to 172.31.0.0/16, then the /20 blocks of 192.168.0.0/16. */
function* ipv4Pools(): Generator<Subnet> {
  for (let second = 17; second <= 31; second++) yield subnetOf(`172.${second}.0.0/16`);
  for (let third = 0; third < 256; third += 16) yield subnetOf(`192.168.${third}.0/20`);
}

/** Random /64s of fd00::/8, as RFC 4193 wants them. */
function* ipv6Pools(): Generator<Subnet> {
  for (let attempt = 0; attempt < 64; attempt++) {
    const random = BigInt(`0x${randomBytes(7).toString("hex")}`);
    yield subnetAround(addressFrom("ipv6", (0xfdn << 120n) | (random << 64n)), 64);
  }
}

function nextPool(pools: Generator<Subnet>, taken: TakenSubnet[]): Subnet {
  for (const pool of pools) if (!taken.some((other) => overlaps(pool, other.subnet))) return pool;
  throw new ProblemError("pool_exhausted", "No pool is free for the network: give it a subnet.");
}

function readSubnet(text: string, pointer: string): Subnet {
  const subnet = parseSubnet(text);
  if (!subnet) {
    const parsed = parseInterfaceAddress(text);
    const hint = parsed
      ? `; did you mean ${subnetAround(parsed.address, parsed.prefix).text}?`
      : "";
    throw invalidField(pointer, `"${text}" is no subnet such as 172.32.0.0/24${hint}`);
  }
  const longest = subnet.family === "ipv4" ? 30 : 126;
  if (subnet.prefix < 8 || subnet.prefix > longest)
    throw invalidField(pointer, `the prefix length must be 8 to ${longest}`);
  const special = specialUse(subnet);
  if (special) throw invalidField(pointer, `${text} holds ${special}: choose another subnet`);
  return subnet;
}

function readInside(text: string, subnet: Subnet, pointer: string): string {
  const address = parseAddress(text);
  if (!address) throw invalidField(pointer, `"${text}" is no IP address`);
  if (!contains(subnet, address) || unusableAddresses(subnet).includes(address.value)) {
    const message = `${address.text} is no usable address of ${subnet.text}`;
    throw new ProblemError("address_outside_subnet", message, [{ pointer, message }]);
  }
  return address.text;
}

function readRange(text: string | undefined, subnet: Subnet, pointer: string): string | null {
  if (text === undefined) return null;
  const range = parseSubnet(text);
  if (!range) throw invalidField(pointer, `"${text}" is no subnet`);
  if (range.family !== subnet.family || range.first < subnet.first || range.last > subnet.last) {
    const message = `${text} is no part of ${subnet.text}`;
    throw new ProblemError("address_outside_subnet", message, [{ pointer, message }]);
  }
  return range.text;
}

function lowestUsable(subnet: Subnet): string {
  return addressFrom(subnet.family, subnet.first + 1n).text;
}

function planSubnet(input: SubnetInput, pointer: string): SubnetRecord {
  const subnet = readSubnet(input.subnet, `${pointer}/subnet`);
  return {
    subnet: subnet.text,
    gateway:
      input.gateway === undefined
        ? lowestUsable(subnet)
        : readInside(input.gateway, subnet, `${pointer}/gateway`),
    range: readRange(input.range, subnet, `${pointer}/range`),
    reserved: (input.reserved ?? []).map((address, index) =>
      readInside(address, subnet, `${pointer}/reserved/${index}`),
    ),
  };
}

const pooled = (subnet: Subnet): SubnetRecord => ({
  subnet: subnet.text,
  gateway: lowestUsable(subnet),
  range: null,
  reserved: [],
});

function takenSubnets(state: State, host: HostView): TakenSubnet[] {
  const own = state.network.values().flatMap((network) =>
    network.subnets.map(({ subnet }) => ({
      subnet: subnetOf(subnet),
      by: `network ${network.name}`,
    })),
  );
  return [...own, ...host.taken];
}

function refuseOverlap(planned: SubnetRecord[], taken: TakenSubnet[]): void {
  for (const [index, { subnet }] of planned.entries()) {
    const other = taken.find((candidate) => overlaps(subnetOf(subnet), candidate.subnet));
    if (!other) continue;
    const message = `${subnet} overlaps ${other.subnet.text} of ${other.by}: choose another subnet`;
    throw new ProblemError("subnet_overlap", message, [
      { pointer: `/subnets/${index}/subnet`, message },
    ]);
  }
}

function planSubnets(state: State, input: NetworkInput, host: HostView): SubnetRecord[] {
  const taken = takenSubnets(state, host);
  const planned = (input.subnets ?? []).map((subnet, index) =>
    planSubnet(subnet, `/subnets/${index}`),
  );
  const families = planned.map(({ subnet }) => subnetOf(subnet).family);
  if (new Set(families).size < families.length)
    throw invalidField("/subnets", "a bridge network has at most one IPv4 and one IPv6 subnet");
  if (families.includes("ipv6") && input.ipv6 === false)
    throw invalidField("/ipv6", "is false, yet there is an IPv6 subnet: leave one of them out");
  refuseOverlap(planned, taken);
  if (planned.length === 0) planned.push(pooled(nextPool(ipv4Pools(), taken)));
  if (input.ipv6 && !families.includes("ipv6")) planned.push(pooled(nextPool(ipv6Pools(), taken)));
  return planned;
}

function refuseNames(state: State, input: NetworkInput, host: HostView): void {
  if (predefinedNames.includes(input.name))
    throw new ProblemError("predefined_network", `"${input.name}" is a predefined network.`);
  if (state.network.named(input.name))
    throw new ProblemError("name_taken", `There is a network "${input.name}" already.`, [
      { pointer: "/name", message: "taken" },
    ]);
  const { bridge } = input;
  if (bridge === undefined) return;
  const other = state.network.values().find((network) => network.bridge === bridge);
  if (other || host.devices.has(bridge))
    throw new ProblemError(
      "interface_exists",
      `Device ${bridge} is there already${other ? `, for network ${other.name}` : ""}: choose another name.`,
      [{ pointer: "/bridge", message: "exists" }],
    );
}

/**
 * The record of a new network.
 *
 * @throws ProblemError
 */
export function planNetwork(
  state: State,
  input: NetworkInput,
  host: HostView,
  request: Request,
): NetworkRecord {
  refuseNames(state, input, host);
  const subnets = planSubnets(state, input, host);
  const ipv6 = subnets.some(({ subnet }) => subnet.includes(":"));
  const mtu = input.mtu ?? 1500;
  if (ipv6 && mtu < 1280) throw invalidField("/mtu", "IPv6 needs at least 1280 bytes (RFC 8200)");
  const id = newId();
  return {
    ...networkDefaults(input),
    id,
    createdAt: request.now,
    revision: 1,
    owner: request.owner,
    subnets,
    bridge: input.bridge ?? `nb-${id.slice(0, 10)}`,
    mtu,
    ipv6,
    predefined: false,
  };
}

function networkDefaults(input: NetworkInput) {
  return {
    name: input.name,
    labels: input.labels ?? {},
    driver: "bridge",
    scope: "local",
    internal: input.internal ?? false,
    isolated: input.isolated ?? false,
    masquerade: input.masquerade ?? true,
    fastPath: input.fastPath ?? "auto",
  } as const;
}

/** The predefined network `bridge` on nb0, from the first pool that is free. */
export function planDefaultNetwork(state: State, host: HostView, now: string): NetworkRecord {
  return {
    ...networkDefaults({ name: "bridge" }),
    id: newId(),
    createdAt: now,
    revision: 1,
    owner: null,
    subnets: [pooled(nextPool(ipv4Pools(), takenSubnets(state, host)))],
    bridge: "nb0",
    mtu: 1500,
    ipv6: false,
    predefined: true,
  };
}

/** The predefined networks without a device. */
export function planPlainNetwork(name: "host" | "none", now: string): NetworkRecord {
  return {
    ...networkDefaults({ name }),
    id: newId(),
    createdAt: now,
    revision: 1,
    owner: null,
    driver: name === "host" ? "host" : "null",
    masquerade: false,
    subnets: [],
    bridge: null,
    mtu: 1500,
    ipv6: false,
    predefined: true,
  };
}

/** Fields of `input` that differ from the network as it is. Only given fields count. */
export function networkDifferences(network: NetworkRecord, input: NetworkInput): string[] {
  const differing: string[] = [];
  const fields = ["bridge", "mtu", "ipv6", "internal", "isolated", "masquerade"] as const;
  for (const field of fields)
    if (input[field] !== undefined && input[field] !== network[field]) differing.push(field);
  const subnets = input.subnets?.map((subnet, index) => planSubnet(subnet, `/subnets/${index}`));
  const given = JSON.stringify(subnets);
  const same =
    subnets === undefined ||
    given === JSON.stringify(network.subnets) ||
    given === JSON.stringify(network.subnets.slice(0, subnets.length));
  if (!same) differing.push("subnets");
  return differing;
}
