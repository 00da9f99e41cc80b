//! A thread that ends when its handle is dropped.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Result, error::Context};

/// The handle. Dropping it tells the thread to end, and waits for that.
#[derive(Debug)]
pub struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of this name; `run` ends once the descriptor it is given is readable.
    ///
    /// # Errors
    /// If no descriptor or no thread can be had.
    pub fn start(name: &str, run: impl FnOnce(&EventFd) + Send + 'static) -> Result<Self> {
        let stop = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("making an eventfd")?,
        );
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&stopped))
            .context(format_args!("starting the thread {name}"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Whether the thread has not ended by itself.
    pub fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            // A thread that drops its own handle must not wait for itself.
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

const NICENESS: i32 = -15;

/// Lets the calling thread, and the programs it starts, run ahead of the daemon's other threads:
/// for one that sleeps nearly always. Without the privilege it runs as they do.
pub fn run_ahead() {
    // SAFETY: no memory is passed. 0 is the calling thread (setpriority(2), "C library/kernel
    // differences").
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
}

/// Why a worker's wait is over.
pub enum Wake {
    /// It is to end.
    Stop,
    Nothing,
    /// There is something to be read from the source of this number.
    Ready(usize),
}

/// Lets a worker wait for its sources, for ever if no time is given.
pub fn wait<'a>(
    stop: &EventFd,
    sources: impl IntoIterator<Item = BorrowedFd<'a>>,
    time: Option<Duration>,
) -> Wake {
    let mut watched = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    watched.extend(sources.into_iter().map(|source| PollFd::new(source, PollFlags::POLLIN)));
    // Rounded up, so that waiting for the last part of a millisecond does not spin.
    let limit = time.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut watched, limit) {
        Ok(0) | Err(Errno::EINTR | Errno::EAGAIN) => Wake::Nothing,
        Err(_) => Wake::Stop,
        Ok(_) => {
            let ready = |entry: &PollFd<'_>| entry.any().unwrap_or(true);
            if watched.first().is_some_and(ready) {
                return Wake::Stop;
            }
            watched.iter().skip(1).position(ready).map_or(Wake::Nothing, Wake::Ready)
        }
    }
}

/// Lets a worker wait this long; false when it is to end.
pub fn pause(stop: &EventFd, time: Duration) -> bool {
    matches!(wait(stop, [], Some(time)), Wake::Nothing)
}
