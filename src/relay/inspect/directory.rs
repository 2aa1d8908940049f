//! What a directory holds, by names and first pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::walk::end_of_timeline;
use super::{ControlView, InspectError, Inventory, Problem, SlotView, TimelineView};
use crate::pg::wal::{
    History, PageHeader, SegmentFile, SegmentNumber, WalSegmentSize, major_of_magic, parse_history_file_name,
};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::slots::{SavedSlot, Slots};
use crate::relay::store::{Control, SPARE_PREFIX};

/// Long enough for every page header.
const HEADER: usize = 40;
/// Of control, slots and history files.
const MAX_SMALL_FILE: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) control: Option<Control>,
    pub(super) system: Option<SystemIdentifier>,
    pub(super) size: WalSegmentSize,
    pub(super) segments: BTreeMap<SegmentFile, Entry>,
    pub(super) histories: BTreeMap<TimelineId, History>,
    pub(super) problems: Vec<Problem>,
    slots: Vec<SavedSlot>,
    spares: usize,
    compressed: usize,
}

/// A segment's file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) header: Option<PageHeader>,
}

impl Directory {
    pub(super) fn read(path: &Path) -> Result<Directory, InspectError> {
        let names = names(path).map_err(|source| InspectError::List { path: path.to_owned(), source })?;
        let mut problems = Vec::new();
        let control = small_file(path, Control::FILE_NAME, &mut problems)
            .and_then(|content| decoded(Control::FILE_NAME, Control::decode_bytes(&content), &mut problems));
        let slots = small_file(path, Slots::FILE_NAME, &mut problems)
            .and_then(|content| decoded(Slots::FILE_NAME, Slots::decode(&content), &mut problems));
        let entries = entries(path, &names, &mut problems);
        let (mut size, mut system) = majority(entries.values());
        if let Some(known) = control.as_ref().filter(|control| control.system.is_some()) {
            (size, system) = (known.segment_size(), known.system);
        }
        let mut segments = BTreeMap::new();
        for (name, entry) in entries {
            let Some(segment) = SegmentFile::parse(&name, size) else { continue };
            // A whole segment counts more than its beginning; `.partial` sorts behind.
            segments.entry(segment).or_insert(entry);
        }
        let histories = histories(path, &names, &mut problems);
        let is_spare = |name: &&String| name.starts_with(SPARE_PREFIX);
        Ok(Directory {
            path: path.to_owned(),
            control,
            system,
            size,
            segments,
            histories,
            problems,
            slots: slots.unwrap_or_default(),
            spares: names.iter().filter(is_spare).count(),
            compressed: names.iter().filter(|name| is_compressed(name)).count(),
        })
    }

    pub(super) fn timelines(&self) -> BTreeSet<TimelineId> {
        self.segments.keys().map(|segment| segment.timeline).collect()
    }

    /// The segments of a timeline up to the last that was begun, and how many files follow that were not: a reused
    /// segment gets its new name before it gets its new content.
    pub(super) fn begun(&self, timeline: TimelineId) -> (Vec<SegmentFile>, usize) {
        let of_timeline = |segment: &&SegmentFile| segment.timeline == timeline;
        let mut all: Vec<SegmentFile> = self.segments.keys().filter(of_timeline).copied().collect();
        let named = all.len();
        while all.last().is_some_and(|last| !self.is_begun(*last) && self.foreign(*last).is_none()) {
            all.pop();
        }
        let unused = named - all.len();
        (all, unused)
    }

    fn is_begun(&self, segment: SegmentFile) -> bool {
        let start = self.size.start(segment.number);
        let header = self.segments[&segment].header;
        header.is_some_and(|header| header.address == start && major_of_magic(header.magic).is_some())
    }

    /// The other cluster whose segment this is.
    pub(super) fn foreign(&self, segment: SegmentFile) -> Option<SystemIdentifier> {
        let header = self.segments[&segment].header.filter(|h| major_of_magic(h.magic).is_some())?;
        let found = header.long?.system;
        self.system.is_some_and(|system| system != found).then_some(found)
    }

    pub(super) fn history(&self, timeline: TimelineId) -> History {
        let known = self.histories.get(&timeline).cloned();
        known.unwrap_or_else(|| History::without_ancestors(timeline))
    }

    /// The timeline that forked from `timeline`, and where, as far as it matters here: that of the newest history
    /// which has it.
    pub(super) fn next(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        let current = self.control.as_ref().map(|control| control.timeline);
        let mut newest = self.histories.values().rev();
        newest.find_map(|h| h.next(timeline).filter(|_| current.is_none_or(|c| h.timeline() <= c)))
    }

    /// The segment with this number of a history.
    pub(super) fn segment(&self, history: &History, number: SegmentNumber) -> Option<SegmentFile> {
        history.segment(number, self.size, |segment| self.segments.contains_key(segment))
    }

    pub(super) fn inventory(self) -> Inventory {
        let timelines = self.timelines().into_iter().map(|timeline| self.timeline_view(timeline)).collect();
        let end = self.control.as_ref().map(|control| end_of_timeline(&self, control.timeline));
        let slots = self.slots.iter().map(|slot| SlotView {
            name: slot.name.clone(),
            restart_timeline: slot.restart.map(|restart| restart.timeline),
            restart_lsn: slot.restart.map(|restart| restart.lsn),
            lost: slot.invalidated.is_some(),
            holds_bytes: slot.restart.zip(end).map(|(restart, end)| end.bytes_since(restart.lsn.min(end))),
        });
        Inventory {
            slots: slots.collect(),
            timelines,
            system: self.system,
            segment_bytes: self.size.bytes(),
            control: self
                .control
                .map(|control| ControlView { timeline: control.timeline, promised: control.promised }),
            spare_segments: self.spares,
            compressed_segments: self.compressed,
            problems: self.problems,
            directory: self.path,
        }
    }

    fn timeline_view(&self, timeline: TimelineId) -> TimelineView {
        let (segments, unused_segments) = self.begun(timeline);
        let name = |segment: &SegmentFile| self.segments[segment].name.clone();
        let history = self.history(timeline);
        TimelineView {
            timeline,
            forked_from: history.ancestors().last().map(|entry| (entry.timeline, entry.switchpoint)),
            first_segment: segments.first().map(name),
            last_segment: segments.last().map(name),
            segments: segments.len(),
            unused_segments,
            start: segments.first().map_or(Lsn::INVALID, |first| self.size.start(first.number)),
            end: end_of_timeline(self, timeline),
        }
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// `None`: there is none, or it cannot be read, which is a problem.
fn small_file(path: &Path, name: &str, problems: &mut Vec<Problem>) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    let read =
        File::open(path.join(name)).and_then(|file| file.take(MAX_SMALL_FILE).read_to_end(&mut content));
    match read {
        Ok(_) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            problems.push(Problem::Unreadable { file: name.to_owned(), why: error.to_string() });
            None
        }
    }
}

fn decoded<T>(name: &str, result: Result<T, String>, problems: &mut Vec<Problem>) -> Option<T> {
    let unreadable = |why| problems.push(Problem::Unreadable { file: name.to_owned(), why });
    result.map_err(unreadable).ok()
}

fn is_compressed(name: &str) -> bool {
    let packed = [".zst", ".lz4", ".gz", ".br", ".lzma", ".bz2"];
    packed.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|name| name.len() >= 24))
}

/// Everything whose name may be a segment's, whatever the segments' size.
fn entries(path: &Path, names: &[String], problems: &mut Vec<Problem>) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for name in names {
        let digits = name.strip_suffix(".partial").unwrap_or(name);
        if digits.len() != 24 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            continue;
        }
        match entry(path, name) {
            Ok(entry) => drop(entries.insert(name.clone(), entry)),
            // Retention was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                problems.push(Problem::Unreadable { file: name.clone(), why: error.to_string() });
            }
        }
    }
    entries
}

fn entry(path: &Path, name: &str) -> io::Result<Entry> {
    let file = File::open(path.join(name))?;
    let mut bytes = [0; HEADER];
    let read = file.read_at(&mut bytes, 0)?;
    let header = PageHeader::parse(&bytes[..read]);
    Ok(Entry { name: name.to_owned(), bytes: file.metadata()?.len(), header })
}

/// What most segments say of their size and their cluster.
fn majority<'a>(entries: impl Iterator<Item = &'a Entry>) -> (WalSegmentSize, Option<SystemIdentifier>) {
    let mut votes: Vec<(WalSegmentSize, SystemIdentifier, usize)> = Vec::new();
    let headers = entries.filter_map(|entry| entry.header).filter(|h| major_of_magic(h.magic).is_some());
    for long in headers.filter_map(|header| header.long) {
        let Ok(size) = WalSegmentSize::new(u64::from(long.segment_size)) else { continue };
        match votes.iter_mut().find(|(s, system, _)| (*s, *system) == (size, long.system)) {
            Some((_, _, count)) => *count += 1,
            None => votes.push((size, long.system, 1)),
        }
    }
    let most = votes.into_iter().max_by_key(|(_, _, count)| *count);
    most.map_or((WalSegmentSize::default(), None), |(size, system, _)| (size, Some(system)))
}

fn histories(path: &Path, names: &[String], problems: &mut Vec<Problem>) -> BTreeMap<TimelineId, History> {
    let mut histories = BTreeMap::new();
    for name in names {
        let Some(timeline) = parse_history_file_name(name) else { continue };
        let Some(content) = small_file(path, name, problems) else { continue };
        let parsed = History::parse(timeline, &content).map_err(|error| error.to_string());
        histories.extend(decoded(name, parsed, problems).map(|history| (timeline, history)));
    }
    histories
}
