/**
 * Which connections of a listener are kept. Each costs a file descriptor, and a process without any
 * left can neither accept nor write its database. So there is a bound for all and one for each client;
 * beyond it the connection that has been idle for longest gives way, of the client that holds most.
 */
import type { Socket } from "node:net";
import { isIPv6 } from "node:net";

export interface Bounds {
  /** Connections at a time. */
  connections: number;
  /** Of them of one client: an IPv4 address or an IPv6 /64; a unix socket's are all one client's. */
  perClient: number;
  /** For the first request's head, TLS handshake included. */
  headSeconds: number;
  /** From an answer's end to the next request's head. */
  idleSeconds: number;
  /** For an answer; null where answers may take any time, as event streams do. */
  answerSeconds: number | null;
}

/** `evicted`: an idle one gave way to a new one. `refused`: a new one found no idle one to replace. */
export type Turned = "evicted" | "refused" | "too_slow";

export interface ConnectionCounts {
  open: number;
  turned: Record<Turned, number>;
}

interface Held {
  socket: Socket;
  client: Client;
  /** Requests whose answers are under way. */
  running: number;
  /** It has had a request. */
  served: boolean;
  /** When it last began to wait, or its running request came. */
  since: number;
}

class Client {
  readonly all = new Set<Held>();
  /** Those without a request under way; the one that has waited for longest is the first. */
  readonly idle = new Set<Held>();
}

/** A host on the internet has a /64 of its own (RFC 6177); of mapped addresses the IPv4 one counts. */
export function clientOf(address: string | undefined): string {
  if (address === undefined || !isIPv6(address)) return address ?? "";
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  const [head = "", tail] = (address.split("%")[0] ?? "").split("::");
  const before = head === "" ? [] : head.split(":");
  const after = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros = tail === undefined ? 0 : 8 - before.length - after.length;
  const words = [...before, ...Array.from({ length: Math.max(zeros, 0) }, () => "0"), ...after];
  return words.slice(0, 4).join(":");
}

export class Admission {
  readonly #bounds: Bounds;
  readonly #clients = new Map<string, Client>();
  readonly #held = new Map<string | Socket, Held>();
  readonly #turned: Record<Turned, number> = { evicted: 0, refused: 0, too_slow: 0 };
  #open = 0;
  #accepted = 0;

  constructor(bounds: Bounds) {
    this.#bounds = bounds;
  }

  get counts(): ConnectionCounts {
    return { open: this.#open, turned: { ...this.#turned } };
  }

  /** Connections that came, kept or not. */
  get accepted(): number {
    return this.#accepted;
  }

  /** A connection has come; it is kept, or destroyed. */
  enter(socket: Socket): void {
    this.#accepted += 1;
    // Whatever a peer does to its connection is no failure of ours.
    socket.on("error", () => socket.destroy());
    const name = clientOf(socket.remoteAddress);
    const client = this.#clients.get(name) ?? new Client();
    if (!this.#makeRoom(client)) {
      this.#turned.refused += 1;
      socket.destroy();
      return;
    }
    this.#clients.set(name, client);
    const held: Held = { socket, client, running: 0, served: false, since: Date.now() };
    client.all.add(held);
    client.idle.add(held);
    this.#open += 1;
    const key = keyOf(socket);
    this.#held.set(key, held);
    socket.once("close", () => {
      this.#leave(held);
      if (client.all.size === 0 && this.#clients.get(name) === client) this.#clients.delete(name);
      if (this.#held.get(key) === held) this.#held.delete(key);
    });
  }

  /** A request's head has come on a connection; call what this returns at the end of the answer. */
  begin(socket: Socket): () => void {
    const held = this.#held.get(keyOf(socket));
    if (held === undefined) return () => {};
    held.running += 1;
    held.served = true;
    held.since = Date.now();
    held.client.idle.delete(held);
    return () => {
      held.running -= 1;
      if (held.running > 0 || !held.client.all.has(held)) return;
      held.since = Date.now();
      held.client.idle.add(held);
    };
  }

  /** Ends the connections whose time is over; call it every second or so. */
  sweep(now = Date.now()): void {
    const { headSeconds, idleSeconds, answerSeconds } = this.#bounds;
    for (const client of this.#clients.values()) {
      for (const held of client.all) {
        const limit = held.running > 0 ? answerSeconds : held.served ? idleSeconds : headSeconds;
        if (limit === null || now - held.since < limit * 1000) continue;
        // The end of an idle connection that was of use is nothing to tell.
        if (held.running > 0 || !held.served) this.#turned.too_slow += 1;
        this.#drop(held);
      }
    }
  }

  #makeRoom(client: Client): boolean {
    if (client.all.size >= this.#bounds.perClient) return this.#evict(client);
    return this.#open < this.#bounds.connections || this.#evict(this.#greediest());
  }

  /** Of the clients with idle connections the one that holds most. */
  #greediest(): Client | null {
    let greediest: Client | null = null;
    for (const client of this.#clients.values()) {
      if (client.idle.size === 0) continue;
      if (greediest === null || client.all.size > greediest.all.size) greediest = client;
    }
    return greediest;
  }

  #evict(client: Client | null): boolean {
    const [oldest] = client?.idle ?? [];
    if (oldest === undefined) return false;
    this.#turned.evicted += 1;
    this.#drop(oldest);
    return true;
  }

  #drop(held: Held): void {
    this.#leave(held);
    held.socket.destroy();
  }

  #leave(held: Held): void {
    held.client.idle.delete(held);
    if (held.client.all.delete(held)) this.#open -= 1;
  }
}

/** A TLS socket is another object than the connection below it, with the same peer. */
function keyOf(socket: Socket): string | Socket {
  const { remoteAddress, remotePort } = socket;
  return remotePort === undefined ? socket : `${remoteAddress} ${remotePort}`;
}
