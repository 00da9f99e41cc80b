/** What `natbridge doctor` looks at, one function per concern. Nothing here changes anything. */
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { Datapath, LinkInfo } from "../datapath/types.ts";
import { findMeters } from "../firewall/meters.ts";
import { baseChains, parseRuleset } from "../firewall/ruleset.ts";

export interface Finding {
  check: string;
  /** `ok`; `note`: worth knowing; `warning`: something will be slower or missing; `problem`: natbridge cannot run. */
  level: "ok" | "note" | "warning" | "problem";
  message: string;
  /** What to do; empty if nothing. */
  fix: string;
}

const finding = (check: string, level: Finding["level"], message: string, fix = ""): Finding => ({
  check,
  level,
  message,
  fix,
});

export function checkUser(): Finding {
  return process.getuid?.() === 0
    ? finding("user", "ok", "running as root")
    : finding("user", "problem", "natbridge needs root", "run it with sudo");
}

export async function checkKernel(datapath: Datapath): Promise<Finding[]> {
  const features = await datapath.kernelFeatures();
  const findings = [finding("kernel", "ok", `Linux ${features.release}`)];
  if (features.fastPath) findings.push(finding("fast path", "ok", "this kernel can do it"));
  else {
    findings.push(
      finding(
        "fast path",
        "warning",
        `not in this kernel: ${features.missing.join("; ")}; all traffic takes the kernel path`,
        "use Linux 6.1 or newer, with BTF and conntrack",
      ),
    );
  }
  if (!features.bpffs) {
    findings.push(
      finding("bpffs", "note", "not mounted; the daemon mounts it", "mount -t bpf bpf /sys/fs/bpf"),
    );
  }
  if (!features.cgroupHooks) {
    findings.push(
      finding(
        "connect hook",
        "warning",
        "not in this kernel: loopback goes through the forwarder",
        "mount cgroup2 and use a kernel with CONFIG_CGROUP_BPF",
      ),
    );
  }
  if (features.cgroupHooks && !features.socketDestroy) {
    findings.push(
      finding(
        "connect hook",
        "warning",
        "off: this kernel can't end sockets whose target is gone; loopback goes through the forwarder",
        "use a kernel with CONFIG_INET_DIAG_DESTROY",
      ),
    );
  }
  if (!features.sctpSockets) {
    findings.push(
      finding("sctp", "note", "this kernel has no SCTP sockets: SCTP ports are not reserved"),
    );
  }
  if (!features.tcx && features.fastPath) {
    findings.push(finding("tcx", "note", "not in this kernel (needs 6.6): clsact is used instead"));
  }
  return findings;
}

function onPath(tool: string): boolean {
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    try {
      accessSync(join(folder, tool), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

const tools = [
  { tool: "nft", level: "problem", package: "nftables", use: "writes the rules" },
  {
    tool: "iptables-save",
    level: "warning",
    package: "iptables",
    use: "reads and completes foreign iptables rules",
  },
  { tool: "conntrack", level: "note", package: "conntrack", use: "shows entries to people" },
] as const;

export function checkTools(): Finding[] {
  return tools.map(({ tool, level, package: name, use }) =>
    onPath(tool)
      ? finding(tool, "ok", "installed")
      : finding(tool, level, `not installed; it ${use}`, `apt-get install ${name}`),
  );
}

const sysctls = [
  { key: "net/ipv4/ip_forward", wanted: "1", why: "forwards between networks" },
  {
    key: "net/ipv6/conf/all/forwarding",
    wanted: "1",
    why: "forwards between networks, once one has IPv6",
  },
];

/** Every host-wide setting is told before it is set. */
export function checkSettings(datapath: Datapath): Finding[] {
  const findings = sysctls.map(({ key, wanted, why }) => {
    const value = datapath.readSysctl(key);
    const name = key.replaceAll("/", ".");
    if (value === null) return finding(name, "warning", "this kernel does not have it");
    if (value === wanted) return finding(name, "ok", value);
    return finding(
      name,
      "note",
      `${value}; the daemon sets it to ${wanted} (${why}), uninstall restores it`,
    );
  });
  for (const key of ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]) {
    if (datapath.readSysctl(key) !== "1") continue;
    findings.push(
      finding(
        key.replaceAll("/", "."),
        "note",
        "1: bridged packets pass the host's rules, which costs time; natbridge leaves it as it is",
      ),
    );
  }
  return findings;
}

/** Forward chains with policy drop, and rules that must see every packet. */
export async function checkFirewall(datapath: Datapath): Promise<Finding[]> {
  const ruleset = parseRuleset(await datapath.readForeignRuleset());
  const dropping = baseChains(ruleset, "forward").filter(({ base }) => base.policy === "drop");
  const findings = dropping.map(({ chain }) =>
    finding(
      "forward policy",
      "note",
      `${chain.name} drops what nothing accepts; the daemon adds one tagged accept for its own bridges`,
    ),
  );
  for (const { where, rule, reason } of findMeters(ruleset)) {
    findings.push(
      finding(
        "metering rule",
        "warning",
        `${rule}: ${reason}, so the fast path stays off (${where})`,
        "remove the rule, or live with the kernel path there",
      ),
    );
  }
  for (const rule of await datapath.listPacketRouting()) {
    findings.push(
      finding(
        "routing",
        "warning",
        `${rule}: it routes packets of one connection apart, so the fast path stays off`,
      ),
    );
  }
  if (findings.length === 0) findings.push(finding("firewall", "ok", "nothing in the way"));
  return findings;
}

function ours({ alias }: LinkInfo): boolean {
  return alias.startsWith("natbridge:");
}

/** Others who care for the same things. */
export async function checkConflicts(datapath: Datapath): Promise<Finding[]> {
  const findings: Finding[] = [];
  const links = await datapath.listLinks();
  const taken = links.find((link) => link.name === "nb0" && !ours(link));
  if (taken !== undefined) {
    findings.push(
      finding(
        "nb0",
        "problem",
        "this device exists and is not natbridge's",
        "rename or remove it: ip link delete nb0",
      ),
    );
  }
  if (links.some(({ name }) => name === "docker0") || existsSync("/run/docker.sock")) {
    findings.push(
      finding(
        "docker",
        "note",
        "runs here: natbridge makes no default network and keeps off its subnets",
      ),
    );
  }
  const policies = await datapath.countXfrmPolicies();
  if (policies > 0) {
    findings.push(
      finding(
        "ipsec",
        "warning",
        `${policies} IPsec policies are in force: the fast path stays off`,
      ),
    );
  }
  const shaped = links.filter(({ qdiscs }) => qdiscs.length > 0);
  for (const { name, qdiscs } of shaped) {
    findings.push(
      finding(
        "queueing",
        "warning",
        `${name} has ${qdiscs.join(", ")}: the fast path stays off there`,
      ),
    );
  }
  if (findings.length === 0) findings.push(finding("conflicts", "ok", "none found"));
  return findings;
}
