//! TCP and SCTP: accepting clients and connecting each to the target.
//!
//! SCTP sockets of the one-to-one style (RFC 6458 section 4) are listened on, accepted, read,
//! written and shut down with the same calls as TCP's, so the event loop's TCP types carry both. A
//! message of up to [`super::CHUNK`] bytes stays one message; stream numbers are not kept.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::is_exhaustion;
use super::relay::{Meter, relay};
use crate::binding::{Active, Shared, Slot};
use crate::pool::Place;
use crate::protocol::Transport;
use crate::reserve::open;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed for want of files or memory.
const BACKOFF: Duration = Duration::from_millis(100);
/// A client that is gone without a word is noticed after about 30 s + 9 × 15 s.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(15));

/// Accepts and serves clients until the socket is taken away.
pub async fn run(slot: Slot<TcpListener>, shared: Rc<Shared>, alive: watch::Receiver<()>) {
    loop {
        let accepted = poll_fn(|context| match slot.borrow().as_ref() {
            Some(listener) => listener.poll_accept(context).map(Some),
            None => Poll::Ready(None),
        });
        match accepted.await {
            None => return,
            Some(Ok((client, peer))) => {
                admit(client, peer, &shared, &alive);
                yield_now().await;
            }
            Some(Err(cause)) if is_of_the_client(&cause) => {}
            Some(Err(cause)) => {
                shared.counters.failed("accepting a client", &cause);
                shared.limits.relieve();
                sleep(BACKOFF).await;
            }
        }
    }
}

/// accept(2): the connection failed before it was accepted; the next one may do.
fn is_of_the_client(cause: &io::Error) -> bool {
    !is_exhaustion(cause) && cause.raw_os_error() != Some(Errno::EINVAL as i32)
}

/// Serves a client if it may use the binding and there is a place for it.
fn admit(client: TcpStream, peer: SocketAddr, shared: &Rc<Shared>, alive: &watch::Receiver<()>) {
    let allowed = client.local_addr().is_ok_and(|local| shared.allows(peer.ip(), local.ip()));
    if !allowed {
        return reset(&client);
    }
    let Some(place) = shared.limits.connections.enter(peer.ip().into(), shared.port) else {
        let cause = io::Error::from(io::ErrorKind::QuotaExceeded);
        shared.counters.failed("accepting a client", &cause);
        return reset(&client);
    };
    tokio::task::spawn_local(serve(client, Rc::clone(shared), alive.clone(), place));
}

async fn serve(client: TcpStream, shared: Rc<Shared>, alive: watch::Receiver<()>, place: Place) {
    let _active = Active::new(&shared);
    tune(&client, shared.protocol);
    let mut alive = alive;
    let removed = async move { while alive.changed().await.is_ok() {} };
    tokio::select! {
        () = forward(&client, &shared, &place) => {}
        () = removed => reset(&client),
        () = place.evicted() => reset(&client),
    }
}

async fn forward(client: &TcpStream, shared: &Shared, place: &Place) {
    let destination = shared.target.get();
    let target = match timeout(CONNECT_TIMEOUT, connect(shared.protocol, destination)).await {
        Ok(Ok(target)) => target,
        Ok(Err(cause)) => {
            if is_exhaustion(&cause) {
                shared.limits.relieve();
            }
            shared.counters.failed(format_args!("connecting to {destination}"), &cause);
            return reset(client);
        }
        Err(_) => {
            let cause = io::Error::from(io::ErrorKind::TimedOut);
            shared.counters.failed(format_args!("connecting to {destination}"), &cause);
            return reset(client);
        }
    };
    tune(&target, shared.protocol);
    // Dropped early, the connection to the target is reset too: its data is not whole.
    let guard = ResetUnlessDone { stream: &target, done: false };
    match relay(client, &target, &Meter { counters: &shared.counters, place }).await {
        Ok(()) => guard.done(),
        Err(_) => reset(client),
    }
}

struct ResetUnlessDone<'a> {
    stream: &'a TcpStream,
    done: bool,
}

impl ResetUnlessDone<'_> {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for ResetUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            reset(self.stream);
        }
    }
}

/// Connects without waiting for the event loop; with SCTP as with TCP.
async fn connect(protocol: Transport, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(protocol, target)?;
    match socket.connect(&target.into()) {
        Ok(()) => {}
        Err(cause) if cause.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(cause) => return Err(cause),
    }
    let stream = TcpStream::from_std(OwnedFd::from(socket).into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(cause) => Err(cause),
        None => Ok(stream),
    }
}

/// Sends small writes at once, and notices a peer that is gone. Neither is worth a failure.
fn tune(stream: &TcpStream, protocol: Transport) {
    let socket = SockRef::from(stream);
    if protocol == Transport::Tcp {
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_keepalive(&KEEPALIVE);
    }
}

/// Makes the close that follows a reset: the peer must not take what it got for all there is.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
