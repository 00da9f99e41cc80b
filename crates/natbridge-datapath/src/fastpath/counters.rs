//! Reading the programs' counters. All count since the device or port was set, or since loading.

use std::net::IpAddr;

use super::FastPath;
use super::abi::{nb_device_counters, nb_event};
use super::port::TransportProtocol;
use super::reason::{CONNECTS, DROPS, PASSES};
use crate::error::Result;

/// A number of packets or calls with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub reason: &'static str,
    pub count: u64,
}

/// A device's packets and bytes: socket buffers (one per GSO packet) with their Ethernet header,
/// as a veth's own counters have them.
#[derive(Clone, Debug)]
pub struct DeviceCounters {
    pub ifindex: u32,
    pub from_device_packets: u64,
    pub from_device_bytes: u64,
    pub to_device_packets: u64,
    pub to_device_bytes: u64,
    /// Of the packets from the device: those that a cached flow carried on.
    pub fast_packets: u64,
    /// Of the packets from the device: those left to the kernel path.
    pub kernel_packets: u64,
    /// Reasons that occurred.
    pub drops: Vec<Count>,
}

/// Counters of the whole fast path.
#[derive(Clone, Debug)]
pub struct FastPathCounters {
    pub flows: u64,
    pub max_flows: u32,
    pub learned: u64,
    pub expired: u64,
    pub invalidated: u64,
    /// Every reason, in a fixed order.
    pub passes: Vec<Count>,
    pub connect_hook: Vec<Count>,
    pub generation: u32,
}

/// How often the connect hooks sent a host socket straight to a port's target.
#[derive(Clone, Copy, Debug)]
pub struct PortCounters {
    pub protocol: TransportProtocol,
    pub host_address: IpAddr,
    pub host_port: u16,
    pub connects: u64,
}

impl FastPath {
    /// Each device's counters.
    ///
    /// # Errors
    /// The kernel's.
    pub fn device_counters(&self) -> Result<Vec<DeviceCounters>> {
        let mut devices = self.devices.entries()?;
        devices.sort_by_key(|(ifindex, _)| *ifindex);
        devices
            .iter()
            .map(|(ifindex, device)| {
                let total = sum(&self.device_counters.get(device.slot)?);
                Ok(DeviceCounters {
                    ifindex: *ifindex,
                    from_device_packets: total.from_packets,
                    from_device_bytes: total.from_bytes,
                    to_device_packets: total.to_packets,
                    to_device_bytes: total.to_bytes,
                    fast_packets: total.fast_packets,
                    kernel_packets: total.kernel_packets,
                    drops: drops(&total),
                })
            })
            .collect()
    }

    /// Each port's counter.
    ///
    /// # Errors
    /// The kernel's.
    pub fn port_counters(&self) -> Result<Vec<PortCounters>> {
        self.ports
            .entries()?
            .iter()
            .map(|(key, port)| {
                Ok(PortCounters {
                    protocol: TransportProtocol::from_number(key.protocol),
                    host_address: key.address.into(),
                    host_port: u16::from_be(key.port),
                    connects: self.port_connects.sum(port.slot)?,
                })
            })
            .collect()
    }

    /// The counters of the whole.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<FastPathCounters> {
        let event = |event: nb_event| self.events.sum(event.0);
        let passes = PASSES
            .iter()
            .map(|(reason, word)| Ok(Count { reason: word, count: event(*reason)? }))
            .collect::<Result<_>>()?;
        let connect_hook = CONNECTS
            .iter()
            .map(|(result, word)| {
                Ok(Count { reason: word, count: self.connect_results.sum(result.0)? })
            })
            .collect::<Result<_>>()?;
        Ok(FastPathCounters {
            flows: self.count_flows()?,
            max_flows: self.flows.capacity(),
            learned: event(nb_event::NB_LEARNED)?,
            expired: event(nb_event::NB_EXPIRED)?,
            invalidated: event(nb_event::NB_INVALIDATED)?,
            passes,
            connect_hook,
            generation: self.switches.read().generation,
        })
    }
}

fn sum(cpus: &[nb_device_counters]) -> nb_device_counters {
    let mut total = nb_device_counters::default();
    for cpu in cpus {
        total.from_packets += cpu.from_packets;
        total.from_bytes += cpu.from_bytes;
        total.to_packets += cpu.to_packets;
        total.to_bytes += cpu.to_bytes;
        total.fast_packets += cpu.fast_packets;
        total.kernel_packets += cpu.kernel_packets;
        for (total, drops) in total.drops.iter_mut().zip(cpu.drops) {
            *total += drops;
        }
    }
    total
}

fn drops(total: &nb_device_counters) -> Vec<Count> {
    DROPS
        .iter()
        .filter_map(|(reason, word)| {
            let count = *total.drops.get(reason.0 as usize)?;
            (count != 0).then_some(Count { reason: word, count })
        })
        .collect()
}
