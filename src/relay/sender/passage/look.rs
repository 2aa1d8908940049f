//! Where a base backup begins, in what the server says on its way to the client. PURE.

use crate::pg::protocol::backend::decode_data_row;
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::replication::base_backup::backup_position;
use crate::pg::{Lsn, TimelineId};

/// A message that is looked at is not longer.
const MAX_MESSAGE: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// So many bytes have nothing to do with it; what follows is not complete.
    Pass(usize),
    /// So many bytes come before the result set that tells it.
    Begins { at: usize, start: Lsn, timeline: TimelineId },
    /// This is no conversation that could be followed.
    Lost,
}

/// At the beginning of `bytes` there is a message's.
pub(super) fn look(bytes: &[u8]) -> Look {
    let mut at = 0;
    loop {
        let message = match whole(&bytes[at..]) {
            Ok(Some(message)) => message,
            Ok(None) => return Look::Pass(at),
            Err(TooLong) => return Look::Lost,
        };
        if !describes_position(message) {
            at += message.len();
            continue;
        }
        return match whole(&bytes[at + message.len()..]) {
            Ok(Some(row)) => match position(row) {
                Some((start, timeline)) => Look::Begins { at, start, timeline },
                None => Look::Lost,
            },
            Ok(None) => Look::Pass(at),
            Err(TooLong) => Look::Lost,
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TooLong;

/// The message at the beginning; `None` while it is not there as a whole.
fn whole(bytes: &[u8]) -> Result<Option<&[u8]>, TooLong> {
    match Header::peek(bytes) {
        Ok(Some(header)) if header.total > MAX_MESSAGE => Err(TooLong),
        Ok(Some(header)) => Ok(bytes.get(..header.total)),
        Ok(None) => Ok(None),
        Err(_) => Err(TooLong),
    }
}

/// `SendXlogRecPtrResult` (basebackup_copy.c) has `recptr` and `tli`.
fn describes_position(message: &[u8]) -> bool {
    message.first() == Some(&b'T') && message[HEADER_LEN..].starts_with(b"\0\x02recptr\0")
}

fn position(message: &[u8]) -> Option<(Lsn, TimelineId)> {
    if message.first() != Some(&b'D') {
        return None;
    }
    let columns = decode_data_row(&message[HEADER_LEN..]).ok()?;
    let text = |column: Option<&[u8]>| Some(String::from_utf8_lossy(column?).into_owned());
    backup_position(&[columns.into_iter().map(text).collect()])
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{Look, MAX_MESSAGE, look};
    use crate::pg::protocol::backend::{self, Column};
    use crate::pg::{Lsn, TimelineId};

    fn before() -> BytesMut {
        let mut bytes = BytesMut::new();
        backend::command_complete("UPLOAD_MANIFEST", &mut bytes);
        backend::row_description(&[Column::text("systemid")], &mut bytes);
        backend::data_row(&[Some("0/28")], &mut bytes);
        bytes
    }

    fn result(lsn: &str) -> BytesMut {
        let mut bytes = BytesMut::new();
        backend::row_description(&[Column::text("recptr"), Column::int8("tli")], &mut bytes);
        backend::data_row(&[Some(lsn), Some("3")], &mut bytes);
        bytes
    }

    #[test]
    fn the_start_is_found_wherever_the_bytes_are_cut() {
        let (before, result) = (before(), result("0/2000028"));
        let whole = [&before[..], &result[..]].concat();
        for cut in 0..whole.len() {
            let Look::Pass(passed) = look(&whole[..cut]) else { panic!("{cut}") };
            assert!(passed <= cut.min(before.len()), "{passed} of {cut}");
        }
        let begins = Look::Begins { at: before.len(), start: Lsn(0x200_0028), timeline: TimelineId(3) };
        assert_eq!(look(&whole), begins);
        assert_eq!(look(&[&whole[..], b"more"].concat()), begins);
        assert_eq!(look(&before), Look::Pass(before.len()));
    }

    #[test]
    fn nonsense_is_not_waited_for() {
        assert_eq!(look(&result("nowhere")), Look::Lost);
        let long = [&b"d"[..], &u32::try_from(MAX_MESSAGE).expect("small").to_be_bytes()].concat();
        assert_eq!(look(&long), Look::Lost);
        assert_eq!(look(b"d\0\0\0\0"), Look::Lost);
    }
}
