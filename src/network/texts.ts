/**
 * Schemas of texts, so that a JSON schema says of each what the server demands of it. A refinement has
 * no form of its own there: its pattern or format is given beside it. Patterns are plain: no class
 * that another language's engine reads differently, and no look-around.
 */
import { z } from "zod";
import { parseAddress, parseInterfaceAddress, parseMac } from "./addresses.ts";

/** So many characters, counted as JSON schema does: by code points, not by UTF-16's units. */
export function textSchema(min: number, max: number) {
  const fits = (text: string): boolean => {
    // At most two units are one character.
    if (text.length > 2 * max) return false;
    const { length } = [...text];
    return length >= min && length <= max;
  };
  return z
    .string()
    .refine(fits, `must have ${min} to ${max} characters`)
    .meta({ minLength: min, maxLength: max });
}

const octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const ipv4 = `${octet}(\\.${octet}){3}`;
const group = "[0-9a-fA-F]{1,4}";
/** RFC 4291, section 2.2, forms 1 and 2. */
const ipv6 = [
  `(${group}:){7}${group}`,
  `(${group}:){1,7}:`,
  ...[6, 5, 4, 3, 2].map((before) => `(${group}:){1,${before}}(:${group}){1,${7 - before}}`),
  `${group}:(:${group}){1,6}`,
  `:((:${group}){1,7}|:)`,
].join("|");
const upTo = (last: number): string =>
  last === 32 ? "([12]?[0-9]|3[0-2])" : "(12[0-8]|1[01][0-9]|[1-9]?[0-9])";
/** Of a network's subnet: from /8 on, with room for two hosts. */
const subnetPrefix = { ipv4: "([89]|[12][0-9]|30)", ipv6: "([89]|[1-9][0-9]|1[01][0-9]|12[0-6])" };

const pattern = (text: string) => ({ type: "string", pattern: `^${text}$` });
const longestAddress = 64;

/** An IPv4 or IPv6 address without prefix and zone. */
export const addressSchema = z
  .string()
  .max(longestAddress)
  .refine((text) => parseAddress(text) !== null, "must be an IP address")
  .meta({
    anyOf: [
      { type: "string", format: "ipv4" },
      { type: "string", format: "ipv6" },
    ],
  });

/** A subnet as `172.32.0.0/24`. That the bits behind the prefix are zero, no pattern can say. */
export const subnetSchema = z
  .string()
  .max(longestAddress)
  .refine((text) => parseInterfaceAddress(text) !== null, "must be a subnet such as 172.32.0.0/24")
  .meta({
    anyOf: [pattern(`${ipv4}/${subnetPrefix.ipv4}`), pattern(`(${ipv6})/${subnetPrefix.ipv6}`)],
  });

/** A part of a subnet. */
export const rangeSchema = subnetSchema.meta({
  anyOf: [pattern(`${ipv4}/${upTo(32)}`), pattern(`(${ipv6})/${upTo(128)}`)],
});

/** Clients: an address, or all of a subnet. */
export const clientsSchema = z
  .string()
  .max(longestAddress)
  .refine(
    (text) => parseAddress(text) !== null || parseInterfaceAddress(text) !== null,
    "must be an address or a subnet such as 10.0.0.0/8",
  )
  .meta({
    anyOf: [
      { type: "string", format: "ipv4" },
      { type: "string", format: "ipv6" },
      pattern(`${ipv4}/${upTo(32)}`),
      pattern(`(${ipv6})/${upTo(128)}`),
    ],
  });

/** A unicast MAC address, with colons or hyphens. */
export const macSchema = z
  .string()
  .refine((text) => parseMac(text) !== null, "must be a unicast MAC such as 02:42:ac:20:00:0a")
  .meta({
    pattern: "^[0-9a-fA-F][02468aceACE]([:-][0-9a-fA-F]{2}){5}$",
    not: { pattern: "^00([:-]00){5}$" },
  });

const port =
  "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";

/** `"8000-8010"`. That it rises, no pattern can say. */
export const portRangeTextSchema = z
  .string()
  .regex(new RegExp(`^${port}-${port}$`), 'must be a port or a range such as "8000-8010"');
