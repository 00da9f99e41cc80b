/**
 * Sockets of the host that are kept open while a test changes what they lead to, and servers that tell
 * who they are. One line of JSON each way.
 *
 *     asker.ts serve PORT NAME    TCP and UDP, both families: answers NAME, and what it was asked
 *     asker.ts ask                commands on standard input, answers on standard output
 */
import { createSocket, type Socket as UdpSocket } from "node:dgram";
import { connect, createServer, type Socket } from "node:net";
import { createInterface } from "node:readline";

/** What a socket is told to do; `name` is the test's name for the socket. */
export type Command =
  | { do: "open"; name: string; protocol: "tcp"; host: string; port: number }
  /** Connected, or to nobody where there is no host. */
  | { do: "open"; name: string; protocol: "udp"; family: 4 | 6; host?: string; port?: number }
  /** Sends, and waits for the answer. `host` and `port` for a socket that is connected to nobody. */
  | { do: "ask"; name: string; text: string; host?: string; port?: number; patience: number }
  /** Asks several at once, from a socket that is connected to nobody: each its own `HOST PORT`. */
  | { do: "ask-all"; name: string; places: [host: string, port: number][]; patience: number }
  /** Waits for the end of a TCP connection. */
  | { do: "end"; name: string; patience: number };

export interface Reply {
  /** `NAME text` as the server has it; empty: none came. Of several, one a line, with `from`. */
  answer: string;
  /** Address and port an answer to a datagram came from. */
  from: string;
  /** The socket's error, `end`, or empty. */
  error: string;
}

const plain = (address: string): string => address.replace(/^::ffff:/, "");

function serve(port: number, name: string): void {
  createServer((socket) => {
    socket.on("error", () => socket.destroy());
    socket.on("data", (data) => socket.write(`${name} ${data}`));
  }).listen({ port, host: "::" }, () => console.log("listening"));
  for (const type of ["udp4", "udp6"] as const) {
    const socket = createSocket({ type, ipv6Only: type === "udp6" });
    let heard = 0;
    socket.on("message", (message, { address, port: from }) => {
      heard += 1;
      const text = message.toString();
      // How many datagrams came before this one, for who must not have got any.
      socket.send(text === "how many" ? `${name} ${heard - 1}` : `${name} ${text}`, from, address);
    });
    socket.bind(port);
  }
}

/** What a socket has heard and nobody has asked for yet. */
class Ear {
  #waiting: ((reply: Reply) => void) | null = null;
  readonly #heard: Reply[] = [];
  #errors: string[] = [];

  hear(reply: Partial<Reply>): void {
    const whole: Reply = { answer: "", from: "", error: "", ...reply };
    if (whole.error !== "" && this.#waiting === null) this.#errors.push(whole.error);
    else if (this.#waiting === null) this.#heard.push(whole);
    else this.#waiting(whole);
  }

  /** Old errors are of old questions. */
  forget(): void {
    this.#errors = [];
    this.#heard.length = 0;
  }

  get error(): string {
    return this.#errors[0] ?? "";
  }

  next(patience: number): Promise<Reply> {
    return new Promise((resolve) => {
      const done = (reply: Reply): void => {
        this.#waiting = null;
        clearTimeout(timer);
        resolve(reply);
      };
      const timer = setTimeout(() => done({ answer: "", from: "", error: "" }), patience);
      this.#waiting = done;
      const [early] = this.#heard.splice(0, 1);
      if (early) done(early);
    });
  }
}

const ears = new Map<string, Ear>();
const streams = new Map<string, Socket>();
const datagrams = new Map<string, UdpSocket>();

function openTcp(name: string, host: string, port: number, done: (reply: Reply) => void): void {
  const ear = new Ear();
  ears.set(name, ear);
  const socket = connect({ host, port });
  streams.set(name, socket);
  socket.on("data", (data) => ear.hear({ answer: data.toString() }));
  socket.on("error", (error: NodeJS.ErrnoException) => {
    ear.hear({ error: error.code ?? error.message });
    done({ answer: "", from: "", error: error.code ?? error.message });
  });
  socket.on("end", () => ear.hear({ error: "end" }));
  socket.on("connect", () => done({ answer: "", from: "", error: "" }));
}

function openUdp(
  name: string,
  family: 4 | 6,
  to: { host: string; port: number } | null,
  done: (reply: Reply) => void,
): void {
  const ear = new Ear();
  ears.set(name, ear);
  const socket = createSocket(`udp${family}`);
  datagrams.set(name, socket);
  socket.on("message", (message, { address, port }) =>
    ear.hear({ answer: message.toString(), from: `${plain(address)} ${port}` }),
  );
  socket.on("error", (error: NodeJS.ErrnoException) =>
    ear.hear({ error: error.code ?? error.message }),
  );
  const opened = (): void => done({ answer: "", from: "", error: "" });
  if (to === null) socket.bind(0, opened);
  else socket.connect(to.port, to.host, opened);
}

async function askAll(
  name: string,
  places: [host: string, port: number][],
  patience: number,
): Promise<Reply> {
  const ear = ears.get(name) ?? new Ear();
  for (const [host, port] of places) datagrams.get(name)?.send(`${host} ${port}`, port, host);
  const lines: string[] = [];
  while (lines.length < places.length) {
    const { answer, from } = await ear.next(patience);
    if (answer === "") break;
    lines.push(`${answer} from ${from}`);
  }
  return { answer: lines.join("\n"), from: "", error: "" };
}

async function obey(command: Command): Promise<Reply> {
  if (command.do === "open")
    return new Promise((resolve) => {
      if (command.protocol === "tcp") openTcp(command.name, command.host, command.port, resolve);
      else {
        const { name, family, host, port } = command;
        openUdp(name, family, host && port ? { host, port } : null, resolve);
      }
    });
  if (command.do === "ask-all") return askAll(command.name, command.places, command.patience);
  const ear = ears.get(command.name) ?? new Ear();
  if (command.do === "end")
    return ear.error === ""
      ? ear.next(command.patience)
      : { answer: "", from: "", error: ear.error };
  const socket = datagrams.get(command.name);
  const { text, host, port, patience } = command;
  if (socket) {
    ear.forget();
    const sent = (error: NodeJS.ErrnoException | null): void => {
      if (error) ear.hear({ error: error.code ?? error.message });
    };
    if (host === undefined || port === undefined) socket.send(text, sent);
    else socket.send(text, port, host, sent);
  } else streams.get(command.name)?.write(text);
  return ear.next(patience);
}

const [verb, port, name = ""] = process.argv.slice(2);
if (verb === "serve") serve(Number(port), name);
else {
  const input = createInterface({ input: process.stdin });
  input.on("close", () => process.exit(0));
  for await (const line of input) console.log(JSON.stringify(await obey(JSON.parse(line))));
}
