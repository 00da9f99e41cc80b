//! Notice of programs that others hang on the hooks the fast path uses or skips: the kernel sends
//! none, so they are looked for, often and cheaply.

use std::time::{Duration, Instant};

use super::ForeignProgram;
use crate::Result;
use crate::worker::{Worker, pause};

/// Between two looks. Each wakes a CPU that may have other things to do: ten a second cost two busy
/// cores 3 % of their packets.
const PAUSE: Duration = Duration::from_millis(250);
/// Where there are thousands of devices, looking takes at most this part of the time.
const SHARE: u32 = 50;

/// A running watch; it ends when it is dropped.
#[derive(Debug)]
pub struct ProgramWatch {
    _worker: Worker,
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
        let worker = Worker::start("natbridge-programs", move |stop| {
            let mut rest = PAUSE;
            while pause(stop, rest) {
                let started = Instant::now();
                if let Some(found) = look()
                    && found != known
                {
                    known = found;
                    on_change();
                }
                rest = PAUSE.max(started.elapsed() * SHARE);
            }
        })?;
        Ok(Self { _worker: worker })
    }
}
