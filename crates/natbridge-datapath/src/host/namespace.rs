//! Network namespaces: opening them safely and doing things inside them.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::rtnetlink::Rtnetlink;
use crate::{Error, ErrorKind, Result, error::Context};

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// As many symbolic links as the kernel follows (MAXSYMLINKS).
const LINKS_MAX: usize = 40;

// `_IO(0xb7, 3)`, ioctl_nsfs(2).
nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 3));

/// An open network namespace; it lives at least as long as this.
pub struct Namespace {
    file: File,
    device: u64,
    inode: u64,
}

impl Namespace {
    /// Opens a path such as `/run/netns/web` or `/proc/123/ns/net`.
    ///
    /// # Errors
    /// `not_found` if there is nothing, `invalid` if it is no network namespace.
    pub fn open(path: &str) -> Result<Self> {
        // A path that is no namespace may be a FIFO or a device: opening must neither wait nor act.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|cause| open_error(path, &cause))?;
        // SAFETY: NS_GET_NSTYPE takes no argument and the descriptor is open.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{path} is not a network namespace; make one with `ip netns add NAME`"),
            ));
        }
        let metadata = file.metadata().context(path)?;
        Ok(Self { file, device: metadata.dev(), inode: metadata.ino() })
    }

    /// The namespace of the calling thread.
    pub fn own() -> Result<Self> {
        Self::open(OWN)
    }

    /// What it is, whatever path it was opened by: `dev:inode:cookie`. The kernel gives an inode number
    /// that became free to the next namespace; the cookie (Linux 5.14) it never gives again until the
    /// next boot. Older kernels: `dev:inode`.
    ///
    /// `netlink` is a socket of this namespace.
    pub fn key(&self, netlink: &Rtnetlink) -> Result<String> {
        let place = self.place();
        Ok(match netlink.namespace_cookie()? {
            Some(cookie) => format!("{place}:{cookie}"),
            None => place,
        })
    }

    /// `dev:inode`: cheap, and enough to see that something changed.
    pub fn place(&self) -> String {
        format!("{}:{}", self.device, self.inode)
    }

    /// It is the namespace of the calling thread.
    pub fn is_own(&self) -> Result<bool> {
        let own = Self::own()?;
        Ok(own.device == self.device && own.inode == self.inode)
    }

    /// Runs `work` inside, on a thread of its own that ends with it, so that no thread of a pool
    /// is ever left in the wrong namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name("natbridge-sandbox".to_owned())
                .spawn_scoped(scope, || {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                        .context("entering the network namespace")?;
                    work()
                })
                .context("starting a thread for the network namespace")?;
            inside.join().unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Io, "the thread in the network namespace panicked"))
            })
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The path belongs to a process: it says nothing once that process is gone, and its number is given
/// again. Symbolic links are followed, but not the link of procfs itself.
pub fn is_of_process(path: &str) -> bool {
    let mut path = Path::new(path).to_path_buf();
    for _ in 0..LINKS_MAX {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let Ok(folder) = folder.canonicalize() else { return false };
        if folder.starts_with("/proc") {
            return true;
        }
        let Ok(target) = folder.join(name).read_link() else { return false };
        path = folder.join(target);
    }
    false
}

fn open_error(path: &str, cause: &std::io::Error) -> Error {
    match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => {
            Error::new(ErrorKind::NotFound, format!("{path} does not exist"))
        }
        // A socket can't be opened at all.
        Some(libc::ENXIO) | None => {
            Error::new(ErrorKind::Invalid, format!("{path} is not a network namespace: {cause}"))
        }
        Some(errno) => Error::from_errno(errno, format!("opening {}", Path::new(path).display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen_behind_links() {
        let folder = std::env::temp_dir().join(format!("nb-links-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let name = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        std::os::unix::fs::symlink("/proc/self/ns/net", name("a")).unwrap();
        std::os::unix::fs::symlink("a", name("b")).unwrap();
        std::os::unix::fs::symlink("loop", name("loop")).unwrap();
        let found = ["a", "b", "loop", "none"].map(|link| is_of_process(&name(link)));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [true, true, false, false]);
        assert!(is_of_process("/proc/1/ns/net") && !is_of_process("/etc/passwd"));
    }

    #[test]
    fn knows_namespaces_from_other_files() {
        let kind = |path: &str| Namespace::open(path).err().map(|error| error.kind());
        assert_eq!(kind("/proc/self/ns/net"), None);
        assert_eq!(kind("/proc/self/ns/mnt"), Some(ErrorKind::Invalid));
        assert_eq!(kind("/etc/passwd"), Some(ErrorKind::Invalid));
        assert_eq!(kind("/dev/null"), Some(ErrorKind::Invalid));
        assert_eq!(kind("/tmp"), Some(ErrorKind::Invalid));
        assert_eq!(kind("/no/such/path"), Some(ErrorKind::NotFound));
        assert_eq!(kind("/etc/passwd/x"), Some(ErrorKind::NotFound));
        assert_eq!(kind("bad\0path"), Some(ErrorKind::Invalid));
    }
}
