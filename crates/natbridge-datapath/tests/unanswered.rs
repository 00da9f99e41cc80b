//! A UDP flow that nobody has answered is "new" to every rule, packet by packet: it is not cached.
//! Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::Duration;

use common::Loaded;
use common::topology::{Topology, counters};

const PACKETS: u32 = 600;

fn fast_packets(loaded: &Loaded) -> u64 {
    counters(&loaded.fast_path, "up0").fast_packets
}

fn send(socket: &UdpSocket) {
    for _ in 0..PACKETS {
        socket.send(b"one way").unwrap();
        sleep(Duration::from_micros(500));
    }
}

#[test]
fn udp_is_cached_once_it_has_been_answered() {
    let topology = Topology::new(0);
    let loaded = Loaded::new();
    Topology::attach(&loaded.fast_path);
    for (any, published) in [("0.0.0.0", "10.9.0.1:8080"), ("[::]", "[fd00:9::1]:8080")] {
        topology.web.enter();
        let server = UdpSocket::bind(format!("{any}:80")).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        topology.client.enter();
        let client = UdpSocket::bind(format!("{any}:0")).unwrap();
        client.connect(published).unwrap();
        topology.host.enter();

        let before = fast_packets(&loaded);
        send(&client);
        assert_eq!(fast_packets(&loaded), before, "{published}: cached without an answer");
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        server.send_to(b"answer", from).unwrap();
        sleep(Duration::from_millis(100));
        send(&client);
        let fast = fast_packets(&loaded) - before;
        assert!(fast > u64::from(PACKETS) / 2, "{published}: {fast} of {PACKETS} were fast");
    }
}
