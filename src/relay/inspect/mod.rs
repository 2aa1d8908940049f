//! Looks at a directory of WAL without touching it: what is there, and whether it is whole.
//!
//! The directory may be a store's, with its instance running beside; the `pg_wal` of a server that is stopped; or a
//! copy of plain segment files. It is only read, and not locked: what moves meanwhile (the end grows, retention removes
//! and reuses old segments) is looked at again and not called damage.
//!
//! File sizes and zeros say nothing of where the log ends, nor do pages that a reused segment still holds: only the
//! chain of records does (`walk`).

mod directory;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::directory::Directory;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::Term;

/// The directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("list {}", path.display())]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no WAL segment", path.display())]
    Empty { path: PathBuf },
}

/// What is there.
#[derive(Debug, Serialize)]
pub struct Inventory {
    pub directory: PathBuf,
    pub system: Option<SystemIdentifier>,
    pub segment_bytes: u64,
    /// What the control file says; a directory of plain segments has none.
    pub control: Option<ControlView>,
    pub timelines: Vec<TimelineView>,
    pub slots: Vec<SlotView>,
    pub spare_segments: usize,
    /// Segments that are compressed: they are not looked into.
    pub compressed_segments: usize,
    /// What of the above could not be read.
    pub problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
pub struct ControlView {
    pub timeline: TimelineId,
    pub promised: Term,
}

#[derive(Debug, Serialize)]
pub struct TimelineView {
    pub timeline: TimelineId,
    /// Its ancestor, and where it forked from it, as its history file says.
    pub forked_from: Option<(TimelineId, Lsn)>,
    pub first_segment: Option<String>,
    pub last_segment: Option<String>,
    pub segments: usize,
    /// Names of files that were never begun, behind the end.
    pub unused_segments: usize,
    /// Of the WAL that is there.
    pub start: Lsn,
    /// The end of the last whole record.
    pub end: Lsn,
}

#[derive(Debug, Serialize)]
pub struct SlotView {
    pub name: String,
    pub restart_timeline: Option<TimelineId>,
    pub restart_lsn: Option<Lsn>,
    /// WAL that it holds back.
    pub holds_bytes: Option<u64>,
    /// It was given up: what it held back exceeded `wal.retain`.
    pub lost: bool,
}

/// What a verification has found.
#[derive(Debug, Serialize)]
pub struct Verification {
    pub directory: PathBuf,
    pub system: Option<SystemIdentifier>,
    pub timelines: Vec<Verified>,
    /// In the order of the log.
    pub problems: Vec<Problem>,
    pub bytes: u64,
}

/// A timeline's WAL as far as its chain of records goes.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
    pub segments: usize,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    #[error("{file} at offset {offset}: corrupt at {lsn}: {defect}")]
    Corrupt { file: String, offset: u64, lsn: Lsn, defect: String },
    /// There is good WAL behind it. Either something is damaged, or the host lost power and the store has not been
    /// opened since: then its instance fetches this again.
    #[error("{file} at offset {offset}: the log breaks off at {lsn} ({defect}), and goes on at {goes_on}")]
    Hole { file: String, offset: u64, lsn: Lsn, defect: String, goes_on: Lsn },
    #[error("gap on timeline {timeline}: {first} to {last} are missing ({from} to {to})")]
    Gap { timeline: TimelineId, first: String, last: String, from: Lsn, to: Lsn },
    #[error("{file} is of another cluster: system identifier {found} instead of {expected}")]
    Foreign { file: String, found: SystemIdentifier, expected: SystemIdentifier },
    #[error("{file} has {bytes} bytes, a segment has {expected}")]
    Short { file: String, bytes: u64, expected: u64 },
    #[error("{file} differs from {ancestor} at {lsn}, before the timelines part")]
    ForkDiffers { file: String, ancestor: String, lsn: Lsn },
    #[error("{file}: {why}")]
    Unreadable { file: String, why: String },
}

/// Lists what is in `path`; reads as much as it takes to find where each timeline ends.
pub fn list(path: &Path) -> Result<Inventory, InspectError> {
    Directory::read(path).map(Directory::inventory)
}

/// Reads every segment in `path`. `progress` hears of bytes read, and of how many there are to read.
pub fn verify(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Verification, InspectError> {
    let directory = Directory::read(path)?;
    if directory.segments.is_empty() {
        return Err(InspectError::Empty { path: path.to_owned() });
    }
    Ok(walk::verify(&directory, progress))
}
