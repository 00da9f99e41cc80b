//! Names of devices, to notice that one has another: rules know devices by name.

use std::collections::HashMap;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use super::netlink::{Message, Netlink};
use super::nla::Attributes;
use crate::{Result, error::Context};

/// `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const IFLA_IFNAME: u16 = 3;

/// By ifindex.
pub struct Names(HashMap<u32, Vec<u8>>);

impl Names {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read() -> Result<Self> {
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        let names = netlink
            .dump(libc::RTM_GETLINK, &[0; IFINFOMSG], |message| Ok(parse(message)))
            .context("listing devices' names")?;
        Ok(Self(names.into_iter().collect()))
    }

    /// Takes a notification in; whether a known device has another name by it.
    pub fn changes(&mut self, message: Message<'_>) -> bool {
        let Some((ifindex, name)) = parse(message) else { return false };
        match message.kind {
            libc::RTM_NEWLINK => {
                let before = self.0.insert(ifindex, name);
                before.is_some_and(|before| Some(&before) != self.0.get(&ifindex))
            }
            // AF_BRIDGE: it stopped being a port, and is still there.
            libc::RTM_DELLINK if message.payload.first() != Some(&(libc::AF_BRIDGE as u8)) => {
                self.0.remove(&ifindex);
                false
            }
            _ => false,
        }
    }
}

fn parse(message: Message<'_>) -> Option<(u32, Vec<u8>)> {
    if ![libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&message.kind) {
        return None;
    }
    let ifindex = u32::from_ne_bytes(*message.payload.get(4..)?.first_chunk()?);
    let name = Attributes::after(message.payload, IFINFOMSG).find(IFLA_IFNAME)?;
    Some((ifindex, name.value.to_vec()))
}
