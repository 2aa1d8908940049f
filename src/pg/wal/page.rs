//! Page headers (`XLogPageHeaderData`, `XLogLongPageHeaderData` in xlog_internal.h). Little-endian, as every
//! platform that PostgreSQL packages are built for.

use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// `XLOG_BLCKSZ`. A build option in theory; a segment that says otherwise is refused.
pub const PAGE_SIZE: usize = 8192;
/// `SizeOfXLogShortPHD`.
pub(super) const SHORT_HEADER_LEN: usize = 24;
/// `SizeOfXLogLongPHD`: on the first page of every segment.
pub(super) const LONG_HEADER_LEN: usize = 40;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins inside a record.
pub(super) const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
pub(super) const LONG_HEADER: u16 = 0x0002;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that the previous page began was never finished.
pub(super) const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    pub magic: u16,
    pub info: u16,
    pub timeline: TimelineId,
    pub address: Lsn,
    /// Bytes of the record that goes on from the page before.
    pub rem_len: u32,
    pub long: Option<LongHeader>,
}

/// What the first page of a segment says in addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongHeader {
    pub system: SystemIdentifier,
    pub segment_size: u32,
    pub page_size: u32,
}

impl PageHeader {
    /// `None` when `bytes` is shorter than the header that it announces.
    pub fn parse(bytes: &[u8]) -> Option<PageHeader> {
        let short: &[u8; SHORT_HEADER_LEN] = bytes.first_chunk()?;
        let info = u16_at(short, 2);
        let long = if info & LONG_HEADER == 0 { None } else { Some(LongHeader::parse(bytes)?) };
        Some(PageHeader {
            magic: u16_at(short, 0),
            info,
            timeline: TimelineId(u32_at(short, 4)),
            address: Lsn(u64_at(short, 8)),
            rem_len: u32_at(short, 16),
            long,
        })
    }

    /// The header's length on the page at `offset` bytes into its segment.
    pub fn len_at(offset: u64) -> usize {
        if offset < PAGE_SIZE as u64 { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }
    }

    pub fn has(&self, flag: u16) -> bool {
        self.info & flag != 0
    }
}

impl LongHeader {
    fn parse(bytes: &[u8]) -> Option<LongHeader> {
        let long: &[u8; LONG_HEADER_LEN] = bytes.first_chunk()?;
        Some(LongHeader {
            system: SystemIdentifier(u64_at(long, 24)),
            segment_size: u32_at(long, 32),
            page_size: u32_at(long, 36),
        })
    }
}

/// The major version whose WAL carries `magic` (`XLOG_PAGE_MAGIC`); `None` for one that we do not know.
pub fn major_of_magic(magic: u16) -> Option<u32> {
    let known = [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];
    known.iter().find(|(m, _)| *m == magic).map(|(_, major)| *major)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
