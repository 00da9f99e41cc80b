//! Conversions for `natbridge_datapath::fastpath`, and the one loaded instance of the process.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use napi_derive::napi;
use natbridge_datapath::fastpath::{self, DeviceRole, FastPath, TransportProtocol};
use natbridge_datapath::{Error, ErrorKind};

use crate::blocking::run;
use crate::error::to_napi;
use crate::host::is_watching;

/// How long a verdict on the host's rules outlives the daemon that made it: time for another one to
/// start and make its own.
const VERDICT_LEASE: Duration = Duration::from_secs(4);

static LOADED: Mutex<Option<Arc<FastPath>>> = Mutex::new(None);

pub fn loaded() -> MutexGuard<'static, Option<Arc<FastPath>>> {
    // Only ever replaced whole, so a panic elsewhere leaves it usable.
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends every lease at once, if the fast path is loaded: the host changed.
pub fn bump_generation_if_loaded() {
    if let Some(fast_path) = loaded().as_ref() {
        fast_path.bump_generation();
    }
}

/// As if told of a change of the host's rules: nothing is learned or used until they are judged.
pub fn rules_changed_if_loaded() {
    if let Some(fast_path) = loaded().as_ref() {
        fast_path.switches().rules_changed();
    }
}

fn fast_path() -> napi::Result<Arc<FastPath>> {
    loaded()
        .clone()
        .ok_or_else(|| to_napi(Error::new(ErrorKind::Unsupported, "the fast path is not loaded")))
}

/// Runs blocking work with the loaded fast path.
pub async fn with<T: Send + 'static>(
    work: impl FnOnce(&FastPath) -> natbridge_datapath::Result<T> + Send + 'static,
) -> napi::Result<T> {
    let fast_path = fast_path()?;
    run(move || work(&fast_path)).await
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

fn parse_address(field: &str, text: &str) -> natbridge_datapath::Result<IpAddr> {
    text.parse().map_err(|_| invalid(format!("{field} \"{text}\" is no IP address")))
}

fn parse_port(field: &str, number: u32) -> natbridge_datapath::Result<u16> {
    u16::try_from(number).map_err(|_| invalid(format!("{field} {number} is no port")))
}

fn parse_protocol(text: &str) -> natbridge_datapath::Result<TransportProtocol> {
    match text {
        "tcp" => Ok(TransportProtocol::Tcp),
        "udp" => Ok(TransportProtocol::Udp),
        _ => Err(invalid(format!("protocol \"{text}\": tcp or udp"))),
    }
}

fn protocol_name(protocol: TransportProtocol) -> String {
    match protocol {
        TransportProtocol::Tcp => "tcp".to_owned(),
        TransportProtocol::Udp => "udp".to_owned(),
    }
}

/// `02:42:ac:20:00:0a`; empty for none.
fn parse_mac(text: &str) -> natbridge_datapath::Result<[u8; 6]> {
    let mut mac = [0; 6];
    if text.is_empty() {
        return Ok(mac);
    }
    let mut parts = text.split(':');
    for byte in &mut mac {
        // from_str_radix() alone would take a sign.
        let two_digits =
            |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let part = parts.next().filter(two_digits);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| invalid(format!("mac \"{text}\" is no MAC address")))?;
    }
    if parts.next().is_some() {
        return Err(invalid(format!("mac \"{text}\" is no MAC address")));
    }
    Ok(mac)
}

fn mac_text(mac: [u8; 6]) -> String {
    if mac == [0; 6] {
        return String::new();
    }
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Exact up to 2^53: nine petabytes.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

#[napi(object)]
pub struct KernelFeatures {
    pub release: String,
    pub bpffs: bool,
    pub cgroup2: String,
    pub btf: bool,
    pub tcx: bool,
    pub conntrack_lookup: bool,
    pub cgroup_hooks: bool,
    pub sctp_sockets: bool,
    pub socket_destroy: bool,
    pub fast_path: bool,
    pub missing: Vec<String>,
}

impl From<fastpath::KernelFeatures> for KernelFeatures {
    fn from(features: fastpath::KernelFeatures) -> Self {
        Self {
            release: features.release,
            bpffs: features.bpffs,
            cgroup2: features.cgroup2,
            btf: features.btf,
            tcx: features.tcx,
            conntrack_lookup: features.conntrack_lookup,
            cgroup_hooks: features.cgroup_hooks,
            sctp_sockets: features.sctp_sockets,
            socket_destroy: features.socket_destroy,
            fast_path: features.fast_path,
            missing: features.missing,
        }
    }
}

#[napi(object)]
pub struct HostNamespace {
    pub cookie: String,
    pub inode: f64,
}

#[napi(object)]
pub struct FastPathOptions {
    pub pin_directory: String,
    pub cgroup_path: String,
    pub max_flows: u32,
    pub max_devices: u32,
    pub max_ports: u32,
}

#[napi(object)]
pub struct LoadResult {
    pub adopted: bool,
    /// Why the connect hooks stay off on this kernel; empty: they need not.
    pub connect_hook_hindrance: String,
}

#[napi(object)]
pub struct SettledSockets {
    pub followed: u32,
    pub ended: u32,
}

#[napi(object)]
pub struct DeviceSpec {
    pub ifindex: u32,
    #[napi(ts_type = "'endpoint' | 'uplink'")]
    pub role: String,
    pub mtu: u32,
    pub mac: String,
    pub addresses: Vec<String>,
    pub link: u32,
    pub reserved: Vec<String>,
    pub spoof_check: bool,
    pub fast_path: bool,
}

impl TryFrom<DeviceSpec> for fastpath::DeviceSpec {
    type Error = Error;

    fn try_from(spec: DeviceSpec) -> natbridge_datapath::Result<Self> {
        let role = match spec.role.as_str() {
            "endpoint" => DeviceRole::Endpoint,
            "uplink" => DeviceRole::Uplink,
            other => return Err(invalid(format!("role \"{other}\": endpoint or uplink"))),
        };
        let addresses = spec.addresses.iter().map(|text| parse_address("addresses", text));
        Ok(Self {
            ifindex: spec.ifindex,
            role,
            mtu: spec.mtu,
            mac: match role {
                DeviceRole::Endpoint => parse_mac(&spec.mac)?,
                DeviceRole::Uplink => [0; 6],
            },
            addresses: addresses.collect::<natbridge_datapath::Result<_>>()?,
            link: spec.link,
            reserved: spec
                .reserved
                .iter()
                .map(|text| match parse_address("reserved", text)? {
                    IpAddr::V6(address) => Ok(address),
                    IpAddr::V4(_) => {
                        Err(invalid(format!("reserved \"{text}\" is no IPv6 address")))
                    }
                })
                .collect::<natbridge_datapath::Result<_>>()?,
            spoof_check: spec.spoof_check,
            fast_path: spec.fast_path,
        })
    }
}

impl From<fastpath::DeviceSpec> for DeviceSpec {
    fn from(spec: fastpath::DeviceSpec) -> Self {
        let role = match spec.role {
            DeviceRole::Endpoint => "endpoint",
            DeviceRole::Uplink => "uplink",
        };
        Self {
            ifindex: spec.ifindex,
            role: role.to_owned(),
            mtu: spec.mtu,
            mac: mac_text(spec.mac),
            addresses: spec.addresses.iter().map(ToString::to_string).collect(),
            link: spec.link,
            reserved: spec.reserved.iter().map(ToString::to_string).collect(),
            spoof_check: spec.spoof_check,
            fast_path: spec.fast_path,
        }
    }
}

#[napi(object)]
pub struct PortEntry {
    #[napi(ts_type = "'tcp' | 'udp'")]
    pub protocol: String,
    pub host_address: String,
    pub host_port: u32,
    pub target_address: String,
    pub target_port: u32,
    pub port_id: String,
    pub endpoint_id: String,
}

impl TryFrom<PortEntry> for fastpath::PortEntry {
    type Error = Error;

    fn try_from(entry: PortEntry) -> natbridge_datapath::Result<Self> {
        Ok(Self {
            protocol: parse_protocol(&entry.protocol)?,
            host_address: parse_address("hostAddress", &entry.host_address)?,
            host_port: parse_port("hostPort", entry.host_port)?,
            target_address: parse_address("targetAddress", &entry.target_address)?,
            target_port: parse_port("targetPort", entry.target_port)?,
            port_id: entry.port_id.parse()?,
            endpoint_id: entry.endpoint_id.parse()?,
        })
    }
}

#[napi(object)]
pub struct PortCounters {
    #[napi(ts_type = "'tcp' | 'udp'")]
    pub protocol: String,
    pub host_address: String,
    pub host_port: u32,
    pub connects: f64,
}

impl From<fastpath::PortCounters> for PortCounters {
    fn from(counters: fastpath::PortCounters) -> Self {
        Self {
            protocol: protocol_name(counters.protocol),
            host_address: counters.host_address.to_string(),
            host_port: counters.host_port.into(),
            connects: number(counters.connects),
        }
    }
}

/// Packets with the reason for their treatment.
#[napi(object)]
pub struct PacketCount {
    pub reason: String,
    pub packets: f64,
}

impl From<fastpath::Count> for PacketCount {
    fn from(count: fastpath::Count) -> Self {
        Self { reason: count.reason.to_owned(), packets: number(count.count) }
    }
}

/// Calls of host sockets with the reason for their treatment.
#[napi(object)]
pub struct CallCount {
    pub reason: String,
    pub calls: f64,
}

impl From<fastpath::Count> for CallCount {
    fn from(count: fastpath::Count) -> Self {
        Self { reason: count.reason.to_owned(), calls: number(count.count) }
    }
}

fn convert<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
    items.into_iter().map(U::from).collect()
}

#[napi(object)]
pub struct DeviceCounters {
    pub ifindex: u32,
    pub from_device_packets: f64,
    pub from_device_bytes: f64,
    pub to_device_packets: f64,
    pub to_device_bytes: f64,
    pub fast_packets: f64,
    pub kernel_packets: f64,
    pub drops: Vec<PacketCount>,
}

impl From<fastpath::DeviceCounters> for DeviceCounters {
    fn from(counters: fastpath::DeviceCounters) -> Self {
        Self {
            ifindex: counters.ifindex,
            from_device_packets: number(counters.from_device_packets),
            from_device_bytes: number(counters.from_device_bytes),
            to_device_packets: number(counters.to_device_packets),
            to_device_bytes: number(counters.to_device_bytes),
            fast_packets: number(counters.fast_packets),
            kernel_packets: number(counters.kernel_packets),
            drops: convert(counters.drops),
        }
    }
}

#[napi(object)]
pub struct FastPathCounters {
    pub flows: f64,
    pub max_flows: u32,
    pub learned: f64,
    pub expired: f64,
    pub invalidated: f64,
    pub passes: Vec<PacketCount>,
    pub connect_hook: Vec<CallCount>,
    pub generation: u32,
}

impl From<fastpath::FastPathCounters> for FastPathCounters {
    fn from(counters: fastpath::FastPathCounters) -> Self {
        Self {
            flows: number(counters.flows),
            max_flows: counters.max_flows,
            learned: number(counters.learned),
            expired: number(counters.expired),
            invalidated: number(counters.invalidated),
            passes: convert(counters.passes),
            connect_hook: convert(counters.connect_hook),
            generation: counters.generation,
        }
    }
}

#[napi(object)]
pub struct FlowTuple {
    pub source_address: String,
    pub source_port: u32,
    pub destination_address: String,
    pub destination_port: u32,
}

impl From<fastpath::FlowTuple> for FlowTuple {
    fn from(tuple: fastpath::FlowTuple) -> Self {
        Self {
            source_address: tuple.source_address.to_string(),
            source_port: tuple.source_port.into(),
            destination_address: tuple.destination_address.to_string(),
            destination_port: tuple.destination_port.into(),
        }
    }
}

#[napi(object)]
pub struct FlowInfo {
    pub ifindex: u32,
    pub output_ifindex: u32,
    #[napi(ts_type = "'tcp' | 'udp'")]
    pub protocol: String,
    pub original: FlowTuple,
    pub translated: FlowTuple,
    pub packets: f64,
    pub bytes: f64,
    pub lease_seconds: f64,
}

impl From<fastpath::FlowInfo> for FlowInfo {
    fn from(flow: fastpath::FlowInfo) -> Self {
        Self {
            ifindex: flow.ifindex,
            output_ifindex: flow.output_ifindex,
            protocol: protocol_name(flow.protocol),
            original: flow.original.into(),
            translated: flow.translated.into(),
            packets: number(flow.packets),
            bytes: number(flow.bytes),
            lease_seconds: flow.lease_seconds,
        }
    }
}

#[napi(object)]
pub struct ProgramInfo {
    pub name: String,
    pub id: u32,
    pub run_time_seconds: f64,
    pub run_count: f64,
    pub attached: Vec<String>,
}

impl From<fastpath::ProgramInfo> for ProgramInfo {
    fn from(program: fastpath::ProgramInfo) -> Self {
        Self {
            name: program.name,
            id: program.id,
            run_time_seconds: program.run_time.as_secs_f64(),
            run_count: number(program.run_count),
            attached: program.attached,
        }
    }
}

/// What this kernel offers to the fast path.
#[napi]
pub async fn kernel_features() -> napi::Result<KernelFeatures> {
    run(fastpath::kernel_features).await.map(KernelFeatures::from)
}

/// The kernel's cookie and inode of the namespace the process runs in.
#[napi(catch_unwind)]
pub fn host_namespace() -> napi::Result<HostNamespace> {
    let namespace = fastpath::host_namespace().map_err(to_napi)?;
    Ok(HostNamespace { cookie: namespace.cookie.to_string(), inode: number(namespace.inode) })
}

/// Loads the programs, or adopts what is pinned and replaces the programs atomically.
#[napi]
pub async fn load_fast_path(options: FastPathOptions) -> napi::Result<LoadResult> {
    let options = fastpath::FastPathOptions {
        pin_directory: options.pin_directory,
        cgroup_path: options.cgroup_path,
        max_flows: options.max_flows,
        max_devices: options.max_devices,
        max_ports: options.max_ports,
        mechanism: None,
    };
    run(move || {
        let (fast_path, adopted) = FastPath::load(&options)?;
        let connect_hook_hindrance = fast_path.connect_hook_hindrance().unwrap_or_default();
        *loaded() = Some(Arc::new(fast_path));
        Ok(LoadResult { adopted, connect_hook_hindrance })
    })
    .await
}

/// Lets go of the programs; pins, links and traffic stay.
#[napi(catch_unwind)]
pub fn close_fast_path() {
    *loaded() = None;
}

/// Detaches and unpins everything under the folder; works without `loadFastPath()`.
#[napi]
pub async fn unload_fast_path(pin_directory: String) -> napi::Result<()> {
    run(move || {
        *loaded() = None;
        fastpath::unload(&pin_directory)
    })
    .await
}

/// Turns learning and use of flows on or off; works without `loadFastPath()`.
#[napi]
pub async fn set_fast_path_enabled(pin_directory: String, enabled: bool) -> napi::Result<()> {
    run(move || fastpath::set_fast_path_enabled(&pin_directory, enabled)).await
}

/// Whether flows are learned and used; works without `loadFastPath()`.
#[napi]
pub async fn fast_path_enabled(pin_directory: String) -> napi::Result<bool> {
    run(move || fastpath::fast_path_enabled(&pin_directory)).await
}

/// Attaches the programs to a device, if need be, and describes it to them.
#[napi]
pub async fn set_device(spec: DeviceSpec) -> napi::Result<()> {
    with(move |fast_path| fast_path.set_device(&spec.try_into()?)).await
}

/// Detaches the programs from a device, if it is known.
#[napi]
pub async fn remove_device(ifindex: u32) -> napi::Result<()> {
    with(move |fast_path| fast_path.remove_device(ifindex)).await
}

/// The devices that are attached.
#[napi]
pub async fn list_devices() -> napi::Result<Vec<DeviceSpec>> {
    with(FastPath::list_devices).await.map(convert)
}

/// Makes the connect hooks' ports exactly these.
#[napi]
pub async fn set_ports(ports: Vec<PortEntry>) -> napi::Result<()> {
    with(move |fast_path| {
        let ports = ports
            .into_iter()
            .map(fastpath::PortEntry::try_from)
            .collect::<natbridge_datapath::Result<Vec<_>>>()?;
        fast_path.set_ports(&ports)
    })
    .await
}

/// Settles the host's sockets whose target the connect hooks would not give them again: UDP follows,
/// TCP is ended. `ports` and `endpoints` are the ids of what there is by now.
#[napi]
pub async fn settle_sockets(
    ports: Vec<String>,
    endpoints: Vec<String>,
) -> napi::Result<SettledSockets> {
    with(move |fast_path| {
        let parse = |ids: Vec<String>| {
            ids.iter().map(|id| id.parse()).collect::<natbridge_datapath::Result<_>>()
        };
        let standing = fastpath::Standing { ports: parse(ports)?, endpoints: parse(endpoints)? };
        let fastpath::Settled { followed, ended } = fast_path.settle_sockets(&standing)?;
        Ok(SettledSockets { followed, ended })
    })
    .await
}

/// Ends the host's connections that the connect hooks have sent to targets which are about to go, and
/// turns the hooks off; works without `loadFastPath()`.
#[napi]
pub async fn end_sockets(pin_directory: String) -> napi::Result<u32> {
    run(move || fastpath::end_sockets(&pin_directory)).await
}

/// Makes the host's own addresses, loopback left out, exactly these.
#[napi]
pub async fn set_local_addresses(addresses: Vec<String>) -> napi::Result<()> {
    with(move |fast_path| {
        let addresses = addresses
            .iter()
            .map(|text| parse_address("addresses", text))
            .collect::<natbridge_datapath::Result<Vec<_>>>()?;
        fast_path.set_local_addresses(&addresses)
    })
    .await
}

/// Connect hooks serve loopback and local addresses, or leave all to others.
#[napi]
pub async fn set_connect_hook(enabled: bool) -> napi::Result<()> {
    with(move |fast_path| {
        fast_path.set_connect_hook(enabled);
        Ok(())
    })
    .await
}

/// Ends every lease at once.
#[napi]
pub async fn bump_generation() -> napi::Result<()> {
    with(|fast_path| {
        fast_path.bump_generation();
        Ok(())
    })
    .await
}

/// How often the host's rules may have changed: to be read before they are read.
#[napi(catch_unwind)]
pub fn rules_seen() -> napi::Result<u32> {
    Ok(fast_path()?.switches().rules_seen())
}

/// The rules as they were at that count are judged, and the devices told. False if they have
/// changed meanwhile, or nobody listens whether they do: then nothing is learned or used.
#[napi(catch_unwind)]
pub fn accept_verdict(seen: u32) -> napi::Result<bool> {
    let fast_path = fast_path()?;
    Ok(is_watching()
        && fast_path.switches().accept_verdict(seen, VERDICT_LEASE).map_err(to_napi)?)
}

/// Stands for the verdict for some seconds more. False if there is none to stand for.
#[napi(catch_unwind)]
pub fn renew_verdict() -> napi::Result<bool> {
    let fast_path = fast_path()?;
    Ok(is_watching() && fast_path.switches().renew_verdict(VERDICT_LEASE).map_err(to_napi)?)
}

/// Whether flows may be learned and used for all that is known of the host's rules.
#[napi(catch_unwind)]
pub fn verdict_stands() -> napi::Result<bool> {
    fast_path()?.switches().verdict_stands().map_err(to_napi)
}

/// Each device's counters.
#[napi]
pub async fn device_counters() -> napi::Result<Vec<DeviceCounters>> {
    with(FastPath::device_counters).await.map(convert)
}

/// Each port's counter.
#[napi]
pub async fn port_counters() -> napi::Result<Vec<PortCounters>> {
    with(FastPath::port_counters).await.map(convert)
}

/// The counters of the whole fast path.
#[napi]
pub async fn fast_path_counters() -> napi::Result<FastPathCounters> {
    with(FastPath::counters).await.map(FastPathCounters::from)
}

/// The cached flows, expired ones included.
#[napi]
pub async fn list_flows() -> napi::Result<Vec<FlowInfo>> {
    with(FastPath::list_flows).await.map(convert)
}

/// The loaded programs and where they hang.
#[napi]
pub async fn list_programs() -> napi::Result<Vec<ProgramInfo>> {
    with(FastPath::list_programs).await.map(convert)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_survive_the_round_trip_and_nonsense_is_named() {
        let mac = parse_mac("02:42:ac:20:00:0a").unwrap();
        assert_eq!(mac, [2, 0x42, 0xac, 0x20, 0, 10]);
        assert_eq!(mac_text(mac), "02:42:ac:20:00:0a");
        let wrong = [
            "02:42",
            "02:42:ac:20:00:0a:00",
            "2:42:ac:20:00:0a",
            "zz:42:ac:20:00:0a",
            "+2:42:ac:20:00:0a",
            "02:42:ac:20:00:-a",
            "02-42-ac-20-00-0a",
            "02:42:ac:20:00:0a ",
            "é:42:ac:20:00:0a",
        ];
        for text in wrong {
            let error = parse_mac(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(text));
        }
    }
}
