//! Receiving a datagram with the local address it was sent to, and answering from that address
//! (IP_PKTINFO, ip(7); IPV6_PKTINFO, RFC 3542 section 6).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use tokio::net::UdpSocket;

/// One datagram; its payload is in the caller's buffer.
pub struct Received {
    pub length: usize,
    pub client: SocketAddr,
    pub via: Via,
}

/// The local address a client sent to.
#[derive(Clone, Copy)]
pub enum Via {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl Via {
    /// The address alone.
    pub fn local(&self) -> IpAddr {
        match self {
            Self::V4(info) => Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(),
            Self::V6(info) => Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
        }
    }
}

/// Receives one datagram without waiting.
///
/// # Errors
/// WouldBlock, or what an ICMP message left on the socket.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = cmsg_space!(in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let client = message.address.as_ref().and_then(address);
    let via = message.cmsgs()?.find_map(|header| match header {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Via::V4(answering4(info))),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Via::V6(answering6(info))),
        _ => None,
    });
    let invalid = || io::Error::from(io::ErrorKind::WouldBlock);
    Ok(Received {
        length: message.bytes,
        client: client.ok_or_else(invalid)?,
        via: via.ok_or_else(invalid)?,
    })
}

/// The route decides which device an answer leaves by, not the one the datagram came in by.
fn answering4(info: in_pktinfo) -> in_pktinfo {
    in_pktinfo { ipi_ifindex: 0, ..info }
}

/// A link-local address says nothing without its device.
fn answering6(info: in6_pktinfo) -> in6_pktinfo {
    let link_local = Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local();
    in6_pktinfo { ipi6_ifindex: if link_local { info.ipi6_ifindex } else { 0 }, ..info }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(address) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*address).into()));
    }
    storage.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into()))
}

/// Sends `payload` to `client` from the address that the client sent to.
///
/// # Errors
/// WouldBlock where the socket's buffer is full, or the kernel's refusal.
pub fn send(socket: &UdpSocket, payload: &[u8], client: SocketAddr, via: &Via) -> io::Result<()> {
    let control = match via {
        Via::V4(info) => ControlMessage::Ipv4PacketInfo(info),
        Via::V6(info) => ControlMessage::Ipv6PacketInfo(info),
    };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        &[control],
        MsgFlags::MSG_DONTWAIT,
        Some(&SockaddrStorage::from(client)),
    )?;
    Ok(())
}
