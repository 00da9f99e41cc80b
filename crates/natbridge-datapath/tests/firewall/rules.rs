//! Takes each rule of the table out in turn: some packet must notice, and the table must mend.

use std::fmt;
use std::thread;

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

/// What taking rules out has shown.
#[derive(Default)]
struct Findings {
    unnoticed: Vec<String>,
    unprovable: Vec<String>,
}

#[test]
fn every_rule_has_a_packet_that_proves_it() {
    // Mostly it waits for silence: two hosts at once.
    let halves = thread::scope(|scope| {
        let halves = ["each0", "each1"].map(|label| {
            let first = usize::from(label.ends_with('1'));
            scope.spawn(move || without_every_other(label, first))
        });
        halves.map(|half| half.join().unwrap())
    });
    let unnoticed: Vec<&str> =
        halves.iter().flat_map(|half| &half.unnoticed).map(String::as_str).collect();
    let known: usize = halves.iter().map(|half| half.unprovable.len()).sum();
    assert!(unnoticed.is_empty(), "no packet notices the absence of:\n{}", unnoticed.join("\n"));
    assert_eq!(known, UNPROVABLE.len(), "there is no such rule");
}

fn without_every_other(label: &str, first: usize) -> Findings {
    let namespaces = topology::build(label);
    let count = apply(&namespaces, false);
    let mut findings = Findings::default();
    for index in (first..count).step_by(2) {
        let rule = delete(&namespaces, index);
        let name = rule.to_string();
        if UNPROVABLE.contains(&name.as_str()) {
            findings.unprovable.push(name);
        } else if !rule.is_sctp_alone() && !is_noticed(&namespaces, &rule, index) {
            findings.unnoticed.push(name);
        }
        apply(&namespaces, false);
    }
    findings
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
