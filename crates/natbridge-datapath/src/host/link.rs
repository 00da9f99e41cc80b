//! Network devices: listing, finding, changing and deleting them.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkLayerType, LinkMessage,
};
use nix::libc;

use super::address;
use super::netlink::Message;
use super::nla::Attributes;
use super::qdisc;
use super::rtnetlink::Rtnetlink;
use crate::{Error, ErrorKind, Result, error::Context};

const IFINFOMSG: usize = 16;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_XDP: u16 = 43;
/// IFLA_XDP_PROG_ID, and the one of each mode where there are several.
const XDP_PROGRAMS: RangeInclusive<u16> = 4..=7;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// IFNAMSIZ without its NUL.
const NAME_MAX: usize = 15;

/// A network device of the host's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    pub ifindex: u32,
    pub name: String,
    /// rtnetlink kind: `bridge`, `veth` …; empty for hardware.
    pub kind: String,
    pub ethernet: bool,
    pub loopback: bool,
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
    /// ifindex of the bridge it is a port of; 0 for none.
    pub master: u32,
    /// ifindex of the other end of a veth pair, in its own namespace; 0 for none.
    pub peer: u32,
    /// The other end is up, or the cable is in.
    pub carrier: bool,
    /// How often that changed.
    pub carrier_changes: u32,
    pub alias: String,
    /// `address/prefix`, all scopes.
    pub addresses: Vec<String>,
    /// Queueing disciplines and foreign tc filters that the kernel did not put there by default.
    pub qdiscs: Vec<String>,
}

/// Traffic counters of a device (`rtnl_link_stats64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub receive_packets: u64,
    pub transmit_packets: u64,
    pub receive_bytes: u64,
    pub transmit_bytes: u64,
}

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortFlags {
    /// Frames may leave by the port they came from.
    pub hairpin: bool,
    /// Frames of isolated ports do not reach other isolated ports.
    pub isolated: bool,
}

/// All devices of the calling thread's namespace, with addresses and queueing disciplines.
pub fn list_links() -> Result<Vec<LinkInfo>> {
    let mut netlink = Rtnetlink::open()?;
    let mut links: Vec<LinkInfo> = dump(&mut netlink)?.into_iter().map(|(link, _)| link).collect();
    let mut addresses: HashMap<u32, Vec<String>> = HashMap::new();
    for entry in address::list(&mut netlink)? {
        addresses.entry(entry.ifindex).or_default().push(entry.address.to_string());
    }
    let mut qdiscs = qdisc::list(&mut netlink)?;
    for link in &mut links {
        link.addresses = addresses.remove(&link.ifindex).unwrap_or_default();
        link.qdiscs = qdiscs.remove(&link.ifindex).unwrap_or_default();
    }
    Ok(links)
}

/// Deletes a device of the calling thread's namespace by name; false if there was none.
///
/// # Errors
/// `unsupported` for devices that can't be deleted, such as hardware.
pub fn delete_link(name: &str) -> Result<bool> {
    check_name("name", name)?;
    let mut netlink = Rtnetlink::open()?;
    delete_by_name(&mut netlink, name)
}

/// Deletes a device by name over an open socket; false if there was none.
pub(crate) fn delete_by_name(netlink: &mut Rtnetlink, name: &str) -> Result<bool> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.execute(&RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(format_args!("deleting the device {name}")),
    }
}

/// Every device with its counters, without addresses and queueing disciplines.
pub(crate) fn dump(netlink: &mut Rtnetlink) -> Result<Vec<(LinkInfo, LinkCounters)>> {
    let payload = serialize(&RouteNetlinkMessage::GetLink(LinkMessage::default()));
    netlink
        .raw()
        .dump(libc::RTM_GETLINK, &payload, |message| Ok(parse(message)))
        .context("listing devices")
}

/// The device of that name, without addresses and queueing disciplines.
pub(crate) fn find(netlink: &mut Rtnetlink, name: &str) -> Result<Option<LinkInfo>> {
    Ok(ask_by_name(netlink, name, |message| parse(message).map(|(link, _)| link))?.flatten())
}

/// The other end of a veth pair, if it is in this namespace, under whatever name.
pub(crate) fn other_end(netlink: &mut Rtnetlink, end: &LinkInfo) -> Result<Option<LinkInfo>> {
    if end.kind != "veth" {
        return Ok(None);
    }
    let links = dump(netlink)?;
    Ok(links
        .into_iter()
        .map(|(link, _)| link)
        .find(|link| link.kind == "veth" && link.ifindex == end.peer && link.peer == end.ifindex))
}

/// The bridge's settings of a port, if the device is one.
pub(crate) fn find_port(netlink: &mut Rtnetlink, name: &str) -> Result<Option<PortFlags>> {
    Ok(ask_by_name(netlink, name, parse_port)?.flatten())
}

/// The XDP program of a device, whatever mode it runs in; none if there is no such device.
pub(crate) fn xdp_program(netlink: &mut Rtnetlink, ifindex: u32) -> Result<Option<u32>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    Ok(ask(netlink, message, parse_xdp)?.flatten())
}

/// Asks for the device of that name and reads the answer with `parse`.
fn ask_by_name<T>(
    netlink: &mut Rtnetlink,
    name: &str,
    parse: impl Fn(Message<'_>) -> T,
) -> Result<Option<T>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask(netlink, message, parse).context(format_args!("looking for the device {name}"))
}

/// Asks for one device; none if it is not there.
fn ask<T>(
    netlink: &mut Rtnetlink,
    mut message: LinkMessage,
    parse: impl Fn(Message<'_>) -> T,
) -> Result<Option<T>> {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let payload = serialize(&RouteNetlinkMessage::GetLink(message));
    let mut found = None;
    let asked = netlink.raw().get(libc::RTM_GETLINK, &payload, |message| {
        found = found.take().or_else(|| Some(parse(message)));
    });
    match asked {
        Ok(()) => Ok(found),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("asking for a device"),
    }
}

/// Changes attributes of a device.
pub(crate) fn set(
    netlink: &mut Rtnetlink,
    ifindex: u32,
    attributes: Vec<LinkAttribute>,
) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    netlink.execute(&RouteNetlinkMessage::SetLink(message), 0)
}

/// Turns a device on or off.
pub(crate) fn set_up(netlink: &mut Rtnetlink, ifindex: u32, up: bool) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    let word = if up { "up" } else { "down" };
    netlink
        .execute(&RouteNetlinkMessage::SetLink(message), 0)
        .context(format_args!("setting the device {word}"))
}

/// Checks a device name against the kernel's rules (`dev_valid_name`).
///
/// # Errors
/// `invalid`, naming `field`.
pub(crate) fn check_name(field: &str, name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || name == "."
        || name == ".."
        || name.bytes().any(|byte| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic());
    if bad {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{field} {name:?} must be 1 to {NAME_MAX} printable ASCII characters without '/', ':' and '%'"
            ),
        ));
    }
    Ok(())
}

/// Checks an MTU in bytes: at least IPv4's minimum, or IPv6's if it is to carry IPv6 (RFC 791,
/// RFC 8200), and at most what a veth takes.
///
/// # Errors
/// `invalid`.
pub(crate) fn check_mtu(mtu: u32, ipv6: bool) -> Result<()> {
    let least = if ipv6 { 1280 } else { 68 };
    if (least..=65535).contains(&mtu) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("mtu {mtu} must be between {least} and 65535 bytes"),
    ))
}

/// Parses a unicast MAC address.
///
/// # Errors
/// `invalid`.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    let parsed = mac.iter_mut().all(|byte| {
        parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .is_some_and(|part| u8::from_str_radix(part, 16).map(|value| *byte = value).is_ok())
    });
    if !parsed || parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("mac {text:?} must be a unicast address like 02:42:ac:20:00:0a"),
        ));
    }
    Ok(mac)
}

/// Reads RTM_NEWLINK. Attributes that are not known here are no error: newer kernels send more.
fn parse(message: Message<'_>) -> Option<(LinkInfo, LinkCounters)> {
    if message.kind != libc::RTM_NEWLINK {
        return None;
    }
    let hardware = u16::from_ne_bytes(*message.payload.get(2..)?.first_chunk()?);
    let ifindex = u32::from_ne_bytes(*message.payload.get(4..)?.first_chunk()?);
    let flags = u32::from_ne_bytes(*message.payload.get(8..)?.first_chunk()?);
    let mut link = LinkInfo {
        ifindex,
        ethernet: hardware == u16::from(LinkLayerType::Ether),
        loopback: flags & LinkFlags::Loopback.bits() != 0,
        up: flags & LinkFlags::Up.bits() != 0,
        ..LinkInfo::default()
    };
    let mut counters = LinkCounters::default();
    let mut other_end = 0;
    for attribute in Attributes::after(message.payload, IFINFOMSG) {
        match attribute.kind {
            libc::IFLA_IFNAME => link.name = attribute.text(),
            libc::IFLA_ADDRESS => link.mac = format_mac(attribute.value),
            libc::IFLA_MTU => link.mtu = attribute.ne32()?,
            libc::IFLA_MASTER => link.master = attribute.ne32()?,
            libc::IFLA_CARRIER => link.carrier = attribute.u8()? != 0,
            libc::IFLA_CARRIER_CHANGES => link.carrier_changes = attribute.ne32()?,
            libc::IFLA_LINK => other_end = attribute.ne32()?,
            libc::IFLA_IFALIAS => link.alias = attribute.text(),
            libc::IFLA_LINKINFO => {
                link.kind =
                    attribute.nested().find(IFLA_INFO_KIND).map_or_else(String::new, |k| k.text());
            }
            libc::IFLA_STATS64 => counters = parse_counters(attribute.value),
            _ => {}
        }
    }
    if link.kind == "veth" {
        link.peer = other_end;
    }
    Some((link, counters))
}

fn parse_port(message: Message<'_>) -> Option<PortFlags> {
    let info = Attributes::after(message.payload, IFINFOMSG).find(libc::IFLA_LINKINFO)?.nested();
    if info.find(IFLA_INFO_SLAVE_KIND)?.text() != "bridge" {
        return None;
    }
    let port = info.find(IFLA_INFO_SLAVE_DATA)?.nested();
    let set = |kind| port.find(kind).and_then(|flag| flag.u8()).is_some_and(|flag| flag != 0);
    Some(PortFlags { hairpin: set(IFLA_BRPORT_MODE), isolated: set(IFLA_BRPORT_ISOLATED) })
}

fn parse_xdp(message: Message<'_>) -> Option<u32> {
    Attributes::after(message.payload, IFINFOMSG)
        .find(IFLA_XDP)?
        .nested()
        .filter(|attribute| XDP_PROGRAMS.contains(&attribute.kind))
        .find_map(|id| id.ne32().filter(|id| *id != 0))
}

fn parse_counters(bytes: &[u8]) -> LinkCounters {
    let field = |index: usize| {
        let start = index * size_of::<u64>();
        bytes.get(start..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
    };
    LinkCounters {
        receive_packets: field(0),
        transmit_packets: field(1),
        receive_bytes: field(2),
        transmit_bytes: field(3),
    }
}

fn format_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn serialize(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_kernels_rules() {
        for good in ["eth0", "nb-0123456789", "a", "fifteen-letters"] {
            check_name("name", good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:1", "eth%d", "sixteen-letters!", "ü", "a\0"] {
            let error = check_name("interface", bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().starts_with("interface "));
        }
    }

    #[test]
    fn macs_are_unicast_and_whole() {
        assert_eq!(parse_mac("02:42:ac:20:00:0A").unwrap(), [2, 0x42, 0xac, 0x20, 0, 10]);
        for bad in [
            "",
            "02:42:ac:20:00",
            "02:42:ac:20:00:0a:0b",
            "2:42:ac:20:00:0a",
            "01:42:ac:20:00:0a",
            "00:00:00:00:00:00",
            "02-42-ac-20-00-0a",
            "+2:42:ac:20:00:0a",
            "zz:42:ac:20:00:0a",
        ] {
            assert_eq!(
                parse_mac(bad).map_err(|error| error.kind()),
                Err(ErrorKind::Invalid),
                "{bad}"
            );
        }
    }

    #[test]
    fn mtus_have_limits() {
        assert!(check_mtu(68, false).is_ok() && check_mtu(65535, true).is_ok());
        assert!(check_mtu(67, false).is_err() && check_mtu(1279, true).is_err());
        assert!(check_mtu(65536, false).is_err());
    }
}
