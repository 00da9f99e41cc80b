//! A router between two wires, and packets of one connection that are sent over it and looked at on
//! the other side.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    send, socket,
};

use crate::common::packet::checksum;
use crate::common::{Namespace, ifindex, run};
use crate::random::Random;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIRST_PORT: u16 = 20000;
const SERVER_PORT: u16 = 80;
const PUBLISHED_PORT: u16 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    There,
    Back,
}

/// What became of a packet: nothing, or what the router changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Dropped,
    Passed { mark: u32, class: u8, ttl: u8, transport: bool },
}

pub struct Flow {
    ipv6: bool,
    protocol: u8,
    /// To a port of the router, which translates it to the server's.
    published: bool,
}

impl Flow {
    pub fn random(random: &mut Random) -> Self {
        Self {
            ipv6: random.chance(30),
            protocol: if random.chance(65) { TCP } else { UDP },
            published: random.chance(30),
        }
    }
}

/// What differs between packets of one connection.
#[derive(Clone, Debug, Default)]
struct Variation {
    class: u8,
    ttl: u8,
    label: u32,
    id: u16,
    fragment_bits: u16,
    flags: u8,
    window: u16,
    urgent: u16,
    acknowledgement: u32,
    options: Vec<u8>,
    payload: usize,
}

impl Variation {
    fn plain(flags: u8) -> Self {
        Self { ttl: 64, flags, window: 1000, payload: 8, fragment_bits: 0x4000, ..Self::default() }
    }

    fn random(random: &mut Random) -> Self {
        let timestamp = [1, 1, 8, 10, 0, 0, 0, random.below(256) as u8, 0, 0, 0, 1];
        let sack = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, random.below(256) as u8];
        let unknown = [random.pick(&[&34u8, &30, &254]).to_owned(), 4, 1, 2];
        let choices: [&[u8]; 5] = [&[], &[], &timestamp, &sack, &unknown];
        Self {
            class: random.pick(&[&0u8, &0, &0x20, &0xb8, &1, &2, &3]).to_owned(),
            ttl: random.pick(&[&64u8, &64, &63, &128, &255, &2, &65]).to_owned(),
            label: random.pick(&[&0u32, &0, &1, &0xfffff]).to_owned(),
            id: random.below(0x10000) as u16,
            fragment_bits: random.pick(&[&0x4000u16, &0]).to_owned(),
            // ACK, perhaps with PSH, ECE and CWR.
            flags: 0x10 | random.pick(&[&0u8, &8, &8, &0x40, &0x80, &0xc8]).to_owned(),
            window: random.pick(&[&1000u16, &0, &65535]).to_owned(),
            urgent: random.pick(&[&0u16, &0, &7]).to_owned(),
            acknowledgement: random.below(1 << 31) as u32,
            options: random.pick(&choices).to_vec(),
            payload: random.pick(&[&4usize, &40, &8, &600, &1200]).to_owned(),
        }
    }
}

/// Namespaces `router`, with devices `a0` and `b0`, and `wire`, with their far ends `a1` and `b1`.
pub struct Router {
    a: OwnedFd,
    b: OwnedFd,
    a_mac: [u8; 6],
    b_mac: [u8; 6],
    port: u16,
    sequence: u32,
    _wire: Namespace,
    _router: Namespace,
}

const CLIENT4: [u8; 4] = [10, 1, 0, 2];
const SERVER4: [u8; 4] = [10, 2, 0, 2];
const ROUTER4: [u8; 4] = [10, 1, 0, 1];
const ROUTER6: &str = "fd01::1";
const CLIENT6: &str = "fd01::2";
const SERVER6: &str = "fd02::2";
const WIRE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

impl Router {
    /// Leaves the calling thread in the router.
    pub fn new() -> Self {
        let (router, wire) = (Namespace::new("router"), Namespace::new("wire"));
        wire.run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        );
        router.enter();
        run(&format!(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
             sysctl -qw net.ipv6.conf.default.accept_dad=0
             ip link add a0 type veth peer name a1 netns {0}
             ip link add b0 type veth peer name b1 netns {0}
             ip address add 10.1.0.1/24 dev a0; ip address add 10.2.0.1/24 dev b0
             ip address add fd01::1/64 dev a0 nodad; ip address add fd02::1/64 dev b0 nodad
             ip link set a0 up; ip link set b0 up
             for pair in 10.1.0.2:a0 10.2.0.2:b0; do
               ip neigh add ${{pair%:*}} lladdr 02:00:00:00:00:09 dev ${{pair#*:}} nud permanent
             done
             ip neigh add fd01::2 lladdr 02:00:00:00:00:09 dev a0 nud permanent
             ip neigh add fd02::2 lladdr 02:00:00:00:00:09 dev b0 nud permanent",
            wire.name()
        ));
        wire.run("ip link set a1 up; ip link set b1 up");
        // What rules do to marks shows in the packet: natbridge's own table is not among the judged.
        let marks: String = (1..8)
            .map(|mark| {
                format!(
                    "meta mark & 7 == {mark} meta nfproto ipv4 ip id set {mark}\n
                     meta mark & 7 == {mark} meta nfproto ipv6 ip6 flowlabel set {mark}\n"
                )
            })
            .collect();
        run(&format!(
            "nft -f - <<'END'
             table inet natbridge {{
               chain track {{ type filter hook prerouting priority 0; ct state invalid counter; }}
               chain publish {{ type nat hook prerouting priority -100;
                 ip daddr 10.1.0.1 tcp dport 8080 dnat ip to 10.2.0.2:80
                 ip daddr 10.1.0.1 udp dport 8080 dnat ip to 10.2.0.2:80
                 ip6 daddr fd01::1 tcp dport 8080 dnat ip6 to [fd02::2]:80
                 ip6 daddr fd01::1 udp dport 8080 dnat ip6 to [fd02::2]:80
               }}
               chain show {{ type filter hook postrouting priority 32000;
                 meta nfproto ipv4 ip id set 0
                 meta nfproto ipv6 ip6 flowlabel set 0
                 {marks}
               }}
             }}\nEND"
        ));
        run(
            "sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1 net.netfilter.nf_conntrack_acct=1",
        );
        wire.enter();
        let (a, b) = (packet_socket("a1"), packet_socket("b1"));
        router.enter();
        let (a_mac, b_mac) = (mac_of("a0"), mac_of("b0"));
        Self { a, b, a_mac, b_mac, port: FIRST_PORT, sequence: 0, _wire: wire, _router: router }
    }

    /// Opens a connection of a port of its own; `None` if the rules do not let it come about.
    pub fn establish(&mut self, flow: &Flow) -> Option<()> {
        self.port = if self.port > 60000 { FIRST_PORT } else { self.port + 1 };
        let steps: &[(Direction, u8)] = if flow.protocol == TCP {
            &[
                (Direction::There, 2),
                (Direction::Back, 0x12),
                (Direction::There, 0x10),
                (Direction::Back, 0x10),
            ]
        } else {
            &[(Direction::There, 0), (Direction::Back, 0), (Direction::There, 0)]
        };
        for (direction, flags) in steps {
            let sent = self.send_one(flow, *direction, &Variation::plain(*flags));
            if self.receive(flow, *direction, &[sent])[0] == Fate::Dropped {
                return None;
            }
        }
        Some(())
    }

    /// Sends random packets, now and then with a pause, and answers what became of each.
    pub fn send(
        &mut self,
        flow: &Flow,
        direction: Direction,
        count: u32,
        random: &mut Random,
    ) -> Vec<Fate> {
        let mut sent = Vec::new();
        for _ in 0..count {
            sent.push(self.send_one(flow, direction, &Variation::random(random)));
            if random.chance(5) {
                sleep(Duration::from_millis(random.below(8)));
            }
        }
        self.receive(flow, direction, &sent)
    }

    fn send_one(&mut self, flow: &Flow, direction: Direction, variation: &Variation) -> Sent {
        self.sequence = self.sequence.wrapping_add(4000);
        let there = direction == Direction::There;
        let frame = self.frame(flow, there, variation);
        let socket = if there { &self.a } else { &self.b };
        send(socket.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
        Sent { sequence: self.sequence, frame }
    }

    fn frame(&self, flow: &Flow, there: bool, variation: &Variation) -> Vec<u8> {
        let (client, server): (IpAddr, IpAddr) = if flow.ipv6 {
            (CLIENT6.parse().unwrap(), SERVER6.parse().unwrap())
        } else {
            (CLIENT4.into(), SERVER4.into())
        };
        let router: IpAddr = if flow.ipv6 { ROUTER6.parse().unwrap() } else { ROUTER4.into() };
        let (meant, port) =
            if flow.published { (router, PUBLISHED_PORT) } else { (server, SERVER_PORT) };
        let (source, destination) = if there { (client, meant) } else { (server, client) };
        let (from, to) = if there { (self.port, port) } else { (SERVER_PORT, self.port) };
        let transport =
            transport(flow.protocol, from, to, self.sequence, variation, source, destination);
        let mut frame = Vec::new();
        frame.extend(if there { self.a_mac } else { self.b_mac });
        frame.extend(WIRE_MAC);
        if flow.ipv6 {
            frame.extend([0x86, 0xdd]);
            let word = 6 << 28 | u32::from(variation.class) << 20 | variation.label;
            frame.extend(word.to_be_bytes());
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([flow.protocol, variation.ttl]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        } else {
            frame.extend([8, 0]);
            let mut header = vec![0x45, variation.class];
            header.extend((20 + transport.len() as u16).to_be_bytes());
            header.extend(variation.id.to_be_bytes());
            header.extend(variation.fragment_bits.to_be_bytes());
            header.extend([variation.ttl, flow.protocol, 0, 0]);
            header.extend(octets(source));
            header.extend(octets(destination));
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        frame.extend(transport);
        frame
    }

    /// Looks for the packets on the other wire; gives those that do not come some time.
    fn receive(&self, flow: &Flow, direction: Direction, sent: &[Sent]) -> Vec<Fate> {
        let socket = if direction == Direction::There { &self.b } else { &self.a };
        let mut fates = vec![Fate::Dropped; sent.len()];
        let mut missing = sent.len();
        // A veth hands packets over at once, but for a processor that is busy.
        let mut until = Instant::now() + Duration::from_millis(15);
        while missing > 0 && Instant::now() < until {
            let mut buffer = [0; 2048];
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let frame = &buffer[..length];
                    let found = sent.iter().position(|it| it.is(flow, frame));
                    if let Some(index) = found {
                        fates[index] = fate(flow, &sent[index].frame, frame);
                        missing -= 1;
                        until = Instant::now() + Duration::from_millis(15);
                    }
                }
                Err(_) => sleep(Duration::from_micros(300)),
            }
        }
        fates
    }
}

struct Sent {
    sequence: u32,
    frame: Vec<u8>,
}

impl Sent {
    /// Whether the frame is this packet, having left the router.
    fn is(&self, flow: &Flow, frame: &[u8]) -> bool {
        let transport = if flow.ipv6 { 54 } else { 34 };
        let protocol = if flow.ipv6 { 20 } else { 23 };
        let at = transport + if flow.protocol == TCP { 4 } else { 8 };
        frame.get(..6) == Some(&WIRE_MAC)
            && frame.get(12..14) == self.frame.get(12..14)
            && frame.get(protocol) == Some(&flow.protocol)
            && frame.get(at..at + 4) == Some(&self.sequence.to_be_bytes())
    }
}

fn fate(flow: &Flow, sent: &[u8], got: &[u8]) -> Fate {
    let (class, ttl, mark, transport) = if flow.ipv6 {
        let word = |frame: &[u8]| u32::from_be_bytes(frame[14..18].try_into().unwrap());
        let class = ((word(sent) ^ word(got)) >> 20) as u8;
        (class, sent[21].wrapping_sub(got[21]), word(got) & 0xfffff, 54)
    } else {
        let mark = u32::from(u16::from_be_bytes([got[18], got[19]]));
        (sent[15] ^ got[15], sent[22].wrapping_sub(got[22]), mark, 34)
    };
    // Translation changes ports and checksum.
    let untouched = |frame: &[u8]| {
        let mut bytes = frame[transport..sent.len().min(frame.len())].to_vec();
        let sum = if flow.protocol == TCP { 16 } else { 6 };
        bytes[..4].fill(0);
        bytes[sum..sum + 2].fill(0);
        bytes
    };
    Fate::Passed { mark, class, ttl, transport: untouched(sent) == untouched(got) }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn transport(
    protocol: u8,
    from: u16,
    to: u16,
    sequence: u32,
    variation: &Variation,
    source: IpAddr,
    destination: IpAddr,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    let checksum_at = if protocol == TCP {
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(variation.acknowledgement.to_be_bytes());
        bytes.extend([(5 + variation.options.len() as u8 / 4) << 4, variation.flags]);
        bytes.extend(variation.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(variation.urgent.to_be_bytes());
        bytes.extend(&variation.options);
        16
    } else {
        bytes.extend((8 + variation.payload as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_be_bytes());
        6
    };
    let header = if protocol == TCP { bytes.len() } else { 8 };
    // Pure acknowledgements too.
    let payload = if protocol == TCP && variation.payload == 4 { 0 } else { variation.payload };
    bytes.resize(header + payload, 0x61);
    let mut pseudo = [octets(source), octets(destination)].concat();
    pseudo.extend((bytes.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(&bytes);
    let sum = match checksum(&pseudo) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A packet socket on a device of the calling thread's namespace.
fn packet_socket(name: &str) -> OwnedFd {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .unwrap();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex(name) as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer and length are of one sockaddr_ll.
    let address = unsafe {
        LinkAddr::from_raw((&raw const address).cast(), Some(size_of::<libc::sockaddr_ll>() as u32))
    };
    bind(socket.as_raw_fd(), &address.unwrap()).unwrap();
    socket
}

fn mac_of(name: &str) -> [u8; 6] {
    let output =
        std::process::Command::new("ip").args(["-br", "link", "show", name]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split_whitespace().nth(2).unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}
