//! What the running kernel offers.

use std::fs;
use std::path::Path;
use std::process::Command;

use libbpf_rs::ProgramType;
use nix::libc;

use super::pins::is_bpffs;
use crate::error::{Context, Result};
use crate::host::can_end_sockets;

/// What this kernel offers; `missing` says in words what keeps the fast path off.
#[derive(Clone, Debug, Default)]
pub struct KernelFeatures {
    pub release: String,
    pub bpffs: bool,
    /// Where cgroup2 is mounted; empty if it is not.
    pub cgroup2: String,
    pub btf: bool,
    pub tcx: bool,
    pub conntrack_lookup: bool,
    pub cgroup_hooks: bool,
    pub sctp_sockets: bool,
    /// Sockets that the connect hooks sent somewhere can be ended.
    pub socket_destroy: bool,
    pub fast_path: bool,
    pub missing: Vec<String>,
}

/// Probes the kernel, by trying where that leaves nothing behind.
///
/// # Errors
/// If `/proc` can't be read.
pub fn kernel_features() -> Result<KernelFeatures> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("reading the kernel's release")?
        .trim()
        .to_owned();
    let cgroup2 = cgroup2_mount()?;
    let mut features = KernelFeatures {
        bpffs: bpffs_available()?,
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        tcx: at_least(&release, 6, 6),
        conntrack_lookup: conntrack_lookup(),
        cgroup_hooks: !cgroup2.is_empty()
            && ProgramType::CgroupSockAddr.is_supported().unwrap_or(false),
        sctp_sockets: sctp_sockets(),
        socket_destroy: can_end_sockets(),
        release,
        cgroup2,
        ..KernelFeatures::default()
    };
    features.missing = missing(&features);
    features.fast_path = features.missing.is_empty();
    Ok(features)
}

/// What keeps the fast path off. The connect hooks are extra: without them the forwarder serves.
fn missing(features: &KernelFeatures) -> Vec<String> {
    let mut missing = Vec::new();
    let release = &features.release;
    if !nix::unistd::geteuid().is_root() {
        missing.push("loading eBPF programs needs root".to_owned());
    }
    if !features.bpffs {
        missing.push("no BPF file system (kernel option CONFIG_BPF_SYSCALL)".to_owned());
    }
    if !features.btf {
        missing.push(format!(
            "kernel {release} has no type information in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)"
        ));
    } else if !features.conntrack_lookup {
        missing.push(format!(
            "kernel {release} lets eBPF programs not ask conntrack (bpf_skb_ct_lookup: Linux 5.18 with CONFIG_NF_CONNTRACK and, if that is a module, the module loaded)"
        ));
    }
    if !at_least(release, 5, 18) {
        missing.push(format!("kernel {release} is older than 5.18"));
    }
    if !ProgramType::SchedCls.is_supported().unwrap_or(false) {
        missing.push("the kernel does not load programs of type sched_cls".to_owned());
    }
    missing
}

/// Whether `release` (`6.1.0-31-amd64`) is this version or later.
fn at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

fn bpffs_available() -> Result<bool> {
    if is_bpffs(Path::new("/sys/fs/bpf")) {
        return Ok(true);
    }
    let known = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    Ok(known.lines().any(|line| line.split_whitespace().last() == Some("bpf")))
}

fn cgroup2_mount() -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| unescape(path))
        })
        .find(|path| Path::new(path).exists())
        .unwrap_or_default())
}

/// Undoes the octal escapes of /proc/mounts.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn conntrack_lookup() -> bool {
    if kernel_function_known() {
        return true;
    }
    if Path::new("/sys/module/nf_conntrack").exists() {
        return false;
    }
    // The function lives in the module's type information; a rule that tracks loads it as well.
    let loaded = Command::new("modprobe").args(["-q", "nf_conntrack"]).status();
    loaded.is_ok_and(|status| status.success()) && kernel_function_known()
}

/// Whether the kernel or its conntrack module offers the lookup to programs.
fn kernel_function_known() -> bool {
    // SAFETY: takes nothing; null on failure.
    let vmlinux = unsafe { libbpf_sys::btf__load_vmlinux_btf() };
    if vmlinux.is_null() {
        return false;
    }
    let module = if Path::new("/sys/kernel/btf/nf_conntrack").exists() {
        // SAFETY: a C string and a live base; null on failure.
        unsafe { libbpf_sys::btf__load_module_btf(c"nf_conntrack".as_ptr(), vmlinux) }
    } else {
        std::ptr::null_mut()
    };
    let known = [vmlinux, module].into_iter().any(|btf| {
        // SAFETY: a live BTF and a C string.
        !btf.is_null()
            && unsafe {
                libbpf_sys::btf__find_by_name_kind(
                    btf,
                    c"bpf_skb_ct_lookup".as_ptr(),
                    libbpf_sys::BTF_KIND_FUNC,
                )
            } > 0
    });
    // SAFETY: ours, the module's before its base; null is allowed.
    unsafe {
        libbpf_sys::btf__free(module);
        libbpf_sys::btf__free(vmlinux);
    }
    known
}

fn sctp_sockets() -> bool {
    // SAFETY: no memory is passed.
    let socket = unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP)
    };
    if socket < 0 {
        return false;
    }
    // SAFETY: a descriptor of our own, used no more.
    unsafe { libc::close(socket) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(at_least("6.18.44-fc-v669", 6, 6));
        assert!(at_least("6.6.0", 6, 6));
        assert!(!at_least("6.1.0-31-amd64", 6, 6));
        assert!(!at_least("5.15.0", 5, 18));
        assert!(at_least("10.0", 6, 6));
        assert!(!at_least("", 5, 18));
    }

    #[test]
    fn mount_points_may_hold_spaces() {
        assert_eq!(unescape("/mnt/a\\040b"), "/mnt/a b");
    }
}
