/**
 * Speaks to the holder over its control socket: one JSON object per line, requests answered in
 * order. The protocol is described in `crates/natbridge-proxy/src/protocol.rs`.
 */
import { connect, type Socket } from "node:net";
import { z } from "zod";
import {
  type Holder,
  type HolderBindingState,
  HolderError,
  type HolderErrorKind,
  type HolderHello,
  type HolderListing,
  type HolderReservation,
  type HolderUpdate,
} from "./types.ts";

/** Version of the control protocol that this client speaks. */
export const holderProtocol = 1;

const answerMilliseconds = 10_000;

const bindingStateSchema = z.object({
  key: z.string(),
  protocol: z.enum(["tcp", "udp", "sctp"]),
  hostAddress: z.string(),
  hostPort: z.int(),
  targetAddress: z.string(),
  targetPort: z.int(),
  from: z.array(z.string()),
  connections: z.int(),
  active: z.int(),
  bytes: z.number(),
  refused: z.int(),
  lastError: z.string().nullable(),
});
const helloSchema = z.object({ protocol: z.int(), version: z.string(), pid: z.int() });
const placesSchema = z.object({
  open: z.int(),
  capacity: z.int(),
  evicted: z.int(),
  refused: z.int(),
});
const limitsSchema = z.object({
  files: z.int(),
  connections: placesSchema,
  sessions: placesSchema,
});
const listingSchema = z.object({
  bindings: z.array(bindingStateSchema),
  limits: limitsSchema.nullable().default(null),
});
const reservedSchema = z.object({ hostPort: z.int() });
const emptySchema = z.object({});
const answerSchema = z.object({
  id: z.int(),
  result: z.unknown().optional(),
  error: z.object({ kind: z.string(), message: z.string(), key: z.string().optional() }).optional(),
});

const kinds: readonly HolderErrorKind[] = [
  "address_in_use",
  "address_not_available",
  "unsupported",
  "denied",
];

/** A kind this client does not know yet is `other`. */
function kindOf(word: string): HolderErrorKind {
  return kinds.find((kind) => kind === word) ?? "other";
}

interface Waiting {
  resolve(result: unknown): void;
  reject(error: HolderError): void;
  timer: ReturnType<typeof setTimeout>;
}

/** One connection to the control socket. */
class Connection {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #chunks: string[] = [];
  #nextId = 1;
  #failure: HolderError | null = null;
  #isClosed = false;

  private constructor(socket: Socket, onLost: () => void) {
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => this.#receive(chunk));
    socket.on("error", (error) => this.#fail(`the holder's connection failed: ${error.message}`));
    socket.on("close", () => {
      const isOurs = this.#isClosed;
      this.#fail("the holder closed the connection");
      if (!isOurs) onLost();
    });
  }

  static open(path: string, onLost: () => void): Promise<Connection> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      const refuse = (error: Error) => {
        socket.destroy();
        reject(new HolderError("unavailable", `no holder answers at ${path}: ${error.message}`));
      };
      socket.once("error", refuse);
      socket.once("connect", () => {
        socket.off("error", refuse);
        resolve(new Connection(socket, onLost));
      });
    });
  }

  get open(): boolean {
    return this.#failure === null;
  }

  call(method: string, fields: object): Promise<unknown> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#fail(`the holder did not answer ${method} in ${answerMilliseconds / 1000} s`),
        answerMilliseconds,
      );
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.write(`${JSON.stringify({ ...fields, id, method })}\n`);
    });
  }

  close(): void {
    this.#isClosed = true;
    this.#fail("the connection to the holder was closed");
  }

  /** Lines may be megabytes: pieces are joined once, at the line's end. */
  #receive(chunk: string): void {
    const lines = chunk.split("\n");
    const rest = lines.pop() ?? "";
    for (const line of lines) {
      this.#chunks.push(line);
      const whole = this.#chunks.join("");
      this.#chunks = [];
      this.#settle(whole);
    }
    if (rest !== "") this.#chunks.push(rest);
  }

  #settle(line: string): void {
    let answer: z.infer<typeof answerSchema>;
    try {
      answer = answerSchema.parse(JSON.parse(line));
    } catch {
      this.#fail("the holder's answer makes no sense");
      return;
    }
    const waiting = this.#waiting.get(answer.id);
    if (waiting === undefined) return;
    this.#waiting.delete(answer.id);
    clearTimeout(waiting.timer);
    const { error } = answer;
    if (error === undefined) waiting.resolve(answer.result);
    else waiting.reject(new HolderError(kindOf(error.kind), error.message, error.key ?? null));
  }

  #fail(message: string): void {
    this.#failure ??= new HolderError("unavailable", message);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(this.#failure);
    }
    this.#waiting.clear();
    this.#socket.destroy();
  }
}

/** The holder behind a control socket. Connects at the first call, and again after a failure. */
export class HolderClient implements Holder {
  readonly #path: string;
  #connection: Promise<Connection> | null = null;
  #tellLost = (): void => undefined;

  /** @param path The holder's control socket. */
  constructor(path: string) {
    this.#path = path;
  }

  hello(): Promise<HolderHello> {
    return this.#call("hello", {}, helloSchema);
  }

  async list(): Promise<HolderBindingState[]> {
    return (await this.inspect()).bindings;
  }

  inspect(): Promise<HolderListing> {
    return this.#call("list", {}, listingSchema);
  }

  async update(update: HolderUpdate): Promise<void> {
    await this.#call("update", update, emptySchema);
  }

  async reserve(reservation: HolderReservation): Promise<number> {
    return (await this.#call("reserve", reservation, reservedSchema)).hostPort;
  }

  async shutdown(): Promise<void> {
    await this.#call("shutdown", {}, emptySchema);
    this.close();
  }

  onLost(listener: () => void): void {
    this.#tellLost = listener;
  }

  close(): void {
    const connection = this.#connection;
    this.#connection = null;
    connection?.then(
      (it) => it.close(),
      () => {},
    );
  }

  async #call<T>(method: string, fields: object, schema: z.ZodType<T>): Promise<T> {
    const connection = await this.#connected();
    const result = schema.safeParse(await connection.call(method, fields));
    if (result.success) return result.data;
    throw new HolderError("other", `the holder's answer to ${method} makes no sense`);
  }

  async #connected(): Promise<Connection> {
    const pending = this.#connection;
    if (pending !== null) {
      const connection = await pending.catch(() => null);
      if (connection?.open) return connection;
      // Another call may have begun to connect again meanwhile.
      if (this.#connection === pending) this.#connection = null;
    }
    this.#connection ??= Connection.open(this.#path, () => this.#tellLost());
    return this.#connection;
  }
}
