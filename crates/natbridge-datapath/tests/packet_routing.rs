//! Routing that tells packets of one connection apart. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Namespace, run};
use natbridge_datapath::host::list_packet_routing;

#[test]
fn rules_and_routes_by_traffic_class_are_listed() {
    let host = Namespace::new("routing");
    host.enter();
    run("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
         ip address add 10.7.0.1/24 dev v0; ip address add fd07::1/64 dev v0 nodad
         ip rule add fwmark 5 to 10.9.0.0/16 iif v0 ipproto tcp dport 80 priority 90 lookup 100
         ip -6 rule add fwmark 5 priority 90 lookup 100
         ip route add 10.8.0.0/16 via 10.7.0.2
         ip route add 10.10.0.0/16 nexthop via 10.7.0.2 nexthop via 10.7.0.3
         ip -6 route add fd08::/64 via fd07::2");
    assert_eq!(list_packet_routing().unwrap(), [""; 0]);

    run("ip rule add tos 0x10 priority 100 lookup 100");
    assert_eq!(list_packet_routing().unwrap(), ["ip rule 100: tos 0x10"]);
    run("ip rule del priority 100; ip -6 rule add tos 0x08 priority 101 lookup 100");
    assert_eq!(list_packet_routing().unwrap(), ["ip -6 rule 101: tos 0x8"]);
    run("ip -6 rule del priority 101; ip route add 10.8.0.0/16 tos 0x10 via 10.7.0.3");
    assert_eq!(list_packet_routing().unwrap(), ["ip route 10.8.0.0/16: tos 0x10"]);
    run("ip route del 10.8.0.0/16 tos 0x10
         ip route add default tos 0x08 via 10.7.0.3 table 100");
    assert_eq!(list_packet_routing().unwrap(), ["ip route default: tos 0x8"]);
    run("ip route del default tos 0x08 table 100
         ip -6 route add fd09::/64 nexthop via fd07::2 nexthop via fd07::3");
    let spread = ["ip -6 route fd09::/64: several next hops, by flow label"];
    assert_eq!(list_packet_routing().unwrap(), spread);
    run("sysctl -qw net.ipv6.fib_multipath_hash_policy=1");
    assert_eq!(list_packet_routing().unwrap(), [""; 0]);
}
