//! The counts by which the programs know that they need not look for a flow.

use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::abi::{nb_presence, nb_tuple};
use super::pins::Pins;
use crate::Error;
use crate::error::{Context, Result};

/// The mapped `presence` map of one instance.
#[derive(Debug)]
pub struct Presence {
    counts: NonNull<nb_presence>,
}

// SAFETY: the pages are shared memory that lives as long as this value; they are only used
// atomically.
unsafe impl Send for Presence {}
// SAFETY: as above.
unsafe impl Sync for Presence {}

impl Presence {
    /// Maps the pinned counts.
    ///
    /// # Errors
    /// `unsupported` if nothing is loaded, or the kernel's.
    pub fn open(pins: &Pins) -> Result<Self> {
        let map = pins.open_map("presence")?;
        // SAFETY: a fresh shared mapping of a map that is BPF_F_MMAPABLE and of this size.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<nb_presence>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mapping the counts of flows");
        }
        let counts = NonNull::new(address.cast())
            .ok_or_else(|| Error::from_errno(libc::ENOMEM, "mapping the counts of flows"))?;
        Ok(Self { counts })
    }

    /// A flow of this tuple has been deleted.
    pub fn forget(&self, tuple: &nb_tuple) {
        let offset = offset_of!(nb_presence, flows) + slot(tuple) * size_of::<u32>();
        // SAFETY: an aligned u32 within the mapped struct, which others change atomically too.
        let count = unsafe { AtomicU32::from_ptr(self.counts.as_ptr().byte_add(offset).cast()) };
        count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// As `presence_slot()` of `bpf/lib/presence.h`.
fn slot(tuple: &nb_tuple) -> usize {
    let addresses = (tuple.source.words[3] ^ tuple.destination.words[3]).wrapping_mul(0x9e37_79b9);
    let sum = (addresses >> 16)
        + u32::from(u16::from_be(tuple.source_port))
        + u32::from(u16::from_be(tuple.destination_port));
    sum as usize % nb_presence::default().flows.len()
}

impl Drop for Presence {
    fn drop(&mut self) {
        // SAFETY: mapped by open() with this length, and not used after.
        unsafe { libc::munmap(self.counts.as_ptr().cast(), size_of::<nb_presence>()) };
    }
}
