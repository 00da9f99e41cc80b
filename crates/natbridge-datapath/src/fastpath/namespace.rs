//! Which network namespace this process serves.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Context, Result};

/// A namespace's names in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNamespace {
    /// SO_NETNS_COOKIE, unique since boot.
    pub cookie: u64,
    /// Inode of `/proc/self/ns/net`.
    pub inode: u64,
}

/// The namespace of the calling thread.
///
/// # Errors
/// `unsupported` before Linux 5.14, which brought the cookie.
pub fn host_namespace() -> Result<HostNamespace> {
    let inode = fs::metadata("/proc/thread-self/ns/net").context("looking at the namespace")?.ino();
    Ok(HostNamespace { cookie: cookie()?, inode })
}

fn cookie() -> Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a socket")?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of the sizes given.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(std::io::Error::last_os_error()).context("asking for the namespace's cookie");
    }
    Ok(cookie)
}
