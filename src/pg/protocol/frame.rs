//! The five bytes in front of every message after the startup packet: a tag and a length.

/// Tag and length, the payload untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// Of the whole message in bytes, tag included: at least [`HEADER_LEN`].
    pub total: usize,
}

pub const HEADER_LEN: usize = 5;

/// PostgreSQL's own limit on one message, `PQ_LARGE_MESSAGE_LIMIT` (`MaxAllocSize - 1`, pqcomm.h).
pub const MAX_MESSAGE_LEN: usize = 0x3FFF_FFFE + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message length {length} in message of type 0x{tag:02x}")]
pub struct InvalidLength {
    pub tag: u8,
    pub length: u32,
}

impl Header {
    /// The header at the start of `bytes`; `None` while fewer than [`HEADER_LEN`] are there.
    pub fn peek(bytes: &[u8]) -> Result<Option<Header>, InvalidLength> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        let in_range = (4..=MAX_MESSAGE_LEN as u64).contains(&u64::from(length));
        if !in_range {
            return Err(InvalidLength { tag, length });
        }
        Ok(Some(Header { tag, total: length as usize + 1 }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, InvalidLength};

    #[test]
    fn lengths_outside_the_protocol_are_refused() {
        assert_eq!(Header::peek(b"Q\0\0\0"), Ok(None));
        assert_eq!(Header::peek(b"S\0\0\0\x04rest"), Ok(Some(Header { tag: b'S', total: 5 })));
        assert_eq!(Header::peek(b"Q\0\0\0\x03"), Err(InvalidLength { tag: b'Q', length: 3 }));
        assert_eq!(Header::peek(b"Q\x7f\xff\xff\xff"), Err(InvalidLength { tag: b'Q', length: 0x7fff_ffff }));
    }
}
