//! Notice of changes of iptables-legacy's tables, which announce themselves to nobody.
//!
//! The tool holds a lock file while it works, so the tables are looked at when that is closed. Who
//! does without the tool, or has a lock file of his own, is noticed within a second: what the kernel
//! tells cheaply of a table (where its chains begin, how many entries it has) is asked for so often.
//! Its entries, which may be many, are read as often as takes a hundredth of the time.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::Result;
use crate::worker::{Wake, Worker, pause, wait};

/// The lock of xtables.h: XT_LOCK_NAME.
const LOCK_FOLDER: &str = "/run";
const LOCK: &str = "xtables.lock";
/// Between looks while nobody has used the lock. Each wakes a CPU that may have other things to do.
const TICK: Duration = Duration::from_secs(1);
/// A tool that is run again and again is followed at this distance.
const LEAST: Duration = Duration::from_millis(10);
/// Entries are read at most this share of the time.
const SHARE: u32 = 100;

/// linux/netfilter_ipv4/ip_tables.h; IPv6's have the same numbers.
const SO_GET_INFO: libc::c_int = 64;
const SO_GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, hooks, 5 beginnings, 5 ends, number of entries, size.
const INFO: usize = 84;
const INFO_SIZE_AT: usize = 80;
const NAME: usize = 32;
/// `struct ipt_get_entries` before its entries: name, size, padding.
const ENTRIES_HEADER: usize = 40;
/// `struct xt_counters`.
const COUNTERS: usize = 16;

/// One of the two families.
struct Family {
    tables: &'static str,
    address: AddressFamily,
    level: libc::c_int,
    /// Offsets in `struct ipt_entry` or `ip6t_entry`.
    next_at: usize,
    counters_at: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        tables: "/proc/thread-self/net/ip_tables_names",
        address: AddressFamily::Inet,
        level: libc::SOL_IP,
        next_at: 90,
        counters_at: 96,
    },
    Family {
        tables: "/proc/thread-self/net/ip6_tables_names",
        address: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        next_at: 142,
        counters_at: 152,
    },
];

/// A running look-out; it ends when it is dropped.
pub struct LegacyWatch(Worker);

impl LegacyWatch {
    /// Watches the calling thread's namespace; what changes after this returns is noticed.
    pub fn start(on_change: impl Fn() + Send + 'static) -> Result<Self> {
        let lock = LockWatch::open(Path::new(LOCK_FOLDER));
        let mut tables = Tables::default();
        tables.look();
        let worker = Worker::start("natbridge-legacy", move |stop| {
            let mut used = Instant::now();
            let mut rest = TICK;
            loop {
                match lock.wait(stop, rest) {
                    Wake::Stop => return,
                    Wake::Ready(_) => used = Instant::now(),
                    Wake::Nothing => {}
                }
                if tables.look() {
                    on_change();
                }
                rest = tables.unread_since(used).map_or(TICK, |due| {
                    due.saturating_duration_since(Instant::now()).clamp(LEAST, TICK)
                });
            }
        })?;
        Ok(Self(worker))
    }

    /// Whether it still notices changes.
    pub fn listens(&self) -> bool {
        self.0.runs()
    }
}

/// Notice of the lock's use.
struct LockWatch {
    /// None where nothing can be watched.
    inotify: Option<Inotify>,
    lock: PathBuf,
}

impl LockWatch {
    fn open(folder: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        if let Some(inotify) = &inotify {
            let _ = inotify.add_watch(folder, AddWatchFlags::IN_CREATE);
        }
        let watch = Self { inotify, lock: folder.join(LOCK) };
        watch.follow();
        watch
    }

    /// The file may have been made, or made anew, since. Adding a watch that is there changes none.
    fn follow(&self) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify.add_watch(&self.lock, AddWatchFlags::IN_CLOSE);
        }
    }

    /// As [`wait`]; `Ready` says that the lock was used.
    fn wait(&self, stop: &EventFd, time: Duration) -> Wake {
        let woken = wait(stop, self.inotify.iter().map(AsFd::as_fd), Some(time));
        if matches!(woken, Wake::Ready(_)) {
            if !pause(stop, LEAST) {
                return Wake::Stop;
            }
            while self.inotify.as_ref().is_some_and(|inotify| inotify.read_events().is_ok()) {}
            self.follow();
        }
        woken
    }
}

/// By family and name.
#[derive(Default)]
struct Tables(BTreeMap<(usize, String), Table>);

struct Table {
    info: Vec<u8>,
    /// Hash of the entries; none where they could not be read.
    entries: Option<u64>,
    /// When they were read, and when they may be read again.
    read: Instant,
    due: Instant,
}

impl Tables {
    /// Whether anything is other than at the last look.
    fn look(&mut self) -> bool {
        let mut changed = false;
        let mut found = BTreeMap::new();
        for (index, family) in FAMILIES.iter().enumerate() {
            let names = fs::read_to_string(family.tables).unwrap_or_default();
            if names.is_empty() {
                continue;
            }
            let Ok(socket) = family.socket() else { continue };
            for name in names.lines() {
                let key = (index, name.to_owned());
                let before = self.0.remove(&key);
                let now = family.look(&socket, name, before.as_ref());
                changed |= before
                    .is_none_or(|before| before.info != now.info || before.entries != now.entries);
                found.insert(key, now);
            }
        }
        // Tables that went.
        changed |= !self.0.is_empty();
        self.0 = found;
        changed
    }

    /// When the first table may be read whose entries have not been read since then, if any.
    fn unread_since(&self, then: Instant) -> Option<Instant> {
        self.0.values().filter(|table| table.read < then).map(|table| table.due).min()
    }
}

impl Family {
    fn socket(&self) -> nix::Result<OwnedFd> {
        socket(self.address, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
    }

    fn look(&self, socket: &OwnedFd, name: &str, before: Option<&Table>) -> Table {
        let mut info = vec![0; INFO];
        if !ask(socket, self.level, SO_GET_INFO, name, &mut info) {
            info.clear();
        }
        let started = Instant::now();
        if let Some(before) = before
            && before.info == info
            && started < before.due
        {
            return Table { info, ..*before };
        }
        let entries = self.read(socket, name, &info);
        let due = Instant::now() + started.elapsed() * SHARE;
        Table { info, entries, read: started, due }
    }

    /// A hash of the table's entries without their counters.
    fn read(&self, socket: &OwnedFd, name: &str, info: &[u8]) -> Option<u64> {
        let size = u32::from_ne_bytes(*info.get(INFO_SIZE_AT..)?.first_chunk()?);
        let mut bytes = vec![0; ENTRIES_HEADER + size as usize];
        bytes.get_mut(NAME..)?.first_chunk_mut().map(|at| *at = size.to_ne_bytes())?;
        // A table that is replaced in between has another size, or is seen next time.
        if !ask(socket, self.level, SO_GET_ENTRIES, name, &mut bytes) {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        let mut left = bytes.get(ENTRIES_HEADER..)?;
        while !left.is_empty() {
            let length = usize::from(u16::from_ne_bytes(*left.get(self.next_at..)?.first_chunk()?));
            let entry = left.get(..length)?;
            entry.get(..self.counters_at)?.hash(&mut hasher);
            entry.get(self.counters_at + COUNTERS..)?.hash(&mut hasher);
            left = left.get(length..)?;
        }
        Some(hasher.finish())
    }
}

/// Asks about a table that is there: asking for another would make it. False if it is refused.
fn ask(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    name: &str,
    buffer: &mut [u8],
) -> bool {
    let Some(place) = buffer.get_mut(..name.len().min(NAME - 1)) else { return false };
    place.copy_from_slice(&name.as_bytes()[..place.len()]);
    let Ok(mut length) = libc::socklen_t::try_from(buffer.len()) else { return false };
    // SAFETY: the kernel writes at most `length` bytes to the buffer, which are its own.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    result == 0
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir, remove_file};
    use std::process;

    use nix::sys::eventfd::EfdFlags;

    use super::*;

    #[test]
    fn every_use_of_the_lock_is_noticed() {
        let folder = std::env::temp_dir().join(format!("natbridge-lock-{}", process::id()));
        create_dir(&folder).unwrap();
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
        let long = Duration::from_secs(20);
        let lock = folder.join(LOCK);
        // Made after the watch began, used again, removed and made anew.
        let watch = LockWatch::open(&folder);
        for remove in [false, false, true, false] {
            if remove {
                remove_file(&lock).unwrap();
                while matches!(watch.wait(&stop, Duration::from_millis(100)), Wake::Ready(_)) {}
            }
            drop(File::options().create(true).append(true).open(&lock).unwrap());
            assert!(matches!(watch.wait(&stop, long), Wake::Ready(_)));
        }
        assert!(matches!(watch.wait(&stop, Duration::from_millis(50)), Wake::Nothing));
        drop(File::open(&lock).unwrap());
        assert!(matches!(watch.wait(&stop, long), Wake::Ready(_)));
        stop.write(1).unwrap();
        assert!(matches!(watch.wait(&stop, long), Wake::Stop));
        fs::remove_dir_all(&folder).unwrap();
    }
}
