//! The segment store.

mod error;

pub(crate) use error::StoreError;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::pg::wal::{History, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// The durable WAL of one cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tail: watch::Sender<Tail>,
}

/// How far the store reaches. Published after every fsync and every change of timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) timeline: TimelineId,
    pub(crate) durable: Lsn,
}

impl Store {
    pub(crate) fn tail(&self) -> watch::Receiver<Tail> {
        self.shared.tail.subscribe()
    }

    /// `None` until the first upstream was seen.
    pub(crate) fn system(&self) -> Option<SystemIdentifier> {
        None
    }

    pub(crate) fn segment_size(&self) -> WalSegmentSize {
        WalSegmentSize::default()
    }

    /// The history file of `timeline`, byte for byte as its server wrote it.
    pub(crate) fn history_file(&self, _timeline: TimelineId) -> Option<Bytes> {
        None
    }

    /// The ancestry of the current timeline.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::new(History::without_ancestors(self.shared.tail.borrow().timeline))
    }

    /// Start of the oldest segment kept for `timeline`.
    pub(crate) fn oldest(&self, _timeline: TimelineId) -> Option<Lsn> {
        None
    }

    /// Up to `max` durable bytes at `from` out of memory; `None` when they are not (or not yet) there.
    pub(crate) fn recent(&self, _timeline: TimelineId, _from: Lsn, _max: usize) -> Option<Bytes> {
        None
    }

    /// Up to `max` durable bytes at `from` out of the segment file, within one segment; empty at the end.
    pub(crate) async fn read(
        &self,
        _timeline: TimelineId,
        from: Lsn,
        _max: usize,
    ) -> Result<Bytes, StoreError> {
        Err(StoreError::Removed { segment: from.to_string() })
    }

    /// The ParameterStatus set of the last upstream.
    pub(crate) fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        Arc::default()
    }
}
