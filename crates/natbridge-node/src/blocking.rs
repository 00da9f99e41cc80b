//! Where blocking work runs.

use napi::bindgen_prelude::spawn_blocking;

use crate::error::to_napi;

/// Runs blocking work off the JavaScript thread.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce() -> natbridge_datapath::Result<T> + Send + 'static,
) -> napi::Result<T> {
    spawn_blocking(work)
        .await
        .map_err(|cause| napi::Error::from_reason(format!("[io] the work was cut off: {cause}")))?
        .map_err(to_napi)
}
