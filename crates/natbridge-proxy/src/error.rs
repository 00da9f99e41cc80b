//! A refusal that goes back over the control socket.

use std::io;

use nix::errno::Errno;
use serde::Serialize;

/// What a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Somebody else has the address and port, or no candidate is free.
    AddressInUse,
    /// No such address here (only where the kernel refuses to bind it early).
    AddressNotAvailable,
    /// The kernel has no sockets of this protocol or family.
    Unsupported,
    /// The kernel refuses for lack of privilege.
    Denied,
    /// The request makes no sense.
    Invalid,
    /// Any other failure of the system.
    Other,
}

/// A refused request: nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// A sentence without a full stop.
    pub message: String,
    /// The binding that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Name of the errno, such as `EADDRINUSE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
}

impl Refusal {
    /// The caller's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, message: message.into(), key: None, errno: None }
    }

    /// A system call's failure, with what was being done.
    pub fn system(doing: &str, cause: &io::Error) -> Self {
        let errno = cause.raw_os_error().map(Errno::from_raw);
        let kind = match errno {
            Some(Errno::EADDRINUSE) => RefusalKind::AddressInUse,
            Some(Errno::EADDRNOTAVAIL) => RefusalKind::AddressNotAvailable,
            Some(
                Errno::EAFNOSUPPORT
                | Errno::EPROTONOSUPPORT
                | Errno::ESOCKTNOSUPPORT
                | Errno::EOPNOTSUPP,
            ) => RefusalKind::Unsupported,
            Some(Errno::EPERM | Errno::EACCES) => RefusalKind::Denied,
            _ => RefusalKind::Other,
        };
        let errno = errno.map(|errno| format!("{errno:?}"));
        Self { kind, message: format!("{doing}: {cause}"), key: None, errno }
    }

    /// Names the binding that failed.
    pub fn of(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
}
