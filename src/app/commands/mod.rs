//! What the command line's larger commands do, one file for each.

pub(super) mod backup;
mod progress;
pub(super) mod wal;
