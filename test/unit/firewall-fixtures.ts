import { readFileSync } from "node:fs";

/** Rules as real tools wrote them and nft 1.0.6 listed them. */
export function listed(name: string): { nft: string; legacy: string } {
  return { nft: read(`${name}.json`), legacy: "" };
}

/** Rules as iptables-legacy-save printed them. */
export function saved(name: string): { nft: string; legacy: string } {
  return { nft: '{"nftables":[]}', legacy: read(`${name}.txt`) };
}

function read(file: string): string {
  return readFileSync(new URL(`fixtures/firewall/${file}`, import.meta.url), "utf8");
}
