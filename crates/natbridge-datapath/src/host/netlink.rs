//! A synchronous netlink socket: one request, its answers, its acknowledgement.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::nla::Attributes;
use crate::{Error, ErrorKind, Result, error::Context};

const HEADER: usize = 16;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel answers a dump in messages of at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// Requests are answered within the system call; this only ends a wait for a lost answer.
const TIMEOUT_SECONDS: i64 = 10;
/// A dump is repeated when the kernel says that the table changed under it.
const DUMP_TRIES: usize = 8;

/// A message of the kernel: type, flags and what follows the netlink header.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// Splits what one `recv` gave into messages; ends at the first that does not fit.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get((length + 3) & !3..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    })
}

/// Bursts of thousands of messages must not overrun the socket.
const NOTIFICATION_BUFFER: usize = 8 * 1024 * 1024;

/// A socket that hears the notifications of these groups, and never blocks.
///
/// # Errors
/// `denied` without the privilege to listen, `unsupported` if the kernel lacks the protocol.
pub fn subscribe(protocol: isize, groups: &[u32]) -> Result<Socket> {
    let mut socket = Socket::new(protocol).context("opening a netlink socket")?;
    socket.bind_auto().context("binding a netlink socket")?;
    socket.set_non_blocking(true).context("setting up a netlink socket")?;
    // Root may exceed net.core.rmem_max; the plain call is for whoever may not.
    if setsockopt(&socket, sockopt::RcvBufForce, &NOTIFICATION_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &NOTIFICATION_BUFFER);
    }
    for group in groups {
        socket.add_membership(*group).context("subscribing to netlink notifications")?;
    }
    Ok(socket)
}

/// A netlink socket of the namespace that the calling thread is in when it is opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for `protocol` (`NETLINK_ROUTE` …) with extended acknowledgements.
    ///
    /// # Errors
    /// `unsupported` if the kernel lacks the protocol.
    pub fn open(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol).context("opening a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        // Both make errors readable and nothing else, so a kernel without them will do.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))
            .context("setting a netlink socket's timeout")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// SO_NETNS_COOKIE of the socket's namespace; `None` where the kernel has none (before 5.14).
    pub fn namespace_cookie(&self) -> Result<Option<u64>> {
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: both pointers are to live values of the sizes given.
        let failed = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                std::ptr::from_mut(&mut cookie).cast(),
                &raw mut length,
            )
        };
        if failed == 0 {
            return Ok(Some(cookie));
        }
        match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            error => Err(error).context("asking for the namespace's cookie"),
        }
    }

    /// Sends a request and waits for its acknowledgement.
    ///
    /// # Errors
    /// What the kernel says, in its own words where it gives them.
    pub fn execute(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, payload)?;
        self.receive(|_| {}).map(|_| ())
    }

    /// Sends a request for one object and hands each message of the answer to `each`.
    ///
    /// # Errors
    /// `not_found` if there is no such object.
    pub fn get(&mut self, kind: u16, payload: &[u8], each: impl FnMut(Message<'_>)) -> Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, payload)?;
        self.receive(each).map(|_| ())
    }

    /// Dumps a table: `parse` picks what is wanted of each message.
    ///
    /// # Errors
    /// `busy` if the table never stood still.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut parse: impl FnMut(Message<'_>) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut items = Vec::new();
            let mut failure = None;
            self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
            let interrupted = self.receive(|message| match parse(message) {
                Ok(item) => items.extend(item),
                Err(error) => failure = failure.take().or(Some(error)),
            })?;
            if let Some(error) = failure {
                return Err(error);
            }
            if !interrupted {
                return Ok(items);
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            "the kernel's table changed during every attempt to read it",
        ))
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + payload.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&(length as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(payload);
        self.socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .context("sending a netlink request")?;
        Ok(())
    }

    /// Reads up to the acknowledgement; true if the kernel says that a dump was interrupted.
    fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<bool> {
        let mut interrupted = false;
        loop {
            let mut bytes = Vec::with_capacity(BUFFER);
            let (_, sender) =
                self.socket.recv_from(&mut bytes, 0).context("waiting for a netlink answer")?;
            if sender.port_number() != 0 {
                continue;
            }
            for message in messages(&bytes) {
                // Left over from a request that ended in an error.
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        return verdict(message).map(|()| interrupted);
                    }
                    _ => each(message),
                }
            }
        }
    }
}

/// Turns NLMSG_ERROR or NLMSG_DONE into a result; both begin with a negative errno.
fn verdict(message: Message<'_>) -> Result<()> {
    let errno = message.payload.first_chunk().map_or(0, |bytes| -i32::from_ne_bytes(*bytes));
    if errno == 0 {
        return Ok(());
    }
    let kind = ErrorKind::from_errno(errno);
    let cause = std::io::Error::from_raw_os_error(errno);
    let text = match extended(message) {
        Some(words) => format!("{words} ({cause})"),
        None => cause.to_string(),
    };
    Err(Error::new(kind, text))
}

/// The sentence of an extended acknowledgement (Documentation/userspace-api/netlink/intro.rst).
fn extended(message: Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let start = if message.kind == NLMSG_DONE {
        size_of::<libc::c_int>()
    } else if message.flags & NLM_F_CAPPED != 0 {
        size_of::<libc::c_int>() + HEADER
    } else {
        let echoed = u32::from_ne_bytes(*message.payload.get(4..)?.first_chunk()?) as usize;
        size_of::<libc::c_int>() + ((echoed + 3) & !3)
    };
    Attributes::after(message.payload, start).find(NLMSGERR_ATTR_MSG).map(|words| words.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: u32) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; 12]);
        bytes
    }

    #[test]
    fn a_message_longer_than_its_buffer_is_not_read() {
        assert_eq!(messages(&header(17)).count(), 0);
        assert_eq!(messages(&header(0)).count(), 0);
        assert_eq!(messages(&header(15)).count(), 0);
        assert_eq!(messages(&header(16)).count(), 1);
        assert_eq!(messages(&header(16)[..15]).count(), 0);
    }

    #[test]
    fn an_error_carries_the_kernels_words() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; HEADER]);
        super::super::nla::push(&mut payload, NLMSGERR_ATTR_MSG, b"Invalid gateway\0");
        let message = Message {
            kind: NLMSG_ERROR,
            flags: NLM_F_CAPPED | NLM_F_ACK_TLVS,
            sequence: 1,
            payload: &payload,
        };
        let error = verdict(message).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().starts_with("Invalid gateway ("), "{error}");
    }
}
