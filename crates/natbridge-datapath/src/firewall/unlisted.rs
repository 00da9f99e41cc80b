//! What the kernel knows of a ruleset and nft's JSON leaves out: what iptables' extensions are told
//! to do, expressions that this nft does not know, devices of a chain, and what sets do with packets.

use std::collections::{BTreeSet, HashMap};

use netlink_sys::protocols::NETLINK_NETFILTER;
use serde_json::{Value, json};

use crate::error::{Context, Result};
use crate::host::netlink::{Message, Netlink};
use crate::host::nftables::{NFGENMSG, family_of, message_kind};
use crate::host::nla::{Attribute, Attributes};

/// linux/netfilter/nf_tables.h.
const NFT_MSG_GETCHAIN: u16 = message_kind(4);
const NFT_MSG_GETRULE: u16 = message_kind(7);
const NFT_MSG_GETSET: u16 = message_kind(10);
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_DEVICE_NAME: u16 = 1;
const NFTA_DEVICE_PREFIX: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
/// The same for NFTA_TARGET_*.
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_REV: u16 = 2;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_EXPR: u16 = 17;
const NFTA_SET_EXPRESSIONS: u16 = 18;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;

/// Kinds of expressions that nft 1.0.6 and later list, whatever it calls them.
const LISTED: [&str; 40] = [
    "bitwise",
    "byteorder",
    "cmp",
    "connlimit",
    "counter",
    "ct",
    "dup",
    "dynset",
    "exthdr",
    "fib",
    "flow_offload",
    "fwd",
    "hash",
    "immediate",
    "last",
    "limit",
    "log",
    "lookup",
    "masq",
    "match",
    "meta",
    "nat",
    "notrack",
    "numgen",
    "objref",
    "osf",
    "payload",
    "queue",
    "quota",
    "range",
    "redir",
    "reject",
    "rt",
    "secmark",
    "socket",
    "synproxy",
    "target",
    "tproxy",
    "tunnel",
    "xfrm",
];

/// Extensions whose bytes `src/firewall/xtables.ts` reads, and where in their struct it begins to:
/// behind conntrack's addresses.
const READ: [(&str, usize); 4] = [("CONNMARK", 0), ("conntrack", 128), ("state", 0), ("tcp", 0)];

/// Family and table, then the name of a chain or set.
type Named<T> = HashMap<(String, String, String), T>;

struct KernelRule {
    extensions: Vec<Value>,
    unlisted: BTreeSet<String>,
}

struct KernelSet {
    flags: u32,
    statements: Vec<String>,
}

/// Adds it to a listing: to extensions `rev` and `info`, to rules `unlisted`, to chains all of their
/// devices, to sets their flags and statements.
///
/// # Errors
/// What the kernel says to the question.
pub(super) fn complete(objects: &mut [Value]) -> Result<()> {
    if objects.iter().all(|object| object.get("chain").is_none() && object.get("set").is_none()) {
        return Ok(());
    }
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    let rules = read_rules(&mut netlink).context("reading the ruleset's extensions")?;
    let devices = read_devices(&mut netlink).context("reading the chains' devices")?;
    let sets = read_sets(&mut netlink).context("reading the sets' flags")?;
    for object in objects {
        let Some((kind, body)) = object.as_object_mut().and_then(|object| object.iter_mut().next())
        else {
            continue;
        };
        match kind.as_str() {
            "rule" => complete_rule(body, &rules),
            "chain" => {
                if let Some(devices) = named(body).and_then(|key| devices.get(&key)) {
                    body["dev"] = json!(devices);
                }
            }
            "set" | "map" | "meter" => {
                if let Some(set) = named(body).and_then(|key| sets.get(&key)) {
                    complete_set(body, set);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn named(body: &Value) -> Option<(String, String, String)> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    Some((text("family")?, text("table")?, text("name")?))
}

fn complete_rule(body: &mut Value, rules: &HashMap<(String, String, u64), KernelRule>) {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let handle = body.get("handle").and_then(Value::as_u64).unwrap_or_default();
    let Some(rule) = rules.get(&(text("family"), text("table"), handle)) else { return };
    let mut unlisted = rule.unlisted.clone();
    if let Some(expressions) = body.get_mut("expr").and_then(Value::as_array_mut) {
        let mut extensions = rule.extensions.iter();
        for xt in expressions.iter_mut().filter_map(|expression| expression.get_mut("xt")) {
            if let Some(extension) = extensions.next() {
                *xt = extension.clone();
            }
        }
        unlisted.extend(extensions.map(|extension| {
            extension.get("name").and_then(Value::as_str).unwrap_or("match").to_owned()
        }));
    }
    if !unlisted.is_empty() {
        body["unlisted"] = json!(unlisted);
    }
}

fn complete_set(body: &mut Value, set: &KernelSet) {
    let mut flags: BTreeSet<String> = match body.get("flags") {
        Some(Value::String(flag)) => BTreeSet::from([flag.clone()]),
        Some(Value::Array(flags)) => {
            flags.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => BTreeSet::new(),
    };
    for (flag, name) in [(NFT_SET_TIMEOUT, "timeout"), (NFT_SET_EVAL, "dynamic")] {
        if set.flags & flag != 0 {
            flags.insert(name.to_owned());
        }
    }
    body["flags"] = json!(flags);
    if body.get("stmt").is_none() && !set.statements.is_empty() {
        body["stmt"] = set.statements.iter().map(|name| json!({ name: null })).collect();
    }
}

/// The rules of which there is something to add, by family, table and handle.
fn read_rules(netlink: &mut Netlink) -> Result<HashMap<(String, String, u64), KernelRule>> {
    dump(netlink, NFT_MSG_GETRULE, |family, attributes| {
        let expressions = attributes.find(NFTA_RULE_EXPRESSIONS)?;
        let mut rule = KernelRule { extensions: Vec::new(), unlisted: BTreeSet::new() };
        for expression in elements(expressions) {
            let name = expression.find(NFTA_EXPR_NAME)?.text();
            if name == "match" || name == "target" {
                rule.extensions.push(extension(&name, expression.find(NFTA_EXPR_DATA)?));
            } else if !LISTED.contains(&name.as_str()) {
                rule.unlisted.insert(name);
            }
        }
        if rule.extensions.is_empty() && rule.unlisted.is_empty() {
            return None;
        }
        let handle = attributes.find(NFTA_RULE_HANDLE)?.value.first_chunk().copied()?;
        let table = attributes.find(NFTA_RULE_TABLE)?.text();
        Some(((family.to_owned(), table, u64::from_be_bytes(handle)), rule))
    })
}

fn extension(kind: &str, data: Attribute<'_>) -> Value {
    let data = data.nested();
    let name = data.find(NFTA_MATCH_NAME).map_or_else(String::new, |name| name.text());
    let Some((_, start)) = READ.iter().find(|(known, _)| *known == name) else {
        return json!({ "type": kind, "name": name });
    };
    let info = data.find(NFTA_MATCH_INFO).and_then(|info| info.value.get(*start..));
    json!({
        "type": kind,
        "name": name,
        "rev": data.find(NFTA_MATCH_REV).and_then(|revision| revision.be32()),
        "info": hex(info.unwrap_or_default()),
    })
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Devices of the chains that hook into some.
fn read_devices(netlink: &mut Netlink) -> Result<Named<Vec<String>>> {
    dump(netlink, NFT_MSG_GETCHAIN, |family, attributes| {
        let hook = attributes.find(NFTA_CHAIN_HOOK)?.nested();
        let mut devices: BTreeSet<String> =
            hook.filter(|it| it.kind == NFTA_HOOK_DEV).map(|device| device.text()).collect();
        for device in hook.find(NFTA_HOOK_DEVS).into_iter().flat_map(|list| list.nested()) {
            match device.kind {
                NFTA_DEVICE_NAME => devices.insert(device.text()),
                NFTA_DEVICE_PREFIX => devices.insert(format!("{}*", device.text())),
                _ => false,
            };
        }
        if devices.is_empty() {
            return None;
        }
        Some((
            key(family, attributes, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)?,
            devices.into_iter().collect(),
        ))
    })
}

fn read_sets(netlink: &mut Netlink) -> Result<Named<KernelSet>> {
    dump(netlink, NFT_MSG_GETSET, |family, attributes| {
        let flags = attributes.find(NFTA_SET_FLAGS).and_then(|flags| flags.be32()).unwrap_or(0);
        let one = attributes.find(NFTA_SET_EXPR).map(|expression| expression.nested());
        let several = attributes.find(NFTA_SET_EXPRESSIONS).into_iter().flat_map(elements);
        let statements = one
            .into_iter()
            .chain(several)
            .filter_map(|expression| Some(expression.find(NFTA_EXPR_NAME)?.text()))
            .collect();
        Some((
            key(family, attributes, NFTA_SET_TABLE, NFTA_SET_NAME)?,
            KernelSet { flags, statements },
        ))
    })
}

fn elements(list: Attribute<'_>) -> impl Iterator<Item = Attributes<'_>> {
    list.nested().filter(|it| it.kind == NFTA_LIST_ELEM).map(|element| element.nested())
}

fn key(
    family: &str,
    attributes: Attributes<'_>,
    table: u16,
    name: u16,
) -> Option<(String, String, String)> {
    Some((family.to_owned(), attributes.find(table)?.text(), attributes.find(name)?.text()))
}

fn dump<K: std::hash::Hash + Eq, V>(
    netlink: &mut Netlink,
    request: u16,
    parse: impl Fn(&str, Attributes<'_>) -> Option<(K, V)>,
) -> Result<HashMap<K, V>> {
    // Of every family, in the first version of the protocol.
    let header = [0; NFGENMSG];
    let objects = netlink.dump(request, &header, |message: Message<'_>| {
        let Some(family) = family_of(message.payload) else { return Ok(None) };
        Ok(parse(family, Attributes::after(message.payload, NFGENMSG)))
    })?;
    Ok(objects.into_iter().collect())
}
