//! An address prefix in canonical form, as it goes into sets and comes back from them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, ErrorKind, Result};

/// A subnet: address with the host bits cleared, and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// A prefix of `length` bits; bits of `address` beyond it are cleared. `None` if it is too long.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
            }
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// Reads `address/length`, or an address alone as its longest prefix.
    ///
    /// # Errors
    /// `Invalid`, naming `field`.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let prefix = address.parse::<IpAddr>().ok().and_then(|address| {
            let length = match length {
                "" if !text.contains('/') => longest(address),
                // Digits alone: u8's own parser would also take a plus sign.
                _ if length.bytes().all(|byte| byte.is_ascii_digit()) => length.parse().ok()?,
                _ => return None,
            };
            Self::new(address, length)
        });
        prefix.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "{field}: {text:?} is no subnet; write it as address/length, like 172.32.0.0/24"
                ),
            )
        })
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Every address of `other` is one of ours.
    pub fn contains(self, other: Self) -> bool {
        self.length <= other.length
            && Self::new(other.address, self.length).is_some_and(|cut| cut == self)
    }

    /// One contains the other.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// The same addresses with no prefix inside another: interval sets refuse overlaps.
    pub fn without_nested(mut prefixes: Vec<Self>) -> Vec<Self> {
        // Sorted, a prefix comes right after those that contain it.
        prefixes.sort_unstable();
        prefixes.dedup();
        let mut kept: Vec<Self> = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            if !kept.last().is_some_and(|last| last.contains(prefix)) {
                kept.push(prefix);
            }
        }
        kept
    }

    /// The prefix that covers exactly `first` to `last`, if there is one.
    pub fn from_range(first: IpAddr, last: IpAddr) -> Option<Self> {
        (0..=longest(first))
            .filter_map(|length| Self::new(first, length))
            .find(|prefix| prefix.address == first && prefix.last() == last)
    }

    fn last(self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) | host))
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) | host))
            }
        }
    }
}

fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// As nft writes it: a single address without its length.
impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == longest(self.address) {
            return write!(formatter, "{}", self.address);
        }
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(text, "test").unwrap()
    }

    #[test]
    fn reads_and_writes() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("FD00:0::1/64", "fd00::/64"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(prefix(text).to_string(), shown);
        }
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            "a",
            "1.1.1.1/8; x",
        ] {
            let error = Prefix::parse(text, "ports[0].from[1]").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().starts_with("ports[0].from[1]:"), "{error}");
        }
    }

    #[test]
    fn drops_what_lies_inside_another() {
        let all = [
            "10.1.0.0/16",
            "10.0.0.0/8",
            "10.0.0.0/8",
            "11.0.0.1",
            "10.255.0.1",
            "fd00::/8",
            "fd01::/16",
        ];
        let kept = Prefix::without_nested(all.iter().map(|text| prefix(text)).collect());
        let kept: Vec<String> = kept.iter().map(Prefix::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "11.0.0.1", "fd00::/8"]);
    }

    #[test]
    fn finds_the_prefix_of_a_range() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = |first, last| Prefix::from_range(address(first), address(last));
        assert_eq!(found("10.0.0.0", "10.0.0.255"), Some(prefix("10.0.0.0/24")));
        assert_eq!(found("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(prefix("::/0")));
        assert_eq!(found("10.0.0.1", "10.0.0.2"), None);
    }
}
