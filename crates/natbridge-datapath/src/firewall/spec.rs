//! What the table must say, and the checks that make it safe to write into a script.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::prefix::Prefix;
use crate::error::{Error, ErrorKind, Result};

/// All that the table `inet natbridge` must say.
#[derive(Clone, Debug, Default)]
pub struct FirewallSpec {
    /// Drop forwarding of these families that touches none of our bridges.
    pub strict_forwarding: Vec<Family>,
    pub networks: Vec<FirewallNetwork>,
    pub ports: Vec<FirewallPort>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// nft's word for it, and the API's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// Reads the API's word.
    ///
    /// # Errors
    /// `Invalid`, naming `field`.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|family| family.as_str() == text)
            .ok_or_else(|| invalid(format!("{field}: {text:?} is no family; use ipv4 or ipv6")))
    }
}

#[derive(Clone, Debug)]
pub struct FirewallNetwork {
    /// Device name of the bridge.
    pub bridge: String,
    pub subnets: Vec<FirewallSubnet>,
    /// No way in or out.
    pub internal: bool,
    /// Endpoints do not reach each other.
    pub isolated: bool,
}

#[derive(Clone, Debug)]
pub struct FirewallSubnet {
    pub subnet: Prefix,
    pub masquerade: bool,
}

/// A published port.
#[derive(Clone, Debug)]
pub struct FirewallPort {
    pub protocol: Protocol,
    /// The unspecified address stands for every address of its family.
    pub host_address: IpAddr,
    pub host_port: u16,
    /// None where the forwarder serves the port: then the table only keeps other clients out.
    pub target_address: Option<IpAddr>,
    pub target_port: u16,
    /// Client subnets that may connect; empty: all. Those of the other family match nobody here.
    pub from: Vec<Prefix>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Every protocol a port can be published for.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// nft's word for it, and the API's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Reads the API's word.
    ///
    /// # Errors
    /// `Invalid`, naming `field`.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == text).ok_or_else(|| {
            invalid(format!("{field}: {text:?} is no protocol; use tcp, udp or sctp"))
        })
    }
}

impl FirewallSpec {
    /// Refuses what no table can say without contradiction.
    ///
    /// # Errors
    /// `Invalid`, naming the field.
    pub fn check(&self) -> Result<()> {
        self.check_networks()?;
        self.check_ports()
    }

    fn check_networks(&self) -> Result<()> {
        let mut bridges = HashSet::new();
        let mut subnets: Vec<(Prefix, &str)> = Vec::new();
        for (index, network) in self.networks.iter().enumerate() {
            check_interface_name(&network.bridge, &format!("networks[{index}].bridge"))?;
            if !bridges.insert(network.bridge.as_str()) {
                let bridge = &network.bridge;
                return Err(invalid(format!("networks[{index}].bridge: {bridge} is there twice")));
            }
            subnets.extend(network.subnets.iter().map(|s| (s.subnet, network.bridge.as_str())));
        }
        // Sorted, a prefix comes right after those that contain it.
        subnets.sort_unstable();
        for pair in subnets.windows(2) {
            if let [(first, of), (second, other)] = pair
                && first.overlaps(*second)
            {
                return Err(invalid(format!(
                    "networks: subnet {first} of {of} overlaps {second} of {other}; give them different subnets"
                )));
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<()> {
        let mut taken = HashMap::new();
        for (index, port) in self.ports.iter().enumerate() {
            let field = format!("ports[{index}]");
            if port.host_port == 0 || port.target_port == 0 {
                return Err(invalid(format!(
                    "{field}: port 0 cannot be published; use 1 to 65535"
                )));
            }
            if let Some(target) = port.target_address
                && target.is_ipv4() != port.host_address.is_ipv4()
            {
                return Err(invalid(format!(
                    "{field}.targetAddress: {target} is not of the family of {}",
                    port.host_address
                )));
            }
            if let Some(first) =
                taken.insert((port.protocol, port.host_address, port.host_port), index)
            {
                return Err(invalid(format!(
                    "{field}: {}:{}/{} is already published by ports[{first}]",
                    port.host_address,
                    port.host_port,
                    port.protocol.as_str()
                )));
            }
        }
        Ok(())
    }
}

/// Refuses names that are no interface's, and those that nft would read as something else.
fn check_interface_name(name: &str, field: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\*/:".contains(&byte);
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || !name.bytes().all(plain)
    {
        return Err(invalid(format!(
            "{field}: {name:?} is no device name; use 1 to 15 letters, digits, '-', '_' or '.'"
        )));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(bridge: &str, subnet: &str) -> FirewallNetwork {
        let subnet = Prefix::parse(subnet, "subnet").unwrap();
        FirewallNetwork {
            bridge: bridge.into(),
            subnets: vec![FirewallSubnet { subnet, masquerade: true }],
            internal: false,
            isolated: false,
        }
    }

    fn refusal(networks: Vec<FirewallNetwork>, ports: Vec<FirewallPort>) -> String {
        let error =
            FirewallSpec { strict_forwarding: Vec::new(), networks, ports }.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    }

    #[test]
    fn refuses_names_that_would_leave_their_quotes() {
        for name in ["", "a\"", "nb*", "a b", "a\n", "0123456789abcdef", "a/b", "é", ".."] {
            let message = refusal(vec![network(name, "10.0.0.0/8")], vec![]);
            assert!(message.starts_with("networks[0].bridge:"), "{message}");
        }
    }

    #[test]
    fn refuses_overlaps_and_duplicates() {
        let overlap =
            refusal(vec![network("a", "10.0.0.0/8"), network("b", "10.1.0.0/16")], vec![]);
        assert!(overlap.contains("10.1.0.0/16 of b"), "{overlap}");
        let twice = refusal(vec![network("a", "10.0.0.0/8"), network("a", "11.0.0.0/8")], vec![]);
        assert!(twice.contains("twice"), "{twice}");
        let port = FirewallPort {
            protocol: Protocol::Tcp,
            host_address: "0.0.0.0".parse().unwrap(),
            host_port: 80,
            target_address: Some("10.0.0.2".parse().unwrap()),
            target_port: 80,
            from: vec![],
        };
        assert!(refusal(vec![], vec![port.clone(), port.clone()]).contains("ports[0]"));
        let mixed = FirewallPort { target_address: Some("::1".parse().unwrap()), ..port.clone() };
        assert!(refusal(vec![], vec![mixed]).starts_with("ports[0].targetAddress"));
        let zero = FirewallPort { target_port: 0, ..port };
        assert!(refusal(vec![], vec![zero]).contains("port 0"));
    }
}
