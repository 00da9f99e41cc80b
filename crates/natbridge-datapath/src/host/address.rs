//! Interface addresses: parsing, and rtnetlink's messages for them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::rtnetlink::Rtnetlink;
use crate::{Error, ErrorKind, Result, error::Context};

/// Marks addresses and routes as natbridge's (IFA_PROTO, RTA_PROTOCOL). Neither the kernel nor
/// iproute2's rt_protos gives this number a meaning.
pub const OWN_PROTOCOL: u8 = 78;

/// An address with its prefix length, `172.32.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    pub prefix: u8,
}

impl FromStr for InterfaceAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address: IpAddr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= most).then_some(Self { address, prefix })
        });
        parsed.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("address {text:?} must be ADDRESS/PREFIX, like 172.32.0.10/24"),
            )
        })
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// Parses a list, naming the one that is wrong.
pub fn parse_all(texts: &[String]) -> Result<Vec<InterfaceAddress>> {
    texts.iter().map(|text| text.parse()).collect()
}

/// The address family of `address` in rtnetlink's words.
pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// An address on a device, as the kernel lists it.
pub struct AssignedAddress {
    pub ifindex: u32,
    pub address: InterfaceAddress,
    /// It carries natbridge's mark.
    pub own: bool,
}

/// Every address of the socket's namespace.
pub fn list(netlink: &mut Rtnetlink) -> Result<Vec<AssignedAddress>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = netlink.dump(&request).context("listing addresses")?;
    Ok(answers.into_iter().filter_map(assigned).collect())
}

/// The addresses of one device.
pub fn list_of(netlink: &mut Rtnetlink, ifindex: u32) -> Result<Vec<AssignedAddress>> {
    let mut addresses = list(netlink)?;
    addresses.retain(|address| address.ifindex == ifindex);
    Ok(addresses)
}

/// Adds an address, marked as natbridge's. IPv6 addresses skip duplicate address detection: they
/// are unique by allocation, and a published port must answer at once.
///
/// # Errors
/// `exists` if the device has it.
pub fn add(netlink: &mut Rtnetlink, ifindex: u32, address: InterfaceAddress) -> Result<()> {
    let message = RouteNetlinkMessage::NewAddress(message(ifindex, address));
    netlink
        .execute(&message, NLM_F_CREATE | NLM_F_EXCL)
        .context(format_args!("adding the address {address}"))
}

/// Removes an address; one that is gone is no error.
pub fn remove(netlink: &mut Rtnetlink, ifindex: u32, address: InterfaceAddress) -> Result<()> {
    let message = RouteNetlinkMessage::DelAddress(message(ifindex, address));
    match netlink.execute(&message, 0) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.context(format_args!("removing the address {address}")),
    }
}

/// Makes natbridge's addresses on a device those wanted. Addresses without its mark stay.
/// Answers what it changed.
pub fn ensure(
    netlink: &mut Rtnetlink,
    ifindex: u32,
    wanted: &[InterfaceAddress],
) -> Result<Vec<String>> {
    let present = list_of(netlink, ifindex)?;
    let mut mended = Vec::new();
    for extra in present.iter().filter(|entry| entry.own && !wanted.contains(&entry.address)) {
        remove(netlink, ifindex, extra.address)?;
        mended.push(format!("removed address {}", extra.address));
    }
    for address in wanted {
        if !present.iter().any(|entry| entry.address == *address) {
            add(netlink, ifindex, *address)?;
            mended.push(format!("added address {address}"));
        }
    }
    Ok(mended)
}

fn message(ifindex: u32, address: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(address.address));
    message.attributes.push(AddressAttribute::Address(address.address));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(OWN_PROTOCOL)));
    match address.address {
        IpAddr::V4(v4) if address.prefix < 31 => {
            let broadcast = u32::from(v4) | (u32::MAX >> address.prefix);
            message.attributes.push(AddressAttribute::Broadcast(broadcast.into()));
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

fn assigned(message: RouteNetlinkMessage) -> Option<AssignedAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut local = None;
    let mut peer = None;
    let mut own = false;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device IFA_ADDRESS is the other side's.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Protocol(AddressProtocol::Other(OWN_PROTOCOL)) => own = true,
            _ => {}
        }
    }
    let address = local.or(peer)?;
    let prefix = message.header.prefix_len;
    let address = InterfaceAddress { address, prefix };
    Some(AssignedAddress { ifindex: message.header.index, address, own })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_address_and_prefix() {
        for good in ["172.32.0.10/24", "fd00::a/64", "10.0.0.1/32", "::1/128", "10.0.0.0/0"] {
            assert_eq!(good.parse::<InterfaceAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "172.32.0.10", "172.32.0.10/33", "fd00::a/129", "/24", "a/24", "1.2.3.4/-1"]
        {
            let error = bad.parse::<InterfaceAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(bad));
        }
    }
}
