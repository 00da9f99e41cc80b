//! Bounds that keep clients from exhausting the holder.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Wanted limit of open files; fs.nr_open, its ceiling, is this by default.
const WANTED_FILES: u64 = 1 << 20;
/// Files left for reserved sockets and control connections, where the limit is low.
const OTHER_FILES: u64 = 4096;
/// A connection holds two files: to the client and to the target.
const FILES_PER_CONNECTION: u64 = 2;
const MAX_CONNECTIONS: u64 = 32_768;
const MAX_SESSIONS: u64 = 32_768;

/// A taken place; given back on drop.
pub type Place = OwnedSemaphorePermit;

/// How many connections and sessions may be open in the whole holder.
#[derive(Debug)]
pub struct Limits {
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
}

impl Limits {
    /// Raises the limit of open files as far as allowed, and shares it out.
    pub fn raise() -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        // Privileged: also the hard limit, up to fs.nr_open.
        let files = [WANTED_FILES.max(hard), hard]
            .into_iter()
            .find(|&files| setrlimit(Resource::RLIMIT_NOFILE, files, files).is_ok())
            .unwrap_or(1024);
        let spare = files.saturating_sub(OTHER_FILES).max(files / 2);
        Self::new(
            (spare / 2 / FILES_PER_CONNECTION).min(MAX_CONNECTIONS),
            (spare / 2).min(MAX_SESSIONS),
        )
    }

    /// These bounds.
    pub fn new(connections: u64, sessions: u64) -> Self {
        let semaphore =
            |places| Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(usize::MAX >> 3)));
        Self { connections: semaphore(connections), sessions: semaphore(sessions) }
    }

    /// A place for one more connection, as soon as there is one.
    pub async fn connection(&self) -> Option<Place> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// A place for one more UDP session; `None` if the holder is full.
    pub fn session(&self) -> Option<Place> {
        Arc::clone(&self.sessions).try_acquire_owned().ok()
    }
}
