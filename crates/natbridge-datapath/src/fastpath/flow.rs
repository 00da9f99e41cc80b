//! The cached flows.

use std::net::IpAddr;
use std::time::Duration;

use nix::libc;

use super::FastPath;
use super::abi::{nb_flow, nb_flow_key, nb_tuple};
use super::port::TransportProtocol;
use super::presence::Presence;
use crate::error::Result;

/// A flow that brought no packet for this long after its lease is not counted.
const RECENT: Duration = Duration::from_secs(30);

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTuple {
    pub source_address: IpAddr,
    pub source_port: u16,
    pub destination_address: IpAddr,
    pub destination_port: u16,
}

impl From<&nb_tuple> for FlowTuple {
    fn from(tuple: &nb_tuple) -> Self {
        Self {
            source_address: tuple.source.into(),
            source_port: u16::from_be(tuple.source_port),
            destination_address: tuple.destination.into(),
            destination_port: u16::from_be(tuple.destination_port),
        }
    }
}

/// A cached flow, as the fast path holds it now.
#[derive(Clone, Debug)]
pub struct FlowInfo {
    /// The device its packets arrive on.
    pub ifindex: u32,
    pub output_ifindex: u32,
    pub protocol: TransportProtocol,
    pub original: FlowTuple,
    pub translated: FlowTuple,
    /// Packets the fast path carried.
    pub packets: u64,
    pub bytes: u64,
    /// Seconds until its lease ends; negative: expired, and kept for its next packet.
    pub lease_seconds: f64,
}

impl FastPath {
    /// The cached flows, expired ones included.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list_flows(&self) -> Result<Vec<FlowInfo>> {
        let now = monotonic();
        let generation = self.switches.read().generation;
        Ok(self
            .flows
            .entries()?
            .iter()
            .filter(|(_, flow)| flow.learned != 0)
            .map(|(key, flow)| flow_info(key, flow, now, generation))
            .collect())
    }

    /// Counts the flows that are or lately were in use.
    pub(super) fn count_flows(&self) -> Result<u64> {
        let now = monotonic();
        let recent = |flow: &nb_flow| {
            flow.learned != 0
                && Duration::from_nanos(flow.lease_end.max(flow.seen_at)) + RECENT > now
        };
        Ok(self.flows.entries()?.iter().filter(|(_, flow)| recent(flow)).count() as u64)
    }

    /// Forgets the flows from and to a device: its packets will not be followed any more.
    pub(super) fn forget_flows(&self, ifindex: u32) -> Result<()> {
        let presence = Presence::open(&self.pins)?;
        for (key, flow) in self.flows.entries()? {
            if (key.ifindex == ifindex || flow.path.output_ifindex == ifindex)
                && self.flows.take(&key)?
            {
                presence.forget(&key.tuple);
            }
        }
        Ok(())
    }
}

fn flow_info(key: &nb_flow_key, flow: &nb_flow, now: Duration, generation: u32) -> FlowInfo {
    let left = Duration::from_nanos(flow.lease_end).as_secs_f64() - now.as_secs_f64();
    FlowInfo {
        ifindex: key.ifindex,
        output_ifindex: flow.path.output_ifindex,
        protocol: TransportProtocol::from_number(key.protocol),
        original: FlowTuple::from(&key.tuple),
        translated: FlowTuple::from(&flow.path.translated),
        packets: flow.packets,
        bytes: flow.bytes,
        // A new generation has ended it, whatever the clock says.
        lease_seconds: if flow.generation == generation { left } else { left.min(-0.0) },
    }
}

/// The clock of the leases: CLOCK_MONOTONIC.
pub(super) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the timespec it is given; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
