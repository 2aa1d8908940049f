//! What the command line's larger commands do, one file for each.

pub(super) mod backup;
pub(super) mod follower;
mod inspect;
mod progress;
pub(super) mod wal;
