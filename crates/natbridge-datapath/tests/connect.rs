//! The connect hooks on real sockets. Needs root and a cgroup2 mount.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use common::topology::Topology;
use common::{Loaded, Namespace};
use natbridge_datapath::fastpath::{PortEntry, TransportProtocol, kernel_features};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, connect, getpeername, setsockopt, socket,
    sockopt,
};

const TARGET: &str = "172.32.0.10";
const TARGET6: &str = "fd00:32::10";

fn entry(protocol: TransportProtocol, host: &str, port: u16, target: &str) -> PortEntry {
    PortEntry {
        protocol,
        host_address: host.parse().unwrap(),
        host_port: port,
        target_address: target.parse().unwrap(),
        target_port: 80,
    }
}

/// Ports 8080 (IPv4 target behind both wildcards) and 8081 (IPv6 target), and the host's addresses.
fn publish(loaded: &Loaded) {
    let mut ports = Vec::new();
    for protocol in [TransportProtocol::Tcp, TransportProtocol::Udp] {
        ports.push(entry(protocol, "0.0.0.0", 8080, TARGET));
        ports.push(entry(protocol, "::", 8080, TARGET));
        ports.push(entry(protocol, "::", 8081, TARGET6));
        ports.push(entry(protocol, "127.0.0.1", 8082, TARGET));
    }
    let fast_path = &loaded.fast_path;
    fast_path.set_ports(&ports).unwrap();
    let local = ["10.9.0.1", "172.32.0.1", "fd00:9::1", "fd00:32::1"];
    let local: Vec<IpAddr> = local.iter().map(|address| address.parse().unwrap()).collect();
    fast_path.set_local_addresses(&local).unwrap();
    fast_path.set_connect_hook(true);
}

/// In the sandbox: TCP answers with the client's address, UDP echoes.
fn serve(web: &Namespace) {
    for address in [TARGET, TARGET6] {
        let address: IpAddr = address.parse().unwrap();
        let (tcp, udp) = in_namespace(web, move || {
            (TcpListener::bind((address, 80)).unwrap(), UdpSocket::bind((address, 80)).unwrap())
        });
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().unwrap().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], from);
            }
        });
    }
}

fn in_namespace<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let task = scope.spawn(|| {
            namespace.enter();
            work()
        });
        task.join().unwrap()
    })
}

fn set_up() -> (Topology, Loaded) {
    let topology = Topology::new(0);
    let cgroup_path = kernel_features().unwrap().cgroup2;
    assert!(!cgroup_path.is_empty(), "no cgroup2 mount");
    let loaded = Loaded::with(|options| options.cgroup_path = cgroup_path);
    publish(&loaded);
    serve(&topology.web);
    (topology, loaded)
}

/// Connects, reads the answer to its end, and answers the peer the socket believes in.
fn ask(to: &str) -> std::io::Result<(SocketAddr, String)> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    let peer = stream.peer_addr()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((peer, answer))
}

fn connects(loaded: &Loaded) -> u64 {
    loaded.fast_path.port_counters().unwrap().iter().map(|port| port.connects).sum()
}

fn calls(loaded: &Loaded, reason: &str) -> u64 {
    let counters = loaded.fast_path.counters().unwrap();
    counters.connect_hook.iter().find(|count| count.reason == reason).unwrap().count
}

#[test]
fn tcp_reaches_the_target_by_every_local_address_and_keeps_its_peer_name() {
    let (_topology, loaded) = set_up();
    let table = [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.1.2.3:8080", "127.1.2.3:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("10.9.0.1:8080", "10.9.0.1:8080"),
        ("172.32.0.1:8080", "172.32.0.1:8080"),
        ("127.0.0.1:8082", "127.0.0.1:8082"),
        ("[::1]:8080", "[::1]:8080"),
        ("[::]:8080", "[::1]:8080"),
        ("[fd00:9::1]:8080", "[fd00:9::1]:8080"),
        ("[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:8080"),
        ("[::1]:8081", "[::1]:8081"),
        ("[fd00:32::1]:8081", "[fd00:32::1]:8081"),
    ];
    for (index, (to, name)) in table.into_iter().enumerate() {
        let (peer, answer) = ask(to).unwrap_or_else(|cause| panic!("{to}: {cause}"));
        assert_eq!(peer.to_string(), name, "peer of {to}");
        let from: SocketAddr = answer.parse().unwrap();
        assert!(matches!(from.ip().to_string().as_str(), "172.32.0.1" | "fd00:32::1"), "{answer}");
        assert_eq!(connects(&loaded), index as u64 + 1, "{to} was not served by the hook");
    }
}

#[test]
fn what_the_hook_cannot_serve_is_left_alone() {
    let (topology, loaded) = set_up();
    let refused = |to: &str| ask(to).unwrap_err();
    refused("127.0.0.1:8083");
    refused("10.9.0.1:8082");
    assert_eq!(connects(&loaded), 0);
    // Another namespace's sockets are none of ours.
    in_namespace(&topology.web, || ask("127.0.0.1:8080").unwrap_err());
    assert_eq!(connects(&loaded), 0);
    assert!(calls(&loaded, "other_namespace") >= 1);
    loaded.fast_path.set_connect_hook(false);
    refused("127.0.0.1:8080");
    assert_eq!(connects(&loaded), 0);
    loaded.fast_path.set_connect_hook(true);
    loaded.fast_path.set_ports(&[]).unwrap();
    refused("127.0.0.1:8080");
}

#[test]
fn sockets_bound_to_loopback_or_to_ipv6_only_are_left_alone() {
    let (_topology, loaded) = set_up();
    // Each of these would reach the target if the hook were not to look at the socket.
    let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
    bound.connect("127.0.0.1:8080").unwrap();
    assert_eq!(calls(&loaded, "bound"), 1);
    let bound = UdpSocket::bind("[::1]:0").unwrap();
    bound.connect("[::1]:8081").unwrap();
    assert_eq!(calls(&loaded, "bound"), 2);
    for (only, reason) in [(true, "v6only"), (false, "served")] {
        let before = calls(&loaded, reason);
        let socket =
            socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), None).unwrap();
        setsockopt(&socket, sockopt::Ipv6V6Only, &only).unwrap();
        let to = SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 8080, 0, 0));
        use std::os::fd::AsRawFd;
        connect(socket.as_raw_fd(), &to).unwrap();
        assert_eq!(calls(&loaded, reason), before + 1);
        let peer: SockaddrIn6 = getpeername(socket.as_raw_fd()).unwrap();
        assert_eq!((peer.ip(), peer.port()), (Ipv6Addr::LOCALHOST, 8080));
    }
}

#[test]
fn answers_to_udp_come_from_the_address_that_was_asked() {
    let (_topology, loaded) = set_up();
    let mut buffer = [0; 64];
    for (bind, to, name) in [
        ("0.0.0.0:0", "127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:0", "0.0.0.0:8080", "127.0.0.1:8080"),
        ("0.0.0.0:0", "10.9.0.1:8080", "10.9.0.1:8080"),
        ("[::]:0", "[::1]:8081", "[::1]:8081"),
        ("[::]:0", "[::ffff:127.0.0.1]:8080", "[::ffff:127.0.0.1]:8080"),
    ] {
        for connected in [false, true] {
            let before = connects(&loaded);
            let socket = UdpSocket::bind(bind).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            if connected {
                socket.connect(to).unwrap();
                socket.send(b"ask").unwrap();
            } else {
                socket.send_to(b"ask", to).unwrap();
            }
            let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|cause| {
                panic!("{to} connected {connected}: {cause}");
            });
            assert_eq!((&buffer[..length], from.to_string().as_str()), (&b"ask"[..], name));
            assert_eq!(connects(&loaded), before + 1);
        }
    }
}

#[test]
fn one_socket_tells_the_answers_of_two_ports_apart() {
    let (_topology, loaded) = set_up();
    let mut ports = vec![entry(TransportProtocol::Udp, "0.0.0.0", 8080, TARGET)];
    ports.push(entry(TransportProtocol::Udp, "127.0.0.1", 9000, "172.32.0.1"));
    loaded.fast_path.set_ports(&ports).unwrap();
    let own = UdpSocket::bind("172.32.0.1:80").unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = own.recv_from(&mut buffer) {
            let _ = own.send_to(&buffer[..length], from);
        }
    });
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.send_to(b"one", "127.0.0.1:8080").unwrap();
    socket.send_to(b"two", "127.0.0.1:9000").unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        answers.push((String::from_utf8_lossy(&buffer[..length]).into_owned(), from.to_string()));
    }
    answers.sort();
    let expected = [("one", "127.0.0.1:8080"), ("two", "127.0.0.1:9000")];
    assert_eq!(answers, expected.map(|(data, from)| (data.to_owned(), from.to_owned())));
}
