//! The kernel path: the one nftables table `inet natbridge`, and what it needs of foreign rulesets.
//!
//! The table holds a constant number of rules; networks and published ports are elements of its sets
//! and maps. Every change is one transaction, computed from what the kernel holds at that moment.

mod accepts;
mod apply;
mod elements;
mod elsewhere;
mod foreign;
mod guard;
mod keeper;
mod legacy;
mod mark;
mod marking;
mod nft;
mod prefix;
mod spec;
mod table;
mod unlisted;

pub use accepts::{ForwardAccept, ensure_forward_accepts, remove_forward_accepts};
pub use apply::{FirewallChange, HeldElement, apply_firewall, list_firewall, remove_firewall};
pub use foreign::{ForeignRuleset, read_foreign_ruleset};
pub use guard::GUARD_PREFIX;
pub use keeper::Keeper;
pub use mark::FORWARD_ACCEPT_MARK;
pub use prefix::Prefix;
pub use spec::{Family, FirewallNetwork, FirewallPort, FirewallSpec, FirewallSubnet, Protocol};
