//! What leaves is no larger than the kernel path would send it. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use common::packet::{Packet, UDP};
use common::topology::{SANDBOX_MAC, Topology, counters};
use common::wire::{Wire, answer, in_namespace, mac_of, tuple_of};
use common::{Loaded, run};
use nix::libc;

const PORT: u16 = 7000;
const ETHERNET: usize = 14;
const ROUTE_MTU: usize = 1300;

/// Limits of the way to the client, each with what takes it back.
const LIMITS: &[(&str, &str)] = &[
    (
        "ip route replace 10.9.0.0/24 dev up0 mtu 1300
      ip -6 route replace fd00:9::/64 metric 256 dev up0 mtu 1300",
        "ip route replace 10.9.0.0/24 dev up0
      ip -6 route replace fd00:9::/64 metric 256 dev up0",
    ),
    (
        "ip route replace 10.9.0.0/24 dev up0 mtu lock 1300
      ip -6 route replace fd00:9::/64 metric 256 dev up0 mtu lock 1300",
        "ip route replace 10.9.0.0/24 dev up0
      ip -6 route replace fd00:9::/64 metric 256 dev up0",
    ),
    (
        "ip route add 10.9.0.0/24 dev up0 mtu 1300 table 77
      ip -6 route add fd00:9::/64 dev up0 mtu 1300 table 77
      ip rule add from 172.32.0.10 lookup 77
      ip -6 rule add from fd00:32::10 lookup 77",
        "ip rule del lookup 77; ip -6 rule del lookup 77; ip route flush table 77
      ip -6 route flush table 77",
    ),
    (
        "ip route add 10.9.0.0/24 dev up0 mtu 1300 table 78
      ip -6 route add fd00:9::/64 dev up0 mtu 1300 table 78
      ip rule add fwmark 7 lookup 78
      ip -6 rule add fwmark 7 lookup 78
      nft add table inet marks
      nft add chain inet marks p '{ type filter hook prerouting priority mangle; }'
      nft add rule inet marks p iifname br0 meta mark set 7",
        "nft delete table inet marks; ip rule del lookup 78; ip -6 rule del lookup 78
      ip route flush table 78; ip -6 route flush table 78",
    ),
    (
        "ip route replace 10.9.0.0/24 dev up0 mtu 1300
      echo 1300 > /proc/sys/net/ipv6/conf/up0/mtu",
        "ip route replace 10.9.0.0/24 dev up0
      echo 1500 > /proc/sys/net/ipv6/conf/up0/mtu",
    ),
];

/// Whether the sender forbids fragments: IP_PMTUDISC_DONT and IP_PMTUDISC_PROBE (linux/in.h), which
/// does not heed what it is told.
const DISCOVERY: [libc::c_int; 2] = [0, 3];

fn set_discovery(socket: &UdpSocket, ipv6: bool, mode: libc::c_int) {
    let (level, option) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    // SAFETY: an option of this size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const mode).cast(),
            size_of_val(&mode) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn nothing_leaves_that_is_larger_than_the_route_allows(fast: bool) {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let pins = &loaded.options.pin_directory;
    natbridge_datapath::fastpath::set_fast_path_enabled(pins, fast).unwrap();
    let client = Wire::open(&topology.client);
    for (limit, unlimit) in LIMITS {
        run(limit);
        for (own, far) in [("172.32.0.10", "10.9.0.2"), ("fd00:32::10", "fd00:9::2")] {
            for mode in DISCOVERY {
                loaded.fast_path.bump_generation();
                let (sink, socket) = (
                    in_namespace(&topology.client, || UdpSocket::bind((far, PORT)).unwrap()),
                    in_namespace(&topology.web, || UdpSocket::bind((own, 0)).unwrap()),
                );
                set_discovery(&socket, own.contains(':'), mode);
                socket.connect((far, PORT)).unwrap();
                socket.send(&[1; 100]).unwrap();
                answer(&sink);
                socket.recv(&mut [0; 8]).unwrap();
                client.receive();
                let before = counters(&loaded.fast_path, "hv0");
                let mut sent = 200;
                for _ in 0..sent {
                    socket.send(&[1; 100]).unwrap();
                }
                for _ in 0..50 {
                    // Refused where the sender heeds what it is told.
                    let _ = socket.send(&[2; 1400]);
                    sent += usize::from(socket.send(&[1; 100]).is_ok());
                }
                let frames = client.receive();
                let largest = frames.iter().map(|frame| frame.len() - ETHERNET).max().unwrap();
                assert!(largest <= ROUTE_MTU, "{largest} bytes: {own}, discovery {mode}, {limit}");
                let small = frames.iter().filter(|frame| frame.len() < 200).count();
                assert!(small >= sent, "{small} of {sent} small ones arrived: {own}, {limit}");
                let after = counters(&loaded.fast_path, "hv0");
                let share = after.fast_packets - before.fast_packets;
                assert_eq!(share > 100, fast, "{share} were fast: {own}, {limit}");
            }
        }
        run(unlimit);
    }
}

/// A frame may be longer than the packet in it.
fn trailers_do_not_leave(fast: bool) {
    let topology = Topology::new(0);
    run("ip link set up0 mtu 1300");
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let pins = &loaded.options.pin_directory;
    natbridge_datapath::fastpath::set_fast_path_enabled(pins, fast).unwrap();
    topology.web.run("ping -c1 -W5 10.9.0.2; ping -c1 -W5 fd00:9::2");
    let (sandbox, client) = (Wire::open(&topology.web), Wire::open(&topology.client));
    for (own, far) in [("172.32.0.10", "10.9.0.2"), ("fd00:32::10", "fd00:9::2")] {
        let sink = in_namespace(&topology.client, || UdpSocket::bind((far, PORT)).unwrap());
        let packet = Packet {
            source_mac: SANDBOX_MAC,
            destination_mac: mac_of("br0"),
            destination_port: PORT,
            payload: vec![1; 100],
            ..Packet::new(UDP, own, far)
        };
        let frame = packet.bytes();
        let mut long = frame.clone();
        long.resize(1490, 0xee);
        sandbox.send_plain(&frame);
        answer(&sink);
        client.receive();
        let before = counters(&loaded.fast_path, "hv0");
        for _ in 0..200 {
            sandbox.send_plain(&long);
        }
        let sizes: Vec<usize> = client
            .receive()
            .iter()
            .filter(|frame| tuple_of(frame).is_some_and(|(_, _, _, port)| port == PORT))
            .map(Vec::len)
            .collect();
        assert_eq!(sizes, vec![frame.len(); 200], "{own}");
        let after = counters(&loaded.fast_path, "hv0");
        assert_eq!(after.fast_packets - before.fast_packets > 100, fast, "{own}: {after:?}");
    }
}

#[test]
fn the_fast_path_cuts_trailers_off() {
    trailers_do_not_leave(true);
}

#[test]
fn the_kernel_path_cuts_trailers_off() {
    trailers_do_not_leave(false);
}

#[test]
fn the_fast_path_heeds_the_mtu_of_the_packets_own_route() {
    nothing_leaves_that_is_larger_than_the_route_allows(true);
}

#[test]
fn so_does_the_kernel_path() {
    nothing_leaves_that_is_larger_than_the_route_allows(false);
}
