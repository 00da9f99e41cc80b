//! Whether forwarded packets are marked: only while a tagged accept asks for it.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::nft;
use super::table::{MARKING, TABLE};
use crate::error::{Context, ErrorKind, Result};

/// As last wanted: a table that is written anew goes on marking.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The command that makes a new table mark as the old one did.
pub fn kept() -> String {
    if WANTED.load(Ordering::Relaxed) { add() } else { String::new() }
}

fn add() -> String {
    format!("add element {TABLE} {MARKING} {{ ipv4, ipv6 }}\n")
}

/// Begins or ends marking, if the kernel's table does otherwise. Without a table there is nothing to do.
///
/// # Errors
/// `Unsupported` without nft, `Denied` without privilege.
pub fn ensure(wanted: bool) -> Result<()> {
    WANTED.store(wanted, Ordering::Relaxed);
    match marks() {
        Ok(marks) if marks == wanted => Ok(()),
        Ok(_) if wanted => nft::commit(&add()),
        Ok(_) => nft::commit(&format!("flush set {TABLE} {MARKING}\n")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .context("change what the table inet natbridge marks")
}

fn marks() -> Result<bool> {
    let listing = nft::nft(&["-j", "list", "set", "inet", "natbridge", MARKING])?;
    let listing: Value = serde_json::from_str(&listing).unwrap_or_default();
    let objects = listing.get("nftables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let elements = objects.iter().filter_map(|object| object.pointer("/set/elem")?.as_array());
    Ok(elements.map(Vec::len).sum::<usize>() == 2)
}
