//! What messages are made of: big-endian integers, NUL-terminated strings, counted bytes (pqformat.c).

use bytes::{BufMut, BytesMut};

use crate::pg::error::{ErrorFields, SqlState};

/// A message whose inside contradicts its length. The text is PostgreSQL's own (pqformat.c), so that clients and
/// logs say the same whoever found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

impl Malformed {
    pub(super) const TRUNCATED: Malformed = Malformed("insufficient data left in message");
    pub(super) const STRING: Malformed = Malformed("invalid string in message");
    pub(super) const TRAILING: Malformed = Malformed("invalid message format");

    /// The stream cannot be trusted behind such a message: the connection ends.
    pub fn fields(self) -> ErrorFields {
        ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, self.0)
    }
}

/// Appends one message: `tag`, the length, and what `body` appends.
pub(super) fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_counted(out, body);
}

/// Appends a length that counts itself, and what `body` appends: all of an untagged message.
pub(super) fn put_counted(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let length_at = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - length_at).expect("our own messages are far below 4 GB");
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends `text` and its terminator. A NUL inside would end it early and let the rest pose as another field, so
/// it becomes a space.
pub(super) fn put_str(out: &mut BytesMut, text: &str) {
    if text.as_bytes().contains(&0) {
        out.extend(text.bytes().map(|b| if b == 0 { b' ' } else { b }));
    } else {
        out.put_slice(text.as_bytes());
    }
    out.put_u8(0);
}

/// Appends a counted value; a length of -1 is NULL.
pub(super) fn put_value(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(bytes) => {
            out.put_i32(i32::try_from(bytes.len()).expect("our own values are far below 2 GB"));
            out.put_slice(bytes);
        }
    }
}

/// Appends how many entries follow.
pub(super) fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u16(u16::try_from(count).expect("our own messages have few columns and parameters"));
}

/// Reads a payload from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed::TRUNCATED)?;
        self.0 = rest;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed::TRUNCATED)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The bytes up to the next NUL, which is consumed.
    pub(super) fn c_str(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Malformed::STRING)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// Like [`Reader::c_str`], for what must be UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.c_str()?).map_err(|_| Malformed::STRING)
    }

    /// A counted value; `None` is NULL.
    pub(super) fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.u32()? {
            u32::MAX => Ok(None),
            length => self.bytes(length as usize).map(Some),
        }
    }

    /// Everything must have been read.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::TRAILING) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::TRUNCATED)?;
        self.0 = rest;
        Ok(*array)
    }
}
