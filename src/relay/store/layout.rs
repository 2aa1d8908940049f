//! Where bytes go and what may be removed. PURE.

use crate::pg::Lsn;
use crate::pg::wal::{SegmentNumber, WalSegmentSize};

use super::StoreError;

/// What to do with bytes offered at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// So many bytes are stored already and must be the same.
    pub(super) compare: usize,
    /// The rest is new.
    pub(super) append: usize,
}

/// Places `len` bytes offered at `at` in a log that reaches to `end`. A gap is refused.
pub(super) fn place(at: Lsn, len: usize, end: Lsn) -> Result<Placement, StoreError> {
    if at > end {
        return Err(StoreError::Gap { offered: at, end });
    }
    let compare = usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX).min(len);
    Ok(Placement { compare, append: len - compare })
}

/// How many of `len` bytes at `at` lie in the same segment as the first.
pub(super) fn within_segment(at: Lsn, len: usize, size: WalSegmentSize) -> usize {
    let left = size.bytes() - size.offset(at);
    len.min(usize::try_from(left).unwrap_or(usize::MAX))
}

/// The first segment that retention must keep: `retain_bytes` behind the durable end, everything that a slot
/// pins, and in any case the segment of the end itself.
pub(super) fn first_kept(
    durable: Lsn,
    retain_bytes: u64,
    pinned: Option<Lsn>,
    size: WalSegmentSize,
) -> SegmentNumber {
    let by_size = Lsn(durable.0.saturating_sub(retain_bytes));
    let oldest = pinned.filter(|lsn| lsn.is_valid()).map_or(by_size, |lsn| lsn.min(by_size));
    // The last byte of the log is the one before `durable`.
    size.segment(oldest).min(size.segment(Lsn(durable.0.saturating_sub(1))))
}

#[cfg(test)]
mod tests {
    use super::{Placement, first_kept, place, within_segment};
    use crate::pg::Lsn;
    use crate::pg::wal::WalSegmentSize;

    #[test]
    fn offered_bytes_are_compared_appended_or_refused() {
        let placed = |at, len, end| place(Lsn(at), len, Lsn(end)).ok();
        assert_eq!(placed(100, 10, 100), Some(Placement { compare: 0, append: 10 }));
        assert_eq!(placed(95, 10, 100), Some(Placement { compare: 5, append: 5 }));
        assert_eq!(placed(50, 10, 100), Some(Placement { compare: 10, append: 0 }));
        assert_eq!(placed(100, 0, 100), Some(Placement { compare: 0, append: 0 }));
        assert_eq!(placed(101, 10, 100), None);
    }

    #[test]
    fn writes_are_cut_at_segment_borders() {
        let size = WalSegmentSize::new(1 << 20).expect("valid");
        assert_eq!(within_segment(Lsn(0x10_0000), 0x20_0000, size), 0x10_0000);
        assert_eq!(within_segment(Lsn(0x1F_FFFF), 10, size), 1);
        assert_eq!(within_segment(Lsn(0x1F_0000), 10, size), 10);
    }

    #[test]
    fn retention() {
        let size = WalSegmentSize::new(1 << 20).expect("valid");
        let kept =
            |durable, retain, pinned: Option<u64>| first_kept(Lsn(durable), retain, pinned.map(Lsn), size).0;
        assert_eq!(kept(0xA0_0000, 0, None), 9, "the segment of the last byte stays");
        assert_eq!(kept(0xA0_0001, 0, None), 10);
        assert_eq!(kept(0xA8_0000, 0x30_0000, None), 7);
        assert_eq!(kept(0xA8_0000, 0x30_0000, Some(0x42_0000)), 4, "a slot pins its segment");
        assert_eq!(kept(0xA8_0000, 0x30_0000, Some(0xA7_0000)), 7, "a slot takes nothing away");
        assert_eq!(kept(0xA8_0000, 0x30_0000, Some(0)), 7, "a slot without a position pins nothing");
        assert_eq!(kept(0x18_0000, u64::MAX, None), 0);
        assert_eq!(kept(0, 0, None), 0);
    }
}
