//! The fast path on real traffic through real rules. Needs root and iperf3.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::topology::{Topology, counters, fast_share};
use common::{Loaded, Namespace, run};
use natbridge_datapath::fastpath::Mechanism;

/// Kills its process when dropped.
struct Server(Child);

impl Server {
    fn iperf3(namespace: &Namespace, port: u16) -> Self {
        let line = format!("exec iperf3 -s -p {port}");
        let child = namespace.command(&line).stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(300));
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs iperf3 and demands that nearly all of its bulk packets were fast.
fn expect_fast(loaded: &Loaded, from: &Namespace, line: &str, bulk: &str, acknowledged: bool) {
    let read = || (counters(&loaded.fast_path, "up0"), counters(&loaded.fast_path, "hv0"));
    let (uplink, endpoint) = read();
    let output = from.run(line);
    let (uplink_after, endpoint_after) = read();
    let shares = [fast_share(&uplink, &uplink_after), fast_share(&endpoint, &endpoint_after)];
    let whole = format!("{line}: {shares:?}\n{output}\n{:?}", loaded.fast_path.counters().unwrap());
    let (there, back) = if bulk == "up0" { (shares[0], shares[1]) } else { (shares[1], shares[0]) };
    assert!(there >= 0.95, "bulk: {whole}");
    assert!(!acknowledged || back >= 0.95, "answers: {whole}");
}

fn every_direction_is_fast(bridge_nf_call_iptables: u8, mechanism: Option<Mechanism>) {
    let topology = Topology::new(bridge_nf_call_iptables);
    let loaded = Loaded::with(|options| options.mechanism = mechanism);
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    let _outside = Server::iperf3(&topology.client, 5201);
    let (client, web) = (&topology.client, &topology.web);
    for (published, outside) in [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")] {
        let inbound = format!("iperf3 -c {published} -p 8080 -t 2");
        expect_fast(&loaded, client, &inbound, "up0", true);
        expect_fast(&loaded, client, &format!("{inbound} -R"), "hv0", true);
        expect_fast(&loaded, client, &format!("{inbound} -u -b 200M -l 1000"), "up0", false);
        let outbound = format!("iperf3 -c {outside} -t 2");
        expect_fast(&loaded, web, &outbound, "hv0", true);
        expect_fast(&loaded, web, &format!("{outbound} -u -b 200M -l 1000"), "hv0", false);
    }
    let sandbox = topology.sandbox_counters();
    let ours = counters(&loaded.fast_path, "hv0");
    // Neighbour discovery before the programs were attached is all that may differ.
    let close = |theirs: u64, ours: u64| theirs >= ours && theirs - ours < 5000;
    assert!(close(sandbox[0], ours.to_device_bytes), "{sandbox:?} {ours:?}");
    assert!(close(sandbox[1], ours.to_device_packets), "{sandbox:?} {ours:?}");
    assert!(close(sandbox[2], ours.from_device_bytes), "{sandbox:?} {ours:?}");
    assert!(close(sandbox[3], ours.from_device_packets), "{sandbox:?} {ours:?}");
    assert!(ours.drops.is_empty(), "{ours:?}");
}

#[test]
fn bulk_flows_are_fast_in_both_directions() {
    every_direction_is_fast(0, None);
}

#[test]
fn bulk_flows_are_fast_with_bridge_netfilter() {
    every_direction_is_fast(1, None);
}

#[test]
fn bulk_flows_are_fast_by_clsact_filters() {
    every_direction_is_fast(0, Some(Mechanism::Clsact));
}

#[test]
fn a_flow_is_learned_within_its_first_hundred_packets() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    for published in ["10.9.0.1", "fd00:9::1"] {
        let before = counters(&loaded.fast_path, "up0").fast_packets;
        topology.client.run(&format!("iperf3 -c {published} -p 8080 -u -b 10M -l 1000 -n 100000"));
        let fast = counters(&loaded.fast_path, "up0").fast_packets - before;
        assert!(fast >= 30, "{published}: {fast} of 100");
    }
}

/// Bytes the sandbox has received.
fn received(topology: &Topology) -> u64 {
    topology.sandbox_counters()[0]
}

#[test]
fn a_drop_stops_a_transfer_within_a_second_and_its_removal_lets_it_go_on() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    let line = "exec iperf3 -c 10.9.0.1 -p 8080 -t 8 >/dev/null";
    let mut client = Server(topology.client.command(line).spawn().unwrap());
    sleep(Duration::from_secs(1));
    let start = received(&topology);
    sleep(Duration::from_millis(500));
    assert!(received(&topology) - start > 10_000_000, "no transfer");
    run(
        "nft 'add table ip other; add chain ip other forward {
        type filter hook forward priority 10; }; add rule ip other forward ip saddr 10.9.0.2 drop'",
    );
    sleep(Duration::from_secs(1));
    let stopped = received(&topology);
    sleep(Duration::from_secs(1));
    assert_eq!(received(&topology) - stopped, 0, "the transfer goes on");
    run("nft delete table ip other");
    sleep(Duration::from_secs(3));
    assert!(received(&topology) - stopped > 10_000_000, "the transfer does not go on");
    assert!(client.0.wait().unwrap().success());
}

#[test]
fn the_receiving_stack_accepts_complete_and_partial_checksums() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    // Without offloads the sender's stack sums up each packet, and the receiver's checks it.
    topology.client.run("ethtool -K eth0 tx off tso off gso off >/dev/null");
    topology.web.run("ethtool -K eth0 tx off rx off >/dev/null");
    run("ethtool -K up0 rx off >/dev/null; ethtool -K hv0 rx off >/dev/null");
    for published in ["10.9.0.1", "fd00:9::1"] {
        let inbound = format!("iperf3 -c {published} -p 8080 -t 1");
        expect_fast(&loaded, &topology.client, &inbound, "up0", false);
        expect_fast(&loaded, &topology.client, &format!("{inbound} -R"), "hv0", false);
        let datagrams = format!("{inbound} -u -b 100M -l 1000");
        expect_fast(&loaded, &topology.client, &datagrams, "up0", false);
    }
    for namespace in [&topology.web, &topology.client] {
        let errors = namespace.run("nstat -asz | grep -E 'InCsumErrors|Udp6InCsumErrors' || true");
        assert!(errors.lines().count() >= 2, "nstat does not tell: {errors}");
        assert!(errors.lines().all(|line| line.split_whitespace().nth(1) == Some("0")), "{errors}");
    }
}

#[test]
fn switched_off_no_packet_is_fast_and_traffic_goes_on() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    natbridge_datapath::fastpath::set_fast_path_enabled(&loaded.options.pin_directory, false)
        .unwrap();
    topology.client.run("iperf3 -c 10.9.0.1 -p 8080 -t 1");
    for device in ["up0", "hv0"] {
        let counters = counters(&loaded.fast_path, device);
        assert_eq!(counters.fast_packets, 0);
        assert!(counters.kernel_packets > 100);
    }
    assert!(loaded.fast_path.list_flows().unwrap().is_empty());
}

#[test]
fn a_transfer_survives_on_off_reload_and_unload() {
    let topology = Topology::new(0);
    let mut loaded = Some(Loaded::new());
    let options = loaded.as_ref().unwrap().options.clone();
    Topology::attach(&loaded.as_ref().unwrap().fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    // Longer than all this takes on any machine.
    let line = "exec iperf3 -c 10.9.0.1 -p 8080 -t 120 >/dev/null";
    let mut client = Server(topology.client.command(line).spawn().unwrap());
    for round in 0..10 {
        sleep(Duration::from_millis(200));
        natbridge_datapath::fastpath::set_fast_path_enabled(&options.pin_directory, round % 2 == 1)
            .unwrap();
    }
    for _ in 0..5 {
        sleep(Duration::from_millis(200));
        let (again, adopted) = natbridge_datapath::fastpath::FastPath::load(&options).unwrap();
        assert!(adopted);
        // As a daemon does that has judged the rules.
        common::stand_for_the_rules(&again);
        loaded.as_mut().unwrap().fast_path = again;
    }
    sleep(Duration::from_millis(500));
    let before = counters(&loaded.as_ref().unwrap().fast_path, "up0");
    sleep(Duration::from_millis(500));
    let after = counters(&loaded.as_ref().unwrap().fast_path, "up0");
    assert!(fast_share(&before, &after) > 0.9, "adopted programs learn no more");
    drop(loaded.take());
    let unloaded = received(&topology);
    sleep(Duration::from_millis(500));
    assert!(received(&topology) - unloaded > 10_000_000, "unloading stopped the transfer");
    assert!(client.0.try_wait().unwrap().is_none(), "the transfer ended early");
}

/// Fast packets and how often `reason` kept a packet from being fast or learned.
fn fast_and(loaded: &Loaded, reason: &str) -> (u64, u64) {
    let fast = ["up0", "hv0"].map(|name| counters(&loaded.fast_path, name).fast_packets);
    let passes = loaded.fast_path.counters().unwrap().passes;
    (fast.iter().sum(), passes.iter().find(|count| count.reason == reason).unwrap().count)
}

/// Adds rules to the host, sends a bulk flow through the published port, and demands that it came
/// through without one fast packet, for that reason.
fn expect_not_learned(rules: &str, reason: &str) {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _web = Server::iperf3(&topology.web, 80);
    run(&format!("nft -f - <<'END'\n{rules}\nEND"));
    topology.client.run("iperf3 -c 10.9.0.1 -p 8080 -t 1");
    let (fast, kept) = fast_and(&loaded, reason);
    assert_eq!(fast, 0, "{rules}");
    assert!(kept > 10, "{rules}: {:?}", loaded.fast_path.counters().unwrap());
    // The same flow without the rules is fast: it was they that kept it from being so.
    run("nft delete table ip other");
    topology.client.run("iperf3 -c 10.9.0.1 -p 8080 -t 1");
    assert!(fast_and(&loaded, reason).0 > 100, "{rules}: not fast without them either");
}

const MANGLED: &str = "packet_changed";

#[test]
fn a_ttl_set_by_a_foreign_rule_is_not_learned() {
    expect_not_learned(
        "table ip other { chain forward { type filter hook forward priority mangle;
         ip ttl set 33
         }
         }",
        MANGLED,
    );
}

#[test]
fn a_dscp_set_by_a_foreign_rule_is_not_learned() {
    expect_not_learned(
        "table ip other { chain postrouting { type filter hook postrouting priority mangle;
         ip dscp set af41
         }
         }",
        MANGLED,
    );
}

#[test]
fn a_flow_with_a_helper_is_not_learned() {
    expect_not_learned(
        "table ip other { ct helper ftp { type \"ftp\" protocol tcp; }
         chain prerouting { type filter hook prerouting priority mangle;
         tcp dport 8080 ct helper set \"ftp\"
         }
         }",
        "conntrack_helper",
    );
}

#[test]
fn a_flow_in_a_zone_of_its_own_is_not_learned() {
    expect_not_learned(
        "table ip other { chain prerouting { type filter hook prerouting priority raw;
         ct zone set 7
         }
         }",
        "no_conntrack",
    );
}

/// A sandbox that asks for its own published port: both directions arrive and leave by `hv0`.
fn hairpin_is_fast(bridge_nf_call_iptables: u8) {
    let topology = Topology::new(bridge_nf_call_iptables);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    run(
        "ip link set hv0 type bridge_slave hairpin on
         nft add rule inet nat postrouting oifname br0 ip saddr 172.32.0.0/24 ct status dnat masquerade
         nft add rule inet nat postrouting oifname br0 ip6 saddr fd00:32::/64 ct status dnat masquerade",
    );
    let _web = Server::iperf3(&topology.web, 80);
    for published in ["10.9.0.1", "fd00:9::1"] {
        let line = format!("iperf3 -c {published} -p 8080 -t 2");
        expect_fast(&loaded, &topology.web, &line, "hv0", false);
        expect_fast(&loaded, &topology.web, &format!("{line} -R"), "hv0", false);
    }
}

#[test]
fn hairpin_is_fast_without_bridge_netfilter() {
    hairpin_is_fast(0);
}

#[test]
fn hairpin_is_fast_with_bridge_netfilter() {
    hairpin_is_fast(1);
}
