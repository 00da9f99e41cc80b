//! eBPF programs of others on the hooks that the fast path uses or skips.
//!
//! A cached flow's packets leave by the ingress program: what stands behind it on that hook, and all
//! that the kernel path would have met from there on, sees none of them. Nobody announces such
//! programs, so they are asked for.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

use super::FastPath;
use super::abi::nb_device_flag;
use super::attach::{Place, Side, move_link};
use super::object::Programs;
use super::program::read_info;
use crate::error::{Error, Result};
use crate::host::{Rtnetlink, xdp_program};

/// BPF_MPROG_MAX (linux/bpf_mprog.h): programs of one hook.
const HOOK_PROGRAMS: usize = 64;
/// Somebody else who insists on the same place gets it after so many moves.
const MOVES: u32 = 3;

/// Where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForeignHook {
    Ingress,
    Egress,
    Xdp,
}

impl ForeignHook {
    /// The word of the contract.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Xdp => "xdp",
        }
    }
}

/// Somebody else's program on a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForeignProgram {
    pub ifindex: u32,
    pub hook: ForeignHook,
    pub id: u32,
    /// Empty if it was gone before it could be asked.
    pub name: String,
    /// It would not see the packets of cached flows, or changes them before they are learned.
    pub hinders: bool,
}

/// What a device is to the fast path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Endpoint,
    Uplink,
    /// A bridge, which the fast path goes around.
    Skipped,
}

/// One hook's programs in the order they run.
struct Chain {
    ids: Vec<u32>,
    own: Option<usize>,
}

impl FastPath {
    /// Programs of others on these devices, after natbridge's own took their places again: last at
    /// ingress, and first where packets leave by an uplink.
    ///
    /// # Errors
    /// The kernel's; a device that is gone has none.
    pub fn foreign_programs(&self, ifindexes: &[u32]) -> Result<Vec<ForeignProgram>> {
        let _changing = self.lock();
        // Another copy of the programs on the same maps: no hook takes the same program twice.
        let mut spare = None;
        for ifindex in ifindexes {
            self.take_places(*ifindex, &mut spare)?;
        }
        self.query(ifindexes)
    }

    /// As [`Self::foreign_programs`], changing nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn query_programs(&self, ifindexes: &[u32]) -> Result<Vec<ForeignProgram>> {
        let _changing = self.lock();
        self.query(ifindexes)
    }

    fn query(&self, ifindexes: &[u32]) -> Result<Vec<ForeignProgram>> {
        let own = self.own_ids()?;
        let mut netlink = Rtnetlink::open()?;
        let mut found = Vec::new();
        for &ifindex in ifindexes {
            let part = self.part(ifindex)?;
            for side in Side::BOTH {
                let chain = read_chain(ifindex, side, &own)?;
                for (position, &id) in chain.ids.iter().enumerate() {
                    if own.contains(&id) {
                        continue;
                    }
                    let hook = match side {
                        Side::Ingress => ForeignHook::Ingress,
                        Side::Egress => ForeignHook::Egress,
                    };
                    let hinders = hinders(part, side, position, chain.own);
                    found.push(ForeignProgram { ifindex, hook, id, name: name_of(id), hinders });
                }
            }
            // Elsewhere XDP comes before everything, and sees all there is.
            if part == Part::Skipped
                && let Some(id) = xdp_program(&mut netlink, ifindex)?
            {
                let (hook, name) = (ForeignHook::Xdp, name_of(id));
                found.push(ForeignProgram { ifindex, hook, id, name, hinders: true });
            }
        }
        Ok(found)
    }

    fn part(&self, ifindex: u32) -> Result<Part> {
        Ok(match self.devices.get(&ifindex)? {
            Some(entry) if entry.flags & nb_device_flag::NB_DEVICE_ENDPOINT.0 != 0 => {
                Part::Endpoint
            }
            Some(_) => Part::Uplink,
            None => Part::Skipped,
        })
    }

    fn own_ids(&self) -> Result<Vec<u32>> {
        Side::BOTH.iter().map(|side| self.programs.id_of(side.program())).collect()
    }

    fn take_places(&self, ifindex: u32, spare: &mut Option<Programs>) -> Result<()> {
        let part = self.part(ifindex)?;
        if part == Part::Skipped {
            return Ok(());
        }
        let own = self.own_ids()?;
        for side in Side::BOTH {
            let chain = read_chain(ifindex, side, &own)?;
            let in_place = match (chain.own, side.place()) {
                // Not by a link: its filter comes behind all of these.
                (None, _) => true,
                (Some(position), Place::First) => position == 0 || part == Part::Endpoint,
                (Some(position), Place::Last) => position + 1 == chain.ids.len(),
            };
            let mut moves = self.moves.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if chain.ids.len() <= 1 {
                moves.remove(&(ifindex, side));
            }
            if in_place {
                continue;
            }
            let count = moves.entry((ifindex, side)).or_default();
            if *count < MOVES {
                *count += 1;
                let copy = match spare.take() {
                    Some(copy) => copy,
                    None => Programs::load(&self.pins, self.sizes)?,
                };
                move_link(&self.programs, spare.insert(copy), &self.pins, ifindex, side)?;
            }
        }
        Ok(())
    }
}

/// How often natbridge's programs took their places again, by device and side.
pub type Moves = HashMap<(u32, Side), u32>;

fn hinders(part: Part, side: Side, position: usize, own: Option<usize>) -> bool {
    match (part, side) {
        // Packets reach the sandbox without any egress hook, and pass by the bridge altogether.
        (Part::Skipped, _) | (Part::Endpoint, Side::Egress) => true,
        (Part::Endpoint | Part::Uplink, Side::Ingress) => own.is_some_and(|own| position > own),
        // Cached packets pass it too, but learned from was what it had made of the first ones.
        (Part::Uplink, Side::Egress) => own.is_none_or(|own| position < own),
    }
}

fn read_chain(ifindex: u32, side: Side, own: &[u32]) -> Result<Chain> {
    let Ok(target) = i32::try_from(ifindex) else {
        return Ok(Chain { ids: Vec::new(), own: None });
    };
    let mut ids = vec![0u32; HOOK_PROGRAMS];
    let mut query = libbpf_sys::bpf_prog_query_opts::default();
    query.sz = size_of_val(&query) as _;
    query.prog_ids = ids.as_mut_ptr();
    query.__bindgen_anon_1.count = u32::try_from(HOOK_PROGRAMS).unwrap_or(0);
    // SAFETY: the options say their own size and that of the array they point to.
    let failed =
        unsafe { libbpf_sys::bpf_prog_query_opts(target, side.tcx_hook(), &raw mut query) };
    match -failed {
        0 => {}
        // No such device any more; a kernel before 6.6, which has no such hooks.
        libc::ENODEV | libc::ENOENT | libc::EINVAL => ids.clear(),
        errno => {
            return Err(Error::from_errno(errno, format!("listing programs of device {ifindex}")));
        }
    }
    // SAFETY: both members of the union are this number.
    ids.truncate(unsafe { query.__bindgen_anon_1.count } as usize);
    let own = ids.iter().position(|id| own.contains(id));
    Ok(Chain { ids, own })
}

fn name_of(id: u32) -> String {
    // SAFETY: takes a number; a descriptor of our own or an error.
    let descriptor = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
    if descriptor < 0 {
        return String::new();
    }
    // SAFETY: fresh and ours.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let Ok(info) = read_info(program.as_fd().as_raw_fd()) else { return String::new() };
    let bytes: Vec<u8> =
        info.name.iter().map(|letter| letter.cast_unsigned()).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
