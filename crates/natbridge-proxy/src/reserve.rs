//! Opening the socket that reserves a host port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::protocol::Transport;

const BACKLOG: i32 = 1024;

/// A bound (and, for TCP and SCTP, listening) socket, not registered with the event loop yet.
///
/// The address need not be there yet (IP_FREEBIND, ip(7)). SO_REUSEADDR on TCP and SCTP lets
/// connections in TIME_WAIT be, and nothing else: a second listener is still refused (socket(7)).
/// IPv6 sockets take no IPv4 clients, so that `0.0.0.0` and `::` are bindings of their own.
///
/// # Errors
/// EADDRINUSE if somebody else has the port, EPROTONOSUPPORT where the kernel has no SCTP.
pub fn reserve(protocol: Transport, host: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(protocol, host)?;
    if host.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    if protocol == Transport::Udp {
        // Tells which local address a datagram was sent to, so that the answer comes from there.
        if host.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        socket.bind(&host.into())?;
    } else {
        socket.set_reuse_address(true)?;
        socket.bind(&host.into())?;
        // Two sockets with SO_REUSEADDR may bind while neither listens; this call then fails.
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// A nonblocking, unbound socket of the protocol and of the address's family.
///
/// # Errors
/// Those of socket(2).
pub fn open(protocol: Transport, address: SocketAddr) -> io::Result<Socket> {
    let (kind, protocol) = match protocol {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        // One-to-one style (RFC 6458 section 4): listen, accept and connect as with TCP.
        Transport::Sctp => (Type::STREAM, Protocol::from(libc::IPPROTO_SCTP)),
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn errno(result: io::Result<OwnedFd>) -> Option<i32> {
        result.expect_err("a conflict").raw_os_error()
    }

    #[test]
    fn a_listener_of_somebody_else_is_a_conflict() {
        let other = TcpListener::bind(loopback(0)).expect("a free port");
        let taken = other.local_addr().expect("its address");
        assert_eq!(errno(reserve(Transport::Tcp, taken)), Some(libc::EADDRINUSE));
        let wildcard = SocketAddr::from(([0, 0, 0, 0], taken.port()));
        assert_eq!(errno(reserve(Transport::Tcp, wildcard)), Some(libc::EADDRINUSE));
    }

    #[test]
    fn the_reserved_port_is_refused_to_others() {
        let free = TcpListener::bind(loopback(0)).and_then(|it| it.local_addr()).expect("a port");
        let _held = reserve(Transport::Tcp, free).expect("reserved");
        assert!(TcpListener::bind(free).is_err(), "std sets SO_REUSEADDR too");
        assert_eq!(errno(reserve(Transport::Tcp, free)), Some(libc::EADDRINUSE));
    }

    #[test]
    fn a_bound_udp_socket_is_a_conflict() {
        let other = UdpSocket::bind(loopback(0)).expect("a free port");
        let taken = other.local_addr().expect("its address");
        assert_eq!(errno(reserve(Transport::Udp, taken)), Some(libc::EADDRINUSE));
    }

    #[test]
    fn time_wait_is_no_conflict() {
        let listener = TcpListener::bind(loopback(0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        drop(server); // closes first: TIME_WAIT stays on the port
        drop(client);
        drop(listener);
        reserve(Transport::Tcp, address).expect("reserved in spite of TIME_WAIT");
    }

    #[test]
    fn both_wildcards_and_absent_addresses_can_be_reserved() {
        let free = TcpListener::bind("[::]:0").and_then(|it| it.local_addr()).expect("a port");
        let port = free.port();
        for transport in [Transport::Tcp, Transport::Udp] {
            let _v4 = reserve(transport, SocketAddr::from(([0, 0, 0, 0], port))).expect("v4");
            let _v6 = reserve(transport, SocketAddr::from(([0u16; 8], port))).expect("v6");
        }
        let absent = SocketAddr::from(([203, 0, 113, 7], port));
        reserve(Transport::Tcp, absent).expect("an address that is not there yet");
        let absent = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], port));
        reserve(Transport::Udp, absent).expect("an IPv6 address that is not there yet");
    }
}
