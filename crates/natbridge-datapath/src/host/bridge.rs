//! Bridges: one per network.

use std::fs::File;
use std::io::Read;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo as LinkInfoAttribute,
    LinkMessage,
};

use super::address::{self, InterfaceAddress};
use super::announce;
use super::link::{self, LinkInfo};
use super::rtnetlink::Rtnetlink;
use super::sysctl;
use crate::{Error, ErrorKind, Result, error::Context};

const DEFAULT_MTU: u32 = 1500;

/// What a network's bridge must be.
#[derive(Clone, Debug)]
pub struct BridgeSpec {
    /// Device name, 15 bytes at most.
    pub name: String,
    pub alias: String,
    /// In bytes.
    pub mtu: u32,
    /// Gateway addresses with prefix.
    pub addresses: Vec<String>,
}

/// Makes a bridge, or takes up the one that is there with our alias. Whole or not at all.
///
/// # Errors
/// `exists` if a device of that name is there without our alias, `invalid` for a bad field.
pub fn create_bridge(spec: &BridgeSpec) -> Result<LinkInfo> {
    ensure_bridge(spec)?;
    let mut netlink = Rtnetlink::open()?;
    let mut link = link::find(&mut netlink, &spec.name)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("the bridge {} is gone", spec.name))
    })?;
    link.addresses = address::list_of(&mut netlink, link.ifindex)?
        .iter()
        .map(|entry| entry.address.to_string())
        .collect();
    Ok(link)
}

/// Mends what differs from `spec` and answers what it mended. Addresses that others added stay.
///
/// # Errors
/// As [`create_bridge`].
pub fn ensure_bridge(spec: &BridgeSpec) -> Result<Vec<String>> {
    link::check_name("bridge", &spec.name)?;
    let addresses = address::parse_all(&spec.addresses)?;
    link::check_mtu(spec.mtu, addresses.iter().any(|entry| entry.address.is_ipv6()))?;
    let mut netlink = Rtnetlink::open()?;
    if let Some(link) = link::find(&mut netlink, &spec.name)? {
        return mend(&mut netlink, spec, &addresses, &link);
    }
    make_device(&mut netlink, &spec.name, spec.mtu)?;
    if let Some(made) = link::find(&mut netlink, &spec.name)? {
        announce::remember_bridge(made.ifindex);
    }
    if let Err(error) = configure(&mut netlink, spec, &addresses) {
        // The first error says more than a failed clean-up.
        let _ = link::delete_by_name(&mut netlink, &spec.name);
        return Err(error).context(format_args!("making the bridge {}", spec.name));
    }
    Ok(vec![format!("made bridge {}", spec.name)])
}

fn make_device(netlink: &mut Rtnetlink, name: &str, mtu: u32) -> Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        // A bridge without an address of its own takes the lowest of its ports', so that hosts'
        // neighbour entries would break as endpoints come and go.
        LinkAttribute::Address(random_mac()?.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfoAttribute::Kind(InfoKind::Bridge),
            LinkInfoAttribute::Data(InfoData::Bridge(vec![InfoBridge::StpState(
                BridgeStpState::Disabled,
            )])),
        ]),
    ];
    if mtu == DEFAULT_MTU {
        // A bridge follows its ports' MTU until it is told one, and telling it what it has is
        // not heard: let it begin with another.
        message.attributes.push(LinkAttribute::Mtu(DEFAULT_MTU - 1));
    }
    netlink
        .execute(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
        .context(format_args!("making the bridge {name}"))
}

fn configure(
    netlink: &mut Rtnetlink,
    spec: &BridgeSpec,
    addresses: &[InterfaceAddress],
) -> Result<()> {
    let link = link::find(netlink, &spec.name)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "it vanished"))?;
    let attributes = vec![LinkAttribute::IfAlias(spec.alias.clone()), LinkAttribute::Mtu(spec.mtu)];
    link::set(netlink, link.ifindex, attributes).context("setting alias and MTU")?;
    prepare_ipv6(&spec.name, addresses)?;
    for address in addresses {
        address::add(netlink, link.ifindex, *address)?;
    }
    link::set_up(netlink, link.ifindex, true)
}

/// Endpoints must not become the host's routers, and IPv6 must work where an address asks for it, at
/// once: while the bridge's link-local address waits for duplicates, the kernel has no source for
/// neighbour solicitations and forwards nothing (RFC 4862 section 5.4; ip-sysctl, accept_dad).
fn prepare_ipv6(name: &str, addresses: &[InterfaceAddress]) -> Result<()> {
    sysctl::write_if_present(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
    sysctl::write_if_present(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
    if addresses.iter().any(|entry| entry.address.is_ipv6()) {
        sysctl::write_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    Ok(())
}

fn mend(
    netlink: &mut Rtnetlink,
    spec: &BridgeSpec,
    addresses: &[InterfaceAddress],
    link: &LinkInfo,
) -> Result<Vec<String>> {
    if link.kind != "bridge" || link.alias != spec.alias {
        return Err(Error::new(
            ErrorKind::Exists,
            format!(
                "a device {} is there already and is not natbridge's; choose another bridge name or remove it",
                spec.name
            ),
        ));
    }
    let mut mended = Vec::new();
    if link.mtu != spec.mtu {
        link::set(netlink, link.ifindex, vec![LinkAttribute::Mtu(spec.mtu)])
            .context("setting the MTU")?;
        mended.push(format!("set MTU from {} to {}", link.mtu, spec.mtu));
    }
    prepare_ipv6(&spec.name, addresses)?;
    mended.extend(address::ensure(netlink, link.ifindex, addresses)?);
    if !link.up {
        link::set_up(netlink, link.ifindex, true)?;
        mended.push("set up".to_owned());
    }
    Ok(mended)
}

/// A random, locally administered unicast address (IEEE 802, section 8.4).
fn random_mac() -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut mac))
        .context("drawing a random MAC address")?;
    mac[0] = (mac[0] & 0xfc) | 0x02;
    Ok(mac)
}
