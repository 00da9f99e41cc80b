//! The thread that does for the programs what only userspace can: change conntrack's TCP state, and
//! delete the flows of connections that have ended.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::abi::{nb_flow, nb_flow_key, nb_request, nb_request_kind, nb_tuple, value_of};
use super::flow::{FlowTuple, monotonic};
use super::pins::Pins;
use super::presence::Presence;
use super::table::Table;
use crate::error::{Context, Result};
use crate::host::{ConntrackEntries, Tuple};
use crate::worker::Worker;

const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// A flow without packets for this long is looked at.
const IDLE: Duration = Duration::from_secs(30);
/// The same while the cache is more than half full.
const IDLE_IN_NEED: Duration = Duration::from_secs(2);

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Keeper {
    _worker: Worker,
}

impl Keeper {
    /// Starts it for the calling thread's namespace.
    ///
    /// # Errors
    /// `unsupported` on a kernel without ctnetlink.
    pub fn start(pins: &Pins) -> Result<Self> {
        let requests = pins.open_map("requests")?;
        let mut sweeper = Sweeper::open(pins)?;
        let mut entries = ConntrackEntries::open()?;
        let worker = Worker::start("natbridge-keeper", move |stop| {
            if let Ok(ring) = serve(&requests, &mut entries) {
                run(&ring, stop, &mut sweeper);
            }
        })?;
        Ok(Self { _worker: worker })
    }
}

fn run(ring: &RingBuffer<'_>, stop: &EventFd, sweeper: &mut Sweeper) {
    let mut next_sweep = Instant::now() + SWEEP_INTERVAL;
    // SAFETY: the ring's own descriptor, open as long as the ring.
    let ready = unsafe { BorrowedFd::borrow_raw(ring.epoll_fd()) };
    loop {
        let wait = next_sweep.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let mut sources =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(ready, PollFlags::POLLIN)];
        // An interrupted wait is none; whatever is ready will be so again.
        let _ = poll(&mut sources, timeout);
        if sources[0].any() == Some(true) {
            return;
        }
        // The callback never fails, and the ring has no other error.
        let _ = ring.consume();
        if next_sweep <= Instant::now() {
            // What is left to delete is left for the next time.
            let crowded = sweeper.sweep().unwrap_or(false);
            next_sweep =
                Instant::now() + if crowded { Duration::from_secs(1) } else { SWEEP_INTERVAL };
        }
    }
}

fn serve<'a>(requests: &MapHandle, entries: &'a mut ConntrackEntries) -> Result<RingBuffer<'a>> {
    let mut builder = RingBufferBuilder::new();
    builder
        .add(requests, move |bytes| {
            let request: nb_request = value_of(bytes);
            let tuple = conntrack_tuple(&request.tuple, request.family);
            // Who is not served asks again; the connection may have ended meanwhile.
            let _ = if u32::from(request.kind) == nb_request_kind::NB_REQUEST_CLOSE.0 {
                entries.close(&tuple)
            } else {
                entries.make_liberal(&tuple)
            };
            0
        })
        .context("listening to the programs' requests")?;
    builder.build().context("listening to the programs' requests")
}

/// An IPv6 packet may carry v4-mapped addresses.
fn conntrack_tuple(tuple: &nb_tuple, family: u8) -> Tuple {
    let FlowTuple { source_address, source_port, destination_address, destination_port } =
        FlowTuple::from(tuple);
    let widen = |address: IpAddr| match address {
        IpAddr::V4(v4) if family == 6 => IpAddr::V6(v4.to_ipv6_mapped()),
        address => address,
    };
    Tuple {
        source_address: widen(source_address),
        source_port,
        destination_address: widen(destination_address),
        destination_port,
    }
}

/// Deletes what has ended.
struct Sweeper {
    flows: Table<nb_flow_key, nb_flow>,
    presence: Presence,
    entries: ConntrackEntries,
}

impl Sweeper {
    fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            flows: Table::open(pins, "flows")?,
            presence: Presence::open(pins)?,
            entries: ConntrackEntries::open()?,
        })
    }

    /// Answers whether the cache is more than half full.
    fn sweep(&mut self) -> Result<bool> {
        let flows = self.flows.entries()?;
        let crowded = flows.len() > self.flows.capacity() as usize / 2;
        let idle = if crowded { IDLE_IN_NEED } else { IDLE };
        let now = monotonic();
        for (key, flow) in flows {
            if Duration::from_nanos(flow.seen_at.max(flow.lease_end)) + idle > now {
                continue;
            }
            // What has left conntrack's sight is needed as long as its entry.
            let over = i32::from(key.protocol) != libc::IPPROTO_TCP
                || self.entries.state(&conntrack_tuple(&key.tuple, key.family))?.is_none();
            if over && self.flows.take(&key)? {
                self.presence.forget(&key.tuple);
            }
        }
        Ok(crowded)
    }
}
