//! The packet programs by table: packet and map state in, action and packet out. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use common::packet::{Packet, TCP, UDP};
use common::{Loaded, Namespace, ifindex, run};
use libbpf_rs::{MapCore, MapFlags, ProgramInput};
use natbridge_datapath::fastpath::abi::{nb_flow, nb_flow_key, nb_path, nb_tcp_side, nb_tuple};
use natbridge_datapath::fastpath::{DeviceRole, DeviceSpec, Pins, Table};

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SANDBOX_MAC: [u8; 6] = [2, 0x42, 0, 0, 0, 9];
/// Where the endpoint's bridge would be, and its address.
const LINK: u32 = 77;
const BRIDGE_LINK_LOCAL: &str = "fe80::8";
const BRIDGE_MAC: [u8; 6] = [2, 0x42, 0, 0, 0, 8];

/// Devices `up0` (uplink) and `hv0` (endpoint), and loaded programs.
struct Bench {
    loaded: Loaded,
    flows: Table<nb_flow_key, nb_flow>,
    uplink: u32,
    endpoint: u32,
    _host: Namespace,
}

impl Bench {
    fn new() -> Self {
        let host = Namespace::new("table");
        host.enter();
        run("ip link add up0 type veth peer name up1; ip link add hv0 type veth peer name hv1");
        let loaded = Loaded::new();
        let (uplink, endpoint) = (ifindex("up0"), ifindex("hv0"));
        let flows =
            Table::open(&Pins::new(&loaded.options.pin_directory).unwrap(), "flows").unwrap();
        let bench = Self { loaded, flows, uplink, endpoint, _host: host };
        bench.set_devices(true);
        bench.set_presence(0xff);
        bench
    }

    /// Fills the counts of flows that are in the cache: planting does not raise them.
    fn set_presence(&self, byte: u8) {
        let pins = Pins::new(&self.loaded.options.pin_directory).unwrap();
        let map = pins.open_map("presence").unwrap();
        let value = vec![byte; map.value_size() as usize];
        map.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY).unwrap();
    }

    fn set_devices(&self, fast_path: bool) {
        for (ifindex, role) in
            [(self.uplink, DeviceRole::Uplink), (self.endpoint, DeviceRole::Endpoint)]
        {
            let endpoint = role == DeviceRole::Endpoint;
            let addresses: Vec<IpAddr> = if endpoint {
                vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()]
            } else {
                Vec::new()
            };
            let spec = DeviceSpec {
                ifindex,
                role,
                mtu: 1500,
                mac: if endpoint { OWN_MAC } else { [0; 6] },
                addresses,
                link: if endpoint { LINK } else { 0 },
                reserved: if endpoint {
                    vec![BRIDGE_LINK_LOCAL.parse().unwrap()]
                } else {
                    Vec::new()
                },
                spoof_check: endpoint,
                fast_path,
            };
            self.loaded.fast_path.set_device(&spec).unwrap();
        }
    }

    /// Runs a packet that arrives on a device through ingress.
    fn ingress(&self, ifindex: u32, packet: &[u8], gso_size: u32) -> (i32, Vec<u8>) {
        // struct __sk_buff of linux/bpf.h: ifindex, gso_segs and gso_size.
        let mut context = [0u8; 192];
        let segments = if gso_size == 0 { 0u32 } else { 2 };
        for (offset, value) in [(40, ifindex), (164, segments), (176, gso_size)] {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut out = vec![0; 4096];
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..ProgramInput::default()
        };
        let output = self.loaded.fast_path.programs().test_run("nb_ingress", input).unwrap();
        let length = output.data.unwrap().len();
        let action = output.return_value.cast_signed();
        out.truncate(length);
        (action, out)
    }

    fn event(&self, reason: &str) -> u64 {
        let counters = self.loaded.fast_path.counters().unwrap();
        match reason {
            "expired" => counters.expired,
            "invalidated" => counters.invalidated,
            _ => counters.passes.iter().find(|count| count.reason == reason).unwrap().count,
        }
    }

    fn drops(&self, reason: &str) -> u64 {
        let devices = self.loaded.fast_path.device_counters().unwrap();
        let device = devices.iter().find(|device| device.ifindex == self.endpoint).unwrap();
        device.drops.iter().find(|count| count.reason == reason).map_or(0, |count| count.count)
    }

    fn generation(&self) -> u32 {
        self.loaded.fast_path.counters().unwrap().generation
    }

    fn plant(&self, key: &nb_flow_key, flow: &nb_flow) {
        self.flows.set(key, flow).unwrap();
    }

    fn holds(&self, key: &nb_flow_key) -> bool {
        self.flows.get(key).unwrap().is_some()
    }
}

fn words(a: [u8; 6], b: [u8; 6]) -> [u16; 6] {
    let mut bytes = a.to_vec();
    bytes.extend(b);
    let mut words = [0; 6];
    for (word, pair) in words.iter_mut().zip(bytes.chunks_exact(2)) {
        *word = u16::from_ne_bytes([pair[0], pair[1]]);
    }
    words
}

/// Folds as the programs do: any value that is the same in one's complement will do.
fn difference(from: &[u32], to: &[u32]) -> u32 {
    let mut sum: u64 = 0;
    for (from, to) in from.iter().zip(to) {
        if from != to {
            sum += u64::from(!from) + u64::from(*to);
        }
    }
    while sum > u64::from(u32::MAX) {
        sum = (sum & 0xffff_ffff) + (sum >> 32);
    }
    u32::try_from(sum).unwrap()
}

fn addresses(tuple: &nb_tuple) -> Vec<u32> {
    [tuple.source.words, tuple.destination.words].concat()
}

fn ports(tuple: &nb_tuple) -> Vec<u32> {
    vec![tuple.source_port.into(), tuple.destination_port.into()]
}

fn key_of(packet: &Packet, ifindex: u32) -> nb_flow_key {
    nb_flow_key {
        ifindex,
        tuple: packet.tuple(),
        protocol: packet.protocol,
        family: packet.family(),
        padding: 0,
    }
}

/// The flow by which `packet` becomes `result` and goes to `output`.
fn flow_to(bench: &Bench, packet: &Packet, result: &Packet, output: u32) -> nb_flow {
    let (from, to) = (packet.tuple(), result.tuple());
    nb_flow {
        lease_end: u64::MAX / 2,
        lease: 250_000_000,
        generation: bench.generation(),
        learned: 1,
        path: nb_path {
            translated: to,
            arrival_macs: words(packet.destination_mac, packet.source_mac),
            departure_macs: words(result.destination_mac, result.source_mac),
            output_ifindex: output,
            output_endpoint: u32::from(output == bench.endpoint),
            mtu: 1500,
            address_difference: difference(&addresses(&from), &addresses(&to)),
            port_difference: difference(&ports(&from), &ports(&to)),
            ttl_decrement: u32::from(packet.ttl - result.ttl),
            ..nb_path::default()
        },
        ..nb_flow::default()
    }
}

/// A client's packet and what DNAT makes of it, for each family.
fn published(protocol: u8) -> [(Packet, Packet); 2] {
    [("10.1.2.3", "10.9.0.1", "172.32.0.10"), ("fd00:1::3", "fd00:9::1", "fd00:32::10")].map(
        |(client, host, target)| {
            let packet = Packet::new(protocol, client, host);
            let result = Packet {
                destination: target.parse().unwrap(),
                destination_port: 80,
                destination_mac: SANDBOX_MAC,
                source_mac: BRIDGE_MAC,
                ttl: 63,
                ..packet.clone()
            };
            (packet, result)
        },
    )
}

/// A sandbox's packet and what masquerade makes of it, for each family.
fn masqueraded(protocol: u8) -> [(Packet, Packet); 2] {
    [("10.9.0.2", "10.1.2.3", "192.0.2.7"), ("fd00:9::2", "fd00:1::3", "2001:db8::7")].map(
        |(own, server, host)| {
            let packet = Packet::new(protocol, own, server);
            let result = Packet {
                source: host.parse().unwrap(),
                source_port: 61234,
                destination_mac: [6, 5, 4, 3, 2, 1],
                source_mac: BRIDGE_MAC,
                ttl: 63,
                ..packet.clone()
            };
            (packet, result)
        },
    )
}

#[test]
fn a_cached_flow_is_rewritten_whole_and_redirected() {
    let bench = Bench::new();
    for protocol in [TCP, UDP] {
        for (packet, result) in published(protocol) {
            let flow = flow_to(&bench, &packet, &result, bench.endpoint);
            bench.plant(&key_of(&packet, bench.uplink), &flow);
            let (action, out) = bench.ingress(bench.uplink, &packet.bytes(), 0);
            assert_eq!((action, out), (REDIRECT, result.bytes()), "{packet:?}");
        }
        for (packet, result) in masqueraded(protocol) {
            let flow = flow_to(&bench, &packet, &result, bench.uplink);
            bench.plant(&key_of(&packet, bench.endpoint), &flow);
            let (action, out) = bench.ingress(bench.endpoint, &packet.bytes(), 0);
            assert_eq!((action, out), (REDIRECT, result.bytes()), "{packet:?}");
        }
    }
    let flows = bench.loaded.fast_path.list_flows().unwrap();
    assert_eq!(flows.len(), 8);
    assert!(flows.iter().all(|flow| flow.packets == 1 && flow.lease_seconds > 0.0));
    let devices = bench.loaded.fast_path.device_counters().unwrap();
    assert!(devices.iter().all(|device| device.fast_packets == 4 && device.kernel_packets == 0));
}

#[test]
fn checksums_survive_every_difference_of_addresses_and_ports() {
    let bench = Bench::new();
    let mut seed = 1u32;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed
    };
    for round in 0..400u32 {
        let protocol = if round % 2 == 0 { TCP } else { UDP };
        let (packet, mut result) = published(protocol)[(round / 2 % 2) as usize].clone();
        result.source_port = random().to_be_bytes()[0].into();
        result.destination_port = (random() >> 16) as u16;
        if packet.source.is_ipv4() {
            result.destination = IpAddr::from(random().to_be_bytes());
        } else {
            let mut octets = [0; 16];
            octets.fill_with(|| random().to_be_bytes()[0]);
            result.destination = IpAddr::from(octets);
        }
        let flow = flow_to(&bench, &packet, &result, bench.endpoint);
        bench.plant(&key_of(&packet, bench.uplink), &flow);
        let (action, out) = bench.ingress(bench.uplink, &packet.bytes(), 0);
        assert_eq!((action, out), (REDIRECT, result.bytes()), "{packet:?} {result:?}");
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero_and_none_becomes_zero() {
    let bench = Bench::new();
    let (mut packet, mut result) = published(UDP)[0].clone();
    packet.no_checksum = true;
    result.no_checksum = true;
    let flow = flow_to(&bench, &packet, &result, bench.endpoint);
    bench.plant(&key_of(&packet, bench.uplink), &flow);
    assert_eq!(bench.ingress(bench.uplink, &packet.bytes(), 0), (REDIRECT, result.bytes()));

    for (mut packet, mut result) in published(UDP) {
        // A payload for which the translated packet sums up to nothing.
        result.payload = vec![0, 0];
        let bytes = result.bytes();
        let at = bytes.len() - 4;
        result.payload = bytes[at..at + 2].to_vec();
        packet.payload.clone_from(&result.payload);
        let bytes = result.bytes();
        assert_eq!(bytes[bytes.len() - 4..bytes.len() - 2], [0xff, 0xff]);
        assert_eq!(bench.ingress(bench.uplink, &packet.bytes(), 0).0 == REDIRECT, {
            let flow = flow_to(&bench, &packet, &result, bench.endpoint);
            bench.plant(&key_of(&packet, bench.uplink), &flow);
            packet.source.is_ipv4()
        });
        assert_eq!(bench.ingress(bench.uplink, &packet.bytes(), 0), (REDIRECT, result.bytes()));
    }
}

/// What is done to a packet or its flow before it arrives, and what must come of it.
struct Case {
    name: &'static str,
    reason: &'static str,
    protocols: &'static [u8],
    families: &'static [u8],
    change: fn(&mut Arrival),
}

struct Arrival {
    packet: Packet,
    flow: nb_flow,
    gso_size: u32,
    mangle: fn(&mut Vec<u8>),
    other_device: bool,
}

const BOTH: &[u8] = &[TCP, UDP];
const FAMILIES: &[u8] = &[4, 6];

const PASSES: &[Case] = &[
    Case {
        name: "the lease is over",
        reason: "expired",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.flow.lease_end = 1,
    },
    Case {
        name: "another generation",
        reason: "invalidated",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.flow.generation += 1,
    },
    Case {
        name: "TTL 1",
        reason: "ttl",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.ttl = 1,
    },
    Case {
        name: "TTL 0",
        reason: "ttl",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.ttl = 0,
    },
    Case {
        name: "another source MAC",
        reason: "other_mac",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.source_mac[5] ^= 1,
    },
    Case {
        name: "another destination MAC",
        reason: "other_mac",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.destination_mac[5] ^= 1,
    },
    Case {
        name: "another device",
        reason: "unknown_flow",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.other_device = true,
    },
    Case {
        name: "another port",
        reason: "unknown_flow",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.destination_port = 8081,
    },
    Case {
        name: "larger than the way's MTU",
        reason: "too_big",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.packet.payload = vec![7; 1481],
    },
    Case {
        name: "GSO segments larger than the way's MTU",
        reason: "too_big",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| {
            arrival.packet.payload = vec![7; 2900];
            arrival.gso_size = 1461;
        },
    },
    Case {
        name: "SYN",
        reason: "tcp_flags",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| arrival.packet.flags = 0x02,
    },
    Case {
        name: "SYN and ACK",
        reason: "tcp_flags",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| arrival.packet.flags = 0x12,
    },
    Case {
        name: "no flag at all",
        reason: "tcp_flags",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| arrival.packet.flags = 0,
    },
    Case {
        name: "urgent data",
        reason: "tcp_flags",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| arrival.packet.flags = 0x30,
    },
    Case {
        name: "a first fragment",
        reason: "fragment",
        protocols: BOTH,
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[20] |= 0x20,
    },
    Case {
        name: "a later fragment",
        reason: "fragment",
        protocols: BOTH,
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[21] = 1,
    },
    Case {
        name: "IP options",
        reason: "ip_options",
        protocols: BOTH,
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[14] = 0x46,
    },
    Case {
        name: "a header that says less than it is",
        reason: "ip_options",
        protocols: BOTH,
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[14] = 0x44,
    },
    Case {
        name: "version 5",
        reason: "ip_options",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| arrival.mangle = |bytes| bytes[14] = bytes[14] & 0x0f | 0x50,
    },
    Case {
        name: "an extension header",
        reason: "protocol",
        protocols: BOTH,
        families: &[6],
        change: |arrival| arrival.mangle = |bytes| bytes[20] = 0,
    },
    Case {
        name: "a fragment header",
        reason: "protocol",
        protocols: BOTH,
        families: &[6],
        change: |arrival| arrival.mangle = |bytes| bytes[20] = 44,
    },
    Case {
        name: "ICMP",
        reason: "protocol",
        protocols: &[UDP],
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[23] = 1,
    },
    Case {
        name: "longer by its header than it is",
        reason: "truncated",
        protocols: BOTH,
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[17] = bytes[17].wrapping_add(1),
    },
    Case {
        name: "longer by its header than it is",
        reason: "truncated",
        protocols: BOTH,
        families: &[6],
        change: |arrival| arrival.mangle = |bytes| bytes[19] = bytes[19].wrapping_add(1),
    },
    Case {
        name: "too short for its TCP header",
        reason: "truncated",
        protocols: &[TCP],
        families: FAMILIES,
        change: |arrival| arrival.mangle = |bytes| bytes.truncate(bytes.len() - 30),
    },
    Case {
        name: "a TCP header longer than the packet",
        reason: "truncated",
        protocols: &[TCP],
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[46] = 0xf0,
    },
    Case {
        name: "a TCP header shorter than the least",
        reason: "truncated",
        protocols: &[TCP],
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[46] = 0x40,
    },
    Case {
        name: "a UDP length of less than its header",
        reason: "truncated",
        protocols: &[UDP],
        families: &[4],
        change: |arrival| arrival.mangle = |bytes| bytes[39] = 7,
    },
    Case {
        name: "a UDP length of more than the packet",
        reason: "truncated",
        protocols: &[UDP],
        families: &[6],
        change: |arrival| arrival.mangle = |bytes| bytes[59] += 1,
    },
    Case {
        name: "a jumbogram",
        reason: "truncated",
        protocols: BOTH,
        families: &[6],
        change: |arrival| arrival.mangle = |bytes| bytes[18..20].fill(0),
    },
    Case {
        name: "a VLAN tag",
        reason: "not_ip",
        protocols: BOTH,
        families: FAMILIES,
        change: |arrival| {
            arrival.mangle = |bytes| {
                bytes.splice(12..12, [0x81, 0, 0, 1]);
            }
        },
    },
    Case {
        name: "no frame to speak of",
        reason: "not_ip",
        protocols: &[UDP],
        families: &[4],
        change: |arrival| {
            arrival.mangle = |bytes| {
                bytes[12..14].copy_from_slice(&[0x12, 0x34]);
                bytes.truncate(15);
            }
        },
    },
];

#[test]
fn what_the_cache_does_not_cover_goes_by_the_kernel_path_untouched() {
    let bench = Bench::new();
    for case in PASSES {
        for protocol in case.protocols {
            for (packet, result) in published(*protocol) {
                if !case.families.contains(&packet.family()) {
                    continue;
                }
                let flow = flow_to(&bench, &packet, &result, bench.endpoint);
                let key = key_of(&packet, bench.uplink);
                let mut arrival =
                    Arrival { packet, flow, gso_size: 0, mangle: |_| {}, other_device: false };
                (case.change)(&mut arrival);
                let mut bytes = arrival.packet.bytes();
                (arrival.mangle)(&mut bytes);
                let before = bench.event(case.reason);
                let device = if arrival.other_device { ifindex("up1") } else { bench.uplink };
                if arrival.other_device {
                    let spec = DeviceSpec {
                        ifindex: device,
                        ..bench.loaded.fast_path.list_devices().unwrap()[0].clone()
                    };
                    let uplink = DeviceSpec {
                        role: DeviceRole::Uplink,
                        mac: [0; 6],
                        spoof_check: false,
                        ..spec
                    };
                    bench.loaded.fast_path.set_device(&uplink).unwrap();
                }
                // Counting sweeps out flows that ended long ago, so the flow comes last.
                bench.plant(&key, &arrival.flow);
                let (action, out) = bench.ingress(device, &bytes, arrival.gso_size);
                assert_eq!((action, &out), (NEXT, &bytes), "{}: {:?}", case.name, arrival.packet);
                assert_eq!(bench.event(case.reason), before + 1, "{}: counted", case.name);
                bench.flows.remove(&key).unwrap();
            }
        }
    }
}

#[test]
fn gso_packets_whose_segments_fit_are_fast() {
    let bench = Bench::new();
    for (mut packet, mut result) in published(TCP) {
        packet.payload = vec![7; 2800];
        result.payload.clone_from(&packet.payload);
        let flow = flow_to(&bench, &packet, &result, bench.endpoint);
        bench.plant(&key_of(&packet, bench.uplink), &flow);
        let (action, out) = bench.ingress(bench.uplink, &packet.bytes(), 1400);
        assert_eq!((action, out), (REDIRECT, result.bytes()));
    }
}

#[test]
fn what_lies_behind_the_ip_packet_is_cut_off() {
    let bench = Bench::new();
    for protocol in [TCP, UDP] {
        // A short frame as network cards pad it, and as much as an Ethernet frame of 1500 takes.
        for (payload, trailer) in [(0, 6), (20, 1), (64, 1390)] {
            for (mut packet, mut result) in published(protocol) {
                packet.payload = vec![7; payload];
                result.payload.clone_from(&packet.payload);
                let mut flow = flow_to(&bench, &packet, &result, bench.endpoint);
                flow.path.mtu = 1300;
                let key = key_of(&packet, bench.uplink);
                bench.plant(&key, &flow);
                let mut frame = packet.bytes();
                frame.resize(frame.len() + trailer, 0xee);
                let (action, out) = bench.ingress(bench.uplink, &frame, 0);
                assert_eq!((action, out), (REDIRECT, result.bytes()), "{packet:?} {trailer}");
                let bytes = bench.flows.get(&key).unwrap().unwrap().bytes;
                assert_eq!(bytes, result.bytes().len() as u64, "{packet:?} {trailer}");
            }
        }
    }
    for (mut packet, mut result) in published(TCP) {
        packet.payload = vec![7; 2800];
        result.payload.clone_from(&packet.payload);
        let flow = flow_to(&bench, &packet, &result, bench.endpoint);
        bench.plant(&key_of(&packet, bench.uplink), &flow);
        let mut frame = packet.bytes();
        frame.push(0);
        let before = bench.event("not_writable");
        assert_eq!(bench.ingress(bench.uplink, &frame, 1400), (NEXT, frame));
        assert_eq!(bench.event("not_writable"), before + 1, "segments would not be cut any more");
    }
}

#[test]
fn fin_and_rst_forget_both_directions() {
    let bench = Bench::new();
    for flags in [0x11, 0x14, 0x04, 0x01] {
        for (packet, result) in published(TCP) {
            let key = key_of(&packet, bench.uplink);
            bench.plant(&key, &flow_to(&bench, &packet, &result, bench.endpoint));
            let answer = Packet {
                source: result.destination,
                source_port: result.destination_port,
                destination: result.source,
                destination_port: result.source_port,
                ..result.clone()
            };
            let reverse = key_of(&answer, bench.endpoint);
            bench.plant(&reverse, &flow_to(&bench, &answer, &answer, bench.uplink));
            let bytes = Packet { flags, ..packet }.bytes();
            assert_eq!(bench.ingress(bench.uplink, &bytes, 0), (NEXT, bytes));
            assert!(!bench.holds(&key) && !bench.holds(&reverse), "flags {flags:#x}");
        }
    }
}

/// A FIN or RST with sequence number 1, acknowledgement 2 and 19 bytes, and what is known of its
/// connection.
struct Ending {
    name: &'static str,
    flags: u8,
    change: fn(&mut nb_flow, &mut nb_flow),
    action: i32,
    /// Both directions are still known.
    kept: bool,
}

const FIN: u8 = 0x11;
const RST: u8 = 0x14;

const ENDINGS: &[Ending] = &[
    Ending { name: "a FIN in the window", flags: FIN, change: |_, _| {}, action: NEXT, kept: true },
    Ending {
        name: "a FIN of the second side",
        flags: FIN,
        change: |_, other| other.closing = 1,
        action: NEXT,
        kept: false,
    },
    Ending {
        name: "a FIN beyond the window",
        flags: FIN,
        change: |_, other| other.side.edge = 0u32.wrapping_sub(70_000),
        action: DROP,
        kept: true,
    },
    Ending {
        name: "a FIN that acknowledges what was not sent",
        flags: FIN,
        change: |_, other| other.side.end = 1,
        action: DROP,
        kept: true,
    },
    Ending {
        name: "an old FIN goes its way and is not believed",
        flags: FIN,
        change: |own, _| own.side.end = 200_000,
        action: REDIRECT,
        kept: true,
    },
    Ending {
        name: "an old FIN without a way",
        flags: FIN,
        change: |own, _| {
            own.side.end = 200_000;
            own.lease_end = 1;
        },
        action: DROP,
        kept: true,
    },
    Ending { name: "a RST", flags: RST, change: |_, _| {}, action: NEXT, kept: false },
    Ending {
        name: "a RST below what was acknowledged",
        flags: RST,
        change: |_, other| other.side.ack = 5,
        action: DROP,
        kept: true,
    },
    Ending {
        name: "the same where the host does not mind",
        flags: RST,
        change: |own, other| {
            other.side.ack = 5;
            own.ignore_invalid_rst = 1;
        },
        action: NEXT,
        kept: true,
    },
    Ending {
        name: "a RST in the window that is not exact",
        flags: RST,
        change: |_, other| other.side.ack = 0,
        action: NEXT,
        kept: true,
    },
    Ending {
        name: "a FIN of a connection that nobody followed",
        flags: FIN,
        change: |own, other| {
            own.trusted = 0;
            other.side.end = 1;
        },
        action: NEXT,
        kept: true,
    },
];

#[test]
fn fin_and_rst_are_judged_by_what_conntrack_would_know() {
    let bench = Bench::new();
    for ending in ENDINGS {
        for (packet, result) in published(TCP) {
            let mut own = flow_to(&bench, &packet, &result, bench.endpoint);
            (own.trusted, own.seeded, own.liberal, own.used) = (1, 1, 1, 1);
            own.side = nb_tcp_side {
                end: 1,
                ack: 2,
                edge: 60_000,
                window: 60_000,
                peer_window: 60_000,
                ..nb_tcp_side::default()
            };
            let answer = Packet {
                source: result.destination,
                source_port: result.destination_port,
                destination: result.source,
                destination_port: result.source_port,
                ..result.clone()
            };
            let mut other = own;
            other.path = flow_to(&bench, &answer, &answer, bench.uplink).path;
            other.side.ack = 1;
            other.side.end = 2;
            (ending.change)(&mut own, &mut other);
            let key = key_of(&packet, bench.uplink);
            // The way back is found by the way there.
            let reverse = nb_flow_key { ifindex: bench.endpoint, tuple: answer.tuple(), ..key };
            other.path.translated = nb_tuple {
                source: key.tuple.destination,
                source_port: key.tuple.destination_port,
                destination: key.tuple.source,
                destination_port: key.tuple.source_port,
            };
            bench.plant(&key, &own);
            bench.plant(&reverse, &other);
            let bytes = Packet { flags: ending.flags, ..packet }.bytes();
            let name = ending.name;
            assert_eq!(bench.ingress(bench.uplink, &bytes, 0).0, ending.action, "{name}");
            let kept = bench.holds(&key) && bench.holds(&reverse);
            assert_eq!(kept, ending.kept, "{name}");
        }
    }
}

#[test]
fn nothing_is_fast_when_switched_off() {
    let bench = Bench::new();
    let (packet, result) = published(TCP)[0].clone();
    let plant = || {
        let flow = flow_to(&bench, &packet, &result, bench.endpoint);
        bench.plant(&key_of(&packet, bench.uplink), &flow);
    };
    let action = || bench.ingress(bench.uplink, &packet.bytes(), 0).0;
    let pins = &bench.loaded.options.pin_directory;
    let switch = |on| natbridge_datapath::fastpath::set_fast_path_enabled(pins, on).unwrap();
    plant();
    assert_eq!(action(), REDIRECT);
    switch(false);
    plant();
    assert_eq!(action(), NEXT);
    switch(true);
    assert_eq!(action(), NEXT, "switching on must not revive what was learned before");
    plant();
    assert_eq!(action(), REDIRECT);
    bench.set_devices(false);
    plant();
    assert_eq!(action(), NEXT);
    bench.set_devices(true);
    plant();
    assert_eq!(action(), REDIRECT);
    bench.loaded.fast_path.bump_generation();
    assert_eq!(action(), NEXT);
}

#[test]
fn the_cache_is_asked_only_for_what_may_be_there() {
    let bench = Bench::new();
    let (packet, result) = published(TCP)[0].clone();
    let key = key_of(&packet, bench.uplink);
    bench.plant(&key, &flow_to(&bench, &packet, &result, bench.endpoint));
    bench.set_presence(0);
    assert_eq!(bench.ingress(bench.uplink, &packet.bytes(), 0).0, NEXT);
    assert_eq!(bench.event("unknown_flow"), 1);
    bench.set_presence(0xff);
    assert_eq!(bench.ingress(bench.uplink, &packet.bytes(), 0).0, REDIRECT);
}

#[test]
fn a_changed_device_is_noticed_by_the_next_packet() {
    let bench = Bench::new();
    let own = Packet::new(UDP, "10.9.0.2", "10.1.2.3").bytes();
    let action = || bench.ingress(bench.endpoint, &own, 0).0;
    assert_eq!(action(), NEXT);
    let mut spec = DeviceSpec {
        ifindex: bench.endpoint,
        role: DeviceRole::Endpoint,
        mtu: 1500,
        mac: OWN_MAC,
        addresses: vec!["10.9.0.3".parse().unwrap()],
        link: 0,
        reserved: Vec::new(),
        spoof_check: true,
        fast_path: true,
    };
    bench.loaded.fast_path.set_device(&spec).unwrap();
    assert_eq!(action(), DROP, "its address is another one now");
    bench.loaded.fast_path.remove_device(bench.endpoint).unwrap();
    assert_eq!(action(), NEXT, "it is not described any more");
    spec.addresses = vec!["10.9.0.2".parse().unwrap()];
    bench.loaded.fast_path.set_device(&spec).unwrap();
    assert_eq!(action(), NEXT, "its address is the old one again");
}

#[test]
fn an_ipv6_packet_does_not_pass_for_an_ipv4_flow() {
    let bench = Bench::new();
    let (packet, result) = published(UDP)[0].clone();
    let flow = flow_to(&bench, &packet, &result, bench.endpoint);
    bench.plant(&key_of(&packet, bench.uplink), &flow);
    let disguised = Packet {
        source: "::ffff:10.1.2.3".parse().unwrap(),
        destination: "::ffff:10.9.0.1".parse().unwrap(),
        ..packet
    };
    assert!(disguised.source.is_ipv6());
    let bytes = disguised.bytes();
    assert_eq!(bench.ingress(bench.uplink, &bytes, 0), (NEXT, bytes));
}

fn arp(sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(OWN_MAC);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender_mac);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend([10, 9, 0, 1]);
    frame
}

/// An ICMPv6 message of 24 bytes: type, and a target address.
fn icmp6(source: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut bytes = Packet::new(UDP, source, "ff02::1").bytes();
    bytes.truncate(54);
    bytes[18..20].copy_from_slice(&[0, 24]);
    bytes[20] = 58;
    bytes[21] = 255;
    bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    let target: std::net::Ipv6Addr = target.parse().unwrap();
    bytes.extend(target.octets());
    bytes
}

/// The frame with a VLAN tag behind its MAC addresses.
fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    bytes.extend([0x81, 0, 0, vlan]);
    bytes.extend(&frame[12..]);
    bytes
}

/// An IPv6 packet with extension headers of these kinds and lengths put before its payload.
fn extended(packet: &[u8], headers: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = packet[..54].to_vec();
    let mut next = std::mem::replace(&mut bytes[20], headers[0].0);
    let kinds = headers.iter().skip(1).map(|header| header.0).chain([next]);
    for (&(_, length), following) in headers.iter().zip(kinds.collect::<Vec<_>>()) {
        next = following;
        bytes.extend([next, length]);
        bytes.resize(bytes.len() + 6 + usize::from(length) * 8, 0);
    }
    assert_eq!(next, packet[20]);
    bytes.extend(&packet[54..]);
    let length = u16::try_from(bytes.len() - 54).unwrap();
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[test]
fn spoofed_sources_are_dropped_and_own_ones_are_not() {
    let bench = Bench::new();
    let udp = |source: &str| {
        let to = if source.contains(':') { "fd00:1::1" } else { "10.1.1.1" };
        Packet::new(UDP, source, to).bytes()
    };
    let other_mac =
        Packet { source_mac: BRIDGE_MAC, ..Packet::new(UDP, "10.9.0.2", "10.1.1.1") }.bytes();
    let options = {
        let mut bytes = udp("10.9.0.3");
        bytes[14] = 0x46;
        bytes
    };
    let lie = icmp6("fe80::1", 136, "fd00:9::1");
    let truth = icmp6("fd00:9::2", 136, "fd00:9::2");
    let table: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("own IPv4", udp("10.9.0.2"), None),
        ("own IPv6", udp("fd00:9::2"), None),
        ("link-local", udp("fe80::1234"), None),
        ("duplicate address detection", icmp6("::", 135, "fd00:9::2"), None),
        ("own advertisement", icmp6("fd00:9::2", 136, "fd00:9::2"), None),
        ("ARP", arp(OWN_MAC, [10, 9, 0, 2]), None),
        ("ARP probe", arp(OWN_MAC, [0; 4]), None),
        ("another MAC", other_mac, Some("spoofed_mac")),
        ("a neighbour's IPv4", udp("10.9.0.3"), Some("spoofed_source_ipv4")),
        ("the host's IPv4", udp("10.9.0.1"), Some("spoofed_source_ipv4")),
        ("loopback", udp("127.0.0.1"), Some("spoofed_source_ipv4")),
        ("a neighbour's behind options", options, Some("spoofed_source_ipv4")),
        ("a neighbour's IPv6", udp("fd00:9::3"), Some("spoofed_source_ipv6")),
        ("::1", udp("::1"), Some("spoofed_source_ipv6")),
        ("v4-mapped own", udp("::ffff:10.9.0.3"), Some("spoofed_source_ipv6")),
        ("ARP for the gateway", arp(OWN_MAC, [10, 9, 0, 1]), Some("spoofed_neighbour")),
        ("ARP of another", arp(BRIDGE_MAC, [10, 9, 0, 2]), Some("spoofed_neighbour")),
        ("a false advertisement", icmp6("fe80::1", 136, "fd00:9::1"), Some("spoofed_neighbour")),
        ("it behind options", extended(&lie, &[(60, 0)]), Some("spoofed_neighbour")),
        ("it behind more", extended(&lie, &[(0, 0), (43, 2), (60, 9)]), Some("spoofed_neighbour")),
        ("it behind a fragment header", extended(&lie, &[(44, 0)]), Some("spoofed_neighbour")),
        ("it behind too much", extended(&lie, &[(60, 0); 9]), Some("unreadable")),
        ("the truth behind options", extended(&truth, &[(0, 0), (60, 3)]), None),
        ("options and no more", extended(&truth, &[(60, 9)])[..56].to_vec(), Some("unreadable")),
        ("ARP behind two tags", tagged(&arp(OWN_MAC, [10, 9, 0, 1]), 0), Some("unreadable")),
        ("IPv4 behind two tags", tagged(&udp("10.9.0.3"), 5), Some("unreadable")),
        ("half an ARP", arp(OWN_MAC, [10, 9, 0, 2])[..30].to_vec(), Some("unreadable")),
    ];
    for (name, bytes, reason) in table {
        let before = reason.map(|reason| bench.drops(reason));
        let (action, _) = bench.ingress(bench.endpoint, &bytes, 0);
        assert_eq!(action, if reason.is_some() { DROP } else { NEXT }, "{name}");
        assert_eq!(
            reason.map(|reason| bench.drops(reason)),
            before.map(|count| count + 1),
            "{name}"
        );
        // An uplink may bring any source.
        assert_eq!(bench.ingress(bench.uplink, &bytes, 0).0, NEXT, "{name} on the uplink");
    }
    let devices = bench.loaded.fast_path.list_devices().unwrap();
    let endpoint = devices.into_iter().find(|device| device.ifindex == bench.endpoint).unwrap();
    let router = DeviceSpec { spoof_check: false, ..endpoint };
    bench.loaded.fast_path.set_device(&router).unwrap();
    assert_eq!(bench.ingress(bench.endpoint, &udp("10.9.0.3"), 0).0, NEXT);
}

/// An ICMPv6 message of 24 bytes with options: type, length in units of 8 bytes, MAC.
fn with_options(message: &[u8], options: &[(u8, u8, [u8; 6])]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    for (kind, length, mac) in options {
        bytes.extend([*kind, *length]);
        bytes.extend(mac);
        bytes.resize(bytes.len() + usize::from(length.saturating_sub(1)) * 8, 0);
    }
    let length = u16::try_from(bytes.len() - 54).unwrap();
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Of the bench's endpoint, which follows from its MAC.
const OWN_LINK_LOCAL: &str = "fe80::ff:fe00:2";

#[test]
fn neighbour_discovery_tells_of_nobody_else() {
    let bench = Bench::new();
    let solicit = |source: &str| icmp6(source, 135, "fd00:9::1");
    let advertise = icmp6(OWN_LINK_LOCAL, 136, OWN_LINK_LOCAL);
    let (source, target, nonce) = (1, 2, 14);
    let ours = |kind: u8| (kind, 1, OWN_MAC);
    let bridges = |kind: u8| (kind, 1, BRIDGE_MAC);
    let many = vec![(nonce, 1, [0; 6]); 16];
    let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("own", with_options(&solicit(OWN_LINK_LOCAL), &[ours(source)]), None),
        ("own global", with_options(&solicit("fd00:9::2"), &[ours(source)]), None),
        ("own, advertised", with_options(&advertise, &[(nonce, 2, [0; 6]), ours(target)]), None),
        (
            "the bridge's address at one's own MAC",
            with_options(&solicit(BRIDGE_LINK_LOCAL), &[ours(source)]),
            Some("spoofed_source_ipv6"),
        ),
        (
            "it behind options",
            extended(&with_options(&solicit(BRIDGE_LINK_LOCAL), &[ours(source)]), &[(60, 0)]),
            Some("spoofed_source_ipv6"),
        ),
        (
            "the bridge's address advertised",
            icmp6(OWN_LINK_LOCAL, 136, BRIDGE_LINK_LOCAL),
            Some("spoofed_neighbour"),
        ),
        ("it probed for", icmp6("::", 135, BRIDGE_LINK_LOCAL), Some("spoofed_neighbour")),
        ("a neighbour's probed for", icmp6("::", 135, "fd00:9::3"), Some("spoofed_neighbour")),
        ("own probed for", icmp6("::", 135, OWN_LINK_LOCAL), None),
        (
            "another's MAC for one's own address",
            with_options(&solicit(OWN_LINK_LOCAL), &[bridges(source)]),
            Some("spoofed_neighbour"),
        ),
        (
            "it behind a true one",
            with_options(&advertise, &[ours(target), (nonce, 3, [0; 6]), bridges(target)]),
            Some("spoofed_neighbour"),
        ),
        (
            "it in a router solicitation",
            with_options(&icmp6(OWN_LINK_LOCAL, 133, "::")[..62], &[bridges(source)]),
            Some("spoofed_neighbour"),
        ),
        (
            "it in a router advertisement",
            with_options(&icmp6(OWN_LINK_LOCAL, 134, "::")[..70], &[bridges(source)]),
            Some("spoofed_neighbour"),
        ),
        (
            "own in a router advertisement",
            with_options(&icmp6(OWN_LINK_LOCAL, 134, "::")[..70], &[ours(source)]),
            None,
        ),
        (
            "an option without length",
            with_options(&advertise, &[(nonce, 0, [0; 6])]),
            Some("unreadable"),
        ),
        ("more options than are read", with_options(&advertise, &many), Some("unreadable")),
        (
            "what lies behind the packet is no option",
            [advertise.clone(), vec![target, 1, 9, 9, 9, 9, 9, 9]].concat(),
            None,
        ),
        (
            "but it is where its length is left out",
            {
                let lie = with_options(&advertise, &[bridges(target)]);
                let mut bytes = extended(&lie, &[(0, 0)]);
                bytes[18..20].fill(0);
                bytes
            },
            Some("spoofed_neighbour"),
        ),
    ];
    for (name, bytes, reason) in cases {
        let before = reason.map(|reason| bench.drops(reason));
        let (action, _) = bench.ingress(bench.endpoint, &bytes, 0);
        assert_eq!(action, if reason.is_some() { DROP } else { NEXT }, "{name}");
        let after = reason.map(|reason| bench.drops(reason));
        assert_eq!(after, before.map(|count| count + 1), "{name}");
    }
}

#[test]
fn link_local_addresses_are_kept_by_who_has_them() {
    let bench = Bench::new();
    let sibling = ifindex("hv1");
    let endpoint_of = |ifindex: u32, mac: [u8; 6]| DeviceSpec {
        ifindex,
        role: DeviceRole::Endpoint,
        mtu: 1500,
        mac,
        addresses: Vec::new(),
        link: LINK,
        reserved: Vec::new(),
        spoof_check: true,
        fast_path: true,
    };
    let set = |spec: DeviceSpec| bench.loaded.fast_path.set_device(&spec).unwrap();
    let uses = |device: u32, mac: [u8; 6], address: &str| {
        let packet = Packet { source_mac: mac, ..Packet::new(UDP, address, "ff02::1") };
        bench.ingress(device, &packet.bytes(), 0).0 == NEXT
    };
    let own = |address: &str| uses(bench.endpoint, OWN_MAC, address);
    let siblings = |address: &str| uses(sibling, BRIDGE_MAC, address);
    // It takes the one of a MAC that nobody has yet, and loses it to who gets that MAC.
    let of_sibling = "fe80::42:ff:fe00:8";
    assert!(own(of_sibling));
    set(endpoint_of(sibling, BRIDGE_MAC));
    assert!(!own(of_sibling));
    assert!(siblings(of_sibling) && !siblings(OWN_LINK_LOCAL));
    assert!(own(OWN_LINK_LOCAL));
    // Others belong to who comes first.
    assert!(own("fe80::1234") && !siblings("fe80::1234") && own("fe80::1234"));
    assert!(siblings("fe80::1") && !own("fe80::1"));
    // On another link it is another address.
    set(DeviceSpec { link: LINK + 1, ..endpoint_of(sibling, BRIDGE_MAC) });
    assert!(siblings("fe80::1234"));
    set(endpoint_of(sibling, BRIDGE_MAC));
    assert!(!siblings("fe80::1234"));
    // They are not without number, and a sandbox that takes too many keeps what it has.
    let taken = (0..40).filter(|i| own(&format!("fe80::99:{i:x}"))).count();
    assert_eq!(taken, 14, "of 16 two were taken before");
    assert!(own("fe80::1234") && own(OWN_LINK_LOCAL) && own("fe80::99:3"));
    assert!(siblings("fe80::99:20"));
    // What is gone has none.
    bench.loaded.fast_path.remove_device(bench.endpoint).unwrap();
    assert!(siblings("fe80::1234") && siblings("fe80::99:3"));
}

#[test]
fn a_device_that_is_not_described_is_left_alone() {
    let bench = Bench::new();
    bench.loaded.fast_path.remove_device(bench.uplink).unwrap();
    let bytes = published(TCP)[0].0.bytes();
    assert_eq!(bench.ingress(bench.uplink, &bytes, 0), (NEXT, bytes));
}
