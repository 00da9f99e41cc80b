//! The host's neighbour table: forgetting where an address was.

use std::net::IpAddr;

use nix::libc;

use super::address;
use super::nla::{self, Attributes};
use super::rtnetlink::Rtnetlink;
use crate::{ErrorKind, Result, error::Context};

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;

/// Takes away what the kernel has learned of an address on a device: its next packet asks anew. An entry
/// that somebody set by hand stays. Answers whether there was one.
pub fn forget(netlink: &mut Rtnetlink, ifindex: u32, neighbour: IpAddr) -> Result<bool> {
    let request = request(ifindex, neighbour);
    let mut learned = false;
    // RTM_GETNEIGH of one entry is since Linux 5.0 (net/core/neighbour.c, neigh_get).
    let asked = netlink.raw().get(libc::RTM_GETNEIGH, &request, |message| {
        learned |= state(message.payload).is_some_and(|state| state & libc::NUD_PERMANENT == 0);
    });
    match asked {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        result => result.context(format_args!("looking for the neighbour {neighbour}"))?,
    }
    if !learned {
        return Ok(false);
    }
    match netlink.raw().execute(libc::RTM_DELNEIGH, 0, &request) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        result => result.context(format_args!("forgetting the neighbour {neighbour}"))?,
    }
    Ok(true)
}

/// `struct ndmsg` and the address.
fn request(ifindex: u32, neighbour: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0; NDMSG];
    bytes[0] = u8::from(address::family(neighbour));
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    match neighbour {
        IpAddr::V4(v4) => nla::push(&mut bytes, NDA_DST, &v4.octets()),
        IpAddr::V6(v6) => nla::push(&mut bytes, NDA_DST, &v6.octets()),
    }
    bytes
}

fn state(payload: &[u8]) -> Option<u16> {
    // An answer without an address is none of ours.
    Attributes::after(payload, NDMSG).find(NDA_DST)?;
    payload.get(8..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}
