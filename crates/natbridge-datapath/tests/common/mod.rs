//! Network namespaces for tests that need root: made under a unique name, removed when dropped.

#![allow(dead_code)]

pub mod foreign;
pub mod packet;
pub mod topology;
pub mod wire;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use natbridge_datapath::fastpath::{self, FastPath, FastPathOptions};
use nix::sched::{CloneFlags, setns};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test of this or another run uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command line in the calling thread's namespace.
pub fn run(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert_success(line, &output);
}

fn assert_success(line: &str, output: &Output) {
    assert!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A network namespace.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        let name = unique(&format!("fp-{label}-"));
        run(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.run("ip link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command line to be run in it.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).args(["sh", "-ec", line]);
        command
    }

    /// Runs a command line in it and answers what it printed.
    pub fn run(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        assert_success(line, &output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

const BPFFS: &str = "/sys/fs/bpf";
const PINS: &str = "natbridge-test-";
static LEFTOVERS: Once = Once::new();

/// Unloads what tests left whose process is no more: its hooks would go on to run for every socket.
fn unload_leftovers() {
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PINS).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fastpath::unload(&entry.path().to_string_lossy());
        }
    }
}

/// A loaded fast path with pins of its own, unloaded when dropped.
pub struct Loaded {
    pub fast_path: FastPath,
    pub options: FastPathOptions,
}

impl Loaded {
    /// Loads for the calling thread's namespace.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut FastPathOptions)) -> Self {
        LEFTOVERS.call_once(unload_leftovers);
        let mut options = FastPathOptions {
            pin_directory: format!("{BPFFS}/{}", unique(PINS)),
            cgroup_path: String::new(),
            max_flows: 4096,
            max_devices: 64,
            max_ports: 64,
            mechanism: None,
        };
        change(&mut options);
        let (fast_path, adopted) = FastPath::load(&options).unwrap();
        assert!(!adopted);
        stand_for_the_rules(&fast_path);
        Self { fast_path, options }
    }
}

/// There are no rules but the test's own.
pub fn stand_for_the_rules(fast_path: &FastPath) {
    let switches = fast_path.switches();
    assert!(switches.accept_verdict(switches.rules_seen(), Duration::from_secs(3600)).unwrap());
}

impl Drop for Loaded {
    fn drop(&mut self) {
        fastpath::unload(&self.options.pin_directory).unwrap();
    }
}

/// ifindex of a device in the calling thread's namespace.
pub fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
