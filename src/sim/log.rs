//! A server's WAL as bytes: whole pages and records that the real verifier accepts, with tokens in them.
//!
//! Written after xlog.c and xlogreader.c, not after our own verifier: two readings of the format check each
//! other.

use crate::pg::wal::build::SYSTEM;
use crate::pg::wal::{PAGE_SIZE, PageHeader};
use crate::pg::{Lsn, TimelineId};

pub(super) const SEGMENT: u64 = 1 << 20;
pub(super) const START: Lsn = Lsn(0x100_0000);

/// Of PostgreSQL 15.
const MAGIC: u16 = 0xD110;
const CONTRECORD: u16 = 1;
const LONG: u16 = 2;
const OVERWRITE: u16 = 8;
const HEADER: usize = 24;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A client's transaction with its token, and so much else.
    Token(u64),
    Marker,
    /// The first record of a promoted server.
    EndOfRecovery,
    /// The last record of a server that is shut down in order.
    ShutdownCheckpoint,
    OverwriteContrecord,
}

#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) bytes: Vec<u8>,
    pub(super) timeline: TimelineId,
    /// The end of the last whole record.
    whole: Lsn,
    /// Where that record began.
    previous: Lsn,
    /// Of all whole records, with the end of each.
    tokens: Vec<(Lsn, u64)>,
}

impl Log {
    pub(super) fn new() -> Log {
        Log {
            bytes: Vec::new(),
            timeline: TimelineId(1),
            whole: START,
            previous: Lsn::INVALID,
            tokens: Vec::new(),
        }
    }

    pub(super) fn end(&self) -> Lsn {
        START.advanced(self.bytes.len() as u64)
    }

    pub(super) fn whole(&self) -> Lsn {
        self.whole
    }

    pub(super) fn tokens(&self) -> &[(Lsn, u64)] {
        &self.tokens
    }

    pub(super) fn slice(&self, from: Lsn, to: Lsn) -> &[u8] {
        &self.bytes[at(from)..at(to)]
    }

    /// Appends a record with `filler` bytes beside its content; returns its end.
    pub(super) fn append(&mut self, kind: Kind, filler: usize) -> Lsn {
        assert_eq!(self.whole, self.end(), "a server writes behind its last whole record");
        let record = self.encode(kind, filler);
        if self.bytes.len().is_multiple_of(PAGE_SIZE) {
            self.page_header(0, 0);
        }
        let mut rest = &record[..];
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE_SIZE) {
                self.page_header(CONTRECORD, rest.len());
            }
            let room = PAGE_SIZE - self.bytes.len() % PAGE_SIZE;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.scan();
        assert_eq!(self.whole, self.end(), "what was written is read");
        self.end()
    }

    /// A walreceiver's write: over what was there from `from` on, or behind it.
    pub(super) fn write(&mut self, from: Lsn, bytes: &[u8]) {
        let (start, end) = (at(from), at(from) + bytes.len());
        assert!(start <= self.bytes.len(), "a walreceiver leaves no gap");
        let known = self.bytes.len().min(end) - start;
        if self.bytes[start..start + known] != bytes[..known] {
            self.truncate(from);
            self.bytes.extend_from_slice(bytes);
        } else {
            self.bytes.extend_from_slice(&bytes[known..]);
        }
        self.scan();
    }

    pub(super) fn truncate(&mut self, end: Lsn) {
        self.bytes.truncate(at(end));
        if end < self.whole {
            (self.whole, self.previous) = (START, Lsn::INVALID);
            self.tokens.clear();
            self.scan();
        }
    }

    /// The end of recovery of a server that stays on its timeline: a record that reached into the next page is
    /// declared abandoned there, since its first pages may have been shipped (`CreateOverwriteContrecordRecord`).
    pub(super) fn recover(&mut self) {
        let page = self.bytes.len() / PAGE_SIZE * PAGE_SIZE;
        if START.advanced(page as u64) <= self.whole {
            return self.truncate(self.whole);
        }
        self.bytes.truncate(page);
        self.page_header(OVERWRITE, 0);
        let record = self.encode(Kind::OverwriteContrecord, 16);
        self.bytes.extend_from_slice(&record);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.scan();
        assert_eq!(self.whole, self.end(), "an abandoned record is stepped over");
    }

    /// A promotion: the new timeline begins behind the last whole record. Returns where.
    pub(super) fn promote(&mut self, timeline: TimelineId) -> Lsn {
        self.truncate(self.whole);
        let switchpoint = self.whole;
        self.timeline = timeline;
        self.append(Kind::EndOfRecovery, 16);
        switchpoint
    }

    fn encode(&self, kind: Kind, filler: usize) -> Vec<u8> {
        let (rmid, info, mark) = match kind {
            Kind::Token(token) => (10, 0x00, token),
            Kind::Marker => (11, 0x00, 0),
            Kind::EndOfRecovery => (0, 0x90, u64::from(self.timeline.0)),
            Kind::ShutdownCheckpoint => (0, 0x00, 0),
            Kind::OverwriteContrecord => (0, 0xD0, 0),
        };
        let mut body = mark.to_le_bytes().to_vec();
        body.extend((0..filler).map(|i| (i as u64 * 31 + mark) as u8));
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
        header[8..16].copy_from_slice(&self.previous.0.to_le_bytes());
        (header[16], header[17]) = (info, rmid);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        [&header[..], &body].concat()
    }

    fn page_header(&mut self, flags: u16, rem_len: usize) {
        let address = self.end();
        let is_long = address.0.is_multiple_of(SEGMENT);
        let flags = if is_long { flags | LONG } else { flags };
        self.bytes.extend_from_slice(&MAGIC.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        self.bytes.extend_from_slice(&address.0.to_le_bytes());
        self.bytes.extend_from_slice(&(rem_len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if is_long {
            self.bytes.extend_from_slice(&SYSTEM.0.to_le_bytes());
            self.bytes.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        }
    }

    /// Takes in all whole records behind the last one.
    fn scan(&mut self) {
        while let Some((start, end, record)) = self.next_record() {
            (self.previous, self.whole) = (start, end);
            let token = u64::from_le_bytes(record[HEADER..HEADER + 8].try_into().expect("eight bytes"));
            if record[17] == 10 {
                self.tokens.push((end, token));
            }
        }
    }

    /// The record behind the last whole one, when all of it is there and its checksum is right.
    fn next_record(&self) -> Option<(Lsn, Lsn, Vec<u8>)> {
        let mut position = at(self.whole);
        let mut start = position;
        let mut record = Vec::new();
        let mut length = HEADER;
        while record.len() < length {
            if position.is_multiple_of(PAGE_SIZE) {
                let header = PageHeader::len_at(position as u64 % SEGMENT);
                let flags = self.bytes.get(position + 2..position + 4)?;
                if u16::from_le_bytes([flags[0], flags[1]]) & OVERWRITE != 0 {
                    record.clear();
                    length = HEADER;
                }
                position += header;
            }
            if record.is_empty() {
                start = position;
            }
            let room = PAGE_SIZE - position % PAGE_SIZE;
            let part = self.bytes.get(position..position + room.min(length - record.len()))?;
            record.extend_from_slice(part);
            position += part.len();
            if record.len() >= 4 {
                length = u32::from_le_bytes(record[..4].try_into().expect("four bytes")) as usize;
                if length < HEADER + 8 {
                    return None;
                }
            }
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[HEADER..]), &record[..20]);
        let end = position.next_multiple_of(8);
        let good = record[20..24] == crc.to_le_bytes() && end <= self.bytes.len();
        good.then(|| (START.advanced(start as u64), START.advanced(end as u64), record))
    }
}

fn at(lsn: Lsn) -> usize {
    usize::try_from(lsn.bytes_since(START)).expect("a small log")
}

#[cfg(test)]
mod tests {
    use super::{Kind, Log, SEGMENT, START};
    use crate::pg::wal::build::SYSTEM;
    use crate::pg::wal::{Expected, Verifier, WalSegmentSize};
    use crate::pg::{Lsn, TimelineId};

    fn verified(log: &Log) -> Option<Lsn> {
        let segment_size = WalSegmentSize::new(SEGMENT).expect("a segment size");
        let expected = Expected { segment_size, timeline: log.timeline, system: Some(SYSTEM) };
        let mut verifier = Verifier::new(START, expected);
        verifier.feed(&log.bytes).expect("good WAL");
        verifier.verified()
    }

    fn filled() -> Log {
        let mut log = Log::new();
        for (token, filler) in [(1, 0), (2, 100), (3, 9000), (4, 8192 * 3), (5, 7), (6, 1_200_000)] {
            log.append(Kind::Token(token), filler);
        }
        log
    }

    #[test]
    fn the_verifier_agrees() {
        let mut log = filled();
        assert_eq!(verified(&log), Some(log.whole()));
        let fork = log.promote(TimelineId(2));
        log.append(Kind::Marker, 20_000);
        assert!(fork < log.whole());
        assert_eq!(verified(&log), Some(log.whole()));
    }

    #[test]
    fn a_crash_anywhere_leaves_good_wal() {
        let log = filled();
        let mut cut = START;
        while cut < log.end() {
            let mut crashed = log.clone();
            crashed.truncate(cut);
            crashed.recover();
            crashed.append(Kind::Token(9), 50);
            assert_eq!(verified(&crashed), Some(crashed.whole()), "cut at {cut}");
            cut = cut.advanced(3719);
        }
    }

    #[test]
    fn streamed_bytes_make_the_same_log() {
        let log = filled();
        let mut copy = Log::new();
        for chunk in log.bytes.chunks(70_001) {
            copy.write(copy.end(), chunk);
        }
        assert_eq!((copy.whole(), copy.tokens()), (log.whole(), log.tokens()));
    }
}
