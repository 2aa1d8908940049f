//! Whether the bytes of a segment are what its name says. PURE.
//!
//! A file's name and size prove nothing: the primary's own file of a fork's segment holds stale pages behind the
//! switchpoint, a torn upload may end anywhere, and an archive may be another cluster's. So nothing goes into the
//! archive, and nothing is handed to a server that recovers, before its records were walked.

use crate::pg::wal::{
    Expected, PAGE_SIZE, PageHeader, RecordKind, SegmentFile, Verifier, VerifyError, WalSegmentSize,
};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// Why a file is not served, and not archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentDefect {
    #[error("it does not begin as a segment does")]
    NoWal,
    #[error("it has {found} bytes, which is not a segment's size")]
    Size { found: u64 },
    #[error("its name is no segment's of {size}")]
    Name { size: WalSegmentSize },
    #[error(transparent)]
    Records(#[from] VerifyError),
    /// Of a fork's segment, the ancestor's file under the descendant's name.
    #[error("its newest page is of timeline {found}")]
    Timeline { found: TimelineId },
    #[error("no record that begins in it is whole")]
    Empty,
}

/// What a segment is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) segment: SegmentFile,
    pub(super) size: WalSegmentSize,
    /// Where its timeline begins; 0/0 for one without ancestors.
    pub(super) begin: Lsn,
    /// `None`: any cluster's.
    pub(super) system: Option<SystemIdentifier>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastRecord {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
}

/// The size of segments of the cluster whose WAL `bytes` is, by its first page.
pub(super) fn size_of(bytes: &[u8]) -> Result<WalSegmentSize, SegmentDefect> {
    let long = PageHeader::parse(bytes).and_then(|header| header.long).ok_or(SegmentDefect::NoWal)?;
    WalSegmentSize::new(u64::from(long.segment_size)).map_err(|_| SegmentDefect::NoWal)
}

/// The cluster that a segment's first page names.
pub(super) fn system_of(bytes: &[u8]) -> Option<SystemIdentifier> {
    PageHeader::parse(bytes)?.long.map(|long| long.system)
}

impl Claim {
    /// A finished segment: every record up to its last byte is whole and good, or goes on in the next segment.
    pub(super) fn check_whole(&self, bytes: &[u8]) -> Result<(), SegmentDefect> {
        if bytes.len() as u64 != self.size.bytes() {
            return Err(SegmentDefect::Size { found: bytes.len() as u64 });
        }
        let mut verifier = self.verifier();
        verifier.feed(bytes)?;
        // Behind a switch are no pages.
        let switched = verifier.last_record().is_some_and(|last| last.header.kind() == RecordKind::Switch);
        let end = verifier.verified().filter(|_| switched).unwrap_or(self.size.end(self.segment.number));
        let newest = self.newest_page(bytes, end).ok_or(SegmentDefect::Empty)?;
        // The page in which a timeline begins keeps its ancestor's number (`XLogInitNewTimeline`, xlog.c).
        let own =
            newest.timeline == self.segment.timeline || (newest.address < self.begin && self.begin < end);
        if own { Ok(()) } else { Err(SegmentDefect::Timeline { found: newest.timeline }) }
    }

    /// A begun segment: how far its records are whole and good. What follows is no WAL.
    pub(super) fn check_begun(&self, bytes: &[u8]) -> Result<Lsn, SegmentDefect> {
        self.last_record(bytes).map(|last| last.end)
    }

    /// The last whole record that begins in the segment.
    pub(super) fn last_record(&self, bytes: &[u8]) -> Result<LastRecord, SegmentDefect> {
        if bytes.len() as u64 > self.size.bytes() {
            return Err(SegmentDefect::Size { found: bytes.len() as u64 });
        }
        let mut verifier = self.verifier();
        let ended = verifier.feed(bytes);
        match (verifier.last_record().zip(verifier.verified()), ended) {
            (Some((record, end)), _) => Ok(LastRecord { start: record.start, end }),
            // Not even what it begins with.
            (None, Err(defect)) if defect.lsn == self.size.start(self.segment.number) => Err(defect.into()),
            (None, _) => Err(SegmentDefect::Empty),
        }
    }

    fn verifier(&self) -> Verifier {
        let expected =
            Expected { segment_size: self.size, timeline: self.segment.timeline, system: self.system };
        Verifier::new(self.size.start(self.segment.number), expected)
    }

    /// The page of the last byte before `end`.
    fn newest_page(&self, bytes: &[u8], end: Lsn) -> Option<PageHeader> {
        let last = end.bytes_since(self.size.start(self.segment.number)).checked_sub(1)?;
        let page = usize::try_from(last).ok()? / PAGE_SIZE * PAGE_SIZE;
        bytes.get(page..).and_then(PageHeader::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::{Claim, SegmentDefect};
    use crate::pg::wal::build::{SYSTEM, WalBuilder};
    use crate::pg::wal::{Defect, SegmentFile, SegmentNumber, VerifyError};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};

    const START: Lsn = Lsn(0x30_0000);
    const MIB: usize = 1 << 20;

    /// Two segments; the second one begins inside a record.
    fn two_segments() -> WalBuilder {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        for len in [100, 600_000, 700_000, 100, 600_000, 300_000] {
            wal.record(len);
        }
        wal
    }

    fn claim(wal: &WalBuilder, timeline: u32, number: u64) -> Claim {
        let segment = SegmentFile { timeline: TimelineId(timeline), number: SegmentNumber(number) };
        Claim { segment, size: wal.segment_size(), begin: Lsn(0), system: Some(SYSTEM) }
    }

    #[test]
    fn whole_segments() {
        let wal = two_segments();
        let (first, second) = wal.bytes()[..2 * MIB].split_at(MIB);
        assert_eq!(claim(&wal, 1, 3).check_whole(first), Ok(()));
        assert_eq!(claim(&wal, 1, 4).check_whole(second), Ok(()));
        assert!(claim(&wal, 1, 4).check_whole(first).is_err(), "another segment's");
        assert_eq!(
            claim(&wal, 1, 3).check_whole(&first[..MIB - 1]),
            Err(SegmentDefect::Size { found: MIB as u64 - 1 })
        );
        assert_eq!(
            claim(&wal, 2, 3).check_whole(first),
            Err(SegmentDefect::Timeline { found: TimelineId(1) }),
            "an ancestor's segment under the descendant's name"
        );
        let other = Claim { system: Some(SystemIdentifier(1)), ..claim(&wal, 1, 3) };
        assert!(matches!(other.check_whole(first), Err(SegmentDefect::Records(_))), "another cluster's");
        let mut flipped = first.to_vec();
        flipped[500_000] ^= 1;
        assert!(matches!(
            claim(&wal, 1, 3).check_whole(&flipped),
            Err(SegmentDefect::Records(VerifyError { defect: Defect::Checksum { .. }, .. }))
        ));
        let mut torn = first.to_vec();
        torn[600_000..].fill(0);
        assert!(claim(&wal, 1, 3).check_whole(&torn).is_err(), "zeros are no records");
    }

    #[test]
    fn a_switched_segment_is_whole() {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        wal.record(100);
        wal.switch();
        assert_eq!(claim(&wal, 1, 3).check_whole(wal.bytes()), Ok(()));
    }

    #[test]
    fn the_segment_of_a_fork_is_the_descendants_too() {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        wal.record(100_000);
        wal.fork(TimelineId(2));
        wal.record(2 * MIB);
        assert_eq!(claim(&wal, 2, 3).check_whole(&wal.bytes()[..MIB]), Ok(()));
        assert!(claim(&wal, 1, 3).check_whole(&wal.bytes()[..MIB]).is_err(), "its tail is not timeline 1's");
    }

    #[test]
    fn the_page_of_a_fork_keeps_its_ancestors_number() {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        wal.record(100);
        let fork = wal.end();
        wal.record(10);
        wal.switch();
        let whole = |begin| Claim { begin, ..claim(&wal, 2, 3) }.check_whole(wal.bytes());
        assert_eq!(whole(fork), Ok(()));
        assert!(whole(Lsn(0x40_0000)).is_err(), "nothing in it is timeline 2's");
    }

    #[test]
    fn begun_segments_reach_as_far_as_their_records() {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        wal.record(100);
        wal.record(20_000);
        let whole = wal.end();
        wal.record(50_000);
        let cut = usize::try_from(whole.bytes_since(START)).expect("small");
        let mut padded = wal.bytes()[..cut].to_vec();
        padded.resize(MIB, 0);
        assert_eq!(claim(&wal, 1, 3).check_begun(&padded), Ok(whole));
        assert_eq!(claim(&wal, 1, 3).check_begun(&wal.bytes()[..cut + 5000]), Ok(whole), "torn in a record");
        assert_eq!(claim(&wal, 1, 3).check_begun(&[]), Err(SegmentDefect::Empty));
        assert!(matches!(claim(&wal, 1, 3).check_begun(&vec![0; MIB]), Err(SegmentDefect::Records(_))));
        assert!(matches!(claim(&wal, 1, 9).check_begun(&padded), Err(SegmentDefect::Records(_))));
        let mut long = WalBuilder::new(START, TimelineId(1));
        long.record(2 * MIB);
        let mut within = long.bytes()[MIB..MIB + 100_000].to_vec();
        within.resize(MIB, 0);
        assert_eq!(
            claim(&wal, 1, 4).check_begun(&within),
            Err(SegmentDefect::Empty),
            "the middle of a record"
        );
    }
}
