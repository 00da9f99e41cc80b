//! What the connect hooks know: published ports and the host's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use nix::libc;

use super::FastPath;
use super::abi::{bytes_of, nb_address, nb_address_kind, nb_port, nb_port_key};
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
    /// The published port, and the endpoint the target address is of.
    pub port_id: ObjectId,
    pub endpoint_id: ObjectId,
}

/// The beginning of an object's id: by it a socket's storage tells an object from a later one with
/// the same name, number or address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

impl FromStr for ObjectId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let beginning = text.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        beginning.map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("id {text:?}: 16 hexadecimal digits or more"))
        })
    }
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
            let bytes = bytes_of(&key).to_vec();
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
        let targets = ports.iter().map(|port| port.target_address);
        self.set_addresses(nb_address_kind::NB_ADDRESS_TARGET, targets)
    }

    fn set_port(
        &self,
        entry: &PortEntry,
        known: Option<&nb_port>,
        free: &mut impl Iterator<Item = u32>,
    ) -> Result<()> {
        let address = nb_address::from(entry.target_address);
        let port = entry.target_port.to_be();
        let wanted = nb_port {
            address,
            port,
            padding: 0,
            slot: 0,
            port_id: entry.port_id.0,
            endpoint_id: entry.endpoint_id.0,
        };
        let slot = match known {
            Some(old) if bytes_of(old) == bytes_of(&nb_port { slot: old.slot, ..wanted }) => {
                return Ok(());
            }
            Some(old) => old.slot,
            None => {
                let slot = free.next().ok_or_else(|| {
                    Error::new(ErrorKind::Busy, "maxPorts: no counter is free".to_owned())
                })?;
                self.port_connects.clear(slot)?;
                slot
            }
        };
        self.ports.set(&entry.key(), &nb_port { slot, ..wanted })
    }

    /// Makes the host's own addresses, loopback left out, exactly these.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_local_addresses(&self, addresses: &[IpAddr]) -> Result<()> {
        let _changing = self.lock();
        self.set_addresses(nb_address_kind::NB_ADDRESS_LOCAL, addresses.iter().copied())
    }

    /// Makes the addresses of this kind exactly these. One that is the host's own is nothing else.
    fn set_addresses(
        &self,
        kind: nb_address_kind,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<()> {
        let wanted: BTreeSet<[u32; 4]> =
            addresses.map(|address| nb_address::from(address).words).collect();
        let mut known = BTreeMap::new();
        for (address, is) in self.local_addresses.entries()? {
            if is == kind.0 && !wanted.contains(&address.words) {
                self.local_addresses.remove(&address)?;
            } else {
                known.insert(address.words, is);
            }
        }
        for words in wanted {
            let is = known.get(&words).copied();
            if is == Some(kind.0) || is == Some(nb_address_kind::NB_ADDRESS_LOCAL.0) {
                continue;
            }
            self.local_addresses.set(&nb_address { words }, &kind.0)?;
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
        if index.insert(bytes_of(&entry.key()).to_vec(), *entry).is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("port {}:{} is given twice", entry.host_address, entry.host_port),
            ));
        }
    }
    Ok(index)
}
