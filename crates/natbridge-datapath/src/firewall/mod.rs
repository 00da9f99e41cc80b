//! The kernel path: the one nftables table `inet natbridge`, and what it needs of foreign rulesets.
//!
//! The table holds a constant number of rules; networks and published ports are elements of its sets
//! and maps. Every change is one transaction, computed from what the kernel holds at that moment.

mod accepts;
mod apply;
mod elements;
mod elsewhere;
mod foreign;
mod legacy;
mod mark;
mod marking;
mod nft;
mod prefix;
mod spec;
mod stand_in;
mod table;
mod table_keeper;
mod unlisted;

pub use accepts::{ForwardAccept, ensure_forward_accepts, remove_forward_accepts};
pub use apply::{FirewallChange, HeldElement, apply_firewall, list_firewall, remove_firewall};
pub use foreign::{ForeignRuleset, read_foreign_ruleset};
pub use mark::FORWARD_ACCEPT_MARK;
pub use prefix::Prefix;
pub use spec::{Family, FirewallNetwork, FirewallPort, FirewallSpec, FirewallSubnet, Protocol};
pub use stand_in::STAND_IN_PREFIX;
pub use table_keeper::TableKeeper;
