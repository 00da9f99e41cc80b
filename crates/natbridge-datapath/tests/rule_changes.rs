//! What makes a verdict on the host's rules doubtful, and what does not. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Namespace, run};
use natbridge_datapath::firewall::read_foreign_ruleset;
use natbridge_datapath::host::Watch;

/// How often rules may have changed, and anything at all.
#[derive(Clone, Default)]
struct Heard {
    rules: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Heard {
    fn start(&self) -> Watch {
        let heard = self.clone();
        Watch::start(
            move |events| {
                heard.all.fetch_add(1, Ordering::SeqCst);
                if events.iter().any(|event| event.kind.concerns_rules()) {
                    heard.rules.fetch_add(1, Ordering::SeqCst);
                }
            },
            |_| {},
        )
        .unwrap()
    }

    fn wait(&self, line: &str) {
        // What came of the line before is over.
        sleep(Duration::from_millis(150));
        let before = self.rules.load(Ordering::SeqCst);
        run(line);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.rules.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < deadline, "not noticed: {line}");
            sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn every_change_of_rules_is_noticed_and_a_published_port_is_none() {
    let host = Namespace::new("rules");
    host.enter();
    run("ip link add d0 type veth peer name d9; ip link set d9 up; ip link set d0 up; ip addr add 10.5.0.1/24 dev d0
         nft 'add table inet natbridge; add map inet natbridge m { type inet_service : ipv4_addr; }'
         iptables-legacy -A FORWARD -s 10.5.0.2 -j DROP; ip6tables-legacy -A FORWARD -s fd00::2 -j DROP");
    let heard = Heard::default();
    let watch = heard.start();
    for line in [
        "nft 'add table ip t; add chain ip t c { type filter hook forward priority 0; }'",
        "nft 'add set ip t s { type ipv4_addr; }'",
        "nft 'add element ip t s { 10.0.0.1 }'",
        "nft 'add rule ip t c ip saddr @s limit rate 10/second accept'",
        "nft flush chain ip t c",
        "nft 'add chain inet natbridge extra'",
        "iptables-nft -A FORWARD -s 10.5.0.3 -j DROP",
        "tc qdisc add dev d0 root tbf rate 1mbit burst 10k latency 10ms",
        "tc qdisc del dev d0 root",
        "tc qdisc add dev d0 clsact",
        "tc filter add dev d0 ingress bpf bytecode '1,6 0 0 0'",
        "ip rule add from 10.5.0.9 lookup 99",
        "ip rule del from 10.5.0.9 lookup 99",
        "ip route add 10.6.0.0/16 tos 0x10 via 10.5.0.2",
        "ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out tmpl src 10.5.0.1 dst 10.5.0.2 proto esp mode tunnel",
        "ip link set d0 down; ip link set d0 name d1; ip link set d1 up",
        // Another number of entries; another entry in place of one; IPv6; a table that is new.
        "iptables-legacy -A FORWARD -s 10.5.0.4 -j DROP",
        "iptables-legacy -R FORWARD 1 -s 10.5.0.5 -j DROP",
        "iptables-legacy -P FORWARD DROP",
        "ip6tables-legacy -R FORWARD 1 -s fd00::3 -j DROP",
        "iptables-legacy -t mangle -A FORWARD -s 10.5.0.6 -j DROP",
        // With a lock that nobody watches, as from a container of the host's network.
        "XTABLES_LOCKFILE=$(mktemp -u) iptables-legacy -R FORWARD 1 -s 10.5.0.7 -j DROP",
    ] {
        heard.wait(line);
    }
    sleep(Duration::from_millis(300));
    let rules = heard.rules.load(Ordering::SeqCst);
    let all = heard.all.load(Ordering::SeqCst);
    run("nft 'add element inet natbridge m { 80 : 10.0.0.1, 81 : 10.0.0.2 }'
         nft 'delete element inet natbridge m { 80 }'
         ip link add br0 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br0 up
         ip link set v1 up; ip link set br0 up; ip addr add 10.7.0.1/24 dev br0
         ip route add 10.77.0.0/16 dev br0; ping -c1 -W1 10.7.0.9 || true; ip link del v0
         iptables-legacy -L -n >/dev/null; nft list ruleset >/dev/null");
    sleep(Duration::from_millis(500));
    assert!(heard.all.load(Ordering::SeqCst) > all, "it heard of nothing");
    assert_eq!(heard.rules.load(Ordering::SeqCst), rules, "what is no rule was taken for one");
    assert!(watch.listens());
}

#[test]
fn foreign_tables_are_read_one_by_one_whatever_their_names() {
    let host = Namespace::new("foreign");
    host.enter();
    let nft = |text: &str| run(&format!("nft '{text}'"));
    let listed = || -> serde_json::Value {
        serde_json::from_str(&read_foreign_ruleset().unwrap().nft).unwrap()
    };
    assert_eq!(listed(), serde_json::json!({ "nftables": [] }));
    nft("add table inet natbridge; add set inet natbridge own { type inet_service; }");
    nft(
        "add table ip plain; add chain ip plain c; add rule ip plain c counter comment \"natbridge\"",
    );
    for family in ["ip6", "arp", "bridge", "netdev"] {
        nft(&format!("add table {family} plain"));
    }
    // What the kernel takes and nft's own language would not.
    run(
        "printf '{\"nftables\":[{\"add\":{\"table\":{\"family\":\"inet\",\"name\":\"table\"}}},{\"add\":{\"table\":{\"family\":\"inet\",\"name\":\"a b\"}}}]}' | nft -j -f -",
    );
    // Our accept, as natbridge puts it into a foreign chain.
    nft("add chain ip plain f { type filter hook forward priority 0; policy drop; }");
    natbridge_datapath::firewall::ensure_forward_accepts().unwrap();
    let listing = listed();
    let tables: Vec<String> = listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|object| object.get("table"))
        .map(|table| format!("{} {}", table["family"], table["name"]).replace('"', ""))
        .collect();
    let mut sorted = tables.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        [
            "arp plain",
            "bridge plain",
            "inet a b",
            "inet table",
            "ip plain",
            "ip6 plain",
            "netdev plain"
        ]
    );
    let rules = listing["nftables"].as_array().unwrap().iter();
    assert_eq!(rules.filter(|object| object.get("rule").is_some()).count(), 1, "{listing}");
}
