//! Netlink attributes, for the protocols that netlink-packet-route does not speak: ctnetlink, xfrm,
//! nf_tables notifications, and the parts of tc whose unknown kinds must not fail a listing.

const HEADER: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in the type field (linux/netlink.h).
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// One attribute of a received message; its bytes are bounds-checked.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// Network byte order, as all of nfnetlink's numbers are.
    pub fn be16(&self) -> Option<u16> {
        self.value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Network byte order, as all of nfnetlink's numbers are.
    pub fn be32(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// Host byte order, as all of rtnetlink's numbers are.
    pub fn ne32(&self) -> Option<u32> {
        self.value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// Text up to the first NUL.
    pub fn text(&self) -> String {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(&self.value[..end]).into_owned()
    }
}

/// Walks attributes; ends at the first that does not fit.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The attributes after a protocol header of `header` bytes.
    pub fn after(payload: &'a [u8], header: usize) -> Self {
        Self(payload.get(header..).unwrap_or_default())
    }

    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind: kind & TYPE_MASK, value })
    }
}

/// Appends an attribute and its padding.
pub fn push(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (HEADER + value.len()) as u16;
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(value);
    buffer.resize(align(buffer.len()), 0);
}

/// Appends an attribute whose value is attributes.
pub fn push_nested(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    push(buffer, kind | NESTED, value);
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        let mut buffer = Vec::new();
        push(&mut buffer, 3, &[1, 2, 3]);
        push_nested(&mut buffer, 4, b"");
        push(&mut buffer, 5, b"eth0\0");
        assert_eq!(buffer.len() % 4, 0);
        let attributes = Attributes::new(&buffer);
        assert_eq!(attributes.find(3).unwrap().value, [1, 2, 3]);
        assert_eq!(attributes.find(4).unwrap().value, [0u8; 0]);
        assert_eq!(attributes.find(5).unwrap().text(), "eth0");
        assert!(attributes.find(6).is_none());
    }

    #[test]
    fn every_truncation_ends_quietly() {
        let mut buffer = Vec::new();
        push(&mut buffer, 1, &[7; 9]);
        push(&mut buffer, 2, &7u32.to_be_bytes());
        for length in 0..buffer.len() {
            let read: Vec<_> = Attributes::new(&buffer[..length]).collect();
            assert!(read.len() <= 2);
        }
        // A length of zero must not loop for ever.
        assert_eq!(Attributes::new(&[0; 16]).count(), 0);
    }
}
