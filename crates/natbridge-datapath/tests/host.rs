//! Links, endpoints, routes, conntrack and notifications in real network namespaces; needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Namespace, run};
use natbridge_datapath::ErrorKind;
use natbridge_datapath::host::{
    self, BridgeSpec, ConntrackEntry, ConntrackFilter, ConntrackProtocol, DefaultRoute,
    DefaultRoutes, EndpointSpec, HostEvent, HostEventKind, LinkInfo, SandboxInterface, Watch,
};

/// A host that the test's own thread lives in, and a sandbox beside it.
struct Scene {
    host: Namespace,
    sandbox: Namespace,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { host: Namespace::new("host"), sandbox: Namespace::new("box") };
        scene.host.enter();
        scene
    }

    fn bridge(&self) -> BridgeSpec {
        BridgeSpec {
            name: "nb-test".into(),
            alias: "natbridge:network:1".into(),
            mtu: 1500,
            addresses: vec!["172.32.0.1/24".into(), "fd00:32::1/64".into()],
        }
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.sandbox.name())
    }

    fn endpoint(&self) -> EndpointSpec {
        EndpointSpec {
            alias: "natbridge:endpoint:1".into(),
            host_interface: "nbveth1".into(),
            bridge: "nb-test".into(),
            sandbox_path: self.path(),
            interface: "eth0".into(),
            mac: "02:42:ac:20:00:0a".into(),
            mtu: 1500,
            addresses: vec!["172.32.0.10/24".into(), "fd00:32::a/64".into()],
            isolated_port: false,
        }
    }

    fn interface(&self, name: &str) -> Option<SandboxInterface> {
        let sandbox = host::inspect_sandbox(&self.path()).unwrap();
        sandbox.interfaces.into_iter().find(|interface| interface.name == name)
    }
}

fn link(name: &str) -> Option<LinkInfo> {
    host::list_links().unwrap().into_iter().find(|link| link.name == name)
}

fn kind<T>(result: natbridge_datapath::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// What a namespace looks like to other tools, to see that nothing was left.
fn picture() -> String {
    let output = Command::new("sh")
        .args(["-c", "ip -o link | sed 's/^[0-9]*: //'; ip -o addr; ip route; ip -6 route"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_bridge_is_made_whole_and_mended() {
    let scene = Scene::new();
    let spec = scene.bridge();
    let made = host::create_bridge(&spec).unwrap();
    assert_eq!((made.kind.as_str(), made.mtu, made.up), ("bridge", 1500, true));
    assert_eq!(made.alias, spec.alias);
    for address in &spec.addresses {
        assert!(made.addresses.contains(address), "{address} not in {:?}", made.addresses);
    }
    let details = scene.host.run("ip -d link show nb-test; ip -6 addr show nb-test");
    assert!(details.contains("stp_state 0"), "{details}");
    assert!(!details.contains("tentative"), "{details}");
    assert_eq!(host::read_sysctl("net/ipv6/conf/nb-test/accept_ra").unwrap().unwrap(), "0");
    assert!(host::ensure_bridge(&spec).unwrap().is_empty());

    // A port with a lower MAC and a smaller MTU changes neither.
    run("ip link add p0 address 02:00:00:00:00:01 mtu 1400 type veth peer name p1");
    run("ip link set p0 master nb-test up");
    let after = link("nb-test").unwrap();
    assert_eq!((after.mac, after.mtu), (made.mac, 1500));

    run("ip link set nb-test mtu 1400; ip addr del 172.32.0.1/24 dev nb-test");
    run("ip addr add 10.99.0.1/24 dev nb-test; ip link set nb-test down");
    let mended = host::ensure_bridge(&spec).unwrap();
    assert!(mended.iter().any(|m| m.contains("MTU")), "{mended:?}");
    assert!(mended.iter().any(|m| m == "added address 172.32.0.1/24"), "{mended:?}");
    assert!(mended.iter().any(|m| m == "set up"), "{mended:?}");
    let addresses = link("nb-test").unwrap().addresses;
    assert!(addresses.contains(&"10.99.0.1/24".to_owned()), "somebody else's address was removed");

    let moved = BridgeSpec { addresses: vec!["172.33.0.1/24".into()], ..scene.bridge() };
    let mended = host::ensure_bridge(&moved).unwrap();
    assert!(mended.iter().any(|m| m == "removed address 172.32.0.1/24"), "{mended:?}");
    assert!(mended.iter().any(|m| m == "removed address fd00:32::1/64"), "{mended:?}");

    assert!(host::delete_link("nb-test").unwrap());
    assert!(!host::delete_link("nb-test").unwrap());
    assert_eq!(host::ensure_bridge(&spec).unwrap(), ["made bridge nb-test"]);
}

#[test]
fn a_bridge_that_cannot_be_made_leaves_nothing() {
    let scene = Scene::new();
    let before = picture();
    let twice = "10.1.0.1/24".to_owned();
    let cases = [
        (BridgeSpec { name: "way-too-long-name".into(), ..scene.bridge() }, ErrorKind::Invalid),
        (BridgeSpec { mtu: 10, ..scene.bridge() }, ErrorKind::Invalid),
        (BridgeSpec { mtu: 1000, ..scene.bridge() }, ErrorKind::Invalid),
        (BridgeSpec { addresses: vec!["nonsense".into()], ..scene.bridge() }, ErrorKind::Invalid),
        // Only the kernel finds out about these, after the device is made.
        (BridgeSpec { addresses: vec![twice.clone(), twice], ..scene.bridge() }, ErrorKind::Exists),
        (BridgeSpec { alias: "x".repeat(300), ..scene.bridge() }, ErrorKind::Invalid),
    ];
    for (spec, expected) in cases {
        let refused = host::create_bridge(&spec);
        assert_eq!(kind(refused), Some(expected), "{spec:?}");
        assert_eq!(picture(), before, "{spec:?}");
    }
    run("ip link add nb-test type bridge");
    let before = picture();
    assert_eq!(kind(host::create_bridge(&scene.bridge())), Some(ErrorKind::Exists));
    assert_eq!(kind(host::ensure_bridge(&scene.bridge())), Some(ErrorKind::Exists));
    assert_eq!(picture(), before);
}

#[test]
fn an_endpoint_carries_packets_and_is_mended() {
    let scene = Scene::new();
    host::create_bridge(&scene.bridge()).unwrap();
    scene.sandbox.run("ip link set lo down; sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    let spec = scene.endpoint();
    let made = host::create_endpoint(&spec).unwrap();

    let host_end = link("nbveth1").unwrap();
    assert_eq!((host_end.ifindex, host_end.peer), (made.ifindex, made.sandbox_ifindex));
    assert_eq!((host_end.alias.as_str(), host_end.up), (spec.alias.as_str(), true));
    assert_eq!(host_end.master, link("nb-test").unwrap().ifindex);
    assert!(host_end.addresses.is_empty(), "{:?}", host_end.addresses);
    let port = scene.host.run("bridge -d link show dev nbveth1");
    assert!(port.contains("hairpin on") && port.contains("isolated off"), "{port}");
    assert!(scene.interface("lo").unwrap().up);
    let inside = scene.interface("eth0").unwrap();
    assert_eq!((inside.ifindex, inside.up), (made.sandbox_ifindex, true));
    assert_eq!(inside.mac, spec.mac);
    for address in &spec.addresses {
        assert!(inside.addresses.contains(address), "{:?}", inside.addresses);
    }
    // Both families answer, the new addresses without waiting for duplicate address detection.
    run("ping -c1 -W2 172.32.0.10 && ping -c1 -W2 fd00:32::a");
    let counted = scene.interface("eth0").unwrap();
    assert!(counted.receive_packets >= 2 && counted.transmit_bytes > 0);

    assert!(host::ensure_endpoint(&spec).unwrap().is_empty());
    run("bridge link set dev nbveth1 hairpin off; ip link set nbveth1 nomaster mtu 1400 down");
    scene.sandbox.run(
        "ip link set eth0 address 02:42:ac:20:00:ff mtu 1300
         ip addr flush dev eth0; ip addr add 10.9.9.9/32 dev eth0
         ip link set eth0 down; ip link set eth0 name eth7; ip link set lo down",
    );
    let mended = host::ensure_endpoint(&spec).unwrap();
    assert!(mended.len() >= 7, "{mended:?}");
    // What it is called is the sandbox's own affair.
    let inside = scene.interface("eth7").unwrap();
    assert!(inside.up && inside.mac == spec.mac && inside.mtu == 1500);
    assert!(inside.addresses.contains(&"10.9.9.9/32".to_owned()), "others' address was removed");
    assert!(scene.host.run("bridge -d link show dev nbveth1").contains("hairpin on"));
    run("ping -c1 -W2 172.32.0.10 && ping -c1 -W2 fd00:32::a");
    assert!(host::ensure_endpoint(&spec).unwrap().is_empty());

    let isolated = EndpointSpec { isolated_port: true, ..scene.endpoint() };
    assert_eq!(host::ensure_endpoint(&isolated).unwrap(), ["set the bridge port of nbveth1"]);
    assert!(scene.host.run("bridge -d link show dev nbveth1").contains("isolated on"));

    scene.sandbox.run("ip link del eth7");
    assert_eq!(host::ensure_endpoint(&isolated).unwrap(), ["made endpoint nbveth1"]);
    // Its sandbox end went elsewhere: made anew where it belongs.
    let elsewhere = Namespace::new("else");
    scene.sandbox.run(&format!("ip link set eth0 netns {}", elsewhere.name()));
    assert_eq!(host::ensure_endpoint(&isolated).unwrap(), ["made endpoint nbveth1 again"]);
    assert!(!elsewhere.run("ip link").contains("eth0"));
    run("ping -c1 -W2 172.32.0.10");
    assert!(host::delete_link("nbveth1").unwrap());
    assert!(scene.interface("eth0").is_none());
}

#[test]
fn an_announcement_takes_away_what_is_untrue_and_nothing_else() {
    let scene = Scene::new();
    host::create_bridge(&scene.bridge()).unwrap();
    let spec = scene.endpoint();
    host::create_endpoint(&spec).unwrap();
    // It answers no question.
    scene.sandbox.run("ip link set eth0 arp off");
    let shown = || scene.host.run("ip neigh show 172.32.0.10; ip -6 neigh show fd00:32::a");
    let set = |mac: &str, state: &str| {
        run(&format!(
            "ip neigh replace 172.32.0.10 lladdr {mac} dev nb-test nud {state}
             ip neigh replace fd00:32::a lladdr {mac} dev nb-test nud {state}"
        ));
        host::announce_endpoint(&spec).unwrap();
        shown()
    };
    let other = "02:00:00:00:00:99";
    assert_eq!(set(&spec.mac, "stale").matches(&spec.mac).count(), 2);
    assert_eq!(set(other, "permanent").matches(other).count(), 2);
    assert_eq!(set(other, "stale").matches(other).count(), 0);
    // Packets wait for an answer: taking the entry away would fail them.
    run("ip neigh flush nud all; ping -c1 -W1 172.32.0.10 || true");
    assert!(shown().contains("INCOMPLETE"), "{}", shown());
    host::announce_endpoint(&spec).unwrap();
    assert!(shown().contains("INCOMPLETE"), "{}", shown());
}

#[test]
fn an_endpoint_that_cannot_be_made_leaves_nothing() {
    let scene = Scene::new();
    host::create_bridge(&scene.bridge()).unwrap();
    scene.sandbox.run("ip link set lo down; ip link add taken type bridge");
    run("ip link add onhost type bridge; ip link add notbridge type veth peer name other");
    let inside = || scene.sandbox.run("ip -o link | sed 's/^[0-9]*: //'; ip -o addr");
    let (before, before_inside) = (picture(), inside());
    let twice = "172.32.0.10/24".to_owned();
    let good = || scene.endpoint();
    let cases = [
        (EndpointSpec { interface: "taken".into(), ..good() }, ErrorKind::Exists),
        (EndpointSpec { host_interface: "onhost".into(), ..good() }, ErrorKind::Exists),
        (EndpointSpec { bridge: "nosuch".into(), ..good() }, ErrorKind::NotFound),
        (EndpointSpec { bridge: "notbridge".into(), ..good() }, ErrorKind::Invalid),
        (EndpointSpec { mac: "01:42:ac:20:00:0a".into(), ..good() }, ErrorKind::Invalid),
        (EndpointSpec { mac: "nonsense".into(), ..good() }, ErrorKind::Invalid),
        (EndpointSpec { mtu: 1, ..good() }, ErrorKind::Invalid),
        (EndpointSpec { interface: "a/b".into(), ..good() }, ErrorKind::Invalid),
        (EndpointSpec { sandbox_path: "/run/netns/nosuch".into(), ..good() }, ErrorKind::NotFound),
        (EndpointSpec { sandbox_path: "/etc/passwd".into(), ..good() }, ErrorKind::Invalid),
        (
            EndpointSpec { sandbox_path: "/proc/thread-self/ns/net".into(), ..good() },
            ErrorKind::Invalid,
        ),
        (EndpointSpec { addresses: vec!["172.32.0.10".into()], ..good() }, ErrorKind::Invalid),
        // Only the kernel finds out about these, after the pair is made.
        (EndpointSpec { addresses: vec![twice.clone(), twice], ..good() }, ErrorKind::Exists),
        (EndpointSpec { alias: "x".repeat(300), ..good() }, ErrorKind::Invalid),
    ];
    for (spec, expected) in cases {
        let error = host::create_endpoint(&spec).unwrap_err();
        assert_eq!(error.kind(), expected, "{spec:?}: {error}");
        assert_eq!(picture(), before, "{spec:?}");
        assert_eq!(inside(), before_inside, "{spec:?}");
    }
    let taken = EndpointSpec { interface: "taken".into(), ..good() };
    let words = host::create_endpoint(&taken).unwrap_err().to_string();
    assert!(words.contains("sandbox") && words.contains("taken"), "{words}");
    let stranger = EndpointSpec { host_interface: "onhost".into(), ..good() };
    assert_eq!(kind(host::ensure_endpoint(&stranger)), Some(ErrorKind::Exists));
    host::create_endpoint(&good()).unwrap();
}

#[test]
fn default_routes_are_replaced_and_foreign_ones_respected() {
    let scene = Scene::new();
    host::create_bridge(&scene.bridge()).unwrap();
    host::create_endpoint(&scene.endpoint()).unwrap();
    let route = |gateway: &str| {
        Some(DefaultRoute { gateway: gateway.into(), host_interface: "nbveth1".into() })
    };
    let set = |ipv4, ipv6| host::set_default_routes(&scene.path(), &DefaultRoutes { ipv4, ipv6 });
    let shown = || scene.sandbox.run("ip route show default; ip -6 route show default");

    set(route("172.32.0.1"), route("fd00:32::1")).unwrap();
    assert!(shown().contains("default via 172.32.0.1 dev eth0"), "{}", shown());
    assert!(shown().contains("default via fd00:32::1 dev eth0"), "{}", shown());
    set(route("172.32.0.2"), route("fd00:32::2")).unwrap();
    assert_eq!(shown().lines().count(), 2, "{}", shown());
    assert!(shown().contains("172.32.0.2") && shown().contains("fd00:32::2"), "{}", shown());
    set(None, None).unwrap();
    assert_eq!(shown(), "");
    set(None, None).unwrap();

    scene
        .sandbox
        .run("ip route add default via 172.32.0.99; ip -6 route add default via fd00:32::99");
    set(route("172.32.0.1"), route("fd00:32::1")).unwrap();
    let chosen = scene.sandbox.run("ip route get 9.9.9.9; ip -6 route get 2001:db8::1");
    assert!(chosen.contains("172.32.0.99") && chosen.contains("fd00:32::99"), "{chosen}");
    scene
        .sandbox
        .run("ip route del default via 172.32.0.99; ip -6 route del default via fd00:32::99");
    let chosen = scene.sandbox.run("ip route get 9.9.9.9; ip -6 route get 2001:db8::1");
    assert!(chosen.contains("via 172.32.0.1 ") && chosen.contains("via fd00:32::1 "), "{chosen}");
    // With the other gone it gets its proper metric, and only one is left.
    set(route("172.32.0.1"), route("fd00:32::1")).unwrap();
    assert_eq!(shown().lines().count(), 2, "{}", shown());
    scene.sandbox.run("ip route add default via 172.32.0.99 metric 50");
    set(None, None).unwrap();
    assert!(shown().contains("172.32.0.99") && !shown().contains("172.32.0.1 "), "{}", shown());

    assert_eq!(kind(set(route("fd00:32::1"), None)), Some(ErrorKind::Invalid));
    assert_eq!(kind(set(route("nonsense"), None)), Some(ErrorKind::Invalid));
    let nowhere = DefaultRoute { gateway: "172.32.0.1".into(), host_interface: "nbveth9".into() };
    assert_eq!(kind(set(Some(nowhere), None)), Some(ErrorKind::NotFound));
    scene.sandbox.run("ip route del default");
    let off_link = set(route("10.250.0.1"), None).unwrap_err();
    assert_eq!(off_link.kind(), ErrorKind::Invalid, "{off_link}");
    let own = host::set_default_routes("/proc/thread-self/ns/net", &DefaultRoutes::default());
    assert_eq!(kind(own), Some(ErrorKind::Invalid));
}

#[test]
fn routes_are_listed_with_every_next_hop() {
    let _scene = Scene::new();
    run("ip link add va type veth peer name vb; ip link set va up; ip link set vb up
         ip addr add 10.5.0.1/24 dev va; ip -6 addr add fd05::1/64 dev va nodad
         ip route add 10.6.0.0/16 nexthop via 10.5.0.2 nexthop via 10.5.0.3
         ip route add 10.7.0.0/16 via 10.5.0.4 table 77
         ip route add blackhole 10.8.0.0/16; ip -6 route add default via fd05::2");
    let routes = host::list_routes().unwrap();
    let has = |destination: &str, gateway: &str, interface: &str, table: u32| {
        routes.iter().any(|route| {
            (
                route.destination.as_str(),
                route.gateway.as_str(),
                route.interface.as_str(),
                route.table,
            ) == (destination, gateway, interface, table)
        })
    };
    assert!(has("10.5.0.0/24", "", "va", 254), "{routes:?}");
    assert!(has("10.6.0.0/16", "10.5.0.2", "va", 254), "{routes:?}");
    assert!(has("10.6.0.0/16", "10.5.0.3", "va", 254), "{routes:?}");
    assert!(has("10.7.0.0/16", "10.5.0.4", "va", 77), "{routes:?}");
    assert!(has("10.8.0.0/16", "", "", 254), "{routes:?}");
    assert!(has("::/0", "fd05::2", "va", 254), "{routes:?}");
    assert!(!routes.iter().any(|route| route.table == 255), "local routes: {routes:?}");
}

#[test]
fn links_show_what_was_put_on_them() {
    let _scene = Scene::new();
    run("ip link add v0 type veth peer name v1; ip link set v0 alias hello up
         ip addr add 10.4.0.1/24 dev v0; tc qdisc add dev v0 root handle 5: tbf rate 1mbit burst 10k latency 10ms
         tc qdisc add dev v1 clsact");
    let v0 = link("v0").unwrap();
    let v1 = link("v1").unwrap();
    assert_eq!((v0.kind.as_str(), v0.alias.as_str(), v0.up), ("veth", "hello", true));
    assert_eq!((v0.peer, v1.peer), (v1.ifindex, v0.ifindex));
    assert_eq!(v0.qdiscs, ["tbf 5:"]);
    assert!(v1.qdiscs.is_empty(), "{:?}", v1.qdiscs);
    assert!(v0.addresses.contains(&"10.4.0.1/24".to_owned()));
    let lo = link("lo").unwrap();
    assert!(lo.loopback && !lo.ethernet && v0.ethernet);
    run("tc filter add dev v1 ingress bpf bytecode '1,6 0 0 0,'");
    assert_eq!(link("v1").unwrap().qdiscs, ["filter ingress bpf"]);
    run("tc filter add dev v1 egress bpf bytecode '1,6 0 0 0,'");
    let both = link("v1").unwrap().qdiscs;
    assert!(both.contains(&"filter egress bpf".to_owned()), "{both:?}");
    assert_eq!(kind(host::delete_link("lo")), Some(ErrorKind::Unsupported));
}

#[test]
fn xfrm_policies_are_counted() {
    let _scene = Scene::new();
    assert_eq!(host::count_xfrm_policies().unwrap(), 0);
    let added = Command::new("sh")
        .args(["-c", "ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out tmpl proto esp mode tunnel src 10.0.0.1 dst 10.0.0.2"])
        .output()
        .unwrap();
    // A kernel without IPsec refuses it, and then there is none to count.
    let expected = u32::from(added.status.success());
    assert_eq!(host::count_xfrm_policies().unwrap(), expected);
}

#[test]
fn a_process_is_resolved_only_while_it_lives() {
    let scene = Scene::new();
    let mut child = scene.sandbox.command("exec sleep 100").spawn().unwrap();
    let wanted = host::inspect_sandbox(&scene.path()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    // nsenter takes a moment to enter.
    while host::resolve_pid(child.id()).unwrap().key != wanted.key {
        assert!(Instant::now() < deadline, "the process never entered its namespace");
        thread::sleep(Duration::from_millis(10));
    }
    let resolved = host::resolve_pid(child.id()).unwrap();
    assert_eq!(resolved.path, format!("/proc/{}/ns/net", child.id()));
    assert!(!wanted.is_host);
    assert!(host::inspect_sandbox("/proc/thread-self/ns/net").unwrap().is_host);
    child.kill().unwrap();
    // A zombie has no namespace any more.
    let deadline = Instant::now() + Duration::from_secs(5);
    while host::resolve_pid(child.id()).is_ok() {
        assert!(Instant::now() < deadline, "the dead process still has a namespace");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kind(host::resolve_pid(child.id())), Some(ErrorKind::NotFound));
    child.wait().unwrap();
    assert_eq!(kind(host::resolve_pid(child.id())), Some(ErrorKind::NotFound));
    assert_eq!(kind(host::resolve_pid(0)), Some(ErrorKind::Invalid));
    assert_eq!(kind(host::resolve_pid(u32::MAX)), Some(ErrorKind::Invalid));
}

/// The scene with a DNAT from 192.0.2.1:8080 to a server in the sandbox, and conntrack at work.
fn published(scene: &Scene) {
    host::create_bridge(&scene.bridge()).unwrap();
    host::create_endpoint(&scene.endpoint()).unwrap();
    let by = |gateway: &str| {
        Some(DefaultRoute { gateway: gateway.into(), host_interface: "nbveth1".into() })
    };
    let routes = DefaultRoutes { ipv4: by("172.32.0.1"), ipv6: by("fd00:32::1") };
    host::set_default_routes(&scene.path(), &routes).unwrap();
    run("ip addr add 192.0.2.1/32 dev lo; ip -6 addr add 2001:db8::1/128 dev lo nodad
         nft 'add table inet t; add chain inet t out { type nat hook output priority -100; }
              add rule inet t out ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 172.32.0.10:80
              add rule inet t out ip6 daddr 2001:db8::1 tcp dport 8080 dnat ip6 to [fd00:32::a]:80
              add rule inet t out ip daddr 192.0.2.1 udp dport 8080 dnat ip to 172.32.0.10:80'");
}

/// A TCP and a UDP server in the sandbox, on port 80 of every address, echoing until the end.
fn serve(scene: &Scene) {
    let sockets = thread::scope(|scope| {
        scope
            .spawn(|| {
                scene.sandbox.enter();
                (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("0.0.0.0:80").unwrap())
            })
            .join()
            .unwrap()
    });
    thread::spawn(move || {
        for stream in sockets.0.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..count]);
                }
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((count, from)) = sockets.1.recv_from(&mut buffer) {
            let _ = sockets.1.send_to(&buffer[..count], from);
        }
    });
}

/// Our listing and the tool's, of one moment: the kernel adds entries of its own (IGMP, MLD)
/// whenever it likes, so a listing counts only if nothing came or went while the tool made its own.
fn both_listings(scene: &Scene) -> (Vec<ConntrackEntry>, String) {
    let ids =
        |entries: &[ConntrackEntry]| entries.iter().map(|entry| entry.id).collect::<BTreeSet<_>>();
    for _ in 0..50 {
        let before = host::list_conntrack().unwrap();
        let tool = scene.host.run("conntrack -L -o id 2>/dev/null");
        if ids(&before) == ids(&host::list_conntrack().unwrap()) {
            return (before, tool);
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("conntrack never stood still");
}

#[test]
fn conntrack_entries_agree_with_the_tool_and_are_deleted_by_filter() {
    let scene = Scene::new();
    published(&scene);
    serve(&scene);
    let mut four = TcpStream::connect("192.0.2.1:8080").unwrap();
    let mut six = TcpStream::connect("[2001:db8::1]:8080").unwrap();
    let mut buffer = [0; 4];
    for stream in [&mut four, &mut six] {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut buffer).unwrap();
    }
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    udp.send_to(b"ping", "192.0.2.1:8080").unwrap();
    udp.recv_from(&mut buffer).unwrap();

    let (entries, tool) = both_listings(&scene);
    assert_eq!(
        entries.len(),
        tool.lines().filter(|line| line.contains("src=")).count(),
        "{entries:?}\n{tool}"
    );
    for entry in &entries {
        let id = format!("id={}", entry.id);
        let line = tool.lines().find(|line| line.split(' ').any(|word| word == id)).unwrap();
        let named = !matches!(entry.protocol, ConntrackProtocol::Icmp | ConntrackProtocol::Other);
        assert!(!named || line.starts_with(entry.protocol.as_str()), "{entry:?}: {line}");
        assert!(line.contains(entry.state), "{entry:?}: {line}");
        assert_eq!(line.contains("[ASSURED]"), entry.assured, "{entry:?}: {line}");
        assert_eq!(line.contains("[UNREPLIED]"), !entry.seen_reply, "{entry:?}: {line}");
        assert!(
            line.contains(&format!("src={} ", entry.reply.source_address)),
            "{entry:?}: {line}"
        );
    }
    let local = four.local_addr().unwrap();
    let entry = entries.iter().find(|entry| entry.original.source_port == local.port()).unwrap();
    assert_eq!(
        (entry.state, entry.destination_nat, entry.source_nat),
        ("ESTABLISHED", true, false)
    );
    assert_eq!(entry.original.destination_address.to_string(), "192.0.2.1");
    assert_eq!(entry.original.destination_port, 8080);
    assert_eq!(entry.reply.source_address.to_string(), "172.32.0.10");
    assert_eq!((entry.reply.source_port, entry.reply.destination_port), (80, local.port()));
    assert!(entry.assured && entry.seen_reply && entry.timeout_seconds > 60);

    let by = |change: fn(&mut ConntrackFilter)| {
        let mut filter = ConntrackFilter::default();
        change(&mut filter);
        host::delete_conntrack(&[filter])
    };
    assert_eq!(kind(by(|_| {})), Some(ErrorKind::Invalid));
    assert_eq!(kind(by(|f| f.protocol = Some("gre".into()))), Some(ErrorKind::Invalid));
    assert_eq!(kind(by(|f| f.reply_source_address = Some("x".into()))), Some(ErrorKind::Invalid));
    assert_eq!(by(|f| f.original_destination_port = Some(8081)).unwrap(), 0);
    assert_eq!(host::delete_conntrack(&[]).unwrap(), 0);
    let udp_only = by(|f| {
        f.protocol = Some("udp".into());
        f.original_destination_address = Some("192.0.2.1".into());
        f.original_destination_port = Some(8080);
    });
    assert_eq!(udp_only.unwrap(), 1);
    let six_only = by(|f| {
        f.reply_source_address = Some("fd00:32::a".into());
        f.reply_source_port = Some(80);
        f.destination_nat = Some(true);
    });
    assert_eq!(six_only.unwrap(), 1);
    let left = host::list_conntrack().unwrap();
    assert!(left.iter().any(|entry| entry.original.source_port == local.port()));
    assert_eq!(left.iter().filter(|entry| entry.destination_nat).count(), 1, "{left:?}");
}

/// Events as they arrive, and how often the immediate listener was called.
#[derive(Clone, Default)]
struct Record {
    events: Arc<Mutex<Vec<HostEvent>>>,
    changes: Arc<AtomicUsize>,
}

impl Record {
    fn start(&self) -> Watch {
        let (events, changes) = (Arc::clone(&self.events), Arc::clone(&self.changes));
        Watch::start(
            move |_| {
                changes.fetch_add(1, Ordering::SeqCst);
            },
            move |batch| events.lock().unwrap().extend(batch),
        )
        .unwrap()
    }

    fn take(&self) -> Vec<HostEvent> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }

    /// Waits for an event that fits; answers all until then.
    fn wait(&self, what: &str, fits: impl Fn(&HostEvent) -> bool) -> Vec<HostEvent> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut all = Vec::new();
        loop {
            all.extend(self.take());
            if all.iter().any(&fits) {
                return all;
            }
            assert!(Instant::now() < deadline, "no event for {what}: {all:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets pending events pass.
    fn settle(&self) {
        thread::sleep(Duration::from_millis(200));
        self.take();
    }
}

#[test]
fn changes_of_the_host_are_noticed() {
    let scene = Scene::new();
    let record = Record::default();
    let watch = record.start();
    let of = |kind: HostEventKind, removed: bool| {
        move |event: &HostEvent| event.kind == kind && event.removed == removed
    };
    host::create_bridge(&scene.bridge()).unwrap();
    let bridge = link("nb-test").unwrap().ifindex;
    let made = record.wait("a link", |e| e.kind == HostEventKind::Link && e.ifindex == bridge);
    assert!(made.len() < 30, "equal events are put together: {}", made.len());
    run("ip addr add 10.77.0.1/24 dev nb-test");
    record.wait("an address", |e| {
        e.kind == HostEventKind::Address && e.ifindex == bridge && !e.removed
    });
    run("ip addr del 10.77.0.1/24 dev nb-test");
    record.wait("an address gone", |e| e.kind == HostEventKind::Address && e.removed);
    record.settle();
    run("ip route add 10.78.0.0/16 dev nb-test");
    record.wait("a route", of(HostEventKind::Route, false));
    run("ip route del 10.78.0.0/16 dev nb-test");
    record.wait("a route gone", of(HostEventKind::Route, true));
    run("ip rule add from 10.1.1.1 lookup 99");
    record.wait("a rule", of(HostEventKind::Ruleset, false));
    run("tc qdisc add dev nb-test root tbf rate 1mbit burst 10k latency 10ms");
    record.wait("a qdisc", of(HostEventKind::Qdisc, false));
    run("nft add table inet foreign");
    record.wait("a ruleset", of(HostEventKind::Ruleset, false));
    run("iptables-nft -A FORWARD -s 10.66.0.1 -j DROP");
    record.wait("an iptables rule", of(HostEventKind::Ruleset, false));

    host::create_endpoint(&scene.endpoint()).unwrap();
    run("ping -c1 -W2 172.32.0.10");
    record.settle();
    let before = record.changes.load(Ordering::SeqCst);
    // Confirmed or grown old is nothing; a new MAC and a deletion are.
    run("ip neigh change 172.32.0.10 dev nb-test nud stale; ping -c1 -W2 172.32.0.10");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(record.take(), [], "housekeeping of neighbours was reported");
    assert_eq!(record.changes.load(Ordering::SeqCst), before);
    run("ip neigh replace 172.32.0.10 lladdr 02:42:ac:20:00:0b dev nb-test nud reachable");
    record.wait("a moved neighbour", of(HostEventKind::Neighbour, false));
    assert!(record.changes.load(Ordering::SeqCst) > before);
    run("ip neigh del 172.32.0.10 dev nb-test");
    record.wait("a neighbour gone", of(HostEventKind::Neighbour, true));

    // A forwarding entry that moves to another port.
    run(
        "ip link add p0 type veth peer name p1; ip link set p0 master nb-test up; ip link set p1 up",
    );
    run("bridge fdb replace 02:00:00:00:00:99 dev nbveth1 master");
    record.settle();
    run("bridge fdb replace 02:00:00:00:00:99 dev p0 master");
    record.wait("a moved forwarding entry", of(HostEventKind::Neighbour, false));

    host::delete_link("nb-test").unwrap();
    record
        .wait("a link gone", |e| e.kind == HostEventKind::Link && e.removed && e.ifindex == bridge);
    drop(watch);
    record.settle();
    run("ip link add later type bridge");
    record.settle();
    assert_eq!(record.take(), []);
}

#[test]
fn the_immediate_listener_does_not_wait_for_the_burst_to_end() {
    let _scene = Scene::new();
    let started = Instant::now();
    let first = Arc::new(Mutex::new(None));
    let batch = Arc::new(Mutex::new(None));
    let (at_once, later) = (Arc::clone(&first), Arc::clone(&batch));
    let watch = Watch::start(
        move |_| {
            at_once.lock().unwrap().get_or_insert_with(|| started.elapsed());
        },
        move |_| {
            later.lock().unwrap().get_or_insert_with(|| started.elapsed());
        },
    )
    .unwrap();
    run("ip link add some type bridge");
    let deadline = Instant::now() + Duration::from_secs(5);
    while batch.lock().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no event");
        thread::sleep(Duration::from_millis(5));
    }
    drop(watch);
    let (first, batch) = (first.lock().unwrap().unwrap(), batch.lock().unwrap().unwrap());
    assert!(batch - first >= Duration::from_millis(20), "{first:?} {batch:?}");
}
