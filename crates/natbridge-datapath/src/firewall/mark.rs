//! The one bit of the packet mark that natbridge reserves.

/// Set by our forward chain on what it accepts, so that one rule at the end of a foreign chain with
/// policy drop can tell it; cleared in postrouting before any other chain there sees the packet.
pub const FORWARD_ACCEPT_MARK: u32 = 0x0020_0000;
