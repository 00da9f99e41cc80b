//! The holder as its daemon and its clients see it, over loopback.
#![allow(clippy::expect_used)] // an integration test's helpers are not #[test] functions

mod control;
mod fairness;
mod targets;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use control::{Holder, binding, free, wait_for};
use serde_json::json;
use targets::{ask, connect, exchange, noise, reversing_server, udp_client, udp_server};

fn reversed(name: &str, data: &[u8]) -> Vec<u8> {
    name.bytes().chain(data.iter().rev().copied()).collect()
}

#[test]
fn carries_a_tcp_payload_unchanged_through_half_close() {
    let holder = Holder::start("tcp");
    let target = reversing_server("a");
    let data = noise(8 << 20);
    for address in ["127.0.0.1", "::1"] {
        let host = free(address);
        holder.control().ok("update", json!({"add": [binding(address, "tcp", host, target)]}));
        assert!(exchange(host, &data) == reversed("a", &data), "payload by {address}");
    }
    for state in holder.control().bindings() {
        assert_eq!(state["connections"], 1, "{state}");
        assert_eq!(state["active"], 0, "{state}");
        assert_eq!(state["bytes"], data.len() * 2 + 1, "{state}");
    }
}

#[test]
fn a_slow_reader_slows_the_sender_and_loses_nothing() {
    let holder = Holder::start("slow");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let host = free("127.0.0.1");
    let target = listener.local_addr().expect("its address");
    holder.control().ok("update", json!({"add": [binding("k", "tcp", host, target)]}));
    let data = noise(32 << 20);
    let mut client = connect(host);
    let (mut server, _) = listener.accept().expect("connected through");
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            client.write_all(&data).expect("sent");
            client.shutdown(std::net::Shutdown::Write).expect("half-closed");
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!sending.is_finished(), "32 MiB are not buffered anywhere");
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("all of it");
        assert!(received == data, "payload");
    });
}

#[test]
fn answers_a_hundred_udp_clients_from_the_address_they_asked() {
    let holder = Holder::start("udp");
    let target = udp_server("u");
    let port = free("127.0.0.1").port();
    let wildcards = [SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0u16; 8], port))];
    let add = wildcards.map(|host| binding(&host.to_string(), "udp", host, target));
    holder.control().ok("update", json!({"add": add}));
    // 127.9.8.7 is as local as 127.0.0.1; a connected client drops answers from another address.
    for address in ["127.9.8.7", "127.0.0.1", "::1"] {
        let host = SocketAddr::new(address.parse().expect("an address"), port);
        let clients: Vec<UdpSocket> = (0..100).map(|_| udp_client(host)).collect();
        for (number, client) in clients.iter().enumerate() {
            client.send(format!("{number}").as_bytes()).expect("sent");
        }
        for (number, client) in clients.iter().enumerate() {
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).expect("an answer in time");
            assert_eq!(buffer[..length], *format!("u{number}").as_bytes(), "by {address}");
        }
    }
    let large = noise(60_000);
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(ask(&udp_client(host), &large), [b"u".as_slice(), &large].concat());
}

#[test]
fn udp_goes_on_after_the_target_was_away() {
    let holder = Holder::start("icmp");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let target = socket.local_addr().expect("its address");
    drop(socket);
    let host = free("127.0.0.1");
    holder.control().ok("update", json!({"add": [binding("k", "udp", host, target)]}));
    let client = udp_client(host);
    for _ in 0..5 {
        client.send(b"lost").expect("sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    let back = UdpSocket::bind(target).expect("the target is back");
    back.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client.send(b"found").expect("sent");
    let mut buffer = [0; 16];
    let (length, session) = back.recv_from(&mut buffer).expect("it arrives");
    assert_eq!(&buffer[..length], b"found");
    back.send_to(b"answer", session).expect("sent");
    let length = client.recv(&mut buffer).expect("the answer");
    assert_eq!(&buffer[..length], b"answer");
}

#[test]
fn a_conflict_names_the_binding_and_changes_nothing() {
    let holder = Holder::start("conflict");
    let target = reversing_server("a");
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("its address");
    let (kept, new) = (free("127.0.0.1"), free("127.0.0.1"));
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("kept", "tcp", kept, target)]}));
    let refusal = control.refused(
        "update",
        json!({
            "remove": ["kept"],
            "add": [binding("new", "tcp", new, target), binding("bad", "tcp", taken, target)],
        }),
    );
    assert_eq!(refusal["kind"], "address_in_use", "{refusal}");
    assert_eq!((&refusal["key"], &refusal["errno"]), (&json!("bad"), &json!("EADDRINUSE")));
    assert_eq!(control.only()["key"], "kept");
    assert_eq!(exchange(kept, b"abc"), reversed("a", b"abc"), "the kept one works");
    TcpListener::bind(new).expect("the new one was given back");
}

#[test]
fn an_undone_update_reserves_again_what_it_had_vacated() {
    let holder = Holder::start("undo");
    let target = reversing_server("a");
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("its address");
    let host = free("127.0.0.1");
    let wildcard = SocketAddr::from(([0, 0, 0, 0], host.port()));
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("old", "tcp", wildcard, target)]}));
    let add = [binding("new", "tcp", host, target), binding("bad", "tcp", taken, target)];
    control.refused("update", json!({"remove": ["old"], "add": add}));
    assert_eq!(control.only()["key"], "old");
    assert_eq!(exchange(host, b"x"), reversed("a", b"x"), "the old one works");
    // Without the conflict the same port moves from the wildcard to one address.
    let add = [binding("new", "tcp", host, target)];
    control.ok("update", json!({"remove": ["old"], "add": add}));
    assert_eq!(control.only()["key"], "new");
    assert_eq!(exchange(host, b"x"), reversed("a", b"x"), "the new one works");
}

#[test]
fn nonsense_is_refused_with_its_reason() {
    let holder = Holder::start("nonsense");
    let (host, target) = (free("127.0.0.1"), free("127.0.0.1"));
    let good = binding("k", "tcp", host, target);
    let mut control = holder.control();
    let wrong = |field: &str, value: serde_json::Value| {
        let mut wrong = good.clone();
        wrong[field] = value;
        json!({"add": [wrong]})
    };
    for (request, word) in [
        (wrong("hostPort", json!(0)), "ports"),
        (wrong("hostPort", json!(65536)), "65536"),
        (wrong("hostAddress", json!("localhost")), "IP address"),
        (wrong("protocol", json!("icmp")), "icmp"),
        (wrong("from", json!(["10.0.0.0/33"])), "from"),
        (json!({"add": [good, good]}), "already"),
        (
            json!({"retarget": [{"key": "x", "targetAddress": "127.0.0.1", "targetPort": 1}]}),
            "no binding",
        ),
    ] {
        let refusal = control.refused("update", request);
        assert_eq!(refusal["kind"], "invalid", "{refusal}");
        assert_eq!(control.bindings().len(), 0, "{word}");
    }
    for line in ["\n", "[]\n", "{\"id\":1}\n", "\u{0}\n", "{\"id\":-1,\"method\":\"list\"}\n"] {
        assert_eq!(control.raw(line)["error"]["kind"], "invalid", "{line:?}");
    }
    TcpListener::bind(host).expect("nothing was reserved");
}

#[test]
fn open_connections_finish_on_the_old_target() {
    let holder = Holder::start("retarget");
    let (old, new) = (reversing_server("old"), reversing_server("new"));
    let host = free("127.0.0.1");
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("k", "tcp", host, old)]}));
    let mut open = connect(host);
    open.write_all(b"12").expect("sent");
    wait_for("the connection is open", || holder.control().only()["active"] == 1);
    let to = json!({"key": "k", "targetAddress": "127.0.0.1", "targetPort": new.port()});
    control.ok("update", json!({"retarget": [to]}));
    assert_eq!(exchange(host, b"34"), reversed("new", b"34"), "a new connection");
    open.shutdown(std::net::Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer, reversed("old", b"12"), "the open connection");
}

#[test]
fn a_udp_client_moves_with_the_target() {
    let holder = Holder::start("udp-retarget");
    let (old, new) = (udp_server("old"), udp_server("new"));
    let host = free("127.0.0.1");
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("k", "udp", host, old)]}));
    let client = udp_client(host);
    assert_eq!(ask(&client, b"1"), b"old1");
    let to = json!({"key": "k", "targetAddress": "127.0.0.1", "targetPort": new.port()});
    control.ok("update", json!({"retarget": [to]}));
    assert_eq!(ask(&client, b"2"), b"new2");
}

fn assert_reset(stream: &mut TcpStream, when: &str) {
    let failure = stream.read(&mut [0; 16]).expect_err(when);
    assert_eq!(failure.kind(), ErrorKind::ConnectionReset, "{when}");
}

#[test]
fn removing_a_binding_frees_the_port_and_resets_its_connections() {
    let holder = Holder::start("remove");
    let target = reversing_server("a");
    let host = free("127.0.0.1");
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("k", "tcp", host, target)]}));
    let mut open = connect(host);
    open.write_all(b"half").expect("sent");
    wait_for("the connection is open", || holder.control().only()["active"] == 1);
    control.ok("update", json!({"remove": ["k", "never there"]}));
    assert_reset(&mut open, "a removed binding's connection");
    let refused = TcpStream::connect(host).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    TcpListener::bind(host).expect("the port is free");
}

#[test]
fn resets_are_passed_on_both_ways() {
    let holder = Holder::start("reset");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("its address");
    let (host, nobody) = (free("127.0.0.1"), free("127.0.0.1"));
    let (to_nobody, closed) = (free("127.0.0.1"), nobody);
    let add = [binding("k", "tcp", host, target), binding("n", "tcp", to_nobody, closed)];
    holder.control().ok("update", json!({"add": add}));
    let abort = |stream: TcpStream| {
        let zero = Some(Duration::ZERO);
        socket2::SockRef::from(&stream).set_linger(zero).expect("set");
    };
    let mut client = connect(host);
    let (server, _) = listener.accept().expect("connected through");
    abort(server);
    assert_reset(&mut client, "the target reset");
    let client = connect(host);
    let (mut server, _) = listener.accept().expect("connected through");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    abort(client);
    assert_reset(&mut server, "the client reset");
    assert_reset(&mut connect(to_nobody), "no target");
    let states = holder.control().bindings();
    let error = states[1]["lastError"].as_str().expect("an error");
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn lets_the_host_itself_in_whatever_from_says() {
    let holder = Holder::start("from");
    let target = reversing_server("a");
    let host = free("127.0.0.1");
    let mut add = binding("k", "tcp", host, target);
    add["from"] = json!(["198.51.100.0/24"]);
    holder.control().ok("update", json!({"add": [add]}));
    assert_eq!(exchange(host, b"1"), reversed("a", b"1"), "this host's own client");
    assert_eq!(holder.control().only()["refused"], 0);
}

#[test]
fn reserves_the_first_port_that_is_free_for_all() {
    let holder = Holder::start("range");
    let target = reversing_server("a");
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let first = other.local_addr().expect("its address").port();
    let ask = |first: u16, last: u16, start: u16| {
        let mut bindings = ["0.0.0.0", "::"].map(|host| {
            binding(
                &format!("{host} {first} {start}"),
                "tcp",
                SocketAddr::new(host.parse().expect("an address"), 1),
                target,
            )
        });
        for binding in &mut bindings {
            binding.as_object_mut().expect("an object").remove("hostPort");
        }
        json!({"bindings": bindings, "firstPort": first, "lastPort": last, "startPort": start})
    };
    let mut control = holder.control();
    let refusal = control.refused("reserve", ask(first, first, first));
    assert_eq!(refusal["kind"], "address_in_use", "{refusal}");
    let last = first.saturating_add(50);
    let port = control.ok("reserve", ask(first, last, first))["hostPort"].as_u64();
    assert!(port.is_some_and(|port| port > first.into() && port <= last.into()), "{port:?}");
    assert_eq!(control.bindings().len(), 2);
    assert_eq!(control.refused("reserve", ask(5, 4, 5))["kind"], "invalid");
    control.refused("reserve", ask(0, 4, 1));
}

#[test]
fn outlives_its_daemon_and_keeps_the_socket_private() {
    let holder = Holder::start("daemon");
    let target = reversing_server("a");
    let host = free("127.0.0.1");
    let mode = std::fs::metadata(&holder.path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut control = holder.control();
    control.ok("update", json!({"add": [binding("k", "tcp", host, target)]}));
    drop(control);
    let mut cut_off = UnixStream::connect(&holder.path).expect("connected");
    cut_off.write_all(b"{\"id\":1,\"meth").expect("sent");
    drop(cut_off);
    assert_eq!(exchange(host, b"on"), reversed("a", b"on"));
    assert_eq!(holder.control().only()["key"], "k", "the next daemon finds it");
}

#[test]
fn hands_over_without_losing_a_connection() {
    let mut old = Holder::start("adopt");
    let (target, udp) = (reversing_server("a"), udp_server("u"));
    let host = free("127.0.0.1");
    let mut control = old.control();
    // More sockets than fit in one message.
    let many: Vec<_> = (0..300)
        .map(|n| {
            binding(&format!("m{n}"), "tcp", SocketAddr::from(([127, 0, 1, 1], 20000 + n)), target)
        })
        .collect();
    control.ok("update", json!({"add": many}));
    let add = [binding("t", "tcp", host, target), binding("u", "udp", host, udp)];
    control.ok("update", json!({"add": add}));
    let mut open = connect(host);
    open.write_all(b"12").expect("sent");
    let client = udp_client(host);
    assert_eq!(ask(&client, b"1"), b"u1");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let new = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(exchange(host, b"x"), reversed("a", b"x"), "request {count}");
                count += 1;
            }
            count
        });
        let new = old.successor();
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(requests.join().expect("no failed request") > 10);
        new
    });
    assert_eq!(new.control().bindings().len(), 302);
    assert_eq!(ask(&client, b"2"), b"u2", "datagrams go to the new holder");
    assert!(old.process.try_wait().expect("its state").is_none(), "the old one has a connection");
    open.shutdown(std::net::Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    open.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer, reversed("a", b"12"), "the open connection");
    wait_for("the old one ends", || old.process.try_wait().expect("its state").is_some());
    assert_eq!(exchange(host, b"34"), reversed("a", b"34"));
    assert!(new.path.exists(), "the new control socket stays");
}

#[test]
fn a_second_holder_is_refused() {
    let holder = Holder::start("second");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_natbridge-holder"))
        .arg("--socket")
        .arg(&holder.path)
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--adopt"));
    assert_eq!(holder.control().bindings().len(), 0, "the first one still answers");
}

#[test]
fn a_thousand_bindings_fit_in_15_megabytes() {
    let holder = Holder::start("memory");
    let target = reversing_server("a");
    let mut control = holder.control();
    let add: Vec<_> = (0..1000)
        .map(|n| {
            let protocol = if n % 2 == 0 { "tcp" } else { "udp" };
            let host = SocketAddr::from(([127, 0, 2, 1], 20000 + n));
            binding(&format!("k{n}"), protocol, host, target)
        })
        .collect();
    control.ok("update", json!({"add": add}));
    assert_eq!(control.bindings().len(), 1000);
    let status = std::fs::read_to_string(format!("/proc/{}/status", holder.process.id()));
    let status = status.expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    let kilobytes: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("it");
    assert!(kilobytes < 15_000, "{kilobytes} kB");
}

#[test]
fn shutdown_gives_everything_up() {
    let mut holder = Holder::start("shutdown");
    let host = free("127.0.0.1");
    let target = reversing_server("a");
    holder.control().ok("update", json!({"add": [binding("k", "tcp", host, target)]}));
    holder.control().ok("shutdown", json!({}));
    TcpListener::bind(host).expect("the port is free");
    wait_for("it ends", || holder.process.try_wait().expect("its state").is_some());
    assert!(!holder.path.exists(), "the control socket is gone");
}
