/** Where the fast path must stay off, and why. */
import type { Datapath, LinkInfo } from "../datapath/types.ts";
import { analyseLoopback } from "../firewall/loopback.ts";
import { findMeters } from "../firewall/meters.ts";
import { reasonOf } from "../reason.ts";
import { addressOf, isLoopback } from "./addresses.ts";
import type { DatapathStatus } from "./datapath-status.ts";
import { localAddresses } from "./host.ts";
import type { State } from "./state.ts";
import { portEntries } from "./wanted.ts";

export type Hindrance = DatapathStatus["off"][number];

export interface Policy {
  hindrances: Hindrance[];
  /** The host as a whole may have it. */
  host: boolean;
  /** Names of devices that may not. */
  devices: Set<string>;
  /** Loopback may take the connect hook. */
  loopback: boolean;
}

function queueing(links: LinkInfo[], concerned: Set<string>): Hindrance[] {
  return links
    .filter((link) => concerned.has(link.name) && link.qdiscs.length > 0)
    .map((link) => ({
      where: link.name,
      reason: `a queueing discipline or filter must see every packet: ${link.qdiscs.join(", ")}`,
      rule: null,
    }));
}

/** Nothing but their own authors knows what they do: what cached packets would not meet, hinders. */
async function programs(
  datapath: Datapath,
  links: LinkInfo[],
  concerned: Set<string>,
): Promise<Hindrance[]> {
  const names = new Map(
    links.filter(({ name }) => concerned.has(name)).map(({ ifindex, name }) => [ifindex, name]),
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

function loopback(
  state: State,
  links: LinkInfo[],
  foreign: { nft: string; legacy: string },
): Hindrance | null {
  const judge = analyseLoopback(
    foreign,
    localAddresses(links).filter((address) => !isLoopback(addressOf(address))),
  );
  for (const port of portEntries(state)) {
    const family = port.hostAddress.includes(":") ? "ipv6" : "ipv4";
    const verdict = judge({ family, protocol: port.protocol, port: port.hostPort });
    if (verdict.hindered) return { where: "loopback", reason: verdict.reason, rule: verdict.rule };
  }
  return null;
}

/**
 * Reads the host's rules, queueing disciplines, eBPF programs and IPsec policies. What can't be read counts as a
 * reason to stay off.
 *
 * @param concerned Names of the devices the programs are on, and of the bridges they skip.
 */
export async function readPolicy(
  datapath: Datapath,
  state: State,
  links: LinkInfo[],
  concerned: Set<string>,
): Promise<Policy> {
  const hindrances = queueing(links, concerned);
  try {
    const foreign = await datapath.readForeignRuleset();
    for (const { where, rule, reason } of findMeters(foreign))
      if (where === "host" || concerned.has(where)) hindrances.push({ where, rule, reason });
    const hindered = loopback(state, links, foreign);
    if (hindered) hindrances.push(hindered);
  } catch (error) {
    const reason = `the host's rules can't be read: ${reasonOf(error)}`;
    for (const where of ["host", "loopback"]) hindrances.push({ where, reason, rule: null });
  }
  try {
    hindrances.push(...(await programs(datapath, links, concerned)));
  } catch (error) {
    const reason = `eBPF programs of others can't be listed: ${reasonOf(error)}`;
    hindrances.push({ where: "host", reason, rule: null });
  }
  const policies = await datapath.countXfrmPolicies();
  if (policies > 0)
    hindrances.push({
      where: "host",
      reason: `${policies} IPsec policies are in force`,
      rule: null,
    });
  for (const network of state.network.values())
    if (network.fastPath === "off" && network.bridge !== null)
      hindrances.push({
        where: network.bridge,
        reason: `network ${network.name} has it off`,
        rule: null,
      });
  const places = new Set(hindrances.map(({ where }) => where));
  return {
    hindrances,
    host: !places.has("host"),
    devices: places,
    loopback: !places.has("loopback"),
  };
}
