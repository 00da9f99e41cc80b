//! The one tagged accept at the end of each foreign forward chain whose policy is drop.
//!
//! An accept in our own table does not undo a drop in another: each base chain of a hook decides for
//! itself. The rule accepts only what our forward chain has marked, and stands last, so that every
//! rule of the host goes first. Only a policy of drop is answered; a drop rule at the end of a chain
//! is the host's explicit will.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::foreign::{is_tagged, list_foreign, mark_match};
use super::legacy::{FAMILIES, Legacy, tagged_rule};
use super::{marking, nft};
use crate::error::{Context, Error, Result};

/// A foreign forward chain with policy drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAccept {
    /// `nft ip filter FORWARD`, `iptables-legacy filter FORWARD` …
    pub chain: String,
    /// Our accept was missing at its end and has been put there.
    pub inserted: bool,
}

/// Whether accepts are wanted. Held while they are changed: two callers must not both append one.
static WANTED: Mutex<bool> = Mutex::new(false);

/// Puts back accepts that somebody took away, if they are wanted.
///
/// # Errors
/// As [`ensure_forward_accepts`].
pub fn restore() -> Result<()> {
    let wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *wanted { ensure().map(drop) } else { Ok(()) }
}

/// Puts the tagged accept at the end of every forward chain with policy drop, and takes it away where
/// the policy is accept again.
///
/// # Errors
/// The first failure; the other rulesets have been seen to all the same.
pub fn ensure_forward_accepts() -> Result<Vec<ForwardAccept>> {
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    *wanted = true;
    ensure()
}

fn ensure() -> Result<Vec<ForwardAccept>> {
    let mut accepts = Vec::new();
    let mut failures = Vec::new();
    match ensure_nft(true) {
        Ok(found) => accepts.extend(found),
        Err(error) => failures.push(error),
    }
    for legacy in &FAMILIES {
        match ensure_legacy(legacy, true) {
            Ok(found) => accepts.extend(found),
            Err(error) => failures.push(error),
        }
    }
    // While a ruleset can't be read, an accept may be there that needs the mark.
    failures.extend(marking::ensure(!accepts.is_empty() || !failures.is_empty()).err());
    all_or_failures(failures).map(|()| accepts)
}

/// Removes every tagged accept.
///
/// # Errors
/// All failures in one; what could be removed is gone.
pub fn remove_forward_accepts() -> Result<()> {
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    *wanted = false;
    let mut failures = Vec::new();
    failures.extend(ensure_nft(false).err());
    failures.extend(FAMILIES.iter().filter_map(|legacy| ensure_legacy(legacy, false).err()));
    failures.extend(marking::ensure(false).err());
    all_or_failures(failures)
}

fn all_or_failures(failures: Vec<Error>) -> Result<()> {
    let Some(first) = failures.first() else { return Ok(()) };
    let messages: Vec<String> = failures.iter().map(Error::to_string).collect();
    Err(Error::new(first.kind(), messages.join("; ")))
}

/// A foreign base chain of the forward hook.
struct ForwardChain {
    family: String,
    table: String,
    name: String,
    drops: bool,
    /// Handle, and whether the rule is ours.
    rules: Vec<(u64, bool)>,
}

fn ensure_nft(wanted: bool) -> Result<Vec<ForwardAccept>> {
    let mut accepts = Vec::new();
    // JSON, because nft's own language has no way to quote a foreign name that is one of its words.
    let mut commands = Vec::new();
    for chain in forward_chains(&list_foreign()?) {
        let ours: Vec<u64> = chain.rules.iter().filter(|rule| rule.1).map(|rule| rule.0).collect();
        let wanted = wanted && chain.drops;
        let in_place = wanted && ours.len() == 1 && chain.rules.last().is_some_and(|rule| rule.1);
        if !in_place {
            commands.extend(ours.iter().map(|handle| chain.delete(*handle)));
            commands.extend(wanted.then(|| chain.append_accept()));
        }
        if wanted {
            let name = format!("nft {} {} {}", chain.family, chain.table, chain.name);
            accepts.push(ForwardAccept { chain: name, inserted: !in_place });
        }
    }
    if !commands.is_empty() {
        nft::commit_json(&json!({ "nftables": commands }))
            .context("change the accept in foreign forward chains")?;
    }
    Ok(accepts)
}

impl ForwardChain {
    fn delete(&self, handle: u64) -> Value {
        let (family, table, chain) = (&self.family, &self.table, &self.name);
        json!({ "delete": { "rule": {
            "family": family, "table": table, "chain": chain, "handle": handle
        } } })
    }

    fn append_accept(&self) -> Value {
        let (family, table, chain) = (&self.family, &self.table, &self.name);
        json!({ "add": { "rule": {
            "family": family, "table": table, "chain": chain, "comment": "natbridge",
            "expr": [mark_match(), { "counter": null }, { "accept": null }]
        } } })
    }
}

fn forward_chains(objects: &[Value]) -> Vec<ForwardChain> {
    let text = |object: &Value, key: &str| {
        object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut chains: Vec<ForwardChain> = objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| text(chain, "hook") == "forward" && text(chain, "type") == "filter")
        .filter(|chain| matches!(text(chain, "family").as_str(), "ip" | "ip6" | "inet"))
        .map(|chain| ForwardChain {
            family: text(chain, "family"),
            table: text(chain, "table"),
            name: text(chain, "name"),
            drops: text(chain, "policy") == "drop",
            rules: Vec::new(),
        })
        .collect();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let of = (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
        let chain = chains
            .iter_mut()
            .find(|chain| (&chain.family, &chain.table, &chain.name) == (&of.0, &of.1, &of.2));
        if let Some((chain, handle)) = chain.zip(rule.get("handle").and_then(Value::as_u64)) {
            chain.rules.push((handle, is_tagged(rule)));
        }
    }
    chains
}

fn ensure_legacy(legacy: &Legacy, wanted: bool) -> Result<Option<ForwardAccept>> {
    let Some(rules) = legacy.forward_rules()? else { return Ok(None) };
    let tagged = format!("-A {}", tagged_rule());
    let drops = rules.iter().any(|rule| rule == "-P FORWARD DROP");
    let ours = rules.iter().filter(|rule| **rule == tagged).count();
    let wanted = wanted && drops;
    let in_place = wanted && ours == 1 && rules.last() == Some(&tagged);
    let mut commands = Vec::new();
    if !in_place {
        commands.extend((0..ours).map(|_| format!("-D {}", tagged_rule())));
        commands.extend(wanted.then(|| tagged.clone()));
    }
    if !commands.is_empty() {
        legacy.commit(&commands)?;
    }
    Ok(wanted.then(|| ForwardAccept {
        chain: format!("{} filter FORWARD", legacy.program),
        inserted: !in_place,
    }))
}
