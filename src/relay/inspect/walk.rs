//! Walks the records of every timeline, and tells an end from damage.
//!
//! A timeline's last segment may end anywhere: behind the last record there are zeros, pages of a reused segment, or
//! (in a server's directory) repetitions of the fork's page. So a break there is the end, unless pages behind it are
//! of this very place and hold good records: a log has no islands. A break in an earlier segment is damage, and so is
//! one before the place where a descendant forked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::directory::Directory;
use super::{Problem, Verification, Verified};
use crate::pg::wal::{
    Expected, PAGE_SIZE, PageHeader, SegmentFile, SegmentNumber, Verifier, VerifyError, major_of_magic,
};
use crate::pg::{Lsn, TimelineId};
use crate::relay::store::fill;

/// Bytes read at a time.
const READ: usize = 1 << 20;
/// An end that seems broken is looked at so often again: its writer may just have been on its way through.
const LOOKS: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Pages behind a break that are tried as the beginning of an island: all of them may lie in one large record.
const MAX_ISLANDS: usize = 256;

/// Everything there is.
pub(super) fn verify(directory: &Directory, progress: &mut dyn FnMut(u64, u64)) -> Verification {
    let begun = |timeline| directory.begun(timeline).0.len() as u64;
    let timelines = directory.timelines();
    let total = timelines.iter().copied().map(begun).sum::<u64>() * directory.size.bytes();
    let mut read = 0;
    let mut count = |bytes: u64| {
        read += bytes;
        progress(read, total);
    };
    let mut walk = Walk { directory, count: &mut count, problems: directory.problems.clone() };
    let verified = timelines.into_iter().filter_map(|timeline| walk.timeline(timeline)).collect();
    Verification {
        directory: directory.path.clone(),
        system: directory.system,
        timelines: verified,
        problems: walk.problems,
        bytes: read,
    }
}

/// Where the chain of records of a timeline ends, by its newest segments alone.
pub(super) fn end_of_timeline(directory: &Directory, timeline: TimelineId) -> Lsn {
    let (segments, _) = directory.begun(timeline);
    let Some(last) = segments.last() else {
        return directory.history(timeline).begin().unwrap_or(Lsn::INVALID);
    };
    // The checksum of a record needs its beginning, which may lie in segments before.
    let half = directory.size.bytes() / 2;
    let is_one_record = |segment: &&SegmentFile| {
        directory.segments[*segment].header.is_some_and(|header| u64::from(header.rem_len) >= half)
    };
    let needed = 2 + segments.iter().rev().take_while(is_one_record).count();
    let newest = &segments[segments.len().saturating_sub(needed)..];
    let run = runs(newest).pop().expect("there is a last segment");
    let mut walk = Walk { directory, count: &mut |_| {}, problems: Vec::new() };
    walk.run(timeline, run, Part::Newest).unwrap_or(directory.size.start(last.number))
}

/// Cut where a number is missing.
fn runs(segments: &[SegmentFile]) -> Vec<&[SegmentFile]> {
    segments.chunk_by(|a, b| b.number == a.number.next()).collect()
}

struct Walk<'a> {
    directory: &'a Directory,
    /// Told of bytes read.
    count: &'a mut dyn FnMut(u64),
    problems: Vec<Problem>,
}

/// What follows a run of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Further segments of the timeline, behind a gap: it must be whole to its last byte.
    Earlier,
    /// Nothing.
    Newest,
}

/// How far a segment could be followed.
enum Followed {
    Whole,
    /// Retention has taken it meanwhile.
    Gone,
    Unreadable(io::Error),
    Broken(VerifyError),
}

/// What a second look at a break in the newest segment says of it.
#[derive(Debug)]
enum Seen {
    /// The segment is whole now, or no more.
    Nothing,
    /// The writer was on its way through, and is here now.
    Moved(VerifyError),
    Damage,
    Unreadable(io::Error),
}

impl Followed {
    fn second_look(self, first: &VerifyError) -> Seen {
        match self {
            Followed::Whole | Followed::Gone => Seen::Nothing,
            Followed::Unreadable(error) => Seen::Unreadable(error),
            Followed::Broken(now) if now != *first => Seen::Moved(now),
            Followed::Broken(_) => Seen::Damage,
        }
    }
}

impl Walk<'_> {
    fn timeline(&mut self, timeline: TimelineId) -> Option<Verified> {
        let (segments, _) = self.directory.begun(timeline);
        self.check_files(&segments);
        self.check_fork(timeline, &segments);
        let of_ours = |segment: &SegmentFile| self.directory.foreign(*segment).is_none();
        let ours: Vec<SegmentFile> = segments.iter().copied().filter(of_ours).collect();
        let start = self.directory.size.start(ours.first()?.number);
        let mut end = start;
        let runs = runs(&ours);
        for (index, run) in runs.iter().enumerate() {
            let later = runs.get(index + 1);
            let part = if later.is_some() { Part::Earlier } else { Part::Newest };
            end = self.run(timeline, run, part).unwrap_or(end);
            if let (Some(last), Some(next)) = (run.last(), later.and_then(|later| later.first())) {
                self.gap(timeline, last.number.next(), next.number);
            }
        }
        Some(Verified { timeline, start, end, segments: ours.len() })
    }

    fn check_files(&mut self, segments: &[SegmentFile]) {
        let size = self.directory.size.bytes();
        for segment in segments {
            let entry = &self.directory.segments[segment];
            let file = entry.name.clone();
            if let (Some(found), Some(expected)) = (self.directory.foreign(*segment), self.directory.system) {
                self.problems.push(Problem::Foreign { file, found, expected });
            } else if entry.bytes != size && !entry.name.ends_with(".partial") {
                self.problems.push(Problem::Short { file, bytes: entry.bytes, expected: size });
            }
        }
    }

    /// A timeline begins in the segment of its fork, whose beginning is its ancestor's.
    fn check_fork(&mut self, timeline: TimelineId, segments: &[SegmentFile]) {
        let size = self.directory.size;
        let history = self.directory.history(timeline);
        let (Some(ancestor), Some(first)) = (history.ancestors().last(), segments.first()) else { return };
        let fork = size.segment(ancestor.switchpoint);
        let named = self.directory.segments.keys().filter(|segment| segment.timeline == ancestor.timeline);
        let last = named.map(|segment| segment.number).filter(|number| *number <= fork).max();
        if let Some(last) = last.filter(|last| last.next() < first.number) {
            self.gap(timeline, last.next(), first.number);
        }
        let ours = SegmentFile { timeline, number: fork };
        let theirs = SegmentFile { timeline: ancestor.timeline, number: fork };
        if segments.contains(&ours) && self.directory.segments.contains_key(&theirs) {
            self.compare(ours, theirs, size.offset(ancestor.switchpoint));
        }
    }

    fn compare(&mut self, ours: SegmentFile, theirs: SegmentFile, bytes: u64) {
        let prefix = |segment: SegmentFile| {
            let mut content = vec![0; usize::try_from(bytes).expect("a segment fits into memory")];
            let read = self.open(segment).and_then(|file| fill(&file, &mut content, 0))?;
            content.truncate(read);
            Ok::<_, io::Error>(content)
        };
        // What cannot be read is told when its records are followed.
        let (Ok(a), Ok(b)) = (prefix(ours), prefix(theirs)) else { return };
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        if same < a.len().min(b.len()) {
            let lsn = self.directory.size.start(ours.number).advanced(same as u64);
            let (file, ancestor) = (self.name(ours), self.name(theirs));
            self.problems.push(Problem::ForkDiffers { file, ancestor, lsn });
        }
    }

    fn gap(&mut self, timeline: TimelineId, first: SegmentNumber, behind: SegmentNumber) {
        let size = self.directory.size;
        let between = first..behind;
        let named = self.directory.segments.keys().filter(|segment| segment.timeline == timeline);
        // What is there but foreign, or of an ancestor, was named already.
        if named.into_iter().any(|segment| between.contains(&segment.number)) {
            return;
        }
        let name = |number| SegmentFile { timeline, number }.name(size);
        let (first_name, last) = (name(first), name(behind.previous()));
        let (from, to) = (size.start(first), size.start(behind));
        self.problems.push(Problem::Gap { timeline, first: first_name, last, from, to });
    }

    /// Follows the records through segments without a gap; returns the end of the last whole one.
    fn run(&mut self, timeline: TimelineId, run: &[SegmentFile], part: Part) -> Option<Lsn> {
        let last = run.last()?;
        let mut verifier = self.led_in(timeline, *run.first()?);
        let mut end = None;
        for segment in run {
            let before = verifier.clone();
            match self.follow(&mut verifier, *segment) {
                Followed::Broken(error) if segment == last && part == Part::Newest => {
                    let reached = verifier.verified();
                    return self.newest_end(&before, *segment, error, reached).or(end);
                }
                Followed::Whole => {}
                Followed::Gone => verifier = self.anew(timeline, segment.number.next()),
                Followed::Unreadable(error) => {
                    self.unreadable(*segment, &error);
                    verifier = self.anew(timeline, segment.number.next());
                }
                Followed::Broken(error) => {
                    self.corrupt(*segment, error);
                    verifier = self.anew(timeline, segment.number.next());
                }
            }
            end = verifier.verified().or(end);
        }
        end
    }

    /// The break in the newest segment: the log's end, if nothing speaks against it. Returns that end; `reached` is how
    /// far the first look came.
    fn newest_end(
        &mut self,
        before: &Verifier,
        segment: SegmentFile,
        first: VerifyError,
        reached: Option<Lsn>,
    ) -> Option<Lsn> {
        let fork = self.directory.next(segment.timeline).map(|(_, fork)| fork);
        let (mut error, mut end) = (first, reached);
        for _ in 0..LOOKS {
            let island = match island(self.directory, segment, error.lsn) {
                Ok(island) => island,
                Err(why) => {
                    self.unreadable(segment, &why);
                    return end;
                }
            };
            if island.is_none() && fork.is_none_or(|fork| error.lsn >= fork) {
                return end;
            }
            // What lay behind the break was written behind it: by now the writer has filled it.
            std::thread::sleep(LOOK_AGAIN);
            let mut again = before.clone();
            let followed = follow(self.directory, &mut again, segment, &mut |_| {});
            end = again.verified();
            match followed.second_look(&error) {
                Seen::Moved(found) => error = found,
                Seen::Nothing => return end,
                Seen::Damage => {
                    self.hole(segment, error, island);
                    return end;
                }
                Seen::Unreadable(why) => {
                    self.unreadable(segment, &why);
                    return end;
                }
            }
        }
        end
    }

    fn unreadable(&mut self, segment: SegmentFile, why: &io::Error) {
        self.problems.push(Problem::Unreadable { file: self.name(segment), why: why.to_string() });
    }

    fn hole(&mut self, segment: SegmentFile, error: VerifyError, island: Option<Lsn>) {
        let Some(goes_on) = island else { return self.corrupt(segment, error) };
        let (file, offset) = self.place(segment, error.lsn);
        let (lsn, defect) = (error.lsn, error.defect.to_string());
        self.problems.push(Problem::Hole { file, offset, lsn, defect, goes_on });
    }

    fn corrupt(&mut self, segment: SegmentFile, error: VerifyError) {
        let (file, offset) = self.place(segment, error.lsn);
        let (lsn, defect) = (error.lsn, error.defect.to_string());
        self.problems.push(Problem::Corrupt { file, offset, lsn, defect });
    }

    /// The file that holds `lsn`, which may lie before `segment`: a record begins there.
    fn place(&self, segment: SegmentFile, lsn: Lsn) -> (String, u64) {
        let size = self.directory.size;
        let history = self.directory.history(segment.timeline);
        let holder = self.directory.segment(&history, size.segment(lsn)).unwrap_or(segment);
        (self.name(holder), size.offset(lsn))
    }

    fn anew(&self, timeline: TimelineId, number: SegmentNumber) -> Verifier {
        let Directory { size, system, .. } = *self.directory;
        Verifier::new(size.start(number), Expected { segment_size: size, timeline, system })
    }

    /// A record that begins in the ancestor's last segment and ends in ours is checked from its beginning.
    fn led_in(&self, timeline: TimelineId, first: SegmentFile) -> Verifier {
        let history = self.directory.history(timeline);
        let before = self.directory.segment(&history, first.number.previous());
        if let Some(before) = before.filter(|before| before.number < first.number) {
            let mut verifier = self.anew(timeline, before.number);
            if matches!(follow(self.directory, &mut verifier, before, &mut |_| {}), Followed::Whole) {
                return verifier;
            }
        }
        self.anew(timeline, first.number)
    }

    fn follow(&mut self, verifier: &mut Verifier, segment: SegmentFile) -> Followed {
        follow(self.directory, verifier, segment, self.count)
    }

    fn name(&self, segment: SegmentFile) -> String {
        self.directory.segments[&segment].name.clone()
    }

    fn open(&self, segment: SegmentFile) -> io::Result<File> {
        File::open(self.directory.path.join(self.name(segment)))
    }
}

/// Feeds a segment to the verifier.
fn follow(
    directory: &Directory,
    verifier: &mut Verifier,
    segment: SegmentFile,
    count: &mut dyn FnMut(u64),
) -> Followed {
    let path = directory.path.join(&directory.segments[&segment].name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Followed::Gone,
        Err(error) => return Followed::Unreadable(error),
    };
    let mut buffer = vec![0; READ];
    let mut offset = 0;
    while offset < directory.size.bytes() {
        let read = match fill(&file, &mut buffer, offset) {
            // What is shorter than a segment was named already.
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return Followed::Unreadable(error),
        };
        if let Err(error) = verifier.feed(&buffer[..read]) {
            return if is_still(&path, &file) { Followed::Broken(error) } else { Followed::Gone };
        }
        offset += read as u64;
        count(read as u64);
    }
    Followed::Whole
}

/// Whether the name is still that of the file.
fn is_still(path: &std::path::Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

/// A page of this segment behind the one of `lsn` that is in its place, and from which on a whole good record is.
fn island(directory: &Directory, segment: SegmentFile, lsn: Lsn) -> io::Result<Option<Lsn>> {
    let size = directory.size;
    let (start, end) = (size.start(segment.number), size.end(segment.number));
    let file = match File::open(directory.path.join(&directory.segments[&segment].name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut content = vec![0; usize::try_from(size.bytes()).expect("a segment fits into memory")];
    let read = fill(&file, &mut content, 0)?;
    content.truncate(read);
    let page = PAGE_SIZE as u64;
    let first = (lsn.max(start).0 / page + 1) * page;
    let pages = (first..end.0).step_by(PAGE_SIZE).map(Lsn);
    let from = |at: Lsn| content.get(usize::try_from(at.bytes_since(start)).ok()?..);
    let in_place = |at: &Lsn| {
        let header = from(*at).and_then(PageHeader::parse);
        header.is_some_and(|header| header.address == *at && major_of_magic(header.magic).is_some())
    };
    let mut islands = pages.filter(in_place).take(MAX_ISLANDS);
    Ok(islands.find(|at| {
        let expected = Expected { segment_size: size, timeline: segment.timeline, system: directory.system };
        let mut verifier = Verifier::new(*at, expected);
        let mut pages = from(*at).unwrap_or_default().chunks(PAGE_SIZE);
        let _ends = pages.find(|page| verifier.feed(page).is_err() || verifier.verified().is_some());
        verifier.verified().is_some()
    }))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Followed, Seen};
    use crate::pg::Lsn;
    use crate::pg::wal::{Defect, VerifyError};

    #[test]
    fn a_break_is_no_end_as_long_as_it_cannot_be_looked_at_again() {
        let broken = |lsn| VerifyError { lsn: Lsn(lsn), defect: Defect::Length { found: 7 } };
        let seen = |followed: Followed| followed.second_look(&broken(100));
        assert!(matches!(seen(Followed::Whole), Seen::Nothing));
        assert!(matches!(seen(Followed::Gone), Seen::Nothing));
        assert!(matches!(seen(Followed::Unreadable(io::Error::other("sick disk"))), Seen::Unreadable(_)));
        assert!(matches!(seen(Followed::Broken(broken(100))), Seen::Damage));
        assert!(matches!(seen(Followed::Broken(broken(200))), Seen::Moved(found) if found == broken(200)));
    }
}
