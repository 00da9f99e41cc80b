//! The connect hooks on real sockets. Needs root and a cgroup2 mount.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::topology::Topology;
use common::{Loaded, Namespace};
use natbridge_datapath::fastpath::{
    ObjectId, PortEntry, Settled, Standing, TransportProtocol, kernel_features,
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn6,
    connect, getpeername, recvmsg, sendmsg, setsockopt, socket, sockopt,
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
        port_id: ObjectId(u64::from(port)),
        endpoint_id: ObjectId(1),
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

/// Published ports that both lead to the same container's port; answers are the payload.
fn publish_twice(loaded: &Loaded) {
    let udp = TransportProtocol::Udp;
    let mut ports = vec![entry(udp, "0.0.0.0", 9000, TARGET), entry(udp, "0.0.0.0", 9001, TARGET)];
    ports.push(entry(udp, "::", 9002, TARGET6));
    ports.push(entry(udp, "::", 9003, TARGET6));
    loaded.fast_path.set_ports(&ports).unwrap();
}

#[test]
fn one_socket_is_not_served_where_two_questions_have_one_target() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    for (bind, first, others) in [
        ("0.0.0.0:0", "127.0.0.1:9000", ["127.0.0.1:9001", "10.9.0.1:9000"]),
        ("[::]:0", "[::1]:9002", ["[::1]:9003", "[fd00:9::1]:9002"]),
        (
            "[::]:0",
            "[::ffff:127.0.0.1]:9000",
            ["[::ffff:127.0.0.1]:9001", "[::ffff:10.9.0.1]:9000"],
        ),
    ] {
        let socket = UdpSocket::bind(bind).unwrap();
        let asks = |to: &str, reason: &str| {
            let before = calls(&loaded, reason);
            socket.send_to(b"ask", to).unwrap();
            assert_eq!(calls(&loaded, reason), before + 1, "{to} is {reason}");
        };
        asks(first, "served");
        for other in others {
            asks(other, "ambiguous");
        }
        asks(first, "served");
    }
}

#[test]
fn a_port_that_leads_elsewhere_by_now_makes_nothing_ambiguous() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let served = |to: &str| {
        let before = connects(&loaded);
        socket.send_to(b"ask", to).unwrap();
        connects(&loaded) == before + 1
    };
    assert!(served("127.0.0.1:9000"));
    assert!(!served("127.0.0.1:9001"));
    let udp = TransportProtocol::Udp;
    let ports = [entry(udp, "0.0.0.0", 9000, "172.32.0.11"), entry(udp, "0.0.0.0", 9001, TARGET)];
    loaded.fast_path.set_ports(&ports).unwrap();
    assert!(served("127.0.0.1:9001"));
    assert!(served("127.0.0.1:9000"));
    // And back: it would go where 9001 went.
    let ports = [entry(udp, "0.0.0.0", 9000, TARGET), entry(udp, "0.0.0.0", 9001, TARGET)];
    loaded.fast_path.set_ports(&ports).unwrap();
    assert!(!served("127.0.0.1:9000"));
}

fn heard(socket: &UdpSocket) -> String {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    format!("{} from {from}", String::from_utf8_lossy(&buffer[..length]))
}

#[test]
fn asking_an_endpoint_itself_is_told_from_asking_its_port() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(b"port", "127.0.0.1:9000").unwrap();
    assert_eq!(heard(&socket), "port from 127.0.0.1:9000");
    socket.send_to(b"own", "172.32.0.10:80").unwrap();
    assert_eq!(heard(&socket), "own from 172.32.0.10:80");
    let before = calls(&loaded, "ambiguous");
    socket.send_to(b"port", "127.0.0.1:9000").unwrap();
    assert_eq!(calls(&loaded, "ambiguous"), before + 1);
    // A socket that has asked in more ways than can be noted is the forwarder's.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for port in 1000..1009 {
        socket.send_to(b"own", ("172.32.0.10", port)).unwrap();
    }
    socket.send_to(b"port", "127.0.0.1:9000").unwrap();
    assert_eq!(calls(&loaded, "ambiguous"), before + 2);
}

#[test]
fn an_answer_is_not_lost_however_many_sockets_ask_meanwhile() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(b"ask", "127.0.0.1:9000").unwrap();
    for _ in 0..12_000 {
        let other = UdpSocket::bind("0.0.0.0:0").unwrap();
        other.send_to(b"ask", "127.0.0.1:9001").unwrap();
    }
    assert_eq!(heard(&socket), "ask from 127.0.0.1:9000");
}

#[test]
fn an_answer_from_where_a_port_led_once_is_a_strangers() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(b"ask", "127.0.0.1:9000").unwrap();
    thread::sleep(Duration::from_millis(100));
    loaded.fast_path.set_ports(&[]).unwrap();
    assert_eq!(heard(&socket), "ask from 172.32.0.10:80");
}

#[test]
fn a_connected_socket_takes_answers_for_those_of_its_peer_alone() {
    let (_topology, loaded) = set_up();
    publish_twice(&loaded);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(b"ask", "127.0.0.1:9001").unwrap();
    assert_eq!(heard(&socket), "ask from 127.0.0.1:9001");
    socket.connect("127.0.0.1:9000").unwrap();
    socket.send(b"ask").unwrap();
    assert_eq!(heard(&socket), "ask from 127.0.0.1:9000");
    let before = calls(&loaded, "connected");
    socket.send_to(b"ask", "127.0.0.1:9001").unwrap();
    assert_eq!(calls(&loaded, "connected"), before + 1);
    socket.send_to(b"ask", "127.0.0.1:9000").unwrap();
    assert_eq!(heard(&socket), "ask from 127.0.0.1:9000");
    // Connected to nobody again, which no hook is told of, and to the endpoint itself.
    disconnect(&socket);
    socket.send_to(b"ask", "172.32.0.10:80").unwrap();
    assert_eq!(heard(&socket), "ask from 172.32.0.10:80");
}

fn disconnect(socket: &UdpSocket) {
    use nix::libc;
    // SAFETY: all zero is a valid sockaddr.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: a live socket, and an address of that length.
    let failed = unsafe {
        libc::connect(socket.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as u32)
    };
    assert_eq!(failed, 0);
}

fn standing(ports: &[u16], endpoints: &[u64]) -> Standing {
    Standing {
        ports: ports.iter().map(|port| ObjectId(u64::from(*port))).collect(),
        endpoints: endpoints.iter().copied().map(ObjectId).collect(),
    }
}

fn ended(count: u32) -> Settled {
    Settled { followed: 0, ended: count }
}

/// Does not end by itself: the target reads nothing and the client asks nothing.
fn open(to: &str) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(2)).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

fn error_of(stream: &TcpStream) -> Option<std::io::ErrorKind> {
    stream.take_error().unwrap().map(|error| error.kind())
}

#[test]
fn connections_end_with_their_port_or_endpoint_and_no_others_do() {
    let (topology, loaded) = set_up();
    // Instead of the servers, which close at once.
    let quiet = in_namespace(&topology.web, || {
        [TARGET, TARGET6].map(|address| {
            let address: IpAddr = address.parse().unwrap();
            TcpListener::bind((address, 81)).unwrap()
        })
    });
    let mut ports = Vec::new();
    for (host, number, target) in [
        ("0.0.0.0", 7000, TARGET),
        ("::", 7000, TARGET),
        ("::", 7001, TARGET6),
        ("0.0.0.0", 7002, TARGET),
    ] {
        let tcp = TransportProtocol::Tcp;
        ports.push(PortEntry { target_port: 81, ..entry(tcp, host, number, target) });
    }
    let fast_path = &loaded.fast_path;
    fast_path.set_ports(&ports).unwrap();
    let direct = open("172.32.0.10:81");
    let hooked: Vec<_> =
        ["127.0.0.1:7000", "[::1]:7000", "[::ffff:127.0.0.1]:7000", "[::1]:7001", "127.0.0.1:7002"]
            .map(open)
            .into_iter()
            .collect();
    let errors = || hooked.iter().map(error_of).collect::<Vec<_>>();
    let aborted = Some(std::io::ErrorKind::ConnectionAborted);
    // All ports stand, under whatever number: connections finish.
    fast_path.set_ports(&[]).unwrap();
    let all = standing(&[7000, 7001, 7002], &[1]);
    assert_eq!(fast_path.settle_sockets(&all).unwrap(), ended(0));
    assert_eq!(errors(), [None; 5]);
    assert_eq!(fast_path.settle_sockets(&standing(&[7002], &[1, 2])).unwrap(), ended(4));
    assert_eq!(errors(), [aborted, aborted, aborted, aborted, None]);
    assert_eq!(fast_path.settle_sockets(&standing(&[7002], &[2])).unwrap(), ended(1));
    assert_eq!(errors(), [None, None, None, None, aborted]);
    assert_eq!(fast_path.settle_sockets(&standing(&[], &[])).unwrap(), ended(0));
    assert_eq!(error_of(&direct), None);
    // Those at the other end are told.
    let mut buffer = [0; 1];
    let (mut peer, _) = quiet[1].accept().unwrap();
    let told = peer.read(&mut buffer).unwrap_err().kind();
    assert_eq!(told, std::io::ErrorKind::ConnectionReset);
}

#[test]
fn connected_udp_sockets_follow_their_port() {
    let (_topology, loaded) = set_up();
    let fast_path = &loaded.fast_path;
    let nothing = standing(&[], &[]);
    let follow = |count: u32, what: &str| {
        let settled = Settled { followed: count, ended: 0 };
        assert_eq!(fast_path.settle_sockets(&nothing).unwrap(), settled, "{what}");
    };
    for (bind, to, here, other) in [
        ("0.0.0.0:0", "127.0.0.1:8080", "0.0.0.0", "172.32.0.11"),
        ("[::]:0", "[::1]:8080", "::", "172.32.0.11"),
        ("[::]:0", "[::1]:8081", "::", "fd00:32::11"),
        ("[::]:0", "[::ffff:10.9.0.1]:8080", "0.0.0.0", "172.32.0.11"),
    ] {
        let port = to.rsplit(':').next().unwrap().parse().unwrap();
        let lead = |target| {
            fast_path.set_ports(&[entry(TransportProtocol::Udp, here, port, target)]).unwrap();
        };
        let real = if other.contains(':') { TARGET6 } else { TARGET };
        lead(other);
        let socket = UdpSocket::bind(bind).unwrap();
        socket.connect(to).unwrap();
        let direct = UdpSocket::bind("0.0.0.0:0").unwrap();
        direct.connect("172.32.0.11:80").unwrap();
        follow(0, to);
        let name = socket.local_addr().unwrap();
        lead(real);
        follow(1, to);
        follow(0, to);
        socket.send(b"ask").unwrap();
        assert_eq!(heard(&socket), format!("ask from {to}"));
        assert_eq!(socket.local_addr().unwrap(), name, "on the same network nothing else changes");
        assert_eq!(direct.peer_addr().unwrap().to_string(), "172.32.0.11:80");
        // Without a port the host itself is asked, as it would have been all the time.
        fast_path.set_ports(&[]).unwrap();
        follow(1, to);
        follow(0, to);
        assert_eq!(socket.peer_addr().unwrap().to_string(), to);
        let own = UdpSocket::bind(to).unwrap();
        socket.send(b"ask").unwrap();
        assert!(heard(&own).starts_with("ask from"));
    }
}

#[test]
fn connected_udp_sockets_leave_the_hook_when_it_is_off() {
    let (_topology, loaded) = set_up();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("127.0.0.1:8080").unwrap();
    loaded.fast_path.set_connect_hook(false);
    let settled = loaded.fast_path.settle_sockets(&standing(&[], &[])).unwrap();
    assert_eq!(settled, Settled { followed: 1, ended: 0 });
    let own = UdpSocket::bind("127.0.0.1:8080").unwrap();
    socket.send(b"ask").unwrap();
    assert!(heard(&own).starts_with("ask from 127.0.0.1:"));
}

#[test]
fn a_connected_udp_socket_that_nobody_holds_is_ended() {
    let (_topology, loaded) = set_up();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("127.0.0.1:8080").unwrap();
    let (sender, receiver) = UnixStream::pair().unwrap();
    pass(&sender, socket);
    loaded.fast_path.set_ports(&[]).unwrap();
    assert_eq!(loaded.fast_path.settle_sockets(&standing(&[], &[])).unwrap(), ended(1));
    let socket = take(&receiver);
    let error = socket.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
}

/// Sends a socket away: until it is received, no process has it.
fn pass(through: &UnixStream, socket: UdpSocket) {
    let files = [socket.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&files)];
    let nobody: Option<&nix::sys::socket::UnixAddr> = None;
    let byte = [std::io::IoSlice::new(b"x")];
    sendmsg(through.as_raw_fd(), &byte, &message, MsgFlags::empty(), nobody).unwrap();
}

fn take(through: &UnixStream) -> UdpSocket {
    let mut byte = [0; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let received = recvmsg::<nix::sys::socket::UnixAddr>(
        through.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    let file = received.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    // SAFETY: just received, nobody else's.
    unsafe { UdpSocket::from_raw_fd(file.unwrap()) }
}
