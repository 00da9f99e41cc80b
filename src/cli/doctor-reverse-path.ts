/**
 * Reverse path filters: who drops packets whose source would be answered by another interface. A sandbox
 * on two networks answers what came by either by its default route's.
 */
import type { Datapath } from "../datapath/types.ts";
import { renderRule } from "../firewall/render.ts";
import { parseRuleset, type Rule } from "../firewall/ruleset.ts";
import type { Finding } from "./doctor-checks.ts";

const keyOf = (name: string): string => `net/ipv4/conf/${name}/rp_filter`;

export async function checkReversePath(datapath: Datapath): Promise<Finding[]> {
  return [...(await checkSysctls(datapath)), ...(await checkRules(datapath))];
}

/** The kernel's, of IPv4: the higher number of all and the device counts (kernel: ip-sysctl). */
async function checkSysctls(datapath: Datapath): Promise<Finding[]> {
  const links = await datapath.listLinks();
  const isStrict = (name: string): boolean => {
    const values = [datapath.readSysctl(keyOf("all")), datapath.readSysctl(keyOf(name))];
    return Math.max(...values.map(Number)) === 1;
  };
  const strict = links.filter(({ name, loopback }) => !loopback && isStrict(name));
  const [ours, others] = [true, false].map((wanted) =>
    strict
      .filter(({ alias }) => alias.startsWith("natbridge:network:") === wanted)
      .map(({ name }) => name),
  );
  const findings: Finding[] = [];
  const check = "net.ipv4.conf.*.rp_filter";
  if (ours?.length)
    findings.push({
      check,
      level: "note",
      message: `1 (strict) on ${ours.join(", ")}; the daemon sets it to 2 (loose) on those with a sandbox that is on another network, too, and back after`,
      fix: "",
    });
  const uplinks =
    others?.filter((name) =>
      links.some((link) => link.name === name && link.ethernet && link.master === 0),
    ) ?? [];
  if (uplinks.length > 0)
    findings.push({
      check,
      level: "note",
      message: `1 (strict) on ${uplinks.join(", ")}: clients that are answered by another interface than they came by are dropped there, published port or not`,
      fix: `where routes differ by direction: sysctl -w ${uplinks.map((name) => `net.ipv4.conf.${name}.rp_filter=2`).join(" ")}`,
    });
  return findings;
}

/** nft's `fib saddr . iif`, as firewalld's IPv6_rpfilter has it, and the match `rpfilter` of iptables. */
const isReversePath = ({ expressions, text }: Rule): boolean =>
  /rpfilter/.test(text) ||
  /"fib":\{[^}]*"saddr"[^}]*\}|"name":"rpfilter"/.test(JSON.stringify(expressions));

async function checkRules(datapath: Datapath): Promise<Finding[]> {
  const { chains } = parseRuleset(await datapath.readForeignRuleset());
  return [...chains.values()].flatMap((chain) =>
    chain.rules.filter(isReversePath).map((rule) => ({
      check: "reverse path rule",
      level: "warning" as const,
      message: `${renderRule(chain, rule)}: where it drops, a sandbox on two networks can't answer by its default route what came by the other`,
      fix: "except natbridge's bridges from it, or give such a sandbox one network (firewalld: IPv6_rpfilter=loose or no)",
    })),
  );
}
