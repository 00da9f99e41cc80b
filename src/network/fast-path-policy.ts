/** Where the fast path must stay off, and why: a verdict on what the host has set up. */
import type { Datapath, LinkInfo } from "../datapath/types.ts";
import { analyseLoopback, type LoopbackAnalysis } from "../firewall/loopback.ts";
import { findMeters } from "../firewall/meters.ts";
import { parseRuleset } from "../firewall/ruleset.ts";
import { addressOf, isLoopback } from "./addresses.ts";
import type { DatapathStatus } from "./datapath-status.ts";
import { localAddresses } from "./host.ts";
import type { State } from "./state.ts";

export type Hindrance = DatapathStatus["off"][number];

/** Of the whole host, whatever natbridge has to do with now: a device may become its own any time. */
export interface Policy {
  hindrances: Hindrance[];
  /** The host as a whole may have it. */
  host: boolean;
  /** Names of devices that may not. */
  devices: Set<string>;
  /** Whether the connect hook may serve a port. */
  loopback: LoopbackAnalysis;
  /** The host's own addresses that this was judged for, loopback left out. */
  localAddresses: string[];
}

/** Before the first look nothing is known to be harmless. */
export const nothingKnown: Policy = {
  hindrances: [],
  host: false,
  devices: new Set(),
  loopback: () => ({ hindered: true, rule: "", reason: "the host's rules have not been read yet" }),
  localAddresses: [],
};

function queueing(links: LinkInfo[]): Hindrance[] {
  return links
    .filter((link) => link.qdiscs.length > 0)
    .map((link) => ({
      where: link.name,
      reason: `a queueing discipline or filter must see every packet: ${link.qdiscs.join(", ")}`,
      rule: null,
    }));
}

/** The host's own addresses that the connect hook serves beside loopback. */
export const servedAddresses = (links: LinkInfo[]): string[] => [
  ...new Set(localAddresses(links).filter((address) => !isLoopback(addressOf(address)))),
];

/** Nothing but their own authors knows what they do: what cached packets would not meet, hinders. */
async function programs(datapath: Datapath, links: LinkInfo[]): Promise<Hindrance[]> {
  const names = new Map(
    links.filter(({ ethernet }) => ethernet).map(({ ifindex, name }) => [ifindex, name]),
  );
  const found = await datapath.followPrograms([...names.keys()]);
  return found
    .filter(({ hinders }) => hinders)
    .map(({ ifindex, hook, id, name }) => ({
      where: names.get(ifindex) ?? "host",
      reason: `the eBPF program ${name || "without a name"} (id ${id}) on its ${hook} hook must see every packet`,
      rule: null,
    }));
}

/**
 * Reads the host's rules, queueing disciplines, eBPF programs of others and IPsec policies.
 *
 * @throws DatapathError or Error if any of it can't be read.
 */
export async function readPolicy(
  datapath: Datapath,
): Promise<{ policy: Policy; links: LinkInfo[] }> {
  const [links, foreign, ipsec, routing] = await Promise.all([
    datapath.listLinks(),
    datapath.readForeignRuleset(),
    datapath.countXfrmPolicies(),
    datapath.listPacketRouting(),
  ]);
  const addresses = servedAddresses(links);
  const ruleset = parseRuleset(foreign);
  const hindrances: Hindrance[] = [
    ...queueing(links),
    ...findMeters(ruleset),
    ...(await programs(datapath, links)),
  ];
  for (const rule of routing)
    hindrances.push({ where: "host", rule, reason: "it routes packets of one connection apart" });
  if (ipsec > 0)
    hindrances.push({
      where: "host",
      reason: `${ipsec} IPsec policies are in force`,
      rule: null,
    });
  const places = new Set(hindrances.map(({ where }) => where));
  return {
    links,
    policy: {
      hindrances,
      host: !places.has("host"),
      devices: places,
      loopback: analyseLoopback(ruleset, addresses),
      localAddresses: addresses,
    },
  };
}

/** What the desired state itself keeps off. */
export function networksOff(state: State): Hindrance[] {
  return state.network
    .values()
    .flatMap(({ name, bridge, fastPath }) =>
      fastPath === "off" && bridge !== null
        ? { where: bridge, reason: `network ${name} has it off`, rule: null }
        : [],
    );
}
