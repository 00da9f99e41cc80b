//! Kernel settings under `/proc/sys`. Those of the network are the calling thread's namespace's.

use std::fs;
use std::io;

use crate::{Error, ErrorKind, Result, error::Context};

/// The value of `/proc/sys/<key>` without surrounding white space, e.g. `net/ipv4/ip_forward`;
/// `None` where the kernel has no such key.
///
/// # Errors
/// `invalid` for a key that is no path below `/proc/sys`.
pub fn read_sysctl(key: &str) -> Result<Option<String>> {
    match fs::read_to_string(path(key)?) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause).context(format_args!("reading the sysctl {key}")),
    }
}

/// Writes `value` to `/proc/sys/<key>`.
///
/// # Errors
/// `not_found` where the kernel has no such key, `invalid` if it refuses the value.
pub fn write_sysctl(key: &str, value: &str) -> Result<()> {
    // Without creating: a key that is not there must not become EACCES of procfs.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path(key)?)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.context(format_args!("setting the sysctl {key} to {value:?}"))
}

/// Writes a setting where the kernel has it.
pub(crate) fn write_if_present(key: &str, value: &str) -> Result<()> {
    match write_sysctl(key, value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn path(key: &str) -> Result<String> {
    let sound = !key.is_empty()
        && key.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !key.contains('\0');
    if !sound {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("sysctl key {key:?} must be a path below /proc/sys, like net/ipv4/ip_forward"),
        ));
    }
    Ok(format!("/proc/sys/{key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_proc_sys() {
        for bad in ["", "/etc/passwd", "../../etc/passwd", "net/../../x", "net//ipv4", "a\0"] {
            assert_eq!(read_sysctl(bad).map_err(|error| error.kind()), Err(ErrorKind::Invalid));
            assert_eq!(
                write_sysctl(bad, "1").map_err(|error| error.kind()),
                Err(ErrorKind::Invalid)
            );
        }
        assert_eq!(read_sysctl("net/no/such/key").unwrap(), None);
        let missing = write_sysctl("net/no/such/key", "1").map_err(|error| error.kind());
        assert_eq!(missing, Err(ErrorKind::NotFound));
        assert!(read_sysctl("kernel/ostype").unwrap().is_some_and(|value| value == "Linux"));
    }
}
