//! Segments: the files that the log is cut into, and their names (`XLogFileName` in xlog_internal.h).

use std::fmt;

use crate::pg::{Lsn, TimelineId};

/// The size of every segment of a cluster, chosen at `initdb --wal-segsize`: a power of two from 1 MiB to 1 GiB
/// (`IsValidWalSegSize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalSegmentSize(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAL segment size {0}: a power of two from 1 MiB to 1 GiB is expected")]
pub struct InvalidSegmentSize(pub u64);

impl Default for WalSegmentSize {
    /// `DEFAULT_XLOG_SEG_SIZE`: 16 MiB.
    fn default() -> WalSegmentSize {
        WalSegmentSize(16 << 20)
    }
}

impl WalSegmentSize {
    pub fn new(bytes: u64) -> Result<WalSegmentSize, InvalidSegmentSize> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        let size = u32::try_from(bytes).map_err(|_| InvalidSegmentSize(bytes))?;
        valid.then_some(WalSegmentSize(size)).ok_or(InvalidSegmentSize(bytes))
    }

    /// What `SHOW wal_segment_size` answers: `16MB`, `1GB`.
    pub fn parse_setting(text: &str) -> Option<WalSegmentSize> {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let unit = match unit {
            "B" => 1,
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            _ => return None,
        };
        WalSegmentSize::new(number.parse::<u64>().ok()?.checked_mul(unit)?).ok()
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    pub fn segment(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.bytes())
    }

    /// `lsn` rounded down to its segment's first byte.
    pub fn segment_start(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 - self.offset(lsn))
    }

    pub fn offset(self, lsn: Lsn) -> u64 {
        lsn.0 & (self.bytes() - 1)
    }

    pub fn start(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0 * self.bytes())
    }

    /// One past the segment's last byte.
    pub fn end(self, segment: SegmentNumber) -> Lsn {
        self.start(segment.next())
    }

    /// `XLogSegmentsPerXLogId`: segments in 4 GiB of WAL.
    fn segments_per_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl fmt::Display for WalSegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 1 << 30 { f.write_str("1GB") } else { write!(f, "{}MB", self.0 >> 20) }
    }
}

/// A segment's number within the log, whatever its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    #[must_use]
    pub fn next(self) -> SegmentNumber {
        SegmentNumber(self.0 + 1)
    }

    /// The segment before; the first one is its own predecessor.
    #[must_use]
    pub fn previous(self) -> SegmentNumber {
        SegmentNumber(self.0.saturating_sub(1))
    }
}

/// One segment on one timeline: what a file in `pg_wal` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentFile {
    pub timeline: TimelineId,
    pub number: SegmentNumber,
}

impl SegmentFile {
    pub fn name(self, size: WalSegmentSize) -> String {
        let per_id = size.segments_per_id();
        format!("{:08X}{:08X}{:08X}", self.timeline.0, self.number.0 / per_id, self.number.0 % per_id)
    }

    /// As pg_receivewal and archived half segments are called.
    pub fn partial_name(self, size: WalSegmentSize) -> String {
        format!("{}.partial", self.name(size))
    }

    /// The segment that `name` (with or without `.partial`) names; `None` for every other file.
    pub fn parse(name: &str, size: WalSegmentSize) -> Option<SegmentFile> {
        let name = name.strip_suffix(".partial").unwrap_or(name);
        let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if name.len() != 24 || !name.bytes().all(upper_hex) {
            return None;
        }
        let field = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
        let (timeline, id, within) = (field(0)?, u64::from(field(8)?), u64::from(field(16)?));
        (within < size.segments_per_id()).then(|| SegmentFile {
            timeline: TimelineId(timeline),
            number: SegmentNumber(id * size.segments_per_id() + within),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{SegmentFile, SegmentNumber, WalSegmentSize};
    use crate::pg::{Lsn, TimelineId};

    fn check(size_mib: u64, timeline: u32, lsn: &str, name: &str) {
        let size = WalSegmentSize::new(size_mib << 20).expect("a valid size");
        let lsn: Lsn = lsn.parse().expect("a valid LSN");
        let file = SegmentFile { timeline: TimelineId(timeline), number: size.segment(lsn) };
        assert_eq!(file.name(size), name);
        assert_eq!(SegmentFile::parse(name, size), Some(file));
        assert_eq!(SegmentFile::parse(&file.partial_name(size), size), Some(file));
        assert!(size.start(file.number) <= lsn && lsn < size.end(file.number));
    }

    #[test]
    fn names_are_those_of_pg_walfile_name() {
        check(16, 1, "0/3060A80", "000000010000000000000003");
        check(16, 2, "0/FFFFFFFF", "0000000200000000000000FF");
        check(16, 0x1F, "1/0", "0000001F0000000100000000");
        check(1, 1, "0/FFF00000", "000000010000000000000FFF");
        check(64, 1, "A/C0000000", "000000010000000A00000030");
        check(1024, 3, "AD/9ED160D8", "00000003000000AD00000002");
    }

    #[test]
    fn other_files_are_no_segments() {
        let size = WalSegmentSize::default();
        for name in [
            "",
            "00000001.history",
            "00000001000000000000000",
            "000000010000000000000003.tmp",
            "00000001000000000000000a",
            // 16 MiB segments end at ..FF.
            "000000010000000000000100",
        ] {
            assert_eq!(SegmentFile::parse(name, size), None, "{name:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_initdb() {
        assert_eq!(WalSegmentSize::parse_setting("16MB"), Some(WalSegmentSize::default()));
        assert_eq!(WalSegmentSize::parse_setting("1GB").map(WalSegmentSize::bytes), Some(1 << 30));
        for text in ["", "MB", "16", "3MB", "2GB", "512kB", "-1MB"] {
            assert_eq!(WalSegmentSize::parse_setting(text), None, "{text:?}");
        }
        assert_eq!(SegmentNumber(0).previous(), SegmentNumber(0));
    }
}
