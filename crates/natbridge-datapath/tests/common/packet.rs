//! Packets with checksums summed up from nothing, to hold against what the programs make.

use std::net::IpAddr;

use natbridge_datapath::fastpath::abi::{nb_address, nb_tuple};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ACK: u8 = 0x10;

#[derive(Clone, Debug)]
pub struct Packet {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub ttl: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
    /// UDP only: send no checksum.
    pub no_checksum: bool,
}

impl Packet {
    pub fn new(protocol: u8, source: &str, destination: &str) -> Self {
        Self {
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 40000,
            destination_port: 8080,
            protocol,
            ttl: 64,
            flags: ACK,
            payload: b"payload of odd size".to_vec(),
            no_checksum: false,
        }
    }

    pub fn tuple(&self) -> nb_tuple {
        nb_tuple {
            source: nb_address::from(self.source),
            destination: nb_address::from(self.destination),
            source_port: self.source_port.to_be(),
            destination_port: self.destination_port.to_be(),
        }
    }

    pub fn family(&self) -> u8 {
        if self.source.is_ipv4() { 4 } else { 6 }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        let checksum_at = if self.protocol == TCP {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            bytes.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            bytes.extend([0, 0]);
            6
        };
        bytes.extend(&self.payload);
        let mut pseudo = Vec::new();
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(v4) => pseudo.extend(v4.octets()),
                IpAddr::V6(v6) => pseudo.extend(v6.octets()),
            }
        }
        pseudo.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol]);
        pseudo.extend(&bytes);
        let sum = match checksum(&pseudo) {
            _ if self.no_checksum => 0,
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend(u16::try_from(20 + transport.len()).unwrap().to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
                frame.extend([self.protocol, self.ttl]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("addresses of two families"),
        }
        frame.extend(transport);
        frame
    }
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
