//! iptables-legacy: a second ruleset beside nftables, present only where somebody made it.

use std::fs;

use super::mark::FORWARD_ACCEPT_MARK;
use super::nft::iptables;
use crate::error::{Context, Result};

/// One of the two programs, and where the kernel lists its tables.
pub struct Legacy {
    pub program: &'static str,
    pub save: &'static str,
    restore: &'static str,
    tables: &'static str,
}

/// IPv4's and IPv6's.
pub const FAMILIES: [Legacy; 2] = [
    Legacy {
        program: "iptables-legacy",
        save: "iptables-legacy-save",
        restore: "iptables-legacy-restore",
        tables: "/proc/thread-self/net/ip_tables_names",
    },
    Legacy {
        program: "ip6tables-legacy",
        save: "ip6tables-legacy-save",
        restore: "ip6tables-legacy-restore",
        tables: "/proc/thread-self/net/ip6_tables_names",
    },
];

impl Legacy {
    /// Tables that exist. The programs themselves must not be asked: listing creates tables.
    pub fn tables(&self) -> Vec<String> {
        let names = fs::read_to_string(self.tables).unwrap_or_default();
        names.lines().map(str::to_owned).collect()
    }

    /// Rules of the filter table's forward chain as `-S` prints them; none without that table.
    ///
    /// # Errors
    /// `Unsupported` if the program is missing where its table exists.
    pub fn forward_rules(&self) -> Result<Option<Vec<String>>> {
        if !self.tables().iter().any(|table| table == "filter") {
            return Ok(None);
        }
        let rules = iptables(self.program, &["-w", "5", "-S", "FORWARD"], None)
            .context(format_args!("list {} filter FORWARD", self.program))?;
        Ok(Some(rules.lines().map(str::to_owned).collect()))
    }

    /// Commits commands on the filter table in one transaction, leaving all else as it is.
    ///
    /// # Errors
    /// As the program answers.
    pub fn commit(&self, commands: &[String]) -> Result<()> {
        let script = format!("*filter\n{}\nCOMMIT\n", commands.join("\n"));
        iptables(self.restore, &["-w", "5", "--noflush"], Some(&script))
            .map(drop)
            .context(format_args!("change {} filter FORWARD", self.program))
    }
}

/// Our tagged rule in iptables' words, after `-A` or `-D`.
pub fn tagged_rule() -> String {
    let mark = FORWARD_ACCEPT_MARK;
    format!("FORWARD -m mark --mark {mark:#x}/{mark:#x} -m comment --comment natbridge -j ACCEPT")
}
