//! How much the holder may have open, and how it is shared out.

use std::rc::Rc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::pool::Pool;
use crate::protocol::LimitsState;

/// Where fs.nr_open, the ceiling of all limits, cannot be read.
const USUAL_CEILING: u64 = 1 << 20;
/// Files left for control connections, what is being closed, and the event loop.
const MARGIN: u64 = 512;
/// A connection holds two files: to the client and to the target.
const FILES_PER_CONNECTION: u64 = 2;
const MAX_CONNECTIONS: u64 = 65_536;
const MAX_SESSIONS: u64 = 65_536;

/// Descriptors, and the places for connections and UDP sessions made of them.
pub struct Limits {
    files: u64,
    pub connections: Rc<Pool>,
    pub sessions: Rc<Pool>,
}

impl Limits {
    /// Raises the limit of open files as far as the host allows, or takes `wanted`.
    pub fn raise(wanted: Option<u64>) -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(USUAL_CEILING);
        // Privileged: beyond the hard limit, too.
        let files = [wanted.unwrap_or(ceiling), hard]
            .into_iter()
            .find(|&files| setrlimit(Resource::RLIMIT_NOFILE, files, files).is_ok())
            .unwrap_or(1024);
        Self::new(files)
    }

    /// For so many files.
    pub fn new(files: u64) -> Self {
        let limits =
            Self { files, connections: Rc::new(Pool::new(0)), sessions: Rc::new(Pool::new(0)) };
        limits.set_reserved(0);
        limits
    }

    /// So many reserved sockets take files away from connections and sessions. Half of all are theirs
    /// in any case, so that ports can be published however many connections there are.
    pub fn set_reserved(&self, sockets: usize) {
        let left = self.files.saturating_sub(MARGIN.min(self.files / 4) + sockets as u64);
        let spare = left.min(self.files / 2);
        let places =
            |files: u64, most: u64| usize::try_from(files.min(most)).unwrap_or(usize::MAX).max(1);
        self.connections.resize(places(spare / 2 / FILES_PER_CONNECTION, MAX_CONNECTIONS));
        self.sessions.resize(places(spare / 2, MAX_SESSIONS));
    }

    /// Descriptors have run out.
    pub fn relieve(&self) {
        self.connections.relieve();
        self.sessions.relieve();
    }

    /// What `list` tells.
    pub fn state(&self) -> LimitsState {
        LimitsState {
            files: self.files,
            connections: self.connections.state(),
            sessions: self.sessions.state(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_files_are_for_reserved_sockets() {
        let limits = Limits::new(16_384);
        assert_eq!(limits.connections.state().capacity, 2048);
        assert_eq!(limits.sessions.state().capacity, 4096);
        limits.set_reserved(7000);
        assert_eq!(limits.connections.state().capacity, 2048, "they fit in their half");
        limits.set_reserved(12_000);
        assert_eq!(limits.connections.state().capacity, 968);
        limits.set_reserved(20_000);
        assert_eq!(limits.connections.state().capacity, 1);
        assert_eq!(Limits::new(1 << 20).connections.state().capacity, 65_536);
    }
}
