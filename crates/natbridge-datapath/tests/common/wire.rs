//! Frames as they are: sent from a sandbox's packet socket, and seen where they arrive.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

use super::packet::UDP;
use super::{Namespace, ifindex};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM (linux/virtio_net.h).
const NEEDS_CHECKSUM: u8 = 1;
/// For all frames of a test at once.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
const PACKET_VNET_HDR: libc::c_int = 15;
/// Answers the next datagram: only UDP that somebody answers is learned.
pub fn answer(sink: &std::net::UdpSocket) {
    sink.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 2048];
    let (_, from) = sink.recv_from(&mut buffer).unwrap();
    sink.send_to(b"yes", from).unwrap();
}

/// Runs `work` on a thread in a namespace; what it opens stays there.
pub fn in_namespace<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let file = File::open(format!("/run/netns/{}", namespace.name())).unwrap();
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// A packet socket on a namespace's eth0.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn open(namespace: &Namespace) -> Self {
        in_namespace(namespace, || {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: no memory is passed; the descriptor is fresh.
            let socket = unsafe {
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                let raw = libc::socket(libc::AF_PACKET, kind, protocol.into());
                assert!(raw >= 0, "{}", std::io::Error::last_os_error());
                OwnedFd::from_raw_fd(raw)
            };
            // SAFETY: plain data, filled below.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = ifindex("eth0").cast_signed();
            // SAFETY: an address of this size.
            let bound = unsafe {
                libc::bind(
                    socket.as_raw_fd(),
                    (&raw const address).cast(),
                    size_of_val(&address) as libc::socklen_t,
                )
            };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
            Self { socket }
        })
    }

    /// For [`Wire::send`]: each frame gets a header that says what is left to offload.
    pub fn with_offload(self) -> Self {
        let on: libc::c_int = 1;
        // SAFETY: an option of this size.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        self
    }

    /// Sends a frame whose checksum is to be summed up from `start` on and written `offset` after.
    pub fn send(&self, frame: &[u8], start: usize, offset: usize) {
        let mut bytes = vec![NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
        bytes.extend(u16::try_from(start).unwrap().to_ne_bytes());
        bytes.extend(u16::try_from(offset).unwrap().to_ne_bytes());
        bytes.extend(frame);
        let sent = nix::unistd::write(&self.socket, &bytes).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a frame of a socket without [`Wire::with_offload`].
    pub fn send_plain(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.socket, frame).unwrap(), frame.len());
    }

    /// What arrives until nothing has for a while.
    pub fn receive(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(300) {
            let mut buffer = vec![0; 2048];
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    frames.push(buffer);
                    quiet = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        frames
    }
}

/// Source, destination and their ports, of a UDP frame.
pub fn tuple_of(frame: &[u8]) -> Option<(IpAddr, IpAddr, u16, u16)> {
    let port = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    match frame.get(12..14)? {
        [0x08, 0x00] if *frame.get(23)? == UDP => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(*frame.get(at..)?.first_chunk::<4>()?))
            };
            Some((address(26)?, address(30)?, port(34)?, port(36)?))
        }
        [0x86, 0xdd] if *frame.get(20)? == UDP => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(IpAddr::from(*frame.get(at..)?.first_chunk::<16>()?))
            };
            Some((address(22)?, address(38)?, port(54)?, port(56)?))
        }
        _ => None,
    }
}

/// MAC of a device in the calling thread's namespace.
pub fn mac_of(device: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-o", "link", "show", device]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let mut bytes = [0; 6];
    let mac = line.split("link/ether ").nth(1).unwrap();
    for (byte, text) in bytes.iter_mut().zip(mac.split([':', ' '])) {
        *byte = u8::from_str_radix(text, 16).unwrap();
    }
    bytes
}
