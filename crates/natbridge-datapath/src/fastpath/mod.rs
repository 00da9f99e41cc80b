//! The eBPF programs: loading and adopting them, hanging them on devices, and their maps.
//!
//! Everything lives in pins under one folder of bpffs: traffic goes on while no process holds them,
//! and a later process adopts them. What needs no programs works from the pins alone.

pub mod abi;
mod attach;
mod clsact;
mod counters;
mod device;
mod features;
mod flow;
mod keeper;
mod link_local;
mod loader;
mod messages;
mod namespace;
mod object;
mod others;
mod pins;
mod port;
mod presence;
mod program;
mod program_watch;
mod reason;
mod socket;
mod switches;
mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use attach::Mechanism;
pub use counters::{Count, DeviceCounters, FastPathCounters, PortCounters};
pub use device::{DeviceRole, DeviceSpec};
pub use features::{KernelFeatures, kernel_features};
pub use flow::{FlowInfo, FlowTuple};
pub use loader::{FastPathOptions, end_sockets, fast_path_enabled, set_fast_path_enabled, unload};
pub use namespace::{HostNamespace, host_namespace};
pub use object::Programs;
pub use others::{ForeignHook, ForeignProgram};
pub use pins::Pins;
pub use port::{ObjectId, PortEntry, TransportProtocol};
pub use program::ProgramInfo;
pub use program_watch::ProgramWatch;
pub use socket::{Settled, SocketList, Standing};
pub use switches::Switches;
pub use table::{PerCpu, Table};

use crate::error::Result;
use keeper::Keeper;
use object::Sizes;
use others::Moves;

use abi::{
    nb_address, nb_device, nb_device_counters, nb_flow, nb_flow_key, nb_link_local,
    nb_link_local_key, nb_port, nb_port_key,
};

/// The loaded fast path of one instance. Dropping it leaves pins, links and traffic as they are.
#[derive(Debug)]
pub struct FastPath {
    pins: Pins,
    programs: Programs,
    sizes: Sizes,
    moves: Mutex<Moves>,
    mechanism: Mechanism,
    switches: Switches,
    devices: Table<u32, nb_device>,
    device_counters: PerCpu<nb_device_counters>,
    flows: Table<nb_flow_key, nb_flow>,
    events: PerCpu<u64>,
    ports: Table<nb_port_key, nb_port>,
    port_connects: PerCpu<u64>,
    local_addresses: Table<nb_address, u32>,
    link_locals: Table<nb_link_local_key, nb_link_local>,
    connect_results: PerCpu<u64>,
    /// Or why there is none.
    sockets: Result<SocketList>,
    /// Serves the programs' requests while this lives.
    _keeper: Keeper,
    /// Held while devices, ports or addresses change: slots are chosen by looking at the maps.
    changing: Mutex<()>,
}

impl FastPath {
    fn lock(&self) -> MutexGuard<'_, ()> {
        // The guarded state is the kernel's maps, which a panic does not corrupt.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every lease at once: the next packet of each flow takes the kernel path.
    pub fn bump_generation(&self) {
        self.switches.bump_generation();
    }

    /// The switches that say whether flows may be learned and used.
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// Connect hooks serve loopback and local addresses, or leave all to others; they do so where
    /// [`Self::connect_hook_hindrance`] names a reason.
    pub fn set_connect_hook(&self, enabled: bool) {
        self.switches.set_connect_enabled(enabled && self.sockets.is_ok());
    }

    /// The programs, for tests that run them on packets of their own.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }
}
