//! What can go wrong with the files.

use std::io;

use crate::pg::wal::{HistoryError, VerifyError};
use crate::pg::{Lsn, TimelineId};

/// What an fsync or fdatasync is called in [`StoreError::Io`].
pub(super) const SYNC: &str = "sync";

/// Why WAL could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Retention has removed it, or it was never received.
    #[error("WAL segment {segment} is not kept here any more")]
    Removed { segment: String },
    #[error("{operation} {file}")]
    Io {
        operation: &'static str,
        file: String,
        #[source]
        source: io::Error,
    },
    /// What was offered does not follow what is stored.
    #[error("WAL at {offered} was offered where {end} is the end")]
    Gap { offered: Lsn, end: Lsn },
    /// The same place on the same timeline holds other bytes: two servers wrote on one timeline. What is stored
    /// stays.
    #[error("WAL at {lsn} on timeline {timeline} differs from what is stored")]
    Diverged { timeline: TimelineId, lsn: Lsn },
    /// Not a torn tail: later segments are good.
    #[error("segment {segment} is corrupt")]
    Corrupt {
        segment: String,
        #[source]
        source: VerifyError,
    },
    #[error("segment {segment} is missing though later ones exist")]
    Missing { segment: String },
    #[error("control file {file}: {why}")]
    Control { file: String, why: String },
    #[error("{directory} holds WAL segments but no control file")]
    NoControl { directory: String },
    #[error("{directory} is in use by another process")]
    InUse { directory: String },
    #[error("history of timeline {timeline}")]
    History {
        timeline: TimelineId,
        #[source]
        source: HistoryError,
    },
    /// The store's thread has ended.
    #[error("the WAL store has stopped")]
    Stopped,
}

impl StoreError {
    pub(super) fn io(operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> StoreError {
        let file = file.to_owned();
        move |source| StoreError::Io { operation, file, source }
    }

    /// Whether the stream is at fault and the store itself goes on.
    pub(crate) fn concerns_stream_only(&self) -> bool {
        matches!(self, StoreError::Gap { .. } | StoreError::Diverged { .. } | StoreError::Removed { .. })
    }

    /// Then it may be tried again, unless it was a sync: what the kernel could not write then it has forgotten.
    pub(crate) fn is_disk_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        match self {
            StoreError::Io { operation, source, .. } => *operation != SYNC && full.contains(&source.kind()),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{SYNC, StoreError};

    #[test]
    fn only_what_was_not_a_sync_is_tried_again() {
        let check = |operation, kind: io::ErrorKind, expected| {
            let error = StoreError::io(operation, "file")(kind.into());
            assert_eq!(error.is_disk_full(), expected, "{error}: {kind}");
        };
        check("write", io::ErrorKind::StorageFull, true);
        check("write", io::ErrorKind::QuotaExceeded, true);
        check("write", io::ErrorKind::Other, false);
        check(SYNC, io::ErrorKind::StorageFull, false);
    }
}
