//! Programs of others beside natbridge's own. Needs root and a kernel with tcx (6.6).

#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::foreign::Foreign;
use common::topology::{Topology, counters};
use common::wire::{answer, in_namespace};
use common::{Loaded, ifindex};
use libbpf_sys::{BPF_F_AFTER, BPF_F_BEFORE, BPF_TCX_EGRESS, BPF_TCX_INGRESS};
use natbridge_datapath::fastpath::{ForeignHook, ProgramWatch};

const PORT: u16 = 7000;
const BURST: u64 = 2000;

struct Bench {
    topology: Topology,
    loaded: Loaded,
    devices: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        let topology = Topology::new(0);
        let loaded = Loaded::new();
        Topology::attach(&loaded.fast_path);
        let devices = ["up0", "hv0", "br0"].map(ifindex).to_vec();
        Self { topology, loaded, devices }
    }

    /// The device and hook of each foreign program, and whether it hinders.
    fn foreign(&self) -> Vec<(u32, ForeignHook, bool)> {
        let found = self.loaded.fast_path.foreign_programs(&self.devices).unwrap();
        assert!(found.iter().all(|program| program.name == "policer" && program.id != 0));
        found.iter().map(|program| (program.ifindex, program.hook, program.hinders)).collect()
    }

    /// Sends a burst from the sandbox to the client or back; answers how many were fast.
    fn burst(&self, outbound: bool) -> u64 {
        let (own, far) = ("172.32.0.10", "10.9.0.2");
        let (web, client) = (&self.topology.web, &self.topology.client);
        let (from, to) = if outbound { (web, client) } else { (client, web) };
        let (target, bound, device) = if outbound {
            ((far, PORT), (far, PORT), "hv0")
        } else {
            (("10.9.0.1", 8080), (own, 80), "up0")
        };
        let sink = in_namespace(to, || UdpSocket::bind(bound).unwrap());
        let socket = in_namespace(from, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        sink.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let before = counters(&self.loaded.fast_path, device).fast_packets;
        let mut buffer = [0; 64];
        socket.send_to(&[1; 32], target).unwrap();
        answer(&sink);
        socket.recv(&mut buffer).unwrap();
        for _ in 1..BURST {
            socket.send_to(&[1; 32], target).unwrap();
            sink.recv(&mut buffer).unwrap();
        }
        counters(&self.loaded.fast_path, device).fast_packets - before
    }
}

#[test]
fn natbridge_lets_others_go_first_where_it_sends_packets_on() {
    let bench = Bench::new();
    let [uplink, endpoint, _] = bench.devices[..] else { panic!("devices") };
    assert_eq!(bench.foreign(), []);
    for (device, outbound) in [(uplink, false), (endpoint, true)] {
        let foreign = Foreign::attach(device, BPF_TCX_INGRESS, BPF_F_AFTER);
        bench.loaded.fast_path.bump_generation();
        let fast = bench.burst(outbound);
        assert!(fast > BURST / 2 && foreign.seen() < BURST, "behind, it sees not all: {fast}");
        let before = counters(&bench.loaded.fast_path, "hv0");
        assert_eq!(bench.foreign(), [(device, ForeignHook::Ingress, false)]);
        let seen = foreign.seen();
        let fast = bench.burst(outbound);
        assert!(fast > BURST / 2, "{fast} of {BURST} were fast");
        assert!(foreign.seen() - seen >= BURST, "{} of {BURST} seen", foreign.seen() - seen);
        // It is one program again, counting every packet once.
        let after = counters(&bench.loaded.fast_path, "hv0");
        let counted = if outbound {
            after.from_device_packets - before.from_device_packets
        } else {
            after.to_device_packets - before.to_device_packets
        };
        assert!((BURST..BURST + 100).contains(&counted), "{counted} counted");
        drop(foreign);
        assert_eq!(bench.foreign(), []);
    }
}

#[test]
fn natbridge_learns_before_others_change_what_leaves() {
    let bench = Bench::new();
    let uplink = bench.devices[0];
    let foreign = Foreign::attach(uplink, BPF_TCX_EGRESS, BPF_F_BEFORE);
    assert_eq!(bench.foreign(), [(uplink, ForeignHook::Egress, false)]);
    assert!(bench.burst(true) > BURST / 2);
    assert!(foreign.seen() >= BURST, "cached packets pass what is on the uplink's egress hook");
}

#[test]
fn programs_that_cached_packets_go_around_hinder() {
    let bench = Bench::new();
    let [_, endpoint, bridge] = bench.devices[..] else { panic!("devices") };
    for (device, hook, word) in [
        (endpoint, BPF_TCX_EGRESS, ForeignHook::Egress),
        (bridge, BPF_TCX_EGRESS, ForeignHook::Egress),
        (bridge, BPF_TCX_INGRESS, ForeignHook::Ingress),
    ] {
        for flags in [BPF_F_BEFORE, BPF_F_AFTER] {
            let foreign = Foreign::attach(device, hook, flags);
            assert_eq!(bench.foreign(), [(device, word, true)]);
            drop(foreign);
        }
    }
    assert_eq!(bench.foreign(), []);
}

#[test]
fn somebody_who_insists_on_the_last_place_gets_it_and_hinders() {
    let bench = Bench::new();
    let uplink = bench.devices[0];
    let mut foreign = Vec::new();
    for _ in 0..3 {
        foreign.push(Foreign::attach(uplink, BPF_TCX_INGRESS, BPF_F_AFTER));
        assert!(bench.foreign().iter().all(|(_, _, hinders)| !hinders));
    }
    foreign.push(Foreign::attach(uplink, BPF_TCX_INGRESS, BPF_F_AFTER));
    let hindering = |found: Vec<(u32, ForeignHook, bool)>| {
        found.iter().filter(|(_, _, hinders)| *hinders).count()
    };
    assert_eq!(hindering(bench.foreign()), 1);
    assert_eq!(hindering(bench.foreign()), 1);
    drop(foreign);
    assert_eq!(bench.foreign(), []);
    let _again = Foreign::attach(uplink, BPF_TCX_INGRESS, BPF_F_AFTER);
    assert_eq!(hindering(bench.foreign()), 0, "nobody was there in between");
}

#[test]
fn a_program_that_comes_or_goes_is_noticed() {
    let topology = Topology::new(0);
    // The watch outlives whatever it was started from.
    let loaded: &'static Loaded = Box::leak(Box::new(Loaded::new()));
    let _unload = Unload(&loaded.options.pin_directory);
    Topology::attach(&loaded.fast_path);
    let devices = ["up0", "hv0", "br0"].map(ifindex).to_vec();
    let known = loaded.fast_path.foreign_programs(&devices).unwrap();
    let heard = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&heard);
    let bridge = devices[2];
    let watch = ProgramWatch::start(
        known,
        move || loaded.fast_path.query_programs(&devices).ok(),
        move || {
            count.fetch_add(1, Ordering::SeqCst);
        },
    )
    .unwrap();
    let wait_for = |times: u32| {
        let started = Instant::now();
        while heard.load(Ordering::SeqCst) < times {
            assert!(started.elapsed() < Duration::from_secs(10), "change {times} was not heard of");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let foreign = Foreign::attach(bridge, BPF_TCX_INGRESS, BPF_F_AFTER);
    wait_for(1);
    drop(foreign);
    wait_for(2);
    // natbridge's own are no news.
    loaded.fast_path.remove_device(ifindex("up0")).unwrap();
    loaded.fast_path.set_device(&Topology::uplink()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(heard.load(Ordering::SeqCst), 2);
    drop(watch);
    drop(topology);
}

/// Takes the programs off when it is dropped.
struct Unload<'a>(&'a str);

impl Drop for Unload<'_> {
    fn drop(&mut self) {
        natbridge_datapath::fastpath::unload(self.0).unwrap();
    }
}
