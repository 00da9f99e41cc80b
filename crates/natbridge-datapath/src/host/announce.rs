//! Telling a network who has an address now.
//!
//! The kernel announces for the sandbox (arp_notify, ndisc_notify), but in the moment its interface comes
//! up, when the bridge port at the other end does not forward yet: the bridge enables a port when it hears
//! of its carrier, which is told later, from a work queue (net/core/link_watch.c, net/bridge/br.c). What
//! the bridge itself sends goes to every port that forwards, whatever the new one does, and the next
//! frame to a MAC that the bridge has not learned yet is flooded.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use super::link::{self, LinkInfo};
use super::neighbour;
use super::rtnetlink::Rtnetlink;
use crate::{Error, ErrorKind, Result, error::Context};

/// Whoever was busy, or whose port did not forward, hears it then.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The thread for the second time ends when nothing was announced for so long.
const IDLE: Duration = Duration::from_secs(5);

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// ff02::1, all nodes of the link, and its MAC (RFC 4291, RFC 2464).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ICMPV6: u8 = 58;

/// An endpoint's addresses, and where they are now.
#[derive(Clone, Debug)]
pub struct Announcement {
    pub bridge: String,
    pub host_interface: String,
    pub alias: String,
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
}

/// Where each address of a bridge was last, by the bridge's ifindex. Only of bridges that this process
/// made: of others it does not know what came before.
static LAST: Mutex<BTreeMap<u32, HashMap<IpAddr, [u8; 6]>>> = Mutex::new(BTreeMap::new());
/// A bridge with more is remembered no longer.
const ADDRESSES_MAX: usize = 65_536;

/// From now on all of its addresses are known: nobody can have learned one of them yet.
pub fn remember_bridge(ifindex: u32) {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).insert(ifindex, HashMap::new());
}

/// Notes where the addresses are; true if somebody may believe them to be elsewhere.
fn is_news(bridge: u32, news: &Announcement) -> bool {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = last.get_mut(&bridge) else { return true };
    let mut moved = false;
    for address in &news.addresses {
        moved |= known.insert(*address, news.mac).is_some_and(|before| before != news.mac);
    }
    if known.len() > ADDRESSES_MAX {
        last.remove(&bridge);
    }
    moved
}

/// Tells the host and every endpoint of the bridge where these addresses are now: at once, and once more
/// a little later. A frame to everybody costs the more the more there are, so nobody is told of an
/// address that is where it always was.
///
/// # Errors
/// `not_found` if the bridge is gone.
pub fn announce(netlink: &mut Rtnetlink, news: &Announcement) -> Result<()> {
    let bridge = bridge_of(netlink, news)?;
    let was_known = forget(netlink, &bridge, news)?;
    if is_news(bridge.ifindex, news) || was_known {
        shout(&bridge, news)?;
        again(news.clone());
    }
    Ok(())
}

/// As `announce`, whatever is known.
///
/// # Errors
/// As [`announce`].
pub fn announce_anyway(netlink: &mut Rtnetlink, news: &Announcement) -> Result<()> {
    tell(netlink, news)?;
    again(news.clone());
    Ok(())
}

fn bridge_of(netlink: &mut Rtnetlink, news: &Announcement) -> Result<LinkInfo> {
    link::find(netlink, &news.bridge)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no bridge {}", news.bridge))
    })
}

fn tell(netlink: &mut Rtnetlink, news: &Announcement) -> Result<()> {
    let bridge = bridge_of(netlink, news)?;
    is_news(bridge.ifindex, news);
    forget(netlink, &bridge, news)?;
    shout(&bridge, news)
}

/// Takes away what the host believes of the addresses, if it is another MAC; true if it was of any.
fn forget(netlink: &mut Rtnetlink, bridge: &LinkInfo, news: &Announcement) -> Result<bool> {
    let mut was_known = false;
    for address in &news.addresses {
        was_known |= neighbour::forget(netlink, bridge.ifindex, *address, news.mac)?;
    }
    Ok(was_known)
}

fn shout(bridge: &LinkInfo, news: &Announcement) -> Result<()> {
    // A bridge that is down has nobody to tell.
    if !bridge.up {
        return Ok(());
    }
    let socket = packet_socket()?;
    for address in &news.addresses {
        send(&socket, bridge.ifindex, &frame(news.mac, *address))?;
    }
    Ok(())
}

/// Queues the second time; without a thread for it the first must do.
fn again(news: Announcement) {
    static QUEUE: Mutex<Option<Sender<(Instant, Announcement)>>> = Mutex::new(None);
    let due = (Instant::now() + AGAIN_AFTER, news);
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let due = match queue.as_ref().map(|sender| sender.send(due.clone())) {
        Some(Ok(())) => return,
        _ => due,
    };
    let (sender, receiver) = mpsc::channel::<(Instant, Announcement)>();
    let spawned = thread::Builder::new().name("natbridge-announce".to_owned()).spawn(move || {
        loop {
            match receiver.recv_timeout(IDLE) {
                Ok((due, news)) => {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    // Nobody waits for it, and the next packet that is lost asks anew.
                    let _ = repeat(&news);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    if spawned.is_ok() && sender.send(due).is_ok() {
        *queue = Some(sender);
    }
}

/// The second time, unless the endpoint is gone by now: its address may be another's.
fn repeat(news: &Announcement) -> Result<()> {
    let mut netlink = Rtnetlink::open()?;
    match link::find(&mut netlink, &news.host_interface)? {
        Some(found) if found.alias == news.alias => tell(&mut netlink, news),
        _ => Ok(()),
    }
}

fn packet_socket() -> Result<OwnedFd> {
    // SAFETY: socket(2) takes three integers. Protocol 0: it receives nothing.
    let opened = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if opened < 0 {
        return Err(std::io::Error::last_os_error()).context("opening a packet socket");
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> Result<()> {
    // SAFETY: all of it is integers, for which zeros are a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(ifindex).unwrap_or(0);
    // SAFETY: both pointers are to live values of the sizes given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 {
        return Err(std::io::Error::last_os_error()).context("announcing an address");
    }
    Ok(())
}

fn frame(mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => arp(mac, v4),
        IpAddr::V6(v6) => advertisement(mac, v6),
    }
}

fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

/// An ARP announcement (RFC 5227, section 2.3): a request for the own address.
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, their lengths, request.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address.octets());
    frame
}

/// An unsolicited neighbour advertisement that overrides (RFC 4861, section 7.2.6).
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    // Type, code, checksum, flags (override), target, option: target link-layer address.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac);
    let checksum = checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    // A hop limit of 255 proves that it comes from this link.
    frame.extend_from_slice(&[ICMPV6, 255]);
    frame.extend_from_slice(&address.octets());
    frame.extend_from_slice(&ALL_NODES.octets());
    frame.extend_from_slice(&message);
    frame
}

/// ICMPv6's checksum with its pseudo-header (RFC 8200, section 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut words = Vec::with_capacity(40 + message.len());
    words.extend_from_slice(&source.octets());
    words.extend_from_slice(&destination.octets());
    words.extend_from_slice(&(message.len() as u32).to_be_bytes());
    words.extend_from_slice(&[0, 0, 0, ICMPV6]);
    words.extend_from_slice(message);
    let mut sum: u32 = words
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0x42, 0xac, 0x20, 0, 10];

    #[test]
    fn an_arp_announcement_names_the_address_twice() {
        let frame = arp(MAC, Ipv4Addr::new(172, 32, 0, 10));
        assert_eq!(frame.len(), 14 + 28);
        assert_eq!((&frame[..6], &frame[6..12]), (&BROADCAST[..], &MAC[..]));
        assert_eq!(&frame[28..32], &[172, 32, 0, 10]);
        assert_eq!(&frame[38..42], &[172, 32, 0, 10]);
    }

    #[test]
    fn an_advertisement_sums_up_to_nothing() {
        let address: Ipv6Addr = "fd00:32::a".parse().unwrap();
        let frame = advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // A whole packet's sum with its checksum in place is zero (RFC 1071).
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
    }
}
