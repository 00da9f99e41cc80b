//! Sockets that the connect hooks have sent to a target, when that is untrue: UDP is connected
//! anew, and what can't be is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use libbpf_rs::{Iter, Link, Object, ObjectBuilder};
use nix::libc;

use super::FastPath;
use super::abi::{
    ABI, bytes_of, nb_address, nb_address_kind, nb_port, nb_port_key, nb_socket, value_of,
};
use super::messages;
use super::namespace::host_namespace;
use super::pins::Pins;
use super::port::{ObjectId, TransportProtocol};
use super::switches::Switches;
use super::table::Table;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::host::{SocketId, SocketProtocol, can_end_sockets, end_socket, reconnect};

#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o")));

/// As often as sockets are looked for again, while there are some to end.
const ROUNDS: usize = 16;
/// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;

/// What there is by now.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Published ports, under whatever number and with whatever target.
    pub ports: BTreeSet<ObjectId>,
    /// Endpoints.
    pub endpoints: BTreeSet<ObjectId>,
}

/// What was done about sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// UDP sockets that were connected to what they had asked for anew.
    pub followed: u32,
    pub ended: u32,
}

/// Lists the sockets the hooks have sent somewhere.
#[derive(Debug)]
pub struct SocketList {
    // The link keeps the program; the object is what it came from.
    link: Link,
    _object: Object,
}

impl SocketList {
    /// Loads the listing program for the hooks' pinned memory.
    ///
    /// # Errors
    /// `unsupported` if this kernel can't list such sockets, or not end them.
    pub fn load(pins: &Pins) -> Result<Self> {
        if !can_end_sockets() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this kernel can't end other processes' sockets (CONFIG_INET_DIAG_DESTROY)",
            ));
        }
        let peers = pins.open_map("peers")?;
        let mut open = ObjectBuilder::default()
            .name("natbridge_sockets")
            .and_then(|builder| builder.open_memory(&OBJECT.0))
            .context("opening the eBPF object that lists sockets")?;
        for mut map in open.maps_mut() {
            if map.name() == "peers" {
                map.reuse_fd(peers.as_fd()).context("sharing map peers")?;
            }
        }
        messages::collect();
        let object = open.load().map_err(|cause| {
            let text = format!("this kernel can't list sockets by eBPF: {cause:#}");
            Error::new(ErrorKind::Unsupported, format!("{text}\n{}", messages::take()))
        })?;
        let program = object.progs_mut().next();
        let program = program.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the eBPF object that lists sockets has no program")
        })?;
        let link = program.attach_iter(peers.as_fd()).context("attaching nb_sockets")?;
        Ok(Self { link, _object: object })
    }

    fn read(&self) -> Result<Vec<nb_socket>> {
        let mut bytes = Vec::new();
        let mut list = Iter::new(&self.link).context("listing sockets")?;
        list.read_to_end(&mut bytes).context("listing sockets")?;
        Ok(bytes.chunks_exact(size_of::<nb_socket>()).map(value_of).collect())
    }
}

impl FastPath {
    /// Why the connect hooks must stay off: what they do could not be undone.
    pub fn connect_hook_hindrance(&self) -> Option<String> {
        self.sockets.as_ref().err().map(ToString::to_string)
    }

    /// Settles every socket of this namespace whose target the hooks would not give it again, by
    /// the rules of conntrack entries: a TCP connection finishes where it is as long as its port
    /// and its endpoint are there, and is ended then; UDP has nothing to finish and follows.
    ///
    /// # Errors
    /// The first socket's that could not be ended, after all others are; or the kernel's.
    pub fn settle_sockets(&self, standing: &Standing) -> Result<Settled> {
        // Without the list the hooks have been off for as long as they are loaded.
        let Ok(list) = &self.sockets else { return Ok(Settled::default()) };
        // What the hooks go by is read before the sockets each time: a socket that is younger must
        // not be judged by what is older.
        settle(list, Some(standing), || {
            let _changing = self.lock();
            Hook::read(&self.switches, &self.ports, &self.local_addresses)
        })
    }
}

/// Settles the sockets of an instance whose connect hooks are about to go, and turns these off: UDP
/// is connected anew, past them; TCP connections go on, or are ended with their endpoints if `end`.
/// Answers how many were ended. Needs no loaded programs; an instance that is not there is no error.
///
/// # Errors
/// The kernel's.
pub fn release_sockets(pins: &Pins, end: bool) -> Result<u32> {
    if !pins.map("peers").exists() {
        return Ok(0);
    }
    let switches = Switches::open(pins)?;
    let config = switches.read();
    // Another version's sockets bear what is not known here, and another namespace's are not ours.
    if config.abi != ABI || config.netns_cookie != host_namespace()?.cookie {
        return Ok(0);
    }
    switches.set_connect_enabled(false);
    let list = SocketList::load(pins)?;
    let ports = Table::open(pins, "ports")?;
    let local_addresses = Table::open(pins, "local_addresses")?;
    let nothing = Standing::default();
    let standing = end.then_some(&nothing);
    let read = || Hook::read(&switches, &ports, &local_addresses);
    settle(&list, standing, read).map(|settled| settled.ended)
}

fn settle(
    list: &SocketList,
    standing: Option<&Standing>,
    read: impl Fn() -> Result<Hook>,
) -> Result<Settled> {
    let mut all = Settled::default();
    for _ in 0..ROUNDS {
        let hook = read()?;
        let (settled, failure) = settle_once(list, &hook, standing)?;
        all.followed += settled.followed;
        all.ended += settled.ended;
        if let Some(error) = failure {
            return Err(error);
        }
        // Of several with the same addresses and ports the kernel ends one at a time.
        if settled.ended == 0 {
            break;
        }
    }
    Ok(all)
}

fn settle_once(
    list: &SocketList,
    hook: &Hook,
    standing: Option<&Standing>,
) -> Result<(Settled, Option<Error>)> {
    let mut to_end = Vec::new();
    let mut to_follow = Vec::new();
    for socket in list.read()? {
        if socket.netns_cookie != hook.netns_cookie || !is_sent(&socket) {
            continue;
        }
        let Some(id) = id_of(&socket) else { continue };
        match hook.judge(&socket, id.protocol, standing) {
            Verdict::Holds => {}
            Verdict::Over => to_end.push(id),
            verdict => to_follow.push((id, asked(&socket), verdict)),
        }
    }
    let wanted: Vec<_> = to_follow.iter().map(|(id, asked, _)| (*id, *asked)).collect();
    let followed = reconnect(&wanted);
    to_end.extend(to_follow.into_iter().filter_map(|(id, _, verdict)| {
        (verdict == Verdict::Elsewhere && !followed.contains(&id.cookie)).then_some(id)
    }));
    let followed = u32::try_from(followed.len()).unwrap_or(u32::MAX);
    let mut settled = Settled { followed, ended: 0 };
    let mut failure = None;
    for id in to_end {
        match end_socket(&id) {
            Ok(true) => settled.ended += 1,
            Ok(false) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Ok((settled, failure))
}

/// Whether the socket is where the hook sent it: it may have gone elsewhere, or failed to go there.
fn is_sent(socket: &nb_socket) -> bool {
    socket.remote.words == socket.peer.target.words
        && socket.remote_port == socket.peer.target_port
        && match socket.protocol.into() {
            libc::IPPROTO_UDP => socket.state == ESTABLISHED,
            _ => socket.state != CLOSE,
        }
}

fn asked(socket: &nb_socket) -> SocketAddr {
    let address = IpAddr::from(socket.peer.asked);
    let port = u16::from_be(socket.peer.asked_port);
    match address {
        IpAddr::V4(v4) if is_ipv6(socket) => SocketAddr::new(v4.to_ipv6_mapped().into(), port),
        address => SocketAddr::new(address, port),
    }
}

fn is_ipv6(socket: &nb_socket) -> bool {
    i32::from(socket.family) == libc::AF_INET6
}

fn id_of(socket: &nb_socket) -> Option<SocketId> {
    let protocol = match i32::from(socket.protocol) {
        libc::IPPROTO_TCP => SocketProtocol::Tcp,
        libc::IPPROTO_UDP => SocketProtocol::Udp,
        _ => return None,
    };
    Some(SocketId {
        protocol,
        ipv6: is_ipv6(socket),
        local: SocketAddr::new(socket.local.into(), u16::from_be(socket.local_port)),
        remote: SocketAddr::new(socket.remote.into(), u16::from_be(socket.remote_port)),
        bound_device: socket.bound_device,
        cookie: socket.cookie,
        inode: socket.inode,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    /// A TCP connection whose port or endpoint is gone.
    Over,
    /// UDP whose question leads elsewhere by now, or nowhere.
    Elsewhere,
    /// UDP that is where it should be, but the hooks are off: what sees loopback traffic must see
    /// its packets too.
    HookIsOff,
}

/// What the hooks go by.
struct Hook {
    enabled: bool,
    netns_cookie: u64,
    ports: BTreeMap<Vec<u8>, nb_port>,
    local: BTreeSet<[u32; 4]>,
}

impl Hook {
    fn read(
        switches: &Switches,
        ports: &Table<nb_port_key, nb_port>,
        local_addresses: &Table<nb_address, u32>,
    ) -> Result<Self> {
        let config = switches.read();
        let ports = ports.entries()?.into_iter();
        let local = local_addresses.entries()?.into_iter();
        Ok(Self {
            enabled: config.connect_enabled != 0,
            netns_cookie: config.netns_cookie,
            ports: ports.map(|(key, port)| (bytes_of(&key).to_vec(), port)).collect(),
            local: local
                .filter(|(_, kind)| *kind == nb_address_kind::NB_ADDRESS_LOCAL.0)
                .map(|(address, _)| address.words)
                .collect(),
        })
    }

    /// `standing`: none if all stands.
    fn judge(
        &self,
        socket: &nb_socket,
        protocol: SocketProtocol,
        standing: Option<&Standing>,
    ) -> Verdict {
        let peer = &socket.peer;
        if protocol == SocketProtocol::Tcp {
            let stands = standing.is_none_or(|there| {
                there.ports.contains(&ObjectId(peer.port_id))
                    && there.endpoints.contains(&ObjectId(peer.endpoint_id))
            });
            return if stands { Verdict::Holds } else { Verdict::Over };
        }
        let leads_there = self.target_of(socket).is_some_and(|port| {
            port.address.words == peer.target.words && port.port == peer.target_port
        });
        match (leads_there, self.enabled) {
            (false, _) => Verdict::Elsewhere,
            (true, false) => Verdict::HookIsOff,
            (true, true) => Verdict::Holds,
        }
    }

    /// As `find_target` in connect.bpf.c.
    fn target_of(&self, socket: &nb_socket) -> Option<&nb_port> {
        let asked = IpAddr::from(socket.peer.asked);
        if !asked.is_loopback() && !self.local.contains(&socket.peer.asked.words) {
            return None;
        }
        let wildcard = match asked {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        [socket.peer.asked, nb_address::from(wildcard)].into_iter().find_map(|address| {
            let key = nb_port_key {
                address,
                port: socket.peer.asked_port,
                protocol: TransportProtocol::Udp.number(),
                padding: 0,
            };
            self.ports.get(bytes_of(&key))
        })
    }
}
