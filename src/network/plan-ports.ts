/** Planning a published port: ranges, bindings, conflicts. No I/O. */
import type { Protocol } from "../datapath/types.ts";
import { ProblemError } from "../problem.ts";
import {
  addressBits,
  addressOf,
  familyOf,
  isMulticast,
  isWildcard,
  parseAddress,
  parseInterfaceAddress,
  subnetAround,
  wildcardOf,
} from "./addresses.ts";
import type { Binding, PortInput } from "./model.ts";
import { invalidField, newId, type Request } from "./plan-networks.ts";
import { formatPortRange, mapPorts, type PortRange, parsePortRange } from "./port-ranges.ts";
import type { EndpointRecord, NetworkRecord, PortRecord } from "./records.ts";
import type { State } from "./state.ts";

const wildcards = [wildcardOf("ipv4"), wildcardOf("ipv6")];

/** Host sockets of published ports. A wildcard takes every address of its family. */
export class SocketBook {
  readonly #sockets = new Map<string, { hostAddress: string; port: PortRecord }[]>();
  /** The record of each port whose sockets count, by id. */
  readonly #current = new Map<string, PortRecord>();

  constructor(state: State) {
    for (const port of state.port.values()) this.take(port);
  }

  /** Takes the port's sockets; those an earlier record of it had are free. */
  take(port: PortRecord): void {
    this.#current.set(port.id, port);
    for (const { hostAddress, hostPort } of port.bindings) {
      const key = `${port.protocol}/${hostPort}`;
      const others = this.#sockets.get(key) ?? [];
      others.push({ hostAddress, port });
      this.#sockets.set(key, others);
    }
  }

  /** Frees the sockets of the port with this id. */
  release(id: string): void {
    this.#current.delete(id);
  }

  /** The published port, other than `except`, that has it; undefined if it is free. */
  holder(
    protocol: Protocol,
    hostAddress: string,
    hostPort: number,
    except?: string,
  ): PortRecord | undefined {
    const clash = this.#sockets
      .get(`${protocol}/${hostPort}`)
      ?.find(
        (other) =>
          other.port.id !== except &&
          this.#current.get(other.port.id) === other.port &&
          familyOf(other.hostAddress) === familyOf(hostAddress) &&
          (other.hostAddress === hostAddress ||
            isWildcard(addressOf(other.hostAddress)) ||
            isWildcard(addressOf(hostAddress))),
      );
    return clash?.port;
  }
}

/** What planning must know of the host's ports. */
export interface PortView {
  book: SocketBook;
  ephemeral: PortRange;
  /** `protocol/port` of those that turned out to be held by a process of the host. */
  held: Set<string>;
}

interface Wanted {
  protocol: Protocol;
  hostAddress: string | null;
  hostPort: number | string;
  containerPort: number | string;
  /** Id of the port that is being changed. */
  except?: string;
}

function pickFree(
  range: PortRange,
  wanted: Wanted,
  addresses: readonly string[],
  view: PortView,
): number {
  const size = range.last - range.first + 1;
  // Docker, too, starts anywhere in the ephemeral range, and at the first of a given one.
  const start = wanted.hostPort === 0 ? Math.floor(Math.random() * size) : 0;
  for (let step = 0; step < size; step++) {
    const port = range.first + ((start + step) % size);
    if (view.held.has(`${wanted.protocol}/${port}`)) continue;
    const isFree = addresses.every(
      (address) => view.book.holder(wanted.protocol, address, port, wanted.except) === undefined,
    );
    if (isFree) return port;
  }
  const message = `every ${wanted.protocol} port of ${formatPortRange(range)} is in use`;
  throw new ProblemError("port_in_use", message, [{ pointer: "/hostPort", message }]);
}

/** @throws ProblemError `port_in_use` naming the published port, `range_mismatch`, `invalid_request` */
export function planBindings(wanted: Wanted, view: PortView): Binding[] {
  const addresses = wanted.hostAddress === null ? wildcards : [wanted.hostAddress];
  const host = wanted.hostPort === 0 ? null : parsePortRange(wanted.hostPort, "/hostPort");
  const container = parsePortRange(wanted.containerPort, "/containerPort");
  const mapping = mapPorts(host, container, view.ephemeral);
  const pairs =
    mapping.kind === "each"
      ? mapping.pairs
      : [
          {
            hostPort: pickFree(mapping.from, wanted, addresses, view),
            containerPort: mapping.containerPort,
          },
        ];
  return pairs.flatMap(({ hostPort, containerPort }) =>
    addresses.map((hostAddress) => {
      const holder = view.book.holder(wanted.protocol, hostAddress, hostPort, wanted.except);
      if (!holder) return { hostAddress, hostPort, containerPort };
      const message = `${wanted.protocol} ${hostAddress} port ${hostPort} is held by published port "${holder.name}": choose another, or remove that one`;
      throw new ProblemError("port_in_use", message, [{ pointer: "/hostPort", message }]);
    }),
  );
}

export function planFrom(from: string[]): string[] {
  return from.map((text, index) => {
    const address = parseAddress(text);
    const parsed = address
      ? { address, prefix: addressBits(address.family) }
      : parseInterfaceAddress(text);
    if (!parsed) throw invalidField(`/from/${index}`, `"${text}" is no subnet such as 10.0.0.0/8`);
    return subnetAround(parsed.address, parsed.prefix).text;
  });
}

function planHostAddress(text: string | undefined): string | null {
  if (text === undefined) return null;
  const address = parseAddress(text);
  if (!address || isMulticast(address))
    throw invalidField("/hostAddress", `"${text}" is no address a socket can be bound to`);
  return address.text;
}

/** @throws ProblemError `invalid_request` if the network has no way in. */
export function refuseInternal(endpoint: EndpointRecord, network: NetworkRecord): void {
  if (network.internal)
    throw invalidField(
      "/endpoint",
      `endpoint ${endpoint.name} is on internal network ${network.name}, which has no way in`,
    );
}

function defaultName(
  state: State,
  endpoint: EndpointRecord,
  protocol: Protocol,
  bindings: Binding[],
): string {
  const base = `${endpoint.name.slice(0, 40)}-${protocol}-${bindings[0]?.hostPort ?? 0}`;
  let name = base;
  for (let count = 2; state.port.named(name); count++) name = `${base}-${count}`;
  return name;
}

/**
 * The record of a new published port.
 *
 * @throws ProblemError
 */
export function planPort(
  state: State,
  input: PortInput,
  view: PortView,
  request: Request,
): PortRecord {
  const endpoint = state.endpoint.resolve(input.endpoint, "/endpoint");
  refuseInternal(endpoint, state.network.expect(endpoint.networkId));
  if (input.name !== undefined && state.port.named(input.name))
    throw new ProblemError("name_taken", `There is a published port "${input.name}" already.`, [
      { pointer: "/name", message: "taken" },
    ]);
  const protocol = input.protocol ?? "tcp";
  const hostAddress = planHostAddress(input.hostAddress);
  const { hostPort, containerPort } = input;
  const bindings = planBindings({ protocol, hostAddress, hostPort, containerPort }, view);
  return {
    id: newId(),
    name: input.name ?? defaultName(state, endpoint, protocol, bindings),
    labels: input.labels ?? {},
    createdAt: request.now,
    revision: 1,
    owner: request.owner,
    endpointId: endpoint.id,
    hostAddress,
    hostPort,
    protocol,
    containerPort,
    from: planFrom(input.from ?? []),
    bindings,
  };
}

/** Immutable fields of `input` that differ from the port as it is. */
export function portDifferences(port: PortRecord, input: PortInput): string[] {
  const differing: string[] = [];
  if ((input.protocol ?? "tcp") !== port.protocol) differing.push("protocol");
  if (planHostAddress(input.hostAddress) !== port.hostAddress) differing.push("hostAddress");
  if (input.containerPort !== port.containerPort) differing.push("containerPort");
  return differing;
}
