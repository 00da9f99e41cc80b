/** Planning an endpoint: interface, addresses, MAC. No I/O. */
import { randomBytes } from "node:crypto";
import { ProblemError } from "../problem.ts";
import {
  type Address,
  addressOf,
  contains,
  lowestFree,
  macFromAddress,
  parseAddress,
  parseMac,
  subnetOf,
  unusableAddresses,
  withoutPrefix,
} from "./addresses.ts";
import type { EndpointInput } from "./model.ts";
import { invalidField, newId, type Request } from "./plan-networks.ts";
import type { EndpointRecord, NetworkRecord, SandboxRecord } from "./records.ts";
import type { State } from "./state.ts";

type SubnetRecord = NetworkRecord["subnets"][number];

/** Who has an address of the network; null if it is free. */
function addressHolder(
  state: State,
  network: NetworkRecord,
  subnet: SubnetRecord,
  address: string,
): string | null {
  if (subnet.gateway === address) return "the gateway";
  if (subnet.reserved.includes(address)) return "the network's reserved list";
  const holder = state.endpoint
    .of(network.id)
    .find((endpoint) => endpoint.addresses.some((own) => withoutPrefix(own) === address));
  return holder ? `endpoint ${holder.name}` : null;
}

function fixedAddress(state: State, network: NetworkRecord, text: string, pointer: string) {
  const address = parseAddress(text);
  if (!address) throw invalidField(pointer, `"${text}" is no IP address`);
  const subnet = network.subnets.find((candidate) => {
    const parsed = subnetOf(candidate.subnet);
    return contains(parsed, address) && !unusableAddresses(parsed).includes(address.value);
  });
  if (!subnet) {
    const subnets = network.subnets.map((each) => each.subnet).join(" and ");
    const message = `${address.text} is no usable address of network ${network.name} (${subnets})`;
    throw new ProblemError("address_outside_subnet", message, [{ pointer, message }]);
  }
  const holder = addressHolder(state, network, subnet, address.text);
  if (holder !== null) {
    const message = `${address.text} is in use by ${holder}: choose another address`;
    throw new ProblemError("address_in_use", message, [{ pointer, message }]);
  }
  return { subnet, address };
}

function freeAddress(state: State, network: NetworkRecord, subnet: SubnetRecord): Address {
  const taken = new Set<bigint>(subnet.reserved.map((text) => addressOf(text).value));
  if (subnet.gateway !== null) taken.add(addressOf(subnet.gateway).value);
  const family = subnetOf(subnet.subnet).family;
  for (const endpoint of state.endpoint.of(network.id))
    for (const own of endpoint.addresses) {
      const address = addressOf(withoutPrefix(own));
      if (address.family === family) taken.add(address.value);
    }
  const range = subnet.range === null ? null : subnetOf(subnet.range);
  const free = lowestFree(subnetOf(subnet.subnet), range, taken);
  if (free) return free;
  throw new ProblemError(
    "pool_exhausted",
    `Network ${network.name} has no free address left in ${subnet.range ?? subnet.subnet}.`,
  );
}

function planAddresses(state: State, network: NetworkRecord, input: EndpointInput): Address[] {
  const wanted = input.addresses ?? [];
  if (wanted.length > 0 && network.predefined)
    throw new ProblemError(
      "static_address_not_allowed",
      `Network ${network.name} hands out its addresses itself: make a network of your own for fixed ones.`,
      [{ pointer: "/addresses", message: "not on the default network" }],
    );
  const fixed = wanted.map((text, index) =>
    fixedAddress(state, network, text, `/addresses/${index}`),
  );
  return network.subnets.map((subnet) => {
    const given = fixed.filter((each) => each.subnet === subnet);
    if (given.length > 1)
      throw invalidField(
        "/addresses",
        `more than one address of ${subnet.subnet}: give one per family`,
      );
    return given[0]?.address ?? freeAddress(state, network, subnet);
  });
}

/** The asked MAC or one made of the address; two of the same on one bridge would get each other's frames. */
function planMac(
  state: State,
  network: NetworkRecord,
  input: EndpointInput,
  addresses: Address[],
): string {
  const others = state.endpoint.of(network.id);
  if (input.mac !== undefined) {
    const mac = parseMac(input.mac);
    if (mac === null)
      throw invalidField(
        "/mac",
        `"${input.mac}" is no unicast MAC address such as 02:42:ac:20:00:0a`,
      );
    const holder = others.find((other) => other.mac === mac);
    if (!holder) return mac;
    const message = `${mac} is in use by endpoint ${holder.name}: choose another MAC address`;
    throw new ProblemError("address_in_use", message, [{ pointer: "/mac", message }]);
  }
  const base = addresses.find(({ family }) => family === "ipv4") ?? addresses[0];
  if (!base) throw new Error("An endpoint without an address");
  let mac = macFromAddress(base);
  // IPv6 addresses may share their last four bytes, and a given MAC may look like a made one.
  while (others.some((other) => other.mac === mac))
    mac = `02:42:${randomBytes(4).toString("hex").match(/../g)?.join(":")}`;
  return mac;
}

/** The asked interface name, or the next free `ethN`. */
function planInterface(
  state: State,
  sandbox: SandboxRecord,
  input: EndpointInput,
  present: string[],
): string {
  const taken = new Set([
    ...present,
    ...state.endpoint.of(sandbox.id).map((other) => other.interface),
  ]);
  const wanted = input.interface;
  if (wanted !== undefined && taken.has(wanted))
    throw new ProblemError(
      "interface_exists",
      `Sandbox ${sandbox.name} has an interface ${wanted} already: choose another name.`,
      [{ pointer: "/interface", message: "exists" }],
    );
  if (wanted !== undefined) return wanted;
  let index = 0;
  while (taken.has(`eth${index}`)) index++;
  return `eth${index}`;
}

function planMtu(network: NetworkRecord, input: EndpointInput): number {
  const mtu = input.mtu ?? network.mtu;
  if (mtu > network.mtu || (network.ipv6 && mtu < 1280))
    throw invalidField(
      "/mtu",
      `must be ${network.ipv6 ? "at least 1280 and " : ""}at most the network's ${network.mtu}`,
    );
  return mtu;
}

/**
 * The record of a new endpoint.
 *
 * @param present Names of the interfaces that are in the sandbox now.
 * @throws ProblemError
 */
export function planEndpoint(
  state: State,
  network: NetworkRecord,
  sandbox: SandboxRecord,
  input: EndpointInput,
  present: string[],
  request: Request,
): EndpointRecord {
  if (state.endpoint.named(input.name))
    throw new ProblemError("name_taken", `There is an endpoint "${input.name}" already.`, [
      { pointer: "/name", message: "taken" },
    ]);
  if (network.bridge === null)
    throw invalidField(
      "/network",
      `network ${network.name} has no endpoints: choose a bridge network`,
    );
  const twin = state.endpoint.of(sandbox.id).find((other) => other.networkId === network.id);
  if (twin)
    throw invalidField(
      "/network",
      `sandbox ${sandbox.name} is on network ${network.name} already, by endpoint ${twin.name}`,
    );
  const addresses = planAddresses(state, network, input);
  const id = newId();
  return {
    id,
    name: input.name,
    labels: input.labels ?? {},
    createdAt: request.now,
    revision: 1,
    owner: request.owner,
    networkId: network.id,
    sandboxId: sandbox.id,
    interface: planInterface(state, sandbox, input, present),
    addresses: addresses.map(
      ({ text }, index) => `${text}/${network.subnets[index]?.subnet.split("/")[1]}`,
    ),
    gateway: network.subnets.flatMap(({ gateway }) => gateway ?? []),
    mac: planMac(state, network, input, addresses),
    mtu: planMtu(network, input),
    aliases: input.aliases ?? [],
    defaultRoutePriority: input.defaultRoutePriority ?? 0,
    sourceCheck: input.sourceCheck ?? true,
    hostInterface: `nb${id.slice(0, 10)}`,
  };
}

/** Immutable fields of `input` that differ from the endpoint as it is. */
export function endpointDifferences(
  state: State,
  endpoint: EndpointRecord,
  input: EndpointInput,
  isSameSandbox: boolean,
): string[] {
  const differing: string[] = [];
  if (state.network.resolve(input.network, "/network").id !== endpoint.networkId)
    differing.push("network");
  if (!isSameSandbox) differing.push("sandbox");
  const fields = ["interface", "mtu", "defaultRoutePriority", "sourceCheck"] as const;
  for (const field of fields)
    if (input[field] !== undefined && input[field] !== endpoint[field]) differing.push(field);
  if (input.mac !== undefined && parseMac(input.mac) !== endpoint.mac) differing.push("mac");
  const own = endpoint.addresses.map(withoutPrefix);
  if (!(input.addresses ?? []).every((text) => own.includes(parseAddress(text)?.text ?? "")))
    differing.push("addresses");
  return differing;
}
