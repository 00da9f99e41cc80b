/** A published port as one word: `[HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/PROTOCOL]`. */
import { isIP } from "node:net";
import { protocolSchema } from "../network/model.ts";
import { UsageError } from "./errors.ts";

export interface PortSpec {
  hostAddress?: string;
  hostPort: number | string;
  containerPort: number | string;
  protocol: "tcp" | "udp" | "sctp";
}

const form = "[HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/tcp|udp|sctp]";

function refuse(text: string, why: string): never {
  throw new UsageError(`port "${text}": ${why}; the form is ${form}, such as 8080:80/tcp`);
}

function checkPort(text: string, number: number, min: number): number {
  if (number >= min && number <= 65535) return number;
  return refuse(text, `${number} is not a port (${min} to 65535)`);
}

/** A number, or a range as text. `what` names it in errors. */
function parsePorts(text: string, value: string, what: string, min: number): number | string {
  const [, first, last] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(value) ?? [];
  if (first === undefined) return refuse(text, `the ${what} "${value}" is no port and no range`);
  if (last === undefined) return checkPort(text, Number(first), min);
  const [from, to] = [checkPort(text, Number(first), 1), checkPort(text, Number(last), 1)];
  if (from > to) return refuse(text, `the range ${value} runs backwards`);
  return from === to ? from : `${from}-${to}`;
}

/** The host's part, from the right: an IPv6 address in brackets keeps its colons. */
function splitHost(text: string, host: string): { address?: string; port: string } {
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(host);
  if (bracketed) {
    const [, address = "", port = ""] = bracketed;
    if (isIP(address) !== 6) refuse(text, `"${address}" is not an IPv6 address`);
    return { address, port };
  }
  const at = host.lastIndexOf(":");
  if (at < 0) return isIP(host) === 0 ? { port: host } : { address: host, port: "" };
  const [address, port] = [host.slice(0, at), host.slice(at + 1)];
  if (isIP(address) === 4) return { address, port };
  if (isIP(host) === 6 || isIP(address) === 6) refuse(text, "write an IPv6 address in brackets");
  return refuse(text, `"${address}" is not an address of the host`);
}

/**
 * Without a host port, natbridge picks one of the host's ephemeral ports.
 *
 * @throws UsageError naming the part that is wrong.
 */
export function parsePortSpec(text: string): PortSpec {
  const slash = text.indexOf("/");
  const protocolText = slash < 0 ? "tcp" : text.slice(slash + 1).toLowerCase();
  const protocol = protocolSchema.safeParse(protocolText);
  if (!protocol.success) return refuse(text, `"${protocolText}" is not tcp, udp or sctp`);
  const rest = slash < 0 ? text : text.slice(0, slash);
  const at = rest.lastIndexOf(":");
  const container = rest.slice(at + 1);
  const containerPort = parsePorts(text, container, "container port", 1);
  if (at < 0) return { hostPort: 0, containerPort, protocol: protocol.data };
  const { address, port } = splitHost(text, rest.slice(0, at));
  const hostPort = port === "" ? 0 : parsePorts(text, port, "host port", 0);
  return {
    ...(address === undefined ? {} : { hostAddress: address }),
    hostPort,
    containerPort,
    protocol: protocol.data,
  };
}
