//! One reserved port: its socket, its target and its forwarder.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use ipnet::IpNet;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::forward::{stream, udp};
use crate::limits::Limits;
use crate::pool::Port;
use crate::protocol::{BindingSpec, BindingState, Transport};

/// A socket that can be taken away from its forwarder at once.
///
/// An aborted task drops what it owns only when it is polled again; the port must be free sooner.
pub type Slot<T> = Rc<RefCell<Option<T>>>;

enum Reserved {
    Stream(Slot<TcpListener>),
    Datagram(Slot<UdpSocket>),
}

/// What a binding's connections and sessions share with it.
pub struct Shared {
    /// Whom places are counted for.
    pub port: Port,
    pub protocol: Transport,
    pub target: Cell<SocketAddr>,
    pub from: RefCell<Vec<IpNet>>,
    pub limits: Rc<Limits>,
    pub counters: Counters,
}

/// What went through a binding.
#[derive(Default)]
pub struct Counters {
    pub connections: Cell<u64>,
    pub active: Cell<u64>,
    pub bytes: Cell<u64>,
    pub refused: Cell<u64>,
    pub last_error: RefCell<Option<String>>,
}

impl Counters {
    /// Payload that was carried on.
    pub fn carried(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().wrapping_add(bytes as u64));
    }

    /// A failure to forward, kept for `list`.
    pub fn failed(&self, doing: impl std::fmt::Display, cause: &io::Error) {
        *self.last_error.borrow_mut() = Some(format!("{doing}: {cause}"));
    }
}

/// Counts a connection or session as active while it lives.
pub struct Active(Rc<Shared>);

impl Active {
    pub fn new(shared: &Rc<Shared>) -> Self {
        let counters = &shared.counters;
        counters.connections.set(counters.connections.get() + 1);
        counters.active.set(counters.active.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let active = &self.0.counters.active;
        active.set(active.get().saturating_sub(1));
    }
}

impl Shared {
    /// Whether `client`, who sent to `local`, may use the binding. This host's own clients always
    /// may: they come from loopback, or from the very address they send to.
    pub fn allows(&self, client: IpAddr, local: IpAddr) -> bool {
        let from = self.from.borrow();
        let allowed = from.is_empty()
            || client.is_loopback()
            || client == local
            || from.iter().any(|subnet| subnet.contains(&client));
        if !allowed {
            self.counters.refused.set(self.counters.refused.get() + 1);
        }
        allowed
    }
}

/// A reserved port with its running forwarder. Dropping it closes the socket and resets what it
/// forwards.
pub struct Binding {
    spec: BindingSpec,
    reserved: Reserved,
    shared: Rc<Shared>,
    /// Its receivers, the connections, end when it is dropped.
    alive: watch::Sender<()>,
    forwarder: AbortHandle,
}

impl Binding {
    /// Starts forwarding what reaches `socket`.
    ///
    /// # Errors
    /// The event loop does not take the socket.
    pub fn start(spec: BindingSpec, socket: OwnedFd, limits: &Rc<Limits>) -> io::Result<Self> {
        let shared = Rc::new(Shared {
            port: next_port(),
            protocol: spec.protocol,
            target: Cell::new(spec.target()),
            from: RefCell::new(spec.from.clone()),
            limits: Rc::clone(limits),
            counters: Counters::default(),
        });
        let alive = watch::Sender::new(());
        let (reserved, forwarder) = forward(socket, &shared, &alive)?;
        Ok(Self { spec, reserved, shared, alive, forwarder })
    }

    pub fn spec(&self) -> &BindingSpec {
        &self.spec
    }

    /// Goes on counting where a former holder stopped.
    pub fn continue_counting(&self, state: &BindingState) {
        self.shared.counters.connections.set(state.connections);
        self.shared.counters.bytes.set(state.bytes);
        self.shared.counters.refused.set(state.refused);
    }

    /// What is forwarded now.
    pub fn state(&self) -> BindingState {
        let counters = &self.shared.counters;
        BindingState {
            spec: self.spec.clone(),
            connections: counters.connections.get(),
            active: counters.active.get(),
            bytes: counters.bytes.get(),
            refused: counters.refused.get(),
            last_error: counters.last_error.borrow().clone(),
        }
    }

    /// Sends new connections elsewhere; those that are open finish on the old target. Datagrams have
    /// no connection to finish: sessions move at once, as their conntrack entries do.
    pub fn retarget(&mut self, target: SocketAddr, from: Option<Vec<IpNet>>) {
        let moved = self.spec.target() != target;
        self.spec.target_address = target.ip();
        self.spec.target_port = target.port();
        if let Some(from) = from {
            self.spec.from.clone_from(&from);
            *self.shared.from.borrow_mut() = from;
        }
        self.shared.target.set(target);
        if moved && self.spec.protocol == Transport::Udp {
            self.end_connections();
        }
    }

    /// Resets what is forwarded now and goes on with new connections.
    fn end_connections(&mut self) {
        let Some(socket) = self.vacate() else { return };
        if let Err(cause) = self.occupy(socket) {
            self.shared.counters.failed("restarting the forwarder", &cause);
        }
    }

    /// Takes the reserved socket away; open connections go on. `None` if it is vacant already.
    pub fn vacate(&mut self) -> Option<OwnedFd> {
        self.forwarder.abort();
        let socket = match &self.reserved {
            Reserved::Stream(slot) => slot.take().map(|it| it.into_std().map(OwnedFd::from)),
            Reserved::Datagram(slot) => {
                // Sessions answer through this socket: they end with it.
                self.alive = watch::Sender::new(());
                slot.take().map(|it| it.into_std().map(OwnedFd::from))
            }
        };
        socket?.ok()
    }

    /// Forwards what reaches `socket`, after [`Self::vacate`].
    ///
    /// # Errors
    /// The event loop does not take the socket.
    pub fn occupy(&mut self, socket: OwnedFd) -> io::Result<()> {
        (self.reserved, self.forwarder) = forward(socket, &self.shared, &self.alive)?;
        Ok(())
    }

    /// Lends the reserved socket, unless it is vacant.
    pub fn with_socket<T>(&self, lend: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        match &self.reserved {
            Reserved::Stream(slot) => slot.borrow().as_ref().map(|it| lend(it.as_fd())),
            Reserved::Datagram(slot) => slot.borrow().as_ref().map(|it| lend(it.as_fd())),
        }
    }

    /// Connections open now.
    pub fn active(&self) -> u64 {
        self.shared.counters.active.get()
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.vacate();
    }
}

/// A number that no other binding has or had.
fn next_port() -> Port {
    thread_local!(static NEXT: Cell<Port> = const { Cell::new(0) });
    NEXT.with(|next| next.replace(next.get() + 1))
}

fn forward(
    socket: OwnedFd,
    shared: &Rc<Shared>,
    alive: &watch::Sender<()>,
) -> io::Result<(Reserved, AbortHandle)> {
    let alive = alive.subscribe();
    let shared = Rc::clone(shared);
    if shared.protocol == Transport::Udp {
        let slot = Rc::new(RefCell::new(Some(UdpSocket::from_std(socket.into())?)));
        let forwarder = tokio::task::spawn_local(udp::run(Rc::clone(&slot), shared));
        return Ok((Reserved::Datagram(slot), forwarder.abort_handle()));
    }
    let slot = Rc::new(RefCell::new(Some(TcpListener::from_std(socket.into())?)));
    let forwarder = tokio::task::spawn_local(stream::run(Rc::clone(&slot), shared, alive));
    Ok((Reserved::Stream(slot), forwarder.abort_handle()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_in_the_subnets_of_from_and_the_host_itself() {
        let shared = Shared {
            port: 0,
            protocol: Transport::Tcp,
            target: Cell::new(SocketAddr::from(([127, 0, 0, 1], 1))),
            from: RefCell::new(vec!["198.51.100.0/24".parse().expect("a subnet")]),
            limits: Rc::new(Limits::new(64)),
            counters: Counters::default(),
        };
        for (client, local, allowed) in [
            ("198.51.100.7", "203.0.113.1", true),
            ("198.51.101.7", "203.0.113.1", false),
            ("2001:db8::7", "2001:db8::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("::1", "::1", true),
            ("203.0.113.1", "203.0.113.1", true),
        ] {
            let (client, local) =
                (client.parse().expect("an address"), local.parse().expect("an address"));
            assert_eq!(shared.allows(client, local), allowed, "{client}");
        }
        assert_eq!(shared.counters.refused.get(), 2);
        shared.from.borrow_mut().clear();
        assert!(shared.allows(IpAddr::from([9, 9, 9, 9]), IpAddr::from([8, 8, 8, 8])));
    }
}
