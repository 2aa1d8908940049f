//! Makes WAL for tests: whole pages and records with right checksums, as a server would write them.

use super::page::{FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, PAGE_SIZE, PageHeader};
use super::record::{RECORD_HEADER_LEN, RecordKind, record_crc};
use super::segment::WalSegmentSize;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier(0x6B6F_0102_0304_0599);

/// Of PostgreSQL 15.
const MAGIC: u16 = 0xD110;

/// A growing log with segments of 1 MiB.
#[derive(Clone, Debug)]
pub(crate) struct WalBuilder {
    start: Lsn,
    timeline: TimelineId,
    bytes: Vec<u8>,
    previous: Lsn,
    /// Offsets of every record's first byte and past its last.
    records: Vec<(usize, usize)>,
}

impl WalBuilder {
    pub(crate) fn new(start: Lsn, timeline: TimelineId) -> WalBuilder {
        WalBuilder { start, timeline, bytes: Vec::new(), previous: Lsn::INVALID, records: Vec::new() }
    }

    pub(crate) fn segment_size(&self) -> WalSegmentSize {
        WalSegmentSize::new(1 << 20).expect("1 MiB is a segment size")
    }

    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    pub(crate) fn start(&self) -> Lsn {
        self.start
    }

    pub(crate) fn end(&self) -> Lsn {
        self.start.advanced(self.bytes.len() as u64)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn record_range(&self, index: usize) -> (usize, usize) {
        self.records[index]
    }

    /// Where each record's successor begins.
    pub(crate) fn record_ends(&self) -> impl Iterator<Item = Lsn> {
        let aligned = |end: usize| end.next_multiple_of(8) as u64;
        self.records.iter().map(move |(_, end)| self.start.advanced(aligned(*end)))
    }

    /// A record with `len` bytes behind its header.
    pub(crate) fn record(&mut self, len: usize) {
        self.write(len, RecordKind::Other);
    }

    /// The commit of `xid`, with `len` bytes behind the header; where the record begins.
    pub(crate) fn commit(&mut self, xid: u32, len: usize) -> Lsn {
        const RM_XACT: u8 = 1;
        let record = self.encode_as((RM_XACT, 0x00), xid, len);
        self.write_record(&record);
        let (start, _) = self.records[self.records.len() - 1];
        self.start.advanced(start as u64)
    }

    /// XLOG_SWITCH and the zeros up to the segment's end.
    pub(crate) fn switch(&mut self) {
        self.write(0, RecordKind::Switch);
        let size = self.segment_size().bytes() as usize;
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
    }

    /// A promotion: what follows is on `timeline`.
    pub(crate) fn fork(&mut self, timeline: TimelineId) {
        self.timeline = timeline;
    }

    /// A record of which only the first page was written before a crash, and the page after it, which says so
    /// in its header and with its first record, of `kind`.
    pub(crate) fn abandoned_record(&mut self, len: usize, kind: RecordKind) {
        let start = self.bytes.len();
        let previous = self.previous;
        self.write(len, RecordKind::Other);
        self.bytes.truncate((start / PAGE_SIZE + 1) * PAGE_SIZE);
        self.records.pop();
        self.previous = previous;
        self.page_header(FIRST_IS_OVERWRITE_CONTRECORD, 0);
        self.write(16, kind);
    }

    fn write(&mut self, len: usize, kind: RecordKind) {
        let record = self.encode(len, kind);
        self.write_record(&record);
    }

    fn write_record(&mut self, record: &[u8]) {
        if self.bytes.len().is_multiple_of(PAGE_SIZE) {
            self.page_header(0, 0);
        }
        let start = self.bytes.len();
        self.previous = self.end();
        let mut rest = record;
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE_SIZE) {
                self.page_header(FIRST_IS_CONTRECORD, rest.len() as u32);
            }
            let room = PAGE_SIZE - self.bytes.len() % PAGE_SIZE;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.records.push((start, self.bytes.len()));
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn encode(&self, len: usize, kind: RecordKind) -> Vec<u8> {
        let (rmid, info) = match kind {
            RecordKind::ShutdownCheckpoint => (0, 0x00),
            RecordKind::Switch => (0, 0x40),
            RecordKind::EndOfRecovery => (0, 0x90),
            RecordKind::OverwriteContrecord => (0, 0xD0),
            RecordKind::Other => (10, 0x00),
        };
        self.encode_as((rmid, info), 0, len)
    }

    fn encode_as(&self, (rmid, info): (u8, u8), xid: u32, len: usize) -> Vec<u8> {
        let mut header = [0; RECORD_HEADER_LEN];
        header[..4].copy_from_slice(&((len + RECORD_HEADER_LEN) as u32).to_le_bytes());
        header[4..8].copy_from_slice(&xid.to_le_bytes());
        header[8..16].copy_from_slice(&self.previous.0.to_le_bytes());
        (header[16], header[17]) = (info, rmid);
        let body: Vec<u8> = (0..len).map(|i| (i * 31 + self.bytes.len()) as u8).collect();
        let crc = record_crc(crc32c::crc32c(&body), &header);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        [&header[..], &body].concat()
    }

    fn page_header(&mut self, flags: u16, rem_len: u32) {
        let address = self.end();
        let len = PageHeader::len_at(self.segment_size().offset(address));
        let flags = if len == super::page::LONG_HEADER_LEN { flags | LONG_HEADER } else { flags };
        self.bytes.extend_from_slice(&MAGIC.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        self.bytes.extend_from_slice(&address.0.to_le_bytes());
        self.bytes.extend_from_slice(&rem_len.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if flags & LONG_HEADER != 0 {
            self.bytes.extend_from_slice(&SYSTEM.0.to_le_bytes());
            self.bytes.extend_from_slice(&(self.segment_size().bytes() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        }
    }
}
