//! All bindings, and changing them as a whole or not at all.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::binding::Binding;
use crate::error::{Refusal, RefusalKind};
use crate::limits::Limits;
use crate::protocol::{BindingSpec, BindingState, LimitsState, Reservation, Update};
use crate::reserve::reserve;

/// The bindings of this holder, by key.
pub struct Registry {
    bindings: RefCell<BTreeMap<String, Binding>>,
    limits: Rc<Limits>,
}

impl Registry {
    pub fn new(limits: Rc<Limits>) -> Self {
        Self { bindings: RefCell::default(), limits }
    }

    /// What may be open, and is.
    pub fn limits(&self) -> LimitsState {
        self.limits.state()
    }

    /// Every binding with its counters.
    pub fn list(&self) -> Vec<BindingState> {
        self.bindings.borrow().values().map(Binding::state).collect()
    }

    /// Adds, removes and retargets, or changes nothing. Never waits, so nobody sees half of it.
    ///
    /// # Errors
    /// The first binding that cannot be reserved, or a request that makes no sense.
    pub fn update(&self, update: Update) -> Result<(), Refusal> {
        let mut bindings = self.bindings.borrow_mut();
        check(&bindings, &update)?;
        let mut plan = Plan { bindings: &mut bindings, vacated: Vec::new(), limits: &self.limits };
        let added = match plan.reserve_all(&update) {
            Ok(added) => added,
            Err(refusal) => return Err(plan.undo(refusal)),
        };
        for key in &update.remove {
            bindings.remove(key);
        }
        for retarget in update.retarget {
            if let Some(binding) = bindings.get_mut(&retarget.key) {
                let target = SocketAddr::new(retarget.target_address, retarget.target_port);
                binding.retarget(target, retarget.from);
            }
        }
        for binding in added {
            bindings.insert(binding.spec().key.clone(), binding);
        }
        self.limits.set_reserved(bindings.len());
        Ok(())
    }

    /// Reserves all bindings on the first port of the range that is free for all of them.
    ///
    /// # Errors
    /// No port of the range is free, or a binding fails in another way.
    pub fn reserve(&self, reservation: &Reservation) -> Result<u16, Refusal> {
        let (first, last) = (reservation.first_port, reservation.last_port);
        let start = reservation.start_port.unwrap_or(first);
        if first == 0 || !(first..=last).contains(&start) {
            return Err(Refusal::invalid("firstPort, startPort and lastPort are no range"));
        }
        if reservation.bindings.is_empty() {
            return Err(Refusal::invalid("bindings is empty"));
        }
        for port in (start..=last).chain(first..start) {
            let add = reservation.bindings.iter().map(|candidate| candidate.at(port)).collect();
            match self.update(Update { add, ..Update::default() }) {
                Ok(()) => return Ok(port),
                Err(refusal) if refusal.kind == RefusalKind::AddressInUse => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal {
            kind: RefusalKind::AddressInUse,
            message: format!("no port from {first} to {last} is free"),
            key: None,
            errno: None,
        })
    }

    /// Takes over a socket that another holder reserved.
    ///
    /// # Errors
    /// The event loop does not take it.
    pub fn adopt(&self, state: &BindingState, socket: OwnedFd) -> std::io::Result<()> {
        let binding = Binding::start(state.spec.clone(), socket, &self.limits)?;
        binding.continue_counting(state);
        let mut bindings = self.bindings.borrow_mut();
        bindings.insert(state.spec.key.clone(), binding);
        self.limits.set_reserved(bindings.len());
        Ok(())
    }

    /// Copies of all reserved sockets with their bindings, in the same order.
    pub fn sockets(&self) -> std::io::Result<Vec<(BindingState, OwnedFd)>> {
        let bindings = self.bindings.borrow();
        let lent = bindings.values().filter_map(|binding| {
            let copy = binding.with_socket(|socket| socket.try_clone_to_owned())?;
            Some(copy.map(|copy| (binding.state(), copy)))
        });
        lent.collect()
    }

    /// Lets go of every reserved socket; open connections go on.
    pub fn release(&self) {
        for binding in self.bindings.borrow_mut().values_mut() {
            drop(binding.vacate());
        }
    }

    /// Gives every port up and resets what is forwarded.
    pub fn clear(&self) {
        self.bindings.borrow_mut().clear();
    }

    /// Connections and sessions open now.
    pub fn active(&self) -> u64 {
        self.bindings.borrow().values().map(Binding::active).sum()
    }
}

fn check(bindings: &BTreeMap<String, Binding>, update: &Update) -> Result<(), Refusal> {
    let removed: HashSet<&str> = update.remove.iter().map(String::as_str).collect();
    let mut added = HashSet::new();
    for spec in &update.add {
        let key = spec.key.as_str();
        if spec.host_port == 0 || spec.target_port == 0 {
            return Err(Refusal::invalid("ports are 1 to 65535").of(key));
        }
        if !added.insert(key) || (bindings.contains_key(key) && !removed.contains(key)) {
            return Err(Refusal::invalid(format!("there is a binding {key} already")).of(key));
        }
    }
    for retarget in &update.retarget {
        let key = retarget.key.as_str();
        if retarget.target_port == 0 {
            return Err(Refusal::invalid("ports are 1 to 65535").of(key));
        }
        if !bindings.contains_key(key) || removed.contains(key) {
            return Err(Refusal::invalid(format!("there is no binding {key} to retarget")).of(key));
        }
    }
    Ok(())
}

/// An update under way.
struct Plan<'a> {
    bindings: &'a mut BTreeMap<String, Binding>,
    /// Bindings to be removed whose sockets were taken already.
    vacated: Vec<String>,
    limits: &'a Rc<Limits>,
}

impl Plan<'_> {
    fn reserve_all(&mut self, update: &Update) -> Result<Vec<Binding>, Refusal> {
        let mut added = Vec::with_capacity(update.add.len());
        for spec in &update.add {
            let failed =
                |cause: std::io::Error| Refusal::system(&describe(spec), &cause).of(&spec.key);
            let socket = match reserve(spec.protocol, spec.host()) {
                Err(cause) if self.vacate_for(spec, &update.remove) => {
                    drop(cause);
                    reserve(spec.protocol, spec.host())
                }
                socket => socket,
            };
            let socket = socket.map_err(failed)?;
            added.push(Binding::start(spec.clone(), socket, self.limits).map_err(failed)?);
        }
        Ok(added)
    }

    /// Frees the port of `spec` from bindings that this update removes; false if none has it.
    fn vacate_for(&mut self, spec: &BindingSpec, removed: &[String]) -> bool {
        let mut freed = false;
        for key in removed {
            let Some(binding) = self.bindings.get_mut(key) else { continue };
            let other = binding.spec();
            if other.protocol != spec.protocol || other.host_port != spec.host_port {
                continue;
            }
            if binding.vacate().is_some() {
                self.vacated.push(key.clone());
                freed = true;
            }
        }
        freed
    }

    /// Reserves again what was vacated.
    fn undo(self, refusal: Refusal) -> Refusal {
        let mut refusal = refusal;
        for key in self.vacated {
            let Some(binding) = self.bindings.get_mut(&key) else { continue };
            let spec = binding.spec();
            let again = reserve(spec.protocol, spec.host());
            if let Err(cause) = again.and_then(|socket| binding.occupy(socket)) {
                refusal.message.push_str(&format!("; and {key} was lost: {cause}"));
            }
        }
        refusal
    }
}

fn describe(spec: &BindingSpec) -> String {
    let protocol = match spec.protocol {
        crate::protocol::Transport::Tcp => "tcp",
        crate::protocol::Transport::Udp => "udp",
        crate::protocol::Transport::Sctp => "sctp",
    };
    format!("reserving {}/{protocol}", spec.host())
}
