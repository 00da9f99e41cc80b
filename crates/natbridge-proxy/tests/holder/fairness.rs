//! Clients that take all they can get: the others are served all the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::control::{Holder, binding, free, wait_for};
use crate::targets::{ask, exchange, reversing_server, udp_client, udp_server};

/// 32 places for connections, 64 for sessions.
const FILES: [&str; 2] = ["--files", "256"];
const CONNECTIONS: usize = 32;
const SESSIONS: usize = 64;

/// Accepts and keeps what comes, and says nothing.
fn silent_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        let clients: Vec<_> = listener.incoming().flatten().collect();
        drop(clients);
    });
    address
}

fn client(last: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 3, u8::try_from(last).expect("a byte")).into()
}

fn connect_from(client: IpAddr, host: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SockAddr::from(SocketAddr::new(client, 0))).expect("an address of loopback");
    socket.connect(&host.into()).expect("connected");
    TcpStream::from(socket)
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("set");
    let result = (&*stream).read(&mut [0]);
    stream.set_nonblocking(false).expect("set");
    result.is_err_and(|cause| cause.kind() == ErrorKind::WouldBlock)
}

/// A holder with a port for the flood and one that must go on.
fn two_ports(name: &str, protocol: &str, targets: [SocketAddr; 2]) -> (Holder, [SocketAddr; 2]) {
    let holder = Holder::start_with(name, &FILES);
    let hosts = [free("127.0.0.1"), free("127.0.0.1")];
    let add = [
        binding("flooded", protocol, hosts[0], targets[0]),
        binding("other", protocol, hosts[1], targets[1]),
    ];
    holder.control().ok("update", json!({"add": add}));
    (holder, hosts)
}

fn goes_on(host: SocketAddr) {
    for _ in 0..20 {
        assert_eq!(exchange(host, b"12"), b"a21");
    }
}

#[test]
fn one_clients_idle_connections_leave_the_other_ports_alone() {
    let (holder, [flooded, other]) =
        two_ports("idle", "tcp", [silent_server(), reversing_server("a")]);
    let early = connect_from(client(2), other);
    let flood: Vec<_> = (0..200).map(|_| connect_from(client(1), flooded)).collect();
    goes_on(other);
    assert!(is_open(&early), "who holds little keeps it");
    let limits = holder.control().limits("connections");
    assert_eq!(limits["capacity"], CONNECTIONS);
    assert!(limits["open"].as_u64().is_some_and(|open| open <= CONNECTIONS as u64), "{limits}");
    assert!(limits["evicted"].as_u64() > Some(0) || limits["refused"].as_u64() > Some(0));
    drop(flood);
}

#[test]
fn nor_do_connections_that_are_busy_all_the_time() {
    let (holder, [flooded, other]) =
        two_ports("busy", "tcp", [silent_server(), reversing_server("a")]);
    let mut flood: Vec<_> = (0..60).map(|_| connect_from(client(1), flooded)).collect();
    for _ in 0..20 {
        for stream in &mut flood {
            let _ = stream.write(b"x");
        }
        assert_eq!(exchange(other, b"12"), b"a21");
    }
    let state = holder.control().bindings();
    let other = state.iter().find(|state| state["key"] == "other").expect("the binding");
    assert_eq!(other["connections"], 20, "{other}");
}

#[test]
fn a_crowd_on_one_port_leaves_the_other_ports_alone() {
    let (_holder, [flooded, other]) =
        two_ports("crowd", "tcp", [silent_server(), reversing_server("a")]);
    let crowd: Vec<_> = (1..100).map(|last| connect_from(client(last), flooded)).collect();
    goes_on(other);
    drop(crowd);
}

#[test]
fn while_there_are_places_the_idle_are_let_be() {
    let (holder, [flooded, other]) =
        two_ports("calm", "tcp", [silent_server(), reversing_server("a")]);
    let idle: Vec<_> = (0..CONNECTIONS - 1).map(|_| connect_from(client(1), flooded)).collect();
    wait_for("all are carried", || {
        holder.control().limits("connections")["open"] == json!(CONNECTIONS - 1)
    });
    goes_on(other);
    assert!(idle.iter().all(is_open));
    assert_eq!(holder.control().limits("connections")["evicted"], 0);
}

#[test]
fn one_clients_sessions_leave_the_other_ports_alone() {
    let (holder, [flooded, other]) =
        two_ports("sessions", "udp", [udp_server("f"), udp_server("u")]);
    let flood: Vec<UdpSocket> = (0..300)
        .map(|_| {
            let socket = UdpSocket::bind((client(1), 0)).expect("a socket");
            socket.connect(flooded).expect("connected");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            socket.send(b"1").expect("sent");
            socket
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(ask(&udp_client(other), b"2"), b"u2");
    }
    let limits = holder.control().limits("sessions");
    assert_eq!(limits["capacity"], SESSIONS);
    assert!(limits["open"].as_u64().is_some_and(|open| open <= SESSIONS as u64), "{limits}");
    drop(flood);
}

#[test]
fn ports_can_be_published_while_all_places_are_taken() {
    let (holder, [flooded, _]) = two_ports("publish", "tcp", [silent_server(), silent_server()]);
    let flood: Vec<_> = (0..200).map(|_| connect_from(client(1), flooded)).collect();
    let add: Vec<_> = (0..60)
        .map(|n| {
            let host = SocketAddr::from(([127, 0, 3, 1], 21_000 + n));
            binding(&format!("k{n}"), "tcp", host, flooded)
        })
        .collect();
    holder.control().ok("update", json!({"add": add}));
    assert_eq!(holder.control().bindings().len(), 62);
    drop(flood);
}
