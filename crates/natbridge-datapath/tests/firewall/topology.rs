//! A host with an uplink to a client, another to a far host, and four networks of ours.
//!
//! | network | bridge | subnets | kind |
//! |---|---|---|---|
//! | a | fw-a | 172.32.0.0/24 fd00:a::/64 | masqueraded |
//! | b | fw-b | 172.33.0.0/24 fd00:b::/64 | routed |
//! | i | fw-i | 172.34.0.0/24 fd00:1::/64 | internal |
//! | s | fw-s | 172.35.0.0/24 fd00:5::/64 | isolated, masqueraded |
//!
//! The host is 192.0.2.1, 192.0.2.3 and fd00:c::1, ::3; the client .2 and .9; the far host 198.51.100.2
//! and fd00:f::2. A foreign forward chain has policy drop and accepts client to far host on port 80.

use std::net::IpAddr;

use natbridge_datapath::firewall::{
    FORWARD_ACCEPT_MARK, Family, FirewallNetwork, FirewallPort, FirewallSpec, FirewallSubnet,
    Prefix, Protocol,
};

use super::namespaces::Namespaces;
use super::probe::serve;

const NAMES: [&str; 10] = ["host", "client", "far", "a1", "a2", "b1", "i1", "i2", "s1", "s2"];

/// Builds all of it, servers included.
pub fn build(label: &str) -> Namespaces {
    furnish(Namespaces::new(label, &NAMES))
}

/// The same for a test with a keeper.
pub fn build_alone(label: &str) -> Namespaces {
    furnish(Namespaces::alone(label, &NAMES))
}

fn furnish(namespaces: Namespaces) -> Namespaces {
    namespaces.run(
        "host",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
    );
    uplink(&namespaces, "client", "192.0.2", "fd00:c:");
    uplink(&namespaces, "far", "198.51.100", "fd00:f:");
    namespaces.run(
        "host",
        "ip address add 192.0.2.3/24 dev client; ip address add fd00:c::3/64 dev client nodad preferred_lft 0; \
         sysctl -qw net.ipv4.conf.client.route_localnet=1",
    );
    namespaces.run(
        "client",
        "ip address add 192.0.2.9/24 dev eth0; ip address add fd00:c::9/64 dev eth0 nodad preferred_lft 0",
    );
    for (bridge, third, group, members) in [
        ("fw-a", 32, "a", ["a1", "a2"].as_slice()),
        ("fw-b", 33, "b", &["b1"]),
        ("fw-i", 34, "1", &["i1", "i2"]),
        ("fw-s", 35, "5", &["s1", "s2"]),
    ] {
        network(&namespaces, bridge, third, group, members);
    }
    namespaces.run("host", "ip address add fe80::1/64 dev fw-i nodad");
    namespaces.run("i1", "ip address add fe80::10/64 dev eth0 nodad");
    namespaces.run("host", "ip address add fe80::c1/64 dev client nodad");
    namespaces.run("client", "ip address add fe80::c2/64 dev eth0 nodad");
    namespaces.run("host", "ip address add fe80::a1/64 dev fw-a nodad");
    namespaces.run("a1", "ip address add fe80::a2/64 dev eth0 nodad");
    foreign_rules(&namespaces);
    for name in NAMES {
        serve(&namespaces, name, 80);
    }
    serve(&namespaces, "far", 81);
    serve(&namespaces, "host", 8099);
    namespaces
}

fn uplink(namespaces: &Namespaces, name: &str, v4: &str, v6: &str) {
    namespaces.run(
        "host",
        &format!(
            "ip link add {name} type veth peer name eth0 netns {}; ip link set {name} up; \
             ip address add {v4}.1/24 dev {name}; ip address add {v6}:1/64 dev {name} nodad",
            namespaces.full(name)
        ),
    );
    endpoint(namespaces, name, &format!("{v4}.2/24"), &format!("{v6}:2/64"), v4, v6);
}

fn network(namespaces: &Namespaces, bridge: &str, third: u8, group: &str, members: &[&str]) {
    let (v4, v6) = (format!("172.{third}.0"), format!("fd00:{group}:"));
    namespaces.run(
        "host",
        &format!(
            "ip link add {bridge} type bridge; ip link set {bridge} up; \
             ip address add {v4}.1/24 dev {bridge}; ip address add {v6}:1/64 dev {bridge} nodad"
        ),
    );
    for (index, member) in members.iter().enumerate() {
        let number = 10 + index;
        namespaces.run(
            "host",
            &format!(
                "ip link add {member} type veth peer name eth0 netns {}; \
                 ip link set {member} master {bridge} up; bridge link set dev {member} hairpin on",
                namespaces.full(member)
            ),
        );
        endpoint(
            namespaces,
            member,
            &format!("{v4}.{number}/24"),
            &format!("{v6}:{number}/64"),
            &v4,
            &v6,
        );
    }
}

fn endpoint(n: &Namespaces, name: &str, v4: &str, v6: &str, gateway4: &str, gateway6: &str) {
    n.run(
        name,
        &format!(
            "ip link set eth0 addrgenmode none; ip link set eth0 up; ip address add {v4} dev eth0; ip address add {v6} dev eth0 nodad; \
             ip route add default via {gateway4}.1; ip -6 route add default via {gateway6}:1"
        ),
    );
}

/// What the host's own administrator wrote: a forward policy of drop with one accept, something that
/// forges our mark, and something that would notice if our mark left our hands.
fn foreign_rules(namespaces: &Namespaces) {
    let mark = FORWARD_ACCEPT_MARK;
    namespaces.run(
        "host",
        &format!(
            "for program in iptables-nft ip6tables-nft; do \
               $program -P FORWARD DROP; \
               $program -A FORWARD -i client -o far -p tcp --dport 80 -j ACCEPT; \
               $program -A FORWARD -i far -o client -m conntrack --ctstate ESTABLISHED -j ACCEPT; \
               $program -t mangle -A PREROUTING -i client -p tcp --dport 81 -j MARK --set-mark {mark:#x}; \
               $program -t mangle -A POSTROUTING -m mark --mark {mark:#x}/{mark:#x} -j DROP; \
             done"
        ),
    );
}

/// The networks and published ports of the scenarios.
pub fn spec(strict_forwarding: bool) -> FirewallSpec {
    let networks = [
        ("fw-a", "172.32.0.0/24", "fd00:a::/64", true),
        ("fw-b", "172.33.0.0/24", "fd00:b::/64", false),
        ("fw-i", "172.34.0.0/24", "fd00:1::/64", true),
        ("fw-s", "172.35.0.0/24", "fd00:5::/64", true),
    ];
    let networks = networks
        .map(|(bridge, v4, v6, masquerade)| FirewallNetwork {
            bridge: bridge.into(),
            subnets: [v4, v6]
                .map(|subnet| FirewallSubnet { subnet: prefix(subnet), masquerade })
                .into(),
            internal: bridge == "fw-i",
            isolated: bridge == "fw-s",
        })
        .into();
    let strict_forwarding = if strict_forwarding { Family::ALL.into() } else { Vec::new() };
    FirewallSpec { strict_forwarding, networks, ports: ports() }
}

fn ports() -> Vec<FirewallPort> {
    let mut ports = Vec::new();
    for v4 in [true, false] {
        let choose = |a: &'static str, b: &'static str| if v4 { a } else { b };
        let any = choose("0.0.0.0", "::");
        let exact = choose("192.0.2.3", "fd00:c::3");
        let client = choose("192.0.2.2", "fd00:c::2/128");
        let [a1, a2] = [choose("172.32.0.10", "fd00:a::10"), choose("172.32.0.11", "fd00:a::11")];
        let b1 = choose("172.33.0.10", "fd00:b::10");
        let i1 = choose("172.34.0.10", "fd00:1::10");
        let i_gateway = choose("172.34.0.1", "fd00:1::1");
        let s1 = choose("172.35.0.10", "fd00:5::10");
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for (host, number, target, target_port, from) in [
                (any, 8080, a1, 80, None),
                (exact, 8081, a2, 80, None),
                (any, 8081, a1, 80, None),
                (any, 8082, b1, 80, None),
                (any, 8083, a1, 80, Some(client)),
                (exact, 8083, a2, 80, None),
                (exact, 8084, a1, 80, Some(client)),
                (any, 8085, s1, 80, None),
                (any, 8086, i1, 80, None),
                (i_gateway, 8093, a1, 80, None),
                (any, 8087, a1, 90, None),
                (any, 8092, b1, 90, None),
                (exact, 8099, a1, 90, None),
                (any, 8088, a1, 9, None),
            ] {
                ports.push(FirewallPort {
                    protocol,
                    host_address: address(host),
                    host_port: number,
                    target_address: Some(address(target)),
                    target_port,
                    from: from.map(prefix).into_iter().collect(),
                });
            }
        }
    }
    // Served by the forwarder alone; nobody listens here, so what gets through is refused.
    ports.extend(["0.0.0.0", "::"].map(|host| FirewallPort {
        protocol: Protocol::Tcp,
        host_address: address(host),
        host_port: 8090,
        target_address: None,
        target_port: 80,
        from: vec![],
    }));
    ports
}

fn prefix(text: &str) -> Prefix {
    Prefix::parse(text, "subnet").unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
