//! Makes the kernel's table say what is wanted, by the smallest transaction that does.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::elements::Elements;
use super::elsewhere::{bound_udp, elsewhere, ephemeral};
use super::spec::FirewallSpec;
use super::table::{TABLE, Variant, definition};
use super::{marking, nft, stand_in};
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
/// Holds what was last written, for whoever must write it again; none where no table is wanted.
static WRITTEN: Mutex<Option<Table>> = Mutex::new(None);

/// Lists the table without its elements: text, because it shows what JSON leaves out (flags).
const LIST_RULES: [&str; 6] = ["-s", "-t", "list", "table", "inet", "natbridge"];

/// Makes the table `inet natbridge` say exactly this, in one transaction, and nothing if it does.
///
/// # Errors
/// `Invalid` for a contradictory specification, `Unsupported` without nft, `Denied` without privilege.
/// The kernel's table is then unchanged.
pub fn apply_firewall(spec: &FirewallSpec) -> Result<FirewallChange> {
    spec.check()?;
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Table::wanted(spec)?;
    let change = wanted.write()?;
    stand_in::follow(&wanted.elements);
    *written = Some(wanted);
    Ok(change)
}

/// Writes the table again as it last was, if it is missing or its rules were altered.
///
/// # Errors
/// As [`apply_firewall`].
pub fn restore() -> Result<()> {
    let written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(table) = written.as_ref() else { return Ok(()) };
    match nft::commit(&format!("create table {TABLE}\n{}", table.script())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Exists => {
            if !table.rules_are_intact()? {
                table.rebuild()?;
            }
            Ok(())
        }
        Err(error) => Err(error).context("restore the table inet natbridge"),
    }
}

/// Makes the table that stands in for ours while that is away, knowing of what was last written.
pub fn start_stand_in() {
    let written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    match written.as_ref() {
        Some(table) => stand_in::start(&table.elements),
        None => stand_in::start(&Elements::default()),
    }
}

impl Table {
    /// Reads the kernel's table and writes the difference.
    fn write(&self) -> Result<FirewallChange> {
        if !self.rules_are_intact()? {
            return self.rebuild();
        }
        // Elements in a form we never write are somebody else's work: write all of it anew.
        let Ok(listed) = Elements::listed(&list()?) else { return self.rebuild() };
        let difference = listed.difference(&self.elements);
        let change = FirewallChange {
            changed: difference.removed.count_specified() + difference.added.count_specified() > 0,
            elements_added: difference.added.count_specified(),
            elements_removed: difference.removed.count_specified(),
            rebuilt: false,
        };
        if difference.removed.count() + difference.added.count() == 0 {
            return Ok(change);
        }
        let mut script = difference.removed.commands("delete", TABLE);
        script.push_str(&difference.added.commands("add", TABLE));
        match nft::commit(&script) {
            Ok(()) => Ok(change),
            // Changed under our hands by somebody else, between listing and transaction.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists) => {
                self.rebuild()
            }
            Err(error) => Err(error).context("change the table inet natbridge"),
        }
    }
}

/// One element that the kernel's table holds, in nft's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldElement {
    pub set: String,
    pub key: String,
    /// Empty in a set.
    pub value: String,
}

/// Every element that the kernel's table holds; none without a table.
///
/// # Errors
/// `Unsupported` without nft, `Denied` without privilege, `Io` for elements in a form we never write.
pub fn list_firewall() -> Result<Vec<HeldElement>> {
    let listing = match list() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("list the table inet natbridge")?,
    };
    let held = |(set, key, value): (&str, &str, &str)| HeldElement {
        set: set.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    Ok(Elements::listed(&listing)?.iter().map(held).collect())
}

/// Removes the table, if it is there.
///
/// # Errors
/// `Unsupported` without nft, `Denied` without privilege.
pub fn remove_firewall() -> Result<()> {
    let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever hears of it must not write it again.
    *written = None;
    stand_in::follow(&Elements::default());
    nft::commit(&format!("add table {TABLE}\ndelete table {TABLE}\n"))
        .context("remove the table inet natbridge")
}

/// The table with its elements, in JSON.
fn list() -> Result<String> {
    nft::nft(&["-j", "list", "table", "inet", "natbridge"])
}

/// What the table must be on this host.
struct Table {
    variant: Variant,
    elements: Elements,
}

impl Table {
    fn wanted(spec: &FirewallSpec) -> Result<Self> {
        let ephemeral = ephemeral();
        let mut elements = Elements::wanted(spec);
        elements.add_bound_udp(&bound_udp(ephemeral));
        let elsewhere = elsewhere(&spec.ports, ephemeral);
        Ok(Self { variant: Variant { elsewhere, sockets: pristine()?.variant.sockets }, elements })
    }

    /// One transaction: packets see the old table or the new one, never none.
    fn rebuild(&self) -> Result<FirewallChange> {
        let script = format!("add table {TABLE}\ndelete table {TABLE}\n{}", self.script());
        nft::commit(&script).context("write the table inet natbridge")?;
        Ok(FirewallChange {
            changed: true,
            elements_added: self.elements.count_specified(),
            elements_removed: 0,
            rebuilt: true,
        })
    }

    /// All of it, to be written where nothing is.
    fn script(&self) -> String {
        let mut script = definition(self.variant);
        script.push_str(&self.elements.commands("add", TABLE));
        script.push_str(&marking::kept());
        script
    }

    fn rules_are_intact(&self) -> Result<bool> {
        let pristine = pristine()?;
        let range = |variant: Variant| variant.elsewhere.to_string();
        match nft::nft(&LIST_RULES) {
            Ok(listing) => {
                let expected =
                    pristine.listing.replace(&range(pristine.variant), &range(self.variant));
                Ok(listing == expected)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("list the table inet natbridge"),
        }
    }
}

struct Pristine {
    variant: Variant,
    listing: String,
}

/// How this host's nft lists the table as we write it, found out once in a namespace of its own: it
/// differs from version to version, so no text of ours can be compared with it.
fn pristine() -> Result<&'static Pristine> {
    static PRISTINE: OnceLock<Pristine> = OnceLock::new();
    if let Some(pristine) = PRISTINE.get() {
        return Ok(pristine);
    }
    let load = |sockets| -> Result<Pristine> {
        let variant = Variant { elsewhere: elsewhere(&[], ephemeral()), sockets };
        let listing = nft::list_as_loaded(&definition(variant), &LIST_RULES)?;
        Ok(Pristine { variant, listing })
    };
    let pristine = match load(true) {
        // Without the expression the kernel answers as for anything missing.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
            load(false)
        }
        other => other,
    }
    .context("find out how nft lists the table inet natbridge")?;
    Ok(PRISTINE.get_or_init(|| pristine))
}
