//! The archive: the cluster's WAL and base backups in a directory or an object store, in WAL-G's layout, so that a
//! server can be made of it as of any moment, by us or by other tools.
//!
//! ```text
//! store ──> ship ──> storage ──> fetch ──> restore_command of a server that recovers
//!            │          │  └───> restore
//!       what the store  └ backup
//!       may not remove
//! ```
//!
//! It reads what the store has durable, on a thread of its own, and nothing waits for it: an archive that cannot be
//! reached is tried again, told and counted. Meanwhile the store keeps what is not archived, up to its hard cap; what
//! it had to give up is a hole, which is told too.

mod backup;
mod check;
mod choose;
mod core;
mod fetch;
mod layout;
mod metrics;
mod pack;
mod probe;
mod reserve;
mod restore;
mod retention;
mod schedule;
mod sentinel;
mod ship;
mod storage;
#[cfg(test)]
mod tests;

pub use backup::{BackupDone, BackupError, BackupJob, BackupSource, CopiedAs, backup};
pub use check::SegmentDefect;
pub use choose::{Moment, NoBackup};
pub use fetch::{FetchError, Fetched, Server, Sources, fetch};
pub use probe::{ProbeError, probe};
pub use reserve::Occasion;
pub use restore::{RestoreError, RestoreJob, Restored, restore};
pub use retention::{Retained, unknown_backups};
pub use sentinel::SentinelError;
pub use storage::{ArchiveUrl, StorageError};

pub(super) use metrics::Metrics;
pub(super) use schedule::Servers;
pub(super) use ship::{Hold, Outputs, Wal, start};

use std::time::Duration;

/// What is archived, where, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    pub url: ArchiveUrl,
    /// zstd's, 1 to 19.
    pub level: i32,
    /// The begun segment is put again at most so often.
    pub partial_interval: Duration,
    pub backups: BackupPlan,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupPlan {
    /// From the begin of one base backup to that of the next. `None`: they are somebody else's to take.
    pub every: Option<Duration>,
    /// So many of them, with all WAL behind the oldest, at least one. `None`: nothing is removed.
    pub keep: Option<usize>,
}

/// Who is told how far a copy has come.
pub trait Progress: Send + Sync {
    /// How many bytes it will be, about. Told once.
    fn total(&self, bytes: u64);
    /// How many it is by now.
    fn done(&self, bytes: u64);
}
