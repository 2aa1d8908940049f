//! Power cuts: the store and the slots on a disk that loses, tears and reorders what is not synced, cut at every
//! operation that changes a file or a name; also while the store opens after the last cut.
//!
//! One course: a relay takes up a cluster, receives timeline 1, in some courses follows a branch of it (timeline 2) and
//! goes back from there, receives timeline 1 beyond the place where timeline 3 forks from it, follows to timeline 3 and
//! receives that; promises terms, keeps slots, makes segments new and of old ones. A cut ends the process; it starts again
//! on what the disk has kept and goes on from there, until it is through.
//!
//! After each start what had been said is looked at on the disk: what was reported durable is there byte for byte, the
//! store's end is a record's and not behind that, no promise is forgotten, the log counts in no earlier term, what it left
//! behind on the branch is kept aside, and each slot is as it was saved or later.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use prometheus::Registry;

use super::clock::Rng;
use super::number;
use crate::pg::protocol::replication::SlotLifetime::Persistent;
use crate::pg::wal::build::{SYSTEM, WalBuilder};
use crate::pg::wal::{SegmentFile, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};
use crate::relay::parts::{
    Available, Change, Disk, DiskFile, Files, Metrics, Platter, RestartPoint, Rewind, Slots, Stepped,
    StoreConfig, StreamId,
};
use crate::topology::{Floor, Term};

const SEEDS: u64 = 100;
/// Seeds within which a planted bug has to be found.
const SEEDS_FOR_PLANTS: u64 = 60;
/// More than a course has.
const OPERATIONS: u64 = 800;
/// Cuts in one course, at most.
const MAX_CUTS: u64 = 4;
const START: Lsn = Lsn(0x30_0000);
const FIRST: TimelineId = TimelineId(1);
/// Nobody goes on with it.
const BRANCH: TimelineId = TimelineId(2);
const SECOND: TimelineId = TimelineId(3);

/// Bugs to order: what a store would do that makes one mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    /// Names are not synced.
    NoDirectorySync,
    /// Files get their names before their content is synced.
    RenameWithoutSync,
    /// WAL is acknowledged when it is written.
    AcknowledgeBeforeSync,
    /// The end of the log is where the zeros begin.
    EndByZeros,
    /// A term's floor is recorded when its stream has begun.
    FloorBehindStream,
    /// What a log leaves behind is removed, and nothing of it kept.
    NothingAside,
}

/// The WAL that a cluster has written.
struct Truth {
    size: WalSegmentSize,
    /// Timeline 1 beyond the fork, the others from the start on.
    wal: BTreeMap<TimelineId, WalBuilder>,
    fork: Lsn,
    /// Where the branch begins, and to where the log goes back: not before the fork.
    branch: Option<(Lsn, Lsn)>,
}

impl Truth {
    fn new(rng: &mut Rng) -> Truth {
        let mut first = WalBuilder::new(START, FIRST);
        write_until(&mut first, rng, 1_300_000);
        // A fork between two segments has no segment on both sides.
        if rng.percent(20) {
            first.switch();
        }
        let fork = first.end();
        let mut second = first.clone();
        second.fork(SECOND);
        write_until(&mut second, rng, 4_000_000);
        let back = first.clone();
        write_until(&mut first, rng, 2_300_000);
        let mut branch = first.clone();
        let branch_begins = branch.end();
        branch.fork(BRANCH);
        write_until(&mut branch, rng, 2_900_000);
        write_until(&mut first, rng, 2_400_000);
        let size = first.segment_size();
        let to = if rng.percent(50) { branch_begins } else { back.end() };
        let branched = rng.percent(60).then_some((branch_begins, to));
        let wal = BTreeMap::from([(FIRST, first), (BRANCH, branch), (SECOND, second)]);
        Truth { size, wal, fork, branch: branched }
    }

    fn end(&self, timeline: TimelineId) -> Lsn {
        self.wal[&timeline].end()
    }

    fn bytes(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> &[u8] {
        let at = |lsn: Lsn| usize::try_from(lsn.bytes_since(START)).expect("small");
        &self.wal[&timeline].bytes()[at(from)..at(to)]
    }

    /// The end of the last record that is whole up to `lsn`.
    fn whole(&self, timeline: TimelineId, lsn: Lsn) -> Lsn {
        let ends = self.wal[&timeline].record_ends();
        ends.take_while(|end| *end <= lsn).last().unwrap_or(START)
    }
}

fn write_until(wal: &mut WalBuilder, rng: &mut Rng, bytes: usize) {
    while wal.bytes().len() < bytes {
        let len = match rng.below(4) {
            0 => rng.below(200),
            1 => rng.below(9000),
            2 => rng.below(60_000),
            _ => rng.below(400_000),
        };
        wal.record(len as usize);
    }
}

/// What others were told, which no power cut may take back.
#[derive(Debug, Default)]
struct Told {
    durable: BTreeMap<TimelineId, Lsn>,
    timeline: TimelineId,
    promised: Term,
    /// The last term whose floor the log had reached when something was told.
    log_term: Term,
    history: bool,
    /// The branch is to be left, or was.
    leaves: bool,
    /// The end of the log until something is received again.
    left_at: Option<Lsn>,
    /// What only the branch had of what was durable, once the log may have left it.
    discarded: Option<(Lsn, Lsn)>,
    /// Name and restart point as last saved; `None`: dropped.
    slots: BTreeMap<String, Option<(TimelineId, Lsn)>>,
}

/// One course with its cuts.
struct Course {
    rng: Rng,
    truth: Truth,
    plant: Option<Plant>,
    platter: Platter,
    told: Told,
    starts: u64,
    terms: u64,
    /// Of the last promised term, to be recorded before anything is received.
    floor: Option<Floor>,
    names: u64,
}

/// The power has failed; or a promise is broken, and how.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    PowerOff,
    Broken(String),
}

type Step<T = ()> = Result<T, Stop>;

impl Course {
    fn new(seed: u64, plant: Option<Plant>) -> Course {
        let mut rng = Rng::new(seed);
        Course {
            truth: Truth::new(&mut rng),
            rng,
            plant,
            platter: Platter::default(),
            told: Told::default(),
            starts: 0,
            terms: 0,
            floor: None,
            names: 0,
        }
    }

    /// From a start to the end of the course, or to the cut.
    fn live(&mut self) -> Step {
        self.starts += 1;
        let mut process = self.start()?;
        self.recovered(&process)?;
        self.receive(&mut process)?;
        self.told(&process);
        self.recovered(&process)
    }

    /// The power is back.
    fn power_up(&mut self) {
        let rng = &mut self.rng;
        self.platter = self.platter.after_power_cut(&mut |end| rng.below(end));
    }

    /// An error is the power's fault, or it is a broken promise.
    fn unless_off<T>(&self, result: Result<T, impl std::error::Error>) -> Step<T> {
        result.map_err(|error| {
            if self.platter.is_off() {
                return Stop::PowerOff;
            }
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            let causes: String = causes.map(|cause| format!(": {cause}")).collect();
            Stop::Broken(format!("{error}{causes}"))
        })
    }

    fn start(&mut self) -> Step<Process> {
        let disk: Arc<dyn Disk> = match self.plant {
            Some(plant) => Arc::new(Sloppy { disk: self.platter.clone(), plant }),
            None => Arc::new(self.platter.clone()),
        };
        let files = self.unless_off(Files::on(disk))?;
        // Little enough that segments are used again.
        let config = StoreConfig { retain_bytes: 2 << 20, ring_bytes: 1 << 16 };
        let metrics = Metrics::new(&Registry::new()).expect("an empty registry");
        let store = self.unless_off(Stepped::open(files.clone(), &config, &metrics))?;
        let slots = self.unless_off(Slots::open(files))?;
        slots.hold_from(store.store.oldest_kept());
        Ok(Process { store, slots })
    }

    fn receive(&mut self, process: &mut Process) -> Step {
        self.record_floor(process)?;
        if process.store.store.system().is_none() {
            self.change(process, Change::Adopt { system: SYSTEM, segment_size: self.truth.size })?;
        }
        if !self.end_found(process).is_valid() {
            self.change(process, Change::Begin { timeline: FIRST, start: START })?;
        }
        if let Some((begin, to)) = self.truth.branch {
            if process.store.unsynced().timeline == FIRST && !self.told.leaves {
                self.stream(process, FIRST, Some(begin))?;
                self.follow(process, BRANCH, begin)?;
            }
            if process.store.unsynced().timeline == BRANCH {
                self.stream(process, BRANCH, None)?;
                self.leave(process, to)?;
            }
        }
        if process.store.unsynced().timeline == FIRST {
            self.stream(process, FIRST, None)?;
            self.follow(process, SECOND, self.truth.fork)?;
            self.told.history = true;
        }
        self.stream(process, SECOND, None)
    }

    fn follow(&mut self, process: &mut Process, timeline: TimelineId, switchpoint: Lsn) -> Step {
        let content = Bytes::from(format!("1\t{switchpoint}\tno recovery target specified\n"));
        self.change(process, Change::KeepHistory { timeline, content })?;
        self.change(process, Change::Follow { timeline, switchpoint })?;
        self.told.timeline = timeline;
        Ok(())
    }

    fn leave(&mut self, process: &mut Process, to: Lsn) -> Step {
        // From here on either may be found.
        self.told.leaves = true;
        self.told.left_at = Some(to);
        self.told.discarded = self.told.durable.get(&BRANCH).map(|end| (to, *end));
        self.told.timeline = FIRST;
        self.told.log_term = Term(0);
        self.told.durable.remove(&BRANCH);
        self.told.durable.insert(FIRST, to);
        self.told.slots.retain(|_, saved| saved.is_none_or(|(timeline, _)| timeline != BRANCH));
        self.change(process, Change::Rewind(Rewind { timeline: FIRST, to }))?;
        let Unsynced { timeline, from } = process.tail();
        if (timeline, from) != (FIRST, to) || process.store.store.history_file(BRANCH).is_some() {
            return Err(Stop::Broken(format!("the branch is left at {from} of timeline {timeline}")));
        }
        Ok(())
    }

    fn end_found(&self, process: &Process) -> Lsn {
        let Unsynced { timeline, from } = process.tail();
        if self.plant == Some(Plant::EndByZeros) && from.is_valid() {
            return self.end_by_zeros(timeline).max(from);
        }
        from
    }

    /// As the walreceiver does: from the start of the segment of the end on, so that the overlap is compared.
    fn stream(&mut self, process: &mut Process, timeline: TimelineId, end: Option<Lsn>) -> Step {
        let end = end.unwrap_or_else(|| self.truth.end(timeline));
        let mut at = self.truth.size.segment_start(process.tail().from).max(START);
        while at < end {
            let len = match self.rng.below(3) {
                0 => self.rng.between(1, 9000),
                _ => self.rng.between(1, 300_000),
            };
            let to = at.advanced(len).min(end);
            let bytes = Bytes::copy_from_slice(self.truth.bytes(timeline, at, to));
            self.provide_spare(process)?;
            self.told.left_at = None;
            self.unless_off(process.store.append(StreamId(self.starts), at, bytes, None))?;
            let refused = process.store.store.report().borrow().refused.clone();
            if let Some((_, why)) = refused {
                return Err(Stop::Broken(format!("what is stored is not what was sent: {why}")));
            }
            self.told(process);
            at = to;
            self.something_else(process)?;
        }
        self.unless_off(process.store.sync())?;
        self.told(process);
        Ok(())
    }

    fn something_else(&mut self, process: &mut Process) -> Step {
        match self.rng.below(10) {
            0..=2 => {
                self.unless_off(process.store.sync())?;
                self.told(process);
            }
            3 => {
                self.terms += 1;
                let term = Term(self.terms);
                self.change(process, Change::Promise(term))?;
                self.told.promised = term;
                self.floor = Some(self.choose_floor(process));
                if self.plant != Some(Plant::FloorBehindStream) {
                    self.record_floor(process)?;
                }
            }
            4 => {
                let parameters = vec![("server_version".to_owned(), format!("15.{}", self.rng.below(100)))];
                self.change(process, Change::Parameters(parameters))?;
            }
            5 | 6 => self.use_slots(process)?,
            7 => self.record_floor(process)?,
            8 if process.store.store.report().borrow().standing.is_in_doubt() => {
                self.change(process, Change::Shown(self.told.promised))?;
                self.told(process);
            }
            _ => {}
        }
        Ok(())
    }

    /// The end of a record at the log's end or behind it, of a log of the same term or, as far as is known, of another one.
    fn choose_floor(&mut self, process: &Process) -> Floor {
        let Unsynced { timeline, from } = process.tail();
        let end = self.truth.whole(timeline, from.advanced(self.rng.below(200_000)));
        let own = process.store.store.report().borrow().log_term();
        let log_term = if self.rng.percent(30) { Term(u64::MAX) } else { own };
        Floor { timeline, end, source: None, log_term }
    }

    fn record_floor(&mut self, process: &mut Process) -> Step {
        let Some(floor) = self.floor.clone() else { return Ok(()) };
        let term = self.told.promised;
        if process.store.store.report().borrow().standing.has(term, &floor) {
            return Ok(());
        }
        self.change(process, Change::Floor { term, floor })
    }

    fn use_slots(&mut self, process: &Process) -> Step {
        let Unsynced { timeline, from } = process.tail();
        let restart = RestartPoint { timeline, lsn: from };
        let name = format!("s{}", self.rng.below(3));
        let parsed = name.parse().expect("a slot's name");
        let known = process.slots.status(&parsed).is_some();
        let dropped = known && self.rng.percent(20);
        let done = match known {
            true if dropped => process.slots.drop_slot(&name, 1),
            true => {
                process.slots.advance(&parsed, restart, || Available::Kept);
                Ok(())
            }
            false => process.slots.create(&name, Persistent, Some(restart), 1),
        };
        self.unless_off(done)?;
        // Until it is saved, either may be found.
        if dropped || !known {
            self.told.slots.remove(&name);
        }
        self.unless_off(process.slots.save())?;
        self.told.slots.insert(name, (!dropped).then_some((timeline, from)));
        Ok(())
    }

    fn provide_spare(&mut self, process: &mut Process) -> Step {
        // With many, old segments are removed instead of used again.
        let wanted = if self.rng.percent(20) { 5 } else { 1 };
        while process.store.spares() < wanted {
            self.names += 1;
            self.unless_off(process.store.allocate_spare(format!("spare.{}", self.names)))?;
        }
        Ok(())
    }

    fn change(&mut self, process: &mut Process, change: Change) -> Step {
        self.provide_spare(process)?;
        let changed = self.unless_off(process.store.change(change))?;
        self.unless_off(changed)?;
        self.told(process);
        Ok(())
    }

    /// What the store reports goes out to the upstream and to followers.
    fn told(&mut self, process: &Process) {
        let Unsynced { timeline, from } = process.tail();
        let told = self.told.durable.entry(timeline).or_default();
        *told = (*told).max(from);
        self.told.timeline = self.told.timeline.max(timeline);
        let reached =
            |floor: &Floor| timeline > floor.timeline || (timeline == floor.timeline && from >= floor.end);
        let in_doubt = process.store.store.report().borrow().standing.is_in_doubt();
        if self.floor.as_ref().is_some_and(reached) && !in_doubt {
            self.told.log_term = self.told.promised;
        }
    }

    // What must hold after a start.

    fn recovered(&self, process: &Process) -> Step {
        let broken = |how: String| Err(Stop::Broken(how));
        let (timeline, end) = (process.tail().timeline, self.end_found(process));
        let report = process.store.store.report().borrow().clone();
        if report.promised < self.told.promised {
            return broken(format!("{} was promised, {} is known", self.told.promised, report.promised));
        }
        if report.log_term() < self.told.log_term {
            let found = report.log_term();
            return broken(format!("the log was of term {}, it counts in {found}", self.told.log_term));
        }
        if timeline < self.told.timeline {
            return broken(format!("on timeline {timeline} after {}", self.told.timeline));
        }
        if self.told.history && process.store.store.history_file(SECOND).is_none() {
            return broken("the history of timeline 3 is lost".to_owned());
        }
        for (timeline, told) in &self.told.durable {
            let told = if timeline.0 == 0 { Lsn::INVALID } else { *told };
            let oldest = process.store.store.oldest(*timeline).unwrap_or(told);
            self.holds(*timeline, oldest.max(START), told)?;
        }
        if let Some(told) = self.told.durable.get(&timeline).filter(|lsn| lsn.is_valid() && timeline.0 > 0) {
            let stored_any = process.store.store.oldest(timeline).is_some();
            if stored_any && end < self.truth.whole(timeline, *told) {
                return broken(format!("timeline {timeline} was durable up to {told}, its end is {end}"));
            }
        }
        if let Some(left_at) = self.told.left_at.filter(|to| timeline == FIRST && end != *to) {
            return broken(format!("the log went back to {left_at}, its end is {end}"));
        }
        if let Some((from, to)) = self.told.discarded.filter(|_| timeline != BRANCH) {
            self.kept_aside(from, to)?;
        }
        let reported = self.told.durable.get(&timeline) == Some(&end);
        let is_border = end == START || end == self.truth.fork || !end.is_valid();
        if !reported && !is_border && self.truth.whole(timeline, end) != end {
            return broken(format!("the end {end} of timeline {timeline} is no record's"));
        }
        self.slots_hold(process)
    }

    /// The files have the truth from `from` to `to`.
    fn holds(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> Step {
        self.within("", timeline, from, to)
    }

    fn within(&self, directory: &str, timeline: TimelineId, from: Lsn, to: Lsn) -> Step {
        let to = to.min(self.truth.wal.get(&timeline).map_or(to, WalBuilder::end));
        let mut at = from;
        while at < to {
            let segment = self.truth.size.segment(at);
            let end = self.truth.size.end(segment).min(to);
            let name = SegmentFile { timeline, number: segment }.name(self.truth.size);
            let content = self.platter.content(&format!("{directory}{name}"));
            let offset =
                |lsn: Lsn| usize::try_from(lsn.bytes_since(self.truth.size.start(segment))).expect("small");
            let stored = content.as_ref().and_then(|content| content.get(offset(at)..offset(end)));
            if stored != Some(self.truth.bytes(timeline, at, end)) {
                let how = format!("{name} does not hold {at} to {end}, which was durable up to {to}");
                return Err(Stop::Broken(how));
            }
            at = end;
        }
        Ok(())
    }

    /// What the log left behind when it went back.
    fn kept_aside(&self, from: Lsn, to: Lsn) -> Step {
        let lsn = |lsn: Lsn| lsn.to_string().replace('/', "-");
        let directory = format!("discarded-timeline-{BRANCH}-from-{}-to-{}/", lsn(from), lsn(to));
        let begin = self.truth.branch.map_or(from, |(begin, _)| begin);
        self.within(&directory, FIRST, from, self.truth.size.segment_start(begin))?;
        self.within(&directory, BRANCH, begin, to)
    }

    fn slots_hold(&self, process: &Process) -> Step {
        for (name, saved) in &self.told.slots {
            let found = process.slots.status(&name.parse().expect("a slot's name"));
            let found = found.and_then(|slot| slot.restart).map(|restart| (restart.timeline, restart.lsn));
            let as_told = match (saved, found) {
                (Some(saved), Some(found)) => found >= *saved,
                (None, None) => true,
                _ => false,
            };
            if !as_told {
                return Err(Stop::Broken(format!("slot {name} was saved as {saved:?}, found is {found:?}")));
            }
        }
        Ok(())
    }

    /// A planted way to find the end.
    fn end_by_zeros(&self, timeline: TimelineId) -> Lsn {
        let size = self.truth.size;
        let names = self.platter.names().expect("always there");
        let segments = names.iter().filter_map(|name| SegmentFile::parse(name, size));
        let Some(newest) = segments.filter(|s| s.timeline == timeline).max_by_key(|s| s.number) else {
            return Lsn::INVALID;
        };
        let content = self.platter.content(&newest.name(size)).unwrap_or_default();
        let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        size.start(newest.number).advanced(used.next_multiple_of(8))
    }
}

/// The store and the slots, from a start to its end.
struct Process {
    store: Stepped,
    slots: Slots,
}

struct Unsynced {
    timeline: TimelineId,
    from: Lsn,
}

impl Process {
    /// How far the store says that it is durable.
    fn tail(&self) -> Unsynced {
        let tail = self.store.store.report().borrow().tail;
        Unsynced { timeline: tail.timeline, from: tail.durable }
    }
}

/// The disk under a store that makes a mistake.
#[derive(Debug)]
struct Sloppy {
    disk: Platter,
    plant: Plant,
}

#[derive(Debug)]
struct SloppyFile {
    file: Box<dyn DiskFile>,
    plant: Plant,
}

impl Sloppy {
    fn sloppy(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(SloppyFile { file, plant: self.plant })
    }
}

impl Disk for Sloppy {
    fn directory(&self) -> String {
        self.disk.directory()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.disk.names()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(name).map(|file| self.sloppy(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(name).map(|file| self.sloppy(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        if self.plant == Plant::NoDirectorySync { Ok(()) } else { self.disk.sync() }
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.disk.create_directory(name)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        if self.plant == Plant::NothingAside { Ok(()) } else { self.disk.link(from, to) }
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        if self.plant == Plant::NoDirectorySync { Ok(()) } else { self.disk.sync_directory(name) }
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.disk.remove_directory(name)
    }

    fn modified(&self, name: &str) -> io::Result<SystemTime> {
        self.disk.modified(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

impl DiskFile for SloppyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.file.read(offset, len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.plant == Plant::AcknowledgeBeforeSync { Ok(()) } else { self.file.sync_data() }
    }

    fn sync_all(&self) -> io::Result<()> {
        if self.plant == Plant::RenameWithoutSync { Ok(()) } else { self.file.sync_all() }
    }
}

/// The course of the seed, with its first cut at the operation `first` and further ones anywhere.
fn run(seed: u64, first: u64, plant: Option<Plant>) -> Result<Course, String> {
    let mut course = Course::new(seed, plant);
    let mut cut_at = first;
    let mut outcome = Ok(());
    for _ in 0..MAX_CUTS {
        course.platter.cut_at(cut_at);
        outcome = course.live();
        if outcome != Err(Stop::PowerOff) {
            break;
        }
        course.power_up();
        // Often while it opens.
        cut_at = if course.rng.percent(50) { course.rng.between(1, 8) } else { course.rng.between(1, 150) };
    }
    course.platter.do_not_cut();
    if outcome == Err(Stop::PowerOff) {
        outcome = course.live();
    }
    // What it leaves behind is found again.
    match outcome.and_then(|()| course.live()) {
        Ok(()) => Ok(course),
        Err(stop) => Err(format!("start {}: {stop:?}", course.starts)),
    }
}

/// Where the seed's course is cut: anywhere in it, or a little behind its end.
fn somewhere(seed: u64) -> u64 {
    1 + seed.wrapping_mul(7919) % OPERATIONS
}

#[test]
fn no_power_cut_takes_back_what_was_said() {
    let seeds = match number("BELLWETHER_SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("BELLWETHER_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(how) = run(seed, somewhere(seed), None) {
            panic!("seed {seed}, cut at operation {}: {how}", somewhere(seed));
        }
    }
}

#[test]
fn every_operation_may_be_the_last() {
    let operations = run(1, u64::MAX / 2, None).expect("nothing is cut").platter.operations();
    assert!((100..OPERATIONS).contains(&operations), "{operations} operations");
    for at in 1..=operations {
        if let Err(how) = run(1, at, None) {
            panic!("cut at operation {at} of {operations}: {how}");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    for plant in [
        Plant::NoDirectorySync,
        Plant::RenameWithoutSync,
        Plant::AcknowledgeBeforeSync,
        Plant::EndByZeros,
        Plant::FloorBehindStream,
        Plant::NothingAside,
    ] {
        let found = (1..=SEEDS_FOR_PLANTS).find_map(|seed| run(seed, somewhere(seed), Some(plant)).err());
        println!("{plant:?}: {found:?}");
        assert!(found.is_some(), "{plant:?} is not found");
    }
}
