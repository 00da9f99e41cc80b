//! Routes: the host's, to keep out of their way, and a sandbox's default routes.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSerializable};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::address::OWN_PROTOCOL;
use super::link;
use super::namespace::Namespace;
use super::netlink::Message;
use super::nla::{Attribute, Attributes};
use super::rtnetlink::Rtnetlink;
use super::sandbox::SandboxRoute;
use crate::{Error, ErrorKind, Result, error::Context};

const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;
/// The metric the kernel gives an IPv6 route that asks for none (IP6_RT_PRIO_USER).
const IPV6_METRIC: u32 = 1024;

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// CIDR; `0.0.0.0/0` or `::/0` for a default route.
    pub destination: String,
    /// Empty for none.
    pub gateway: String,
    /// Empty for a route to nowhere (blackhole, unreachable, prohibit).
    pub interface: String,
    pub table: u32,
}

/// A default route of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    pub gateway: String,
    /// Host end of the endpoint it leads over: the other end may have any name in the sandbox.
    pub host_interface: String,
}

/// A sandbox's default routes, by family; `None`: natbridge sets none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    pub ipv4: Option<DefaultRoute>,
    pub ipv6: Option<DefaultRoute>,
}

/// Every route of the calling thread's namespace that leads somewhere or nowhere; those to the
/// host's own addresses and broadcast are left out. A route with several next hops is listed once
/// for each.
pub fn list_routes() -> Result<Vec<RouteInfo>> {
    let mut netlink = Rtnetlink::open()?;
    let names: HashMap<u32, String> =
        link::dump(&mut netlink)?.into_iter().map(|(link, _)| (link.ifindex, link.name)).collect();
    let mut routes = Vec::new();
    for route in dump(&mut netlink)? {
        let destination = format!("{}/{}", route.destination, route.prefix);
        for hop in route.hops {
            routes.push(RouteInfo {
                destination: destination.clone(),
                gateway: hop.gateway.map_or_else(String::new, |gateway| gateway.to_string()),
                interface: names.get(&hop.ifindex).cloned().unwrap_or_default(),
                table: route.table,
            });
        }
    }
    Ok(routes)
}

/// Replaces natbridge's default routes in a sandbox; `None` removes natbridge's.
///
/// A default route that somebody else set is never touched and stays the preferred one: natbridge's
/// own then gets a higher metric, and takes over should the other go. Answers what it changed.
///
/// # Errors
/// `not_found` for a missing sandbox or interface, `invalid` for a gateway of the wrong family or
/// one that is not on the interface's link, or for the host's own namespace.
pub fn set_default_routes(sandbox_path: &str, routes: &DefaultRoutes) -> Result<Vec<String>> {
    let namespace = Namespace::open(sandbox_path)?;
    if namespace.is_own()? {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{sandbox_path} is the host's own network namespace, not a sandbox"),
        ));
    }
    let mut host = Rtnetlink::open()?;
    let mut netlink = Rtnetlink::open_in(&namespace)?;
    // Both are checked before either is set.
    let ipv4 = wanted_hop(&mut host, &mut netlink, "ipv4", routes.ipv4.as_ref(), IpAddr::is_ipv4)?;
    let ipv6 = wanted_hop(&mut host, &mut netlink, "ipv6", routes.ipv6.as_ref(), IpAddr::is_ipv6)?;
    let present = dump(&mut netlink)?;
    let mut changed = set_default(&mut netlink, &present, AddressFamily::Inet, ipv4)?;
    changed.extend(set_default(&mut netlink, &present, AddressFamily::Inet6, ipv6)?);
    Ok(changed)
}

/// natbridge's own default routes in the socket's namespace.
pub(crate) fn own_defaults(netlink: &mut Rtnetlink) -> Result<Vec<SandboxRoute>> {
    let routes = dump(netlink)?.into_iter().filter(|route| {
        route.unicast && route.prefix == 0 && route.protocol == OWN_PROTOCOL && route.is_main()
    });
    Ok(routes
        .flat_map(|route| route.hops)
        .filter_map(|hop| {
            Some(SandboxRoute { gateway: hop.gateway?.to_string(), ifindex: hop.ifindex })
        })
        .collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    gateway: Option<IpAddr>,
    ifindex: u32,
}

#[derive(Debug)]
struct Route {
    destination: IpAddr,
    prefix: u8,
    table: u32,
    protocol: u8,
    unicast: bool,
    metric: u32,
    hops: Vec<Hop>,
}

impl Route {
    fn is_main(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

fn wanted_hop(
    host: &mut Rtnetlink,
    sandbox: &mut Rtnetlink,
    field: &str,
    route: Option<&DefaultRoute>,
    fits: fn(&IpAddr) -> bool,
) -> Result<Option<Hop>> {
    let Some(route) = route else { return Ok(None) };
    let gateway = route.gateway.parse().ok().filter(fits).ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            format!("{field}.gateway {:?} must be an {field} address", route.gateway),
        )
    })?;
    link::check_name(&format!("{field}.hostInterface"), &route.host_interface)?;
    let host_end = link::find(host, &route.host_interface)?;
    let other_end = match host_end {
        Some(host_end) => link::other_end(sandbox, &host_end)?,
        None => None,
    };
    let interface = other_end.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("the other end of {} is not in the sandbox", route.host_interface),
        )
    })?;
    Ok(Some(Hop { gateway: Some(gateway), ifindex: interface.ifindex }))
}

fn set_default(
    netlink: &mut Rtnetlink,
    present: &[Route],
    family: AddressFamily,
    wanted: Option<Hop>,
) -> Result<Vec<String>> {
    let ipv4 = family == AddressFamily::Inet;
    let defaults = present.iter().filter(|route| {
        route.unicast && route.prefix == 0 && route.is_main() && route.destination.is_ipv4() == ipv4
    });
    let (own, foreign): (Vec<_>, Vec<_>) =
        defaults.partition(|route| route.protocol == OWN_PROTOCOL);
    let mut changed = Vec::new();
    let mut kept = None;
    if let Some(hop) = wanted {
        let base = if ipv4 { 0 } else { IPV6_METRIC };
        let metric = foreign
            .iter()
            .map(|route| route.metric.saturating_add(1))
            .max()
            .map_or(base, |above| above.max(base));
        kept = Some(metric);
        let there = own.iter().find(|route| route.metric == metric);
        if there.is_none_or(|route| route.hops != [hop]) {
            // Replacing leaves no moment without a route.
            let flags = if there.is_some() { NLM_F_REPLACE } else { NLM_F_EXCL };
            let message = RouteNetlinkMessage::NewRoute(default_route(family, hop, metric));
            netlink.execute(&message, NLM_F_CREATE | flags).map_err(not_on_link).context(
                format_args!(
                    "setting the default route by {}",
                    hop.gateway.map_or_else(String::new, |gateway| gateway.to_string())
                ),
            )?;
            changed.extend(hop.gateway.map(|gateway| format!("set default route by {gateway}")));
        }
    }
    for route in own.iter().filter(|route| Some(route.metric) != kept) {
        for hop in &route.hops {
            let message = default_route(family, *hop, route.metric);
            match netlink.execute(&RouteNetlinkMessage::DelRoute(message), 0) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.context("removing an old default route")?,
            }
            changed
                .extend(hop.gateway.map(|gateway| format!("removed default route by {gateway}")));
        }
    }
    Ok(changed)
}

/// The kernel answers ENETUNREACH or EHOSTUNREACH for a gateway it has no direct route to.
fn not_on_link(error: Error) -> Error {
    if error.kind() != ErrorKind::Io {
        return error;
    }
    Error::new(
        ErrorKind::Invalid,
        format!("the gateway is not in a subnet of the interface: {error}"),
    )
}

fn default_route(family: AddressFamily, hop: Hop, metric: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(OWN_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(hop.ifindex));
    message.attributes.push(RouteAttribute::Priority(metric));
    if let Some(gateway) = hop.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message
}

fn dump(netlink: &mut Rtnetlink) -> Result<Vec<Route>> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let mut payload = vec![0; request.buffer_len()];
    request.serialize(&mut payload);
    netlink
        .raw()
        .dump(libc::RTM_GETROUTE, &payload, |message| Ok(parse(message)))
        .context("listing routes")
}

/// Reads RTM_NEWROUTE. Attributes that are not known here are no error: newer kernels send more.
fn parse(message: Message<'_>) -> Option<Route> {
    let [family, prefix, _, _, table, protocol, _, kind] = *message.payload.first_chunk::<8>()?;
    let unspecified = match i32::from(family) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let unicast = kind == libc::RTN_UNICAST;
    if !unicast && ![libc::RTN_BLACKHOLE, libc::RTN_UNREACHABLE, libc::RTN_PROHIBIT].contains(&kind)
    {
        return None;
    }
    let mut route = Route {
        destination: unspecified,
        prefix,
        table: u32::from(table),
        protocol,
        unicast,
        metric: 0,
        hops: Vec::new(),
    };
    let mut hop = Hop { gateway: None, ifindex: 0 };
    for attribute in Attributes::after(message.payload, RTMSG) {
        match attribute.kind {
            libc::RTA_DST => route.destination = parse_address(attribute.value)?,
            libc::RTA_TABLE => route.table = attribute.ne32()?,
            libc::RTA_PRIORITY => route.metric = attribute.ne32()?,
            libc::RTA_MULTIPATH => route.hops = parse_hops(attribute.value),
            _ => read_hop(&mut hop, attribute),
        }
    }
    if route.hops.is_empty() {
        route.hops.push(hop);
    }
    Some(route)
}

fn read_hop(hop: &mut Hop, attribute: Attribute<'_>) {
    match attribute.kind {
        libc::RTA_OIF => hop.ifindex = attribute.ne32().unwrap_or(0),
        libc::RTA_GATEWAY => hop.gateway = parse_address(attribute.value),
        // `struct rtvia`: a gateway of the other family (RFC 5549).
        libc::RTA_VIA => hop.gateway = attribute.value.get(2..).and_then(parse_address),
        _ => {}
    }
}

/// `struct rtnexthop` with attributes, one after the other.
fn parse_hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some(head) = bytes.first_chunk::<RTNEXTHOP>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(entry) = bytes.get(..length).filter(|entry| entry.len() >= RTNEXTHOP) else {
            break;
        };
        let mut hop = Hop {
            gateway: None,
            ifindex: u32::from_ne_bytes([head[4], head[5], head[6], head[7]]),
        };
        for attribute in Attributes::after(entry, RTNEXTHOP) {
            read_hop(&mut hop, attribute);
        }
        hops.push(hop);
        bytes = bytes.get((length + 3) & !3..).unwrap_or_default();
    }
    hops
}

pub(super) fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_that_do_not_fit_are_not_read() {
        assert!(parse_hops(&[0; 8]).is_empty());
        assert!(parse_hops(&[200, 0, 0, 0, 1, 0, 0, 0]).is_empty());
        let one = parse_hops(&[8, 0, 0, 0, 7, 0, 0, 0, 9]);
        assert_eq!(one, [Hop { gateway: None, ifindex: 7 }]);
    }
}
