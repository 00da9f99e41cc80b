//! Conversions for `natbridge_datapath::host`, and the one watch of the process.

use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::Function;
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;
use natbridge_datapath::host::{self, Watch};

use crate::blocking::{change, run};
use crate::error::to_napi;
use crate::fastpath::{bump_generation_if_loaded, rules_changed_if_loaded};
use crate::firewall::{keep, stop_keeping};
use crate::programs::set_listener;

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// Replaces the watch; the one before ends first.
fn set_watch(watch: Option<Watch>) {
    // Only ever replaced whole, so a panic elsewhere leaves it usable.
    let before = {
        let mut current = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, watch)
    };
    drop(before);
}

/// Whether changes of the host are heard of.
pub fn is_watching() -> bool {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.as_ref().is_some_and(Watch::listens)
}

/// Before anybody else hears of it.
fn hear(events: &[host::HostEvent]) {
    if events.iter().any(|event| event.kind.concerns_rules()) {
        rules_changed_if_loaded();
    } else {
        bump_generation_if_loaded();
    }
}

fn convert<From, To: std::convert::From<From>>(items: Vec<From>) -> Vec<To> {
    items.into_iter().map(To::from).collect()
}

/// Exact up to 2^53: nine petabytes.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

#[napi(object)]
pub struct LinkInfo {
    pub ifindex: u32,
    pub name: String,
    pub kind: String,
    pub ethernet: bool,
    pub loopback: bool,
    pub mac: String,
    pub mtu: u32,
    pub up: bool,
    pub master: u32,
    pub peer: u32,
    pub carrier: bool,
    pub carrier_changes: u32,
    pub alias: String,
    pub addresses: Vec<String>,
    pub qdiscs: Vec<String>,
}

impl From<host::LinkInfo> for LinkInfo {
    fn from(link: host::LinkInfo) -> Self {
        Self {
            ifindex: link.ifindex,
            name: link.name,
            kind: link.kind,
            ethernet: link.ethernet,
            loopback: link.loopback,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            master: link.master,
            peer: link.peer,
            carrier: link.carrier,
            carrier_changes: link.carrier_changes,
            alias: link.alias,
            addresses: link.addresses,
            qdiscs: link.qdiscs,
        }
    }
}

#[napi(object)]
pub struct RouteInfo {
    pub destination: String,
    pub gateway: String,
    #[napi(js_name = "interface")]
    pub interface: String,
    pub table: u32,
}

impl From<host::RouteInfo> for RouteInfo {
    fn from(route: host::RouteInfo) -> Self {
        Self {
            destination: route.destination,
            gateway: route.gateway,
            interface: route.interface,
            table: route.table,
        }
    }
}

#[napi(object)]
pub struct BridgeSpec {
    pub name: String,
    pub alias: String,
    pub mtu: u32,
    pub addresses: Vec<String>,
}

impl From<BridgeSpec> for host::BridgeSpec {
    fn from(spec: BridgeSpec) -> Self {
        Self { name: spec.name, alias: spec.alias, mtu: spec.mtu, addresses: spec.addresses }
    }
}

#[napi(object)]
pub struct EndpointSpec {
    pub id: String,
    pub alias: String,
    pub host_interface: String,
    pub bridge: String,
    pub sandbox_path: String,
    #[napi(js_name = "interface")]
    pub interface: String,
    pub mac: String,
    pub mtu: u32,
    pub addresses: Vec<String>,
    pub isolated_port: bool,
}

impl From<EndpointSpec> for host::EndpointSpec {
    fn from(spec: EndpointSpec) -> Self {
        Self {
            alias: spec.alias,
            host_interface: spec.host_interface,
            bridge: spec.bridge,
            sandbox_path: spec.sandbox_path,
            interface: spec.interface,
            mac: spec.mac,
            mtu: spec.mtu,
            addresses: spec.addresses,
            isolated_port: spec.isolated_port,
        }
    }
}

#[napi(object)]
pub struct EndpointLink {
    pub ifindex: u32,
    pub sandbox_ifindex: u32,
}

impl From<host::EndpointLink> for EndpointLink {
    fn from(link: host::EndpointLink) -> Self {
        Self { ifindex: link.ifindex, sandbox_ifindex: link.sandbox_ifindex }
    }
}

#[napi(object)]
pub struct DefaultRoute {
    pub gateway: String,
    pub host_interface: String,
}

impl From<DefaultRoute> for host::DefaultRoute {
    fn from(route: DefaultRoute) -> Self {
        Self { gateway: route.gateway, host_interface: route.host_interface }
    }
}

#[napi(object, use_nullable = true)]
pub struct DefaultRoutes {
    pub ipv4: Option<DefaultRoute>,
    pub ipv6: Option<DefaultRoute>,
}

impl From<DefaultRoutes> for host::DefaultRoutes {
    fn from(routes: DefaultRoutes) -> Self {
        Self { ipv4: routes.ipv4.map(Into::into), ipv6: routes.ipv6.map(Into::into) }
    }
}

#[napi(object)]
pub struct SandboxInfo {
    pub key: String,
    pub of_process: bool,
    pub is_host: bool,
    pub interfaces: Vec<SandboxInterface>,
    pub default_routes: Vec<SandboxRoute>,
}

impl From<host::SandboxInfo> for SandboxInfo {
    fn from(sandbox: host::SandboxInfo) -> Self {
        Self {
            key: sandbox.key,
            of_process: sandbox.of_process,
            is_host: sandbox.is_host,
            interfaces: convert(sandbox.interfaces),
            default_routes: convert(sandbox.default_routes),
        }
    }
}

#[napi(object)]
pub struct SandboxRoute {
    pub gateway: String,
    pub ifindex: u32,
}

impl From<host::SandboxRoute> for SandboxRoute {
    fn from(route: host::SandboxRoute) -> Self {
        Self { gateway: route.gateway, ifindex: route.ifindex }
    }
}

#[napi(object)]
pub struct SandboxInterface {
    pub name: String,
    pub ifindex: u32,
    pub peer: u32,
    pub mac: String,
    pub mtu: u32,
    pub up: bool,
    pub addresses: Vec<String>,
    pub receive_bytes: f64,
    pub receive_packets: f64,
    pub transmit_bytes: f64,
    pub transmit_packets: f64,
}

impl From<host::SandboxInterface> for SandboxInterface {
    fn from(interface: host::SandboxInterface) -> Self {
        Self {
            name: interface.name,
            ifindex: interface.ifindex,
            peer: interface.peer,
            mac: interface.mac,
            mtu: interface.mtu,
            up: interface.up,
            addresses: interface.addresses,
            receive_bytes: number(interface.receive_bytes),
            receive_packets: number(interface.receive_packets),
            transmit_bytes: number(interface.transmit_bytes),
            transmit_packets: number(interface.transmit_packets),
        }
    }
}

#[napi(object)]
pub struct ResolvedPid {
    pub path: String,
    pub key: String,
}

impl From<host::ResolvedPid> for ResolvedPid {
    fn from(resolved: host::ResolvedPid) -> Self {
        Self { path: resolved.path, key: resolved.key }
    }
}

#[napi(object)]
pub struct HostEvent {
    #[napi(
        ts_type = "'link' | 'address' | 'route' | 'neighbour' | 'qdisc' | 'ruleset' | 'elements' | 'program' | 'overrun'"
    )]
    pub kind: String,
    pub ifindex: u32,
    pub removed: bool,
}

impl From<host::HostEvent> for HostEvent {
    fn from(event: host::HostEvent) -> Self {
        Self {
            kind: event.kind.as_str().to_owned(),
            ifindex: event.ifindex,
            removed: event.removed,
        }
    }
}

#[napi(object)]
pub struct Tuple {
    pub source_address: String,
    pub source_port: u32,
    pub destination_address: String,
    pub destination_port: u32,
}

impl From<host::Tuple> for Tuple {
    fn from(tuple: host::Tuple) -> Self {
        Self {
            source_address: tuple.source_address.to_string(),
            source_port: tuple.source_port.into(),
            destination_address: tuple.destination_address.to_string(),
            destination_port: tuple.destination_port.into(),
        }
    }
}

#[napi(object)]
pub struct ConntrackEntry {
    pub id: u32,
    #[napi(ts_type = "'tcp' | 'udp' | 'sctp' | 'icmp' | 'other'")]
    pub protocol: String,
    pub original: Tuple,
    pub reply: Tuple,
    pub state: String,
    pub timeout_seconds: u32,
    pub assured: bool,
    pub seen_reply: bool,
    pub destination_nat: bool,
    pub source_nat: bool,
    pub mark: u32,
}

impl From<host::ConntrackEntry> for ConntrackEntry {
    fn from(entry: host::ConntrackEntry) -> Self {
        Self {
            id: entry.id,
            protocol: entry.protocol.as_str().to_owned(),
            original: entry.original.into(),
            reply: entry.reply.into(),
            state: entry.state.to_owned(),
            timeout_seconds: entry.timeout_seconds,
            assured: entry.assured,
            seen_reply: entry.seen_reply,
            destination_nat: entry.destination_nat,
            source_nat: entry.source_nat,
            mark: entry.mark,
        }
    }
}

#[napi(object)]
pub struct ConntrackFilter {
    #[napi(ts_type = "'tcp' | 'udp' | 'sctp'")]
    pub protocol: Option<String>,
    pub original_destination_address: Option<String>,
    pub original_destination_port: Option<u16>,
    pub reply_source_address: Option<String>,
    pub reply_source_port: Option<u16>,
    pub original_source_address: Option<String>,
    pub destination_nat: Option<bool>,
}

impl From<ConntrackFilter> for host::ConntrackFilter {
    fn from(filter: ConntrackFilter) -> Self {
        Self {
            protocol: filter.protocol,
            original_destination_address: filter.original_destination_address,
            original_destination_port: filter.original_destination_port,
            reply_source_address: filter.reply_source_address,
            reply_source_port: filter.reply_source_port,
            original_source_address: filter.original_source_address,
            destination_nat: filter.destination_nat,
        }
    }
}

/// Value of `/proc/sys/<key>`; null where the kernel has no such key.
#[napi(catch_unwind, ts_return_type = "string | null")]
pub fn read_sysctl(key: String) -> napi::Result<Option<String>> {
    host::read_sysctl(&key).map_err(to_napi)
}

/// Writes `/proc/sys/<key>`.
#[napi(catch_unwind)]
pub fn write_sysctl(key: String, value: String) -> napi::Result<()> {
    host::write_sysctl(&key, &value).map_err(to_napi)
}

/// All devices of the host with addresses and queueing disciplines.
#[napi]
pub async fn list_links() -> napi::Result<Vec<LinkInfo>> {
    run(host::list_links).await.map(convert)
}

/// All routes of the host, those to its own addresses left out.
#[napi]
pub async fn list_routes() -> napi::Result<Vec<RouteInfo>> {
    run(host::list_routes).await.map(convert)
}

/// Routing rules and routes that ask for what differs between packets of one connection.
#[napi]
pub async fn list_packet_routing() -> napi::Result<Vec<String>> {
    run(host::list_packet_routing).await
}

/// Number of xfrm policies in force.
#[napi]
pub async fn count_xfrm_policies() -> napi::Result<u32> {
    run(host::count_xfrm_policies).await
}

/// Makes a bridge, or takes up the one that is there with our alias.
#[napi]
pub async fn create_bridge(spec: BridgeSpec) -> napi::Result<LinkInfo> {
    change(move || host::create_bridge(&spec.into()), |_| true).await.map(Into::into)
}

/// Mends what differs from `spec`; answers what it mended.
#[napi]
pub async fn ensure_bridge(spec: BridgeSpec) -> napi::Result<Vec<String>> {
    change(move || host::ensure_bridge(&spec.into()), |mended| !mended.is_empty()).await
}

/// Makes an endpoint, whole or not at all.
#[napi]
pub async fn create_endpoint(spec: EndpointSpec) -> napi::Result<EndpointLink> {
    change(move || host::create_endpoint(&spec.into()), |_| true).await.map(Into::into)
}

/// Mends what differs from `spec`; answers what it mended.
#[napi]
pub async fn ensure_endpoint(spec: EndpointSpec) -> napi::Result<Vec<String>> {
    change(move || host::ensure_endpoint(&spec.into()), |mended| !mended.is_empty()).await
}

/// Tells the host and the bridge's other endpoints where an endpoint's addresses are now.
#[napi]
pub async fn announce_endpoint(spec: EndpointSpec) -> napi::Result<()> {
    run(move || host::announce_endpoint(&spec.into())).await
}

/// Deletes a device of the host by name; false if there was none.
#[napi]
pub async fn delete_link(name: String) -> napi::Result<bool> {
    change(move || host::delete_link(&name), |deleted| *deleted).await
}

/// Replaces natbridge's default routes in a sandbox; null removes them. Answers what it changed.
#[napi]
pub async fn set_default_routes(
    sandbox_path: String,
    routes: DefaultRoutes,
) -> napi::Result<Vec<String>> {
    let set = move || host::set_default_routes(&sandbox_path, &routes.into());
    change(set, |changed| !changed.is_empty()).await
}

/// What is in a sandbox.
#[napi]
pub async fn inspect_sandbox(path: String) -> napi::Result<SandboxInfo> {
    run(move || host::inspect_sandbox(&path)).await.map(Into::into)
}

/// Where each path leads now, `dev:inode`; empty: to no network namespace.
#[napi]
pub async fn glance_at_sandboxes(paths: Vec<String>) -> napi::Result<Vec<String>> {
    run(move || Ok(host::glance_at_sandboxes(&paths))).await
}

/// The network namespace of a process that is alive now.
#[napi]
pub async fn resolve_pid(pid: u32) -> napi::Result<ResolvedPid> {
    run(move || host::resolve_pid(pid)).await.map(Into::into)
}

/// Calls `listener` for every change of the host, until `stopWatching`. A loaded fast path has
/// ended all its leases before the listener hears of a change. Does not keep the process alive.
/// Meanwhile the table `inet natbridge` is restored when somebody removes it; with `standIn` another
/// one keeps translating until then.
#[napi(catch_unwind, ts_args_type = "listener: (event: HostEvent) => void, standIn: boolean")]
pub fn watch_host(listener: Function<'_, HostEvent, ()>, stand_in: bool) -> napi::Result<()> {
    let listener =
        listener.build_threadsafe_function().weak::<true>().callee_handled::<false>().build()?;
    let listener = Arc::new(listener);
    let of_programs = Arc::clone(&listener);
    set_listener(Some(Arc::new(move |event| {
        of_programs.call(event, ThreadsafeFunctionCallMode::NonBlocking);
    })));
    let watch = Watch::start(hear, move |events| {
        for event in events {
            listener.call(event.into(), ThreadsafeFunctionCallMode::NonBlocking);
        }
    });
    set_watch(Some(watch.map_err(to_napi)?));
    // Without it losses are found by reconciling, which reports what is amiss.
    let _ = keep(stand_in);
    Ok(())
}

/// Ends `watchHost`.
#[napi(catch_unwind)]
pub fn stop_watching() {
    set_listener(None);
    set_watch(None);
    stop_keeping();
}

/// Every conntrack entry, IPv4 and IPv6.
#[napi]
pub async fn list_conntrack() -> napi::Result<Vec<ConntrackEntry>> {
    run(host::list_conntrack).await.map(convert)
}

/// Deletes the entries that match any of the filters; answers how many.
#[napi]
pub async fn delete_conntrack(filters: Vec<ConntrackFilter>) -> napi::Result<u32> {
    change(move || host::delete_conntrack(&convert(filters)), |count| *count > 0).await
}
