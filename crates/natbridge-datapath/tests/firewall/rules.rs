//! Takes each rule of the table out in turn: some packet must notice, and the table must mend.

use natbridge_datapath::firewall::{apply_firewall, ensure_forward_accepts};
use serde_json::Value;

use super::namespaces::Namespaces;
use super::scenarios::{Setting, failures};
use super::{BRIDGED, loopback_leaks, segments, topology};

/// Rules whose absence no packet of this machine can show, each with its reason.
const UNPROVABLE: [&str; 9] = [
    // Proved by tests of their own.
    "masquerading meta l4proto { tcp, udp, sctp } meta nfproto ipv4 meta l4proto . th sport @published4 masquerade to :61000-65535",
    "masquerading meta l4proto { tcp, udp, sctp } meta nfproto ipv6 meta l4proto . th sport @published6 masquerade to :61000-65535",
    "masquerading udp sport @bound_udp masquerade to :61000-65535",
    // The forward chain drops the same a moment later; here it is said once more for INVALID ones.
    "invalid oifname @bridges drop",
    "invalid goto accepted",
    // The kernel's own check comes first (ip6_rcv_core); ours holds should it ever not.
    "ip6 daddr ::1 drop",
    "ip6 saddr ::1 drop",
    // Shortcuts: without them the rules behind decide the same, only later.
    "guard ct state established,related accept",
    "guard iifname \"lo\" accept",
];

#[test]
fn every_rule_has_a_packet_that_proves_it() {
    let namespaces = topology::build("each");
    let strict = [false, true];
    let mut unnoticed = Vec::new();
    let count = apply(&namespaces, false);
    for index in 0..count {
        let mut noticed = false;
        let mut name = String::new();
        for strict_forwarding in strict {
            apply(&namespaces, strict_forwarding);
            name = delete(&namespaces, index);
            noticed = noticed || loopback_leaks(&namespaces);
            noticed = noticed || !segments::wrong_answers(&namespaces).is_empty();
            for bridge_netfilter in BRIDGED {
                let setting = Setting { bridge_netfilter, strict_forwarding };
                noticed = noticed || !failures(&namespaces, setting).is_empty();
            }
            if noticed {
                break;
            }
        }
        if !noticed && !UNPROVABLE.iter().any(|rule| name.ends_with(rule)) && !name.contains("sctp")
        {
            unnoticed.push(name);
        }
    }
    assert!(unnoticed.is_empty(), "no packet notices the absence of:\n{}", unnoticed.join("\n"));
}

/// Writes the table; answers how many rules it has.
fn apply(namespaces: &Namespaces, strict_forwarding: bool) -> usize {
    namespaces.inside("host", || {
        apply_firewall(&topology::spec(strict_forwarding)).unwrap();
        ensure_forward_accepts().unwrap();
    });
    rules(namespaces).len()
}

/// Deletes a rule by its number; answers its chain and text.
fn delete(namespaces: &Namespaces, index: usize) -> String {
    let (chain, handle) = rules(namespaces).swap_remove(index);
    let listing = namespaces.run("host", "nft -a list table inet natbridge");
    let suffix = format!(" # handle {handle}");
    let text = listing.lines().filter(|line| !line.contains('{') || line.contains("iif"));
    let text = text.filter_map(|line| line.strip_suffix(&suffix)).next_back().unwrap_or_default();
    namespaces.run("host", &format!("nft delete rule inet natbridge {chain} handle {handle}"));
    format!("{chain} {}", text.trim())
}

fn rules(namespaces: &Namespaces) -> Vec<(String, u64)> {
    let listing = namespaces.run("host", "nft -j list table inet natbridge");
    let listing: Value = serde_json::from_str(&listing).unwrap();
    let objects = listing["nftables"].as_array().unwrap().iter();
    objects
        .filter_map(|object| object.get("rule"))
        .map(|rule| (rule["chain"].as_str().unwrap().to_owned(), rule["handle"].as_u64().unwrap()))
        .collect()
}
