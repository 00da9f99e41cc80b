//! Conversions for `natbridge_datapath::firewall`.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use napi_derive::napi;
use natbridge_datapath::firewall::{self as datapath, Family, Prefix, Protocol};
use natbridge_datapath::{Error, ErrorKind, Result};

use crate::blocking::{change, run};
use crate::error::to_napi;

/// All that the table `inet natbridge` must say.
#[napi(object)]
pub struct FirewallSpec {
    pub strict_forwarding: Vec<String>,
    pub networks: Vec<FirewallNetwork>,
    pub ports: Vec<FirewallPort>,
}

#[napi(object)]
pub struct FirewallNetwork {
    pub bridge: String,
    pub subnets: Vec<FirewallSubnet>,
    pub internal: bool,
    pub isolated: bool,
}

#[napi(object)]
pub struct FirewallSubnet {
    /// CIDR.
    pub subnet: String,
    pub masquerade: bool,
}

#[napi(object)]
pub struct FirewallPort {
    #[napi(ts_type = "'tcp' | 'udp' | 'sctp'")]
    pub protocol: String,
    pub host_address: String,
    pub host_port: u32,
    pub target_address: String,
    pub target_port: u32,
    pub from: Vec<String>,
}

#[napi(object)]
pub struct FirewallChange {
    pub changed: bool,
    pub elements_added: u32,
    pub elements_removed: u32,
    pub rebuilt: bool,
}

#[napi(object)]
pub struct FirewallElement {
    pub set: String,
    pub key: String,
    pub value: String,
}

#[napi(object)]
pub struct ForwardAccept {
    pub chain: String,
    pub inserted: bool,
}

#[napi(object)]
pub struct ForeignRuleset {
    pub nft: String,
    pub legacy: String,
}

/// Makes the table `inet natbridge` say exactly this.
#[napi]
pub async fn apply_firewall(spec: FirewallSpec) -> napi::Result<FirewallChange> {
    let spec = datapath::FirewallSpec::try_from(spec).map_err(to_napi)?;
    let change = change(move || datapath::apply_firewall(&spec), |change| change.changed).await?;
    Ok(FirewallChange {
        changed: change.changed,
        elements_added: count(change.elements_added),
        elements_removed: count(change.elements_removed),
        rebuilt: change.rebuilt,
    })
}

/// Every element that the kernel's table holds.
#[napi]
pub async fn list_firewall() -> napi::Result<Vec<FirewallElement>> {
    let held = run(datapath::list_firewall).await?;
    Ok(held
        .into_iter()
        .map(|element| FirewallElement { set: element.set, key: element.key, value: element.value })
        .collect())
}

/// Removes the table `inet natbridge`.
#[napi]
pub async fn remove_firewall() -> napi::Result<()> {
    change(datapath::remove_firewall, |()| true).await
}

/// Reads the rulesets that are not ours.
#[napi]
pub async fn read_foreign_ruleset() -> napi::Result<ForeignRuleset> {
    let ruleset = run(datapath::read_foreign_ruleset).await?;
    Ok(ForeignRuleset { nft: ruleset.nft, legacy: ruleset.legacy })
}

static KEEPER: Mutex<Option<datapath::TableKeeper>> = Mutex::new(None);

/// Restores the table and the accepts at once when somebody takes them away, until told otherwise.
pub fn keep(stand_in: bool) -> Result<()> {
    stop_keeping();
    *KEEPER.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(datapath::TableKeeper::start(stand_in)?);
    Ok(())
}

/// Ends `keep`, and takes its stand-in away.
pub fn stop_keeping() {
    drop(KEEPER.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Puts the tagged accept at the end of every forward chain with policy drop.
#[napi]
pub async fn ensure_forward_accepts() -> napi::Result<Vec<ForwardAccept>> {
    let accepts = change(datapath::ensure_forward_accepts, |accepts| {
        accepts.iter().any(|accept| accept.inserted)
    })
    .await?;
    Ok(accepts
        .into_iter()
        .map(|accept| ForwardAccept { chain: accept.chain, inserted: accept.inserted })
        .collect())
}

/// Removes every tagged accept.
#[napi]
pub async fn remove_forward_accepts() -> napi::Result<()> {
    change(datapath::remove_forward_accepts, |()| true).await
}

impl TryFrom<FirewallSpec> for datapath::FirewallSpec {
    type Error = Error;

    fn try_from(spec: FirewallSpec) -> Result<Self> {
        Ok(Self {
            strict_forwarding: collect(
                "strictForwarding",
                spec.strict_forwarding,
                |field, word| Family::parse(&word, field),
            )?,
            networks: collect("networks", spec.networks, network)?,
            ports: collect("ports", spec.ports, port)?,
        })
    }
}

fn network(field: &str, network: FirewallNetwork) -> Result<datapath::FirewallNetwork> {
    let subnets = collect(&format!("{field}.subnets"), network.subnets, |field, subnet| {
        let prefix = Prefix::parse(&subnet.subnet, &format!("{field}.subnet"))?;
        Ok(datapath::FirewallSubnet { subnet: prefix, masquerade: subnet.masquerade })
    })?;
    Ok(datapath::FirewallNetwork {
        bridge: network.bridge,
        subnets,
        internal: network.internal,
        isolated: network.isolated,
    })
}

fn port(field: &str, port: FirewallPort) -> Result<datapath::FirewallPort> {
    Ok(datapath::FirewallPort {
        protocol: Protocol::parse(&port.protocol, &format!("{field}.protocol"))?,
        host_address: address(&port.host_address, &format!("{field}.hostAddress"))?,
        host_port: number(port.host_port, &format!("{field}.hostPort"))?,
        target_address: match port.target_address.as_str() {
            "" => None,
            text => Some(address(text, &format!("{field}.targetAddress"))?),
        },
        target_port: number(port.target_port, &format!("{field}.targetPort"))?,
        from: collect(&format!("{field}.from"), port.from, |field, from| {
            Prefix::parse(&from, field)
        })?,
    })
}

fn collect<From, To>(
    name: &str,
    items: Vec<From>,
    convert: impl Fn(&str, From) -> Result<To>,
) -> Result<Vec<To>> {
    let convert = |(index, item)| convert(&format!("{name}[{index}]"), item);
    items.into_iter().enumerate().map(convert).collect()
}

fn address(text: &str, field: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("{field}: {text:?} is no IPv4 or IPv6 address"))
    })
}

fn number(port: u32, field: &str) -> Result<u16> {
    u16::try_from(port).map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("{field}: {port} is no port; use 1 to 65535"))
    })
}

fn count(elements: usize) -> u32 {
    u32::try_from(elements).unwrap_or(u32::MAX)
}
