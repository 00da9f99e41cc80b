//! One instance's folder under bpffs: its maps and links, and how to get at them without the
//! programs' object (another process may have loaded them).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, MapHandle};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::{Context, Error, ErrorKind, Result};

const BPFFS: &str = "/sys/fs/bpf";

/// A folder of pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below `root`; nothing is touched.
    ///
    /// # Errors
    /// `invalid` if `root` is no absolute path.
    pub fn new(root: &str) -> Result<Self> {
        let root = PathBuf::from(root);
        if !root.is_absolute() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pinDirectory {}: give an absolute path under {BPFFS}", root.display()),
            ));
        }
        Ok(Self { root })
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where a link is pinned.
    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// `unsupported` if it is not there: nothing is loaded.
    pub fn open_map(&self, name: &str) -> Result<MapHandle> {
        let path = self.map(name);
        if !path.exists() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the fast path is not loaded: no map {}", path.display()),
            ));
        }
        MapHandle::from_pinned_path(&path).context(format!("opening {}", path.display()))
    }

    /// Opens a pinned link, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_link(&self, name: &str) -> Result<Option<Link>> {
        let path = self.link(name);
        if !path.exists() {
            return Ok(None);
        }
        Link::open(&path).context(format!("opening {}", path.display())).map(Some)
    }

    /// Removes a link's pin and so, unless somebody else holds it, the link.
    ///
    /// # Errors
    /// The kernel's; a pin that is not there is none.
    pub fn remove_link(&self, name: &str) -> Result<()> {
        // The last reference's end detaches some time later: too late for who attaches again.
        if let Ok(Some(link)) = self.open_link(name) {
            let _ = link.detach();
        }
        remove_if_there(&self.link(name))
    }

    /// Names of all pinned links.
    ///
    /// # Errors
    /// The kernel's; a missing folder is an empty one.
    pub fn links(&self) -> Result<Vec<String>> {
        let folder = self.root.join("links");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(cause).context(format!("reading {}", folder.display())),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Makes the folders, mounting bpffs if it is not there.
    ///
    /// # Errors
    /// `invalid` if the folder is not on a bpffs, or the kernel's.
    pub fn prepare(&self) -> Result<()> {
        if self.root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .context(format!("mounting bpffs on {BPFFS}"))?;
        }
        let existing =
            self.root.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        if !is_bpffs(existing) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "pinDirectory {}: {} is not on a BPF file system; choose a folder under {BPFFS}",
                    self.root.display(),
                    existing.display()
                ),
            ));
        }
        for folder in ["maps", "links"] {
            let folder = self.root.join(folder);
            fs::create_dir_all(&folder).context(format!("making {}", folder.display()))?;
        }
        Ok(())
    }

    /// Removes every pin and the folder. Goes on after an error.
    ///
    /// # Errors
    /// All that went wrong, in one.
    pub fn remove(&self) -> Result<()> {
        let mut failures = Vec::new();
        for folder in ["links", "maps"] {
            let folder = self.root.join(folder);
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                if let Err(cause) = remove_if_there(&entry.path()) {
                    failures.push(cause.to_string());
                }
            }
            if let Err(cause) = fs::remove_dir(&folder) {
                failures.push(format!("removing {}: {cause}", folder.display()));
            }
        }
        if self.root.exists()
            && let Err(cause) = fs::remove_dir(&self.root)
        {
            failures.push(format!("removing {}: {cause}", self.root.display()));
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Io, failures.join("; ")))
        }
    }
}

/// Whether the path is on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(cause).context(format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
