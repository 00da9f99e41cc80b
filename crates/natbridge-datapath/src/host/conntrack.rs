//! Connection tracking by ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::netlink::{Message, Netlink};
use super::nla::{Attribute, Attributes, push, push_nested};
use crate::{Error, ErrorKind, Result, error::Context};

const NFNL_SUBSYS_CTNETLINK: u16 = 1 << 8;
pub(super) const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK;
pub(super) const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK | 2;
/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
pub(super) const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
pub(super) const CTA_IP_V4_SRC: u16 = 1;
pub(super) const CTA_IP_V4_DST: u16 = 2;
pub(super) const CTA_IP_V6_SRC: u16 = 3;
pub(super) const CTA_IP_V6_DST: u16 = 4;
pub(super) const CTA_PROTO_NUM: u16 = 1;
pub(super) const CTA_PROTO_SRC_PORT: u16 = 2;
pub(super) const CTA_PROTO_DST_PORT: u16 = 3;
pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
/// CTA_PROTOINFO_TCP_STATE and CTA_PROTOINFO_SCTP_STATE.
pub(super) const STATE: u16 = 1;

const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_SRC_NAT: u32 = 1 << 4;
const IPS_DST_NAT: u32 = 1 << 5;

/// `enum tcp_conntrack`.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
/// `enum sctp_conntrack`.
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// A protocol of conntrack entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

impl Protocol {
    fn from_number(number: u8) -> Self {
        match i32::from(number) {
            libc::IPPROTO_TCP => Self::Tcp,
            libc::IPPROTO_UDP => Self::Udp,
            libc::IPPROTO_SCTP => Self::Sctp,
            libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }
}

/// Addresses and ports of one direction; ports are 0 for protocols without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub source_address: IpAddr,
    pub source_port: u16,
    pub destination_address: IpAddr,
    pub destination_port: u16,
}

/// One conntrack entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    pub id: u32,
    pub protocol: Protocol,
    pub original: Tuple,
    pub reply: Tuple,
    /// In conntrack's words (`ESTABLISHED`); empty for protocols without states.
    pub state: &'static str,
    pub timeout_seconds: u32,
    pub assured: bool,
    pub seen_reply: bool,
    pub destination_nat: bool,
    pub source_nat: bool,
    pub mark: u32,
}

/// Matches entries for which every given field is equal. Without any field it matches nothing.
#[derive(Clone, Debug, Default)]
pub struct ConntrackFilter {
    pub protocol: Option<String>,
    pub original_destination_address: Option<String>,
    pub original_destination_port: Option<u16>,
    pub reply_source_address: Option<String>,
    pub reply_source_port: Option<u16>,
    pub original_source_address: Option<String>,
    pub destination_nat: Option<bool>,
}

/// Every entry of the calling thread's namespace, IPv4 and IPv6.
pub fn list_conntrack() -> Result<Vec<ConntrackEntry>> {
    let Some(mut netlink) = open()? else { return Ok(Vec::new()) };
    dump(&mut netlink, |entry, _| Some(entry))
}

/// Deletes the entries that match any of the filters; answers how many.
///
/// # Errors
/// `invalid` for a filter without a field, or with one that makes no sense; the first entry's that
/// could not be deleted, after all others are.
pub fn delete_conntrack(filters: &[ConntrackFilter]) -> Result<u32> {
    let checked: Vec<Filter> = filters.iter().map(Filter::new).collect::<Result<_>>()?;
    if checked.is_empty() {
        return Ok(0);
    }
    let Some(mut netlink) = open()? else { return Ok(0) };
    let doomed = dump(&mut netlink, |entry, message| {
        checked.iter().any(|filter| filter.matches(&entry)).then(|| deletion(message))
    })?;
    let mut deleted = 0;
    let mut failure = None;
    for request in doomed.into_iter().flatten() {
        match netlink.execute(IPCTNL_MSG_CT_DELETE, 0, &request) {
            Ok(()) => deleted += 1,
            // It ended by itself meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        None => Ok(deleted),
        Some(error) => Err(error).context("deleting a conntrack entry"),
    }
}

/// `None` on a kernel without ctnetlink: it tracks nothing that could be listed.
fn open() -> Result<Option<Netlink>> {
    match Netlink::open(NETLINK_NETFILTER) {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        opened => opened.map(Some),
    }
}

fn dump<T>(
    netlink: &mut Netlink,
    mut pick: impl FnMut(ConntrackEntry, Message<'_>) -> Option<T>,
) -> Result<Vec<T>> {
    // Family AF_UNSPEC: both.
    netlink
        .dump(IPCTNL_MSG_CT_GET, &[0; NFGENMSG], |message| {
            Ok(parse(message).and_then(|entry| pick(entry, message)))
        })
        .context("listing conntrack entries")
}

/// The request that deletes exactly the entry of `message`: its tuple, zone and id.
fn deletion(message: Message<'_>) -> Option<Vec<u8>> {
    let family = *message.payload.first()?;
    let attributes = Attributes::after(message.payload, NFGENMSG);
    let mut request = vec![family, 0, 0, 0];
    push_nested(&mut request, CTA_TUPLE_ORIG, attributes.find(CTA_TUPLE_ORIG)?.value);
    for kind in [CTA_ZONE, CTA_ID] {
        if let Some(attribute) = attributes.find(kind) {
            push(&mut request, kind, attribute.value);
        }
    }
    Some(request)
}

/// A filter whose fields were checked.
struct Filter {
    protocol: Option<Protocol>,
    original_destination: (Option<IpAddr>, Option<u16>),
    reply_source: (Option<IpAddr>, Option<u16>),
    original_source: Option<IpAddr>,
    destination_nat: Option<bool>,
}

impl Filter {
    fn new(filter: &ConntrackFilter) -> Result<Self> {
        let checked = Self {
            protocol: filter.protocol.as_deref().map(protocol).transpose()?,
            original_destination: (
                address("originalDestinationAddress", &filter.original_destination_address)?,
                filter.original_destination_port,
            ),
            reply_source: (
                address("replySourceAddress", &filter.reply_source_address)?,
                filter.reply_source_port,
            ),
            original_source: address("originalSourceAddress", &filter.original_source_address)?,
            destination_nat: filter.destination_nat,
        };
        let empty = checked.protocol.is_none()
            && checked.original_destination == (None, None)
            && checked.reply_source == (None, None)
            && checked.original_source.is_none()
            && checked.destination_nat.is_none();
        if empty {
            // A forgotten field must not end every connection of the host.
            return Err(Error::new(
                ErrorKind::Invalid,
                "a conntrack filter must have at least one field",
            ));
        }
        Ok(checked)
    }

    fn matches(&self, entry: &ConntrackEntry) -> bool {
        fn fits<T: PartialEq>(wanted: Option<T>, found: T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        let (original, reply) = (&entry.original, &entry.reply);
        fits(self.protocol, entry.protocol)
            && fits(self.original_destination.0, original.destination_address)
            && fits(self.original_destination.1, original.destination_port)
            && fits(self.reply_source.0, reply.source_address)
            && fits(self.reply_source.1, reply.source_port)
            && fits(self.original_source, original.source_address)
            && fits(self.destination_nat, entry.destination_nat)
    }
}

fn protocol(name: &str) -> Result<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!("protocol {name:?} must be tcp, udp or sctp"),
        )),
    }
}

fn address(field: &str, text: &Option<String>) -> Result<Option<IpAddr>> {
    let parsed = text.as_deref().map(str::parse).transpose();
    parsed.map_err(|_| {
        let text = text.as_deref().unwrap_or_default();
        Error::new(ErrorKind::Invalid, format!("{field} {text:?} must be an IP address"))
    })
}

pub(super) fn parse(message: Message<'_>) -> Option<ConntrackEntry> {
    if message.kind != IPCTNL_MSG_CT_NEW {
        return None;
    }
    let mut number = 0;
    let (mut original, mut reply) = (None, None);
    let (mut status, mut timeout, mut mark, mut id) = (0, 0, 0, 0);
    let mut state = "";
    for attribute in Attributes::after(message.payload, NFGENMSG) {
        match attribute.kind {
            CTA_TUPLE_ORIG => {
                let (tuple, protocol) = parse_tuple(attribute)?;
                (original, number) = (Some(tuple), protocol);
            }
            CTA_TUPLE_REPLY => reply = Some(parse_tuple(attribute)?.0),
            CTA_STATUS => status = attribute.be32()?,
            CTA_PROTOINFO => state = parse_state(attribute),
            CTA_TIMEOUT => timeout = attribute.be32()?,
            CTA_MARK => mark = attribute.be32()?,
            CTA_ID => id = attribute.be32()?,
            _ => {}
        }
    }
    Some(ConntrackEntry {
        id,
        protocol: Protocol::from_number(number),
        original: original?,
        reply: reply?,
        state,
        timeout_seconds: timeout,
        assured: status & IPS_ASSURED != 0,
        seen_reply: status & IPS_SEEN_REPLY != 0,
        destination_nat: status & IPS_DST_NAT != 0,
        source_nat: status & IPS_SRC_NAT != 0,
        mark,
    })
}

/// A tuple and its protocol's number.
fn parse_tuple(tuple: Attribute<'_>) -> Option<(Tuple, u8)> {
    let (mut source, mut destination) = (None, None);
    for attribute in tuple.nested().find(CTA_TUPLE_IP)?.nested() {
        match attribute.kind {
            CTA_IP_V4_SRC => source = ipv4(attribute),
            CTA_IP_V4_DST => destination = ipv4(attribute),
            CTA_IP_V6_SRC => source = ipv6(attribute),
            CTA_IP_V6_DST => destination = ipv6(attribute),
            _ => {}
        }
    }
    let (mut number, mut source_port, mut destination_port) = (None, 0, 0);
    for attribute in tuple.nested().find(CTA_TUPLE_PROTO)?.nested() {
        match attribute.kind {
            CTA_PROTO_NUM => number = attribute.u8(),
            CTA_PROTO_SRC_PORT => source_port = attribute.be16()?,
            CTA_PROTO_DST_PORT => destination_port = attribute.be16()?,
            _ => {}
        }
    }
    let tuple = Tuple {
        source_address: source?,
        source_port,
        destination_address: destination?,
        destination_port,
    };
    Some((tuple, number?))
}

fn ipv4(attribute: Attribute<'_>) -> Option<IpAddr> {
    attribute.value.first_chunk::<4>().map(|octets| IpAddr::from(*octets))
}

fn ipv6(attribute: Attribute<'_>) -> Option<IpAddr> {
    attribute.value.first_chunk::<16>().map(|octets| IpAddr::from(*octets))
}

fn parse_state(info: Attribute<'_>) -> &'static str {
    let named = |kind: u16, names: &[&'static str]| {
        let state = info.nested().find(kind)?.nested().find(STATE)?.u8()?;
        Some(names.get(usize::from(state)).copied().unwrap_or("UNKNOWN"))
    };
    named(CTA_PROTOINFO_TCP, &TCP_STATES)
        .or_else(|| named(CTA_PROTOINFO_SCTP, &SCTP_STATES))
        .unwrap_or_default()
}
