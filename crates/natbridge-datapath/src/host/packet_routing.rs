//! Routing that packets of one connection may leave by different ways.

use nix::libc;

use super::netlink::Message;
use super::nla::Attributes;
use super::rtnetlink::Rtnetlink;
use super::sysctl::read_sysctl;
use crate::{Result, error::Context};

/// `struct fib_rule_hdr` and `struct rtmsg`.
const HEADER: usize = 12;
/// linux/fib_rules.h.
const FRA_PRIORITY: u16 = 6;
const FRA_DSCP: u16 = 25;
const FRA_FLOWLABEL: u16 = 26;
const FRA_FLOWLABEL_MASK: u16 = 27;
const FRA_DPORT_MASK: u16 = 29;
const FRA_DSCP_MASK: u16 = 30;
/// FIB_MULTIPATH_HASH_FIELD_FLOWLABEL (net/ip_fib.h).
const HASH_FLOW_LABEL: u32 = 1 << 3;

/// Rules and routes of the calling thread's namespace that ask for what may differ between packets of
/// one connection, each in a line like iproute2's: traffic class, flow label, and whatever a newer
/// kernel has. Addresses, ports, devices and marks are the same for all of them.
pub fn list_packet_routing() -> Result<Vec<String>> {
    let mut netlink = Rtnetlink::open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // Both headers begin with the family; the rest of them asks for everything.
        let mut request = [0; HEADER];
        request[0] = family as u8;
        let rules = netlink.raw().dump(libc::RTM_GETRULE, &request, |it| Ok(varying_rule(it)));
        found.extend(rules.context("listing routing rules")?);
        let by_label = family == libc::AF_INET6 && spreads_by_flow_label()?;
        let routes = netlink
            .raw()
            .dump(libc::RTM_GETROUTE, &request, |message| Ok(varying_route(message, by_label)));
        found.extend(routes.context("listing routes")?);
    }
    Ok(found)
}

/// Whether an IPv6 packet's flow label, which changes within a connection (RFC 6438), chooses its
/// next hop: net.ipv6.fib_multipath_hash_policy (Documentation/networking/ip-sysctl.rst).
fn spreads_by_flow_label() -> Result<bool> {
    let number = |key: &str| -> Result<Option<u32>> {
        Ok(read_sysctl(key)?.and_then(|text| text.trim().parse().ok()))
    };
    Ok(match number("net/ipv6/fib_multipath_hash_policy")? {
        Some(0) => true,
        Some(3) => number("net/ipv6/fib_multipath_hash_fields")?
            .is_none_or(|fields| fields & HASH_FLOW_LABEL != 0),
        _ => false,
    })
}

fn varying_rule(message: Message<'_>) -> Option<String> {
    let [family, _, _, tos, ..] = *message.payload.first_chunk::<HEADER>()?;
    let attributes = Attributes::after(message.payload, HEADER);
    let attribute = attributes.map(|attribute| attribute.kind).find_map(|kind| match kind {
        FRA_DSCP | FRA_DSCP_MASK => Some("dscp".to_owned()),
        FRA_FLOWLABEL | FRA_FLOWLABEL_MASK => Some("flowlabel".to_owned()),
        kind if kind > FRA_DPORT_MASK => Some(format!("attribute {kind}")),
        _ => None,
    });
    let asked = if tos == 0 { attribute? } else { format!("tos {tos:#x}") };
    let priority = attributes.find(FRA_PRIORITY).and_then(|it| it.ne32()).unwrap_or(0);
    Some(format!("{} rule {priority}: {asked}", program(family)))
}

fn varying_route(message: Message<'_>, by_label: bool) -> Option<String> {
    let [family, prefix, _, tos, ..] = *message.payload.first_chunk::<HEADER>()?;
    let attributes = Attributes::after(message.payload, HEADER);
    let asked = if tos != 0 {
        format!("tos {tos:#x}")
    } else if by_label && attributes.find(libc::RTA_MULTIPATH).is_some() {
        "several next hops, by flow label".to_owned()
    } else {
        return None;
    };
    let destination =
        attributes.find(libc::RTA_DST).and_then(|it| super::route::parse_address(it.value));
    let destination =
        destination.map_or_else(|| "default".to_owned(), |address| format!("{address}/{prefix}"));
    Some(format!("{} route {destination}: {asked}", program(family)))
}

fn program(family: u8) -> &'static str {
    if i32::from(family) == libc::AF_INET6 { "ip -6" } else { "ip" }
}
