//! How the datapath's errors cross to JavaScript.

/// Writes the error's kind in front of its message: `[not_found] …`.
pub fn to_napi(error: natbridge_datapath::Error) -> napi::Error {
    napi::Error::from_reason(format!("[{}] {error}", error.kind().as_str()))
}
