//! Which source port a masqueraded datagram leaves with.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use natbridge_datapath::firewall::{apply_firewall, ensure_forward_accepts};

use super::namespaces::Namespaces;
use super::topology;

/// The source port that `client` sees of what `from` sends from `port`.
fn seen(namespaces: &Namespaces, from: &str, port: u16, target: IpAddr, server_port: u16) -> u16 {
    let server = namespaces.inside("client", || UdpSocket::bind((target, server_port)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let sender = namespaces.inside(from, || UdpSocket::bind((any, port)).unwrap());
    sender.send_to(b"from", SocketAddr::new(target, server_port)).unwrap();
    server.recv_from(&mut [0; 8]).unwrap().1.port()
}

#[test]
fn source_ports_stay_unless_the_host_receives_there() {
    let namespaces = topology::build("masq");
    let client: [IpAddr; 2] = ["192.0.2.2".parse().unwrap(), "fd00:c::2".parse().unwrap()];
    let apply = || namespaces.inside("host", || apply_firewall(&topology::spec(false)).unwrap());
    apply();
    namespaces.inside("host", || ensure_forward_accepts().unwrap());
    let elsewhere = 61_000..=65_535;
    for address in client {
        assert_eq!(seen(&namespaces, "a1", 7000, address, 5000), 7000, "nobody's");
        // Published on any address, on one, and for the forwarder alone (TCP's does not count).
        for port in [8080, 8084] {
            let got = seen(&namespaces, "a1", port, address, 5001);
            assert!(elsewhere.contains(&got), "{port} became {got}");
        }
        assert_eq!(seen(&namespaces, "a1", 8090, address, 5002), 8090, "published for TCP");
    }
    // The host's own: also those bound since.
    let bound = namespaces.inside("host", || UdpSocket::bind(("0.0.0.0", 5353)).unwrap());
    assert!(!apply().changed, "what the host binds is no repair");
    for address in client {
        let got = seen(&namespaces, "a1", 5353, address, 5003);
        assert!(elsewhere.contains(&got), "5353 became {got}");
    }
    drop(bound);
    assert!(!apply().changed, "what the host lets go is no repair");
    // Another container: conntrack keeps a mapping as long as it has an entry with it.
    assert_eq!(seen(&namespaces, "a2", 5353, client[0], 5004), 5353);
}
