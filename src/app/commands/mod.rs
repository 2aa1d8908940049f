//! What the command line's larger commands do, one file for each.

pub(super) mod backup;
mod inspect;
mod progress;
pub(super) mod wal;
