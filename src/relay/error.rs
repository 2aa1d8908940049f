//! Why the WAL plane does not start, or does not go on.

use super::slots::SlotFileError;
use super::store::StoreError;

/// The plane cannot start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RelayError(#[from] Cause);

#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error("open the WAL store")]
    Store(#[from] StoreError),
    #[error("open the replication slots")]
    Slots(#[from] SlotFileError),
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    #[error("start the thread of the WAL plane")]
    Thread(#[source] std::io::Error),
    #[error("the WAL plane has not let go of its store within {0:?}")]
    NotClosed(std::time::Duration),
    #[error("instance name {0:?} gives no replication slot name")]
    Instance(String),
}
