//! Somebody reloads the host's firewall: what was open stays open, and the rest waits a moment.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use natbridge_datapath::firewall::{
    FirewallPort, FirewallSpec, Protocol, TableKeeper, apply_firewall, ensure_forward_accepts,
    remove_firewall, remove_forward_accepts,
};

use super::namespaces::Namespaces;
use super::topology;

const PATIENCE: Duration = Duration::from_secs(5);
const RELOADS: usize = 5;

fn list(namespaces: &Namespaces) -> String {
    // Marking follows the foreign chains, which are flushed too.
    let script = "nft list table inet natbridge 2>/dev/null | sed /ipv4,.ipv6/d || true";
    namespaces.run("host", script)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
    }
    begun.elapsed()
}

/// A server that echoes; its port is held on the host too, as the holder does.
fn echo(namespaces: &Namespaces, name: &'static str, port: u16) {
    let listener = namespaces.inside(name, || TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4];
                while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
            });
        }
    });
}

fn says(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

/// Published and masqueraded connections, of both families.
fn connections(namespaces: &Namespaces) -> Vec<(String, TcpStream)> {
    let targets = [
        ("client", "192.0.2.1:8087"),
        ("client", "[fd00:c::1]:8087"),
        ("client", "192.0.2.3:8099"),
        ("client", "[fd00:c::3]:8099"),
        ("a1", "192.0.2.2:90"),
        ("a1", "[fd00:c::2]:90"),
    ];
    let mut open = Vec::new();
    for (from, target) in targets {
        let address: SocketAddr = target.parse().unwrap();
        let stream =
            namespaces.inside(from, || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        open.push((format!("{from} to {target}"), stream));
    }
    open
}

/// Talks on every connection while `disturb` goes on; answers those that broke.
fn broken(namespaces: &Namespaces, disturb: impl FnOnce()) -> Vec<String> {
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talks: Vec<_> = connections(namespaces)
            .into_iter()
            .map(|(name, mut stream)| {
                let done = &done;
                scope.spawn(move || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        if let Err(error) = says(&mut stream) {
                            return Some(format!("{name}: {error}"));
                        }
                    }
                    says(&mut stream).err().map(|error| format!("{name}, at last: {error}"))
                })
            })
            .collect();
        // Whatever happens here, the talkers must end.
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(disturb));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(cause) = disturbed {
            std::panic::resume_unwind(cause);
        }
        talks.into_iter().filter_map(|talk| talk.join().unwrap()).collect()
    })
}

#[test]
fn a_flushed_ruleset_breaks_no_connection() {
    let namespaces = topology::build_alone("flush");
    for (name, port) in [("a1", 90), ("client", 90), ("host", 8087)] {
        echo(&namespaces, name, port);
    }
    let keeper = namespaces.inside("host", || {
        apply_firewall(&topology::spec(false)).unwrap();
        ensure_forward_accepts().unwrap();
        TableKeeper::start(true).unwrap()
    });
    let pristine = list(&namespaces);
    // Some reloads do more than flush; the host's own rules come with it.
    for reload in [
        "flush ruleset",
        "flush ruleset\nadd table inet filter\nadd chain inet filter forward { type filter hook forward priority 0; policy drop; }",
    ] {
        let failed = broken(&namespaces, || {
            for _ in 0..RELOADS {
                namespaces.run("host", &format!("nft -f - <<EOF\n{reload}\nEOF"));
                let took = until("the table is not back", || list(&namespaces) == pristine);
                println!("the table was back after at most {took:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        assert_eq!(failed, Vec::<String>::new(), "{reload}");
    }
    // A rule taken out, and the accept in the foreign chain.
    namespaces.run("host", "nft flush chain inet natbridge published");
    until("the rules are not back", || list(&namespaces) == pristine);
    namespaces.run("host", "nft flush chain inet filter forward");
    until("the accept is not back", || {
        namespaces.run("host", "nft list chain inet filter forward").contains("natbridge")
    });
    // What is removed stays removed.
    namespaces.inside("host", || {
        remove_forward_accepts().unwrap();
        remove_firewall().unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(list(&namespaces), "");
    assert!(!namespaces.run("host", "nft list ruleset").contains("comment \"natbridge\""));
    drop(keeper);
    assert!(!namespaces.run("host", "nft list ruleset").contains("natbridge"));
}

#[test]
fn nothing_new_passes_while_the_table_is_away() {
    let namespaces = topology::build_alone("gap");
    let keeper = namespaces.inside("host", || {
        apply_firewall(&topology::spec(false)).unwrap();
        TableKeeper::start(true).unwrap()
    });
    let asks = |from: &str, target: &str| {
        let address: SocketAddr = target.parse().unwrap();
        namespaces.inside(from, || {
            TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
        })
    };
    for _ in 0..RELOADS {
        // Flushed as fast as can be, so that there is nearly always none.
        let flushing = namespaces.full("host");
        let mut flusher = std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{flushing}"))
            .args(["sh", "-c", "i=0; while [ $i -lt 60 ]; do nft flush ruleset; i=$((i+1)); done"])
            .spawn()
            .unwrap();
        assert!(!asks("b1", "172.32.0.10:80"), "another network");
        assert!(!asks("client", "172.32.0.10:80"), "the LAN");
        assert!(!asks("client", "[fd00:a::10]:80"), "the LAN");
        assert!(!asks("i1", "192.0.2.2:80"), "out of an internal network");
        flusher.wait().unwrap();
    }
    drop(keeper);
    namespaces.inside("host", || remove_firewall().unwrap());
}

#[test]
fn without_a_stand_in_the_table_is_restored_as_well() {
    let namespaces = topology::build_alone("alone");
    let keeper = namespaces.inside("host", || {
        apply_firewall(&topology::spec(false)).unwrap();
        TableKeeper::start(false).unwrap()
    });
    let pristine = list(&namespaces);
    assert!(!namespaces.run("host", "nft list tables").contains("natbridge_keep"));
    namespaces.run("host", "nft flush ruleset");
    until("the table is not back", || list(&namespaces) == pristine);
    assert!(!namespaces.run("host", "nft list tables").contains("natbridge_keep"));
    drop(keeper);
    namespaces.inside("host", || remove_firewall().unwrap());
}

#[test]
fn a_thousand_ports_are_back_at_once() {
    let namespaces = Namespaces::alone("quick", &["host"]);
    let port = |number: u16| FirewallPort {
        protocol: Protocol::Tcp,
        host_address: "0.0.0.0".parse().unwrap(),
        host_port: number,
        target_address: Some("172.32.0.10".parse().unwrap()),
        target_port: 80,
        from: vec![],
    };
    let spec = FirewallSpec { ports: (1..=1000).map(port).collect(), ..topology::spec(false) };
    let keeper = namespaces.inside("host", || {
        apply_firewall(&spec).unwrap();
        TableKeeper::start(true).unwrap()
    });
    for _ in 0..RELOADS {
        namespaces.run("host", "nft flush ruleset");
        let took = until("the table is not back", || !list(&namespaces).is_empty());
        println!("1000 ports were back after at most {took:?}");
        // Tens of milliseconds on an idle machine; the tests share it with others.
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    drop(keeper);
    namespaces.inside("host", || remove_firewall().unwrap());
}
