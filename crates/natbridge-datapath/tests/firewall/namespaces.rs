//! Network namespaces of a test: made, entered by threads, and removed.

use std::fs::File;
use std::process::{Command, Output};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// What the process last applied is what a keeper restores and its stand-in follows, as in the daemon:
/// no other test may apply its own meanwhile.
static PROCESS: RwLock<()> = RwLock::new(());

enum Share {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// A set of named namespaces that share a prefix; removed when dropped.
pub struct Namespaces {
    prefix: String,
    names: Vec<&'static str>,
    _share: Share,
}

impl Namespaces {
    /// Makes them. The prefix holds the process id, so that runs do not meet.
    pub fn new(label: &str, names: &[&'static str]) -> Self {
        let guard = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
        Self::make(label, names, Share::Shared { _guard: guard })
    }

    /// Makes them for a test with a keeper, while no other test applies anything.
    pub fn alone(label: &str, names: &[&'static str]) -> Self {
        let guard = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
        Self::make(label, names, Share::Alone { _guard: guard })
    }

    fn make(label: &str, names: &[&'static str], share: Share) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the packet tests make network namespaces: run as root"
        );
        let prefix = format!("fw-{}-{label}", std::process::id());
        let made = Self { prefix, names: names.to_vec(), _share: share };
        for name in names {
            shell(&format!("ip netns add {}", made.full(name)));
            made.run(name, "ip link set lo up");
        }
        made
    }

    /// Name under /run/netns.
    pub fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs a closure on a thread inside.
    pub fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.full(name));
        thread::scope(|scope| {
            let inner = scope.spawn(|| {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inner.join().unwrap()
        })
    }

    /// Runs shell commands inside; each must succeed. Answers their standard output.
    pub fn run(&self, name: &str, commands: &str) -> String {
        shell(&format!("nsenter --net=/run/netns/{} sh -ec '{commands}'", self.full(name)))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", &self.full(name)]).output();
        }
    }
}

fn shell(command: &str) -> String {
    let Output { status, stdout, stderr } =
        Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(status.success(), "{command}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}
