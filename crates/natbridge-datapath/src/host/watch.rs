//! Notice of what changes on the host, by the kernel's own notifications.
//!
//! Two listeners, in this order: `on_change` at once, for whoever must act before the next packet;
//! `on_events` with the changes of 20 ms put together, or at once if rules may have changed.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use nix::libc;
use nix::sys::eventfd::EventFd;

use super::names::Names;
use super::netlink::{Message, Netlink, messages, subscribe};
use super::nftables::{self, NFNLGRP_NFTABLES};
use super::nla::Attributes;
use super::xtables::LegacyWatch;
use crate::worker::{Wake, Worker, run_ahead, wait};
use crate::{Result, error::Context};

const COALESCE: Duration = Duration::from_millis(20);
const MESSAGE_BUFFER: usize = 64 * 1024;
/// Endpoints can make up neighbours: the memory for them is bounded.
const NEIGHBOURS_MAX: usize = 65_536;

/// XFRMNLGRP_POLICY (linux/xfrm.h).
const XFRMNLGRP_POLICY: u32 = 4;
const ROUTE_GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_TC,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];

const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
/// A route that the kernel made for one destination, from another (RTM_F_CLONED).
const RTM_F_CLONED: u32 = 0x200;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostEventKind {
    Link,
    Address,
    Route,
    Neighbour,
    Qdisc,
    /// Rules that packets meet: of nftables or iptables, of policy routing, of xfrm; or a device has
    /// another name, by which they know it.
    Ruleset,
    /// Elements of natbridge's own table.
    Elements,
    /// Notifications were lost: anything may have changed.
    Overrun,
}

impl HostEventKind {
    /// The word of the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Qdisc => "qdisc",
            Self::Ruleset => "ruleset",
            Self::Elements => "elements",
            Self::Overrun => "overrun",
        }
    }

    /// Whether a verdict on the host's rules may be untrue by it.
    pub const fn concerns_rules(self) -> bool {
        matches!(self, Self::Qdisc | Self::Ruleset | Self::Overrun)
    }
}

/// A change of the host; several equal ones arrive as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostEvent {
    pub kind: HostEventKind,
    /// For link and address events: the device; 0 otherwise.
    pub ifindex: u32,
    pub removed: bool,
}

/// A running watch; it ends when it is dropped.
pub struct Watch {
    worker: Worker,
    /// One of its sockets has failed for good.
    is_deaf: Arc<AtomicBool>,
    legacy: LegacyWatch,
}

impl Watch {
    /// Watches the calling thread's namespace. Changes made after this returns are not missed.
    ///
    /// `on_change` is called on a watching thread with no delay, once for what one read of a socket
    /// brought, and must be quick; `on_events` up to 20 ms later with equal events put together.
    ///
    /// # Errors
    /// `denied` without the privilege to listen.
    pub fn start(
        on_change: impl Fn(&[HostEvent]) + Send + Sync + 'static,
        on_events: impl Fn(Vec<HostEvent>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let listeners =
            Arc::new(Listeners { on_change: Box::new(on_change), on_events: Box::new(on_events) });
        let heard = Arc::clone(&listeners);
        let legacy = LegacyWatch::start(move || {
            let events = vec![plain(HostEventKind::Ruleset, false)];
            (heard.on_change)(&events);
            (heard.on_events)(events);
        })?;
        let mut sources = vec![Source::open(NETLINK_ROUTE, &ROUTE_GROUPS)?];
        for (protocol, group) in
            [(NETLINK_NETFILTER, NFNLGRP_NFTABLES), (NETLINK_XFRM, XFRMNLGRP_POLICY)]
        {
            // Without the subsystem nothing of it can change.
            sources.extend(Source::open(protocol, &[group]).ok());
        }
        let is_deaf = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            is_deaf: Arc::clone(&is_deaf),
            sources,
            neighbours: Neighbours::read()?,
            names: Names::read()?,
            listeners,
        };
        let worker = Worker::start("natbridge-watch", move |stop| watcher.run(stop))?;
        Ok(Self { worker, is_deaf, legacy })
    }

    /// Whether it still hears of changes.
    pub fn listens(&self) -> bool {
        !self.is_deaf.load(Ordering::SeqCst) && self.worker.runs() && self.legacy.listens()
    }
}

struct Source {
    protocol: isize,
    socket: Socket,
}

impl Source {
    fn open(protocol: isize, groups: &[u32]) -> Result<Self> {
        Ok(Self { protocol, socket: subscribe(protocol, groups)? })
    }
}

type OnChange = dyn Fn(&[HostEvent]) + Send + Sync;
type OnEvents = dyn Fn(Vec<HostEvent>) + Send + Sync;

struct Listeners {
    on_change: Box<OnChange>,
    on_events: Box<OnEvents>,
}

struct Watcher {
    sources: Vec<Source>,
    neighbours: Neighbours,
    names: Names,
    is_deaf: Arc<AtomicBool>,
    listeners: Arc<Listeners>,
}

impl Watcher {
    fn run(mut self, stop: &EventFd) {
        let mut pending: Pending = Pending::default();
        // What it has not heard yet goes on to be carried by the rules of before.
        run_ahead();
        loop {
            let timeout = pending.due.map(|due| due.saturating_duration_since(Instant::now()));
            let sources = self.sources.iter().map(|source| source.socket.as_fd());
            match wait(stop, sources, timeout) {
                Wake::Stop => return,
                Wake::Nothing => {}
                Wake::Ready(index) => {
                    let events = self.read(index);
                    if !events.is_empty() {
                        (self.listeners.on_change)(&events);
                        pending.add(events);
                    }
                }
            }
            if pending.due.is_some_and(|due| due <= Instant::now()) {
                (self.listeners.on_events)(pending.take());
            }
        }
    }

    /// What one read of a socket says.
    fn read(&mut self, index: usize) -> Vec<HostEvent> {
        let Some(source) = self.sources.get(index) else { return Vec::new() };
        let mut bytes = Vec::with_capacity(MESSAGE_BUFFER);
        let sender = match source.socket.recv_from(&mut bytes, 0) {
            Ok((_, sender)) => sender,
            Err(cause) => match cause.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => return Vec::new(),
                Some(libc::ENOBUFS) => {
                    // Neighbours are known again from here on.
                    if let Ok(neighbours) = Neighbours::read() {
                        self.neighbours = neighbours;
                    }
                    if let Ok(names) = Names::read() {
                        self.names = names;
                    }
                    return vec![plain(HostEventKind::Overrun, false)];
                }
                // A socket that fails for ever must not be asked for ever.
                _ => {
                    self.sources.remove(index);
                    self.is_deaf.store(true, Ordering::SeqCst);
                    return vec![plain(HostEventKind::Overrun, false)];
                }
            },
        };
        if sender.port_number() != 0 {
            return Vec::new();
        }
        let protocol = source.protocol;
        let mut events = Vec::new();
        for message in messages(&bytes) {
            match protocol {
                NETLINK_ROUTE => {
                    let event = self.neighbours.event(message).or_else(|| route_event(message));
                    events.extend(event);
                    if self.names.changes(message) {
                        events.push(plain(HostEventKind::Ruleset, false));
                    }
                }
                NETLINK_NETFILTER => {
                    events.extend(nftables::event_kind(message).map(|kind| plain(kind, false)));
                }
                _ => events.push(plain(HostEventKind::Ruleset, false)),
            }
        }
        events
    }
}

/// Events that wait for their like.
#[derive(Default)]
struct Pending {
    seen: HashSet<HostEvent>,
    ordered: Vec<HostEvent>,
    due: Option<Instant>,
    /// When events were last handed on.
    last: Option<Instant>,
}

impl Pending {
    fn add(&mut self, events: Vec<HostEvent>) {
        let now = Instant::now();
        let mut due = now + COALESCE;
        if events.iter().any(|event| event.kind.concerns_rules()) {
            // At once, but not for each message of a large transaction.
            due = self.last.map_or(now, |last| now.max(last + COALESCE));
        }
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
        for event in events {
            if self.seen.insert(event) {
                self.ordered.push(event);
            }
        }
    }

    fn take(&mut self) -> Vec<HostEvent> {
        self.seen.clear();
        self.due = None;
        self.last = Some(Instant::now());
        std::mem::take(&mut self.ordered)
    }
}

fn plain(kind: HostEventKind, removed: bool) -> HostEvent {
    HostEvent { kind, ifindex: 0, removed }
}

/// Events of rtnetlink, neighbours left out.
fn route_event(message: Message<'_>) -> Option<HostEvent> {
    // `struct ifinfomsg` and `struct ifaddrmsg` both have the device at byte 4.
    let word = |at: usize| message.payload.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
    let device = |kind, removed| Some(HostEvent { kind, ifindex: word(4)?, removed });
    match message.kind {
        libc::RTM_NEWLINK => device(HostEventKind::Link, false),
        // AF_BRIDGE: it stopped being a port, the device itself is still there.
        libc::RTM_DELLINK => {
            let port = message.payload.first().is_some_and(|f| i32::from(*f) == libc::AF_BRIDGE);
            device(HostEventKind::Link, !port)
        }
        libc::RTM_NEWADDR => device(HostEventKind::Address, false),
        libc::RTM_DELADDR => device(HostEventKind::Address, true),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE if word(8)? & RTM_F_CLONED != 0 => None,
        libc::RTM_NEWRULE => Some(plain(HostEventKind::Ruleset, false)),
        libc::RTM_DELRULE => Some(plain(HostEventKind::Ruleset, true)),
        // With a TOS, `struct rtmsg`'s fourth byte, it is a rule about packets, not about addresses.
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE if *message.payload.get(3)? != 0 => {
            Some(plain(HostEventKind::Ruleset, message.kind == libc::RTM_DELROUTE))
        }
        libc::RTM_NEWROUTE => Some(plain(HostEventKind::Route, false)),
        libc::RTM_DELROUTE => Some(plain(HostEventKind::Route, true)),
        libc::RTM_NEWQDISC | libc::RTM_NEWTFILTER => Some(plain(HostEventKind::Qdisc, false)),
        libc::RTM_DELQDISC | libc::RTM_DELTFILTER => Some(plain(HostEventKind::Qdisc, true)),
        _ => None,
    }
}

/// Where the neighbours and forwarding entries are, to tell a move from the kernel's housekeeping.
#[derive(Default)]
struct Neighbours {
    known: HashMap<NeighbourKey, Vec<u8>>,
}

/// Of a neighbour its device and address; of a forwarding entry its bridge and MAC.
#[derive(PartialEq, Eq, Hash)]
struct NeighbourKey {
    family: u8,
    device: u32,
    address: Vec<u8>,
}

impl Neighbours {
    fn read() -> Result<Self> {
        let mut neighbours = Self::default();
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        for family in [libc::AF_UNSPEC, libc::AF_BRIDGE] {
            let mut request = vec![0; NDMSG];
            request[0] = family as u8;
            let entries = netlink
                .dump(libc::RTM_GETNEIGH, &request, |message| Ok(Entry::parse(message)))
                .context("listing neighbours")?;
            for entry in entries.into_iter().take(NEIGHBOURS_MAX) {
                neighbours.known.insert(entry.key, entry.place);
            }
        }
        Ok(neighbours)
    }

    /// An event where a neighbour moved, failed or went; nothing for new ones, of which nobody can
    /// have learned anything yet, and for those that are merely confirmed or grow old.
    fn event(&mut self, message: Message<'_>) -> Option<HostEvent> {
        let removed = message.kind == libc::RTM_DELNEIGH;
        if !removed && message.kind != libc::RTM_NEWNEIGH {
            return None;
        }
        let entry = Entry::parse(message)?;
        if removed || entry.failed {
            let known = self.known.remove(&entry.key).is_some();
            return known.then(|| plain(HostEventKind::Neighbour, true));
        }
        if entry.place.is_empty() {
            return None;
        }
        if self.known.len() >= NEIGHBOURS_MAX && !self.known.contains_key(&entry.key) {
            self.known.clear();
            self.known.insert(entry.key, entry.place);
            return Some(plain(HostEventKind::Neighbour, false));
        }
        let place = entry.place.clone();
        let before = self.known.insert(entry.key, entry.place);
        before.is_some_and(|before| before != place).then(|| plain(HostEventKind::Neighbour, false))
    }
}

/// RTM_NEWNEIGH or RTM_DELNEIGH.
struct Entry {
    key: NeighbourKey,
    /// A neighbour's MAC, or the port of a forwarding entry; empty while unresolved.
    place: Vec<u8>,
    failed: bool,
}

impl Entry {
    fn parse(message: Message<'_>) -> Option<Self> {
        let family = *message.payload.first()?;
        let device = u32::from_ne_bytes(*message.payload.get(4..)?.first_chunk()?);
        let state = u16::from_ne_bytes(*message.payload.get(8..)?.first_chunk()?);
        let attributes = Attributes::after(message.payload, NDMSG);
        let mac = attributes.find(NDA_LLADDR).map_or(&[][..], |mac| mac.value);
        let failed = state & libc::NUD_FAILED != 0;
        if i32::from(family) == libc::AF_BRIDGE {
            let bridge = attributes.find(NDA_MASTER).and_then(|master| master.ne32());
            let key =
                NeighbourKey { family, device: bridge.unwrap_or(device), address: mac.to_vec() };
            return Some(Self { key, place: device.to_ne_bytes().to_vec(), failed });
        }
        let address = attributes.find(NDA_DST)?.value.to_vec();
        let place = if state & libc::NUD_INCOMPLETE != 0 { Vec::new() } else { mac.to_vec() };
        Some(Self { key: NeighbourKey { family, device, address }, place, failed })
    }
}
