/** Which connections of a listener are kept, and for how long. */
import { EventEmitter, once } from "node:events";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Admission, type Bounds, clientOf } from "../../src/runtime/admission.ts";
import { connectionShare } from "../../src/runtime/file-limit.ts";
import { type Handler, type RunningServer, serveTcp } from "../../src/runtime/serve.ts";

const bounds: Bounds = {
  connections: 6,
  perClient: 3,
  headSeconds: 10,
  idleSeconds: 20,
  answerSeconds: 30,
};

class FakeSocket extends EventEmitter {
  static #port = 1000;
  readonly remotePort: number = FakeSocket.#port++;
  readonly remoteAddress: string;
  destroyed = false;
  constructor(remoteAddress: string) {
    super();
    this.remoteAddress = remoteAddress;
  }
  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.emit("close");
  }
}

function fixture() {
  const admission = new Admission(bounds);
  const enter = (address: string): FakeSocket => {
    const socket = new FakeSocket(address);
    admission.enter(socket as unknown as Socket);
    return socket;
  };
  const begin = (socket: FakeSocket) => admission.begin(socket as unknown as Socket);
  return { admission, enter, begin };
}
const kept = (sockets: FakeSocket[]): boolean[] => sockets.map(({ destroyed }) => !destroyed);

const test = suite("admission");

test("a client at its share replaces its own oldest idle connection", () => {
  const { admission, enter } = fixture();
  const other = enter("10.0.0.2");
  const own = Array.from({ length: 5 }, () => enter("10.0.0.1"));
  assert.equal(kept([other, ...own]), [true, false, false, true, true, true]);
  assert.equal(admission.counts, { open: 4, turned: { evicted: 2, refused: 0, too_slow: 0 } });
});

test("a full listener takes from who holds most, and never a running request", () => {
  const { admission, enter, begin } = fixture();
  const greedy = Array.from({ length: 3 }, () => enter("10.0.0.1"));
  const modest = [enter("10.0.0.2"), enter("10.0.0.3"), enter("10.0.0.3")];
  const [first, second, third] = greedy as [FakeSocket, FakeSocket, FakeSocket];
  begin(first);
  const newcomer = enter("10.0.0.4");
  assert.equal(kept([...greedy, ...modest, newcomer]), [true, false, true, true, true, true, true]);
  begin(third);
  // 10.0.0.1 has nothing idle left: of the others 10.0.0.3 holds most.
  enter("10.0.0.5");
  assert.equal(kept(modest), [true, false, true]);
  assert.is(admission.counts.open, 6);
  assert.ok(second.destroyed);
});

test("where all are busy the newcomer is refused, and comes in after an answer", () => {
  const { admission, enter, begin } = fixture();
  const ends = Array.from({ length: 3 }, () => begin(enter("10.0.0.1")));
  const refused = enter("10.0.0.1");
  assert.ok(refused.destroyed);
  assert.is(admission.counts.turned.refused, 1);
  for (const end of ends) end();
  assert.not.ok(enter("10.0.0.1").destroyed);
  assert.is(admission.counts.open, 3);
});

test("time is over for heads, idle connections and answers, each by its own limit", () => {
  const { admission, enter, begin } = fixture();
  const now = Date.now();
  const [silent, idle, busy] = [enter("10.0.0.1"), enter("10.0.0.2"), enter("10.0.0.3")];
  begin(idle)();
  begin(busy);
  for (const [seconds, expected] of [
    [9, [true, true, true]],
    [11, [false, true, true]],
    [21, [false, false, true]],
    [31, [false, false, false]],
  ] as const) {
    admission.sweep(now + seconds * 1000);
    assert.equal(kept([silent, idle, busy]), expected, `${seconds} s`);
  }
  assert.equal(admission.counts, { open: 0, turned: { evicted: 0, refused: 0, too_slow: 2 } });
});

test("an IPv6 client is its /64, a mapped address its IPv4 one", () => {
  for (const [one, other, same] of [
    ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true],
    ["2001:db8:1:2::1", "2001:db8:1:3::1", false],
    ["2001:db8::1", "2001:db8:0:0:5::1", true],
    ["fe80::1%eth0", "fe80::2%eth1", true],
    ["::1", "::ffff:10.0.0.1", false],
    ["::ffff:10.0.0.1", "10.0.0.1", true],
    ["10.0.0.1", "10.0.0.2", false],
  ] as const)
    assert.is(clientOf(one) === clientOf(other), same, `${one} ${other}`);
});

test("most descriptors are left for everything else", () => {
  assert.is(connectionShare(512, 20_000), 512);
  assert.is(connectionShare(512, 1024), 128);
  assert.is(connectionShare(512, 16), 8);
});

const short: Bounds = { ...bounds, headSeconds: 1, idleSeconds: 1, answerSeconds: 1 };

async function withServer(
  handler: Handler,
  use: (server: RunningServer) => Promise<void>,
): Promise<void> {
  const warn = (message: string) => assert.unreachable(message);
  const server = await serveTcp({ handler, bounds: short, warn }, "127.0.0.1", 0, null);
  try {
    await use(server);
  } finally {
    await server.stop(0);
  }
}

/** Seconds until the server ends a connection on which `talk` goes on. */
async function endured(
  { port }: RunningServer,
  talk: (socket: Socket) => void,
  every: number,
): Promise<number> {
  const socket = connect({ host: "127.0.0.1", port });
  socket.on("error", () => {});
  await once(socket, "connect");
  const begun = performance.now();
  const timer = setInterval(() => talk(socket), every);
  talk(socket);
  // Not `once`: a byte written behind the server's end is an error, and an end all the same.
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  const over = sleep(15_000, "too late", { ref: false });
  try {
    assert.is.not(await Promise.race([closed, over]), "too late");
  } finally {
    clearInterval(timer);
  }
  return (performance.now() - begun) / 1000;
}

test("a head that comes a byte at a time is not waited for", () =>
  withServer(
    () => new Response("ok"),
    async (server) => {
      let sent = 0;
      const head = `GET / HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(1000)}`;
      const talk = (socket: Socket) => {
        socket.resume();
        socket.write(head.charAt(sent++));
      };
      assert.ok((await endured(server, talk, 100)) < 8);
      assert.is(server.connections.open, 0);
    },
  ));

test("an answer that nobody reads is not kept", () =>
  withServer(
    () => new Response("x".repeat(32 << 20)),
    async (server) => {
      let asked = false;
      const talk = (socket: Socket) => {
        if (!asked) socket.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        asked = true;
      };
      const socket = connect({ host: "127.0.0.1", port: server.port });
      socket.on("error", () => {});
      socket.pause();
      await once(socket, "connect");
      talk(socket);
      for (let waited = 0; server.connections.turned.too_slow === 0 && waited < 150; waited += 1)
        await sleep(100);
      assert.is(server.connections.turned.too_slow, 1);
      assert.is(server.connections.open, 0);
      socket.destroy();
    },
  ));

test("a connection is used again, and ends when nothing more comes", () =>
  withServer(
    () => new Response("ok"),
    async (server) => {
      let requests = 0;
      const talk = (socket: Socket) => {
        socket.resume();
        if (requests++ < 5) socket.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
      };
      const seconds = await endured(server, talk, 400);
      assert.ok(seconds > 1.6 && seconds < 9, `${seconds} s`);
      assert.equal(server.connections, {
        open: 0,
        turned: { evicted: 0, refused: 0, too_slow: 0 },
      });
    },
  ));

test.run();
