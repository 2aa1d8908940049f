//! The answer to one replication command, collected up to ReadyForQuery.

use bytes::Bytes;

use crate::pg::protocol::Malformed;
use crate::pg::protocol::backend::{decode_data_row, decode_error};
use crate::pg::{ErrorFields, Lsn, SystemIdentifier, TimelineId};

#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The last row; no command of ours answers with more than one.
    row: Option<Vec<Option<Bytes>>>,
    error: Option<ErrorFields>,
}

impl Reply {
    /// Takes in a message; what is of no interest (descriptions, tags, notices) passes.
    pub(super) fn take(&mut self, tag: u8, payload: &Bytes) -> Result<(), Malformed> {
        match tag {
            b'D' => {
                let row = decode_data_row(payload)?;
                self.row = Some(row.into_iter().map(|value| value.map(|v| payload.slice_ref(v))).collect());
            }
            b'E' => self.error = Some(decode_error(payload)),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn error(&self) -> Option<&ErrorFields> {
        self.error.as_ref()
    }

    /// The bytes of a column; `None` when it is NULL or not there.
    pub(super) fn bytes(&self, column: usize) -> Option<&Bytes> {
        self.row.as_ref()?.get(column)?.as_ref()
    }

    fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(column)?).ok()
    }

    pub(super) fn has_row(&self) -> bool {
        self.row.is_some()
    }

    pub(super) fn lsn(&self, column: usize) -> Option<Lsn> {
        self.text(column)?.parse().ok()
    }

    pub(super) fn timeline(&self, column: usize) -> Option<TimelineId> {
        self.text(column)?.parse().ok().map(TimelineId)
    }

    pub(super) fn system(&self, column: usize) -> Option<SystemIdentifier> {
        self.text(column)?.parse().ok().map(SystemIdentifier)
    }

    pub(super) fn setting(&self) -> Option<&str> {
        self.text(0)
    }
}
