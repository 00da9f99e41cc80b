//! nf_tables' netlink messages, as far as natbridge asks the kernel itself rather than `nft`: which
//! tables there are, and what a notification is about.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{Message, Netlink};
use super::nla::Attributes;
use super::watch::HostEventKind;
use crate::firewall::STAND_IN_PREFIX;
use crate::{ErrorKind, Result, error::Context};

/// linux/netfilter/nfnetlink.h and nf_tables.h.
pub const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_DELSETELEM: u8 = 14;
const NFT_MSG_NEWGEN: u8 = 15;
/// Size of `struct nfgenmsg`.
pub const NFGENMSG: usize = 4;
/// NFTA_TABLE_NAME, and the same number in every kind of message: the table it is about.
const NFTA_TABLE: u16 = 1;

/// NFPROTO_* (linux/netfilter.h) and nft's words for them.
const FAMILIES: [(u8, &str); 6] =
    [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

/// The type of a netlink message of nf_tables: `number` is an NFT_MSG_*.
pub const fn message_kind(number: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | number as u16
}

/// The family that a message is about, as nft says it.
pub fn family_of(payload: &[u8]) -> Option<&'static str> {
    let number = payload.first()?;
    FAMILIES.iter().find(|(family, _)| family == number).map(|(_, name)| *name)
}
const OWN_FAMILY: &str = "inet";
const OWN_NAME: &str = "natbridge";

/// A table of nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftTable {
    /// `ip`, `inet`, `netdev` …
    pub family: &'static str,
    pub name: String,
}

impl NftTable {
    /// The table that a message is about.
    pub fn parse(message: Message<'_>) -> Option<Self> {
        let family = family_of(message.payload)?;
        let name = Attributes::after(message.payload, NFGENMSG).find(NFTA_TABLE)?.text();
        Some(Self { family, name })
    }

    /// It is natbridge's own: the table, or the one that stands in for it.
    pub fn is_own(&self) -> bool {
        self.family == OWN_FAMILY
            && (self.name == OWN_NAME || self.name.starts_with(STAND_IN_PREFIX))
    }
}

fn number_of(kind: u16) -> Option<u8> {
    (kind >> 8 == NFNL_SUBSYS_NFTABLES).then_some(kind.to_be_bytes()[1])
}

/// All tables; `nft list tables` would read all rules first.
///
/// # Errors
/// The kernel's; one without nf_tables has none.
pub fn list_nft_tables() -> Result<Vec<NftTable>> {
    let mut netlink = match Netlink::open(NETLINK_NETFILTER) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(Vec::new()),
        opened => opened?,
    };
    let kind = message_kind(NFT_MSG_GETTABLE);
    netlink
        .dump(kind, &[0; NFGENMSG], |message| {
            let is_table = number_of(message.kind) == Some(NFT_MSG_NEWTABLE);
            Ok(is_table.then(|| NftTable::parse(message)).flatten())
        })
        .context("listing nftables' tables")
}

/// What a notification is about. Elements of natbridge's own sets are no rules: a port may be
/// published without a new verdict on the rules of others.
pub fn event_kind(message: Message<'_>) -> Option<HostEventKind> {
    match number_of(message.kind) {
        // The end of a transaction whose parts have been told.
        Some(NFT_MSG_NEWGEN) => None,
        Some(NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM)
            if NftTable::parse(message).is_some_and(|table| table.is_own()) =>
        {
            Some(HostEventKind::Elements)
        }
        _ => Some(HostEventKind::Ruleset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: u8, family: u8, table: &[u8]) -> Option<HostEventKind> {
        let mut payload = vec![family, 0, 0, 0];
        super::super::nla::push(&mut payload, NFTA_TABLE, table);
        let kind = message_kind(number);
        event_kind(Message { kind, flags: 0, sequence: 0, payload: &payload })
    }

    #[test]
    fn only_elements_of_our_own_table_are_no_rules() {
        let own = b"natbridge\0";
        assert_eq!(kind(NFT_MSG_NEWSETELEM, 1, own), Some(HostEventKind::Elements));
        assert_eq!(kind(NFT_MSG_DELSETELEM, 1, own), Some(HostEventKind::Elements));
        assert_eq!(kind(NFT_MSG_NEWSETELEM, 2, own), Some(HostEventKind::Ruleset));
        assert_eq!(kind(NFT_MSG_NEWSETELEM, 1, b"other\0"), Some(HostEventKind::Ruleset));
        // NFT_MSG_NEWRULE
        assert_eq!(kind(6, 1, own), Some(HostEventKind::Ruleset));
        assert_eq!(kind(NFT_MSG_NEWGEN, 0, own), None);
    }
}
