//! Checksum offload that a sandbox lies about: packets go on as they were checked, or not at all.
//! Needs root and ethtool.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::packet::{Packet, UDP};
use common::topology::{SANDBOX_MAC, Topology, counters};
use common::{Loaded, Namespace, ifindex, run};
use nix::libc;
use nix::sched::{CloneFlags, setns};

/// struct virtio_net_hdr (linux/virtio_net.h), as PACKET_VNET_HDR wants it before each frame.
const NEEDS_CHECKSUM: u8 = 1;
const PACKET_VNET_HDR: libc::c_int = 15;
const ETHERNET: usize = 14;
/// Frames of one kind: enough for the flow to be learned where that is on.
const ROUND: usize = 128;
const PORT: u16 = 7000;

/// Runs `work` on a thread in a namespace; what it opens stays there.
fn in_namespace<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let file = File::open(format!("/run/netns/{}", namespace.name())).unwrap();
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// A packet socket on a namespace's eth0.
struct Wire {
    socket: OwnedFd,
}

impl Wire {
    fn open(namespace: &Namespace) -> Self {
        in_namespace(namespace, || {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: no memory is passed; the descriptor is fresh.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let raw = libc::socket(libc::AF_PACKET, kind, protocol.into());
                assert!(raw >= 0, "{}", std::io::Error::last_os_error());
                OwnedFd::from_raw_fd(raw)
            };
            // SAFETY: plain data, filled below.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = ifindex("eth0").cast_signed();
            // SAFETY: an address of this size.
            let bound = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                )
            };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            Self { socket }
        })
    }

    /// For [`Wire::send`]: each frame gets a header that says what is left to offload.
    fn with_offload(self) -> Self {
        let on: libc::c_int = 1;
        // SAFETY: an option of this size.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        self
    }

    /// Sends a frame whose checksum is to be summed up from `start` on and written `offset` after.
    fn send(&self, frame: &[u8], start: usize, offset: usize) {
        let mut bytes = vec![NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
        bytes.extend(u16::try_from(start).unwrap().to_ne_bytes());
        bytes.extend(u16::try_from(offset).unwrap().to_ne_bytes());
        bytes.extend(frame);
        let sent = nix::unistd::write(&self.socket, &bytes).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// What arrives until nothing has for a while.
    fn receive(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(300) {
            let mut buffer = vec![0; 2048];
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    frames.push(buffer);
                    quiet = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        frames
    }
}

struct Bench {
    topology: Topology,
    loaded: Loaded,
    sandbox: Wire,
    outside: Wire,
    _sinks: [UdpSocket; 2],
}

impl Bench {
    fn new(fast: bool) -> Self {
        let topology = Topology::new(0);
        // The device that packets leave by sums up in software, behind all programs and rules.
        run("ethtool -K up0 tx off");
        let loaded = Loaded::new();
        Topology::attach(&loaded.fast_path);
        let pins = &loaded.options.pin_directory;
        natbridge_datapath::fastpath::set_fast_path_enabled(pins, fast).unwrap();
        let sinks = in_namespace(&topology.client, || {
            ["0.0.0.0", "::"].map(|any| match any {
                "::" => UdpSocket::bind(("fd00:9::2", PORT)).unwrap(),
                _ => UdpSocket::bind((any, PORT)).unwrap(),
            })
        });
        // Neighbours are found before frames are counted.
        topology.web.run("ping -c1 -W5 10.9.0.2; ping -c1 -W5 fd00:9::2");
        let sandbox = Wire::open(&topology.web).with_offload();
        let outside = Wire::open(&topology.client);
        Self { topology, loaded, sandbox, outside, _sinks: sinks }
    }

    fn packet(&self, source: &str, destination: &str) -> Packet {
        let bridge = run_line("ip -o link show br0");
        let mac = bridge.split("link/ether ").nth(1).unwrap();
        let mut bytes = [0; 6];
        for (byte, text) in bytes.iter_mut().zip(mac.split([':', ' '])) {
            *byte = u8::from_str_radix(text, 16).unwrap();
        }
        Packet {
            source_mac: SANDBOX_MAC,
            destination_mac: bytes,
            destination_port: PORT,
            payload: vec![0x5a; 64],
            ..Packet::new(UDP, source, destination)
        }
    }

    fn false_offloads(&self) -> u64 {
        let drops = counters(&self.loaded.fast_path, "hv0").drops;
        let drop = drops.into_iter().find(|drop| drop.reason == "false_checksum_offload");
        drop.map_or(0, |drop| drop.count)
    }
}

fn run_line(line: &str) -> String {
    let output = std::process::Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}");
    String::from_utf8(output.stdout).unwrap()
}

/// Source, destination and their ports, of a UDP frame.
fn tuple_of(frame: &[u8]) -> Option<(IpAddr, IpAddr, u16, u16)> {
    let port = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == UDP => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(*frame.get(at..)?.first_chunk::<4>()?))
            };
            Some((address(26)?, address(30)?, port(34)?, port(36)?))
        }
        [0x86, 0xdd] if *frame.get(20)? == UDP => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(*frame.get(at..)?.first_chunk::<16>()?))
            };
            Some((address(22)?, address(38)?, port(54)?, port(56)?))
        }
        _ => None,
    }
}

fn packets_go_on_as_they_were_checked(fast: bool) {
    let bench = Bench::new(fast);
    for (source, destination, host, header) in
        [("172.32.0.10", "10.9.0.2", "10.9.0.1", 20), ("fd00:32::10", "fd00:9::2", "fd00:9::1", 40)]
    {
        let packet = bench.packet(source, destination);
        let frame = packet.bytes();
        let transport = ETHERNET + header;
        let expected: (IpAddr, IpAddr, u16, u16) =
            (host.parse().unwrap(), destination.parse().unwrap(), packet.source_port, PORT);
        // The pseudo header's sum stands in the field, to be completed.
        let mut offloaded = frame.clone();
        offloaded[transport + 6..transport + 8].copy_from_slice(&pseudo_sum(&packet));
        let before = counters(&bench.loaded.fast_path, "hv0");
        for _ in 0..ROUND {
            bench.sandbox.send(&offloaded, transport, 6);
        }
        let arrived: Vec<_> = bench.outside.receive().iter().filter_map(|f| tuple_of(f)).collect();
        assert_eq!(arrived, vec![expected; ROUND], "an honest offload");
        let after = counters(&bench.loaded.fast_path, "hv0");
        assert_eq!(after.fast_packets > before.fast_packets, fast, "{after:?}");

        for (lie, start, offset) in [
            ("source address", transport - header / 2 - 2, 0),
            ("destination address", transport - 2, 0),
            ("source port", transport, 0),
            ("destination port", transport, 2),
            ("its length", transport, 4),
            ("the checksum, from within the header", transport - 2, 8),
            ("the checksum, from behind the ports", transport + 4, 2),
            ("payload", transport + 8, 6),
        ] {
            let drops = bench.false_offloads();
            for _ in 0..ROUND {
                bench.sandbox.send(&frame, start, offset);
            }
            let arrived: Vec<_> =
                bench.outside.receive().iter().filter_map(|f| tuple_of(f)).collect();
            assert_eq!(arrived, Vec::new(), "{source}: over the {lie}");
            assert_eq!(bench.false_offloads() - drops, ROUND as u64, "{source}: over the {lie}");
        }
    }
    drop(bench.topology);
}

/// The folded sum of addresses, length and protocol: what CHECKSUM_PARTIAL begins with.
fn pseudo_sum(packet: &Packet) -> [u8; 2] {
    let mut bytes = Vec::new();
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend(u16::try_from(8 + packet.payload.len()).unwrap().to_be_bytes());
    bytes.extend([0, packet.protocol]);
    (!common::packet::checksum(&bytes)).to_be_bytes()
}

#[test]
fn packets_of_the_fast_path_go_on_as_they_were_checked() {
    packets_go_on_as_they_were_checked(true);
}

#[test]
fn packets_of_the_kernel_path_go_on_as_they_were_checked() {
    packets_go_on_as_they_were_checked(false);
}

#[test]
fn a_tunnel_in_a_sandbox_may_leave_its_inner_checksums_to_be_offloaded() {
    let bench = Bench::new(true);
    // The kernel's own NAT spoils the outer checksum of zero of such packets (udp_manip_pkt()).
    run("nft delete table inet nat");
    let inner = Packet::new(UDP, "10.77.0.1", "10.77.0.2");
    let tunnel = |namespace: &Namespace, own: &str, underlay: &str, remote: &str, mac: &str| {
        let outer = if underlay.contains(':') { "udp6zerocsumrx udp6zerocsumtx" } else { "" };
        namespace.run(&format!(
            "ip link add vx0 address {mac} type vxlan id 7 local {underlay} remote {remote} \
                dstport 4789 nolearning {outer}
             ip addr add {own}/24 dev vx0
             ip link set vx0 up"
        ));
    };
    for (near, far) in [("172.32.0.10", "10.9.0.2"), ("fd00:32::10", "fd00:9::2")] {
        tunnel(&bench.topology.web, "10.77.0.1", near, far, "02:00:00:00:77:01");
        tunnel(&bench.topology.client, "10.77.0.2", far, near, "02:00:00:00:77:02");
        bench
            .topology
            .web
            .run("ip neigh replace 10.77.0.2 lladdr 02:00:00:00:77:02 dev vx0 nud permanent");
        let receiver = in_namespace(&bench.topology.client, || {
            let socket = UdpSocket::bind((inner.destination, PORT + 1)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        });
        let sender =
            in_namespace(&bench.topology.web, || UdpSocket::bind((inner.source, PORT)).unwrap());
        for round in 0..20u8 {
            sender.send_to(&[round; 100], (inner.destination, PORT + 1)).unwrap();
            let mut buffer = [0; 200];
            let got = receiver.recv(&mut buffer);
            assert!(got.is_ok(), "{near}: {got:?}, {} dropped", bench.false_offloads());
            assert_eq!(got.unwrap(), 100, "{near}");
            assert_eq!(buffer[0], round);
        }
        assert_eq!(bench.false_offloads(), 0);
        for namespace in [&bench.topology.web, &bench.topology.client] {
            namespace.run("ip link del vx0");
        }
    }
}
