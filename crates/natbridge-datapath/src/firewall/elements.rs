//! Elements of the table's sets and maps: those wanted, and those the kernel holds.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;

use super::prefix::Prefix;
use super::spec::{FirewallPort, FirewallSpec, Protocol};
use super::table::{BOUND_UDP, Field, SETS, Set};
use crate::error::{Error, ErrorKind, Result};

/// Per set: keys in nft's syntax, and for maps their values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elements(BTreeMap<String, BTreeMap<String, String>>);

/// What to take out of the kernel's sets and what to put in.
#[derive(Debug, Default)]
pub struct Difference {
    pub removed: Elements,
    pub added: Elements,
}

impl Elements {
    /// Number of elements in all sets.
    pub fn count(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Of those that the specification asks for.
    pub fn count_specified(&self) -> usize {
        self.count() - self.0.get(BOUND_UDP).map_or(0, BTreeMap::len)
    }

    /// Adds the numbers on which the host itself receives.
    pub fn add_bound_udp(&mut self, ports: &[u16]) {
        for port in ports {
            self.insert(BOUND_UDP, port.to_string(), String::new());
        }
    }

    /// Those of these sets.
    pub fn only(&self, sets: &[&str]) -> Self {
        let chosen = self.0.iter().filter(|(set, _)| sets.contains(&set.as_str()));
        Self(chosen.map(|(set, elements)| (set.clone(), elements.clone())).collect())
    }

    /// Set, key and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().flat_map(|(set, elements)| {
            elements.iter().map(|(key, value)| (set.as_str(), key.as_str(), value.as_str()))
        })
    }

    /// The commands that do `verb` (`add` or `delete`) with every element.
    pub fn commands(&self, verb: &str, table: &str) -> String {
        let mut script = String::new();
        for (set, elements) in self.0.iter().filter(|(_, elements)| !elements.is_empty()) {
            script.push_str(&format!("{verb} element {table} {set} {{ "));
            for (index, (key, value)) in elements.iter().enumerate() {
                script.push_str(if index == 0 { "" } else { ",\n" });
                script.push_str(key);
                if !value.is_empty() && verb == "add" {
                    script.push_str(" : ");
                    script.push_str(value);
                }
            }
            script.push_str(" }\n");
        }
        script
    }

    /// What makes `self` into `wanted`. A map element with another value is removed and added.
    pub fn difference(&self, wanted: &Self) -> Difference {
        let empty = BTreeMap::new();
        let outside = |of: &Self, other: &Self| {
            let mut rest = Self::default();
            for (set, elements) in &of.0 {
                let known = other.0.get(set).unwrap_or(&empty);
                for (key, value) in
                    elements.iter().filter(|(key, value)| known.get(*key) != Some(value))
                {
                    rest.insert(set, key.clone(), value.clone());
                }
            }
            rest
        };
        Difference { removed: outside(self, wanted), added: outside(wanted, self) }
    }

    /// The elements this specification asks for. The specification has been checked.
    pub fn wanted(spec: &FirewallSpec) -> Self {
        let mut elements = Self::default();
        elements.add_networks(spec);
        let wildcards = restricted_wildcards(&spec.ports);
        for port in spec.ports.iter().filter(|port| !is_loopback(port.host_address)) {
            elements.add_port(port, &wildcards);
        }
        elements
    }

    /// The elements of a `nft -j list table`.
    ///
    /// # Errors
    /// `Io` if nft answers something else than it is known to.
    pub fn listed(listing: &str) -> Result<Self> {
        let listing: Value = serde_json::from_str(listing)
            .map_err(|cause| Error::new(ErrorKind::Io, format!("read nft's listing: {cause}")))?;
        let objects = listing.get("nftables").and_then(Value::as_array).ok_or_else(unreadable)?;
        let mut elements = Self::default();
        for object in objects {
            let Some(set) = object.get("set").or_else(|| object.get("map")) else { continue };
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            let Some(known) = SETS.iter().find(|known| known.name == name) else { continue };
            let listed = set.get("elem").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for element in listed {
                let (key, value) = split(known, element)?;
                elements.insert(known.name, key, value);
            }
        }
        Ok(elements)
    }

    fn insert(&mut self, set: &str, key: String, value: String) {
        match self.0.get_mut(set) {
            Some(elements) => {
                elements.insert(key, value);
            }
            None => {
                self.0.insert(set.to_owned(), BTreeMap::from([(key, value)]));
            }
        }
    }

    fn add_networks(&mut self, spec: &FirewallSpec) {
        for family in &spec.strict_forwarding {
            self.insert("strict_forwarding", family.as_str().into(), String::new());
        }
        for network in &spec.networks {
            let bridge = format!("\"{}\"", network.bridge);
            self.insert("bridges", bridge.clone(), String::new());
            if network.internal {
                self.insert("internal_bridges", bridge.clone(), String::new());
            }
            if !network.isolated {
                self.insert("same_bridge", format!("{bridge} . {bridge}"), String::new());
            }
            for subnet in &network.subnets {
                let family = family_digit(subnet.subnet.address());
                let own = format!("{bridge} . {}", subnet.subnet);
                self.insert(&format!("own_subnet{family}"), own, String::new());
                if subnet.masquerade && !network.internal {
                    let name = format!("masquerade{family}");
                    self.insert(&name, subnet.subnet.to_string(), String::new());
                }
            }
        }
    }

    fn add_port(&mut self, port: &FirewallPort, wildcards: &HashSet<(Protocol, bool, u16)>) {
        let protocol = port.protocol.as_str();
        let family = family_digit(port.host_address);
        let wildcard = port.host_address.is_unspecified();
        let kind = if wildcard { "wildcard" } else { "exact" };
        let socket = if wildcard {
            port.host_port.to_string()
        } else {
            format!("{} . {}", port.host_address, port.host_port)
        };
        let number = format!("{protocol} . {}", port.host_port);
        if let Some(target) = port.target_address {
            let target = format!("{target} . {}", port.target_port);
            let led_to = format!("{protocol} . {target}");
            self.insert(&format!("target{family}"), led_to, String::new());
            self.insert(&format!("{protocol}_{kind}{family}"), socket.clone(), target);
        } else {
            self.insert(&format!("forwarded{family}"), number.clone(), String::new());
        }
        self.insert(&format!("published{family}"), number, String::new());
        let key = format!("{protocol} . {socket}");
        self.insert(&format!("published_{kind}{family}"), key.clone(), String::new());
        let beside = (port.protocol, port.host_address.is_ipv4(), port.host_port);
        if !wildcard && wildcards.contains(&beside) {
            self.insert(&format!("exempt{family}"), key.clone(), String::new());
        }
        if port.from.is_empty() {
            return;
        }
        let ipv4 = port.host_address.is_ipv4();
        let clients = port.from.iter().copied().filter(|from| from.address().is_ipv4() == ipv4);
        for from in Prefix::without_nested(clients.collect()) {
            self.insert(
                &format!("allowed_{kind}{family}"),
                format!("{key} . {from}"),
                String::new(),
            );
        }
        self.insert(&format!("restricted_{kind}{family}"), key, String::new());
    }
}

/// Wildcard ports with a `from`: protocol, IPv4, port.
fn restricted_wildcards(ports: &[FirewallPort]) -> HashSet<(Protocol, bool, u16)> {
    ports
        .iter()
        .filter(|port| port.host_address.is_unspecified() && !port.from.is_empty())
        .map(|port| (port.protocol, port.host_address.is_ipv4(), port.host_port))
        .collect()
}

/// A port on a loopback address is the connect hook's and the forwarder's: no rule can match it.
fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

fn family_digit(address: IpAddr) -> char {
    if address.is_ipv4() { '4' } else { '6' }
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Io, "nft's listing has a form that natbridge does not know")
}

/// Key and value of one listed element; the value of a set's element is empty.
fn split(set: &Set, element: &Value) -> Result<(String, String)> {
    if set.value.is_empty() {
        return Ok((fields(set.key, element)?, String::new()));
    }
    match element.as_array().map(Vec::as_slice) {
        Some([key, value]) => Ok((fields(set.key, key)?, fields(set.value, value)?)),
        _ => Err(unreadable()),
    }
}

fn fields(kinds: &[Field], value: &Value) -> Result<String> {
    // Elements with a comment or a timeout, which we never write, come wrapped.
    let value = value.pointer("/elem/val").unwrap_or(value);
    if let [kind] = kinds {
        return field(*kind, value);
    }
    let parts = value.get("concat").and_then(Value::as_array).ok_or_else(unreadable)?;
    if parts.len() != kinds.len() {
        return Err(unreadable());
    }
    let parts: Result<Vec<_>> =
        kinds.iter().zip(parts).map(|(kind, part)| field(*kind, part)).collect();
    Ok(parts?.join(" . "))
}

fn field(kind: Field, value: &Value) -> Result<String> {
    let text = value.as_str();
    let found = match kind {
        Field::Interface => text.map(|name| format!("\"{name}\"")),
        Field::Family | Field::Protocol => text.map(str::to_owned),
        Field::Port => value.as_u64().map(|port| port.to_string()),
        Field::Ipv4 | Field::Ipv6 => {
            text.and_then(parse_address).map(|address| address.to_string())
        }
        Field::Ipv4Prefix | Field::Ipv6Prefix => prefix(value),
    };
    found.ok_or_else(unreadable)
}

/// A prefix, or the range of somebody who added elements by hand.
fn prefix(value: &Value) -> Option<String> {
    if let Some(address) = value.as_str() {
        return parse_address(address).map(|address| address.to_string());
    }
    if let Some(prefix) = value.get("prefix") {
        let address = prefix.get("addr").and_then(Value::as_str).and_then(parse_address)?;
        let length = prefix.get("len").and_then(Value::as_u64)?;
        return Prefix::new(address, u8::try_from(length).ok()?).map(|prefix| prefix.to_string());
    }
    let [first, last] = value.get("range")?.as_array()?.as_slice() else { return None };
    let (first, last) = (parse_address(first.as_str()?)?, parse_address(last.as_str()?)?);
    let exact = Prefix::from_range(first, last).map(|prefix| prefix.to_string());
    exact.or_else(|| Some(format!("{first}-{last}")))
}

fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A v6 client of a v4 container goes through the forwarder; its port's client list still holds.
    #[test]
    fn restricts_a_port_that_only_the_forwarder_serves() {
        let port = FirewallPort {
            protocol: Protocol::Tcp,
            host_address: "::".parse().unwrap(),
            host_port: 8080,
            target_address: None,
            target_port: 80,
            from: vec![Prefix::parse("10.0.0.0/8", "from").unwrap()],
        };
        let spec = FirewallSpec { ports: vec![port], ..FirewallSpec::default() };
        spec.check().unwrap();
        let script = Elements::wanted(&spec).commands("add", "inet natbridge");
        assert_eq!(
            script,
            "add element inet natbridge forwarded6 { tcp . 8080 }\n\
             add element inet natbridge published6 { tcp . 8080 }\n\
             add element inet natbridge published_wildcard6 { tcp . 8080 }\n\
             add element inet natbridge restricted_wildcard6 { tcp . 8080 }\n"
        );
    }
}
