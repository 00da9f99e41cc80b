//! What the connect hooks know: published ports and the host's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nix::libc;

use super::FastPath;
use super::abi::{nb_address, nb_port, nb_port_key};
use crate::error::{Error, ErrorKind, Result};

/// Transport protocols of the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportProtocol {
    Tcp,
    Udp,
}

impl TransportProtocol {
    /// The protocol's number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }

    /// The protocol with this number; anything but UDP is TCP.
    pub fn from_number(number: u8) -> Self {
        if number == libc::IPPROTO_UDP as u8 { Self::Udp } else { Self::Tcp }
    }
}

/// A DNAT entry for the connect hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    pub protocol: TransportProtocol,
    /// `0.0.0.0` or `::` for every local address of the family.
    pub host_address: IpAddr,
    pub host_port: u16,
    pub target_address: IpAddr,
    pub target_port: u16,
}

impl PortEntry {
    fn key(&self) -> nb_port_key {
        nb_port_key {
            address: nb_address::from(self.host_address),
            port: self.host_port.to_be(),
            protocol: self.protocol.number(),
            padding: 0,
        }
    }
}

/// Map keys have no order of their own.
type KeyBytes = Vec<u8>;

impl FastPath {
    /// Makes the connect hooks' ports exactly these. Ports that stay keep their counters.
    ///
    /// # Errors
    /// `invalid` for a port given twice or of no number, `busy` if they are more than maxPorts;
    /// then nothing has changed.
    pub fn set_ports(&self, ports: &[PortEntry]) -> Result<()> {
        let _changing = self.lock();
        let wanted = index_ports(ports)?;
        if wanted.len() > self.ports.capacity() as usize {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("maxPorts {}: {} are wanted", self.ports.capacity(), wanted.len()),
            ));
        }
        let mut used = BTreeSet::new();
        let mut known = BTreeMap::new();
        for (key, port) in self.ports.entries()? {
            let bytes = super::abi::bytes_of(&key).to_vec();
            if wanted.contains_key(&bytes) {
                used.insert(port.slot);
                known.insert(bytes, port);
            } else {
                self.ports.remove(&key)?;
            }
        }
        let mut free = (0..self.ports.capacity()).filter(|slot| !used.contains(slot));
        for (bytes, entry) in &wanted {
            self.set_port(entry, known.get(bytes), &mut free)?;
        }
        Ok(())
    }

    fn set_port(
        &self,
        entry: &PortEntry,
        known: Option<&nb_port>,
        free: &mut impl Iterator<Item = u32>,
    ) -> Result<()> {
        let address = nb_address::from(entry.target_address);
        let port = entry.target_port.to_be();
        let slot = match known {
            Some(old) if old.address.words == address.words && old.port == port => return Ok(()),
            Some(old) => old.slot,
            None => {
                let slot = free.next().ok_or_else(|| {
                    Error::new(ErrorKind::Busy, "maxPorts: no counter is free".to_owned())
                })?;
                self.port_connects.clear(slot)?;
                slot
            }
        };
        self.ports.set(&entry.key(), &nb_port { address, port, padding: 0, slot })
    }

    /// Makes the host's own addresses, loopback left out, exactly these.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_local_addresses(&self, addresses: &[IpAddr]) -> Result<()> {
        let _changing = self.lock();
        let wanted: BTreeSet<[u32; 4]> =
            addresses.iter().map(|address| nb_address::from(*address).words).collect();
        for (address, _) in self.local_addresses.entries()? {
            if !wanted.contains(&address.words) {
                self.local_addresses.remove(&address)?;
            }
        }
        for words in wanted {
            self.local_addresses.set(&nb_address { words }, &1)?;
        }
        Ok(())
    }
}

fn index_ports(ports: &[PortEntry]) -> Result<BTreeMap<KeyBytes, PortEntry>> {
    let mut index = BTreeMap::new();
    for entry in ports {
        if entry.host_port == 0 || entry.target_port == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("port {}:{}: 0 is no port", entry.host_address, entry.host_port),
            ));
        }
        if index.insert(super::abi::bytes_of(&entry.key()).to_vec(), *entry).is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("port {}:{} is given twice", entry.host_address, entry.host_port),
            ));
        }
    }
    Ok(index)
}
