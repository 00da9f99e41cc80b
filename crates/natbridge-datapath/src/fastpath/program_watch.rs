//! Notice of programs that others hang on the hooks the fast path uses or skips: the kernel sends
//! none, so they are looked for, often and cheaply.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ForeignProgram;
use crate::error::{Context, Result};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// Where there are thousands of devices, looking takes at most this part of the time.
const SHARE: u32 = 50;

/// A running watch; it ends when it is dropped.
#[derive(Debug)]
pub struct ProgramWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgramWatch {
    /// Calls `on_change` whenever `look` finds other programs than it did before, at first than
    /// `known`. A look that fails finds nothing out.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        mut known: Vec<ForeignProgram>,
        look: impl Fn() -> Option<Vec<ForeignProgram>> + Send + 'static,
        on_change: impl Fn() + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = channel();
        let thread = thread::Builder::new()
            .name("natbridge-programs".to_owned())
            .spawn(move || {
                let mut pause = PAUSE;
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let started = Instant::now();
                    if let Some(found) = look()
                        && found != known
                    {
                        known = found;
                        on_change();
                    }
                    pause = PAUSE.max(started.elapsed() * SHARE);
                }
            })
            .context("starting the thread that watches programs")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ProgramWatch {
    fn drop(&mut self) {
        // Without a sender the thread's wait ends.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
