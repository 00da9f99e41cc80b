/** JSON as nft speaks it, and the two questions one asks of it. */

export type Json = null | boolean | number | string | Json[] | JsonObject;

export interface JsonObject {
  [key: string]: Json;
}

export function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The value under a path of keys; undefined where the path ends early. */
export function at(value: Json | undefined, ...keys: string[]): Json | undefined {
  let here = value;
  for (const key of keys) {
    here = isObject(here) ? here[key] : undefined;
  }
  return here;
}
