//! WAL that a log leaves behind when it goes back: kept aside before it is removed.
//!
//! In async mode clients were told of what is in it; under a quorum some may have seen it. So its files get a second name
//! each, in a directory of their own within the store's:
//!
//! ```text
//! wal/discarded-timeline-2-from-0-301A8F0-to-0-301C000/000000020000000000000003
//! pg_waldump -p DIR -t 2 -s 0/301A8F0 -e 0/301C000
//! ```
//!
//! A name needs no room worth speaking of: a full disk is no reason to lose anything. Nobody writes to these files any
//! more: what takes the place of one in the log is another file, and retention does not know them.
//!
//! Not here: what is in it. Whoever wants the rows back reads them out of the WAL.

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files::Files;
use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize, history_file_name};
use crate::pg::{Lsn, TimelineId};

const PREFIX: &str = "discarded-";

/// Of one log. Of a longer one the beginning is kept, which is what came right behind the fork.
const MAX_BYTES: u64 = 1 << 30;
/// Directories; the oldest is removed for a newer one.
const MAX_KEPT: usize = 4;

/// In the control file until it is kept aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discarded {
    timeline: TimelineId,
    /// Where the log goes back to.
    from: Lsn,
    /// The log's end, or how much of it is kept.
    to: Lsn,
    directory: String,
}

impl Discarded {
    /// What a log on `timeline` that ends at `end` has behind `from`; `None`: nothing.
    pub(super) fn find(
        files: &Files,
        size: WalSegmentSize,
        timeline: TimelineId,
        (from, end): (Lsn, Lsn),
    ) -> Result<Option<Discarded>, StoreError> {
        let most = size.start(SegmentNumber(size.segment(from).0 + (MAX_BYTES / size.bytes()).max(1)));
        let to = end.min(most);
        if to <= from {
            return Ok(None);
        }
        let lsn = |lsn: Lsn| lsn.to_string().replace('/', "-");
        let name = format!("{PREFIX}timeline-{timeline}-from-{}-to-{}", lsn(from), lsn(to));
        let names = files.names()?;
        // Another branch of the same number was there before.
        let again = (2_u64..).map(|number| format!("{name}-{number}"));
        let directory = std::iter::once(name.clone()).chain(again).find(|name| !names.contains(name));
        Ok(directory.map(|directory| Discarded { timeline, from, to, directory }))
    }

    /// As often as it takes, as long as nothing of it is removed; durable on return. `is_there`: of the log.
    pub(super) fn keep_aside(
        &self,
        files: &Files,
        size: WalSegmentSize,
        own: &History,
        is_there: impl Fn(&SegmentFile) -> bool,
    ) -> Result<(), StoreError> {
        self.make_place(files)?;
        let last = size.segment(Lsn(self.to.0.saturating_sub(1)));
        let numbers = (size.segment(self.from).0..=last.0).map(SegmentNumber);
        let segments = numbers.filter_map(|number| own.segment(number, size, &is_there));
        let mut kept: Vec<String> = segments.map(|segment| segment.name(size)).collect();
        let history = history_file_name(self.timeline);
        kept.extend(files.names()?.into_iter().filter(|name| *name == history));
        files.keep_within(&self.directory, &kept)?;
        let (directory, timeline, from, to) = (&self.directory, self.timeline, self.from, self.to);
        tracing::info!(
            bytes = to.bytes_since(from),
            look = format!("pg_waldump -p {}/{directory} -t {timeline} -s {from} -e {to}", files.directory()),
            "WAL of a branch that nobody goes on with was saved before it was discarded"
        );
        Ok(())
    }

    fn make_place(&self, files: &Files) -> Result<(), StoreError> {
        let mut others = Vec::new();
        for name in files.names()?.into_iter().filter(|name| name.starts_with(PREFIX)) {
            if name != self.directory {
                others.push((files.modified(&name)?, name));
            }
        }
        others.sort();
        let excess = (others.len() + 1).saturating_sub(MAX_KEPT);
        others.iter().take(excess).try_for_each(|(_, name)| files.remove_directory(name))
    }
}
