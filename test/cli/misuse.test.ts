import { suite } from "uvu";
import * as assert from "uvu/assert";
import { seed } from "../api/support.ts";
import { type Daemon, natbridge, startDaemon } from "./support.ts";

const test = suite("misuse");

/** A wrong command line, and what its message must name. */
const cases: [args: string, names: RegExp][] = [
  ["", /Usage: natbridge/],
  ["nonsense", /unknown command 'nonsense'/],
  ["network", /Usage: natbridge network/],
  ["network frobnicate", /unknown command 'frobnicate'/],
  ["network create", /missing required argument 'name'/],
  ["network create a b", /too many arguments/],
  ["network create a --nope", /unknown option '--nope'/],
  ["network create a --subnet", /--subnet <cidr>' argument missing/],
  ["network create a --subnet nope", /--subnet nope/],
  ["network create a --subnet 10.0.0.0", /--subnet 10\.0\.0\.0 .*such as/],
  ["network create a --gateway 10.0.0.1", /--gateway 10\.0\.0\.1.*--subnet/],
  [
    "network create a --subnet 10.0.0.0/24 --gateway 10.0.1.1",
    /--gateway 10\.0\.1\.1.*10\.0\.0\.0\/24/,
  ],
  [
    "network create a --subnet 10.0.0.0/24 --gateway 10.0.0.1 --gateway 10.0.0.2",
    /--gateway 10\.0\.0\.2.*already/,
  ],
  ["network create a --subnet 10.0.0.0/24 --ip-range 10.1.0.0/24", /--ip-range/],
  ["network create a --mtu 12", /--mtu 12.*68 to 65535/],
  ["network create a --mtu x", /--mtu x/],
  ["network create a --driver overlay", /--driver.*bridge/],
  ["network create a --fast-path on", /--fast-path.*auto, off/],
  ["network create a --label =b", /--label =b: give key=value/],
  ["network create a/b", /\/name.*invalid_request/],
  ["network create a --bridge sixteen-bytes-xx", /\/bridge/],
  ["network ls --filter nope=1", /--filter nope=1.*name=/],
  ["network ls --filter name", /--filter name/],
  ["network rm", /missing required argument/],
  ["network connect my_net", /missing required argument 'sandbox'/],
  ["network connect my_net web --priority high", /--priority high/],
  ["endpoint create e", /required option '-n, --network <network>'/],
  ["endpoint create e --network my_net", /--netns, --pid and --sandbox/],
  ["endpoint create e --network my_net --netns a --pid 1", /exactly one/],
  ["endpoint create e --network my_net --pid 0", /--pid 0/],
  ["endpoint create e --network my_net --netns x --interface a/b", /\/interface/],
  ["port publish web", /missing required argument 'port'/],
  ["port publish web 0x50", /port "0x50".*container port/],
  ["port publish web 80:", /port "80:"/],
  ["port publish web 99999:80", /99999 is not a port/],
  ["port publish web 80:0", /0 is not a port/],
  ["port publish web 80:80/icmp", /"icmp" is not tcp, udp or sctp/],
  ["port publish web ::1:80:80", /IPv6 address in brackets/],
  ["port publish web [::1:80:80", /port "\[::1:80:80"/],
  ["port publish web host:80:80", /"host" is not an address/],
  ["port publish web 90-80:80", /runs backwards/],
  ["port publish web 81:80 82:80 --name p", /--name names one port/],
  ["port update web-8080", /changes nothing/],
  ["port update web-8080 --host-port x", /--host-port x/],
  ["port update web-8080 --from-any --from 10.0.0.0/8", /--from-any and --from/],
  ["connections --protocol ip", /--protocol/],
  ["connections --state 5", /\/query\/state/],
  ["events --type Port!", /\/query\/type/],
  ["events --since x", /--since x/],
  ["datapath", /Usage: natbridge datapath/],
  ["datapath maybe", /unknown command 'maybe'/],
  ["apply", /required option '-f, --file <file>'/],
  ["apply -f /no/such/file", /--file \/no\/such\/file/],
  ["daemon --listen nope", /--listen nope.*HOST:PORT/],
  ["daemon --listen 127.0.0.1:0", /--tokens/],
  ["daemon --listen 0.0.0.0:1 --tokens f", /--tls-cert and --tls-key/],
  ["daemon --tls-cert f", /give both/],
  ["daemon --tokens f", /--listen/],
  ["daemon --metrics-listen :80", /--metrics-listen :80/],
  ["daemon --log-level loud", /--log-level/],
  ["daemon --uplink a/b", /--uplink a\/b/],
  ["daemon extra", /too many arguments/],
  ["token create", /missing required argument 'name'/],
  ["token create a/b", /name "a\/b"/],
  ["token create a --scope admin", /--scope/],
  ["completion", /missing required argument 'shell'/],
  ["completion tcsh", /tcsh.*bash/],
  ["--host nope network ls", /--host nope/],
  ["--host ftp://x network ls", /--host ftp:\/\/x/],
  ["--host unix://relative network ls", /absolute/],
  ["--host", /--host <address>' argument missing/],
];

let daemon: Daemon | null = null;
test.before(async () => {
  daemon = await startDaemon();
  await seed(daemon.api);
});
test.after(() => daemon?.stop());

for (const [args, names] of cases) {
  test(`natbridge ${args}`, async () => {
    if (daemon === null) throw new Error("no daemon");
    const before = daemon.api.host.dump();
    const result = await daemon.run(args === "" ? [] : args.split(" "));
    assert.is(result.code, 2, result.stderr + result.stdout);
    assert.match(result.stderr, names);
    assert.is(result.stdout, "");
    assert.not.match(result.stderr, /\n\s+at /);
    assert.is(daemon.api.host.dump(), before);
  });
}

test("broken documents are misuse", async () => {
  if (daemon === null) throw new Error("no daemon");
  for (const input of ["{", "a: [", "", "- 1", "owner: x\nnetworks: 5", "a: &a [*a,*a]"]) {
    const result = await daemon.run(["apply", "-f", "-"], { input });
    assert.is(result.code, 2, `${input}: ${result.stderr}`);
  }
});

test("a daemon that does not answer is a failure, not misuse", async () => {
  const result = await natbridge(["--host", "unix:///no/such.sock", "network", "ls"]);
  assert.is(result.code, 1);
  assert.match(result.stderr, /no daemon answers at unix:\/\/\/no\/such\.sock/);
});

test("a refusal that is no fault of the arguments is a failure", async () => {
  if (daemon === null) throw new Error("no daemon");
  for (const args of [
    ["network", "create", "my_net"],
    ["network", "rm", "my_net"],
    ["port", "publish", "nope", "80:80"],
    ["network", "connect", "my_net", "nope"],
  ]) {
    const result = await daemon.run(args);
    assert.is(result.code, 1, args.join(" "));
    assert.match(result.stderr, /^natbridge: /);
  }
});

test("help is no failure and shows examples", async () => {
  for (const args of [["--help"], ["network", "--help"], ["port", "publish", "--help"], ["help"]]) {
    const result = await natbridge(args);
    assert.is(result.code, 0, args.join(" "));
    assert.match(result.stdout, /Usage: natbridge/);
  }
  assert.match(
    (await natbridge(["port", "publish", "--help"])).stdout,
    /Examples:\n.*port publish web 8080:80/,
  );
});

test("completion knows nouns, verbs and flags", async () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const result = await natbridge(["completion", shell]);
    assert.is(result.code, 0, result.stderr);
    assert.match(result.stdout, /natbridge/);
  }
  const words = async (...args: string[]) => (await natbridge(["complete", "--", ...args])).stdout;
  assert.match(await words("net"), /^network/m);
  assert.match(await words("network", ""), /^create/m);
  assert.match(await words("network", "create", "--sub"), /^--subnet/m);
});

test.run();
