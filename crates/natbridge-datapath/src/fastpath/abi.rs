//! The structs of `bpf/abi.h`, as the skeleton generator read them from the object's BTF.

/// The generated skeleton; only its types are used, since its loaded form borrows from itself.
#[allow(clippy::all, clippy::pedantic, clippy::restriction)]
#[allow(dead_code, unsafe_op_in_unsafe_fn)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/natbridge.skel.rs"));
}

use std::net::{IpAddr, Ipv6Addr};

pub use skeleton::types::{
    nb_abi, nb_address, nb_address_kind, nb_config, nb_connect_result, nb_device,
    nb_device_counters, nb_device_flag, nb_drop, nb_event, nb_flow, nb_flow_key, nb_link_local,
    nb_link_local_key, nb_path, nb_peer, nb_port, nb_port_key, nb_presence, nb_request,
    nb_request_kind, nb_socket, nb_tcp_side, nb_tuple,
};

/// Version of the maps' layout and meaning.
pub const ABI: u32 = nb_abi::NB_ABI.0;

/// A struct that crosses to the programs byte by byte.
///
/// # Safety
/// Every byte pattern must be a valid value and the type must have no implicit padding.
pub unsafe trait Plain: Copy + Default {}

// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}

macro_rules! plain {
    ($($name:ident),*) => {$(
        // SAFETY: repr(C) structs of integers whose padding abi.h spells out.
        unsafe impl Plain for $name {}
    )*};
}
plain!(
    nb_address,
    nb_config,
    nb_device,
    nb_device_counters,
    nb_flow,
    nb_flow_key,
    nb_link_local,
    nb_link_local_key,
    nb_peer,
    nb_port,
    nb_port_key,
    nb_request,
    nb_socket
);

/// The value's bytes, as the kernel takes them.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a Plain type has no padding, and the slice lives as long as the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value with these bytes; what is missing stays zero.
pub fn value_of<T: Plain>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let length = bytes.len().min(size_of::<T>());
    // SAFETY: any bytes make a Plain value, and no more are copied than either side has.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            std::ptr::from_mut(&mut value).cast::<u8>(),
            length,
        );
    }
    value
}

impl From<IpAddr> for nb_address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Self { words }
    }
}

impl From<nb_address> for IpAddr {
    fn from(address: nb_address) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(Ipv6Addr::from(octets)).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_round_trip() {
        for text in ["172.32.0.10", "0.0.0.0", "255.255.255.255", "fd00::a", "::", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(nb_address::from(address)), address);
        }
    }

    #[test]
    fn an_ipv4_address_is_v4_mapped_in_network_order() {
        let address = nb_address::from("1.2.3.4".parse::<IpAddr>().unwrap());
        assert_eq!(bytes_of(&address), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]);
    }
}
