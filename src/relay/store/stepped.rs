//! The store without its thread, for the simulation: what is written when, and synced when, is its caller's to
//! say. Everything else is what production runs.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, oneshot};

use super::writer::{Change, Command, Waiting, Writer};
use super::{Files, Store, StoreConfig, StoreError, StreamId};
use crate::pg::{Lsn, TimelineId};
use crate::relay::metrics::Metrics;

pub(crate) struct Stepped {
    pub(crate) store: Store,
    writer: Writer,
    permits: Arc<Semaphore>,
}

/// Written, not synced: a crash may lose any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsynced {
    pub(crate) timeline: TimelineId,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
}

impl std::fmt::Debug for Stepped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepped").field("unsynced", &self.unsynced()).finish_non_exhaustive()
    }
}

impl Stepped {
    pub(crate) fn open(files: Files, config: &StoreConfig, metrics: &Metrics) -> Result<Stepped, StoreError> {
        let (store, writer) = Store::prepare(files, config, metrics)?;
        Ok(Stepped { store, writer, permits: Arc::new(Semaphore::new(1)) })
    }

    /// Writes, without a sync unless a segment ends. What does not fit shows in the store's report.
    pub(crate) fn append(
        &mut self,
        stream: StreamId,
        at: Lsn,
        bytes: Bytes,
        verified: Option<Lsn>,
    ) -> Result<(), StoreError> {
        let permit = self.permits.clone().try_acquire_owned().expect("each is given back at once");
        let waiting = Waiting::Nobody;
        let command = Command::Append { stream, at, bytes, verified, waiting, _permit: permit };
        self.writer.obey(command).map(drop)
    }

    /// Durable on return. The outer error ends the store, the inner one only the stream.
    pub(crate) fn change(&mut self, change: Change) -> Result<Result<(), StoreError>, StoreError> {
        let (done, mut answer) = oneshot::channel();
        if let Err(error) = self.writer.obey(Command::Change { change, done }) {
            assert_eq!(
                answer.try_recv().expect_err("not done"),
                TryRecvError::Empty,
                "let go before why is told"
            );
            return Err(error);
        }
        Ok(answer.try_recv().expect("answered before it returned"))
    }

    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.writer.sync()
    }

    pub(crate) fn unsynced(&self) -> Unsynced {
        let Writer { control, durable, end, .. } = &self.writer;
        Unsynced { timeline: control.timeline, from: *durable, to: *end }
    }

    /// A whole segment file in the store's directory that the next new segment is made of.
    pub(crate) fn offer_spare(&mut self, name: String) {
        self.writer.recycled.push_back(name);
    }

    /// What the thread does that allocates segments ahead.
    pub(crate) fn allocate_spare(&mut self, name: String) -> Result<(), StoreError> {
        self.writer.files.allocate(&name, self.writer.control.segment_size())?;
        self.offer_spare(name);
        Ok(())
    }

    pub(crate) fn spares(&self) -> usize {
        self.writer.recycled.len()
    }
}
