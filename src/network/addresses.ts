/** Addresses, subnets and MACs: checking, canonical form, arithmetic. */
import { Address4, Address6 } from "ip-address";
import type { Family } from "../datapath/types.ts";

export interface Address {
  family: Family;
  value: bigint;
  /** Canonical (RFC 5952 for IPv6). */
  text: string;
}

export interface Subnet {
  family: Family;
  prefix: number;
  first: bigint;
  last: bigint;
  /** Canonical CIDR. */
  text: string;
}

/** Bits of an address. */
export const addressBits = (family: Family): number => (family === "ipv4" ? 32 : 128);

/** The address with this number. */
export function addressFrom(family: Family, value: bigint): Address {
  const text =
    family === "ipv4"
      ? Address4.fromBigInt(value).correctForm()
      : Address6.fromBigInt(value).correctForm();
  return { family, value, text };
}

/** An address without prefix or zone; null if `text` is none. IPv4-mapped IPv6 is refused. */
export function parseAddress(text: string): Address | null {
  if (text.includes("/") || text.includes("%")) return null;
  if (Address4.isValid(text)) return addressFrom("ipv4", new Address4(text).bigInt());
  if (!Address6.isValid(text)) return null;
  const value = new Address6(text).bigInt();
  return value >> 32n === 0xffffn ? null : addressFrom("ipv6", value);
}

/** `address/prefix` taken apart; null if `text` is none. */
export function parseInterfaceAddress(text: string): { address: Address; prefix: number } | null {
  const [head, tail, ...rest] = text.split("/");
  if (head === undefined || tail === undefined || rest.length > 0) return null;
  const address = parseAddress(head);
  if (!address || !/^(0|[1-9]\d{0,2})$/.test(tail)) return null;
  const prefix = Number(tail);
  return prefix > addressBits(address.family) ? null : { address, prefix };
}

/** The subnet of this prefix length that holds the address. */
export function subnetAround(address: Address, prefix: number): Subnet {
  const size = 1n << BigInt(addressBits(address.family) - prefix);
  const first = address.value - (address.value % size);
  return {
    family: address.family,
    prefix,
    first,
    last: first + size - 1n,
    text: `${addressFrom(address.family, first).text}/${prefix}`,
  };
}

/** A CIDR whose host bits are zero; null if `text` is none. */
export function parseSubnet(text: string): Subnet | null {
  const parsed = parseInterfaceAddress(text);
  if (!parsed) return null;
  const subnet = subnetAround(parsed.address, parsed.prefix);
  return subnet.first === parsed.address.value ? subnet : null;
}

/** A CIDR known to be good, as the store and the kernel hold them. @throws Error if it is not. */
export function subnetOf(text: string): Subnet {
  const parsed = parseInterfaceAddress(text);
  if (!parsed) throw new Error(`Not a subnet: ${text}`);
  return subnetAround(parsed.address, parsed.prefix);
}

/** An address known to be good. @throws Error if it is not. */
export function addressOf(text: string): Address {
  const address = parseAddress(text);
  if (!address) throw new Error(`Not an address: ${text}`);
  return address;
}

/** `172.32.0.10` of `172.32.0.10/24`. */
export function withoutPrefix(text: string): string {
  const slash = text.indexOf("/");
  return slash < 0 ? text : text.slice(0, slash);
}

/** Family of a canonical address or CIDR. */
export const familyOf = (text: string): Family => (text.includes(":") ? "ipv6" : "ipv4");

export function contains(subnet: Subnet, address: Address): boolean {
  return (
    subnet.family === address.family &&
    address.value >= subnet.first &&
    address.value <= subnet.last
  );
}

export function overlaps(a: Subnet, b: Subnet): boolean {
  return a.family === b.family && a.first <= b.last && b.first <= a.last;
}

const specialSubnets: readonly { subnet: Subnet; what: string }[] = [
  { subnet: subnetOf("0.0.0.0/8"), what: "addresses of this host" },
  { subnet: subnetOf("127.0.0.0/8"), what: "loopback addresses" },
  { subnet: subnetOf("169.254.0.0/16"), what: "link-local addresses" },
  { subnet: subnetOf("224.0.0.0/4"), what: "multicast addresses" },
  { subnet: subnetOf("240.0.0.0/4"), what: "reserved addresses" },
  { subnet: subnetOf("::/96"), what: "loopback and IPv4-compatible addresses" },
  { subnet: subnetOf("fe80::/10"), what: "link-local addresses" },
  { subnet: subnetOf("ff00::/8"), what: "multicast addresses" },
];

/** Why no network may use this subnet (RFC 6890); null if it may. */
export function specialUse(subnet: Subnet): string | null {
  return specialSubnets.find((special) => overlaps(special.subnet, subnet))?.what ?? null;
}

const loopback4 = subnetOf("127.0.0.0/8");

export function isLoopback(address: Address): boolean {
  return address.family === "ipv4" ? contains(loopback4, address) : address.value === 1n;
}

/** What stands for every address of a family, as a socket is bound to it. */
export const wildcardOf = (family: Family): string => (family === "ipv4" ? "0.0.0.0" : "::");

export const isWildcard = (address: Address): boolean => address.value === 0n;

const linkLocal6 = subnetOf("fe80::/10");

export const isLinkLocal6 = (address: Address): boolean => contains(linkLocal6, address);

/** Multicast or broadcast: nothing can be bound to it. */
export function isMulticast(address: Address): boolean {
  return address.family === "ipv4" ? address.value >= 0xe0000000n : address.value >> 120n === 0xffn;
}

/** Last and first addresses that no interface may have: network, broadcast, router anycast. */
export function unusableAddresses(subnet: Subnet): bigint[] {
  if (addressBits(subnet.family) - subnet.prefix < 2) return [];
  return subnet.family === "ipv4" ? [subnet.first, subnet.last] : [subnet.first];
}

/** The lowest address of `range` (default: the whole subnet) that is not taken; null: none is left. */
export function lowestFree(
  subnet: Subnet,
  range: Subnet | null,
  taken: Set<bigint>,
): Address | null {
  const unusable = unusableAddresses(subnet);
  const part = range ?? subnet;
  for (let value = part.first; value <= part.last; value += 1n) {
    if (!taken.has(value) && !unusable.includes(value)) return addressFrom(subnet.family, value);
  }
  return null;
}

/** A unicast MAC in lower case with colons; null if `text` is none. */
export function parseMac(text: string): string | null {
  const mac = text.toLowerCase().replaceAll("-", ":");
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(mac)) return null;
  const multicast = (Number.parseInt(mac.slice(0, 2), 16) & 1) === 1;
  return multicast || mac === "00:00:00:00:00:00" ? null : mac;
}

/** `02:42` and the last four bytes of the address: the IPv4 address as Docker before 28 did. */
export function macFromAddress(address: Address): string {
  const low = Number(address.value & 0xffffffffn);
  const bytes = [0x02, 0x42, low >>> 24, (low >>> 16) & 0xff, (low >>> 8) & 0xff, low & 0xff];
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** The link-local address a device with this MAC gives itself (RFC 4291, appendix A). */
export function linkLocalOf(mac: string): string {
  const [a = 0, b = 0, c = 0, ...rest] = mac.split(":").map((byte) => Number.parseInt(byte, 16));
  const value = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, ...rest].reduce(
    (sum, byte) => (sum << 8n) | BigInt(byte),
    0n,
  );
  return addressFrom("ipv6", value).text;
}

/** fe80::/10 */
export const isLinkLocal = (text: string): boolean => {
  const address = parseAddress(text);
  return address?.family === "ipv6" && address.value >> 118n === 0x3fan;
};
