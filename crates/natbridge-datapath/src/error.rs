//! The one error type of the crate: a kind that callers act on, and a sentence that people read.

use std::fmt;
use std::io;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something of that name or address is there already.
    Exists,
    /// The named thing is not there.
    NotFound,
    /// The kernel refused for lack of privilege.
    Denied,
    /// This kernel or host lacks a feature.
    Unsupported,
    /// Somebody else uses it.
    Busy,
    /// The caller's input makes no sense.
    Invalid,
    /// Any other failure of the system.
    Io,
}

impl ErrorKind {
    /// The stable word that crosses to TypeScript.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::Busy => "busy",
            Self::Invalid => "invalid",
            Self::Io => "io",
        }
    }

    /// The kind that fits an errno (positive).
    pub fn from_errno(errno: i32) -> Self {
        use nix::libc;
        match errno {
            libc::EEXIST | libc::EADDRINUSE => Self::Exists,
            libc::ENOENT
            | libc::ENOTDIR
            | libc::ENODEV
            | libc::ESRCH
            | libc::ENXIO
            | libc::EADDRNOTAVAIL => Self::NotFound,
            libc::EPERM | libc::EACCES => Self::Denied,
            libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ENOSYS => {
                Self::Unsupported
            }
            libc::EBUSY => Self::Busy,
            libc::EINVAL | libc::ERANGE | libc::ENAMETOOLONG | libc::ELOOP => Self::Invalid,
            _ => Self::Io,
        }
    }
}

/// An error with the chain of what was being done when it came up, outermost first.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind; `message` is a sentence without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The error for an errno (positive), with what was being done.
    pub fn from_errno(errno: i32, doing: impl fmt::Display) -> Self {
        let cause = io::Error::from_raw_os_error(errno);
        Self::new(ErrorKind::from_errno(errno), format!("{doing}: {cause}"))
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        let kind = match (cause.raw_os_error(), cause.kind()) {
            (Some(errno), _) => ErrorKind::from_errno(errno),
            // A path with a NUL byte never reaches the kernel.
            (None, io::ErrorKind::InvalidInput) => ErrorKind::Invalid,
            (None, _) => ErrorKind::Io,
        };
        Self::new(kind, cause.to_string())
    }
}

impl From<nix::Error> for Error {
    fn from(cause: nix::Error) -> Self {
        Self::new(ErrorKind::from_errno(cause as i32), cause.to_string())
    }
}

impl From<libbpf_rs::Error> for Error {
    fn from(cause: libbpf_rs::Error) -> Self {
        let kind = match cause.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => ErrorKind::Denied,
            libbpf_rs::ErrorKind::NotFound => ErrorKind::NotFound,
            libbpf_rs::ErrorKind::AlreadyExists => ErrorKind::Exists,
            _ => ErrorKind::Io,
        };
        // The alternate form carries libbpf-rs's whole chain.
        Self::new(kind, format!("{cause:#}"))
    }
}

/// Adds what was being done to an error on its way up.
pub trait Context<T> {
    /// Prefixes the message with `doing`.
    ///
    /// # Errors
    /// The same error, with more context.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| {
            let cause = cause.into();
            Error::new(cause.kind, format!("{doing}: {}", cause.message))
        })
    }
}
