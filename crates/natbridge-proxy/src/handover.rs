//! Passing the reserved sockets from one holder to the next, without a gap.
//!
//! The new holder connects to the old one's control socket and sends `handOver`. The old answers
//! with its bindings and then sends their sockets by SCM_RIGHTS (unix(7)), [`BATCH`] at a time,
//! each batch with one byte of data per socket. For a moment both accept clients. When the new
//! holder has put its own control socket in place of the old one's, it sends `release`: the old
//! stops accepting, its open connections go on until they end or the new holder does. If the new
//! holder fails before `release`, the old one goes on as if nothing had been.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, bail};
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::Refusal;
use crate::protocol::{HandOver, Hello, PROTOCOL};
use crate::registry::Registry;

/// Sockets per message; the kernel takes at most 253 (SCM_MAX_FD).
const BATCH: usize = 128;

/// The answer to `handOver`, and the sockets that follow it.
pub fn offer(registry: &Registry) -> (Result<HandOver, Refusal>, Vec<OwnedFd>) {
    match registry.sockets() {
        Ok(held) => {
            let (bindings, sockets) = held.into_iter().unzip();
            (Ok(HandOver { bindings }), sockets)
        }
        Err(cause) => (Err(Refusal::system("copying the reserved sockets", &cause)), Vec::new()),
    }
}

/// Sends the sockets behind the answer.
///
/// # Errors
/// The other end is gone.
pub async fn send(stream: &UnixStream, sockets: &[OwnedFd]) -> io::Result<()> {
    for batch in sockets.chunks(BATCH) {
        let raw: Vec<RawFd> = batch.iter().map(AsRawFd::as_raw_fd).collect();
        let bytes = vec![0u8; batch.len()];
        let message = [ControlMessage::ScmRights(&raw)];
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let slices = [IoSlice::new(&bytes)];
                let to = None::<&SockaddrStorage>;
                Ok(sendmsg(stream.as_raw_fd(), &slices, &message, MsgFlags::empty(), to)?)
            })
            .await?;
        if sent != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// The holder that was taken over from, until it is released.
pub struct Predecessor {
    stream: UnixStream,
}

/// Takes the bindings of the holder that answers at `path` into `registry`.
///
/// # Errors
/// Nobody answers, it speaks another protocol, or a socket does not come over.
pub async fn adopt(path: &Path, registry: &Registry) -> anyhow::Result<Predecessor> {
    let stream = UnixStream::connect(path)
        .await
        .with_context(|| format!("reaching the holder at {}", path.display()))?;
    let predecessor = Predecessor { stream };
    let hello: Hello = predecessor.call(1, "hello").await?;
    if hello.protocol > PROTOCOL {
        bail!("the holder at {} is newer than this one ({})", path.display(), hello.version);
    }
    let offered: HandOver = predecessor.call(2, "handOver").await?;
    let sockets = predecessor.receive(offered.bindings.len()).await?;
    for (state, socket) in offered.bindings.iter().zip(sockets) {
        registry.adopt(state, socket).with_context(|| format!("taking over {}", state.spec.key))?;
    }
    Ok(predecessor)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Reply<T> {
    Result(T),
    Error(serde_json::Value),
}

#[derive(Deserialize)]
struct Line<T> {
    #[serde(flatten)]
    reply: Reply<T>,
}

impl Predecessor {
    /// The control socket is the new holder's now: the old one lets go of the ports.
    ///
    /// The connection stays open in the background: the old holder's open connections last no
    /// longer than the holder that replaced it.
    ///
    /// # Errors
    /// The old holder does not answer.
    pub async fn release(self) -> anyhow::Result<()> {
        let _: serde_json::Value = self.call(3, "release").await?;
        tokio::task::spawn_local(async move {
            let _ = self.line().await;
        });
        Ok(())
    }

    async fn call<T: DeserializeOwned>(&self, id: u64, method: &str) -> anyhow::Result<T> {
        let request = format!("{{\"id\":{id},\"method\":\"{method}\"}}\n");
        let mut rest = request.as_bytes();
        while !rest.is_empty() {
            self.stream.writable().await?;
            match self.stream.try_write(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        let line = self.line().await.with_context(|| format!("waiting for {method}"))?;
        let line: Line<T> =
            serde_json::from_slice(&line).with_context(|| format!("reading {method}"))?;
        match line.reply {
            Reply::Result(result) => Ok(result),
            Reply::Error(refusal) => bail!("the other holder refuses {method}: {refusal}"),
        }
    }

    /// One answer line, and not a byte more: file descriptors come right behind it.
    async fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let mut peeked = [0u8; 4096];
            let length = self.receive_into(&mut peeked, MsgFlags::MSG_PEEK).await?;
            let chunk = &peeked[..length];
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let take = end.map_or(length, |end| end + 1);
            let mut taken = vec![0u8; take];
            let taken_length = self.receive_into(&mut taken, MsgFlags::empty()).await?;
            line.extend_from_slice(&taken[..taken_length]);
            if line.last() == Some(&b'\n') {
                return Ok(line);
            }
        }
    }

    async fn receive_into(&self, buffer: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        let stream = &self.stream;
        let length = stream
            .async_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(&mut *buffer)];
                let message =
                    recvmsg::<SockaddrStorage>(stream.as_raw_fd(), &mut slices, None, flags)?;
                Ok(message.bytes)
            })
            .await?;
        if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) }
    }

    async fn receive(&self, count: usize) -> anyhow::Result<Vec<OwnedFd>> {
        let mut sockets = Vec::with_capacity(count);
        while sockets.len() < count {
            let batch = self.batch().await?;
            if batch.is_empty() {
                bail!("the other holder sent {} of {count} sockets", sockets.len());
            }
            sockets.extend(batch);
        }
        Ok(sockets)
    }

    async fn batch(&self) -> io::Result<Vec<OwnedFd>> {
        let stream = &self.stream;
        stream
            .async_io(Interest::READABLE, || {
                let mut bytes = [0u8; BATCH];
                let mut slices = [IoSliceMut::new(&mut bytes)];
                let mut control = cmsg_space!([RawFd; BATCH]);
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let control = Some(control.as_mut_slice());
                let message =
                    recvmsg::<SockaddrStorage>(stream.as_raw_fd(), &mut slices, control, flags)?;
                let mut sockets = Vec::new();
                for header in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = header {
                        // SAFETY: the kernel has just made these descriptors for this process, and
                        // nobody else knows of them.
                        sockets
                            .extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                Ok(sockets)
            })
            .await
    }
}
