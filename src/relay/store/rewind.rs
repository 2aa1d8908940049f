//! The log goes back to where it left the history that an election went on with.
//!
//! What is to be done is on disk first, in the control file; then what only the log has is kept aside
//! ([`super::discarded`]); then it is done, and then that it is. So a crash on the way is one more attempt at the next
//! start, and no log is found that has something of each.
//!
//! Not here: whether it may ([`crate::relay::steer`]).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files::Files;
use crate::pg::wal::{History, SegmentFile, WalSegmentSize, history_file_name};
use crate::pg::{Lsn, TimelineId};

/// The log ends at `to` of `timeline`, where a record ends; what lies behind is in no history that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rewind {
    pub(crate) timeline: TimelineId,
    pub(crate) to: Lsn,
}

/// What it came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rewound {
    /// Made of what a later timeline had of it, or there before.
    pub(super) last: SegmentFile,
    pub(super) removed: Vec<SegmentFile>,
    /// Their histories are nobody's any more.
    pub(super) forgotten: Vec<TimelineId>,
}

impl Rewind {
    /// The segment that is the last one then.
    fn last(self, size: WalSegmentSize) -> SegmentFile {
        SegmentFile { timeline: self.timeline, number: size.segment(Lsn(self.to.0.saturating_sub(1))) }
    }

    /// Where the WAL of the last segment is; `None`: the log has none of what is to stay.
    fn source(
        self,
        size: WalSegmentSize,
        own: &History,
        kept: &BTreeSet<SegmentFile>,
    ) -> Option<SegmentFile> {
        let last = self.last(size);
        let is_kept = |segment: &SegmentFile| kept.contains(segment);
        Some(last).filter(is_kept).or_else(|| own.segment(last.number, size, is_kept))
    }

    /// Whether a log of history `own` can go back so far.
    pub(super) fn check(
        self,
        size: WalSegmentSize,
        own: &History,
        kept: &BTreeSet<SegmentFile>,
    ) -> Result<(), StoreError> {
        let is_past = own.switchpoint(self.timeline).is_some_and(|end| self.to <= end);
        match self.source(size, own, kept).filter(|_| is_past) {
            Some(_) => Ok(()),
            None => Err(StoreError::Removed { segment: self.last(size).name(size) }),
        }
    }

    /// As often as it takes: what is done is not done again.
    pub(super) fn carry_out(
        self,
        files: &Files,
        size: WalSegmentSize,
        own: &History,
        kept: &BTreeSet<SegmentFile>,
    ) -> Result<Rewound, StoreError> {
        let last = self.last(size);
        if let Some(source) = self.source(size, own, kept) {
            let stays = usize::try_from(self.to.bytes_since(size.start(last.number)));
            let mut content = vec![0; usize::try_from(size.bytes()).expect("a segment fits into memory")];
            let stays = &mut content[..stays.expect("a part of a segment")];
            files.open_segment(&source.name(size))?.read_at(stays, 0)?;
            files.replace(&last.name(size), &content)?;
        }
        let behind =
            |segment: &&SegmentFile| segment.number > last.number || segment.timeline > last.timeline;
        let removed: Vec<SegmentFile> = kept.iter().filter(behind).copied().collect();
        for segment in &removed {
            files.remove(&segment.name(size))?;
        }
        // The log's own last: from its history the others are known.
        let abandoned = own.ancestors().iter().map(|entry| entry.timeline).chain([own.timeline()]);
        let forgotten: Vec<TimelineId> = abandoned.filter(|timeline| *timeline > self.timeline).collect();
        for timeline in &forgotten {
            files.remove(&history_file_name(*timeline))?;
        }
        // Segments that came back would be taken for the log's end.
        files.sync_names()?;
        Ok(Rewound { last, removed, forgotten })
    }
}
