/**
 * Who holds a port: /proc/net tells the socket's inode (proc_pid_net(5)), /proc/PID/fd who has it
 * open.
 */
import { readdir, readFile, readlink } from "node:fs/promises";
import type { Protocol } from "../datapath/types.ts";
import type { PortOwner } from "./types.ts";

/** TCP_LISTEN in /proc/net/tcp. */
const listening = "0A";

interface BoundSocket {
  /** Hexadecimal, as the kernel prints it. */
  address: string;
  port: number;
  state: string;
  inode: string;
}

function parseTable(text: string): BoundSocket[] {
  return text
    .split("\n")
    .slice(1)
    .flatMap((line) => {
      const fields = line.trim().split(/\s+/);
      const [address, port] = (fields[1] ?? "").split(":");
      const [state, inode] = [fields[3], fields[9]];
      if (address === undefined || port === undefined) return [];
      if (state === undefined || inode === undefined || inode === "0") return [];
      return [{ address, port: Number.parseInt(port, 16), state, inode }];
    });
}

/** As /proc/net/tcp prints it: 32-bit words, each in the byte order of a little-endian host. */
function kernelAddress(address: string): string {
  const bytes = address.includes(":") ? ipv6Bytes(address) : address.split(".").map(Number);
  const words: string[] = [];
  for (let at = 0; at < bytes.length; at += 4) {
    const word = bytes.slice(at, at + 4).reverse();
    words.push(word.map((byte) => byte.toString(16).padStart(2, "0")).join(""));
  }
  return words.join("").toUpperCase();
}

function ipv6Bytes(address: string): number[] {
  const [head = "", tail] = address.split("::");
  const groups = (part: string) => (part === "" ? [] : part.split(":"));
  const before = groups(head);
  const after = tail === undefined ? [] : groups(tail);
  const gap = tail === undefined ? [] : Array<string>(8 - before.length - after.length).fill("0");
  return [...before, ...gap, ...after].flatMap((group) => {
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
}

const isWildcard = (address: string) => /^0+$/.test(address);

/** Sockets of a table that collide with the wanted address and port. */
function colliding(table: BoundSocket[], wanted: string, port: number): BoundSocket[] {
  return table.filter(
    (socket) =>
      socket.port === port &&
      (isWildcard(wanted) || isWildcard(socket.address) || socket.address === wanted),
  );
}

async function table(name: string): Promise<BoundSocket[]> {
  const text = await readFile(`/proc/self/net/${name}`, "utf8").catch(() => "");
  return parseTable(text);
}

async function inodesOf(protocol: "tcp" | "udp", address: string, port: number): Promise<string[]> {
  const held = (sockets: BoundSocket[]) =>
    protocol === "tcp" ? sockets.filter(({ state }) => state === listening) : sockets;
  const ipv6 = address.includes(":");
  const own = held(await table(ipv6 ? `${protocol}6` : protocol));
  const direct = colliding(own, kernelAddress(address), port);
  // A socket on :: takes IPv4 too, unless it is IPV6_V6ONLY, which /proc does not tell.
  const dual = ipv6
    ? []
    : held(await table(`${protocol}6`)).filter(
        (socket) => socket.port === port && isWildcard(socket.address),
      );
  return [...direct, ...dual].map(({ inode }) => inode);
}

async function hasOpen(pid: string, links: Set<string>): Promise<boolean> {
  const folder = `/proc/${pid}/fd`;
  const descriptors = await readdir(folder).catch(() => []);
  for (const descriptor of descriptors) {
    const link = await readlink(`${folder}/${descriptor}`).catch(() => "");
    if (links.has(link)) return true;
  }
  return false;
}

/**
 * The process that keeps others from binding an address and port of this network namespace.
 *
 * @param address Canonical, `0.0.0.0` and `::` for every address of the family.
 * @returns null if nobody does, it cannot be seen, or the protocol is SCTP.
 */
export async function findPortOwner(
  protocol: Protocol,
  address: string,
  port: number,
): Promise<PortOwner | null> {
  if (protocol === "sctp") return null;
  const inodes = await inodesOf(protocol, address, port);
  if (inodes.length === 0) return null;
  const links = new Set(inodes.map((inode) => `socket:[${inode}]`));
  const processes = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  for (const pid of processes) {
    if (!(await hasOpen(pid, links))) continue;
    const name = await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "");
    return { pid: Number(pid), name: name.trim() || "unknown" };
  }
  return null;
}
