//! Finding the true end of the stored log after a restart.
//!
//! File sizes and zeros say nothing: segments are allocated ahead and recycled ones hold old pages. Only the
//! chain of records counts. A segment is synced before the next one is begun, so a break in the last begun
//! segment is a torn tail, which the upstream will send again; a break before it is corruption, and a person
//! must look.

use std::collections::BTreeSet;

use super::StoreError;
use super::files::Files;
use crate::pg::wal::{Expected, History, PageHeader, SegmentFile, SegmentNumber, Verifier, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// Bytes read at a time.
const READ: usize = 1 << 20;

/// Which log is looked for.
#[derive(Clone, Debug)]
pub(super) struct Log<'a> {
    pub(super) segment_size: WalSegmentSize,
    pub(super) system: Option<SystemIdentifier>,
    pub(super) history: &'a History,
}

impl Log<'_> {
    fn segment(&self, segments: &BTreeSet<SegmentFile>, number: SegmentNumber) -> Option<SegmentFile> {
        self.history.segment(number, self.segment_size, |segment| segments.contains(segment))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The end of the last whole good record, of its segment behind a switch, or the switchpoint if nothing follows it;
    /// invalid for an empty store.
    pub(super) durable: Lsn,
    /// Segments that were named but never begun: spares.
    pub(super) unused: Vec<SegmentFile>,
}

/// Walks the records up to the end of the current timeline.
pub(super) fn find_end(
    files: &Files,
    log: &Log<'_>,
    segments: &BTreeSet<SegmentFile>,
) -> Result<End, StoreError> {
    let timeline = log.history.timeline();
    let mut of_timeline: Vec<SegmentFile> =
        segments.iter().copied().filter(|segment| segment.timeline == timeline).collect();
    let mut unused = Vec::new();
    while let Some(newest) = of_timeline.last() {
        if is_begun(files, log, *newest)? {
            break;
        }
        unused.extend(of_timeline.pop());
    }
    let fork = log.history.begin().unwrap_or(Lsn::INVALID);
    let Some(newest) = of_timeline.last().copied() else { return Ok(End { durable: fork, unused }) };
    let first = first_to_read(files, log, segments, newest)?;
    let durable = walk(files, log, segments, first, newest)?;
    // After a crash of the process alone, what was read may have come from the kernel's memory.
    files.open_segment(&newest.name(log.segment_size))?.sync_data()?;
    Ok(End { durable: durable.max(fork), unused })
}

fn is_begun(files: &Files, log: &Log<'_>, segment: SegmentFile) -> Result<bool, StoreError> {
    let header = first_page(files, log, segment)?;
    let start = log.segment_size.start(segment.number);
    let same_system = |found: SystemIdentifier| log.system.is_none_or(|system| system == found);
    Ok(header.is_some_and(|header| {
        header.address == start
            && header.timeline <= segment.timeline
            && header.long.is_some_and(|long| same_system(long.system))
    }))
}

fn first_page(files: &Files, log: &Log<'_>, segment: SegmentFile) -> Result<Option<PageHeader>, StoreError> {
    let mut bytes = [0; 40];
    let read = files.open_segment(&segment.name(log.segment_size))?.read_at(&mut bytes, 0)?;
    Ok(PageHeader::parse(&bytes[..read]))
}

/// Goes back from `newest` to a segment in which a record begins that reaches into `newest`, as far as there
/// are segments: the checksum of a record needs all of it.
fn first_to_read(
    files: &Files,
    log: &Log<'_>,
    segments: &BTreeSet<SegmentFile>,
    newest: SegmentFile,
) -> Result<SegmentFile, StoreError> {
    let mut first = newest;
    loop {
        let before = match log.segment(segments, first.number.previous()) {
            Some(before) if before.number < first.number => before,
            _ => return Ok(first),
        };
        first = before;
        let continued = first_page(files, log, first)?.map_or(0, |header| u64::from(header.rem_len));
        if continued < log.segment_size.bytes() / 2 {
            return Ok(first);
        }
    }
}

fn walk(
    files: &Files,
    log: &Log<'_>,
    segments: &BTreeSet<SegmentFile>,
    first: SegmentFile,
    newest: SegmentFile,
) -> Result<Lsn, StoreError> {
    let size = log.segment_size;
    let timeline: TimelineId = log.history.timeline();
    let expected = Expected { segment_size: size, timeline, system: log.system };
    let start = size.start(first.number);
    let mut verifier = Verifier::new(start, expected);
    let mut buffer = vec![0; READ];
    for number in first.number.0..=newest.number.0 {
        let wanted = SegmentFile { timeline, number: SegmentNumber(number) };
        let missing = || StoreError::Missing { segment: wanted.name(size) };
        let segment = log.segment(segments, wanted.number).ok_or_else(missing)?;
        let file = files.open_segment(&segment.name(size))?;
        let mut offset = 0;
        while offset < size.bytes() {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                break;
            }
            match verifier.feed(&buffer[..read]) {
                Ok(()) => offset += read as u64,
                Err(_) if segment.number == newest.number => return Ok(verifier.whole().unwrap_or(start)),
                Err(source) => return Err(StoreError::Corrupt { segment: segment.name(size), source }),
            }
        }
    }
    match verifier.verified() {
        Some(switch) if verifier.whole() > Some(switch) && !is_filled(files, log, newest, switch)? => {
            Ok(switch)
        }
        _ => Ok(verifier.whole().unwrap_or(start)),
    }
}

/// Whether the newest segment has its filler behind a switch: zeros (`CopyXLogRecordToWAL` in xlog.c). A reused segment
/// has old WAL there until they have come. It counts, because it was acknowledged: the upstream may not have that
/// segment any more. A segment behind which another one is begun has it in any case.
fn is_filled(files: &Files, log: &Log<'_>, newest: SegmentFile, switch: Lsn) -> Result<bool, StoreError> {
    let size = log.segment_size;
    if size.segment(switch) != newest.number {
        return Ok(true);
    }
    let file = files.open_segment(&newest.name(size))?;
    let mut buffer = vec![0; READ];
    let mut offset = size.offset(switch);
    while offset < size.bytes() {
        let read = file.read_at(&mut buffer, offset)?;
        if read == 0 || buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        offset += read as u64;
    }
    Ok(true)
}
