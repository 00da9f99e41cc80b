//! Loading, adopting, attaching and unloading. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Loaded, Namespace, ifindex, run};
use natbridge_datapath::ErrorKind;
use natbridge_datapath::fastpath::{
    self, DeviceRole, DeviceSpec, FastPath, FastPathOptions, Mechanism, ObjectId, PortEntry,
    TransportProtocol,
};

fn uplink(name: &str) -> DeviceSpec {
    DeviceSpec {
        ifindex: ifindex(name),
        role: DeviceRole::Uplink,
        mtu: 1500,
        mac: [0; 6],
        addresses: Vec::new(),
        link: 0,
        reserved: Vec::new(),
        spoof_check: false,
        fast_path: true,
    }
}

fn host_with(devices: &[&str]) -> Namespace {
    let host = Namespace::new("load");
    host.enter();
    for device in devices {
        run(&format!("ip link add {device} type veth peer name {device}p"));
    }
    host
}

fn attached(fast_path: &FastPath, program: &str) -> Vec<String> {
    let programs = fast_path.list_programs().unwrap();
    programs.into_iter().find(|info| info.name == program).unwrap().attached
}

fn has_tcx() -> bool {
    fastpath::kernel_features().unwrap().tcx
}

fn load(options: &FastPathOptions) -> (FastPath, bool) {
    FastPath::load(options).unwrap()
}

#[test]
fn the_programs_load() {
    let _host = host_with(&[]);
    let loaded = Loaded::new();
    let programs = loaded.fast_path.list_programs().unwrap();
    assert_eq!(programs.len(), 10);
    assert!(programs.iter().all(|program| program.id != 0 && program.attached.is_empty()));
}

#[test]
fn a_later_process_adopts_devices_ports_and_counters() {
    let _host = host_with(&["up0", "gone0"]);
    let mut loaded = Loaded::new();
    let port = PortEntry {
        protocol: TransportProtocol::Tcp,
        host_address: "0.0.0.0".parse().unwrap(),
        host_port: 8080,
        target_address: "172.32.0.10".parse().unwrap(),
        target_port: 80,
        port_id: ObjectId(1),
        endpoint_id: ObjectId(1),
    };
    loaded.fast_path.set_device(&uplink("up0")).unwrap();
    loaded.fast_path.set_device(&uplink("gone0")).unwrap();
    loaded.fast_path.set_ports(&[port]).unwrap();
    let ids: Vec<u32> =
        loaded.fast_path.list_programs().unwrap().iter().map(|program| program.id).collect();
    run("ip link del gone0");
    let (again, adopted) = load(&loaded.options);
    assert!(adopted);
    loaded.fast_path = again;
    let devices = loaded.fast_path.list_devices().unwrap();
    assert_eq!(devices, [uplink("up0")]);
    assert_eq!(loaded.fast_path.port_counters().unwrap().len(), 1);
    for program in loaded.fast_path.list_programs().unwrap() {
        assert!(!ids.contains(&program.id), "{} is still the old one", program.name);
    }
    for program in ["nb_ingress", "nb_egress"] {
        assert_eq!(attached(&loaded.fast_path, program), ["up0"]);
    }
    let links = std::fs::read_dir(format!("{}/links", loaded.options.pin_directory)).unwrap();
    // Filters of clsact have no pins.
    let pins = if has_tcx() { 2 } else { 0 };
    assert_eq!(links.count(), pins, "the pins of the device that is gone");
}

#[test]
fn other_sizes_and_other_namespaces_are_loaded_anew() {
    let _host = host_with(&["up0"]);
    let mut loaded = Loaded::new();
    loaded.fast_path.set_device(&uplink("up0")).unwrap();
    let mut larger = loaded.options.clone();
    larger.max_flows *= 2;
    let (again, adopted) = load(&larger);
    assert!(!adopted);
    assert!(again.list_devices().unwrap().is_empty());
    assert_eq!(again.counters().unwrap().max_flows, larger.max_flows);
    loaded.fast_path = again;
    let _other = host_with(&[]);
    let (_again, adopted) = load(&larger);
    assert!(!adopted);
}

#[test]
fn unloading_leaves_nothing_and_may_be_repeated() {
    let _host = host_with(&["up0"]);
    for mechanism in [Mechanism::Tcx, Mechanism::Clsact] {
        if mechanism == Mechanism::Tcx && !has_tcx() {
            continue;
        }
        let loaded = Loaded::with(|options| options.mechanism = Some(mechanism));
        loaded.fast_path.set_device(&uplink("up0")).unwrap();
        assert_eq!(attached(&loaded.fast_path, "nb_ingress"), ["up0"]);
        let folder = loaded.options.pin_directory.clone();
        assert!(Path::new(&folder).exists());
        fastpath::unload(&folder).unwrap();
        fastpath::unload(&folder).unwrap();
        assert!(!Path::new(&folder).exists());
        run("test -z \"$(tc filter show dev up0 ingress; tc qdisc show dev up0 | grep clsact)\"");
        let error = fastpath::fast_path_enabled(&folder).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn clsact_filters_are_replaced_and_foreign_ones_are_kept() {
    let _host = host_with(&["up0", "up1"]);
    run("tc qdisc add dev up1 clsact");
    let mut loaded = Loaded::with(|options| options.mechanism = Some(Mechanism::Clsact));
    loaded.fast_path.set_device(&uplink("up0")).unwrap();
    loaded.fast_path.set_device(&uplink("up1")).unwrap();
    let (again, adopted) = load(&loaded.options);
    assert!(adopted);
    loaded.fast_path = again;
    let filters = "tc filter show dev up0 ingress | grep -c nb_ingress";
    run(&format!("test \"$({filters})\" = 1"));
    run("tc filter add dev up0 egress prio 7 bpf bytecode '1,6 0 0 4294967295,' flowid 1:1");
    for device in ["up0", "up1"] {
        loaded.fast_path.remove_device(ifindex(device)).unwrap();
        loaded.fast_path.remove_device(ifindex(device)).unwrap();
    }
    run(
        "tc qdisc show dev up0 | grep -q clsact; tc filter show dev up0 egress | grep -q 'pref 7 bpf'",
    );
    run("test -z \"$(tc filter show dev up0 ingress)\"");
    run("tc qdisc show dev up1 | grep -q clsact");
}

#[test]
fn a_device_that_took_over_an_ifindex_is_attached_again() {
    let _host = host_with(&[]);
    let loaded = Loaded::new();
    run("ip link add up0 index 4242 type veth peer name up1");
    loaded.fast_path.set_device(&uplink("up0")).unwrap();
    run("ip link del up0; ip link add other index 4242 type veth peer name up1");
    loaded.fast_path.set_device(&uplink("other")).unwrap();
    assert_eq!(attached(&loaded.fast_path, "nb_ingress"), ["other"]);
}

#[test]
fn bad_devices_are_refused_by_the_name_of_their_field() {
    let _host = host_with(&["up0"]);
    let loaded = Loaded::new();
    let good = uplink("up0");
    let many = vec!["10.0.0.1".parse().unwrap(); 9];
    let endpoint = DeviceSpec { role: DeviceRole::Endpoint, ..good.clone() };
    let table = [
        (DeviceSpec { ifindex: 9999, ..good.clone() }, ErrorKind::NotFound, "9999"),
        (DeviceSpec { ifindex: 1, ..good.clone() }, ErrorKind::Unsupported, "lo"),
        (DeviceSpec { mtu: 0, ..good.clone() }, ErrorKind::Invalid, "mtu"),
        (DeviceSpec { spoof_check: true, ..good.clone() }, ErrorKind::Invalid, "spoofCheck"),
        (DeviceSpec { addresses: many, ..good }, ErrorKind::Invalid, "addresses"),
        (endpoint, ErrorKind::Invalid, "mac"),
    ];
    for (spec, kind, word) in table {
        let error = loaded.fast_path.set_device(&spec).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(loaded.fast_path.list_devices().unwrap().is_empty());
        assert!(attached(&loaded.fast_path, "nb_ingress").is_empty());
    }
}

#[test]
fn bad_options_are_refused_and_leave_no_pins() {
    let _host = host_with(&[]);
    let good = FastPathOptions {
        pin_directory: format!("/sys/fs/bpf/{}", common::unique("natbridge-test-")),
        cgroup_path: String::new(),
        max_flows: 1024,
        max_devices: 16,
        max_ports: 16,
        mechanism: None,
    };
    let table = [
        (FastPathOptions { pin_directory: "/tmp/nowhere".into(), ..good.clone() }, "pinDirectory"),
        (FastPathOptions { pin_directory: "relative".into(), ..good.clone() }, "pinDirectory"),
        (FastPathOptions { cgroup_path: "/nowhere".into(), ..good.clone() }, "cgroupPath"),
        (FastPathOptions { cgroup_path: "/proc".into(), ..good.clone() }, "cgroupPath"),
        (FastPathOptions { max_flows: 0, ..good.clone() }, "maxFlows"),
        (FastPathOptions { max_devices: 1 << 20, ..good.clone() }, "maxDevices"),
        (FastPathOptions { max_ports: 0, ..good.clone() }, "maxPorts"),
    ];
    for (options, word) in table {
        let error = FastPath::load(&options).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!Path::new(&good.pin_directory).exists(), "{word}");
        assert!(!Path::new("/tmp/nowhere").exists());
    }
}

#[test]
fn ports_are_made_exactly_these_or_left_as_they_were() {
    let _host = host_with(&[]);
    let loaded = Loaded::with(|options| options.max_ports = 4);
    let port = |number: u16| PortEntry {
        protocol: TransportProtocol::Udp,
        host_address: "::".parse().unwrap(),
        host_port: number,
        target_address: "172.32.0.10".parse().unwrap(),
        target_port: 53,
        port_id: ObjectId(1),
        endpoint_id: ObjectId(1),
    };
    let numbers = || {
        let counters = loaded.fast_path.port_counters().unwrap();
        let mut numbers: Vec<u16> = counters.iter().map(|port| port.host_port).collect();
        numbers.sort_unstable();
        numbers
    };
    loaded.fast_path.set_ports(&[port(1), port(2), port(3)]).unwrap();
    loaded.fast_path.set_ports(&[port(2), port(4), port(5), port(6)]).unwrap();
    assert_eq!(numbers(), [2, 4, 5, 6]);
    let bad =
        [vec![port(1), port(2), port(3), port(4), port(5)], vec![port(1), port(1)], vec![port(0)]];
    for ports in bad {
        loaded.fast_path.set_ports(&ports).unwrap_err();
        assert_eq!(numbers(), [2, 4, 5, 6]);
    }
}

#[test]
fn this_kernel_offers_the_fast_path() {
    let features = fastpath::kernel_features().unwrap();
    assert!(features.fast_path, "{:?}", features.missing);
    assert!(features.btf && features.conntrack_lookup && features.bpffs);
    let host = fastpath::host_namespace().unwrap();
    let other = host_with(&[]);
    let inside = fastpath::host_namespace().unwrap();
    assert_ne!(host, inside);
    let printed = other.run("readlink /proc/self/ns/net");
    assert_eq!(printed.trim(), format!("net:[{}]", inside.inode));
}
