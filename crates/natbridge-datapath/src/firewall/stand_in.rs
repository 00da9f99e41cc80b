//! A second table that outlives `nft flush ruleset`, for the moment until ours is written anew.
//!
//! The kernel flushes no table that a process owns (NFT_TABLE_F_OWNER, Linux 5.12, nft_flush), and
//! removes it when that process ends. This one decides nothing that the table `inet natbridge` does not
//! decide too. Its empty NAT chains and its look at conntrack keep both hooked in, so what was
//! translated goes on being translated; and while the other table is missing, nothing new passes
//! between networks, or out under an address that should have been masqueraded.
//!
//! The owner is an interactive `nft` fed through a pipe: it ends with this process, however that ends.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::elements::Elements;
use crate::host::list_nft_tables;

/// The table's name before this process's number: the one of a process that has just been killed may
/// still be there.
pub const STAND_IN_PREFIX: &str = "natbridge_keep";

/// How long a busy machine may take for the first transaction.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sets that both tables have.
const SHARED: [&str; 7] = [
    "bridges",
    "internal_bridges",
    "same_bridge",
    "own_subnet4",
    "own_subnet6",
    "masquerade4",
    "masquerade6",
];

const DEFINITION: &str = r#"add table inet TABLE { flags owner; }
add set inet TABLE bridges { type ifname; }
add set inet TABLE internal_bridges { type ifname; }
add set inet TABLE same_bridge { type ifname . ifname; }
add set inet TABLE own_subnet4 { type ifname . ipv4_addr; flags interval; }
add set inet TABLE own_subnet6 { type ifname . ipv6_addr; flags interval; }
add set inet TABLE masquerade4 { type ipv4_addr; flags interval; }
add set inet TABLE masquerade6 { type ipv6_addr; flags interval; }
add chain inet TABLE prerouting { type nat hook prerouting priority -99; }
add chain inet TABLE input { type nat hook input priority 99; }
add chain inet TABLE output { type nat hook output priority -99; }
add chain inet TABLE source { type nat hook postrouting priority 101; }
add chain inet TABLE forward { type filter hook forward priority -2; }
add rule inet TABLE forward ct state established,related accept
add rule inet TABLE forward iifname != @bridges oifname != @bridges accept
add rule inet TABLE forward iifname . oifname @same_bridge accept
add rule inet TABLE forward iifname @internal_bridges drop
add rule inet TABLE forward oifname != @bridges accept
add rule inet TABLE forward ct status dnat accept
add rule inet TABLE forward drop
add chain inet TABLE postrouting { type filter hook postrouting priority 102; }
add rule inet TABLE postrouting ct state != new accept
add rule inet TABLE postrouting oifname . ip saddr @own_subnet4 accept
add rule inet TABLE postrouting oifname . ip6 saddr @own_subnet6 accept
add rule inet TABLE postrouting ip saddr @masquerade4 drop
add rule inet TABLE postrouting ip6 saddr @masquerade6 drop"#;

struct StandIn {
    owner: Child,
    script: ChildStdin,
    /// The elements as last said.
    said: String,
}

static STAND_IN: Mutex<Option<StandIn>> = Mutex::new(None);

/// Makes the table for these networks, where kernel and nft can: without it a flush is only answered
/// quickly. It is there when this returns.
pub fn start(wanted: &Elements) {
    let mut stand_in = STAND_IN.lock().unwrap_or_else(PoisonError::into_inner);
    if stand_in.is_some() {
        return;
    }
    let spawned = Command::new("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("LC_ALL", "C")
        .spawn();
    let Ok(mut owner) = spawned else { return };
    let Some(mut script) = owner.stdin.take() else { return };
    let said = elements(wanted);
    if say(&mut script, &format!("{DEFINITION}\n{said}")) && appears() {
        *stand_in = Some(StandIn { owner, script, said });
    } else {
        end(owner, script);
    }
}

/// Tells the table of the networks there are. Nothing without a table.
pub fn follow(wanted: &Elements) {
    let mut stand_in = STAND_IN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(current) = stand_in.as_mut() else { return };
    let script = elements(wanted);
    if script == current.said {
        return;
    }
    if say(&mut current.script, &script) {
        current.said = script;
    } else if let Some(StandIn { owner, script, .. }) = stand_in.take() {
        end(owner, script);
    }
}

/// The commands that make the sets hold these and no others.
fn elements(wanted: &Elements) -> String {
    let mut script: String =
        SHARED.iter().map(|set| format!("flush set inet TABLE {set}\n")).collect();
    script.push_str(&wanted.only(&SHARED).commands("add", "inet TABLE").replace(",\n", ", "));
    script
}

/// Waits for the kernel to have the table: nft says nothing of what went well.
fn appears() -> bool {
    let name = name();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if list_nft_tables().is_ok_and(|tables| tables.iter().any(|table| table.name == name)) {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Removes the table.
pub fn stop() {
    let stand_in = STAND_IN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(StandIn { owner, script, .. }) = stand_in {
        end(owner, script);
    }
}

fn name() -> String {
    format!("{STAND_IN_PREFIX}_{}", std::process::id())
}

/// One line is one transaction. False where nobody listens any more.
fn say(pipe: &mut ChildStdin, script: &str) -> bool {
    let mut line = script.trim_end().replace("TABLE", &name()).replace('\n', "; ");
    line.push('\n');
    pipe.write_all(line.as_bytes()).and_then(|()| pipe.flush()).is_ok()
}

fn end(mut owner: Child, script: ChildStdin) {
    drop(script);
    let _ = owner.kill();
    let _ = owner.wait();
}
