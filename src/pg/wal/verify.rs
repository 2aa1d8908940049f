//! Checks WAL as it streams by: page headers, the chain of continuation lengths, `xl_prev`, checksums.
//!
//! The rules are those of xlogreader.c. The verifier never waits for a record to be whole: bytes come in any
//! chunks, a record may lie over many pages, and what is not finished simply does not move [`Verifier::verified`].
//! It looks into no record but for its kind.

use super::page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, LONG_HEADER_LEN, PAGE_SIZE, PageHeader,
    major_of_magic,
};
use super::record::{ALIGNMENT, RECORD_HEADER_LEN, RecordHeader, RecordKind, record_crc};
use super::segment::WalSegmentSize;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// The incremental verifier of one stream on one timeline.
#[derive(Clone, Debug)]
pub struct Verifier {
    expected: Expected,
    /// Where the next byte fed belongs.
    position: Lsn,
    /// Of the pages seen so far; they never go back.
    page_timeline: TimelineId,
    magic: Option<u16>,
    header: [u8; LONG_HEADER_LEN],
    header_len: usize,
    state: State,
    verified: Option<Lsn>,
    /// The end of the last segment that was filled up behind a switch.
    filled: Option<Lsn>,
    last: Option<Record>,
    /// The start of a record that the current page declared abandoned; the next one must say so too.
    abandoned: Option<Lsn>,
    /// Pages from here on are of the stream's own timeline.
    own_from: Option<Lsn>,
}

/// What every segment of the stream must say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub segment_size: WalSegmentSize,
    /// The stream's timeline; pages before a fork carry an ancestor's.
    pub timeline: TimelineId,
    /// `None`: not known yet, anything goes.
    pub system: Option<SystemIdentifier>,
}

/// A record that was checked from its first byte to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub start: Lsn,
    pub header: RecordHeader,
}

#[derive(Clone, Debug)]
enum State {
    /// Before the first page header.
    Start,
    /// A record begins at the next byte (behind the page header).
    Boundary,
    /// Inside a record whose beginning was not seen.
    Unseen {
        left: u32,
    },
    Header {
        start: Lsn,
        bytes: [u8; RECORD_HEADER_LEN],
        have: usize,
    },
    Body {
        start: Lsn,
        bytes: [u8; RECORD_HEADER_LEN],
        left: u32,
        crc: u32,
    },
    /// Up to the next multiple of [`ALIGNMENT`].
    Padding,
    /// Behind XLOG_SWITCH: not looked at, up to the segment's end.
    Filler,
}

/// The first thing that is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL at {lsn}: {defect}")]
pub struct VerifyError {
    pub lsn: Lsn,
    pub defect: Defect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    #[error("page magic {found:04X} is of no supported version")]
    Magic { found: u16 },
    #[error("page of PostgreSQL {found} where one of {expected} belongs")]
    Major { found: u32, expected: u32 },
    #[error("page claims to be {found}")]
    Address { found: Lsn },
    #[error("page of timeline {found} where one from {at_least} to {at_most} belongs")]
    Timeline { found: TimelineId, at_least: TimelineId, at_most: TimelineId },
    #[error("page header flags {info:04X}")]
    Flags { info: u16 },
    #[error("system identifier {found}")]
    System { found: SystemIdentifier },
    #[error("segments of {segment_size} bytes, pages of {page_size}")]
    Geometry { segment_size: u32, page_size: u32 },
    #[error("{found} bytes of a record continue, {expected} were left")]
    Continuation { expected: u32, found: u32 },
    #[error("record length {found}")]
    Length { found: u32 },
    #[error("the record's back link is {found}")]
    Previous { found: Lsn },
    #[error("the abandoned record before is not acknowledged")]
    Abandoned,
    #[error("record checksum {found:08X} instead of {expected:08X}")]
    Checksum { expected: u32, found: u32 },
    /// For who feeds from files: WAL that should be there is not.
    #[error("the segment's file ends there")]
    EndOfFile,
}

impl Verifier {
    /// Begins at `start`, the first byte of a page.
    pub fn new(start: Lsn, expected: Expected) -> Verifier {
        debug_assert_eq!(start.0 % PAGE_SIZE as u64, 0, "verification begins with a page header");
        Verifier {
            expected,
            position: start,
            page_timeline: TimelineId(0),
            magic: None,
            header: [0; LONG_HEADER_LEN],
            header_len: 0,
            state: State::Start,
            verified: None,
            filled: None,
            last: None,
            abandoned: None,
            own_from: None,
        }
    }

    /// The stream's timeline began at `begin`: pages from there on are its own, no ancestor's (the page in which it
    /// began keeps its ancestor's number, `XLogInitNewTimeline` in xlog.c).
    pub fn own_from(mut self, begin: Lsn) -> Verifier {
        self.own_from = Some(begin);
        self
    }

    /// Where the next byte fed belongs.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The end of the last whole good record; `None` before the first.
    pub fn verified(&self) -> Option<Lsn> {
        self.verified
    }

    /// Nothing of what was fed up to here is half: as [`Verifier::verified`], but the segment's end behind a switch of
    /// segments whose filler has come, as a server reckons it (`XLogDecodeNextRecord` in xlogreader.c). In a file
    /// nobody can tell that filler from what was there before.
    pub fn whole(&self) -> Option<Lsn> {
        self.verified.max(self.filled)
    }

    /// The last whole good record.
    pub fn last_record(&self) -> Option<Record> {
        self.last
    }

    /// The major version that wrote the pages.
    pub fn major(&self) -> Option<u32> {
        self.magic.and_then(major_of_magic)
    }

    /// Takes the next bytes of the stream. After an error the verifier is of no further use, but
    /// [`Verifier::verified`] stands.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), VerifyError> {
        while !bytes.is_empty() {
            let taken = self.step(bytes)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Consumes up to the next border: of a header, a record, a page or the input.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, VerifyError> {
        let offset = self.expected.segment_size.offset(self.position);
        if matches!(self.state, State::Filler) {
            return Ok(self.skip_filler(bytes, offset));
        }
        let in_page = (offset % PAGE_SIZE as u64) as usize;
        let header_len = PageHeader::len_at(offset);
        if in_page < header_len {
            let taken = bytes.len().min(header_len - in_page);
            self.header[in_page..in_page + taken].copy_from_slice(&bytes[..taken]);
            self.header_len = in_page + taken;
            self.advance(taken);
            if self.header_len == header_len {
                self.page(Lsn(self.position.0 - header_len as u64), header_len)?;
            }
            return Ok(taken);
        }
        let room = PAGE_SIZE - in_page;
        self.record_bytes(&bytes[..bytes.len().min(room)])
    }

    fn advance(&mut self, bytes: usize) {
        self.position = self.position.advanced(bytes as u64);
    }

    fn skip_filler(&mut self, bytes: &[u8], offset: u64) -> usize {
        let left = self.expected.segment_size.bytes() - offset;
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.advance(taken);
        if taken as u64 == left {
            self.state = State::Boundary;
            self.filled = Some(self.position);
        }
        taken
    }

    /// A page header is complete.
    fn page(&mut self, address: Lsn, header_len: usize) -> Result<(), VerifyError> {
        let wrong = |defect| VerifyError { lsn: address, defect };
        let flags = u16::from_le_bytes([self.header[2], self.header[3]]);
        let magic = u16::from_le_bytes([self.header[0], self.header[1]]);
        let major = major_of_magic(magic).ok_or_else(|| wrong(Defect::Magic { found: magic }))?;
        if let Some(expected) = self.major().filter(|expected| *expected != major) {
            return Err(wrong(Defect::Major { found: major, expected }));
        }
        if (flags & LONG_HEADER != 0) != (header_len == LONG_HEADER_LEN) {
            return Err(wrong(Defect::Flags { info: flags }));
        }
        let header = PageHeader::parse(&self.header[..header_len]).expect("as long as its flags say");
        if header.address != address {
            return Err(wrong(Defect::Address { found: header.address }));
        }
        let at_most = self.expected.timeline;
        let own = self.own_from.is_some_and(|begin| begin <= address);
        let at_least = if own { at_most } else { self.page_timeline };
        if header.timeline < at_least || header.timeline > at_most {
            return Err(wrong(Defect::Timeline { found: header.timeline, at_least, at_most }));
        }
        self.check_long(&header).map_err(wrong)?;
        self.magic = Some(magic);
        self.page_timeline = header.timeline;
        self.continue_record(&header).map_err(wrong)
    }

    fn check_long(&self, header: &PageHeader) -> Result<(), Defect> {
        let Some(long) = header.long else { return Ok(()) };
        if self.expected.system.is_some_and(|system| system != long.system) {
            return Err(Defect::System { found: long.system });
        }
        let same_size = u64::from(long.segment_size) == self.expected.segment_size.bytes();
        if !same_size || long.page_size as usize != PAGE_SIZE {
            return Err(Defect::Geometry { segment_size: long.segment_size, page_size: long.page_size });
        }
        Ok(())
    }

    /// What the page says of the record before must be what we know of it.
    fn continue_record(&mut self, header: &PageHeader) -> Result<(), Defect> {
        let found = if header.has(FIRST_IS_CONTRECORD) { header.rem_len } else { 0 };
        if header.has(FIRST_IS_OVERWRITE_CONTRECORD) {
            // The server crashed with that record half written and went on behind it (`abortedRecPtr`).
            self.abandoned = match self.state {
                State::Header { start, .. } | State::Body { start, .. } => Some(start),
                _ => None,
            };
            self.state = State::Boundary;
            return if found == 0 { Ok(()) } else { Err(Defect::Flags { info: header.info }) };
        }
        let expected = match &self.state {
            State::Start => {
                self.state = if found == 0 { State::Boundary } else { State::Unseen { left: found } };
                return Ok(());
            }
            State::Boundary | State::Padding | State::Filler => 0,
            State::Unseen { left } | State::Body { left, .. } => *left,
            State::Header { bytes, have, .. } => total_len(bytes).saturating_sub(*have as u32),
        };
        if found == expected { Ok(()) } else { Err(Defect::Continuation { expected, found }) }
    }

    /// Bytes of the rest of a page, behind its header.
    fn record_bytes(&mut self, bytes: &[u8]) -> Result<usize, VerifyError> {
        match &mut self.state {
            State::Start | State::Filler => {
                unreachable!("a page header comes first; filler is skipped before")
            }
            State::Boundary => {
                let taken = self.whole_records(bytes)?;
                if taken == 0 {
                    let start = self.position;
                    self.state = State::Header { start, bytes: [0; RECORD_HEADER_LEN], have: 0 };
                }
                Ok(taken)
            }
            State::Unseen { left } => {
                let taken = bytes.len().min(*left as usize);
                *left -= taken as u32;
                if *left == 0 {
                    self.state = State::Padding;
                }
                self.advance(taken);
                Ok(taken)
            }
            State::Header { bytes: header, have, .. } => {
                let taken = bytes.len().min(RECORD_HEADER_LEN - *have);
                header[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                *have += taken;
                self.advance(taken);
                self.header_grown()?;
                Ok(taken)
            }
            State::Body { left, crc, .. } => {
                let taken = bytes.len().min(*left as usize);
                *crc = crc32c::crc32c_append(*crc, &bytes[..taken]);
                *left -= taken as u32;
                let whole = *left == 0;
                self.advance(taken);
                if whole {
                    self.finish()?;
                }
                Ok(taken)
            }
            State::Padding => {
                let padding = (ALIGNMENT - self.position.0 % ALIGNMENT) % ALIGNMENT;
                let taken = bytes.len().min(padding as usize);
                if taken as u64 == padding {
                    self.state = State::Boundary;
                }
                self.advance(taken);
                Ok(taken)
            }
        }
    }

    /// Short cut for records that lie whole, padding included, in the rest of a page, as small ones do: checks all that
    /// are there, and returns how many bytes they take. What it checks, and what is known afterwards, is the same.
    fn whole_records(&mut self, bytes: &[u8]) -> Result<usize, VerifyError> {
        let mut taken = 0;
        while let Some(header) = bytes[taken..].first_chunk::<RECORD_HEADER_LEN>() {
            let len = total_len(header) as usize;
            let padded = len.next_multiple_of(ALIGNMENT as usize);
            if len < RECORD_HEADER_LEN || padded > bytes.len() - taken {
                break;
            }
            let start = self.position;
            self.begin(start, header)?;
            let crc = crc32c::crc32c(&bytes[taken + RECORD_HEADER_LEN..taken + len]);
            taken += padded;
            self.advance(padded);
            self.conclude(start, header, crc)?;
            if matches!(self.state, State::Filler) {
                break;
            }
            self.state = State::Boundary;
        }
        Ok(taken)
    }

    fn header_grown(&mut self) -> Result<(), VerifyError> {
        let State::Header { start, bytes, have } = self.state else { return Ok(()) };
        if have >= 4 && !RecordHeader::has_possible_length(total_len(&bytes)) {
            return Err(VerifyError { lsn: start, defect: Defect::Length { found: total_len(&bytes) } });
        }
        if have < RECORD_HEADER_LEN {
            return Ok(());
        }
        self.begin(start, &bytes)?;
        let left = total_len(&bytes) - RECORD_HEADER_LEN as u32;
        self.state = State::Body { start, bytes, left, crc: 0 };
        if left == 0 { self.finish() } else { Ok(()) }
    }

    /// A record's header is complete: it has to follow on what was before.
    fn begin(&mut self, start: Lsn, bytes: &[u8; RECORD_HEADER_LEN]) -> Result<(), VerifyError> {
        let wrong = |defect| Err(VerifyError { lsn: start, defect });
        let header = RecordHeader::parse(bytes);
        let linked = match self.last {
            Some(last) => header.previous == last.start,
            None => header.previous < start,
        };
        if !linked {
            return wrong(Defect::Previous { found: header.previous });
        }
        if self.abandoned.take().is_some() && header.kind() != RecordKind::OverwriteContrecord {
            return wrong(Defect::Abandoned);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), VerifyError> {
        let State::Body { start, bytes, crc, .. } = self.state else { return Ok(()) };
        self.conclude(start, &bytes, crc)
    }

    /// A record's last byte has come; `body_crc` is of what follows its header.
    fn conclude(
        &mut self,
        start: Lsn,
        bytes: &[u8; RECORD_HEADER_LEN],
        body_crc: u32,
    ) -> Result<(), VerifyError> {
        let header = RecordHeader::parse(bytes);
        let found = record_crc(body_crc, bytes);
        if found != header.crc {
            return Err(VerifyError { lsn: start, defect: Defect::Checksum { expected: header.crc, found } });
        }
        let end = Lsn(self.position.0.next_multiple_of(ALIGNMENT));
        self.verified = Some(end);
        self.last = Some(Record { start, header });
        let rest_is_filler =
            header.kind() == RecordKind::Switch && self.expected.segment_size.offset(end) != 0;
        self.state = if rest_is_filler { State::Filler } else { State::Padding };
        Ok(())
    }
}

fn total_len(header: &[u8; RECORD_HEADER_LEN]) -> u32 {
    u32::from_le_bytes([header[0], header[1], header[2], header[3]])
}

#[cfg(test)]
mod tests {
    use super::{Defect, Expected, Verifier, VerifyError};
    use crate::pg::wal::build::{SYSTEM, WalBuilder};
    use crate::pg::wal::{RecordKind, WalSegmentSize};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};

    fn verifier(wal: &WalBuilder, start: Lsn) -> Verifier {
        let expected =
            Expected { segment_size: wal.segment_size(), timeline: wal.timeline(), system: Some(SYSTEM) };
        Verifier::new(start, expected)
    }

    /// Feeds everything in chunks of `chunk` bytes.
    fn feed(wal: &WalBuilder, bytes: &[u8], chunk: usize) -> (Option<Lsn>, Option<VerifyError>) {
        let mut verifier = verifier(wal, wal.start());
        let error = bytes.chunks(chunk).find_map(|chunk| verifier.feed(chunk).err());
        (verifier.verified(), error)
    }

    fn mixed() -> WalBuilder {
        let mut wal = WalBuilder::new(Lsn(0x100_0000), TimelineId(1));
        for len in [0, 1, 7, 8, 100, 8000, 200, 20_000, 3, 100_000] {
            wal.record(len);
        }
        wal
    }

    #[test]
    fn every_chunking_ends_at_the_same_record() {
        let wal = mixed();
        for chunk in [1, 7, 24, 4096, 7777, 8192, 131_072, usize::MAX] {
            assert_eq!(feed(&wal, wal.bytes(), chunk), (Some(wal.end()), None), "chunks of {chunk}");
        }
    }

    #[test]
    fn a_half_record_does_not_count() {
        let mut wal = mixed();
        let whole = wal.end();
        wal.record(50_000);
        for missing in [1, 100, 30_000, 50_000] {
            let bytes = &wal.bytes()[..wal.bytes().len() - missing];
            assert_eq!(feed(&wal, bytes, 8192), (Some(whole), None), "{missing} bytes short");
        }
    }

    #[test]
    fn any_flipped_bit_in_a_record_is_found() {
        let wal = mixed();
        let (start, end) = wal.record_range(8);
        for at in [start, start + 4, start + 8, start + 20, end - 1] {
            let mut bytes = wal.bytes().to_vec();
            bytes[at] ^= 0x10;
            let (verified, error) = feed(&wal, &bytes, 4096);
            assert!(error.is_some_and(|e| e.lsn <= wal.start().advanced(start as u64)), "at {at}: {error:?}");
            assert!(verified <= Some(wal.start().advanced(start as u64)));
        }
    }

    #[test]
    fn the_short_cut_for_small_records_finds_what_the_long_way_finds() {
        let mut wal = WalBuilder::new(Lsn(0x100_0000), TimelineId(1));
        for len in [0, 1, 40, 7, 64, 3, 90] {
            wal.record(len);
        }
        for at in 0..wal.bytes().len() {
            let mut bytes = wal.bytes().to_vec();
            bytes[at] ^= 0x10;
            let whole = feed(&wal, &bytes, usize::MAX);
            for chunk in [1, 24, 100] {
                assert_eq!(feed(&wal, &bytes, chunk), whole, "byte {at} changed, in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn pages_must_be_what_they_should_be() {
        let wal = mixed();
        let check = |at: usize, byte: u8, expected: Defect| {
            let mut bytes = wal.bytes().to_vec();
            bytes[at] = byte;
            assert_eq!(feed(&wal, &bytes, 100_000).1.map(|e| e.defect), Some(expected));
        };
        check(0, 0, Defect::Magic { found: 0xD100 });
        // Another major's WAL behind ours, and 16's is not 15's even where nothing else differs.
        check(8192, 0x13, Defect::Major { found: 16, expected: 15 });
        check(2, 0, Defect::Flags { info: 0 });
        let at_most = TimelineId(1);
        check(4, 2, Defect::Timeline { found: TimelineId(2), at_least: TimelineId(0), at_most });
        check(9, 1, Defect::Address { found: Lsn(0x100_0100) });
        check(24, 0, Defect::System { found: SystemIdentifier(SYSTEM.0 & !0xFF) });
        check(34, 1, Defect::Geometry { segment_size: 1 << 16, page_size: 8192 });
        // The second page continues a record: one byte less.
        let rem_len = wal.bytes()[8192 + 16];
        let broken = feed(
            &wal,
            &{
                let mut bytes = wal.bytes().to_vec();
                bytes[8192 + 16] = rem_len.wrapping_sub(1);
                bytes
            },
            8192,
        );
        assert!(matches!(
            broken.1,
            Some(VerifyError { lsn: Lsn(0x100_2000), defect: Defect::Continuation { .. } })
        ));
    }

    #[test]
    fn a_stream_may_begin_inside_a_record() {
        let mut wal = WalBuilder::new(Lsn(0x100_0000), TimelineId(1));
        wal.record(100);
        // Over the border of 1 MiB segments.
        wal.record(1_100_000);
        let inside = wal.end();
        wal.record(10);
        let border = wal.segment_size().bytes() as usize;
        let start = wal.start().advanced(border as u64);
        let mut verifier = verifier(&wal, start);
        verifier.feed(&wal.bytes()[border..(inside.0 - wal.start().0) as usize]).expect("valid");
        assert_eq!(verifier.verified(), None, "its first half was not seen");
        verifier.feed(&wal.bytes()[(inside.0 - wal.start().0) as usize..]).expect("valid");
        assert_eq!(verifier.verified(), Some(wal.end()));
    }

    #[test]
    fn what_follows_a_switch_is_not_looked_at() {
        let mut wal = mixed();
        wal.switch();
        let switched = wal.bytes().len();
        wal.record(10);
        let mut bytes = wal.bytes().to_vec();
        let filler = bytes.len() - 9000;
        assert!(filler > 0 && switched == wal.segment_size().bytes() as usize);
        bytes[switched - 9000] = 0xFF;
        for chunk in [1000, usize::MAX] {
            assert_eq!(feed(&wal, &bytes, chunk), (Some(wal.end()), None));
        }
    }

    #[test]
    fn a_switched_segment_is_whole_when_its_filler_has_come() {
        let mut wal = mixed();
        let before = wal.end();
        wal.switch();
        let end = wal.start().advanced(wal.segment_size().bytes());
        let (most, last) = wal.bytes().split_at(wal.bytes().len() - 1);
        let mut verifier = verifier(&wal, wal.start());
        verifier.feed(most).expect("valid");
        let switched = verifier.whole().expect("records");
        assert!(before < switched && switched < end && verifier.verified() == Some(switched));
        verifier.feed(last).expect("filler");
        assert_eq!((verifier.verified(), verifier.whole()), (Some(switched), Some(end)));
    }

    #[test]
    fn an_abandoned_record_is_stepped_over_only_if_declared() {
        let mut wal = mixed();
        wal.abandoned_record(30_000, RecordKind::OverwriteContrecord);
        wal.record(10);
        for chunk in [1, 8192, usize::MAX] {
            assert_eq!(feed(&wal, wal.bytes(), chunk), (Some(wal.end()), None));
        }
        let mut wal = mixed();
        wal.abandoned_record(30_000, RecordKind::Other);
        assert_eq!(feed(&wal, wal.bytes(), 8192).1.map(|e| e.defect), Some(Defect::Abandoned));
    }

    #[test]
    fn zeros_are_no_record() {
        let wal = mixed();
        let mut bytes = wal.bytes().to_vec();
        bytes.resize(bytes.len() + 64, 0);
        let error = VerifyError { lsn: wal.end(), defect: Defect::Length { found: 0 } };
        assert_eq!(feed(&wal, &bytes, 1000), (Some(wal.end()), Some(error)));
    }

    #[test]
    fn behind_the_fork_are_only_pages_of_the_own_timeline() {
        let mut wal = mixed();
        let fork = wal.end();
        let before = wal.clone();
        wal.fork(TimelineId(3));
        wal.record(20_000);
        let feed = |bytes: &[u8], begin| verifier(&wal, wal.start()).own_from(begin).feed(bytes);
        assert_eq!(feed(wal.bytes(), fork), Ok(()));
        let first = wal.start();
        let defect =
            Defect::Timeline { found: TimelineId(1), at_least: TimelineId(3), at_most: TimelineId(3) };
        assert_eq!(
            feed(before.bytes(), first),
            Err(VerifyError { lsn: first, defect }),
            "an ancestor's segment"
        );
    }

    #[test]
    fn pages_of_an_ancestor_come_before_the_fork_only() {
        let mut wal = mixed();
        wal.fork(TimelineId(3));
        wal.record(20_000);
        assert_eq!(feed(&wal, wal.bytes(), 999), (Some(wal.end()), None));
        wal.fork(TimelineId(2));
        wal.record(20_000);
        let mut verifier = Verifier::new(
            wal.start(),
            Expected {
                segment_size: WalSegmentSize::new(1 << 20).expect("valid"),
                timeline: TimelineId(3),
                system: None,
            },
        );
        let error = verifier.feed(wal.bytes()).expect_err("timelines never go back");
        assert!(matches!(error.defect, Defect::Timeline { found: TimelineId(2), .. }));
    }
}
