//! A client, a host with a bridge, and a sandbox that serves: what natbridge makes, made by hand.

use natbridge_datapath::fastpath::{DeviceCounters, DeviceRole, DeviceSpec, FastPath};

use super::{Namespace, ifindex, run};

pub const SANDBOX_MAC: [u8; 6] = [2, 0x42, 172, 32, 0, 10];

/// `client` ── up0 `host` br0 ── hv0 ── eth0 `web`; port 8080 of the host is port 80 of the sandbox.
pub struct Topology {
    pub client: Namespace,
    pub web: Namespace,
    pub host: Namespace,
}

impl Topology {
    /// Makes it all and moves the calling thread into the host's namespace.
    pub fn new(bridge_nf_call_iptables: u8) -> Self {
        let (client, web, host) =
            (Namespace::new("client"), Namespace::new("web"), Namespace::new("host"));
        host.enter();
        let (client_name, web_name) = (client.name(), web.name());
        run(&format!(
            "ip link add up0 mtu 1500 type veth peer name eth0 netns {client_name}
             ip link add br0 type bridge
             ip link add hv0 type veth peer name eth0 netns {web_name}
             ip link set hv0 master br0
             ip addr add 10.9.0.1/24 dev up0
             ip addr add fd00:9::1/64 dev up0 nodad
             ip addr add 172.32.0.1/24 dev br0
             ip addr add fd00:32::1/64 dev br0 nodad
             for device in up0 br0 hv0; do ip link set $device up; done"
        ));
        client.run(
            "ip addr add 10.9.0.2/24 dev eth0
             ip addr add fd00:9::2/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via 10.9.0.1
             ip route add default via fd00:9::1",
        );
        web.run(
            "ip link set eth0 address 02:42:ac:20:00:0a
             ip addr add 172.32.0.10/24 dev eth0
             ip addr add fd00:32::10/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via 172.32.0.1
             ip route add default via fd00:32::1",
        );
        let topology = Self { client, web, host };
        topology.set_rules(bridge_nf_call_iptables);
        topology
    }

    fn set_rules(&self, bridge_nf_call_iptables: u8) {
        for (key, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
            std::fs::write(format!("/proc/sys/{key}"), value).unwrap();
        }
        for family in ["iptables", "ip6tables"] {
            let key = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            std::fs::write(key, bridge_nf_call_iptables.to_string()).unwrap();
        }
        run("nft -f - <<'END'
table inet nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 10.9.0.1 tcp dport 8080 dnat ip to 172.32.0.10:80
        ip daddr 10.9.0.1 udp dport 8080 dnat ip to 172.32.0.10:80
        ip6 daddr fd00:9::1 tcp dport 8080 dnat ip6 to [fd00:32::10]:80
        ip6 daddr fd00:9::1 udp dport 8080 dnat ip6 to [fd00:32::10]:80
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 172.32.0.0/24 oifname up0 masquerade
        ip6 saddr fd00:32::/64 oifname up0 masquerade
    }
}
END");
    }

    pub fn uplink() -> DeviceSpec {
        DeviceSpec {
            ifindex: ifindex("up0"),
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

    pub fn endpoint() -> DeviceSpec {
        DeviceSpec {
            ifindex: ifindex("hv0"),
            role: DeviceRole::Endpoint,
            mtu: 1500,
            mac: SANDBOX_MAC,
            addresses: vec!["172.32.0.10".parse().unwrap(), "fd00:32::10".parse().unwrap()],
            link: ifindex("br0"),
            reserved: Vec::new(),
            spoof_check: true,
            fast_path: true,
        }
    }

    /// Hangs the programs on both devices.
    pub fn attach(fast_path: &FastPath) {
        fast_path.set_device(&Self::uplink()).unwrap();
        fast_path.set_device(&Self::endpoint()).unwrap();
    }

    /// (receive bytes, receive packets, transmit bytes, transmit packets) of the sandbox's eth0.
    pub fn sandbox_counters(&self) -> [u64; 4] {
        let line = self.web.run("grep eth0: /proc/net/dev");
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).map(|field| field.parse().unwrap()).collect();
        [fields[0], fields[1], fields[8], fields[9]]
    }
}

pub fn counters(fast_path: &FastPath, device: &str) -> DeviceCounters {
    let ifindex = ifindex(device);
    let all = fast_path.device_counters().unwrap();
    all.into_iter().find(|counters| counters.ifindex == ifindex).unwrap()
}

/// Share of fast packets among those from a device between two readings.
pub fn fast_share(before: &DeviceCounters, after: &DeviceCounters) -> f64 {
    let fast = after.fast_packets - before.fast_packets;
    let kernel = after.kernel_packets - before.kernel_packets;
    #[allow(clippy::cast_precision_loss)]
    {
        fast as f64 / (fast + kernel) as f64
    }
}
