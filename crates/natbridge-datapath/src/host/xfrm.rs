//! IPsec policies: packets that match one must not be short-cut.

use netlink_sys::protocols::NETLINK_XFRM;

use super::netlink::Netlink;
use super::nla::Attributes;
use crate::{ErrorKind, Result, error::Context};

const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRMA_SPD_INFO: u16 = 1;
/// `struct xfrmu_spdinfo`: in, out and forward policies, then the same for sockets.
const COUNTS: usize = 6;

/// Number of xfrm policies in force in the calling thread's namespace.
pub fn count_xfrm_policies() -> Result<u32> {
    let mut netlink = match Netlink::open(NETLINK_XFRM) {
        // A kernel without xfrm has no policies.
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(0),
        opened => opened?,
    };
    let mut count = 0;
    let flags = 0u32.to_ne_bytes();
    netlink
        .get(XFRM_MSG_GETSPDINFO, &flags, |message| {
            if let Some(info) = Attributes::after(message.payload, flags.len()).find(XFRMA_SPD_INFO)
            {
                count += info
                    .value
                    .chunks_exact(4)
                    .take(COUNTS)
                    .filter_map(|bytes| bytes.first_chunk())
                    .map(|bytes| u32::from_ne_bytes(*bytes))
                    .sum::<u32>();
            }
        })
        .context("counting xfrm policies")?;
    Ok(count)
}
