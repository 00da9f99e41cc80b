//! Sandboxes: network namespaces, what is in them, and finding them by process.

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use super::address;
use super::link;
use super::namespace::{self, Namespace};
use super::route;
use super::rtnetlink::Rtnetlink;
use crate::{Error, ErrorKind, Result, error::Context};

/// A sandbox as it is now.
#[derive(Clone, Debug)]
pub struct SandboxInfo {
    /// Its identity, `dev:inode:cookie`.
    pub key: String,
    /// The path belongs to a process, and does not outlive it.
    pub of_process: bool,
    /// It is the calling thread's own namespace.
    pub is_host: bool,
    pub interfaces: Vec<SandboxInterface>,
    /// natbridge's own default routes.
    pub default_routes: Vec<SandboxRoute>,
}

/// A default route in a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxRoute {
    pub gateway: String,
    /// In the sandbox.
    pub ifindex: u32,
}

/// An interface in a sandbox. Counters are the interface's own.
#[derive(Clone, Debug)]
pub struct SandboxInterface {
    pub name: String,
    pub ifindex: u32,
    /// ifindex of the other end of a veth pair, in its own namespace; 0 for none.
    pub peer: u32,
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    pub up: bool,
    /// `address/prefix`.
    pub addresses: Vec<String>,
    pub receive_bytes: u64,
    pub receive_packets: u64,
    pub transmit_bytes: u64,
    pub transmit_packets: u64,
}

/// The network namespace of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPid {
    /// `/proc/<pid>/ns/net`: good as long as the process lives.
    pub path: String,
    /// The namespace's identity, `dev:inode:cookie`.
    pub key: String,
}

/// What is in a sandbox.
///
/// # Errors
/// `not_found` if the path is gone, `invalid` if it is no network namespace.
pub fn inspect_sandbox(path: &str) -> Result<SandboxInfo> {
    let namespace = Namespace::open(path)?;
    let mut netlink = Rtnetlink::open_in(&namespace)?;
    let mut addresses: HashMap<u32, Vec<String>> = HashMap::new();
    for entry in address::list(&mut netlink)? {
        addresses.entry(entry.ifindex).or_default().push(entry.address.to_string());
    }
    let interfaces = link::dump(&mut netlink)?
        .into_iter()
        .map(|(link, counters)| SandboxInterface {
            addresses: addresses.remove(&link.ifindex).unwrap_or_default(),
            name: link.name,
            ifindex: link.ifindex,
            peer: link.peer,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            receive_bytes: counters.receive_bytes,
            receive_packets: counters.receive_packets,
            transmit_bytes: counters.transmit_bytes,
            transmit_packets: counters.transmit_packets,
        })
        .collect();
    Ok(SandboxInfo {
        key: namespace.key(&netlink)?,
        of_process: namespace::is_of_process(path),
        is_host: namespace.is_own()?,
        interfaces,
        default_routes: route::own_defaults(&mut netlink)?,
    })
}

/// Where each path leads now, `dev:inode`; empty: to no network namespace. Quick, to be asked often.
pub fn glance_at_sandboxes(paths: &[String]) -> Vec<String> {
    paths
        .iter()
        .map(|path| Namespace::open(path).map_or_else(|_| String::new(), |n| n.place()))
        .collect()
}

/// The network namespace of a process that is alive now. The process is held by a pidfd meanwhile,
/// so that a number that was given to another process is not mistaken for it.
///
/// # Errors
/// `not_found` if there is no such process, `invalid` if the number is none.
pub fn resolve_pid(pid: u32) -> Result<ResolvedPid> {
    let number = libc::pid_t::try_from(pid).ok().filter(|number| *number > 0).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("pid {pid} must be a positive process number"))
    })?;
    let process = open_process(number)?;
    let path = format!("/proc/{number}/ns/net");
    let namespace = Namespace::open(&path).context(format_args!("process {pid}"))?;
    let key = namespace.key(&Rtnetlink::open_in(&namespace)?)?;
    let mut exits = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    if poll(&mut exits, PollTimeout::ZERO).context("asking for the process")? != 0 {
        return Err(gone(number));
    }
    Ok(ResolvedPid { path, key })
}

fn open_process(pid: libc::pid_t) -> Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(opened) {
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => match nix::errno::Errno::last_raw() {
            libc::ESRCH | libc::EINVAL => Err(gone(pid)),
            errno => Err(Error::from_errno(errno, format!("opening process {pid}"))),
        },
    }
}

fn gone(pid: libc::pid_t) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no process {pid}"))
}
