//! Checksum offload that a sandbox lies about: packets go on as they were checked, or not at all.
//! Needs root and ethtool.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use common::packet::{Packet, UDP};
use common::topology::{SANDBOX_MAC, Topology, counters};
use common::wire::{Wire, answer, in_namespace, mac_of, tuple_of};
use common::{Loaded, Namespace, run};

const ETHERNET: usize = 14;
/// Frames of one kind: enough for the flow to be learned where that is on.
const ROUND: usize = 128;
const PORT: u16 = 7000;

struct Bench {
    topology: Topology,
    loaded: Loaded,
    sandbox: Wire,
    outside: Wire,
    sinks: [UdpSocket; 2],
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
        Self { topology, loaded, sandbox, outside, sinks }
    }

    fn packet(source: &str, destination: &str) -> Packet {
        Packet {
            source_mac: SANDBOX_MAC,
            destination_mac: mac_of("br0"),
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

fn packets_go_on_as_they_were_checked(fast: bool) {
    let bench = Bench::new(fast);
    for (family, (source, destination, host, header)) in
        [("172.32.0.10", "10.9.0.2", "10.9.0.1", 20), ("fd00:32::10", "fd00:9::2", "fd00:9::1", 40)]
            .into_iter()
            .enumerate()
    {
        let packet = Bench::packet(source, destination);
        let frame = packet.bytes();
        let transport = ETHERNET + header;
        let expected: (IpAddr, IpAddr, u16, u16) =
            (host.parse().unwrap(), destination.parse().unwrap(), packet.source_port, PORT);
        // The pseudo header's sum stands in the field, to be completed.
        let mut offloaded = frame.clone();
        offloaded[transport + 6..transport + 8].copy_from_slice(&pseudo_sum(&packet));
        bench.sandbox.send(&offloaded, transport, 6);
        answer(&bench.sinks[family]);
        bench.outside.receive();
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
