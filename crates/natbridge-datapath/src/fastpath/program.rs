//! What the kernel says of the loaded programs.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use libbpf_rs::Program;

use super::FastPath;
use super::abi::nb_device_flag;
use super::attach::{Side, device_name, parse_link_name};
use super::object::CGROUP_PROGRAMS;
use crate::error::{Error, Result};

/// A loaded program.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    pub name: String,
    pub id: u32,
    /// Zero unless the sysctl `kernel.bpf_stats_enabled` is on.
    pub run_time: Duration,
    pub run_count: u64,
    /// Names of devices, or `cgroup`.
    pub attached: Vec<String>,
}

impl FastPath {
    /// The programs and where they hang.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list_programs(&self) -> Result<Vec<ProgramInfo>> {
        let links = self.pins.links()?;
        let mut filtered = Vec::new();
        for (ifindex, device) in self.devices.entries()? {
            if device.flags & nb_device_flag::NB_DEVICE_CLSACT.0 != 0 {
                filtered.extend(device_name(ifindex));
            }
        }
        self.programs
            .iter()
            .map(|program| {
                let name = program.name().to_string_lossy().into_owned();
                let mut attached = attachments(&name, &links);
                if Side::BOTH.iter().any(|side| side.program() == name) {
                    attached.extend(filtered.iter().cloned());
                }
                program_info(&program, name, attached)
            })
            .collect()
    }
}

fn attachments(program: &str, links: &[String]) -> Vec<String> {
    links
        .iter()
        .filter_map(|link| match parse_link_name(link) {
            Some((side, ifindex)) if side.program() == program => device_name(ifindex),
            None if link == program && CGROUP_PROGRAMS.contains(&program) => {
                Some("cgroup".to_owned())
            }
            _ => None,
        })
        .collect()
}

fn program_info(program: &Program<'_>, name: String, attached: Vec<String>) -> Result<ProgramInfo> {
    let info = read_info(program.as_fd().as_raw_fd())
        .map_err(|errno| Error::from_errno(errno, format!("asking about program {name}")))?;
    Ok(ProgramInfo {
        name,
        id: info.id,
        run_time: Duration::from_nanos(info.run_time_ns),
        run_count: info.run_cnt,
        attached,
    })
}

/// What the kernel says of an open program, or its errno.
pub fn read_info(program: RawFd) -> std::result::Result<libbpf_sys::bpf_prog_info, i32> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX);
    // SAFETY: the kernel fills at most `length` bytes of the struct.
    let failed = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program,
            std::ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    if failed == 0 { Ok(info) } else { Err(-failed) }
}
