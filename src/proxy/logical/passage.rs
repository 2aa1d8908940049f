//! Where messages end, in bytes that pass through.
//!
//! Only what ends a connection has to be known of them: a last word of ours must not fall into the middle of a
//! message. So short messages pass whole, and only in one that is too long to be held may the stream break off.

use crate::pg::protocol::frame::{Header, InvalidLength};

/// Longer messages pass as they come.
pub(super) const MAX_WHOLE: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Passage {
    /// What is to come of a long message that has begun to pass.
    rest: usize,
}

/// The next bytes that may pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A whole message: its tag, and with it.
    Message(u8, &'a [u8]),
    /// So many bytes of a long one.
    Part(usize),
    /// More has to come first.
    Nothing,
}

impl Passage {
    /// Of `bytes`, the first of which is the first that has not passed.
    pub(super) fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Next<'a>, InvalidLength> {
        if self.rest == 0 {
            let Some(header) = Header::peek(bytes)? else { return Ok(Next::Nothing) };
            if let Some(message) = bytes.get(..header.total) {
                return Ok(Next::Message(header.tag, message));
            }
            if header.total <= MAX_WHOLE {
                return Ok(Next::Nothing);
            }
            self.rest = header.total;
        }
        let part = self.rest.min(bytes.len());
        self.rest -= part;
        Ok(if part == 0 { Next::Nothing } else { Next::Part(part) })
    }

    /// Whether a message has begun to pass and has not ended.
    pub(super) fn is_amid(&self) -> bool {
        self.rest > 0
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_WHOLE, Next, Passage};

    /// What passes when `pieces` come one after the other: a message as its tag and length, a part as its length;
    /// and whether the last one is amid.
    fn check(pieces: &[&[u8]], expected: &[(Option<u8>, usize)], amid: bool) {
        let (mut passage, mut held, mut passed) = (Passage::default(), vec![], vec![]);
        for piece in pieces {
            held.extend_from_slice(piece);
            loop {
                let (tag, length) = match passage.next(&held).expect("lengths within the protocol") {
                    Next::Message(tag, message) => (Some(tag), message.len()),
                    Next::Part(length) => (None, length),
                    Next::Nothing => break,
                };
                passed.push((tag, length));
                held.drain(..length);
            }
        }
        assert_eq!((passed.as_slice(), passage.is_amid()), (expected, amid));
    }

    fn message(tag: u8, total: usize) -> Vec<u8> {
        let mut message = vec![b'x'; total];
        message[0] = tag;
        message[1..5].copy_from_slice(&u32::try_from(total - 1).expect("small").to_be_bytes());
        message
    }

    #[test]
    fn short_messages_pass_whole() {
        check(&[b"Z\0\0\0\x05IZ\0\0\0\x05", b"T"], &[(Some(b'Z'), 6), (Some(b'Z'), 6)], false);
        check(&[b"S\0\0", b"\0\x04"], &[(Some(b'S'), 5)], false);
        let longest = message(b'd', MAX_WHOLE);
        check(&[&longest[..MAX_WHOLE - 1]], &[], false);
        check(&[&longest[..MAX_WHOLE - 1], b"x"], &[(Some(b'd'), MAX_WHOLE)], false);
    }

    #[test]
    fn long_ones_pass_as_they_come() {
        let long = message(b'd', MAX_WHOLE + 1);
        check(&[&long[..4]], &[], false);
        check(&[&long[..5]], &[(None, 5)], true);
        let behind = [&long[7..], b"Z\0\0\0\x05I"].concat();
        check(&[&long[..7], &behind], &[(None, 7), (None, MAX_WHOLE - 6), (Some(b'Z'), 6)], false);
        // One that came at once is no different from a short one.
        check(&[&long], &[(Some(b'd'), MAX_WHOLE + 1)], false);
    }

    #[test]
    fn a_length_that_no_message_has() {
        assert!(Passage::default().next(b"d\0\0\0\x03").is_err());
        assert!(Passage::default().next(b"d\x7f\xff\xff\xff").is_err());
    }
}
