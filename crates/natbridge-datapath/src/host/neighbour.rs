//! The host's neighbour table: forgetting where an address was.

use std::net::IpAddr;

use nix::libc;

use super::address;
use super::nla::{self, Attributes};
use super::rtnetlink::Rtnetlink;
use crate::{ErrorKind, Result, error::Context};

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// Takes away a neighbour that the kernel believes at another MAC than `mac`: its next packet asks anew. An
/// entry that somebody set by hand stays. So does one that is being asked for: packets wait on it, and
/// would be answered "unreachable" (net/core/neighbour.c, neigh_delete and neigh_invalidate). Answers
/// whether there was one.
pub fn forget(
    netlink: &mut Rtnetlink,
    ifindex: u32,
    neighbour: IpAddr,
    mac: [u8; 6],
) -> Result<bool> {
    let request = request(ifindex, neighbour);
    let mut is_elsewhere = false;
    // RTM_GETNEIGH of one entry is since Linux 5.0 (net/core/neighbour.c, neigh_get).
    let asked = netlink.raw().get(libc::RTM_GETNEIGH, &request, |message| {
        is_elsewhere |= is_learned_elsewhere(message.payload, mac);
    });
    match asked {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        result => result.context(format_args!("looking for the neighbour {neighbour}"))?,
    }
    if !is_elsewhere {
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

fn is_learned_elsewhere(payload: &[u8], mac: [u8; 6]) -> bool {
    let state = payload.get(8..).and_then(|rest| rest.first_chunk()).copied();
    let is_fixed = u16::from_ne_bytes(state.unwrap_or_default()) & libc::NUD_PERMANENT != 0;
    // Only an entry that is or was resolved has one.
    let known = Attributes::after(payload, NDMSG).find(NDA_LLADDR);
    !is_fixed && known.is_some_and(|known| known.value != mac)
}
