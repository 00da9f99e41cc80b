//! The host's networking through netlink and procfs: links, addresses, routes, sandboxes,
//! conntrack, and notice of changes. Everything acts on the calling thread's namespace.

mod address;
mod announce;
mod bridge;
mod conntrack;
mod conntrack_entry;
mod endpoint;
mod link;
mod names;
mod namespace;
mod neighbour;
pub(crate) mod netlink;
pub(crate) mod nftables;
pub(crate) mod nla;
mod packet_routing;
mod qdisc;
mod route;
mod rtnetlink;
mod sandbox;
mod sockets;
mod sysctl;
pub mod watch;
mod xfrm;
mod xtables;

pub use address::OWN_PROTOCOL;
pub use bridge::{BridgeSpec, create_bridge, ensure_bridge};
pub use conntrack::{
    ConntrackEntry, ConntrackFilter, Protocol as ConntrackProtocol, Tuple, delete_conntrack,
    list_conntrack,
};
pub use conntrack_entry::{ConntrackEntries, make_established_liberal};
pub use endpoint::{
    EndpointLink, EndpointSpec, announce_endpoint, create_endpoint, ensure_endpoint,
};
pub(crate) use link::xdp_program;
pub use link::{LinkInfo, delete_link, list_links};
pub use nftables::{NftTable, list_nft_tables};
pub use packet_routing::list_packet_routing;
pub use route::{DefaultRoute, DefaultRoutes, RouteInfo, list_routes, set_default_routes};
pub(crate) use rtnetlink::Rtnetlink;
pub use sandbox::{
    ResolvedPid, SandboxInfo, SandboxInterface, SandboxRoute, glance_at_sandboxes, inspect_sandbox,
    resolve_pid,
};
pub use sockets::{SocketId, SocketProtocol, can_end_sockets, end_socket, reconnect};
pub use sysctl::{read_sysctl, write_sysctl};
pub use watch::{HostEvent, HostEventKind, Watch};
pub use xfrm::count_xfrm_policies;
