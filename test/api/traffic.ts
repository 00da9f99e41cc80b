/** Traffic of the seeded objects on the host in memory. */
import type { ConntrackEntry, FlowInfo, Tuple } from "../../src/datapath/types.ts";
import type { CoreHost } from "./core-host.ts";

const tuple = (
  sourceAddress: string,
  sourcePort: number,
  destinationAddress: string,
  destinationPort: number,
): Tuple => ({ sourceAddress, sourcePort, destinationAddress, destinationPort });

/** A client's connection to port web-8080. */
const inbound: ConntrackEntry = {
  id: 1,
  protocol: "tcp",
  original: tuple("198.51.100.9", 40000, "198.51.100.1", 8080),
  reply: tuple("172.32.0.10", 80, "198.51.100.9", 40000),
  state: "ESTABLISHED",
  timeoutSeconds: 431999,
  assured: true,
  seenReply: true,
  destinationNat: true,
  sourceNat: false,
  mark: 0,
};
/** A question of web's to a server of names. */
const outbound: ConntrackEntry = {
  ...inbound,
  id: 2,
  protocol: "udp",
  original: tuple("172.32.0.10", 5000, "203.0.113.5", 53),
  reply: tuple("203.0.113.5", 53, "198.51.100.1", 5000),
  state: "",
  timeoutSeconds: 30,
  destinationNat: false,
  sourceNat: true,
};
/** The host's own, which is nobody's endpoint's. */
const foreign: ConntrackEntry = {
  ...outbound,
  id: 3,
  original: tuple("198.51.100.1", 5001, "203.0.113.5", 53),
  reply: tuple("203.0.113.5", 53, "198.51.100.1", 5001),
  sourceNat: false,
};
const fastFlow: FlowInfo = {
  ifindex: 11,
  outputIfindex: 14,
  protocol: "tcp",
  original: inbound.original,
  translated: tuple("198.51.100.9", 40000, "172.32.0.10", 80),
  packets: 95,
  bytes: 9500,
  leaseSeconds: 5,
};

/** A fast connection into web, a slow one out of it, and one of the host itself. */
export function addTraffic({ datapath }: CoreHost): void {
  datapath.conntrack = [inbound, outbound, foreign];
  datapath.flows = [fastFlow];
  const uplink = datapath.links.get("eth0");
  if (!uplink) throw new Error("no eth0");
  datapath.counters = [
    {
      ifindex: uplink.ifindex,
      fromDevicePackets: 100,
      fromDeviceBytes: 10000,
      toDevicePackets: 0,
      toDeviceBytes: 0,
      fastPackets: 95,
      kernelPackets: 5,
      drops: [],
    },
  ];
}
