//! Link-local addresses that follow from endpoints' MACs: nobody else on the link may take them.

use std::net::Ipv6Addr;

use super::FastPath;
use super::abi::{nb_address, nb_device, nb_link_local, nb_link_local_key};
use crate::error::Result;

/// The address that a device with this MAC gives itself (RFC 4291, appendix A).
pub fn link_local_of(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(octets)
}

fn mac_of(device: &nb_device) -> [u8; 6] {
    let mut mac = [0; 6];
    for (pair, word) in mac.chunks_exact_mut(2).zip(device.mac) {
        pair.copy_from_slice(&word.to_ne_bytes());
    }
    mac
}

fn own_key(device: &nb_device) -> nb_link_local_key {
    nb_link_local_key {
        link: device.link,
        address: nb_address::from(std::net::IpAddr::from(link_local_of(mac_of(device)))),
    }
}

/// By this one the programs count what a device took.
fn count_key(ifindex: u32) -> nb_link_local_key {
    nb_link_local_key { link: 0, address: nb_address { words: [0, 0, 0, ifindex] } }
}

impl FastPath {
    /// Gives an endpoint the address of its MAC, whoever may have taken it before.
    pub(super) fn reserve_link_local(&self, ifindex: u32, device: &nb_device) -> Result<()> {
        if mac_of(device) == [0; 6] {
            return Ok(());
        }
        self.link_locals.set(&own_key(device), &nb_link_local { owner: ifindex, claims: 0 })
    }

    /// Frees what a device had: it is gone, or another one by now.
    pub(super) fn release_link_locals(&self, ifindex: u32, device: &nb_device) -> Result<()> {
        let own = own_key(device);
        if self.link_locals.get(&own)?.is_some_and(|known| known.owner == ifindex) {
            self.link_locals.remove(&own)?;
        }
        let count = count_key(ifindex);
        if self.link_locals.get(&count)?.is_none() {
            return Ok(());
        }
        for (key, value) in self.link_locals.entries()? {
            if value.owner == ifindex {
                self.link_locals.remove(&key)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_mac_is_the_kernels() {
        let address = link_local_of([0x02, 0x42, 0xac, 0x20, 0x00, 0x0a]);
        assert_eq!(address.to_string(), "fe80::42:acff:fe20:a");
    }
}
