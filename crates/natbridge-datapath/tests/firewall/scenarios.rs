//! The table of scenarios: who asks whom, and what must come back.

use std::net::{SocketAddr, SocketAddrV6};
use std::thread;

use nix::net::if_::if_nametoindex;

use super::namespaces::Namespaces;
use super::probe::{Answer, Transport, ask};

/// `None` as an expectation: silence.
struct Scenario {
    from: &'static str,
    source: Option<&'static str>,
    transport: Transport,
    target: String,
    expected: String,
}

/// What the host looks like in a run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `bridge-nf-call-iptables` and its IPv6 twin.
    pub bridge_netfilter: bool,
    pub strict_forwarding: bool,
}

const NOTHING: &str = "nothing";

/// Runs every scenario at once; answers those that went wrong.
pub fn failures(namespaces: &Namespaces, setting: Setting) -> Vec<String> {
    let switch = u8::from(setting.bridge_netfilter);
    namespaces.run(
        "host",
        &format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={switch} net.bridge.bridge-nf-call-ip6tables={switch}"
        ),
    );
    let scenarios: Vec<Scenario> =
        [true, false].into_iter().flat_map(|v4| scenarios(v4, setting)).collect();
    thread::scope(|scope| {
        let asked: Vec<_> = scenarios
            .iter()
            .map(|scenario| (scenario, scope.spawn(|| run(namespaces, scenario))))
            .collect();
        asked
            .into_iter()
            .map(|(scenario, answer)| (scenario, answer.join().unwrap()))
            .filter(|(scenario, answer)| scenario.expected != *answer)
            .map(|(scenario, answer)| describe(scenario, &answer))
            .collect()
    })
}

fn run(namespaces: &Namespaces, scenario: &Scenario) -> Answer {
    namespaces.inside(scenario.from, || {
        let scope = if_nametoindex("eth0").unwrap_or_default();
        let source = scenario.source.map(|source| match source.strip_suffix("%eth0") {
            Some(address) => SocketAddrV6::new(address.parse().unwrap(), 0, 0, scope).into(),
            None => SocketAddr::new(source.parse().unwrap(), 0),
        });
        let target = scenario.target.replace("%eth0", &format!("%{scope}"));
        ask(scenario.transport, source, target.parse::<SocketAddr>().unwrap())
    })
}

fn describe(scenario: &Scenario, answer: &str) -> String {
    let transport = if scenario.transport == Transport::Tcp { "tcp" } else { "udp" };
    format!(
        "{} -> {transport} {}: expected {:?}, got {answer:?}",
        scenario.from, scenario.target, scenario.expected
    )
}

/// Addresses of one family.
struct Addresses {
    host: &'static str,
    host_exact: &'static str,
    /// Source the kernel chooses towards `host_exact`.
    host_as_seen_by_itself: &'static str,
    client: &'static str,
    other_client: &'static str,
    far: &'static str,
    a_gateway: &'static str,
    a1: &'static str,
    a2: &'static str,
    b1: &'static str,
    i_gateway: &'static str,
    i1: &'static str,
    i2: &'static str,
    s_gateway: &'static str,
    s1: &'static str,
    s2: &'static str,
    host_to_far: &'static str,
    b_gateway: &'static str,
}

const V4: Addresses = Addresses {
    host: "192.0.2.1",
    host_exact: "192.0.2.3",
    host_as_seen_by_itself: "192.0.2.1",
    client: "192.0.2.2",
    other_client: "192.0.2.9",
    far: "198.51.100.2",
    a_gateway: "172.32.0.1",
    a1: "172.32.0.10",
    a2: "172.32.0.11",
    b1: "172.33.0.10",
    i_gateway: "172.34.0.1",
    i1: "172.34.0.10",
    i2: "172.34.0.11",
    s_gateway: "172.35.0.1",
    s1: "172.35.0.10",
    s2: "172.35.0.11",
    host_to_far: "198.51.100.1",
    b_gateway: "172.33.0.1",
};

const V6: Addresses = Addresses {
    host: "fd00:c::1",
    host_exact: "fd00:c::3",
    host_as_seen_by_itself: "fd00:c::3",
    client: "fd00:c::2",
    other_client: "fd00:c::9",
    far: "fd00:f::2",
    a_gateway: "fd00:a::1",
    a1: "fd00:a::10",
    a2: "fd00:a::11",
    b1: "fd00:b::10",
    i_gateway: "fd00:1::1",
    i1: "fd00:1::10",
    i2: "fd00:1::11",
    s_gateway: "fd00:5::1",
    s1: "fd00:5::10",
    s2: "fd00:5::11",
    host_to_far: "fd00:f::1",
    b_gateway: "fd00:b::1",
};

fn scenarios(v4: bool, setting: Setting) -> Vec<Scenario> {
    use Transport::{Tcp, Udp};
    let at = if v4 { V4 } else { V6 };
    let mut list = Vec::new();
    let mut add = |from,
                   source: Option<&'static str>,
                   transports: &[Transport],
                   address: &str,
                   port: u16,
                   expected: &str| {
        for transport in transports {
            let target =
                if v4 { format!("{address}:{port}") } else { format!("[{address}]:{port}") };
            list.push(Scenario {
                from,
                source,
                transport: *transport,
                target,
                expected: expected.into(),
            });
        }
    };
    let sees = |server: &str, client: &str| format!("{server} sees {client}");
    let both = &[Tcp, Udp][..];

    // Published ports from another host keep the client's address; the exact address goes first.
    add("client", None, both, at.host, 8080, &sees("a1", at.client));
    add("client", None, both, at.host_exact, 8080, &sees("a1", at.client));
    add("client", None, both, at.host_exact, 8081, &sees("a2", at.client));
    add("client", None, both, at.host, 8081, &sees("a1", at.client));
    add("client", None, both, at.host, 8082, &sees("b1", at.client));
    // Errors about a translated flow come back.
    add("client", None, &[Udp], at.host, 8088, "refused");
    // From the host, by any local address but loopback.
    add("host", None, both, at.host, 8080, &sees("a1", at.host));
    add("host", None, both, at.host_exact, 8081, &sees("a2", at.host_as_seen_by_itself));
    add("host", None, both, at.host_to_far, 8080, &sees("a1", at.host_to_far));
    add("host", None, &[Tcp], if v4 { "127.0.0.1" } else { "::1" }, 8080, "refused");
    // `from`: the host always may, others by their address alone, an exact port by its own rule.
    add("client", Some(at.client), &[Udp], at.host, 8083, &sees("a1", at.client));
    add("client", Some(at.other_client), &[Udp], at.host, 8083, NOTHING);
    add("client", Some(at.other_client), &[Udp], at.host_exact, 8083, &sees("a2", at.other_client));
    add("client", Some(at.client), &[Udp], at.host_exact, 8084, &sees("a1", at.client));
    add("client", Some(at.other_client), &[Udp], at.host_exact, 8084, NOTHING);
    add("client", None, &[Tcp], at.host, 8083, &sees("a1", at.client));
    add("far", None, both, at.host, 8083, NOTHING);
    add("far", None, both, at.host_exact, 8084, NOTHING);
    add("far", None, both, at.host_exact, 8083, &sees("a2", at.far));
    add("b1", None, both, at.host, 8083, NOTHING);
    add("host", None, both, at.host, 8083, &sees("a1", at.host));
    // Hairpin: from the same network, the container itself, other networks, an isolated network.
    add("a2", None, both, at.host, 8080, &sees("a1", at.a_gateway));
    add("a1", None, both, at.host, 8080, &sees("a1", at.a_gateway));
    add("b1", None, both, at.host, 8082, &sees("b1", at.b_gateway));
    add("b1", None, both, at.host, 8080, &sees("a1", at.b1));
    add("a1", None, both, at.host, 8082, &sees("b1", at.b_gateway));
    add("s2", None, both, at.host, 8085, &sees("s1", at.s_gateway));
    // Outbound: masqueraded, or with the container's own address.
    add("a1", None, both, at.client, 80, &sees("client", at.host));
    add("a1", None, both, at.far, 80, &sees("far", at.host_to_far));
    add("b1", None, both, at.client, 80, &sees("client", at.b1));
    // Same network, other networks, isolated ones.
    add("a1", None, both, at.a2, 80, &sees("a2", at.a1));
    add("a1", None, both, at.b1, 80, NOTHING);
    add("b1", None, both, at.a1, 80, NOTHING);
    add("i1", None, both, at.i2, 80, &sees("i2", at.i1));
    let isolated = if setting.bridge_netfilter { NOTHING.into() } else { sees("s2", at.s1) };
    add("s1", None, both, at.s2, 80, &isolated);
    // Unpublished container addresses are unreachable from outside, not from the host.
    add("client", None, both, at.a1, 80, NOTHING);
    add("client", None, both, at.b1, 80, NOTHING);
    add("client", None, both, at.i1, 80, NOTHING);
    add("host", None, both, at.a1, 80, &sees("a1", at.a_gateway));
    add("host", None, both, at.i1, 80, &sees("i1", at.i_gateway));
    // What the forwarder serves is no way out of an internal network.
    add("a1", None, &[Tcp], at.a_gateway, 8090, "refused");
    add("i1", None, &[Tcp], at.i_gateway, 8090, NOTHING);
    // A container reaches its gateway, and the host's services as far as the host's INPUT says.
    add("a1", None, &[Tcp], at.a_gateway, 8099, &sees("host", at.a1));
    add("a1", None, &[Tcp], at.host, 8099, &sees("host", at.a1));
    add("a1", None, &[Tcp], at.b_gateway, 8099, &sees("host", at.a1));
    // Internal: the gateway's address and nothing else, in or out, published or not.
    add("i1", None, &[Tcp], at.i_gateway, 8099, &sees("host", at.i1));
    add("i1", None, &[Tcp], at.host, 8099, NOTHING);
    add("i1", None, &[Tcp], at.a_gateway, 8099, NOTHING);
    add("i1", None, both, at.client, 80, NOTHING);
    add("i1", None, both, at.a1, 80, NOTHING);
    add("i1", None, both, at.i_gateway, 8080, NOTHING);
    add("client", None, both, at.host, 8086, NOTHING);
    add("a1", None, both, at.host, 8086, NOTHING);
    add("i2", None, both, at.i_gateway, 8086, &sees("i1", at.i_gateway));
    if !v4 {
        add("i1", None, &[Tcp], "fe80::1%eth0", 8099, &sees("host", "fe80::10"));
        // Link-local scope is never translated: a published port's number is the host's own socket's
        // there (nobody's in this test), but not for an internal network.
        add("client", None, both, "fe80::c1%eth0", 8080, "refused");
        add("client", Some("fe80::c2%eth0"), &[Udp], at.host, 8080, "refused");
        add("client", Some("fe80::c2%eth0"), &[Udp], at.host_exact, 8081, "refused");
        add("client", Some(at.client), &[Udp], "fe80::c1%eth0", 8080, "refused");
        add("a1", None, both, "fe80::a1%eth0", 8080, "refused");
        add("i1", None, both, "fe80::1%eth0", 8080, NOTHING);
        add("i1", Some(at.i1), &[Udp], "fe80::1%eth0", 8080, NOTHING);
        add("i1", Some("fe80::10%eth0"), &[Udp], at.i_gateway, 8080, NOTHING);
        add("i1", Some("fe80::10%eth0"), &[Udp], at.i_gateway, 8093, NOTHING);
    }
    // Forwarding that is not ours: the host's own rules decide, unless it is strict; a forged mark is
    // no way round them.
    let far = if setting.strict_forwarding { NOTHING.into() } else { sees("far", at.client) };
    add("client", None, &[Tcp], at.far, 80, &far);
    add("client", None, &[Tcp], at.far, 81, NOTHING);
    list
}
