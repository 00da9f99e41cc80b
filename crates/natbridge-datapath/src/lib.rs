//! Makes a Linux host's links, rules and eBPF programs what natbridge wants them to be, and reads
//! back what is there. It decides nothing: the caller says what should be.

pub mod error;
pub mod fastpath;
pub mod firewall;
pub mod host;
mod worker;

pub use error::{Error, ErrorKind, Result};
