//! The constant part of the table: its sets, maps, chains and rules.

use std::fmt::Write;

use super::elsewhere::PortRange;
use super::mark::FORWARD_ACCEPT_MARK;

/// Family and name, as nft takes them.
pub const TABLE: &str = "inet natbridge";

/// The set of families whose forwarded packets are marked. It follows the accepts, not the
/// specification, so it is not among [`SETS`].
pub const MARKING: &str = "marking";

/// UDP ports on which processes of the host receive from anybody. It follows the host, not the
/// specification.
pub const BOUND_UDP: &str = "bound_udp";

/// What one field of a set's key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Interface,
    Family,
    Protocol,
    Port,
    Ipv4,
    Ipv6,
    /// A prefix: makes the set an interval set.
    Ipv4Prefix,
    Ipv6Prefix,
}

impl Field {
    fn nft_type(self) -> &'static str {
        match self {
            Self::Interface => "ifname",
            Self::Family => "nf_proto",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Ipv4 | Self::Ipv4Prefix => "ipv4_addr",
            Self::Ipv6 | Self::Ipv6Prefix => "ipv6_addr",
        }
    }

    fn is_interval(self) -> bool {
        matches!(self, Self::Ipv4Prefix | Self::Ipv6Prefix)
    }
}

/// A set, or with `value` a map.
#[derive(Debug)]
pub struct Set {
    pub name: &'static str,
    pub key: &'static [Field],
    pub value: &'static [Field],
}

const fn set(name: &'static str, key: &'static [Field]) -> Set {
    Set { name, key, value: &[] }
}

const fn map(name: &'static str, key: &'static [Field], value: &'static [Field]) -> Set {
    Set { name, key, value }
}

use Field::{Family, Interface, Ipv4, Ipv4Prefix, Ipv6, Ipv6Prefix, Port, Protocol};

const EXACT4: &[Field] = &[Protocol, Ipv4, Port];
const EXACT6: &[Field] = &[Protocol, Ipv6, Port];
const WILDCARD: &[Field] = &[Protocol, Port];

/// Every set and map. nft 1.0.6 takes no protocol in the key of a NAT map, hence one per protocol.
pub const SETS: &[Set] = &[
    set("bridges", &[Interface]),
    set("internal_bridges", &[Interface]),
    // Pairs of one bridge with itself: networks whose endpoints reach each other.
    set("same_bridge", &[Interface, Interface]),
    // Families whose forwarding is dropped where it is not ours.
    set("strict_forwarding", &[Family]),
    set("own_subnet4", &[Interface, Ipv4Prefix]),
    set("own_subnet6", &[Interface, Ipv6Prefix]),
    set("masquerade4", &[Ipv4Prefix]),
    set("masquerade6", &[Ipv6Prefix]),
    set("restricted_exact4", EXACT4),
    set("restricted_exact6", EXACT6),
    set("restricted_wildcard4", WILDCARD),
    set("restricted_wildcard6", WILDCARD),
    // Every published number on whatever address, whoever serves it.
    set("published4", WILDCARD),
    set("published6", WILDCARD),
    set("published_wildcard4", WILDCARD),
    set("published_wildcard6", WILDCARD),
    set("published_exact4", EXACT4),
    set("published_exact6", EXACT6),
    // The sockets that published ports lead to.
    set("target4", EXACT4),
    set("target6", EXACT6),
    set(BOUND_UDP, &[Port]),
    // What only the forwarder serves; internal networks must not reach others through it.
    set("forwarded4", WILDCARD),
    set("forwarded6", WILDCARD),
    // Exact ports beside a restricted wildcard one of the same number.
    set("exempt4", EXACT4),
    set("exempt6", EXACT6),
    set("allowed_exact4", &[Protocol, Ipv4, Port, Ipv4Prefix]),
    set("allowed_exact6", &[Protocol, Ipv6, Port, Ipv6Prefix]),
    set("allowed_wildcard4", &[Protocol, Port, Ipv4Prefix]),
    set("allowed_wildcard6", &[Protocol, Port, Ipv6Prefix]),
    map("tcp_exact4", &[Ipv4, Port], &[Ipv4, Port]),
    map("tcp_exact6", &[Ipv6, Port], &[Ipv6, Port]),
    map("tcp_wildcard4", &[Port], &[Ipv4, Port]),
    map("tcp_wildcard6", &[Port], &[Ipv6, Port]),
    map("udp_exact4", &[Ipv4, Port], &[Ipv4, Port]),
    map("udp_exact6", &[Ipv6, Port], &[Ipv6, Port]),
    map("udp_wildcard4", &[Port], &[Ipv4, Port]),
    map("udp_wildcard6", &[Port], &[Ipv6, Port]),
    map("sctp_exact4", &[Ipv4, Port], &[Ipv4, Port]),
    map("sctp_exact6", &[Ipv6, Port], &[Ipv6, Port]),
    map("sctp_wildcard4", &[Port], &[Ipv4, Port]),
    map("sctp_wildcard6", &[Port], &[Ipv6, Port]),
];

/// Before destination NAT and behind conntrack: who may come in at all.
///
/// 127.0.0.0/8 and ::1 never come from a wire (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3); the
/// rules hold even where somebody sets `route_localnet`. A sandbox of an internal network reaches
/// the host by the addresses of its own subnet alone, and no published port by a link-local one, which
/// would be the forwarder's and a way to other networks.
const GUARD: &str = r#"
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iifname "lo" accept
		ip daddr 127.0.0.0/8 drop
		ip saddr 127.0.0.0/8 drop
		ip6 daddr ::1 drop
		ip6 saddr ::1 drop
		ct state established,related accept
		iifname @internal_bridges fib daddr type local jump internal_guard
		ct state new fib daddr type local jump restrict
	}
	chain internal_guard {
		meta nfproto ipv4 meta l4proto . th dport @forwarded4 drop
		meta nfproto ipv6 meta l4proto . th dport @forwarded6 drop
		iifname . ip daddr != @own_subnet4 drop
		ip6 saddr fe80::/10 jump link_local_guard
		ip6 daddr fe80::/10 jump link_local_guard
		ip6 daddr fe80::/10 return
		iifname . ip6 daddr != @own_subnet6 drop
	}
	chain link_local_guard {
		meta l4proto . th dport @published_wildcard6 drop
		meta l4proto . ip6 daddr . th dport @published_exact6 drop
	}
	chain restrict {
		meta l4proto . ip daddr . th dport @restricted_exact4 meta l4proto . ip daddr . th dport . ip saddr != @allowed_exact4 drop
		meta l4proto . ip6 daddr . th dport @restricted_exact6 meta l4proto . ip6 daddr . th dport . ip6 saddr != @allowed_exact6 drop
		meta l4proto . ip daddr . th dport @exempt4 return
		meta l4proto . ip6 daddr . th dport @exempt6 return
		meta nfproto ipv4 meta l4proto . th dport @restricted_wildcard4 meta l4proto . th dport . ip saddr != @allowed_wildcard4 drop
		meta nfproto ipv6 meta l4proto . th dport @restricted_wildcard6 meta l4proto . th dport . ip6 saddr != @allowed_wildcard6 drop
	}
"#;

/// The exact address goes first, and source NAT follows Docker: what leaves its own bridge, and what
/// destination NAT sends back into it.
///
/// Link-local addresses are never translated: a packet that bears one is not forwarded to another link
/// (RFC 4291 section 2.5.6, ip6_forward). The forwarder serves them. IPv4's 169.254.0.0/16 is forwarded
/// like any other.
///
/// Masquerading keeps the source port, but for numbers on which the host receives from anybody: else
/// what the remote sends to that number of the host's would go to the masqueraded connection instead.
fn nat(elsewhere: PortRange) -> String {
    NAT.replace("ELSEWHERE", &elsewhere.to_string())
}

const NAT: &str = r#"
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		fib daddr type local jump published
	}
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr 127.0.0.0/8 accept
		ip6 daddr ::1 accept
		fib daddr type local jump published
	}
	chain published {
		meta nfproto ipv6 goto published6
		dnat ip to ip daddr . tcp dport map @tcp_exact4
		dnat ip to ip daddr . udp dport map @udp_exact4
		dnat ip to ip daddr . sctp dport map @sctp_exact4
		dnat ip to tcp dport map @tcp_wildcard4
		dnat ip to udp dport map @udp_wildcard4
		dnat ip to sctp dport map @sctp_wildcard4
	}
	chain published6 {
		ip6 saddr fe80::/10 return
		ip6 daddr fe80::/10 return
		dnat ip6 to ip6 daddr . tcp dport map @tcp_exact6
		dnat ip6 to ip6 daddr . udp dport map @udp_exact6
		dnat ip6 to ip6 daddr . sctp dport map @sctp_exact6
		dnat ip6 to tcp dport map @tcp_wildcard6
		dnat ip6 to udp dport map @udp_wildcard6
		dnat ip6 to sctp dport map @sctp_wildcard6
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		oifname . ip saddr @own_subnet4 ct status dnat goto masquerading
		oifname . ip6 saddr @own_subnet6 ct status dnat goto masquerading
		oifname . ip saddr @own_subnet4 accept
		oifname . ip6 saddr @own_subnet6 accept
		ip saddr @masquerade4 goto masquerading
		ip6 saddr @masquerade6 goto masquerading
	}
	chain masquerading {
		meta l4proto { tcp, udp, sctp } meta nfproto ipv4 meta l4proto . th sport @published4 masquerade to :ELSEWHERE
		meta l4proto { tcp, udp, sctp } meta nfproto ipv6 meta l4proto . th sport @published6 masquerade to :ELSEWHERE
		udp sport @bound_udp masquerade to :ELSEWHERE
		masquerade
	}
"#;

/// What conntrack calls INVALID belongs to no connection it knows, so it is not translated either
/// (nf_conntrack_in, nf_nat_inet_fn). Where it is a segment of a translated connection, out of its
/// window, the host's own stack would answer it with a reset that ends the connection.
///
/// Dropped is what comes for a published port, unless the host has that very connection itself, and
/// what acknowledges a connection for which the host has no socket at all: a masqueraded one. All
/// else the host answers as ever. `socket` finds no request or TIME_WAIT socket where it asks for
/// `wildcard`, hence `transparent` behind it.
fn input(sockets: bool) -> String {
    let own = if sockets { "\n\t\tsocket wildcard 0 return" } else { "" };
    let rest = if sockets { NO_SOCKET } else { "" };
    format!(
        r#"
	chain input {{
		type filter hook input priority -1; policy accept;
		ct state invalid meta l4proto {{ tcp, sctp }} goto untranslated
	}}
	chain untranslated {{
		meta l4proto . ip daddr . th dport @published_exact4 drop
		meta l4proto . ip6 daddr . th dport @published_exact6 drop{own}
		meta nfproto ipv4 meta l4proto . th dport @published_wildcard4 drop
		meta nfproto ipv6 meta l4proto . th dport @published_wildcard6 drop{rest}
	}}
"#
    )
}

const NO_SOCKET: &str = "
		socket transparent 0 return
		socket transparent 1 return
		tcp flags & (ack | rst) == ack drop";

/// What differs from host to host in the constant part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Where masqueraded source ports go that may not stay.
    pub elsewhere: PortRange,
    /// The kernel has nft's `socket` expression (CONFIG_NFT_SOCKET).
    pub sockets: bool,
}

/// The whole script of the empty table.
pub fn definition(variant: Variant) -> String {
    let mut script = format!("table {TABLE} {{\n");
    for set in SETS {
        script.push_str(&declaration(set));
    }
    let _ = writeln!(script, "\tset {MARKING} {{ type nf_proto; }}");
    script.push_str(GUARD);
    script.push_str(&nat(variant.elsewhere));
    script.push_str(&input(variant.sockets));
    script.push_str(&forward_chains());
    script.push_str("}\n");
    script
}

fn declaration(set: &Set) -> String {
    let types = |fields: &[Field]| {
        fields.iter().map(|field| field.nft_type()).collect::<Vec<_>>().join(" . ")
    };
    let mut line = String::from("\t");
    line.push_str(if set.value.is_empty() { "set" } else { "map" });
    let _ = write!(line, " {} {{ type {}", set.name, types(set.key));
    if !set.value.is_empty() {
        let _ = write!(line, " : {}", types(set.value));
    }
    line.push(';');
    if set.key.iter().any(|field| field.is_interval()) {
        line.push_str(" flags interval;");
    }
    line.push_str(" }\n");
    line
}

/// Our verdict on forwarded packets. One hook before the usual filter chains, so that a packet
/// dropped here costs them nothing and one accepted here still needs their accept too. Packets are
/// marked only while a tagged accept asks for the mark: a rule of the host's that compares whole marks
/// must not miss because of our bit.
///
/// INVALID packets that should have been translated on their way out are dropped (see [`input`]); a
/// routed network's may be half of an asymmetric route, and pass. None come in.
fn forward_chains() -> String {
    let mark = FORWARD_ACCEPT_MARK;
    let rest = !FORWARD_ACCEPT_MARK;
    format!(
        r#"
	chain accepted {{
		meta nfproto @marking meta mark set meta mark or {mark:#010x}
	}}
	chain others {{
		meta nfproto @marking meta mark and {mark:#010x} == {mark:#010x} meta mark set meta mark and {rest:#010x}
		meta nfproto @strict_forwarding drop
	}}
	chain forward {{
		type filter hook forward priority -1; policy accept;
		iifname != @bridges oifname != @bridges goto others
		ct state established,related goto accepted
		iifname . oifname @same_bridge goto accepted
		ct state invalid goto invalid
		iifname @internal_bridges drop
		oifname @internal_bridges drop
		ct status dnat oifname @bridges goto accepted
		oifname @bridges drop
		goto accepted
	}}
	chain invalid {{
		oifname @bridges drop
		iifname @internal_bridges drop
		ip saddr @masquerade4 drop
		ip6 saddr @masquerade6 drop
		meta l4proto . ip saddr . th sport @target4 drop
		meta l4proto . ip6 saddr . th sport @target6 drop
		goto accepted
	}}
	chain unmark {{
		type filter hook postrouting priority -301; policy accept;
		meta nfproto @marking meta mark and {mark:#010x} == {mark:#010x} meta mark set meta mark and {rest:#010x}
	}}
"#
    )
}
