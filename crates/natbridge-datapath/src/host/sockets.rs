//! Other processes' sockets: ending one by sock_diag (linux/inet_diag.h), and connecting one again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use nix::sys::socket::{SockaddrStorage, connect, getsockname, socket};

use super::netlink::Netlink;
use crate::{ErrorKind, Result, error::Context};

const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const SOCKET_ID: usize = 48;

/// A protocol whose sockets can be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketProtocol {
    Tcp,
    Udp,
}

/// One connected socket of the calling thread's namespace.
#[derive(Clone, Copy, Debug)]
pub struct SocketId {
    pub protocol: SocketProtocol,
    /// A socket of IPv6; its addresses may be v4-mapped.
    pub ipv6: bool,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub bound_device: u32,
    pub cookie: u64,
    /// Of its file; 0 if no process has it any more.
    pub inode: u64,
}

/// Ends a socket: calls on it fail with ECONNABORTED, a TCP peer gets a RST, and a UDP socket is
/// connected no more. False if it ended by itself meanwhile.
///
/// # Errors
/// `unsupported` on a kernel without CONFIG_INET_DIAG_DESTROY.
pub fn end_socket(socket: &SocketId) -> Result<bool> {
    match destroy(&request(socket)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(format!("ending a socket to {}", socket.remote)),
    }
}

/// Whether this kernel ends sockets, by trying it on one that can't be there: to port 0.
pub fn can_end_sockets() -> bool {
    [SocketProtocol::Tcp, SocketProtocol::Udp].into_iter().all(|protocol| {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let nothing = SocketId {
            protocol,
            ipv6: false,
            local: nowhere,
            remote: nowhere,
            bound_device: 0,
            cookie: 0,
            inode: 0,
        };
        let tried = destroy(&request(&nothing));
        tried.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    })
}

fn destroy(request: &[u8]) -> Result<()> {
    Netlink::open(NETLINK_SOCK_DIAG)?.execute(SOCK_DESTROY, 0, request)
}

/// `struct inet_diag_req_v2`.
fn request(socket: &SocketId) -> Vec<u8> {
    let family = if socket.ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let protocol = match socket.protocol {
        SocketProtocol::Tcp => libc::IPPROTO_TCP,
        SocketProtocol::Udp => libc::IPPROTO_UDP,
    };
    let every_state: u32 = !0;
    let mut request = vec![family as u8, protocol as u8, 0, 0];
    request.extend_from_slice(&every_state.to_ne_bytes());
    request.extend_from_slice(&socket.local.port().to_be_bytes());
    request.extend_from_slice(&socket.remote.port().to_be_bytes());
    for address in [socket.local.ip(), socket.remote.ip()] {
        let octets = match address {
            std::net::IpAddr::V4(v4) if socket.ipv6 => v4.to_ipv6_mapped().octets().to_vec(),
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        request.extend_from_slice(&octets);
        request.resize(request.len() + 16 - octets.len(), 0);
    }
    request.extend_from_slice(&socket.bound_device.to_ne_bytes());
    // idiag_cookie: the lower word first.
    request.extend_from_slice(&(socket.cookie as u32).to_ne_bytes());
    request.extend_from_slice(&((socket.cookie >> 32) as u32).to_ne_bytes());
    debug_assert_eq!(request.len(), 8 + SOCKET_ID);
    request
}

/// Connects UDP sockets of other processes anew, each to an address its process could have given:
/// every hook and rule has its say as it has then. Answers the cookies of those it could be done
/// for. Not of one that no process has in its table of files (sent by SCM_RIGHTS and not received
/// yet, held by io_uring alone), or where this process may not attach to its holder (ptrace(2)).
pub fn reconnect(sockets: &[(SocketId, SocketAddr)]) -> BTreeSet<u64> {
    let inodes = sockets.iter().map(|(socket, _)| socket.inode).collect();
    let holders = if sockets.is_empty() { BTreeMap::new() } else { holders(&inodes) };
    let done = sockets.iter().filter(|(socket, to)| {
        holders.get(&socket.inode).is_some_and(|places| {
            places.iter().any(|(pid, fd)| {
                borrow(*pid, *fd, socket.cookie)
                    .and_then(|file| connect_again(&file, socket, *to))
                    .is_ok()
            })
        })
    });
    done.map(|(socket, _)| socket.cookie).collect()
}

/// Process and descriptor of files of sockets, by inode.
fn holders(inodes: &BTreeSet<u64>) -> BTreeMap<u64, Vec<(i32, i32)>> {
    let mut holders: BTreeMap<u64, Vec<(i32, i32)>> = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = number(&process.file_name()) else { continue };
        // Processes come and go meanwhile.
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let inode = fs::read_link(file.path()).ok().and_then(|target| {
                let target = target.into_os_string().into_string().ok()?;
                target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
            });
            if let (Some(inode), Some(fd)) = (inode, number(&file.file_name()))
                && inodes.contains(&inode)
            {
                holders.entry(inode).or_default().push((pid, fd));
            }
        }
    }
    holders
}

fn number(name: &std::ffi::OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

/// A descriptor of our own for a socket of another process (pidfd_getfd(2)).
fn borrow(pid: i32, fd: i32, cookie: u64) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers alone.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let process = process.as_raw_fd();
    // SAFETY: takes numbers alone.
    let file = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) })?;
    let mut found: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of `found`.
    let failed = unsafe {
        libc::getsockopt(
            file.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // The process may have closed it and opened another one there.
    if found == cookie { Ok(file) } else { Err(io::Error::from_raw_os_error(libc::EBADF)) }
}

fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).unwrap_or(-1);
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// In one step where the source address may stay. Else the socket is connected to nobody for a
/// moment, so that the kernel chooses the address (and, unless it was bound to one, the port) anew.
fn connect_again(file: &OwnedFd, from: &SocketId, to: SocketAddr) -> io::Result<()> {
    let to = SockaddrStorage::from(to);
    if source_of(from.ipv6, &to)?
        != getsockname::<SockaddrStorage>(file.as_raw_fd())?.without_port()
    {
        disconnect(file)?;
    }
    connect(file.as_raw_fd(), &to)?;
    Ok(())
}

/// The address that a new socket would send from.
fn source_of(ipv6: bool, to: &SockaddrStorage) -> io::Result<Option<std::net::IpAddr>> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let probe = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    connect(probe.as_raw_fd(), to)?;
    Ok(getsockname::<SockaddrStorage>(probe.as_raw_fd())?.without_port())
}

trait WithoutPort {
    fn without_port(&self) -> Option<std::net::IpAddr>;
}

impl WithoutPort for SockaddrStorage {
    fn without_port(&self) -> Option<std::net::IpAddr> {
        let v4 = self.as_sockaddr_in().map(|it| it.ip().into());
        v4.or_else(|| self.as_sockaddr_in6().map(|it| it.ip().into()))
    }
}

/// connect(2): AF_UNSPEC dissolves the association.
fn disconnect(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zero is a valid sockaddr.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: a live socket and an address of that length.
    let failed = unsafe { libc::connect(file.as_raw_fd(), &raw const nobody, length) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let socket = SocketId {
            protocol: SocketProtocol::Tcp,
            ipv6: true,
            local: SocketAddr::from(([10, 0, 0, 1], 0x1234)),
            remote: SocketAddr::from(([10, 0, 0, 2], 80)),
            bound_device: 7,
            cookie: 0x1_0000_0002,
            inode: 0,
        };
        let request = request(&socket);
        assert_eq!(request.len(), 56);
        assert_eq!(request[..4], [10, 6, 0, 0]);
        assert_eq!(request[8..12], [0x12, 0x34, 0, 80]);
        assert_eq!(request[22..28], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(request[38..44], [0xff, 0xff, 10, 0, 0, 2]);
        assert_eq!(request[44..48], 7u32.to_ne_bytes());
        assert_eq!(request[48..], [2u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
    }

    #[test]
    fn files_of_sockets_are_found_with_their_holders() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
        let found = holders(&BTreeSet::from([inode]));
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(found[&inode].contains(&(own, socket.as_raw_fd())));
    }
}
