//! What conntrack holds of connections that the fast path carries. Needs root, Python and conntrack.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::topology::{Topology, counters};
use common::{Loaded, Namespace, run};

/// Takes what comes; says `ok` after each GIGABYTES, and how it ended.
const SERVER: &str = r#"
import socket, sys
listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
connection, _ = listener.accept()
left = int(sys.argv[1]) << 30
ended = "fin"
try:
    while left:
        left -= len(connection.recv(min(left, 1 << 20)))
    connection.sendall(b"ok")
    while connection.recv(1 << 20):
        pass
except ConnectionResetError:
    ended = "reset"
print(ended, flush=True)
"#;

/// Sends GIGABYTES, waits until all are there, idles a moment, and ends as asked.
const CLIENT: &str = r#"
import socket, struct, sys, time
host, gigabytes, end = sys.argv[1:]
connection = socket.create_connection((host, 8080))
block = b"x" * (1 << 20)
for _ in range(int(gigabytes) << 10):
    connection.sendall(block)
assert connection.recv(2) == b"ok"
time.sleep(2)
if end == "reset":
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
connection.close()
"#;

/// Kills its process when dropped.
struct Process(Child);

impl Process {
    fn python(namespace: &Namespace, script: &str, words: &str) -> Self {
        let line = format!("exec python3 -c '{script}' {words}");
        Self(namespace.command(&line).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        let output = self.0.stdout.as_mut().unwrap();
        while output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// conntrack's line of the one connection.
fn entry(topology: &Topology, family: &str) -> String {
    topology.host.run(&format!("conntrack -L -f {family} -p tcp --orig-port-dst 8080 2>/dev/null"))
}

fn seconds(entry: &str) -> u32 {
    entry.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap_or_default()
}

fn wait_for(topology: &Topology, family: &str, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !entry(topology, family).contains(state) {
        assert!(Instant::now() < deadline, "never {state}: {}", entry(topology, family));
        sleep(Duration::from_millis(20));
    }
}

/// Lets a connection of three gigabytes end: conntrack's numbers are then of the other half.
fn ends(family: &str, host: &str, end: &str, state: &str) {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let mut server = Process::python(&topology.web, SERVER, "3");
    assert_eq!(server.line(), "ready");
    let mut client = Process::python(&topology.client, CLIENT, &format!("{host} 3 {end}"));
    wait_for(&topology, family, "ESTABLISHED");
    sleep(Duration::from_millis(500));
    let during = entry(&topology, family);
    assert!(seconds(&during) > 400_000, "{during}");
    assert!(client.0.wait().unwrap().success());
    assert_eq!(server.line(), if end == "reset" { "reset" } else { "fin" });
    wait_for(&topology, family, state);
    let uplink = counters(&loaded.fast_path, "up0");
    assert!(
        uplink.fast_packets > 10 * uplink.kernel_packets && uplink.drops.is_empty(),
        "{uplink:?}"
    );
}

#[test]
fn a_long_fast_connection_ends_by_its_fin() {
    ends("ipv4", "10.9.0.1", "fin", "TIME_WAIT");
}

#[test]
fn a_long_fast_connection_ends_by_its_rst() {
    ends("ipv4", "10.9.0.1", "reset", "CLOSE ");
    ends("ipv6", "fd00:9::1", "reset", "CLOSE ");
}

#[test]
fn connections_with_timeouts_of_their_own_are_left_to_the_kernel_path() {
    let topology = Topology::new(0);
    run("nft -f - <<'END'
table ip own {
    ct timeout brief { protocol tcp; l3proto ip; policy = { established : 77 }; }
    chain prerouting {
        type filter hook prerouting priority -150;
        tcp dport 8080 ct timeout set \"brief\"
    }
}
END");
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let mut server = Process::python(&topology.web, SERVER, "1");
    assert_eq!(server.line(), "ready");
    let mut client = Process::python(&topology.client, CLIENT, "10.9.0.1 1 fin");
    assert!(client.0.wait().unwrap().success());
    assert_eq!(counters(&loaded.fast_path, "up0").fast_packets, 0);
    let passes = loaded.fast_path.counters().unwrap().passes;
    assert!(passes.iter().any(|pass| pass.reason == "timeout_policy" && pass.count > 0));
}
