//! Endpoints: a veth pair, one end a port of the network's bridge, the other in the sandbox.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkInfo as LinkInfoAttribute, LinkMessage,
};

use super::address::{self, InterfaceAddress};
use super::announce::{self, Announcement};
use super::link::{self, LinkInfo, PortFlags};
use super::namespace::Namespace;
use super::rtnetlink::Rtnetlink;
use super::sysctl;
use crate::{Error, ErrorKind, Result, error::Context};

const LOOPBACK: &str = "lo";

/// What an endpoint must be.
#[derive(Clone, Debug)]
pub struct EndpointSpec {
    pub alias: String,
    pub host_interface: String,
    pub bridge: String,
    /// Path of a network namespace.
    pub sandbox_path: String,
    pub interface: String,
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    /// `address/prefix`.
    pub addresses: Vec<String>,
    /// The endpoint does not reach other isolated ports of its bridge.
    pub isolated_port: bool,
}

/// Where an endpoint's two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLink {
    /// In the host's namespace.
    pub ifindex: u32,
    /// In the sandbox.
    pub sandbox_ifindex: u32,
}

/// Makes an endpoint, whole or not at all: after a failure neither end is left, and the sandbox's
/// loopback is as it was.
///
/// # Errors
/// `exists` if either name is taken (the message says where), `not_found` for a missing sandbox or
/// bridge, `invalid` for a bad field.
pub fn create_endpoint(spec: &EndpointSpec) -> Result<EndpointLink> {
    let mut work = Work::new(spec)?;
    work.create()
}

/// Mends what differs from `spec` and answers what it mended. Addresses that others added stay.
///
/// # Errors
/// As [`create_endpoint`]; `exists` if the host interface is there without our alias.
pub fn ensure_endpoint(spec: &EndpointSpec) -> Result<Vec<String>> {
    let mut work = Work::new(spec)?;
    let Some(host_end) = link::find(&mut work.host, &spec.host_interface)? else {
        work.create()?;
        return Ok(vec![format!("made endpoint {}", spec.host_interface)]);
    };
    if host_end.alias != spec.alias {
        return Err(taken_in_host(spec));
    }
    let Some(sandbox_end) = link::other_end(&mut work.sandbox, &host_end)? else {
        link::delete_by_name(&mut work.host, &spec.host_interface)?;
        work.create()?;
        return Ok(vec![format!("made endpoint {} again", spec.host_interface)]);
    };
    let mut mended = work.mend_host_end(&host_end)?;
    mended.extend(work.mend_sandbox_end(&sandbox_end)?);
    Ok(mended)
}

/// Tells the host and the bridge's other endpoints where an endpoint's addresses are now.
///
/// # Errors
/// `not_found` if its bridge is gone.
pub fn announce_endpoint(spec: &EndpointSpec) -> Result<()> {
    let mac = link::parse_mac(&spec.mac)?;
    let addresses = address::parse_all(&spec.addresses)?;
    announce::announce_anyway(&mut Rtnetlink::open()?, &announcement(spec, mac, &addresses))
}

fn announcement(spec: &EndpointSpec, mac: [u8; 6], addresses: &[InterfaceAddress]) -> Announcement {
    Announcement {
        bridge: spec.bridge.clone(),
        host_interface: spec.host_interface.clone(),
        alias: spec.alias.clone(),
        mac,
        addresses: addresses.iter().map(|entry| entry.address).collect(),
    }
}

/// A checked specification with sockets on both sides.
struct Work<'a> {
    spec: &'a EndpointSpec,
    mac: [u8; 6],
    addresses: Vec<InterfaceAddress>,
    namespace: Namespace,
    bridge: LinkInfo,
    host: Rtnetlink,
    sandbox: Rtnetlink,
}

impl<'a> Work<'a> {
    /// Checks every field; changes nothing.
    fn new(spec: &'a EndpointSpec) -> Result<Self> {
        link::check_name("hostInterface", &spec.host_interface)?;
        link::check_name("interface", &spec.interface)?;
        link::check_name("bridge", &spec.bridge)?;
        let mac = link::parse_mac(&spec.mac)?;
        let addresses = address::parse_all(&spec.addresses)?;
        link::check_mtu(spec.mtu, addresses.iter().any(|entry| entry.address.is_ipv6()))?;
        let namespace = Namespace::open(&spec.sandbox_path)?;
        if namespace.is_own()? {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is the host's own network namespace, not a sandbox", spec.sandbox_path),
            ));
        }
        let mut host = Rtnetlink::open()?;
        let bridge = link::find(&mut host, &spec.bridge)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no bridge {}", spec.bridge))
        })?;
        if bridge.kind != "bridge" {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the device {} is not a bridge", spec.bridge),
            ));
        }
        let sandbox = Rtnetlink::open_in(&namespace)?;
        Ok(Self { spec, mac, addresses, namespace, bridge, host, sandbox })
    }

    fn create(&mut self) -> Result<EndpointLink> {
        let loopback_was_up = self.loopback()?.is_some_and(|loopback| loopback.up);
        self.make_pair()?;
        let made = self.configure();
        if made.is_err() {
            // The first error says more than a failed clean-up. Deleting one end deletes both.
            let _ = link::delete_by_name(&mut self.host, &self.spec.host_interface);
            if !loopback_was_up {
                let _ = self.set_loopback(false);
            }
        }
        made.context(format_args!("making {} in {}", self.spec.interface, self.spec.sandbox_path))
    }

    /// Both ends are born where they belong, under their final names.
    fn make_pair(&mut self) -> Result<()> {
        let spec = self.spec;
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(spec.interface.clone()),
            LinkAttribute::NetNsFd(self.namespace.as_fd().as_raw_fd()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(spec.host_interface.clone()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfoAttribute::Kind(InfoKind::Veth),
                LinkInfoAttribute::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let message = RouteNetlinkMessage::NewLink(message);
        match self.host.execute(&message, NLM_F_CREATE | NLM_F_EXCL) {
            // The kernel does not say which of the two names is taken.
            Err(error) if error.kind() == ErrorKind::Exists => {
                if link::find(&mut self.sandbox, &spec.interface)?.is_some() {
                    return Err(taken_in_sandbox(spec));
                }
                Err(taken_in_host(spec))
            }
            result => result.context(format_args!("making the veth pair {}", spec.host_interface)),
        }
    }

    fn configure(&mut self) -> Result<EndpointLink> {
        let host_end = self.host_end()?;
        self.configure_host_end(host_end.ifindex)?;
        let sandbox_end =
            link::find(&mut self.sandbox, &self.spec.interface)?.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "the interface vanished from the sandbox")
            })?;
        self.prepare_sandbox_end(&self.spec.interface)?;
        for address in &self.addresses {
            address::add(&mut self.sandbox, sandbox_end.ifindex, *address)?;
        }
        self.set_loopback(true)?;
        // The host end first: the sandbox announces its addresses when its own end comes up.
        link::set_up(&mut self.host, host_end.ifindex, true)?;
        link::set_up(&mut self.sandbox, sandbox_end.ifindex, true)?;
        self.announce()?;
        Ok(EndpointLink { ifindex: host_end.ifindex, sandbox_ifindex: sandbox_end.ifindex })
    }

    fn announce(&mut self) -> Result<()> {
        let news = announcement(self.spec, self.mac, &self.addresses);
        announce::announce(&mut self.host, &news)
    }

    fn host_end(&mut self) -> Result<LinkInfo> {
        link::find(&mut self.host, &self.spec.host_interface)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} vanished", self.spec.host_interface))
        })
    }

    fn configure_host_end(&mut self, ifindex: u32) -> Result<()> {
        let attributes = vec![
            LinkAttribute::IfAlias(self.spec.alias.clone()),
            LinkAttribute::Controller(self.bridge.ifindex),
        ];
        link::set(&mut self.host, ifindex, attributes)
            .context(format_args!("making it a port of {}", self.spec.bridge))?;
        self.silence_host_end(ifindex)?;
        self.set_port(ifindex)
    }

    /// The host end has no addresses; a link-local one would only send router solicitations.
    fn silence_host_end(&mut self, ifindex: u32) -> Result<()> {
        let quiet =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]);
        match link::set(&mut self.host, ifindex, vec![quiet]) {
            // A kernel without IPv6 gives it no address anyway.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            result => result.context("turning off its link-local address"),
        }
    }

    fn wanted_port(&self) -> PortFlags {
        // Hairpin: a container reaches itself, and its neighbours, by its published port.
        PortFlags { hairpin: true, isolated: self.spec.isolated_port }
    }

    fn set_port(&mut self, ifindex: u32) -> Result<()> {
        let port = self.wanted_port();
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfoAttribute::PortKind(InfoPortKind::Bridge),
            LinkInfoAttribute::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(port.hairpin),
                InfoBridgePort::Isolated(port.isolated),
            ])),
        ])];
        self.host
            .execute(&RouteNetlinkMessage::NewLink(message), 0)
            .context("setting hairpin mode and isolation of the bridge port")
    }

    /// Settings that the interface needs before its addresses.
    fn prepare_sandbox_end(&self, interface: &str) -> Result<()> {
        let ipv6 = self.addresses.iter().any(|entry| entry.address.is_ipv6());
        self.namespace.run(|| {
            // Addresses are used again: neighbours learn of the new owner at once.
            sysctl::write_if_present(&format!("net/ipv4/conf/{interface}/arp_notify"), "1")?;
            let conf = format!("net/ipv6/conf/{interface}");
            // Another endpoint of the network must not become this one's router.
            sysctl::write_if_present(&format!("{conf}/accept_ra"), "0")?;
            if ipv6 {
                sysctl::write_if_present(&format!("{conf}/disable_ipv6"), "0")?;
                sysctl::write_if_present(&format!("{conf}/ndisc_notify"), "1")?;
            }
            Ok(())
        })
    }

    fn loopback(&mut self) -> Result<Option<LinkInfo>> {
        link::find(&mut self.sandbox, LOOPBACK)
    }

    fn set_loopback(&mut self, up: bool) -> Result<bool> {
        match self.loopback()? {
            Some(loopback) if loopback.up != up => {
                link::set_up(&mut self.sandbox, loopback.ifindex, up)
                    .context("the sandbox's loopback")?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn mend_host_end(&mut self, host_end: &LinkInfo) -> Result<Vec<String>> {
        let spec = self.spec;
        let mut mended = Vec::new();
        if host_end.master != self.bridge.ifindex {
            self.configure_host_end(host_end.ifindex)?;
            mended.push(format!("made {} a port of {}", spec.host_interface, spec.bridge));
        } else if link::find_port(&mut self.host, &spec.host_interface)? != Some(self.wanted_port())
        {
            self.set_port(host_end.ifindex)?;
            mended.push(format!("set the bridge port of {}", spec.host_interface));
        }
        mended.extend(mend_device(&mut self.host, host_end, spec.mtu)?);
        Ok(mended)
    }

    /// What it is called there is the sandbox's own affair.
    fn mend_sandbox_end(&mut self, end: &LinkInfo) -> Result<Vec<String>> {
        let spec = self.spec;
        let mut mended = Vec::new();
        if link::parse_mac(&end.mac).ok() != Some(self.mac) {
            link::set(
                &mut self.sandbox,
                end.ifindex,
                vec![LinkAttribute::Address(self.mac.to_vec())],
            )
            .context("setting the MAC address")?;
            mended.push(format!("set MAC of {} from {} to {}", end.name, end.mac, spec.mac));
        }
        self.prepare_sandbox_end(&end.name)?;
        mended.extend(address::ensure(&mut self.sandbox, end.ifindex, &self.addresses)?);
        mended.extend(mend_device(&mut self.sandbox, end, spec.mtu)?);
        if !mended.is_empty() {
            let news = announcement(spec, self.mac, &self.addresses);
            announce::announce_anyway(&mut self.host, &news)?;
        }
        if self.set_loopback(true)? {
            mended.push("set lo up".to_owned());
        }
        Ok(mended)
    }
}

/// MTU and up, which both ends have.
fn mend_device(netlink: &mut Rtnetlink, device: &LinkInfo, mtu: u32) -> Result<Vec<String>> {
    let mut mended = Vec::new();
    if device.mtu != mtu {
        link::set(netlink, device.ifindex, vec![LinkAttribute::Mtu(mtu)])
            .context("setting the MTU")?;
        mended.push(format!("set MTU of {} from {} to {mtu}", device.name, device.mtu));
    }
    if !device.up {
        link::set_up(netlink, device.ifindex, true)?;
        mended.push(format!("set {} up", device.name));
    }
    Ok(mended)
}

fn taken_in_sandbox(spec: &EndpointSpec) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!(
            "the sandbox {} has an interface {} already; choose another interface name",
            spec.sandbox_path, spec.interface
        ),
    )
}

fn taken_in_host(spec: &EndpointSpec) -> Error {
    Error::new(
        ErrorKind::Exists,
        format!(
            "the host has a device {} already and it is not this endpoint's; remove it",
            spec.host_interface
        ),
    )
}
