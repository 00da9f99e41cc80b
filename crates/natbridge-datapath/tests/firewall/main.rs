//! The kernel path with real packets: every rule of the table has a packet that proves it.
//!
//! Needs root; works in network namespaces of its own.

#![allow(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions fail a test by panicking"
)]

mod changes;
mod flush;
mod frames;
mod masquerade;
mod namespaces;
mod probe;
mod rules;
mod scenarios;
mod segments;
mod topology;

use natbridge_datapath::firewall::{
    apply_firewall, ensure_forward_accepts, remove_firewall, remove_forward_accepts,
};

use namespaces::Namespaces;
use scenarios::{Setting, failures};

const BRIDGED: [bool; 2] = [false, true];

#[test]
fn every_scenario_holds() {
    let namespaces = topology::build("all");
    for strict_forwarding in [false, true] {
        namespaces.inside("host", || apply_firewall(&topology::spec(strict_forwarding)).unwrap());
        namespaces.inside("host", || ensure_forward_accepts().unwrap());
        for bridge_netfilter in BRIDGED {
            let setting = Setting { bridge_netfilter, strict_forwarding };
            let failed = failures(&namespaces, setting);
            assert!(failed.is_empty(), "{setting:?}:\n{}", failed.join("\n"));
        }
        assert!(!loopback_leaks(&namespaces), "a loopback address came in from a wire");
        assert_eq!(segments::wrong_answers(&namespaces), Vec::<String>::new());
    }
    namespaces.inside("host", || {
        remove_forward_accepts().unwrap();
        remove_firewall().unwrap();
        remove_firewall().unwrap();
    });
}

/// A datagram to or from 127.0.0.0/8 comes in from a wire where `route_localnet` would let it.
fn loopback_leaks(namespaces: &Namespaces) -> bool {
    let address = |text: &str| text.parse().unwrap();
    frames::arrives(namespaces, "127.0.0.1", address("192.0.2.2"), address("127.0.0.1"))
        || frames::arrives(namespaces, "192.0.2.1", address("127.0.0.5"), address("192.0.2.1"))
}

#[test]
fn loopback_frames_would_come_in_without_the_table() {
    let namespaces = topology::build("lo");
    assert!(loopback_leaks(&namespaces), "the probe proves nothing");
}
