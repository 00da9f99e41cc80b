//! The control protocol: newline-delimited JSON over a unix stream socket of mode 0600.
//!
//! A request is one line `{"id": 7, "method": "list", …}`; its answer is one line
//! `{"id": 7, "result": …}` or `{"id": 7, "error": {"kind", "message", "key"?, "errno"?}}`. Requests
//! of one connection are answered in order. A refused request has changed nothing.
//!
//! | method | fields | result |
//! |---|---|---|
//! | `hello` | | `{protocol, version, pid}` |
//! | `list` | | `{bindings: […], limits}` with counters |
//! | `update` | `add`, `remove` (keys), `retarget`: all or nothing | `{}` |
//! | `reserve` | `bindings` without `hostPort`, `firstPort`, `lastPort`, `startPort`? | `{hostPort}` |
//! | `shutdown` | | `{}`; every port is given up and the process ends |
//! | `handOver` | | `{bindings, sockets}`, then the sockets by SCM_RIGHTS: see [`crate::handover`] |
//! | `release` | | `{}`; the end of a hand-over |
//!
//! `protocol` grows when an old client or holder could misunderstand a new one. A newer daemon
//! that finds an older holder starts its own with `--adopt`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Refusal;

/// Version of this protocol.
pub const PROTOCOL: u32 = 1;
/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longest accepted request line in bytes: some 100,000 bindings.
pub const MAX_LINE: usize = 32 << 20;

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// One reserved socket and where its traffic goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindingSpec {
    /// Chosen by the daemon, unique.
    pub key: String,
    pub protocol: Transport,
    /// `0.0.0.0` is every IPv4 address, `::` every IPv6 address and no IPv4 one.
    pub host_address: IpAddr,
    pub host_port: u16,
    /// May be of the other family.
    pub target_address: IpAddr,
    pub target_port: u16,
    /// Clients that may use it; empty: all. This host's own clients always may.
    #[serde(default)]
    pub from: Vec<IpNet>,
}

impl BindingSpec {
    /// The address the reserved socket is bound to.
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(self.host_address, self.host_port)
    }

    /// Where it is forwarded to.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.target_address, self.target_port)
    }
}

/// A binding and what its forwarder did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BindingState {
    #[serde(flatten)]
    pub spec: BindingSpec,
    /// Connections or UDP sessions so far.
    pub connections: u64,
    /// Open now.
    pub active: u64,
    /// Payload, both directions.
    pub bytes: u64,
    /// Clients turned away because of `from`.
    pub refused: u64,
    pub last_error: Option<String>,
}

/// Another target, and other clients, for a binding.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retarget {
    pub key: String,
    pub target_address: IpAddr,
    pub target_port: u16,
    /// Absent: as before.
    #[serde(default)]
    pub from: Option<Vec<IpNet>>,
}

/// A change of the bindings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    #[serde(default)]
    pub add: Vec<BindingSpec>,
    #[serde(default)]
    pub remove: Vec<String>,
    #[serde(default)]
    pub retarget: Vec<Retarget>,
}

/// A binding whose host port is still to be found.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Candidate {
    pub key: String,
    pub protocol: Transport,
    pub host_address: IpAddr,
    pub target_address: IpAddr,
    pub target_port: u16,
    #[serde(default)]
    pub from: Vec<IpNet>,
}

impl Candidate {
    /// The binding on this port.
    pub fn at(&self, host_port: u16) -> BindingSpec {
        BindingSpec {
            key: self.key.clone(),
            protocol: self.protocol,
            host_address: self.host_address,
            host_port,
            target_address: self.target_address,
            target_port: self.target_port,
            from: self.from.clone(),
        }
    }
}

/// Asks for one port that is free for all of the bindings.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reservation {
    pub bindings: Vec<Candidate>,
    pub first_port: u16,
    pub last_port: u16,
    /// Where the search begins; it wraps around. Absent: at `first_port`.
    #[serde(default)]
    pub start_port: Option<u16>,
}

/// What a request line asks for.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "method", rename_all = "camelCase")]
pub enum Method {
    Hello,
    List,
    Update(Update),
    Reserve(Reservation),
    Shutdown,
    HandOver,
    Release,
}

/// One request line.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    pub id: u64,
    #[serde(flatten)]
    pub method: Method,
}

/// Answer to `hello`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
    pub pid: u32,
}

/// Answer to `list`.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    pub bindings: Vec<BindingState>,
    pub limits: LimitsState,
}

/// Places of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PoolState {
    /// Taken now.
    pub open: u64,
    pub capacity: u64,
    /// Holders that had to go for others.
    pub evicted: u64,
    /// Newcomers that found no place.
    pub refused: u64,
}

/// What the holder may have open, and has.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LimitsState {
    /// Descriptors.
    pub files: u64,
    /// TCP and SCTP.
    pub connections: PoolState,
    /// UDP.
    pub sessions: PoolState,
}

/// Answer to `reserve`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    pub host_port: u16,
}

/// Answer to `handOver`: as many sockets as bindings follow, in the same order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandOver {
    pub bindings: Vec<BindingState>,
}

/// One answer line.
#[derive(Clone, Debug, Serialize)]
pub struct Answer<T> {
    pub id: u64,
    #[serde(flatten)]
    pub outcome: Outcome<T>,
}

/// What became of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome<T> {
    Result(T),
    Error(Refusal),
}
