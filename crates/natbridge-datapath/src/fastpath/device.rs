//! Devices the programs are attached to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use super::FastPath;
use super::abi::{nb_address, nb_device, nb_device_flag};
use super::attach::{
    Mechanism, Side, attach_clsact, attach_tcx, check_device, detach_clsact, device_name,
};
use crate::error::{Error, ErrorKind, Result};

/// What a device is to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRole {
    /// The host end of an endpoint's veth pair.
    Endpoint,
    Uplink,
}

/// What the programs must know of a device they are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    pub ifindex: u32,
    pub role: DeviceRole,
    /// Bytes of the largest network-layer packet.
    pub mtu: u32,
    /// Endpoint only: its MAC in the sandbox.
    pub mac: [u8; 6],
    /// Endpoint only: its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Endpoint only: the bridge it is a port of.
    pub link: u32,
    /// Endpoint only: link-local addresses that are the bridge's.
    pub reserved: Vec<Ipv6Addr>,
    /// Drop packets whose source is neither of its addresses.
    pub spoof_check: bool,
    /// Learn and use cached flows on it.
    pub fast_path: bool,
}

impl DeviceSpec {
    fn check(&self) -> Result<()> {
        let most = nb_device::default().addresses.len();
        if self.addresses.len() > most {
            return Err(invalid(format!(
                "addresses: {} given, {most} at most; turn spoofCheck off for more",
                self.addresses.len()
            )));
        }
        let most = nb_device::default().reserved.len();
        if self.reserved.len() > most {
            return Err(invalid(format!(
                "reserved: {} given, {most} at most",
                self.reserved.len()
            )));
        }
        if self.mtu == 0 {
            return Err(invalid("mtu 0: give the device's MTU".to_owned()));
        }
        if self.role == DeviceRole::Endpoint && self.mac == [0; 6] {
            return Err(invalid("mac: an endpoint needs its sandbox's MAC address".to_owned()));
        }
        if self.role == DeviceRole::Uplink && self.spoof_check {
            return Err(invalid("spoofCheck: only endpoints have sources to check".to_owned()));
        }
        Ok(())
    }

    fn to_entry(&self, slot: u32, kept_flags: u32) -> nb_device {
        let mut entry = nb_device {
            slot,
            mtu: self.mtu,
            address_count: u32::try_from(self.addresses.len()).unwrap_or(0),
            link: self.link,
            reserved_count: u32::try_from(self.reserved.len()).unwrap_or(0),
            flags: kept_flags,
            ..nb_device::default()
        };
        for (flag, on) in [
            (nb_device_flag::NB_DEVICE_ENDPOINT, self.role == DeviceRole::Endpoint),
            (nb_device_flag::NB_DEVICE_FAST_PATH, self.fast_path),
            (nb_device_flag::NB_DEVICE_SPOOF_CHECK, self.spoof_check),
        ] {
            entry.flags |= if on { flag.0 } else { 0 };
        }
        for (word, pair) in entry.mac.iter_mut().zip(self.mac.chunks_exact(2)) {
            *word = u16::from_ne_bytes([pair[0], pair[1]]);
        }
        for (to, from) in entry.addresses.iter_mut().zip(&self.addresses) {
            *to = nb_address::from(*from);
        }
        for (to, from) in entry.reserved.iter_mut().zip(&self.reserved) {
            *to = nb_address::from(IpAddr::from(*from));
        }
        entry
    }

    fn from_entry(ifindex: u32, entry: &nb_device) -> Self {
        let has = |flag: nb_device_flag| entry.flags & flag.0 != 0;
        let mut mac = [0; 6];
        for (pair, word) in mac.chunks_exact_mut(2).zip(entry.mac) {
            pair.copy_from_slice(&word.to_ne_bytes());
        }
        let endpoint = has(nb_device_flag::NB_DEVICE_ENDPOINT);
        Self {
            ifindex,
            role: if endpoint { DeviceRole::Endpoint } else { DeviceRole::Uplink },
            mtu: entry.mtu,
            mac,
            addresses: entry
                .addresses
                .iter()
                .take(entry.address_count as usize)
                .map(|address| IpAddr::from(*address))
                .collect(),
            link: entry.link,
            reserved: entry
                .reserved
                .iter()
                .take(entry.reserved_count as usize)
                .filter_map(|address| match IpAddr::from(*address) {
                    IpAddr::V6(address) => Some(address),
                    IpAddr::V4(_) => None,
                })
                .collect(),
            spoof_check: has(nb_device_flag::NB_DEVICE_SPOOF_CHECK),
            fast_path: has(nb_device_flag::NB_DEVICE_FAST_PATH),
        }
    }
}

impl FastPath {
    /// Attaches the programs to a device, if need be, and describes it to them.
    ///
    /// # Errors
    /// `invalid` names the field, `not_found` for a device that is not there, `unsupported` for one
    /// that carries no Ethernet; then nothing has changed.
    pub fn set_device(&self, spec: &DeviceSpec) -> Result<()> {
        let _changing = self.lock();
        spec.check()?;
        check_device(spec.ifindex)?;
        let before = self.devices.get(&spec.ifindex)?;
        let slot = match &before {
            Some(entry) => entry.slot,
            None => self.free_slot()?,
        };
        let kept = before.map_or(0, |entry| entry.flags & attachment_flags());
        let described = spec.to_entry(slot, kept);
        if let Some(entry) = &before
            && (entry.mac, entry.link) != (described.mac, described.link)
        {
            self.release_link_locals(spec.ifindex, entry)?;
        }
        if spec.role == DeviceRole::Endpoint {
            self.reserve_link_local(spec.ifindex, &described)?;
        }
        // The description comes first: a program without one does nothing.
        self.devices.set(&spec.ifindex, &described)?;
        let attached = self.attach(spec.ifindex, kept);
        match (attached, before) {
            (Ok(flags), _) if flags != kept => {
                self.devices.set(&spec.ifindex, &spec.to_entry(slot, flags))?;
            }
            (Ok(_), _) => {}
            (Err(cause), Some(entry)) => {
                self.devices.set(&spec.ifindex, &entry)?;
                self.bump_generation();
                return Err(cause);
            }
            (Err(cause), None) => {
                self.devices.remove(&spec.ifindex)?;
                self.release_link_locals(spec.ifindex, &described)?;
                self.bump_generation();
                return Err(cause);
            }
        }
        if before.is_some_and(|entry| DeviceSpec::from_entry(spec.ifindex, &entry) != *spec) {
            self.bump_generation();
        }
        Ok(())
    }

    fn attach(&self, ifindex: u32, kept: u32) -> Result<u32> {
        match self.mechanism {
            Mechanism::Tcx => attach_tcx(&self.programs, &self.pins, ifindex).map(|()| kept),
            Mechanism::Clsact => {
                let made = attach_clsact(&self.programs, ifindex)?;
                let owned = if made { nb_device_flag::NB_DEVICE_CLSACT_OWNED.0 } else { 0 };
                Ok(kept | nb_device_flag::NB_DEVICE_CLSACT.0 | owned)
            }
        }
    }

    /// Detaches the programs from a device and forgets it, if it is known.
    ///
    /// # Errors
    /// The kernel's, after all has been tried.
    pub fn remove_device(&self, ifindex: u32) -> Result<()> {
        let _changing = self.lock();
        let entry = self.devices.get(&ifindex)?;
        let mut result = Ok(());
        for side in Side::BOTH {
            result = result.and(self.pins.remove_link(&side.link(ifindex)));
        }
        if let Some(entry) = entry
            && entry.flags & nb_device_flag::NB_DEVICE_CLSACT.0 != 0
        {
            let owned = entry.flags & nb_device_flag::NB_DEVICE_CLSACT_OWNED.0 != 0;
            result = result.and(detach_clsact(ifindex, owned));
        }
        result = result.and(self.devices.remove(&ifindex));
        if let Some(entry) = entry {
            result = result.and(self.release_link_locals(ifindex, &entry));
            // Flows still name its slot.
            self.bump_generation();
            result = result.and(self.forget_flows(ifindex));
        }
        result
    }

    /// The devices that are attached.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list_devices(&self) -> Result<Vec<DeviceSpec>> {
        let mut devices: Vec<DeviceSpec> = self
            .devices
            .entries()?
            .iter()
            .map(|(ifindex, entry)| DeviceSpec::from_entry(*ifindex, entry))
            .collect();
        devices.sort_by_key(|device| device.ifindex);
        Ok(devices)
    }

    /// A slot of the counters that no device uses, zeroed.
    fn free_slot(&self) -> Result<u32> {
        let entries = self.devices.entries()?;
        let free = |entries: &[(u32, nb_device)]| {
            let used: BTreeSet<u32> = entries.iter().map(|(_, entry)| entry.slot).collect();
            (0..self.devices.capacity()).find(|slot| !used.contains(slot))
        };
        let slot = match free(&entries) {
            Some(slot) => slot,
            None => {
                self.forget_vanished(&entries)?;
                free(&self.devices.entries()?).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Busy,
                        format!("maxDevices: all {} are in use", self.devices.capacity()),
                    )
                })?
            }
        };
        self.device_counters.clear(slot)?;
        Ok(slot)
    }

    fn forget_vanished(&self, entries: &[(u32, nb_device)]) -> Result<()> {
        for (ifindex, entry) in entries {
            if device_name(*ifindex).is_none() {
                for side in Side::BOTH {
                    self.pins.remove_link(&side.link(*ifindex))?;
                }
                self.devices.remove(ifindex)?;
                self.release_link_locals(*ifindex, entry)?;
                self.bump_generation();
            }
        }
        Ok(())
    }
}

fn attachment_flags() -> u32 {
    nb_device_flag::NB_DEVICE_CLSACT.0 | nb_device_flag::NB_DEVICE_CLSACT_OWNED.0
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}
