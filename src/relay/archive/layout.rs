//! Where things lie in the archive: the names of WAL-G's layout. PURE.
//!
//! ```text
//! wal_005/000000010000000000000003.zst            a finished segment, never overwritten
//! wal_005/000000010000000000000004.partial.zst    the begun one, put again as it grows, zeros up to its full size
//! wal_005/00000002.history.zst                    what a server wrote at its promotion
//! basebackups_005/...                             (`backup`)
//! ```
//!
//! The names are those of `utility.WalPath` and of `DownloadAndDecompressStorageFile` in WAL-G, which tries
//! every extension that it can decompress; the partial one is named as by its `wal-receive`.

use std::collections::BTreeSet;

use crate::pg::wal::{
    History, SegmentFile, SegmentNumber, WalSegmentSize, history_file_name, parse_history_file_name,
};
use crate::pg::{Lsn, TimelineId};

/// Below the archive's own prefix.
pub(super) const WAL: &str = "wal_005";
/// `zstd.FileExtension` of WAL-G.
const COMPRESSED: &str = ".zst";

pub(super) fn segment_object(segment: SegmentFile, size: WalSegmentSize) -> String {
    wal_object(&segment.name(size))
}

pub(super) fn partial_object(segment: SegmentFile, size: WalSegmentSize) -> String {
    wal_object(&segment.partial_name(size))
}

pub(super) fn history_object(timeline: TimelineId) -> String {
    wal_object(&history_file_name(timeline))
}

/// Of a file that PostgreSQL knows as `name`.
pub(super) fn wal_object(name: &str) -> String {
    format!("{WAL}/{name}{COMPRESSED}")
}

/// What of the WAL is in an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    pub(super) segments: BTreeSet<SegmentFile>,
    pub(super) partials: BTreeSet<SegmentFile>,
    pub(super) histories: BTreeSet<TimelineId>,
}

impl Inventory {
    /// From the names below `wal_005/`; what other tools keep there besides is passed over.
    pub(super) fn read<'n>(names: impl IntoIterator<Item = &'n str>, size: WalSegmentSize) -> Inventory {
        let mut inventory = Inventory::default();
        for name in names {
            let Some(name) = name.strip_suffix(COMPRESSED) else { continue };
            if let Some(timeline) = parse_history_file_name(name) {
                inventory.histories.insert(timeline);
            } else if let Some(segment) = SegmentFile::parse(name, size) {
                let of = if name.len() == 24 { &mut inventory.segments } else { &mut inventory.partials };
                of.insert(segment);
            }
        }
        inventory
    }

    /// The last segment before `number` on `timeline`.
    pub(super) fn last_before(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let from = SegmentFile { timeline, number: SegmentNumber(0) };
        self.segments.range(from..SegmentFile { timeline, number }).next_back().map(|segment| segment.number)
    }

    /// Up to where the WAL of `history` is here without a hole from `start` on; `start`'s segment begin when not
    /// even that is here. A partial segment counts as none, and so does an ancestor's of a fork's segment.
    pub(super) fn whole_from(&self, start: Lsn, history: &History, size: WalSegmentSize) -> Lsn {
        let mut number = size.segment(start);
        while history
            .holders(number, size)
            .next()
            .is_some_and(|newest| self.segments.contains(&SegmentFile { timeline: newest, number }))
        {
            number = number.next();
        }
        size.start(number)
    }

    /// Whether the WAL of `history` from `start` on is, or will be, here without a hole: behind the first segment that
    /// is not here, there is none.
    pub(super) fn goes_on_from(&self, start: Lsn, history: &History, size: WalSegmentSize) -> bool {
        let whole = size.segment(self.whole_from(start, history, size));
        let behind = |segment: &SegmentFile| {
            segment.number > whole
                && history.holders(segment.number, size).any(|timeline| timeline == segment.timeline)
        };
        !self.segments.iter().chain(&self.partials).any(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::{Inventory, history_object, partial_object, segment_object};
    use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize};
    use crate::pg::{Lsn, TimelineId};

    fn segment(timeline: u32, number: u64) -> SegmentFile {
        SegmentFile { timeline: TimelineId(timeline), number: SegmentNumber(number) }
    }

    #[test]
    fn names_are_wal_gs() {
        let size = WalSegmentSize::default();
        assert_eq!(segment_object(segment(1, 0x103), size), "wal_005/000000010000000100000003.zst");
        assert_eq!(partial_object(segment(2, 3), size), "wal_005/000000020000000000000003.partial.zst");
        assert_eq!(history_object(TimelineId(0x1A)), "wal_005/0000001A.history.zst");
    }

    #[test]
    fn an_inventory_passes_over_what_is_not_ours() {
        let names = [
            "000000010000000000000003.zst",
            "000000010000000000000004.partial.zst",
            "00000002.history.zst",
            "000000010000000000000005.lz4",
            "000000010000000000000005",
            "000000010000000000000003.json",
            "000000010000000000000000_delta.zst",
            "00000001000000000000000g.zst",
        ];
        let inventory = Inventory::read(names, WalSegmentSize::default());
        assert_eq!(inventory.segments.iter().copied().collect::<Vec<_>>(), [segment(1, 3)]);
        assert_eq!(inventory.partials.iter().copied().collect::<Vec<_>>(), [segment(1, 4)]);
        assert_eq!(inventory.histories.iter().copied().collect::<Vec<_>>(), [TimelineId(2)]);
        assert_eq!(inventory.last_before(TimelineId(1), SegmentNumber(9)), Some(SegmentNumber(3)));
        assert_eq!(inventory.last_before(TimelineId(1), SegmentNumber(3)), None);
        assert_eq!(inventory.last_before(TimelineId(2), SegmentNumber(9)), None);
    }

    /// Timeline 1 up to 2.5 MiB, 3 up to 4 MiB, then 4.
    fn history() -> History {
        History::parse(TimelineId(4), b"1\t0/280000\n3\t0/400000\n").expect("a history")
    }

    #[test]
    fn what_may_still_come_is_no_hole() {
        let size = WalSegmentSize::new(1 << 20).expect("valid");
        let check = |here: &[SegmentFile], expected| {
            let inventory = Inventory { segments: here.iter().copied().collect(), ..Inventory::default() };
            assert_eq!(inventory.goes_on_from(Lsn(0x10_0028), &history(), size), expected, "{here:?}");
        };
        check(&[], true);
        check(&[segment(1, 0), segment(1, 1)], true);
        check(&[segment(3, 2)], false);
        check(&[segment(1, 1), segment(3, 3)], false);
        // Of timeline 1 behind the fork, while timeline 3 is in the fork's segment.
        check(&[segment(1, 1), segment(1, 2), segment(1, 3)], true);
    }

    #[test]
    fn how_far_without_a_hole() {
        let size = WalSegmentSize::new(1 << 20).expect("valid");
        let check = |here: &[SegmentFile], start: u64, expected: u64| {
            let inventory = Inventory { segments: here.iter().copied().collect(), ..Inventory::default() };
            assert_eq!(inventory.whole_from(Lsn(start), &history(), size), Lsn(expected), "{here:?}");
        };
        let line = [segment(1, 1), segment(3, 2), segment(3, 3), segment(4, 4)];
        check(&line, 0x10_0028, 0x50_0000);
        check(&line[1..], 0x10_0028, 0x10_0000);
        check(&[segment(1, 1), segment(3, 3)], 0x10_0028, 0x20_0000);
        check(&[segment(2, 1)], 0x10_0028, 0x10_0000);
        // What timeline 1 wrote behind the fork, before anybody knew of it.
        check(&[segment(1, 1), segment(1, 2), segment(1, 3)], 0x10_0028, 0x20_0000);
        check(&[segment(1, 1), segment(3, 2), segment(1, 3), segment(1, 4)], 0x10_0028, 0x30_0000);
    }
}
