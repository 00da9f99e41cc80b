//! The compiled programs: opened, loaded with shared maps, and their hooks.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use libbpf_rs::{Link, Object, ObjectBuilder, Program, ProgramInput, ProgramOutput};

use super::messages;
use super::pins::Pins;
use super::program::read_info;
use crate::error::{Context, Error, ErrorKind, Result};

/// Makes the compiler place the object at an address libelf can use.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/natbridge.bpf.o")));

/// Programs of the cgroup hooks, which are also the names of their pins.
pub const CGROUP_PROGRAMS: &[&str] = &[
    "nb_connect4",
    "nb_connect6",
    "nb_sendmsg4",
    "nb_sendmsg6",
    "nb_recvmsg4",
    "nb_recvmsg6",
    "nb_getpeername4",
    "nb_getpeername6",
];

/// Maps whose size is the loader's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub flows: u32,
    pub devices: u32,
    pub ports: u32,
}

impl Sizes {
    /// The size of the map `name`, if it is not fixed.
    pub fn of(&self, name: &str) -> Option<u32> {
        match name {
            "flows" => Some(self.flows),
            "devices" | "device_counters" => Some(self.devices),
            "ports" | "port_connects" => Some(self.ports),
            _ => None,
        }
    }
}

/// The loaded programs of this process.
#[derive(Debug)]
pub struct Programs {
    object: Object,
}

impl Programs {
    /// Loads the programs; maps pinned in `pins` are used, others are made and pinned there.
    ///
    /// # Errors
    /// `unsupported` with the verifier's last words if the kernel refuses a program, or its errors.
    pub fn load(pins: &Pins, sizes: Sizes) -> Result<Self> {
        messages::collect();
        let mut open = ObjectBuilder::default()
            .name("natbridge")
            .and_then(|builder| builder.open_memory(&OBJECT.0))
            .context("opening the eBPF object")?;
        for mut map in open.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            // The object's own constants: they belong to these programs alone.
            if name.contains(".rodata") {
                continue;
            }
            if let Some(size) = sizes.of(&name) {
                map.set_max_entries(size).context(format!("sizing map {name}"))?;
            }
            map.set_pin_path(pins.map(&name)).context(format!("naming the pin of map {name}"))?;
        }
        let object = open.load().map_err(|cause| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the kernel does not load the eBPF programs: {cause:#}\n{}",
                    messages::take()
                ),
            )
        })?;
        Ok(Self { object })
    }

    /// The loaded program `name`.
    ///
    /// # Errors
    /// `not_found` if the object has no such program.
    pub fn get(&self, name: &str) -> Result<Program<'_>> {
        self.object
            .progs()
            .find(|program| program.name() == OsStr::new(name))
            .ok_or_else(|| no_program(name))
    }

    /// The kernel's number of the loaded program `name`.
    ///
    /// # Errors
    /// `not_found`, or the kernel's.
    pub fn id_of(&self, name: &str) -> Result<u32> {
        read_info(self.get(name)?.as_fd().as_raw_fd())
            .map(|info| info.id)
            .map_err(|errno| Error::from_errno(errno, format!("asking about program {name}")))
    }

    /// Attaches a program of the cgroup hooks to an open cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach_cgroup(&self, name: &str, cgroup: RawFd) -> Result<Link> {
        let program = self.object.progs_mut().find(|program| program.name() == OsStr::new(name));
        let program = program.ok_or_else(|| no_program(name))?;
        program.attach_cgroup(cgroup).context(format!("attaching {name} to a cgroup"))
    }

    /// Runs a program on a packet of the caller's (BPF_PROG_TEST_RUN), as tests do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn test_run<'data>(
        &self,
        name: &str,
        input: ProgramInput<'data>,
    ) -> Result<ProgramOutput<'data>> {
        let program = self.object.progs_mut().find(|program| program.name() == OsStr::new(name));
        let program = program.ok_or_else(|| no_program(name))?;
        program.test_run(input).context(format!("running {name}"))
    }

    /// All programs.
    pub fn iter(&self) -> impl Iterator<Item = Program<'_>> {
        self.object.progs()
    }

    /// Points a link at this object's program, without a moment in which neither runs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn replace(&self, link: &mut Link, program: &str) -> Result<()> {
        link.update_prog(&self.get(program)?).context(format!("replacing program {program}"))
    }
}

fn no_program(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("the eBPF object has no program {name}"))
}

/// Names and sizes of all maps that are pinned.
///
/// # Errors
/// If the object can't be opened.
pub fn pinned_maps() -> Result<Vec<(String, u32)>> {
    let open =
        ObjectBuilder::default().open_memory(&OBJECT.0).context("opening the eBPF object")?;
    Ok(open
        .maps()
        .map(|map| (map.name().to_string_lossy().into_owned(), map.max_entries()))
        .filter(|(name, _)| !name.contains(".rodata"))
        .collect())
}
