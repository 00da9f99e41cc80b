//! The kernel path with real packets: every rule of the table has a packet that proves it.
//!
//! Needs root; works in network namespaces of its own.

mod namespaces;
mod probe;
mod scenarios;
mod topology;

use natbridge_datapath::firewall::{
    apply_firewall, ensure_forward_accepts, remove_firewall, remove_forward_accepts,
};

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
    }
    namespaces.inside("host", || {
        remove_forward_accepts().unwrap();
        remove_firewall().unwrap();
        remove_firewall().unwrap();
    });
}
