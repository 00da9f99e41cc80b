//! Where masqueraded source ports go that may not stay: numbers nobody else uses.

use std::fmt;
use std::fs;

use super::spec::FirewallPort;

/// Both ends are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// Above the kernel's own ephemeral ports (ip_local_port_range as it comes), where nobody registers
/// services (RFC 6335 section 6).
const USUAL: PortRange = PortRange { first: 61_000, last: 65_535 };
const UNPRIVILEGED: PortRange = PortRange { first: 1024, last: 65_535 };
/// So many connections to one and the same remote socket are enough to look no further.
const ENOUGH: u32 = 512;

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

impl PortRange {
    fn len(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The largest block free of published and ephemeral ports, high up if there is enough.
pub fn elsewhere(ports: &[FirewallPort], ephemeral: PortRange) -> PortRange {
    let mut taken: Vec<PortRange> = ports
        .iter()
        .map(|port| PortRange { first: port.host_port, last: port.host_port })
        .chain([ephemeral])
        .collect();
    taken.sort_unstable();
    let high = largest_gap(USUAL, &taken).filter(|gap| gap.len() >= ENOUGH);
    high.or_else(|| largest_gap(UNPRIVILEGED, &taken)).unwrap_or(UNPRIVILEGED)
}

/// `taken` is sorted.
fn largest_gap(within: PortRange, taken: &[PortRange]) -> Option<PortRange> {
    let mut largest: Option<PortRange> = None;
    let mut first = u32::from(within.first);
    let end = PortRange { first: u16::MAX, last: u16::MAX };
    for (range, is_end) in taken.iter().map(|range| (*range, false)).chain([(end, true)]) {
        // Behind the last range the gap goes on to the end of all.
        let stop = if is_end { 65_536 } else { u32::from(range.first) };
        let last = stop.saturating_sub(1).min(u32::from(within.last));
        if let (Ok(from), Ok(to)) = (u16::try_from(first), u16::try_from(last))
            && from <= to
        {
            let gap = PortRange { first: from, last: to };
            if largest.is_none_or(|known| known.len() < gap.len()) {
                largest = Some(gap);
            }
        }
        first = first.max(u32::from(range.last) + 1);
    }
    largest
}

/// The ports that the kernel gives to sockets of this thread's namespace.
pub fn ephemeral() -> PortRange {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut words = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (words.next(), words.next()) {
        (Some(first), Some(last)) => PortRange { first, last },
        _ => PortRange { first: 32_768, last: 60_999 },
    }
}

/// UDP ports on which a process of this thread's namespace receives from anybody. The kernel's own
/// choices are left out: they come and go with every question to a name server.
pub fn bound_udp(ephemeral: PortRange) -> Vec<u16> {
    let mut ports: Vec<u16> = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(table).unwrap_or_default();
            text.lines().filter_map(unconnected).collect::<Vec<_>>()
        })
        .filter(|port| !ephemeral.contains(*port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The local port of a line of `/proc/net/udp` whose remote port is 0 (proc(5)).
fn unconnected(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote) = (words.next()?, words.next()?);
    let port = |socket: &str| u16::from_str_radix(socket.rsplit(':').next()?, 16).ok();
    (port(remote)? == 0).then_some(port(local)?)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::spec::Protocol;
    use super::*;

    const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

    fn published(numbers: impl IntoIterator<Item = u16>) -> Vec<FirewallPort> {
        let port = |host_port| FirewallPort {
            protocol: Protocol::Udp,
            host_address: Ipv4Addr::UNSPECIFIED.into(),
            host_port,
            target_address: None,
            target_port: 1,
            from: vec![],
        };
        numbers.into_iter().map(port).collect()
    }

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn goes_round_what_is_taken() {
        assert_eq!(elsewhere(&[], EPHEMERAL), range(61_000, 65_535));
        assert_eq!(elsewhere(&published([53, 5353]), EPHEMERAL), range(61_000, 65_535));
        assert_eq!(elsewhere(&published([65_535]), EPHEMERAL), range(61_000, 65_534));
        assert_eq!(elsewhere(&published([62_000, 61_000]), EPHEMERAL), range(62_001, 65_535));
        let high = published((61_000..=65_535).step_by(400));
        assert_eq!(elsewhere(&high, EPHEMERAL), range(1024, 32_767));
        assert_eq!(elsewhere(&[], range(1024, 65_535)), UNPRIVILEGED, "nothing is free");
        assert_eq!(elsewhere(&[], range(20_000, 65_535)), range(1024, 19_999));
    }

    #[test]
    fn reads_unconnected_sockets() {
        let line = " 2044: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000";
        assert_eq!(unconnected(line), Some(5353));
        assert_eq!(unconnected(&line.replace("00000000:0000 07", "01010101:0035 01")), None);
        assert_eq!(unconnected("  sl  local_address rem_address   st tx_queue"), None);
    }
}
