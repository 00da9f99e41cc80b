//! The switches of the programs, mapped into this process: changed by plain atomic stores.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::libc;
use nix::time::{ClockId, clock_gettime};

use super::abi::nb_config;
use super::pins::Pins;
use crate::error::{Context, Result};

/// The mapped `switches` map of one instance.
#[derive(Debug)]
pub struct Switches {
    page: NonNull<nb_config>,
    length: NonZeroUsize,
    /// The verdict is this process's own: nobody stands for another's.
    is_ours: AtomicBool,
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
        Ok(Self { page, length, is_ours: AtomicBool::new(false) })
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

    fn verdict_until(&self) -> &AtomicU64 {
        // SAFETY: offset_of! of an aligned u64 within the mapped struct.
        unsafe {
            let offset = std::mem::offset_of!(nb_config, verdict_until);
            AtomicU64::from_ptr(self.page.as_ptr().byte_add(offset).cast())
        }
    }

    fn rules_seen_word(&self) -> &AtomicU32 {
        self.word(std::mem::offset_of!(nb_config, rules_seen))
    }

    fn rules_judged_word(&self) -> &AtomicU32 {
        self.word(std::mem::offset_of!(nb_config, rules_judged))
    }

    /// How often the host's rules may have changed. To be read before they are read.
    pub fn rules_seen(&self) -> u32 {
        self.rules_seen_word().load(Ordering::SeqCst)
    }

    /// The host's rules may have changed: no flow is learned or used, and no hook serves, until
    /// they have been judged anew.
    pub fn rules_changed(&self) {
        self.rules_seen_word().fetch_add(1, Ordering::SeqCst);
        self.bump_generation();
    }

    /// The rules as they were at that count are judged, and the devices told: the verdict stands
    /// for `lease`. Answers false if they have changed meanwhile.
    ///
    /// # Errors
    /// The clock's.
    pub fn accept_verdict(&self, seen: u32, lease: Duration) -> Result<bool> {
        self.end_leases_of_a_lapsed_verdict()?;
        self.rules_judged_word().store(seen, Ordering::SeqCst);
        self.is_ours.store(true, Ordering::SeqCst);
        self.stand_for(lease)?;
        Ok(self.rules_seen() == seen)
    }

    /// Stands for the verdict for another `lease`. Answers false if there is none to stand for.
    ///
    /// # Errors
    /// The clock's.
    pub fn renew_verdict(&self, lease: Duration) -> Result<bool> {
        let judged = self.rules_judged_word().load(Ordering::SeqCst);
        if !self.is_ours.load(Ordering::SeqCst) || self.rules_seen() != judged {
            return Ok(false);
        }
        self.end_leases_of_a_lapsed_verdict()?;
        self.stand_for(lease)?;
        Ok(true)
    }

    /// Whether flows may be learned and used for all that is known of the host's rules.
    ///
    /// # Errors
    /// The clock's.
    pub fn verdict_stands(&self) -> Result<bool> {
        let judged = self.rules_judged_word().load(Ordering::SeqCst);
        Ok(self.rules_seen() == judged && !self.has_lapsed()?)
    }

    fn has_lapsed(&self) -> Result<bool> {
        Ok(monotonic()? >= self.verdict_until().load(Ordering::SeqCst))
    }

    /// While nobody stood for the rules nobody heard of their changes either.
    fn end_leases_of_a_lapsed_verdict(&self) -> Result<()> {
        if self.has_lapsed()? {
            self.bump_generation();
        }
        Ok(())
    }

    fn stand_for(&self, lease: Duration) -> Result<()> {
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.verdict_until().store(monotonic()?.saturating_add(lease), Ordering::SeqCst);
        Ok(())
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

/// CLOCK_MONOTONIC in nanoseconds: the programs' clock.
fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

impl Drop for Switches {
    fn drop(&mut self) {
        // SAFETY: mapped by open() with this length, and not used after.
        unsafe { libc::munmap(self.page.as_ptr().cast(), self.length.get()) };
    }
}
