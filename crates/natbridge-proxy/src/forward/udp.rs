//! UDP: sessions between clients and the target.
//!
//! A session is a client's address and the local address it sent to; it has a socket of its own to
//! the target, so that answers find their client. Answers leave from the very address the client
//! sent to. Sessions whose target never answered are kept apart and are fewer: a flood with forged
//! sources pushes out only its like.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use lru::LruCache;
use nix::errno::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use super::{is_exhaustion, with_buffer};
use crate::binding::{Active, Shared, Slot};
use crate::pool::Place;
use crate::protocol::Transport;
use crate::reserve::open;

mod datagram;
use datagram::{Received, Via};

/// As docker-proxy, and shorter than conntrack's 120 s for a UDP stream.
const IDLE: Duration = Duration::from_secs(90);
const UNANSWERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const ANSWERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Datagrams of one socket before the others get their turn.
const TURN: u32 = 32;
const BACKOFF: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddr,
    local: IpAddr,
}

/// In the table; dropping it ends the session's task.
struct Session {
    socket: Rc<UdpSocket>,
    place: Rc<Place>,
    task: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Table {
    unanswered: LruCache<Key, Session>,
    answered: LruCache<Key, Session>,
}

impl Table {
    fn get(&mut self, key: &Key) -> Option<&Session> {
        if self.answered.contains(key) { self.answered.get(key) } else { self.unanswered.get(key) }
    }

    fn promote(&mut self, key: &Key) {
        if let Some(session) = self.unanswered.pop(key) {
            self.answered.put(*key, session);
        }
    }

    fn remove(&mut self, key: &Key) {
        self.unanswered.pop(key);
        self.answered.pop(key);
    }
}

/// All that the tasks of one binding share.
struct Forwarder {
    slot: Slot<UdpSocket>,
    shared: Rc<Shared>,
    table: RefCell<Table>,
}

/// Ends all sessions when the binding's task ends or is aborted: their tasks hold the table too.
struct ClearOnDrop(Rc<Forwarder>);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        let mut table = self.0.table.borrow_mut();
        table.unanswered.clear();
        table.answered.clear();
    }
}

/// Receives and forwards until the socket is taken away.
pub async fn run(slot: Slot<UdpSocket>, shared: Rc<Shared>) {
    let table =
        RefCell::new(Table { unanswered: LruCache::unbounded(), answered: LruCache::unbounded() });
    let forwarder = Rc::new(Forwarder { slot, shared, table });
    let _clear = ClearOnDrop(Rc::clone(&forwarder));
    let mut turn = 0;
    loop {
        let received = poll_fn(|context| {
            let slot = forwarder.slot.borrow();
            let Some(socket) = slot.as_ref() else { return Poll::Ready(None) };
            if let Err(cause) = ready!(socket.poll_recv_ready(context)) {
                return Poll::Ready(Some(Err(cause)));
            }
            Poll::Ready(Some(forward_one(&forwarder, socket)))
        });
        match received.await {
            None => return,
            Some(Err(cause)) if is_passing(&cause) => {}
            Some(Err(cause)) => {
                forwarder.shared.counters.failed("receiving", &cause);
                sleep(BACKOFF).await;
            }
            Some(Ok(())) => {}
        }
        turn += 1;
        if turn % TURN == 0 {
            yield_now().await;
        }
    }
}

/// Nothing there after all, or an ICMP error that somebody sent.
fn is_passing(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::WouldBlock || is_icmp(cause)
}

/// Errors that an ICMP message leaves on a UDP socket (ip(7)).
fn is_icmp(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EMSGSIZE
                | Errno::ENOPROTOOPT
                | Errno::EPROTO
                | Errno::EACCES
        )
    )
}

fn forward_one(forwarder: &Rc<Forwarder>, socket: &UdpSocket) -> io::Result<()> {
    with_buffer(|buffer| {
        let Received { length, client, via } =
            socket.try_io(Interest::READABLE, || datagram::receive(socket, buffer))?;
        let key = Key { client, local: via.local() };
        let Some(outgoing) = session(forwarder, key, via) else { return Ok(()) };
        let payload = &buffer[..length];
        let counters = &forwarder.shared.counters;
        // An error here may be the ICMP answer to the datagram before: this one is still due.
        let sent = match SockRef::from(&*outgoing).send(payload) {
            Err(cause) if is_icmp(&cause) => SockRef::from(&*outgoing).send(payload),
            sent => sent,
        };
        match sent {
            Ok(sent) => counters.carried(sent),
            Err(cause) => counters.failed("sending to the target", &cause),
        }
        Ok(())
    })
}

/// The socket of the client's session, a new one if need be; `None` if it may not have one.
fn session(forwarder: &Rc<Forwarder>, key: Key, via: Via) -> Option<Rc<UdpSocket>> {
    if let Some(session) = forwarder.table.borrow_mut().get(&key) {
        session.place.touch();
        return Some(Rc::clone(&session.socket));
    }
    let shared = &forwarder.shared;
    if !shared.allows(key.client.ip(), key.local) {
        return None;
    }
    let Some(place) = shared.limits.sessions.enter(key.client.ip().into(), shared.port) else {
        let cause = io::Error::from(io::ErrorKind::QuotaExceeded);
        shared.counters.failed("opening a session", &cause);
        return None;
    };
    let socket = match connect(shared.target.get()) {
        Ok(socket) => Rc::new(socket),
        Err(cause) => {
            if is_exhaustion(&cause) {
                shared.limits.relieve();
            }
            shared.counters.failed("opening a session", &cause);
            return None;
        }
    };
    let place = Rc::new(place);
    let task = tokio::task::spawn_local(answers(
        Rc::clone(forwarder),
        Answers { key, via, socket: Rc::clone(&socket), place: Rc::clone(&place) },
    ));
    let session = Session { socket: Rc::clone(&socket), place, task: task.abort_handle() };
    let mut table = forwarder.table.borrow_mut();
    while table.unanswered.len() >= UNANSWERED.get() {
        table.unanswered.pop_lru();
    }
    table.unanswered.put(key, session);
    Some(socket)
}

fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(Transport::Udp, target)?;
    socket.connect(&target.into())?;
    UdpSocket::from_std(OwnedFd::from(socket).into())
}

struct Answers {
    key: Key,
    via: Via,
    socket: Rc<UdpSocket>,
    place: Rc<Place>,
}

/// Carries the target's answers back until the session was idle for [`IDLE`], or must go for another.
async fn answers(forwarder: Rc<Forwarder>, session: Answers) {
    let _active = Active::new(&forwarder.shared);
    let mut answered = false;
    let mut turn = 0;
    while let Some(ready) = readable(&session).await {
        let result = ready.and_then(|()| answer(&forwarder, &session));
        match result {
            Ok(()) if !answered => {
                answered = true;
                let mut table = forwarder.table.borrow_mut();
                while table.answered.len() >= ANSWERED.get() {
                    table.answered.pop_lru();
                }
                table.promote(&session.key);
            }
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => continue,
            Err(cause) => {
                forwarder.shared.counters.failed("carrying an answer", &cause);
                if !is_icmp(&cause) {
                    break;
                }
            }
        }
        turn += 1;
        if turn % TURN == 0 {
            yield_now().await;
        }
    }
    forwarder.table.borrow_mut().remove(&session.key);
}

/// `None` when the session was idle for too long, or its place is another's.
async fn readable(session: &Answers) -> Option<io::Result<()>> {
    loop {
        let end = session.place.last() + IDLE;
        let ready = tokio::select! {
            ready = timeout_at(end, session.socket.readable()) => ready,
            () = session.place.evicted() => return None,
        };
        match ready {
            Ok(ready) => return Some(ready),
            Err(_) if session.place.last() + IDLE > Instant::now() => {}
            Err(_) => return None,
        }
    }
}

fn answer(forwarder: &Forwarder, session: &Answers) -> io::Result<()> {
    with_buffer(|buffer| {
        let length = session.socket.try_recv(buffer)?;
        session.place.touch();
        let slot = forwarder.slot.borrow();
        let Some(socket) = slot.as_ref() else { return Ok(()) };
        match datagram::send(socket, &buffer[..length], session.key.client, &session.via) {
            // UDP may lose it.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => forwarder.shared.counters.failed("answering a client", &cause),
            Ok(()) => forwarder.shared.counters.carried(length),
        }
        Ok(())
    })
}
