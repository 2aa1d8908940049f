//! Record headers (`XLogRecord` in xlogrecord.h) and the few record kinds that a relay must know.

use super::page::{u32_at, u64_at};
use crate::pg::Lsn;

/// `MAXIMUM_ALIGNOF`: records begin at multiples of it.
pub(super) const ALIGNMENT: u64 = 8;
/// `SizeOfXLogRecord`.
pub(super) const RECORD_HEADER_LEN: usize = 24;

/// The header without its checksum covers these bytes (`offsetof(XLogRecord, xl_crc)`).
const CHECKED_HEADER_LEN: usize = 20;

/// Above `XLogRecordMaxSize` (1020 MiB): no server writes a longer record.
const MAX_RECORD_LEN: u32 = 1 << 30;

/// `RM_XLOG_ID`.
const RM_XLOG: u8 = 0;
/// The resource manager's part of `xl_info` (`~XLR_INFO_MASK`).
const RMGR_INFO: u8 = 0xF0;
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Of the whole record, header included, page headers and padding not.
    pub total_len: u32,
    pub xid: u32,
    /// Start of the record before.
    pub previous: Lsn,
    pub info: u8,
    pub rmid: u8,
    pub crc: u32,
}

/// Records that mean something to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The last record of an orderly shutdown.
    ShutdownCheckpoint,
    /// The rest of the segment is filler.
    Switch,
    /// The first record of a promoted server's timeline, unless it wrote a shutdown checkpoint.
    EndOfRecovery,
    /// The record before was cut short by a crash; this one says so.
    OverwriteContrecord,
    Other,
}

impl RecordHeader {
    pub fn parse(bytes: &[u8; RECORD_HEADER_LEN]) -> RecordHeader {
        RecordHeader {
            total_len: u32_at(bytes, 0),
            xid: u32_at(bytes, 4),
            previous: Lsn(u64_at(bytes, 8)),
            info: bytes[16],
            rmid: bytes[17],
            crc: u32_at(bytes, 20),
        }
    }

    pub fn kind(&self) -> RecordKind {
        match (self.rmid, self.info & RMGR_INFO) {
            (RM_XLOG, XLOG_CHECKPOINT_SHUTDOWN) => RecordKind::ShutdownCheckpoint,
            (RM_XLOG, XLOG_SWITCH) => RecordKind::Switch,
            (RM_XLOG, XLOG_END_OF_RECOVERY) => RecordKind::EndOfRecovery,
            (RM_XLOG, XLOG_OVERWRITE_CONTRECORD) => RecordKind::OverwriteContrecord,
            _ => RecordKind::Other,
        }
    }

    /// Whether any server would write a record of this length.
    pub fn has_possible_length(total_len: u32) -> bool {
        (RECORD_HEADER_LEN as u32..=MAX_RECORD_LEN).contains(&total_len)
    }
}

/// The checksum of a record: CRC-32C over what follows the header, then over the header up to the checksum
/// itself (`ValidXLogRecord` in xlogreader.c). `body_crc` is the first half.
pub(super) fn record_crc(body_crc: u32, header: &[u8; RECORD_HEADER_LEN]) -> u32 {
    crc32c::crc32c_append(body_crc, &header[..CHECKED_HEADER_LEN])
}
