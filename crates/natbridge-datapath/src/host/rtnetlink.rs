//! rtnetlink in the words of netlink-packet-route, over a socket of one namespace.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::namespace::Namespace;
use super::netlink::{Message, Netlink};
use crate::{Error, ErrorKind, Result};

/// A socket for links, addresses and routes of one namespace.
pub struct Rtnetlink(Netlink);

impl Rtnetlink {
    /// A socket of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Netlink::open(NETLINK_ROUTE).map(Self)
    }

    /// A socket of another namespace; the calling thread stays where it is.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)
    }

    /// Does what the message says; `flags` are `NLM_F_CREATE` and the like.
    pub fn execute(&mut self, message: &RouteNetlinkMessage, flags: u16) -> Result<()> {
        let payload = serialize(message);
        self.0.execute(message.message_type(), flags, &payload)
    }

    /// All objects of a table.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        let payload = serialize(message);
        self.0.dump(message.message_type(), &payload, |message| deserialize(message).map(Some))
    }

    /// SO_NETNS_COOKIE of the socket's namespace; `None` where the kernel has none.
    pub fn namespace_cookie(&self) -> Result<Option<u64>> {
        self.0.namespace_cookie()
    }

    /// The socket below, for tables that netlink-packet-route may refuse to parse.
    pub fn raw(&mut self) -> &mut Netlink {
        &mut self.0
    }
}

fn serialize(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    payload
}

fn deserialize(message: Message<'_>) -> Result<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    header.flags = message.flags;
    RouteNetlinkMessage::deserialize(&header, message.payload).map_err(|cause| {
        Error::new(ErrorKind::Io, format!("reading rtnetlink message {}: {cause}", message.kind))
    })
}
