//! What the command line's larger commands do, one file for each.

use std::path::{Path, PathBuf};

pub(super) mod backup;
pub(super) mod follower;
mod inspect;
mod progress;
pub(super) mod wal;

/// Absolute, and without a slash at its end: what lies beside it has its name with a suffix.
fn directory(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}
