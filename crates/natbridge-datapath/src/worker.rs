//! A thread that ends when its handle is dropped.

use std::os::fd::AsFd;
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

/// Lets a worker wait this long, in whole milliseconds; false when it is to end.
pub fn pause(stop: &EventFd, time: Duration) -> bool {
    let mut watched = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut watched, timeout), Ok(0) | Err(Errno::EINTR | Errno::EAGAIN))
}
