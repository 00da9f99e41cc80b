//! Hanging the two packet programs on a device: tcx links where the kernel has them, clsact filters
//! where it has not.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use libbpf_rs::query::LinkTypeInfo;
use libbpf_rs::{
    AsRawLibbpf, Link, Program, TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHook, TcHookBuilder,
};
use nix::libc;

use super::object::Programs;
use super::pins::Pins;
use crate::error::{Context, Error, ErrorKind, Result};

/// Priority and handle of our clsact filters: "nb", which nobody else is likely to use.
const FILTER: u32 = 0x6e62;

/// How programs hang on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Linux 6.6: links that can be pinned and updated.
    Tcx,
    /// Before: filters of a clsact queueing discipline.
    Clsact,
}

/// Among the programs of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    First,
    Last,
}

/// A side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Ingress,
    Egress,
}

impl Side {
    /// Egress first: what ingress leaves notes for must be there.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The side's program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Ingress => "nb_ingress",
            Self::Egress => "nb_egress",
        }
    }

    /// Ingress sends packets on that nobody behind it would see. Egress looks at what the host's
    /// stack made of them, before somebody else changes it again.
    pub fn place(self) -> Place {
        match self {
            Self::Ingress => Place::Last,
            Self::Egress => Place::First,
        }
    }

    /// The tcx hook, as the kernel is asked for it.
    pub fn tcx_hook(self) -> libbpf_sys::bpf_attach_type {
        match self {
            Self::Ingress => libbpf_sys::BPF_TCX_INGRESS,
            Self::Egress => libbpf_sys::BPF_TCX_EGRESS,
        }
    }

    fn point(self) -> TcAttachPoint {
        match self {
            Self::Ingress => TC_INGRESS,
            Self::Egress => TC_EGRESS,
        }
    }

    /// Name of the link's pin for a device.
    pub fn link(self, ifindex: u32) -> String {
        format!("{}-{ifindex}", self.program())
    }
}

/// The program and device that a pin's name stands for; none for a cgroup hook's.
pub fn parse_link_name(name: &str) -> Option<(Side, u32)> {
    let (program, ifindex) = name.split_once('-')?;
    let side = Side::BOTH.into_iter().find(|side| side.program() == program)?;
    Some((side, ifindex.parse().ok()?))
}

/// The device a pinned link is on now; none if the device is gone.
pub fn linked_device(link: &Link) -> Option<u32> {
    match link.info().ok()?.info {
        LinkTypeInfo::Tcx(tcx) if tcx.ifindex != 0 => Some(tcx.ifindex),
        _ => None,
    }
}

/// Hangs both programs on a device by pinned links; links that are there get the new program.
///
/// # Errors
/// The kernel's; then the device is as before.
pub fn attach_tcx(programs: &Programs, pins: &Pins, ifindex: u32) -> Result<()> {
    let mut made = Vec::new();
    for side in Side::BOTH {
        match attach_tcx_side(programs, pins, ifindex, side) {
            Ok(true) => made.push(side.link(ifindex)),
            Ok(false) => {}
            Err(cause) => {
                for name in made {
                    pins.remove_link(&name)?;
                }
                return Err(cause);
            }
        }
    }
    Ok(())
}

/// Answers whether the link is new.
fn attach_tcx_side(programs: &Programs, pins: &Pins, ifindex: u32, side: Side) -> Result<bool> {
    let name = side.link(ifindex);
    if let Some(mut link) = pins.open_link(&name)? {
        if linked_device(&link) == Some(ifindex) {
            programs.replace(&mut link, side.program())?;
            return Ok(false);
        }
        pins.remove_link(&name)?;
    }
    let mut link = tcx_link(&programs.get(side.program())?, ifindex, side.place())?;
    link.pin(pins.link(&name)).context(format!("pinning link {name}"))?;
    Ok(true)
}

/// Takes a program's place on its hook again, with no moment in which none is there: until the old
/// link is gone a copy does its work.
///
/// # Errors
/// The kernel's.
pub fn move_link(
    programs: &Programs,
    spare: &Programs,
    pins: &Pins,
    ifindex: u32,
    side: Side,
) -> Result<()> {
    let name = side.link(ifindex);
    let mut link = tcx_link(&spare.get(side.program())?, ifindex, side.place())?;
    pins.remove_link(&name)?;
    link.pin(pins.link(&name)).context(format!("pinning link {name}"))?;
    programs.replace(&mut link, side.program())
}

fn tcx_link(program: &Program<'_>, ifindex: u32, place: Place) -> Result<Link> {
    let index = i32::try_from(ifindex).map_err(|_| no_device(ifindex))?;
    let mut options = libbpf_sys::bpf_tcx_opts::default();
    options.sz = size_of_val(&options) as _;
    options.flags = match place {
        Place::First => libbpf_sys::BPF_F_BEFORE,
        Place::Last => libbpf_sys::BPF_F_AFTER,
    };
    // SAFETY: the program is loaded and outlives the call, as do the options, which say their size.
    let link = unsafe {
        libbpf_sys::bpf_program__attach_tcx(
            program.as_libbpf_object().as_ptr(),
            index,
            &raw const options,
        )
    };
    // libbpf answers null and sets errno.
    let failure = std::io::Error::last_os_error();
    let link = NonNull::new(link)
        .ok_or(failure)
        .context(format!("attaching {} to device {ifindex}", program.name().to_string_lossy()))?;
    // SAFETY: a fresh link that nobody else holds.
    Ok(unsafe { Link::from_ptr(link) })
}

/// Hangs both programs on a device by clsact filters; answers whether the qdisc is new.
///
/// # Errors
/// The kernel's.
pub fn attach_clsact(programs: &Programs, ifindex: u32) -> Result<bool> {
    let owned = create_clsact(ifindex)?;
    for side in Side::BOTH {
        let program = programs.get(side.program())?;
        let attached = clsact_hook(&program, ifindex, side)?
            .attach()
            .context(format!("attaching {} to device {ifindex}", side.program()));
        if let Err(cause) = attached {
            // The first error is the one to tell.
            let _ = detach_clsact(ifindex, owned);
            return Err(cause);
        }
    }
    Ok(owned)
}

/// Adds the qdisc; answers false if it was there. (The library's hook does not tell.)
fn create_clsact(ifindex: u32) -> Result<bool> {
    let mut hook = libbpf_sys::bpf_tc_hook::default();
    hook.sz = size_of_val(&hook) as _;
    hook.ifindex = i32::try_from(ifindex).map_err(|_| no_device(ifindex))?;
    hook.attach_point = libbpf_sys::BPF_TC_INGRESS | libbpf_sys::BPF_TC_EGRESS;
    // SAFETY: a live hook that says its own size.
    match -unsafe { libbpf_sys::bpf_tc_hook_create(&raw mut hook) } {
        0 => Ok(true),
        libc::EEXIST => Ok(false),
        errno => Err(Error::from_errno(errno, format!("adding clsact to device {ifindex}"))),
    }
}

/// Takes both filters off, and the qdisc too if it is ours and nobody else's filters are in it.
///
/// # Errors
/// The kernel's; a device that is gone is none.
pub fn detach_clsact(ifindex: u32, owned: bool) -> Result<()> {
    if device_name(ifindex).is_none() {
        return Ok(());
    }
    for side in Side::BOTH {
        let mut hook = bare_hook(ifindex, side)?;
        match hook.detach() {
            Err(cause) if cause.kind() != libbpf_rs::ErrorKind::NotFound => {
                return Err(cause).context(format!("detaching from device {ifindex}"));
            }
            _ => {}
        }
    }
    if owned && !super::clsact::has_filters(ifindex)? {
        let mut hook = bare_hook(ifindex, Side::Ingress)?;
        hook.attach_point(TC_INGRESS | TC_EGRESS);
        hook.destroy().context(format!("removing clsact from device {ifindex}"))?;
    }
    Ok(())
}

fn clsact_hook(program: &Program<'_>, ifindex: u32, side: Side) -> Result<TcHook> {
    let index = i32::try_from(ifindex).map_err(|_| no_device(ifindex))?;
    let mut builder = TcHookBuilder::new(program.as_fd());
    builder.ifindex(index).replace(true).handle(FILTER).priority(FILTER);
    Ok(builder.hook(side.point()))
}

/// A hook without a program, to detach and destroy by.
fn bare_hook(ifindex: u32, side: Side) -> Result<TcHook> {
    let index = i32::try_from(ifindex).map_err(|_| no_device(ifindex))?;
    // Only attaching looks at the descriptor.
    let nothing = std::io::stdin();
    let mut builder = TcHookBuilder::new(nothing.as_fd());
    builder.ifindex(index).handle(FILTER).priority(FILTER);
    Ok(builder.hook(side.point()))
}

fn no_device(ifindex: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("no device with ifindex {ifindex}"))
}

/// The device's name; none if there is no such device.
pub fn device_name(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size the call asks for.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let length = name.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&name[..length]).into_owned())
}

/// Checks that a device is there and carries Ethernet frames.
///
/// # Errors
/// `not_found` or `unsupported`.
pub fn check_device(ifindex: u32) -> Result<()> {
    let name = device_name(ifindex).ok_or_else(|| no_device(ifindex))?;
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("opening a socket")?;
    // SAFETY: ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFHWADDR fills the request it is given.
    let failed = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR as _, std::ptr::from_mut(&mut request))
    };
    if failed != 0 {
        return Err(std::io::Error::last_os_error()).context(format!("asking about {name}"));
    }
    // SAFETY: the call above filled this field of the union.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    if kind != libc::ARPHRD_ETHER {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{name} is no Ethernet device: leave it to the kernel path"),
        ));
    }
    Ok(())
}
