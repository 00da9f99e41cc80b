//! Makes the kernel's table say what is wanted, by the smallest transaction that does.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::elements::Elements;
use super::spec::FirewallSpec;
use super::table::{TABLE, definition};
use super::{marking, nft};
use crate::error::{Context, ErrorKind, Result};

/// What a call changed in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirewallChange {
    /// Anything differed from the kernel's table.
    pub changed: bool,
    pub elements_added: usize,
    pub elements_removed: usize,
    /// The table was missing or its rules had been altered, and was written anew.
    pub rebuilt: bool,
}

/// Reading and writing belong together: two callers must not diff against the same state.
static WRITING: Mutex<()> = Mutex::new(());

/// Lists the table without its elements: text, because it shows what JSON leaves out (flags).
const LIST_RULES: [&str; 6] = ["-s", "-t", "list", "table", "inet", "natbridge"];

/// Makes the table `inet natbridge` say exactly this, in one transaction, and nothing if it does.
///
/// # Errors
/// `Invalid` for a contradictory specification, `Unsupported` without nft, `Denied` without privilege.
/// The kernel's table is then unchanged.
pub fn apply_firewall(spec: &FirewallSpec) -> Result<FirewallChange> {
    spec.check()?;
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Elements::wanted(spec);
    if !rules_are_intact()? {
        return rebuild(&wanted);
    }
    let listing = nft::nft(&["-j", "list", "table", "inet", "natbridge"])?;
    // Elements in a form we never write are somebody else's work: write all of it anew.
    let Ok(listed) = Elements::listed(&listing) else { return rebuild(&wanted) };
    let difference = listed.difference(Elements::wanted(spec));
    let change = FirewallChange {
        changed: difference.removed.count() + difference.added.count() > 0,
        elements_added: difference.added.count(),
        elements_removed: difference.removed.count(),
        rebuilt: false,
    };
    if !change.changed {
        return Ok(change);
    }
    let mut script = difference.removed.commands("delete", TABLE);
    script.push_str(&difference.added.commands("add", TABLE));
    match nft::commit(&script) {
        Ok(()) => Ok(change),
        // Changed under our hands by somebody else, between listing and transaction.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists) => {
            rebuild(&wanted)
        }
        Err(error) => Err(error).context("change the table inet natbridge"),
    }
}

/// Removes the table, if it is there.
///
/// # Errors
/// `Unsupported` without nft, `Denied` without privilege.
pub fn remove_firewall() -> Result<()> {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    nft::commit(&format!("add table {TABLE}\ndelete table {TABLE}\n"))
        .context("remove the table inet natbridge")
}

/// One transaction: packets see the old table or the new one, never none.
fn rebuild(wanted: &Elements) -> Result<FirewallChange> {
    let mut script = format!("add table {TABLE}\ndelete table {TABLE}\n");
    script.push_str(&definition());
    script.push_str(&wanted.commands("add", TABLE));
    script.push_str(&marking::kept());
    nft::commit(&script).context("write the table inet natbridge")?;
    Ok(FirewallChange {
        changed: true,
        elements_added: wanted.count(),
        elements_removed: 0,
        rebuilt: true,
    })
}

fn rules_are_intact() -> Result<bool> {
    match nft::nft(&LIST_RULES) {
        Ok(listing) => Ok(listing == pristine_listing()?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("list the table inet natbridge"),
    }
}

/// How this host's nft lists the table as we write it, found out once in a namespace of its own: it
/// differs from version to version, so no text of ours can be compared with it.
fn pristine_listing() -> Result<&'static str> {
    static LISTING: OnceLock<String> = OnceLock::new();
    if let Some(listing) = LISTING.get() {
        return Ok(listing);
    }
    let listing = nft::list_as_loaded(&definition(), &LIST_RULES)
        .context("find out how nft lists the table inet natbridge")?;
    Ok(LISTING.get_or_init(|| listing))
}
