//! Reads the rulesets that are not ours.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Map, Value, json};

use super::legacy::{FAMILIES, tagged_rule};
use super::mark::FORWARD_ACCEPT_MARK;
use super::{nft, unlisted};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::host::{NftTable, list_nft_tables};

/// How often tables are listed that come and go meanwhile.
const TRIES: usize = 5;
/// Listings at a time.
const PARALLEL: usize = 4;

/// Everything on the host's packet paths that natbridge did not write.
#[derive(Clone, Debug, Default)]
pub struct ForeignRuleset {
    /// `nft -j list ruleset` without our table and our tagged rules, with what it leaves out
    /// (`unlisted.rs`).
    pub nft: String,
    /// `iptables-legacy-save` and `ip6tables-legacy-save`, each after a line `# iptables-legacy` or
    /// `# ip6tables-legacy`; empty where no legacy table exists.
    pub legacy: String,
}

/// Reads them, changing nothing: not even legacy tables come into being.
///
/// # Errors
/// `Unsupported` if nft is missing, or iptables-legacy where its tables exist.
pub fn read_foreign_ruleset() -> Result<ForeignRuleset> {
    let mut objects = list_foreign()?;
    objects.retain(|object| !object.get("rule").is_some_and(is_tagged));
    unlisted::complete(&mut objects)?;
    // Moved, not copied: there may be thousands of rules, and packets wait for the verdict on them.
    let listing = Value::Object(Map::from_iter([("nftables".to_owned(), Value::Array(objects))]));
    Ok(ForeignRuleset { nft: listing.to_string(), legacy: read_legacy()? })
}

/// Table by table, several at a time, without our own, which may hold thousands of ports.
fn read_tables() -> Result<Vec<Value>> {
    let tables: Vec<NftTable> =
        list_nft_tables()?.into_iter().filter(|table| !table.is_own()).collect();
    let next = AtomicUsize::new(0);
    let listings = Mutex::new(vec![Vec::new(); tables.len()]);
    let work = || -> Result<()> {
        while let Some((index, table)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            tables.get(index).map(|table| (index, table))
        } {
            let listing = read_table(table)?;
            let mut all = listings.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = all.get_mut(index) {
                *place = listing;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..tables.len().min(PARALLEL)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            let ended = other
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "reading a table was cut off")));
            result = result.and(ended);
        }
        result
    })?;
    let listings = listings.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(listings.into_iter().flatten().collect())
}

fn read_table(table: &NftTable) -> Result<Vec<Value>> {
    // As JSON, names may be any.
    let command = json!({ "nftables": [
        { "list": { "table": { "family": table.family, "name": table.name } } }
    ] });
    objects_of(&nft::query_json(&command)?)
}

fn read_legacy() -> Result<String> {
    let mut text = String::new();
    let tagged = format!("-A {}", tagged_rule());
    for legacy in FAMILIES {
        let tables = legacy.tables();
        if !tables.is_empty() {
            text.push_str(&format!("# {}\n", legacy.program));
        }
        for table in tables {
            let saved = nft::iptables(legacy.save, &["-t", &table], None)?;
            for line in saved.lines().filter(|line| !line.starts_with('#') && *line != tagged) {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(text)
}

/// The ruleset's objects without our tables. These are never listed: nft before 1.0.7 prints garbage
/// for the flags of a table that somebody owns (a dangling reference in table_flags_json()).
///
/// # Errors
/// nft's.
pub(super) fn list_foreign() -> Result<Vec<Value>> {
    let mut listed = read_tables();
    for _ in 1..TRIES {
        if listed.is_ok() {
            break;
        }
        // A table may have gone after it was named.
        listed = read_tables();
    }
    listed.context("list the ruleset")
}

/// The objects of one of nft's listings in JSON.
fn objects_of(listing: &str) -> Result<Vec<Value>> {
    let mut listing: Value = serde_json::from_str(listing)
        .map_err(|cause| Error::new(ErrorKind::Io, format!("read nft's listing: {cause}")))?;
    match listing.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => {
            Err(Error::new(ErrorKind::Io, "nft's listing has a form that natbridge does not know"))
        }
    }
}

/// Our accept in a foreign chain. Known by the reserved bit, not by the comment alone: what
/// iptables-save and -restore make of a comment is an xt match whose text nft does not show.
pub(super) fn is_tagged(rule: &Value) -> bool {
    let Some(expressions) = rule.get("expr").and_then(Value::as_array) else { return false };
    let is_comment = |expression: &Value| {
        expression.pointer("/xt/name").and_then(Value::as_str) == Some("comment")
    };
    let commented = rule.get("comment").and_then(Value::as_str) == Some("natbridge")
        || expressions.iter().any(is_comment);
    if !commented {
        return false;
    }
    let ours = mark_match();
    expressions.contains(&ours)
        && expressions.iter().all(|expression| {
            *expression == ours
                || is_comment(expression)
                || expression.get("counter").is_some()
                || expression.get("accept").is_some()
        })
}

/// The expression that tells what our forward chain has accepted.
pub(super) fn mark_match() -> Value {
    let mark = FORWARD_ACCEPT_MARK;
    json!({ "match": {
        "op": "==", "left": { "&": [{ "meta": { "key": "mark" } }, mark] }, "right": mark
    } })
}
