//! Whether a clsact queueing discipline holds filters: one that does is not ours to remove.

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::error::{Context, Error, Result};

/// TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS, linux/pkt_sched.h.
const PARENTS: [TcHandle; 2] =
    [TcHandle { major: 0xffff, minor: 0xfff2 }, TcHandle { major: 0xffff, minor: 0xfff3 }];

/// Whether any filter is on either side of the device.
///
/// # Errors
/// The kernel's.
pub fn has_filters(ifindex: u32) -> Result<bool> {
    for parent in PARENTS {
        if dump_has_entries(ifindex, parent)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn dump_has_entries(ifindex: u32, parent: TcHandle) -> Result<bool> {
    let doing = || format!("listing the filters of device {ifindex}");
    let mut socket = Socket::new(NETLINK_ROUTE).context(doing())?;
    socket.bind_auto().context(doing())?;
    socket.connect(&SocketAddr::new(0, 0)).context(doing())?;
    socket.send(&request(ifindex, parent), 0).context(doing())?;
    let mut found = false;
    loop {
        let (answer, _) = socket.recv_from_full().context(doing())?;
        let mut rest = answer.as_slice();
        while rest.len() >= 16 {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|cause| {
                    Error::new(crate::ErrorKind::Io, format!("{}: {cause}", doing()))
                })?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => {
                    let errno = error.code.map_or(0, |code| -code.get());
                    return if errno == 0 {
                        Ok(found)
                    } else {
                        Err(Error::from_errno(errno, doing()))
                    };
                }
                NetlinkPayload::InnerMessage(_) => found = true,
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(ifindex: u32, parent: TcHandle) -> Vec<u8> {
    let mut filter = TcMessage::with_index(ifindex.cast_signed());
    filter.header.parent = parent;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(
        header,
        NetlinkPayload::from(RouteNetlinkMessage::GetTrafficFilter(filter)),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
