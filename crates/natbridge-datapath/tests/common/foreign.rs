//! A program of somebody else on a device's tcx hook: counts packets and lets them go on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use libbpf_sys::{bpf_insn, bpf_link_create_opts, bpf_prog_load_opts};

/// `struct bpf_insn` of linux/bpf.h.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> bpf_insn {
    let mut instruction = bpf_insn { code, off: offset, imm: immediate, ..bpf_insn::default() };
    instruction.set_dst_reg(destination);
    instruction.set_src_reg(source);
    instruction
}

pub struct Foreign {
    map: MapHandle,
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Foreign {
    /// `hook` and `flags` as bpf(2) takes them: BPF_TCX_INGRESS, BPF_F_BEFORE …
    pub fn attach(ifindex: u32, hook: libbpf_sys::bpf_attach_type, flags: u32) -> Self {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let map = MapHandle::create(libbpf_rs::MapType::Array, Some("foreign"), 4, 8, 1, &options)
            .unwrap();
        let program = load(&map);
        let mut options = bpf_link_create_opts {
            sz: size_of::<bpf_link_create_opts>() as _,
            flags,
            ..Default::default()
        };
        // SAFETY: live options that say their size; a descriptor or an error comes back.
        let link = unsafe {
            let raw = libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                ifindex.cast_signed(),
                hook,
                &raw mut options,
            );
            assert!(raw >= 0, "{}", std::io::Error::from_raw_os_error(-raw));
            OwnedFd::from_raw_fd(raw)
        };
        Self { map, _program: program, _link: link }
    }

    /// Packets it saw.
    pub fn seen(&self) -> u64 {
        let value = self.map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        u64::from_ne_bytes(value.try_into().unwrap())
    }
}

fn load(map: &MapHandle) -> OwnedFd {
    use std::os::fd::AsFd;
    let descriptor = map.as_fd().as_raw_fd();
    let code = [
        instruction(0x62, 10, 0, -4, 0),        // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),         // r2 = r10
        instruction(0x07, 2, 0, 0, -4),         // r2 -= 4
        instruction(0x18, 1, 1, 0, descriptor), // r1 = map
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 2, 0), // if r0 == 0, two on
        instruction(0xb7, 1, 0, 0, 1), // r1 = 1
        instruction(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
        instruction(0xb7, 0, 0, 0, -1), // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0), // exit
    ];
    let mut options =
        bpf_prog_load_opts { sz: size_of::<bpf_prog_load_opts>() as _, ..Default::default() };
    // SAFETY: C strings, the instructions with their number, and live options.
    let raw = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            c"policer".as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as _,
            &raw mut options,
        )
    };
    assert!(raw >= 0, "{}", std::io::Error::from_raw_os_error(-raw));
    // SAFETY: fresh and ours.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
