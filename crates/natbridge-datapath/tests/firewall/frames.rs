//! Frames that no stack would send: loopback addresses on a wire.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::libc;

use super::namespaces::Namespaces;

/// Sends one UDP datagram from the client's wire; answers whether the host's socket `bind` got it.
pub fn arrives(namespaces: &Namespaces, bind: &str, source: Ipv4Addr, target: Ipv4Addr) -> bool {
    let socket = namespaces.inside("host", || UdpSocket::bind((bind, 9999)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(350))).unwrap();
    let mac = namespaces.run("host", "cat /sys/class/net/client/address || true");
    let mac = if mac.trim().is_empty() { link_address(namespaces) } else { mac };
    let frame = frame(&parse_mac(mac.trim()), source, target);
    namespaces.inside("client", || send(&frame));
    socket.recv(&mut [0; 16]).is_ok()
}

/// /sys shows the devices of the namespace it was mounted in; iproute2 asks the kernel.
fn link_address(namespaces: &Namespaces) -> String {
    let link = namespaces.run("host", "ip -o link show dev client");
    let words: Vec<&str> = link.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "link/ether").unwrap();
    words[at + 1].to_owned()
}

fn parse_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Ethernet, IPv4 (RFC 791) and UDP (RFC 768, without checksum) to port 9999.
fn frame(mac: &[u8; 6], source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend(target.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(header);
    frame.extend([0x12, 0x34, 0x27, 0x0f, 0, 12, 0, 0]);
    frame.extend(b"ping");
    frame
}

fn send(frame: &[u8]) {
    let name = c"eth0";
    // SAFETY: plain system calls on a descriptor of our own; the pointers outlive each call.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let sent = libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
        libc::close(socket);
    }
}
