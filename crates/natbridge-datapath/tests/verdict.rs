//! Flows are carried as long as somebody living stands for the host's rules. Needs root and iperf3.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::topology::{Topology, counters};
use common::{Loaded, Namespace};
use natbridge_datapath::fastpath::FastPath;

const HOUR: Duration = Duration::from_secs(3600);

/// Kills its process when dropped.
struct Process(Child);

impl Process {
    fn start(namespace: &Namespace, line: &str) -> Self {
        let mut command = namespace.command(&format!("exec {line}"));
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fast(fast_path: &FastPath) -> u64 {
    ["up0", "hv0"].map(|name| counters(fast_path, name).fast_packets).iter().sum()
}

fn unjudged(fast_path: &FastPath) -> u64 {
    let passes = fast_path.counters().unwrap().passes;
    passes.iter().find(|count| count.reason == "rules_unjudged").unwrap().count
}

/// Waits until packets are fast again.
fn becomes_fast(fast_path: &FastPath, when: &str) {
    let before = fast(fast_path);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fast(fast_path) < before + 50 {
        assert!(Instant::now() < deadline, "no packet is fast {when}");
        sleep(Duration::from_millis(20));
    }
}

/// Demands that a thousand packets pass and none is fast.
fn is_not_fast(fast_path: &FastPath, when: &str) {
    let (before, passed) = (fast(fast_path), unjudged(fast_path));
    let deadline = Instant::now() + Duration::from_secs(10);
    while unjudged(fast_path) < passed + 1000 {
        assert!(Instant::now() < deadline, "no packet is passed on {when}");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(fast(fast_path), before, "fast packets {when}");
}

#[test]
fn a_verdict_stands_until_rules_change_or_its_lease_is_over() {
    let topology = Topology::new(0);
    let mut loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    let _server = Process::start(&topology.web, "iperf3 -s -p 80");
    sleep(Duration::from_millis(500));
    let _client =
        Process::start(&topology.client, "iperf3 -c 10.9.0.1 -p 8080 -t 60 -u -l 500 -b 10M");
    let _client6 =
        Process::start(&topology.client, "iperf3 -c fd00:9::1 -p 8080 -t 60 -u -l 500 -b 10M");
    {
        let fast_path = &loaded.fast_path;
        let switches = fast_path.switches();
        becomes_fast(fast_path, "at first");
        let seen = switches.rules_seen();
        switches.rules_changed();
        is_not_fast(fast_path, "after rules changed");
        assert!(!switches.renew_verdict(HOUR).unwrap(), "renewed for rules that changed");
        assert!(!switches.accept_verdict(seen, HOUR).unwrap(), "judged before they changed");
        is_not_fast(fast_path, "by a verdict on the rules of before");
        assert!(switches.accept_verdict(switches.rules_seen(), HOUR).unwrap());
        becomes_fast(fast_path, "after they were judged");

        assert!(switches.renew_verdict(Duration::from_millis(100)).unwrap());
        sleep(Duration::from_millis(200));
        assert!(!switches.verdict_stands().unwrap());
        let generation = fast_path.counters().unwrap().generation;
        is_not_fast(fast_path, "after the lease");
        assert!(switches.renew_verdict(HOUR).unwrap());
        assert!(fast_path.counters().unwrap().generation > generation, "flows outlived it");
        becomes_fast(fast_path, "after it was renewed");
    }
    let (next, adopted) = FastPath::load(&loaded.options).unwrap();
    assert!(adopted);
    loaded.fast_path = next;
    let (fast_path, switches) = (&loaded.fast_path, loaded.fast_path.switches());
    becomes_fast(fast_path, "by the verdict of the process before");
    assert!(!switches.renew_verdict(HOUR).unwrap(), "stood for another's verdict");
    assert!(switches.accept_verdict(switches.rules_seen(), HOUR).unwrap());
    assert!(switches.renew_verdict(HOUR).unwrap());
}

#[test]
fn nothing_is_carried_before_the_first_verdict() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    let switches = loaded.fast_path.switches();
    // As just loaded: no lease at all.
    switches.accept_verdict(switches.rules_seen(), Duration::ZERO).unwrap();
    Topology::attach(&loaded.fast_path);
    let _server = Process::start(&topology.web, "iperf3 -s -p 80");
    sleep(Duration::from_millis(500));
    let _client =
        Process::start(&topology.client, "iperf3 -c 10.9.0.1 -p 8080 -t 60 -u -l 500 -b 10M");
    is_not_fast(&loaded.fast_path, "unjudged");
}
