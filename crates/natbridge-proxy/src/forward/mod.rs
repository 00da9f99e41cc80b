//! Carrying what reaches a reserved socket to its target.

pub mod relay;
pub mod stream;
pub mod udp;

use std::cell::RefCell;
use std::io;

use nix::errno::Errno;

/// Bytes moved at a time: the largest UDP datagram, and enough for TCP.
pub const CHUNK: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// No descriptors or memory are left.
fn is_exhaustion(cause: &io::Error) -> bool {
    let errno = cause.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// Lends the one buffer of the holder's thread, for as long as no task waits: thousands of idle
/// connections need no memory of their own.
pub fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}
