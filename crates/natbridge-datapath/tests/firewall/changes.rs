//! What is changed in the kernel, and what is left alone.

use std::time::Instant;

use natbridge_datapath::ErrorKind;
use natbridge_datapath::firewall::{
    Family, FirewallChange, FirewallPort, FirewallSpec, Prefix, Protocol, apply_firewall,
    ensure_forward_accepts, read_foreign_ruleset, remove_firewall, remove_forward_accepts,
};

use super::namespaces::Namespaces;
use super::topology;

fn apply(namespaces: &Namespaces, spec: &FirewallSpec) -> FirewallChange {
    namespaces.inside("host", || apply_firewall(spec).unwrap())
}

fn handles(namespaces: &Namespaces) -> String {
    namespaces.run("host", "nft -a -t list table inet natbridge")
}

#[test]
fn only_differences_are_written() {
    let namespaces = Namespaces::new("diff", &["host"]);
    let mut spec = topology::spec(false);
    let first = apply(&namespaces, &spec);
    assert!(first.rebuilt && first.changed && first.elements_added > 60, "{first:?}");
    let before = handles(&namespaces);
    assert_eq!(apply(&namespaces, &spec), FirewallChange::default());

    spec.ports[0].target_port = 81;
    spec.ports[4].from.push(Prefix::parse("10.0.0.0/8", "from").unwrap());
    spec.ports[4].from.push(Prefix::parse("10.1.0.0/16", "from").unwrap());
    spec.ports.pop();
    spec.strict_forwarding = Family::ALL.into();
    let change = apply(&namespaces, &spec);
    assert_eq!(
        change,
        FirewallChange { changed: true, elements_added: 5, elements_removed: 4, rebuilt: false }
    );
    assert_eq!(apply(&namespaces, &spec), FirewallChange::default());
    assert_eq!(handles(&namespaces), before, "rules were written anew");
}

#[test]
fn what_others_did_to_the_table_is_undone() {
    let namespaces = Namespaces::new("mend", &["host"]);
    let spec = topology::spec(false);
    apply(&namespaces, &spec);
    let pristine = namespaces.run("host", "nft list table inet natbridge");
    for (damage, rebuilt) in [
        ("nft flush map inet natbridge tcp_wildcard4", false),
        ("nft add element inet natbridge bridges { \"other\" }", false),
        ("nft add element inet natbridge masquerade4 { 9.9.9.0-9.9.9.6 }", false),
        ("nft flush chain inet natbridge forward", true),
        ("nft insert rule inet natbridge forward accept", true),
        ("nft add set inet natbridge mine { type mark\\; }", true),
        ("nft add chain inet natbridge guard { policy drop\\; }", true),
        ("nft add table inet natbridge { flags dormant\\; }", true),
        ("nft delete table inet natbridge", true),
    ] {
        namespaces.run("host", damage);
        let change = apply(&namespaces, &spec);
        assert!(change.changed && change.rebuilt == rebuilt, "{damage}: {change:?}");
        let now = namespaces.run("host", "nft list table inet natbridge");
        assert_eq!(now, pristine, "{damage}");
    }
    namespaces.inside("host", || {
        remove_firewall().unwrap();
        remove_firewall().unwrap();
    });
    assert_eq!(namespaces.run("host", "nft list ruleset"), "");
}

#[test]
fn bad_specifications_change_nothing() {
    let namespaces = Namespaces::new("bad", &["host"]);
    apply(&namespaces, &topology::spec(false));
    let before = namespaces.run("host", "nft -a list ruleset");
    let mut spec = topology::spec(true);
    spec.networks[1].bridge = "x\" }; flush ruleset; #".into();
    let error = namespaces.inside("host", || apply_firewall(&spec).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().starts_with("networks[1].bridge:"), "{error}");
    assert_eq!(namespaces.run("host", "nft -a list ruleset"), before);
}

#[test]
fn ten_thousand_ports() {
    let namespaces = Namespaces::new("many", &["host"]);
    let port = |number: u16| FirewallPort {
        protocol: Protocol::Tcp,
        host_address: "0.0.0.0".parse().unwrap(),
        host_port: number,
        target_address: Some("172.32.0.10".parse().unwrap()),
        target_port: 80,
        from: vec![],
    };
    let mut spec = topology::spec(false);
    spec.ports = (1..=10_000).map(port).collect();
    let timed = |spec: &FirewallSpec| {
        let begun = Instant::now();
        let change = apply(&namespaces, spec);
        println!("{change:?} in {:?}", begun.elapsed());
        (change, begun.elapsed().as_millis())
    };
    let (_, all) = timed(&spec);
    // Its translation, its socket and its number; they share their target.
    const PER_PORT: usize = 3;
    spec.ports.push(port(10_001));
    let (one, single) = timed(&spec);
    assert_eq!((one.elements_added, one.elements_removed, one.rebuilt), (PER_PORT, 0, false));
    spec.ports.truncate(1);
    let (rest, removal) = timed(&spec);
    let gone = 10_000 * PER_PORT;
    assert_eq!((rest.elements_added, rest.elements_removed, rest.rebuilt), (0, gone, false));
    // Half a second on an idle machine; the tests share it with others.
    for took in [all, single, removal] {
        assert!(took < 3000, "took {took} ms");
    }
}

/// Forward chains of every kind; the names of one are words of nft's language.
const HOSTILE: &str = r#"
    for program in iptables-nft ip6tables-nft; do for chain in INPUT OUTPUT; do
        $program -P $chain ACCEPT; done; done;
    iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i foo -j ACCEPT;
    ip6tables-nft -P FORWARD DROP;
    iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i foo -j ACCEPT;
    echo "{\"nftables\": [
        {\"add\": {\"table\": {\"family\": \"inet\", \"name\": \"dnat\"}}},
        {\"add\": {\"chain\": {\"family\": \"inet\", \"table\": \"dnat\", \"name\": \"fwd\",
            \"type\": \"filter\", \"hook\": \"forward\", \"prio\": 5, \"policy\": \"drop\"}}}]}" | nft -j -f -;
    nft add table inet open; nft add chain inet open onward { type filter hook forward priority 6\; policy accept\; }"#;

#[test]
fn accepts_stand_last_once_and_go_without_a_trace() {
    let namespaces = Namespaces::new("accepts", &["host"]);
    namespaces.run("host", HOSTILE);
    let everything = "nft list ruleset; iptables-legacy -S; iptables-nft -S; ip6tables-nft -S";
    let before = sorted_lines(&namespaces.run("host", everything));
    let foreign = namespaces.inside("host", || read_foreign_ruleset().unwrap());
    let ensure = || {
        let accepts = namespaces.inside("host", || ensure_forward_accepts().unwrap());
        let mut all: Vec<String> =
            accepts.iter().map(|accept| format!("{} {}", accept.chain, accept.inserted)).collect();
        // iptables-restore makes its tables anew, behind the others.
        all.sort();
        all.join(", ")
    };
    let all = |inserted: [bool; 4]| {
        let [legacy, native, ipv4, ipv6] = inserted;
        format!(
            "iptables-legacy filter FORWARD {legacy}, nft inet dnat fwd {native}, \
             nft ip filter FORWARD {ipv4}, nft ip6 filter FORWARD {ipv6}"
        )
    };
    assert_eq!(ensure(), all([true; 4]));
    assert_eq!(ensure(), all([false; 4]));
    for program in ["iptables-nft", "iptables-legacy"] {
        let rules = namespaces.run("host", &format!("{program} -S FORWARD; {program} -L FORWARD"));
        assert!(
            rules.contains("--mark 0x200000/0x200000 -m comment --comment natbridge -j ACCEPT"),
            "{rules}"
        );
    }
    // Our own rules are none of the foreign ones.
    let now = namespaces.inside("host", || read_foreign_ruleset().unwrap());
    assert_eq!(rules_of(&now.nft), rules_of(&foreign.nft));
    assert_eq!(now.legacy, foreign.legacy);
    // Something new behind ours: ours moves, also after a save and restore.
    namespaces.run(
        "host",
        "iptables-nft -A FORWARD -i bar -j DROP; iptables-legacy -A FORWARD -i bar -j DROP",
    );
    namespaces.run("host", "iptables-nft-save > /tmp/fw-$$.save; iptables-nft-restore < /tmp/fw-$$.save; rm /tmp/fw-$$.save");
    assert_eq!(ensure(), all([true, false, true, false]));
    for program in ["iptables-nft", "iptables-legacy"] {
        let rules = namespaces.run("host", &format!("{program} -S FORWARD"));
        assert_eq!(rules.matches("natbridge").count(), 1, "{rules}");
        assert!(rules.lines().last().unwrap().contains("natbridge"), "{rules}");
        namespaces.run("host", &format!("{program} -D FORWARD -i bar -j DROP"));
    }
    // A policy that became accept needs none.
    namespaces.run("host", "ip6tables-nft -P FORWARD ACCEPT");
    assert!(!ensure().contains("ip6"));
    namespaces.run("host", "ip6tables-nft -P FORWARD DROP");
    assert!(ensure().contains("nft ip6 filter FORWARD true"));
    namespaces.inside("host", || {
        remove_forward_accepts().unwrap();
        remove_forward_accepts().unwrap();
    });
    assert_eq!(sorted_lines(&namespaces.run("host", everything)), before);
}

fn sorted_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Chains and rules without counts of packets.
fn rules_of(listing: &str) -> Vec<String> {
    let listing: serde_json::Value = serde_json::from_str(listing).unwrap();
    listing["nftables"].as_array().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn reading_makes_no_legacy_tables() {
    let namespaces = Namespaces::new("read", &["host"]);
    let foreign = namespaces.inside("host", || {
        ensure_forward_accepts().unwrap();
        remove_forward_accepts().unwrap();
        read_foreign_ruleset().unwrap()
    });
    assert_eq!(foreign.legacy, "");
    let tables = namespaces.inside("host", || {
        std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default()
    });
    assert_eq!(tables, "");
    apply(&namespaces, &topology::spec(false));
    let foreign = namespaces.inside("host", || read_foreign_ruleset().unwrap());
    assert!(!foreign.nft.contains("natbridge"));
}
