//! Changing and looking up single conntrack entries, each named by the tuple of either direction.

use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::conntrack::{
    CTA_IP_V4_DST, CTA_IP_V4_SRC, CTA_IP_V6_DST, CTA_IP_V6_SRC, CTA_PROTO_DST_PORT, CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT, CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_TUPLE_IP, CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW, Protocol, STATE, Tuple, list_conntrack,
    parse,
};
use super::netlink::Netlink;
use super::nla::{push, push_nested};
use crate::{ErrorKind, Result, error::Context};

const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

/// linux/netfilter/nf_conntrack_tcp.h.
const BE_LIBERAL: u8 = 0x08;
const DATA_UNACKNOWLEDGED: u8 = 0x10;
const MAXACK_SET: u8 = 0x20;
/// `enum tcp_conntrack`.
const TCP_CONNTRACK_CLOSE: u8 = 8;

/// A socket to change entries by.
pub struct ConntrackEntries {
    netlink: Netlink,
}

impl ConntrackEntries {
    /// For the calling thread's namespace.
    ///
    /// # Errors
    /// `unsupported` on a kernel without ctnetlink.
    pub fn open() -> Result<Self> {
        Ok(Self { netlink: Netlink::open(NETLINK_NETFILTER)? })
    }

    /// Lets conntrack judge no windows of this TCP connection, and forget what it holds for
    /// unacknowledged and for the highest acknowledgement: it will not see what makes them so.
    ///
    /// # Errors
    /// `not_found` if there is no entry.
    pub fn make_liberal(&mut self, tuple: &Tuple) -> Result<()> {
        // struct nf_ct_tcp_flags: flags and mask.
        let flags = [BE_LIBERAL, BE_LIBERAL | DATA_UNACKNOWLEDGED | MAXACK_SET];
        let mut tcp = Vec::new();
        push(&mut tcp, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &flags);
        push(&mut tcp, CTA_PROTOINFO_TCP_FLAGS_REPLY, &flags);
        self.change(tuple, &tcp).context("making a conntrack entry liberal")
    }

    /// Takes an established TCP connection for ended by a RST.
    ///
    /// # Errors
    /// The kernel's. No entry, or one in another state, is none.
    pub fn close(&mut self, tuple: &Tuple) -> Result<()> {
        // The tuple may have got a new connection meanwhile.
        if self.state(tuple)? != Some("ESTABLISHED") {
            return Ok(());
        }
        let mut tcp = Vec::new();
        push(&mut tcp, STATE, &[TCP_CONNTRACK_CLOSE]);
        match self.change(tuple, &tcp) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done.context("closing a conntrack entry"),
        }
    }

    /// The state of the entry, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn state(&mut self, tuple: &Tuple) -> Result<Option<&'static str>> {
        let mut state = None;
        let answer = self.netlink.get(IPCTNL_MSG_CT_GET, &request(tuple), |message| {
            state = parse(message).map(|entry| entry.state);
        });
        match answer {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("looking up a conntrack entry"),
            Ok(()) => Ok(state),
        }
    }

    fn change(&mut self, tuple: &Tuple, tcp: &[u8]) -> Result<()> {
        let mut request = request(tuple);
        let mut info = Vec::new();
        push_nested(&mut info, CTA_PROTOINFO_TCP, tcp);
        push_nested(&mut request, CTA_PROTOINFO, &info);
        self.netlink.execute(IPCTNL_MSG_CT_NEW, 0, &request)
    }
}

/// Makes every established TCP connection liberal.
///
/// # Errors
/// The kernel's.
pub fn make_established_liberal() -> Result<()> {
    let established: Vec<Tuple> = list_conntrack()?
        .into_iter()
        .filter(|entry| entry.state == "ESTABLISHED" && entry.protocol == Protocol::Tcp)
        .map(|entry| entry.original)
        .collect();
    let mut entries = ConntrackEntries::open()?;
    for tuple in established {
        match entries.make_liberal(&tuple) {
            // It ended by itself meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// `struct nfgenmsg` and the tuple of a TCP connection: ctnetlink finds by that of either direction.
fn request(tuple: &Tuple) -> Vec<u8> {
    let mut addresses = Vec::new();
    let family = match (tuple.source_address, tuple.destination_address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            push(&mut addresses, CTA_IP_V4_SRC, &source.octets());
            push(&mut addresses, CTA_IP_V4_DST, &destination.octets());
            libc::AF_INET
        }
        (source, destination) => {
            push(&mut addresses, CTA_IP_V6_SRC, &octets6(source));
            push(&mut addresses, CTA_IP_V6_DST, &octets6(destination));
            libc::AF_INET6
        }
    };
    let mut protocol = Vec::new();
    push(&mut protocol, CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]);
    push(&mut protocol, CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
    push(&mut protocol, CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
    let mut nested = Vec::new();
    push_nested(&mut nested, CTA_TUPLE_IP, &addresses);
    push_nested(&mut nested, CTA_TUPLE_PROTO, &protocol);
    let mut request = vec![family as u8, 0, 0, 0];
    push_nested(&mut request, CTA_TUPLE_ORIG, &nested);
    request
}

fn octets6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
