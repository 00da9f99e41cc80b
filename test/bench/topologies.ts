/** What lies between the client and the web server: one topology for each variant. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type DatapathStatus, datapathStatusSchema } from "../../src/network/datapath-status.ts";
import { sendHttp } from "../../src/runtime/http-client.ts";
import { addNamespace, configure, connect, inside, later, start } from "./namespaces.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
export const dockerProxy = ["/usr/sbin/docker-proxy", "/usr/bin/docker-proxy"].find(existsSync);

export type Variant = "hop" | "routed" | "kernel" | "fast" | "docker-proxy" | "direct";

/** Ports of the servers, and of their published ports. */
export const ports = { iperf: 5201, udp: 7000, tcp: 7001 } as const;

// RFC 5737 for machines, RFC 1918 for containers.
const address = { client: "198.51.100.2", host: "198.51.100.1", web: "172.30.0.10" } as const;
const subnet = "172.30.0.0/24";
const gateway = "172.30.0.1";

export interface Topology {
  /** Where the load comes from. */
  readonly client: string;
  readonly host: string | null;
  readonly web: string;
  /** The address that the web server has. */
  readonly webAddress: string;
  /** The address that the client uses. */
  readonly target: string;
  /** Tells which path was taken; null without natbridge. */
  status(): Promise<DatapathStatus | null>;
}

export interface TopologyOptions {
  bridgeNfCallIptables: 0 | 1;
  runtime: "deno" | "node";
}

const directly = (topology: Topology): Topology => ({ ...topology, target: topology.webAddress });

/** The variant between two machines, or, with `loopback`, between the host and its container. */
export async function build(
  variant: Variant,
  options: TopologyOptions & { loopback: boolean },
): Promise<Topology> {
  if (variant === "hop") return hop();
  if (variant === "kernel" || variant === "fast") return natbridge(variant === "fast", options);
  // The same host, rules and programs as `fast`: only the address differs that the client dials.
  if (variant === "direct") return directly(await natbridge(true, options));
  return routed(variant, options);
}

/**
 * Many connections from few addresses: wide port range, and no TIME_WAIT to wait for, which would
 * bend the figure of whichever variant comes later.
 */
async function tune(namespace: string): Promise<void> {
  await sysctl(namespace, "net/ipv4/ip_local_port_range", "10000 65535");
  await sysctl(namespace, "net/ipv4/tcp_max_tw_buckets", "0");
  await sysctl(namespace, "net/core/somaxconn", "4096");
}

/** Writes a setting of the namespace, if the kernel has it. */
async function sysctl(namespace: string, key: string, value: string): Promise<void> {
  const write = '[ ! -e "/proc/sys/$0" ] || echo "$1" > "/proc/sys/$0"';
  await inside(namespace, "sh", ["-c", write, key, value]);
}

/** One veth pair, nothing else: the limit of all others. */
async function hop(): Promise<Topology> {
  const [client, web] = [await addNamespace("client"), await addNamespace("web")];
  const webAddress = "198.51.100.10";
  await connect({ namespace: client, device: "eth0" }, { namespace: web, device: "eth0" });
  await configure(client, `ip addr add ${address.client}/24 dev eth0\nip link set eth0 up`);
  await configure(web, `ip addr add ${webAddress}/24 dev eth0\nip link set eth0 up`);
  await tune(client);
  await tune(web);
  return { client, host: null, web, webAddress, target: webAddress, status: async () => null };
}

async function clientAndHost(options: TopologyOptions): Promise<{ client: string; host: string }> {
  const [client, host] = [await addNamespace("client"), await addNamespace("host")];
  await connect({ namespace: client, device: "eth0" }, { namespace: host, device: "up0" });
  await configure(
    client,
    `ip addr add ${address.client}/24 dev eth0
     ip link set eth0 up
     ip route add ${subnet} via ${address.host}`,
  );
  await configure(host, `ip addr add ${address.host}/24 dev up0\nip link set up0 up`);
  for (const family of ["iptables", "ip6tables"]) {
    const value = String(options.bridgeNfCallIptables);
    await sysctl(host, `net/bridge/bridge-nf-call-${family}`, value);
  }
  await tune(client);
  await tune(host);
  return { client, host };
}

/** Routes and a bridge, no rules and no NAT; with `docker-proxy`, the proxy on the host's loopback. */
async function routed(variant: Variant, options: TopologyOptions): Promise<Topology> {
  const { client, host } = await clientAndHost(options);
  const web = await addNamespace("web");
  await connect({ namespace: host, device: "veth0" }, { namespace: web, device: "eth0" });
  await configure(
    host,
    `ip link add br0 type bridge
     ip addr add ${gateway}/24 dev br0
     ip link set veth0 master br0
     ip link set veth0 up
     ip link set br0 up`,
  );
  await sysctl(host, "net/ipv4/ip_forward", "1");
  await configure(
    web,
    `ip addr add ${address.web}/24 dev eth0
     ip link set eth0 up
     ip route add default via ${gateway}`,
  );
  await tune(web);
  const status = async () => null;
  const direct = { client, host, web, webAddress: address.web, target: address.web, status };
  if (variant !== "docker-proxy") return direct;
  startDockerProxy(host);
  return { ...direct, client: host, target: "127.0.0.1" };
}

function startDockerProxy(host: string): void {
  if (dockerProxy === undefined) throw new Error("there is no docker-proxy: install docker.io");
  // It reports to its parent on descriptor 3, and does without.
  start(host, "sh", [
    "-c",
    `exec ${dockerProxy} -proto tcp -host-ip 127.0.0.1 -host-port ${ports.tcp} -container-ip ${address.web} -container-port ${ports.tcp} 3>/dev/null`,
  ]);
}

/** A natbridge daemon in the host's namespace, and one endpoint with published ports. */
async function natbridge(
  fast: boolean,
  options: TopologyOptions & { loopback: boolean },
): Promise<Topology> {
  const { client, host } = await clientAndHost(options);
  const web = await addNamespace("web");
  await tune(web);
  const folder = mkdtempSync(join(tmpdir(), "nbb-"));
  later(() => rmSync(folder, { recursive: true, force: true }));
  const places = ["--state-dir", join(folder, "state"), "--run-dir", join(folder, "run")];
  const program = join(root, "bin/natbridge");
  const env = { NATBRIDGE_RUNTIME: options.runtime };
  later(() => inside(host, program, ["uninstall", ...places]));
  const flags = fast ? places : [...places, "--no-fast-path"];
  const daemon = start(host, program, ["daemon", ...flags], env);
  const socketPath = join(folder, "run", "natbridge.sock");
  await ready(socketPath, daemon.output);
  const call = caller(socketPath);
  await call("POST", "/v1/networks", { name: "bench", subnets: [{ subnet, gateway }] });
  const endpoint = { name: "web", network: "bench", netns: web, addresses: [address.web] };
  await call("POST", "/v1/endpoints", endpoint);
  for (const [port, protocol] of [
    [ports.iperf, "tcp"],
    [ports.tcp, "tcp"],
    [ports.udp, "udp"],
  ] as const) {
    const published = { endpoint: "web", hostPort: port, containerPort: port, protocol };
    await call("POST", "/v1/ports", published);
  }
  return {
    client: options.loopback ? host : client,
    host,
    web,
    webAddress: address.web,
    target: options.loopback ? "127.0.0.1" : address.host,
    status: async () => datapathStatusSchema.parse(await call("GET", "/v1/datapath")),
  };
}

async function ready(socketPath: string, output: () => string): Promise<void> {
  for (let tries = 0; tries < 400; tries++) {
    const answer = await sendHttp(
      { kind: "unix", socketPath },
      { method: "GET", path: "/readyz", timeoutMilliseconds: 2000 },
    ).catch(() => null);
    await answer?.text();
    if (answer?.status === 200) return;
    await sleep(50);
  }
  throw new Error(`the natbridge daemon did not get ready:\n${output()}`);
}

function caller(socketPath: string) {
  return async (method: string, path: string, body?: object): Promise<unknown> => {
    const answer = await sendHttp(
      { kind: "unix", socketPath },
      {
        method,
        path,
        ...(body === undefined
          ? {}
          : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
      },
    );
    const text = await answer.text();
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return JSON.parse(text);
  };
}
