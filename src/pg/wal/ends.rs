//! Where transactions end: picked out of WAL that a [`Verifier`](super::Verifier) has passed.
//!
//! A transaction's own end is told by record headers alone: they carry its xid and what became of it (xact.h; the format
//! is the same in PostgreSQL 14 to 18). What lies in the records is not looked at, nor is anything checked a second
//! time; but for the second phase of a prepared transaction, whose record says only inside whose it is.

use super::page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER_LEN, PAGE_SIZE, PageHeader,
    major_of_magic,
};
use super::record::{ALIGNMENT, RECORD_HEADER_LEN, RecordHeader, RecordKind};
use super::second_phase::prepared_xid;
use super::segment::WalSegmentSize;
use crate::pg::Lsn;

/// `RM_XACT_ID`.
const RM_XACT: u8 = 1;
/// `XLOG_XACT_OPMASK`.
const XACT_OPERATION: u8 = 0x70;
const XLOG_XACT_COMMIT: u8 = 0x00;
const XLOG_XACT_PREPARE: u8 = 0x10;
const XLOG_XACT_ABORT: u8 = 0x20;
const XLOG_XACT_COMMIT_PREPARED: u8 = 0x30;
const XLOG_XACT_ABORT_PREPARED: u8 = 0x40;

/// Of a second phase so many bytes are read; that is a quarter of a million savepoints.
const MAX_SECOND_PHASE: usize = 1 << 20;

/// The end of one transaction, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    Committed {
        xid: u32,
    },
    /// Of a transaction or a savepoint's.
    Aborted {
        xid: u32,
    },
    /// Its outcome waits for a second phase.
    Prepared {
        xid: u32,
    },
    /// The second phase of `xid`, which was prepared.
    CommittedPrepared {
        xid: u32,
    },
    AbortedPrepared {
        xid: u32,
    },
    /// The second phase of one that cannot be told.
    OfPrepared,
    /// A shutdown checkpoint: nothing was running. Crash recovery ends with one, too (`PerformRecoveryXLogAction` in
    /// xlog.c), and xids that only WAL behind it has had are given again.
    All,
}

/// What of a record is to be told, once it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    End(TransactionEnd),
    /// Of a second phase; whose is found inside.
    SecondPhase {
        operation: u8,
    },
}

impl News {
    fn of(header: &RecordHeader) -> News {
        let xid = header.xid;
        match (header.rmid, header.info & XACT_OPERATION) {
            (RM_XACT, XLOG_XACT_COMMIT) => News::End(TransactionEnd::Committed { xid }),
            (RM_XACT, XLOG_XACT_ABORT) => News::End(TransactionEnd::Aborted { xid }),
            (RM_XACT, XLOG_XACT_PREPARE) => News::End(TransactionEnd::Prepared { xid }),
            (RM_XACT, operation @ (XLOG_XACT_COMMIT_PREPARED | XLOG_XACT_ABORT_PREPARED)) => {
                News::SecondPhase { operation }
            }
            _ if header.kind() == RecordKind::ShutdownCheckpoint => News::End(TransactionEnd::All),
            _ => News::Nothing,
        }
    }
}

/// Reads one timeline's WAL, in chunks of any size.
#[derive(Clone, Debug)]
pub struct TransactionEnds {
    segment_size: WalSegmentSize,
    /// Where the next byte fed belongs.
    position: Lsn,
    page_header: [u8; LONG_HEADER_LEN],
    /// Of the server that wrote the last page.
    major: Option<u32>,
    /// Of the second phase that is being read, what lies behind its header; at most [`MAX_SECOND_PHASE`] and one byte more.
    second_phase: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the first page header.
    Start,
    Header {
        start: Lsn,
        bytes: [u8; RECORD_HEADER_LEN],
        have: usize,
    },
    /// The rest of a record.
    Body {
        left: u64,
        start: Lsn,
        news: News,
        then: Then,
    },
}

/// What follows a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Record,
    /// Filler up to the segment's end.
    Segment,
}

impl TransactionEnds {
    /// Begins at `start`, the first byte of a page that is no filler.
    pub fn new(start: Lsn, segment_size: WalSegmentSize) -> TransactionEnds {
        TransactionEnds {
            segment_size,
            position: start,
            page_header: [0; LONG_HEADER_LEN],
            major: None,
            second_phase: Vec::new(),
            state: State::Start,
        }
    }

    /// Where the next byte fed belongs.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Takes the next bytes; `told` hears of each end, with its record's start, once the record is whole.
    pub fn feed(&mut self, mut bytes: &[u8], told: &mut impl FnMut(Lsn, TransactionEnd)) {
        while !bytes.is_empty() {
            let taken = self.step(bytes, told);
            bytes = &bytes[taken..];
        }
    }

    /// Consumes up to the next border: of a header, a record, a page, the segment or the input.
    fn step(&mut self, bytes: &[u8], told: &mut impl FnMut(Lsn, TransactionEnd)) -> usize {
        let offset = self.segment_size.offset(self.position);
        if let State::Body { left: 0, then: Then::Segment, .. } = self.state {
            return self.skip_filler(bytes, offset);
        }
        let in_page = (offset % PAGE_SIZE as u64) as usize;
        let header_len = PageHeader::len_at(offset);
        if in_page < header_len {
            let taken = bytes.len().min(header_len - in_page);
            self.page_header[in_page..in_page + taken].copy_from_slice(&bytes[..taken]);
            self.advance(taken as u64);
            if in_page + taken == header_len {
                self.page(header_len);
            }
            return taken;
        }
        self.record_bytes(&bytes[..bytes.len().min(PAGE_SIZE - in_page)], told)
    }

    fn advance(&mut self, bytes: u64) {
        self.position = self.position.advanced(bytes);
    }

    fn skip_filler(&mut self, bytes: &[u8], offset: u64) -> usize {
        let left = self.segment_size.bytes() - offset;
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.advance(taken as u64);
        if taken as u64 == left {
            self.state = self.at_boundary();
        }
        taken
    }

    /// A record begins with the next byte that is no page header.
    fn at_boundary(&self) -> State {
        State::Header { start: self.position, bytes: [0; RECORD_HEADER_LEN], have: 0 }
    }

    /// A page header is complete.
    fn page(&mut self, header_len: usize) {
        let Some(header) = PageHeader::parse(&self.page_header[..header_len]) else { return };
        self.major = major_of_magic(header.magic);
        match &mut self.state {
            State::Start => {
                let left = if header.has(FIRST_IS_CONTRECORD) { u64::from(header.rem_len) } else { 0 };
                self.state = self.rest(left, self.position, News::Nothing, Then::Record);
            }
            // The server crashed with that record half written and went on behind it.
            _ if header.has(FIRST_IS_OVERWRITE_CONTRECORD) => self.state = self.at_boundary(),
            State::Header { start, have: 0, .. } => *start = self.position,
            State::Header { .. } | State::Body { .. } => {}
        }
    }

    /// `left` bytes of a record, and the padding behind it, which is not cut by a page.
    fn rest(&self, left: u64, start: Lsn, news: News, then: Then) -> State {
        if left == 0 && then == Then::Record && news == News::Nothing {
            return self.at_boundary();
        }
        State::Body { left, start, news, then }
    }

    /// Bytes of the rest of a page, behind its header.
    fn record_bytes(&mut self, bytes: &[u8], told: &mut impl FnMut(Lsn, TransactionEnd)) -> usize {
        match &mut self.state {
            State::Start => unreachable!("a page header comes first"),
            State::Header { start, bytes: header, have } => {
                if *have == 0 {
                    let padding = (ALIGNMENT - self.position.0 % ALIGNMENT) % ALIGNMENT;
                    if padding > 0 {
                        let taken = bytes.len().min(padding as usize);
                        *start = self.position.advanced(taken as u64);
                        self.advance(taken as u64);
                        return taken;
                    }
                }
                let taken = bytes.len().min(RECORD_HEADER_LEN - *have);
                header[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                *have += taken;
                let whole = (*have == RECORD_HEADER_LEN).then(|| (*start, RecordHeader::parse(header)));
                self.advance(taken as u64);
                if let Some((start, header)) = whole {
                    self.begin(start, &header, told);
                }
                taken
            }
            State::Body { left, news, .. } => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if matches!(news, News::SecondPhase { .. }) {
                    let room = (MAX_SECOND_PHASE + 1).saturating_sub(self.second_phase.len());
                    self.second_phase.extend_from_slice(&bytes[..taken.min(room)]);
                }
                self.advance(taken as u64);
                self.conclude(told);
                taken
            }
        }
    }

    fn begin(&mut self, start: Lsn, header: &RecordHeader, told: &mut impl FnMut(Lsn, TransactionEnd)) {
        let left = u64::from(header.total_len).saturating_sub(RECORD_HEADER_LEN as u64);
        let then = if header.kind() == RecordKind::Switch { Then::Segment } else { Then::Record };
        self.second_phase.clear();
        self.state = State::Body { left, start, news: News::of(header), then };
        self.conclude(told);
    }

    /// Tells of a record that is whole.
    fn conclude(&mut self, told: &mut impl FnMut(Lsn, TransactionEnd)) {
        let State::Body { left: 0, start, news, then } = self.state else { return };
        match news {
            News::Nothing => {}
            News::End(end) => told(start, end),
            News::SecondPhase { operation } => told(start, self.second_phase_of(operation)),
        }
        self.state = match then {
            Then::Record => self.at_boundary(),
            // A record that ends with its segment has no filler behind it.
            Then::Segment if self.segment_size.offset(self.position) == 0 => self.at_boundary(),
            Then::Segment => State::Body { left: 0, start, news: News::Nothing, then },
        };
    }

    fn second_phase_of(&self, operation: u8) -> TransactionEnd {
        let whole = Some(&self.second_phase).filter(|body| body.len() <= MAX_SECOND_PHASE);
        let xid = whole.zip(self.major).and_then(|(body, major)| prepared_xid(body, major));
        match (xid, operation) {
            (None, _) => TransactionEnd::OfPrepared,
            (Some(xid), XLOG_XACT_COMMIT_PREPARED) => TransactionEnd::CommittedPrepared { xid },
            (Some(xid), _) => TransactionEnd::AbortedPrepared { xid },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{TransactionEnd, TransactionEnds};
    use crate::pg::Lsn;
    use crate::pg::TimelineId;
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::wal::build::WalBuilder;

    /// Written by PostgreSQL 15, up to 0/30005C0. `pg_waldump` says of it:
    /// ```text
    /// tx: 735, lsn: 0/03000068, COMMIT
    /// tx: 738, lsn: 0/03000150, ABORT              a savepoint's
    /// tx: 736, lsn: 0/03000178, COMMIT; subxacts: 737
    /// tx: 739, lsn: 0/030001E8, ABORT
    /// tx: 740, lsn: 0/03000250, PREPARE gid one
    /// tx: 741, lsn: 0/03000388, PREPARE gid two
    /// tx:   0, lsn: 0/03000480, COMMIT_PREPARED 740
    /// tx:   0, lsn: 0/030004B0, ABORT_PREPARED 741
    /// tx:   0, lsn: 0/030004E0, CHECKPOINT_SHUTDOWN  of crash recovery: a running transaction, 742, was lost
    /// tx: 742, lsn: 0/03000598, COMMIT             of another transaction
    /// ```
    const REAL: &[u8] = include_bytes!("transaction_ends_15.wal");

    fn ends(bytes: &[u8], start: Lsn, size: WalSegmentSize, chunk: usize) -> Vec<(u64, TransactionEnd)> {
        let mut reader = TransactionEnds::new(start, size);
        let mut found = Vec::new();
        for bytes in bytes.chunks(chunk) {
            reader.feed(bytes, &mut |lsn, end| found.push((lsn.0, end)));
        }
        assert_eq!(reader.position(), start.advanced(bytes.len() as u64));
        found
    }

    #[test]
    fn a_servers_own_wal() {
        use TransactionEnd::{Aborted, AbortedPrepared, All, Committed, CommittedPrepared, Prepared};
        for chunk in [1, 7, 8192] {
            assert_eq!(
                ends(REAL, Lsn(0x0300_0000), WalSegmentSize::default(), chunk),
                [
                    (0x0300_0068, Committed { xid: 735 }),
                    (0x0300_0150, Aborted { xid: 738 }),
                    (0x0300_0178, Committed { xid: 736 }),
                    (0x0300_01E8, Aborted { xid: 739 }),
                    (0x0300_0250, Prepared { xid: 740 }),
                    (0x0300_0388, Prepared { xid: 741 }),
                    (0x0300_0480, CommittedPrepared { xid: 740 }),
                    (0x0300_04B0, AbortedPrepared { xid: 741 }),
                    (0x0300_04E0, All),
                    (0x0300_0598, Committed { xid: 742 }),
                ]
            );
        }
    }

    #[test]
    fn a_record_counts_when_it_is_whole() {
        let all = ends(REAL, Lsn(0x0300_0000), WalSegmentSize::default(), 8192).len();
        // The last one's last byte (it is padded).
        for cut in 7..30 {
            let found =
                ends(&REAL[..REAL.len() - cut], Lsn(0x0300_0000), WalSegmentSize::default(), 8192).len();
            assert_eq!(found, all - 1, "{cut}");
        }
    }

    /// Records that lie over pages, end with one, are abandoned; a switch; from a page in the middle on.
    #[test]
    fn ends_among_other_records() {
        let start = Lsn(0x0500_0000);
        let mut wal = WalBuilder::new(start, TimelineId(1));
        let mut expected = Vec::new();
        for number in 0..900_u32 {
            wal.record((number as usize * 37) % 9000);
            let (xid, len) = (number + 1000, (number as usize * 13) % 300);
            if number == 450 {
                wal.abandoned_record(20_000, crate::pg::wal::RecordKind::OverwriteContrecord);
                wal.switch();
            }
            expected.push((wal.commit(xid, len).0, TransactionEnd::Committed { xid }));
        }
        for chunk in [1 << 20, 8192, 1000, 31] {
            assert_eq!(ends(wal.bytes(), start, wal.segment_size(), chunk), expected);
        }
        let skipped = 3 * 8192;
        let from = start.advanced(skipped as u64);
        let behind = ends(&wal.bytes()[skipped..], from, wal.segment_size(), 8192);
        let first = expected.iter().position(|end| *end == behind[0]).expect("one of them");
        assert_eq!(behind, expected[first..]);
        assert!(first < 50, "little is skipped");
    }
}
