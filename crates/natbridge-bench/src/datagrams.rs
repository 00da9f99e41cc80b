//! Small UDP packets, many at a time by sendmmsg(2) and recvmmsg(2).

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use socket2::SockRef;

/// Bytes of payload.
const PAYLOAD: usize = 64;
/// Messages per system call.
const BATCH: usize = 64;
/// One of so many packets is answered, so that conntrack sees a flow with two directions.
const ANSWER_EVERY: u64 = 4096;
const RECEIVE_BUFFER: usize = 8 << 20;

/// Buffers and headers of one batch.
struct Batch {
    payloads: Vec<[u8; PAYLOAD]>,
}

impl Batch {
    fn new() -> Self {
        Self { payloads: vec![[0; PAYLOAD]; BATCH] }
    }

    /// Makes headers for the payloads and lends them to one system call.
    fn with_headers<T>(&mut self, call: impl FnOnce(&mut [libc::mmsghdr]) -> T) -> T {
        let mut slices: Vec<libc::iovec> = self
            .payloads
            .iter_mut()
            .map(|payload| libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: PAYLOAD })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = slices
            .iter_mut()
            .map(|slice| {
                // SAFETY: a header of zeroes is valid: no address, no control data, no slices.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = slice;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        call(&mut headers)
    }
}

/// Sends as fast as it goes until the time is over.
pub fn send(address: SocketAddr, time: Duration) -> anyhow::Result<String> {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address).with_context(|| format!("connecting to {address}"))?;
    let mut batch = Batch::new();
    let (mut sent, mut refused) = (0u64, 0u64);
    let begin = Instant::now();
    while begin.elapsed() < time {
        for (number, payload) in batch.payloads.iter_mut().enumerate() {
            payload[..8].copy_from_slice(&(sent + number as u64).to_le_bytes());
        }
        let done = batch.with_headers(|headers| {
            // SAFETY: the headers and all they point to live until the call returns.
            let done = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), BATCH as u32, 0)
            };
            Errno::result(done)
        });
        match done {
            Ok(done) => sent += done.unsigned_abs() as u64,
            Err(_) => refused += 1,
        }
        if sent == BATCH as u64 {
            // Lets the answer to the first packets come back: from then on the flow is established.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(format!(r#"{{"sent":{sent},"refused":{refused}}}"#))
}

/// Counts what arrives in `time` after the first packet.
pub fn receive(address: SocketAddr, time: Duration) -> anyhow::Result<String> {
    let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}"))?;
    // Beyond net.core.rmem_max only if privileged; the default will do otherwise.
    let _ = nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::RcvBufForce,
        &RECEIVE_BUFFER,
    );
    let patience = Duration::from_secs(10);
    SockRef::from(&socket).set_read_timeout(Some(patience))?;
    let mut first = [0; PAYLOAD];
    let (_, client) = socket.recv_from(&mut first).context("no packet arrived")?;
    socket.send_to(&first, client)?;
    SockRef::from(&socket).set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut batch = Batch::new();
    let mut received = 1u64;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let Ok(done) = receive_batch(&socket, &mut batch) else { continue };
        let before = received;
        received += done;
        if before / ANSWER_EVERY != received / ANSWER_EVERY {
            // Lost answers change nothing.
            let _ = socket.send_to(&first, client);
        }
    }
    let per_second = received as f64 / begin.elapsed().as_secs_f64();
    Ok(format!(r#"{{"received":{received},"perSecond":{per_second:.1}}}"#))
}

fn receive_batch(socket: &UdpSocket, batch: &mut Batch) -> nix::Result<u64> {
    batch.with_headers(|headers| {
        // SAFETY: the headers and all they point to live until the call returns; no timeout is
        // given.
        let done = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        Errno::result(done).map(|done| done.unsigned_abs() as u64)
    })
}
