//! The switches of the programs, mapped into this process: changed by plain atomic stores.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::abi::nb_config;
use super::pins::Pins;
use crate::error::{Context, Result};

/// The mapped `switches` map of one instance.
#[derive(Debug)]
pub struct Switches {
    page: NonNull<nb_config>,
    length: NonZeroUsize,
}

// SAFETY: the page is shared memory that lives as long as this value; it is only used atomically.
unsafe impl Send for Switches {}
// SAFETY: as above.
unsafe impl Sync for Switches {}

impl Switches {
    /// Maps the pinned switches.
    ///
    /// # Errors
    /// `unsupported` if nothing is loaded, or the kernel's.
    pub fn open(pins: &Pins) -> Result<Self> {
        let map = pins.open_map("switches")?;
        let length = NonZeroUsize::MIN.saturating_add(4095);
        // SAFETY: a fresh shared mapping of a map that is BPF_F_MMAPABLE; no memory is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length.get(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mapping the switches");
        }
        let page = NonNull::new(address.cast())
            .ok_or_else(|| crate::Error::from_errno(libc::ENOMEM, "mapping the switches"))?;
        Ok(Self { page, length })
    }

    /// Everything as it is now.
    pub fn read(&self) -> nb_config {
        // SAFETY: the page is mapped and large enough; only the words below change, atomically.
        unsafe { self.page.as_ptr().read_volatile() }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: offset_of! of an aligned u32 within the mapped struct.
        unsafe { AtomicU32::from_ptr(self.page.as_ptr().byte_add(offset).cast()) }
    }

    /// Ends every lease at once.
    pub fn bump_generation(&self) {
        self.word(std::mem::offset_of!(nb_config, generation)).fetch_add(1, Ordering::SeqCst);
    }

    /// Whether flows are learned and used.
    pub fn enabled(&self) -> bool {
        self.word(std::mem::offset_of!(nb_config, enabled)).load(Ordering::SeqCst) != 0
    }

    /// Turns learning and use of flows on or off; flows learned before are forgotten.
    pub fn set_enabled(&self, enabled: bool) {
        self.word(std::mem::offset_of!(nb_config, enabled))
            .store(u32::from(enabled), Ordering::SeqCst);
        self.bump_generation();
    }

    /// Turns the connect hooks on or off.
    pub fn set_connect_enabled(&self, enabled: bool) {
        self.word(std::mem::offset_of!(nb_config, connect_enabled))
            .store(u32::from(enabled), Ordering::SeqCst);
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        // SAFETY: mapped by open() with this length, and not used after.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.length.get()) };
    }
}
