//! Serving the control protocol ([`crate::protocol`]).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::error::Refusal;
use crate::handover;
use crate::protocol::{
    Answer, Hello, Listing, MAX_LINE, Method, Outcome, PROTOCOL, Request, Reserved, VERSION,
};
use crate::registry::Registry;

/// How often a holder that was taken over from looks whether its last connection is closed.
const DRAIN_LOOK: Duration = Duration::from_millis(500);
const BACKOFF: Duration = Duration::from_millis(100);

/// The control socket; its file is removed when the holder ends, if it is still the same.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Listens at `path` with mode 0600. `replace` takes the place of a holder that is handing over, in
/// one step; otherwise a holder that answers there is an error.
///
/// # Errors
/// Somebody answers there, or the socket cannot be made.
pub async fn listen(path: &Path, replace: bool) -> anyhow::Result<ControlSocket> {
    if !replace && StdStream::connect(path).is_ok() {
        bail!("another holder answers at {}: use --adopt to take over from it", path.display());
    }
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(&temporary);
    umask(before);
    let listener = bound.with_context(|| format!("listening at {}", temporary.display()))?;
    let identity = identity(&temporary)?;
    fs::rename(&temporary, path)
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("moving the control socket to {}", path.display()))?;
    Ok(ControlSocket { listener, path: path.to_owned(), identity })
}

/// What control connections tell the server.
#[derive(Default)]
struct Ending {
    shutdown: Notify,
    released: Notify,
}

/// Serves until told to end, then gives everything up.
///
/// # Errors
/// Signals cannot be handled.
pub async fn serve(socket: ControlSocket, registry: Rc<Registry>) -> anyhow::Result<()> {
    let ending = Rc::new(Ending::default());
    let mut terminate = signal(SignalKind::terminate())?;
    // The daemon's terminal is none of ours.
    let _hangup = signal(SignalKind::hangup())?;
    let _interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(attend(stream, Rc::clone(&registry), Rc::clone(&ending)));
                }
                Err(_) => sleep(BACKOFF).await,
            },
            () = ending.shutdown.notified() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = ending.released.notified() => break,
        }
    }
    // Another holder has the ports and, by its own file, the control socket.
    drop(socket);
    loop {
        tokio::select! {
            () = sleep(DRAIN_LOOK) => if registry.active() == 0 { return Ok(()) },
            () = ending.shutdown.notified() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// Answers the requests of one control connection, in order.
async fn attend(stream: UnixStream, registry: Rc<Registry>, ending: Rc<Ending>) {
    let (reader, writer) = stream.into_split();
    let mut connection = Connection { reader: BufReader::new(reader), writer, released: false };
    // A client that is gone ends its connection, nothing else.
    let _ = connection.attend(&registry, &ending).await;
    if connection.released {
        // The holder that took over is gone, and with it whoever could end our connections.
        ending.shutdown.notify_one();
    }
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    released: bool,
}

impl Connection {
    async fn attend(&mut self, registry: &Registry, ending: &Ending) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = MAX_LINE as u64;
            let length = (&mut self.reader).take(limit).read_until(b'\n', &mut line).await?;
            if length == 0 {
                return Ok(());
            }
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => self.perform(request, registry, ending).await?,
                Err(mistake) => {
                    let refusal = Refusal::invalid(format!("no request: {mistake}"));
                    self.answer::<()>(id_of(&line), Err(refusal)).await?;
                }
            }
            // Behind an overlong line nothing can be made out.
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            line.shrink_to(64 << 10);
        }
    }

    async fn perform(
        &mut self,
        request: Request,
        registry: &Registry,
        ending: &Ending,
    ) -> io::Result<()> {
        let id = request.id;
        match request.method {
            Method::Hello => {
                let pid = std::process::id();
                let hello = Hello { protocol: PROTOCOL, version: VERSION.to_owned(), pid };
                self.answer(id, Ok(hello)).await
            }
            Method::List => {
                let listing = Listing { bindings: registry.list(), limits: registry.limits() };
                self.answer(id, Ok(listing)).await
            }
            Method::Update(update) => {
                self.answer(id, registry.update(update).map(|()| Empty {})).await
            }
            Method::Reserve(reservation) => {
                let reserved = registry.reserve(&reservation);
                self.answer(id, reserved.map(|host_port| Reserved { host_port })).await
            }
            Method::HandOver => {
                let (answer, sockets) = handover::offer(registry);
                self.answer(id, answer).await?;
                handover::send(self.writer.as_ref(), &sockets).await
            }
            Method::Release => {
                registry.release();
                self.released = true;
                ending.released.notify_one();
                self.answer(id, Ok(Empty {})).await
            }
            Method::Shutdown => {
                registry.clear();
                let answered = self.answer(id, Ok(Empty {})).await;
                ending.shutdown.notify_one();
                answered
            }
        }
    }

    async fn answer<T: Serialize>(
        &mut self,
        id: u64,
        result: Result<T, Refusal>,
    ) -> io::Result<()> {
        let outcome = match result {
            Ok(result) => Outcome::Result(result),
            Err(refusal) => Outcome::Error(refusal),
        };
        let mut line = serde_json::to_vec(&Answer { id, outcome })?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }
}

#[derive(Serialize)]
struct Empty {}

/// The id of a request that is wrong otherwise; 0 if it has none.
fn id_of(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line)
        .ok()
        .and_then(|request| request.get("id")?.as_u64())
        .unwrap_or(0)
}
