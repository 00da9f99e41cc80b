//! Loading the programs, adopting what an earlier process left pinned, and taking all of it away.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use libbpf_rs::query::LinkTypeInfo;
use libbpf_rs::{Link, MapCore};
use nix::time::{ClockId, clock_getres};

use super::abi::{ABI, nb_config, nb_device, nb_device_flag};
use super::attach::{
    Mechanism, attach_clsact, detach_clsact, device_name, linked_device, parse_link_name,
};
use super::features::kernel_features;
use super::keeper::Keeper;
use super::namespace::host_namespace;
use super::object::{CGROUP_PROGRAMS, Programs, Sizes, pinned_maps};
use super::pins::Pins;
use super::socket::{SocketList, release_sockets};
use super::switches::Switches;
use super::table::{PerCpu, Table};
use super::{FastPath, KernelFeatures};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::host::{make_established_liberal, read_sysctl};

/// How to load the fast path.
#[derive(Clone, Debug)]
pub struct FastPathOptions {
    /// Folder under bpffs for this instance's pins.
    pub pin_directory: String,
    /// cgroup2 mount to attach the connect hooks to; empty: no connect hooks.
    pub cgroup_path: String,
    pub max_flows: u32,
    pub max_devices: u32,
    pub max_ports: u32,
    /// How to hang programs on devices; none: by what the kernel has.
    pub mechanism: Option<Mechanism>,
}

impl FastPathOptions {
    fn check(&self) -> Result<()> {
        let limits = [
            ("maxFlows", self.max_flows, 1 << 24),
            ("maxDevices", self.max_devices, 1 << 16),
            ("maxPorts", self.max_ports, 1 << 20),
        ];
        for (field, value, most) in limits {
            if value == 0 || value > most {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{field} {value}: give a number from 1 to {most}"),
                ));
            }
        }
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes { flows: self.max_flows, devices: self.max_devices, ports: self.max_ports }
    }
}

impl FastPath {
    /// Loads the programs, or adopts what is pinned and replaces the programs atomically. Answers
    /// whether it adopted. Freshly loaded, the fast path is on and the connect hooks are off.
    ///
    /// # Errors
    /// `unsupported` with what the kernel lacks, `invalid` for bad options, or the kernel's. After
    /// an error nothing of a fresh load is left; what was to be adopted goes on as it was.
    pub fn load(options: &FastPathOptions) -> Result<(Self, bool)> {
        options.check()?;
        let features = kernel_features()?;
        if !features.fast_path {
            return Err(Error::new(ErrorKind::Unsupported, features.missing.join("; ")));
        }
        let pins = Pins::new(&options.pin_directory)?;
        pins.prepare()?;
        let cookie = host_namespace()?.cookie;
        let adopt = can_adopt(&pins, options.sizes(), cookie)?;
        if !adopt {
            // Another layout or another namespace: the kernel path carries the traffic meanwhile.
            unload(&options.pin_directory)?;
            pins.prepare()?;
        }
        match load_into(&pins, options, &features, cookie, adopt) {
            Ok(loaded) => Ok((loaded, adopt)),
            Err(cause) if adopt => Err(cause),
            Err(cause) => {
                // The first error is the one to tell.
                let _ = unload(&options.pin_directory);
                Err(cause)
            }
        }
    }
}

fn load_into(
    pins: &Pins,
    options: &FastPathOptions,
    features: &KernelFeatures,
    cookie: u64,
    adopt: bool,
) -> Result<FastPath> {
    let programs = Programs::load(pins, options.sizes())?;
    if !adopt {
        let config: Table<u32, nb_config> = Table::open(pins, "switches")?;
        config.set(
            &0,
            &nb_config {
                abi: ABI,
                enabled: 1,
                netns_cookie: cookie,
                tick_nanoseconds: tick_nanoseconds()?,
                ..nb_config::default()
            },
        )?;
    }
    if !adopt && read_sysctl(TCP_BE_LIBERAL)?.as_deref() == Some("1") {
        // Set by an earlier version whose fast connections would not survive its end.
        make_established_liberal()?;
    }
    let detected = if features.tcx { Mechanism::Tcx } else { Mechanism::Clsact };
    let loaded = FastPath {
        pins: pins.clone(),
        programs,
        sizes: options.sizes(),
        moves: Mutex::default(),
        mechanism: options.mechanism.unwrap_or(detected),
        switches: Switches::open(pins)?,
        devices: Table::open(pins, "devices")?,
        device_counters: PerCpu::open(pins, "device_counters")?,
        flows: Table::open(pins, "flows")?,
        events: PerCpu::open(pins, "events")?,
        ports: Table::open(pins, "ports")?,
        port_connects: PerCpu::open(pins, "port_connects")?,
        local_addresses: Table::open(pins, "local_addresses")?,
        link_locals: Table::open(pins, "link_locals")?,
        connect_results: PerCpu::open(pins, "connect_results")?,
        sockets: SocketList::load(pins),
        _keeper: Keeper::start(pins)?,
        changing: Mutex::new(()),
    };
    loaded.adopt_devices()?;
    loaded.attach_cgroup(&options.cgroup_path)?;
    Ok(loaded)
}

const TCP_BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Length of the kernel's timer tick: the resolution of its coarse clocks (kernel/time/posix-timers.c,
/// KTIME_LOW_RES).
fn tick_nanoseconds() -> Result<u64> {
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .context("asking for the resolution of CLOCK_MONOTONIC_COARSE")?;
    Ok(resolution.tv_nsec().unsigned_abs())
}

/// Whether all maps are pinned, in this layout and these sizes, for this namespace.
fn can_adopt(pins: &Pins, sizes: Sizes, cookie: u64) -> Result<bool> {
    if !pins.map("switches").exists() {
        return Ok(false);
    }
    for (name, fixed_size) in pinned_maps()? {
        let Ok(map) = pins.open_map(&name) else { return Ok(false) };
        // SK_STORAGE has no size of its own.
        if !["peers", "answers"].contains(&name.as_str())
            && map.max_entries() != sizes.of(&name).unwrap_or(fixed_size)
        {
            return Ok(false);
        }
    }
    let config: Table<u32, nb_config> = Table::open(pins, "switches")?;
    let config = config.get(&0)?.unwrap_or_default();
    Ok(config.abi == ABI && config.netns_cookie == cookie)
}

impl FastPath {
    /// Gives the new programs to every device that is still there, and forgets the others.
    fn adopt_devices(&self) -> Result<()> {
        for name in self.pins.links()? {
            let Some((side, ifindex)) = parse_link_name(&name) else { continue };
            let Some(mut link) = self.pins.open_link(&name)? else { continue };
            if linked_device(&link) == Some(ifindex) {
                self.programs.replace(&mut link, side.program())?;
            } else {
                self.pins.remove_link(&name)?;
            }
        }
        for (ifindex, device) in self.devices.entries()? {
            if device_name(ifindex).is_none() {
                self.devices.remove(&ifindex)?;
                self.release_link_locals(ifindex, &device)?;
                // The programs keep copies as long as the generation is the same.
                self.bump_generation();
            } else if device.flags & nb_device_flag::NB_DEVICE_CLSACT.0 != 0 {
                attach_clsact(&self.programs, ifindex)?;
            }
        }
        Ok(())
    }

    fn attach_cgroup(&self, path: &str) -> Result<()> {
        if path.is_empty() {
            for name in CGROUP_PROGRAMS {
                self.pins.remove_link(name)?;
            }
            return Ok(());
        }
        let folder = fs::File::open(path).context(format!("opening cgroupPath {path}"))?;
        let cgroup = folder.metadata().context(format!("looking at cgroupPath {path}"))?.ino();
        for name in CGROUP_PROGRAMS {
            if let Some(mut link) = self.pins.open_link(name)? {
                if linked_cgroup(&link) == Some(cgroup) {
                    self.programs.replace(&mut link, name)?;
                    continue;
                }
                self.pins.remove_link(name)?;
            }
            let mut link = self
                .programs
                .attach_cgroup(name, folder.as_raw_fd())
                .context(format!("cgroupPath {path}"))?;
            link.pin(self.pins.link(name)).context(format!("pinning link {name}"))?;
        }
        Ok(())
    }
}

/// A cgroup's id is its folder's inode.
fn linked_cgroup(link: &Link) -> Option<u64> {
    match link.info().ok()?.info {
        LinkTypeInfo::Cgroup(cgroup) => Some(cgroup.cgroup_id),
        _ => None,
    }
}

/// Detaches and unpins everything below the folder. Needs no loaded programs; a folder that is not
/// there is no error. Goes on after an error.
///
/// # Errors
/// All that went wrong, in one.
pub fn unload(pin_directory: &str) -> Result<()> {
    let pins = Pins::new(pin_directory)?;
    let mut failures = Vec::new();
    if let Ok(switches) = Switches::open(&pins) {
        // A link whose pin is gone may run for a moment yet: nothing is carried past this call.
        switches.set_enabled(false);
        switches.set_connect_enabled(false);
    }
    // While it is known which they are. Without the hooks they are where they should be as well as
    // with them, but would be followed by nobody; a kernel that can't tell has had no hooks.
    match release_sockets(&pins, false) {
        Err(cause) if cause.kind() != ErrorKind::Unsupported => failures.push(cause.to_string()),
        _ => {}
    }
    if pins.map("devices").exists() {
        match detach_filters(&pins) {
            Ok(()) => {}
            Err(cause) => failures.push(cause.to_string()),
        }
    }
    if let Err(cause) = pins.remove() {
        failures.push(cause.to_string());
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Io, failures.join("; "))) }
}

fn detach_filters(pins: &Pins) -> Result<()> {
    let config: Table<u32, nb_config> = Table::open(pins, "switches")?;
    // Another namespace's devices only share their numbers with ours.
    if config.get(&0)?.unwrap_or_default().netns_cookie != host_namespace()?.cookie {
        return Ok(());
    }
    let devices: Table<u32, nb_device> = Table::open(pins, "devices")?;
    let mut failures = Vec::new();
    for (ifindex, device) in devices.entries()? {
        if device.flags & nb_device_flag::NB_DEVICE_CLSACT.0 != 0
            && let Err(cause) =
                detach_clsact(ifindex, device.flags & nb_device_flag::NB_DEVICE_CLSACT_OWNED.0 != 0)
        {
            failures.push(cause.to_string());
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Io, failures.join("; "))) }
}

/// Ends the host's connections that the connect hooks have sent to targets which are about to go, and
/// turns the hooks off; answers how many. Works from the pins, without loaded programs.
///
/// # Errors
/// The kernel's.
pub fn end_sockets(pin_directory: &str) -> Result<u32> {
    match release_sockets(&Pins::new(pin_directory)?, true) {
        Err(cause) if cause.kind() == ErrorKind::Unsupported => Ok(0),
        released => released,
    }
}

/// Turns learning and use of flows on or off; counting and the spoof check go on. Works from the
/// pins, without loaded programs.
///
/// # Errors
/// `unsupported` if nothing is pinned there.
pub fn set_fast_path_enabled(pin_directory: &str, enabled: bool) -> Result<()> {
    Switches::open(&Pins::new(pin_directory)?)?.set_enabled(enabled);
    Ok(())
}

/// Whether flows are learned and used.
///
/// # Errors
/// `unsupported` if nothing is pinned there.
pub fn fast_path_enabled(pin_directory: &str) -> Result<bool> {
    Ok(Switches::open(&Pins::new(pin_directory)?)?.enabled())
}
