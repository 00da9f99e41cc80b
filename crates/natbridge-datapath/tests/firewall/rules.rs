//! Takes each rule of the table out in turn: some packet must notice, and the table must mend.

use std::fmt;

use natbridge_datapath::firewall::{apply_firewall, ensure_forward_accepts};
use serde_json::Value;

use super::namespaces::Namespaces;
use super::scenarios::{Setting, failures};
use super::{BRIDGED, loopback_leaks, segments, topology};

/// Rules whose absence no packet of this test can show, each with its reason.
const UNPROVABLE: [&str; 7] = [
    // Proved by tests of their own.
    "masquerading meta l4proto { tcp, udp, sctp } meta nfproto ipv4 meta l4proto . th sport @published4 masquerade to :61000-65535",
    "masquerading meta l4proto { tcp, udp, sctp } meta nfproto ipv6 meta l4proto . th sport @published6 masquerade to :61000-65535",
    "masquerading udp sport @bound_udp masquerade to :61000-65535",
    // The kernel's own check comes first (ip6_rcv_core); ours holds should it ever not.
    "guard ip6 daddr ::1 drop",
    "guard ip6 saddr ::1 drop",
    // Shortcuts: without them the rules behind decide the same, only later.
    "guard ct state established,related accept",
    "guard iifname \"lo\" accept",
];

/// Chains that are asked about segments of no connection first: most of their rules are about those.
const OF_SEGMENTS: [&str; 3] = ["input", "untranslated", "invalid"];

#[test]
fn every_rule_has_a_packet_that_proves_it() {
    let namespaces = topology::build("each");
    let count = apply(&namespaces, false);
    let mut unprovable = UNPROVABLE.to_vec();
    let mut unnoticed = Vec::new();
    for index in 0..count {
        let rule = delete(&namespaces, index);
        if let Some(known) = unprovable.iter().position(|name| *name == rule.to_string()) {
            unprovable.swap_remove(known);
        } else if !rule.is_sctp_alone() && !is_noticed(&namespaces, &rule, index) {
            unnoticed.push(rule.to_string());
        }
        apply(&namespaces, false);
    }
    assert!(unnoticed.is_empty(), "no packet notices the absence of:\n{}", unnoticed.join("\n"));
    assert_eq!(unprovable, Vec::<&str>::new(), "no such rules");
}

/// Some packet fares otherwise without the rule. The likeliest are sent first: the first that
/// notices is enough.
fn is_noticed(namespaces: &Namespaces, rule: &Rule, index: usize) -> bool {
    let scenarios = |strict_forwarding| {
        BRIDGED.into_iter().any(|bridge_netfilter| {
            let setting = Setting { bridge_netfilter, strict_forwarding };
            !failures(namespaces, setting).is_empty()
        })
    };
    let segments = || !segments::wrong_answers(namespaces).is_empty();
    let likely = if OF_SEGMENTS.contains(&rule.chain.as_str()) {
        segments() || scenarios(false)
    } else if rule.text.contains("127.0.0.0/8") && rule.chain == "guard" {
        loopback_leaks(namespaces)
    } else {
        scenarios(false) || segments()
    };
    likely || {
        apply(namespaces, true);
        delete(namespaces, index);
        scenarios(true)
    }
}

struct Rule {
    chain: String,
    text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.chain, self.text)
    }
}

impl Rule {
    /// Its like for TCP and UDP is proved; std has no SCTP.
    fn is_sctp_alone(&self) -> bool {
        self.text.contains("sctp dport")
    }
}

/// Writes the table; answers how many rules it has.
fn apply(namespaces: &Namespaces, strict_forwarding: bool) -> usize {
    namespaces.inside("host", || {
        apply_firewall(&topology::spec(strict_forwarding)).unwrap();
        ensure_forward_accepts().unwrap();
    });
    rules(namespaces).len()
}

/// Deletes a rule by its number.
fn delete(namespaces: &Namespaces, index: usize) -> Rule {
    let (chain, handle) = rules(namespaces).swap_remove(index);
    let listing = namespaces.run("host", "nft -a -t list table inet natbridge");
    // Handles are the table's: no chain or set has the same.
    let suffix = format!(" # handle {handle}");
    let text = listing.lines().find_map(|line| line.strip_suffix(&suffix)).unwrap().trim();
    namespaces.run("host", &format!("nft delete rule inet natbridge {chain} handle {handle}"));
    Rule { chain, text: text.to_owned() }
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
