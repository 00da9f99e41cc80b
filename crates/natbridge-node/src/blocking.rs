//! Where blocking work runs.

use napi::bindgen_prelude::spawn_blocking;

use crate::error::to_napi;
use crate::fastpath::bump_generation_if_loaded;

/// Runs blocking work off the JavaScript thread.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> natbridge_datapath::Result<T> + Send + 'static,
) -> napi::Result<T> {
    spawn_blocking(work)
        .await
        .map_err(|cause| napi::Error::from_reason(format!("[io] the work was cut off: {cause}")))?
        .map_err(to_napi)
}

/// As `run`, for what changes where packets go: no flow that was learned before the change's end is
/// used after it. The kernel's own notification comes a moment later, and not of all changes.
/// `changed` says of what the work answered whether there was anything to do.
pub async fn change<T: Send + 'static>(
    work: impl FnOnce() -> natbridge_datapath::Result<T> + Send + 'static,
    changed: impl FnOnce(&T) -> bool,
) -> napi::Result<T> {
    let result = run(work).await;
    // Half of it may have been done before an error.
    if result.as_ref().map_or(true, changed) {
        bump_generation_if_loaded();
    }
    result
}
