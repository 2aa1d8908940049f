//! WAL that a server holds and the primary's history does not: saved before it is thrown away.
//!
//! It may contain commits that somebody saw, or was told of. A rewind or a new copy makes it unreachable, so it
//! is copied first, beside the data directory:
//!
//! ```text
//! DATA_DIR.discarded/timeline-1-from-0-301A8F0-to-0-301C000/000000010000000000000003
//! pg_waldump -p DIR -t 1 -s 0/301A8F0
//! ```
//!
//! What cannot be saved is not thrown away: a full disk keeps the server out until there is room.
//!
//! Not here: what is in it. Whoever wants the rows back reads them out of the WAL, or of an older copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::ControlFile;
use super::error::{AgentError, FileError};
use super::{DirectoryLock, LocalServer, files};
use crate::net::{self, Conversation, ConversationError, Target};
use crate::pg::wal::{
    Expected, History, PageHeader, SegmentFile, Verifier, WalSegmentSize, history_file_name,
    parse_history_file_name,
};
use crate::pg::{Lsn, TimelineId};

/// Of one tail. Of a longer one the beginning is kept, which is what came right behind the fork; where the fork is not
/// known the end, which is what is least likely to be anywhere else.
const MAX_BYTES: u64 = 1 << 30;
/// Tails of one server; the oldest is removed for a newer one.
const MAX_TAILS: usize = 4;
const LIMIT: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 256 * 1024;

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    pub timeline: TimelineId,
    /// Where the server's history left its source's.
    pub from: Lsn,
    /// The end of the last whole record.
    pub to: Lsn,
    pub directory: PathBuf,
}

impl LocalServer {
    /// Of the stopped server. `None`: its WAL is a part of the source's history.
    pub(super) async fn save_discarded(
        &self,
        source: &Target,
        lock: &DirectoryLock,
    ) -> Result<Option<Discarded>, AgentError> {
        let Some(control) = read_if_there(&self.control_path())? else { return Ok(None) };
        let theirs = history_of(source).await?;
        self.aside(lock, move |server| server.save_beyond(ControlFile::parse(&control), &theirs)).await
    }

    fn save_beyond(
        &self,
        control: Option<ControlFile>,
        theirs: &History,
    ) -> Result<Option<Discarded>, AgentError> {
        let wal = self.data_dir.join("pg_wal");
        let names = names_in(&wal)?;
        let ours = Ours::read(&wal, &names, control)?;
        let Some(fork) = ours.fork(theirs) else { return Ok(None) };
        let Some(tail) = Tail::find(&wal, &names, &ours, (fork, MAX_BYTES))? else { return Ok(None) };
        let all = self.beside(".discarded");
        files::create_private_dir(&all, self.run_as.as_ref())?;
        let directory = all.join(tail.name());
        if !directory.exists() {
            let making = files::beside(&directory, ".tmp");
            files::remove_tree(&making)?;
            files::create_private_dir(&making, self.run_as.as_ref())?;
            for segment in &tail.segments {
                let name = segment.name(tail.size);
                copy(&wal.join(&name), &making.join(&name))?;
            }
            let history = history_file_name(tail.timeline);
            if names.contains(&history) {
                copy(&wal.join(&history), &making.join(&history))?;
            }
            files::give_tree(&making, self.run_as.as_ref())?;
            files::sync_tree(&making)?;
            files::rename(&making, &directory)?;
            forget_oldest(&all)?;
        }
        Ok(Some(Discarded { timeline: tail.timeline, from: tail.from, to: tail.to, directory }))
    }
}

/// What the server's own files say of where its WAL came from.
#[derive(Debug)]
struct Ours {
    timeline: TimelineId,
    /// `None`: its file is missing or damaged.
    history: Option<History>,
    /// It last ran as a standby, and wrote no WAL of its own.
    in_recovery: bool,
}

impl Ours {
    fn read(wal: &Path, names: &[String], control: Option<ControlFile>) -> Result<Ours, FileError> {
        let in_recovery = control.is_some_and(|control| control.state.is_recovery());
        let timeline = own_timeline(names, control);
        let history = if timeline <= TimelineId(1) {
            Some(History::without_ancestors(timeline))
        } else {
            let content = read_if_there(&wal.join(history_file_name(timeline)))?;
            content.and_then(|content| History::parse(timeline, &content).ok())
        };
        Ok(Ours { timeline, history, in_recovery })
    }

    /// `None`: there is none, nothing is saved.
    fn fork(&self, theirs: &History) -> Option<Fork> {
        let Some(ours) = &self.history else { return Some(Fork::Unknown) };
        let at = |point: Option<Lsn>| point.map_or(Fork::Unknown, Fork::At);
        match (ours.leaves(theirs), ours == theirs, self.in_recovery) {
            (Some(left), _, _) => Some(Fork::At(left)),
            (None, true, true) => None,
            // Both were promoted at the same place, and took the same number.
            (None, true, false) => Some(at(ours.begin())),
            (None, false, _) => Some(Fork::Unknown),
        }
    }

    /// The one of a segment's files that the server has read or written: that of the newest timeline that has
    /// begun before the segment ends (`XLogFileReadAnyTLI`).
    fn is_mine(&self, file: SegmentFile, size: WalSegmentSize) -> bool {
        match &self.history {
            Some(history) => file.timeline == timeline_of(history, size.end(file.number)),
            None => file.timeline <= self.timeline,
        }
    }
}

/// Where a server's WAL left its source's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fork {
    At(Lsn),
    /// Somewhere: what is there is saved, more than necessary.
    Unknown,
}

/// A standby fetches the history files of its upstream's timelines before it streams from it (`WalReceiverMain`),
/// also of one that it then cannot follow. So they do not say where it is; its control file does, and so do its
/// segments, which are ahead of it after a crash. A primary's history file is its own, and is there before the
/// control file names the timeline.
fn own_timeline(names: &[String], control: Option<ControlFile>) -> TimelineId {
    let in_recovery = control.is_some_and(|control| control.state.is_recovery());
    let segments = names.iter().filter(|name| name.len() == 24);
    let histories = names.iter().filter(|name| !in_recovery && parse_history_file_name(name).is_some());
    let named = segments.chain(histories).filter_map(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
    let controlled =
        control.map_or(TimelineId(0), |control| control.timeline.max(control.min_recovery_timeline));
    named.map(TimelineId).fold(controlled, TimelineId::max)
}

/// WAL from a fork on.
#[derive(Debug, PartialEq, Eq)]
struct Tail {
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
    size: WalSegmentSize,
    segments: Vec<SegmentFile>,
}

impl Tail {
    /// Whole records only: recycled segments have the names of future ones, and old content. What is missing at
    /// the beginning was removed, and keeps nobody from saving the rest.
    fn find(
        wal: &Path,
        names: &[String],
        ours: &Ours,
        (fork, max_bytes): (Fork, u64),
    ) -> Result<Option<Tail>, FileError> {
        let from = match fork {
            Fork::At(from) => from,
            Fork::Unknown => Lsn(0),
        };
        let Some(size) = segment_size(wal, names)? else { return Ok(None) };
        let all = names.iter().filter(|name| name.len() == 24);
        let all = all.filter_map(|name| SegmentFile::parse(name, size));
        let behind = all.filter(|file| file.number >= size.segment(from) && ours.is_mine(*file, size));
        // Of several with one number the newest.
        let mut present = BTreeMap::new();
        for file in behind {
            let newest = present.entry(file.number).or_insert(file.timeline);
            *newest = file.timeline.max(*newest);
        }
        let files = present.into_iter().map(|(number, timeline)| SegmentFile { timeline, number });
        let mut runs = unbroken(files);
        if fork == Fork::Unknown {
            runs.reverse();
        }
        for run in runs {
            let tail = Tail::of(wal, &run, (ours.timeline, size), (fork, max_bytes))?;
            if tail.is_some() {
                return Ok(tail);
            }
        }
        Ok(None)
    }

    /// What of a run of segments is WAL.
    fn of(
        wal: &Path,
        run: &[SegmentFile],
        (timeline, size): (TimelineId, WalSegmentSize),
        (fork, max_bytes): (Fork, u64),
    ) -> Result<Option<Tail>, FileError> {
        let Some(first) = run.first() else { return Ok(None) };
        let start = size.start(first.number);
        let from = match fork {
            Fork::At(fork) => fork.max(start),
            Fork::Unknown => start,
        };
        let most = usize::try_from(max_bytes / size.bytes()).unwrap_or(usize::MAX).max(1);
        let looked_at = match fork {
            Fork::At(_) => &run[..run.len().min(most)],
            Fork::Unknown => run,
        };
        let expected = Expected { segment_size: size, timeline, system: None };
        let mut verifier = Verifier::new(size.segment_start(from), expected);
        for segment in looked_at {
            if !feed(&wal.join(segment.name(size)), &mut verifier)? {
                break;
            }
        }
        let to = verifier.verified().unwrap_or(from);
        let whole = looked_at.iter().copied().filter(|segment| size.start(segment.number) < to);
        let mut segments: Vec<SegmentFile> = whole.collect();
        let excess = segments.len().saturating_sub(most);
        segments.drain(..excess);
        let from = segments.first().map_or(from, |first| from.max(size.start(first.number)));
        Ok((to > from).then_some(Tail { timeline, from, to, size, segments }))
    }

    fn name(&self) -> String {
        let lsn = |lsn: Lsn| lsn.to_string().replace('/', "-");
        format!("timeline-{}-from-{}-to-{}", self.timeline, lsn(self.from), lsn(self.to))
    }
}

/// Cut where one is missing.
fn unbroken(segments: impl Iterator<Item = SegmentFile>) -> Vec<Vec<SegmentFile>> {
    let mut runs: Vec<Vec<SegmentFile>> = Vec::new();
    for segment in segments {
        let last =
            runs.last_mut().filter(|run| run.last().is_some_and(|last| last.number.next() == segment.number));
        match last {
            Some(run) => run.push(segment),
            None => runs.push(vec![segment]),
        }
    }
    runs
}

/// Of the segment that ends at `end`: the newest that has begun before (`XLogFileReadAnyTLI`).
fn timeline_of(history: &History, end: Lsn) -> TimelineId {
    let earlier = history.ancestors().iter().find(|ancestor| end <= ancestor.switchpoint);
    earlier.map_or(history.timeline(), |ancestor| ancestor.timeline)
}

/// Whether all of it is WAL. What cannot be read is an error: the end would be taken to be here.
fn feed(path: &Path, verifier: &mut Verifier) -> Result<bool, FileError> {
    let mut file = File::open(path).map_err(FileError::of("open", path))?;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let length = file.read(&mut buffer).map_err(FileError::of("read", path))?;
        if length == 0 {
            return Ok(true);
        }
        if verifier.feed(&buffer[..length]).is_err() {
            return Ok(false);
        }
    }
}

fn segment_size(wal: &Path, names: &[String]) -> Result<Option<WalSegmentSize>, FileError> {
    for name in names.iter().filter(|name| name.len() == 24) {
        let path = wal.join(name);
        let mut file = File::open(&path).map_err(FileError::of("open", &path))?;
        let mut header = [0; 64];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
            read => read.map_err(FileError::of("read", &path))?,
        }
        let long = PageHeader::parse(&header).and_then(|header| header.long);
        let size = long.and_then(|long| WalSegmentSize::new(u64::from(long.segment_size)).ok());
        if size.is_some() {
            return Ok(size);
        }
    }
    Ok(None)
}

/// None without a directory.
fn names_in(wal: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(wal) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(FileError::of("list", wal))?,
    };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
    let names = entries.map(name).filter_map(Result::transpose);
    names.collect::<Result<_, _>>().map_err(FileError::of("list", wal))
}

/// Of the source's present timeline; by the replication protocol, which needs no right to read files.
async fn history_of(source: &Target) -> Result<History, AgentError> {
    let address = source.address.clone();
    let backend = net::dial(&source.clone().for_replication(), LIMIT).await?;
    let mut conversation = Conversation::new(backend, LIMIT);
    let asked = async {
        let unreadable = || ConversationError::Content { what: "timeline history" };
        let identity = ask(&mut conversation, "IDENTIFY_SYSTEM").await?;
        let timeline = identity.get(1).and_then(|text| text.parse().ok()).map(TimelineId);
        let timeline = timeline.ok_or_else(unreadable)?;
        if timeline == TimelineId(1) {
            return Ok(History::without_ancestors(timeline));
        }
        let file = ask(&mut conversation, &format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = file.get(1).ok_or_else(unreadable)?;
        History::parse(timeline, content.as_bytes()).map_err(|_| unreadable())
    };
    asked.await.map_err(|source| AgentError::Conversation { address, source })
}

/// The one row of the answer, without NULLs.
async fn ask(conversation: &mut Conversation, command: &str) -> Result<Vec<String>, ConversationError> {
    conversation.send_query(command).await?;
    let rows = conversation.rows().await?;
    conversation.expect(b'Z', "ReadyForQuery").await?;
    Ok(rows.into_iter().next().unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect())
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(FileError::of("read", path)),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::copy(from, to).map(drop).map_err(FileError::of("copy to", to))
}

fn forget_oldest(all: &Path) -> Result<(), FileError> {
    let mut tails = Vec::new();
    for entry in fs::read_dir(all).map_err(FileError::of("list", all))? {
        let path = entry.map_err(FileError::of("list", all))?.path();
        let saved_at = fs::metadata(&path).and_then(|meta| meta.modified());
        tails.push((saved_at.map_err(FileError::of("look at", &path))?, path));
    }
    tails.sort();
    let excess = tails.len().saturating_sub(MAX_TAILS);
    tails.iter().take(excess).try_for_each(|(_, path)| files::remove_tree(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{Fork, MAX_BYTES, MAX_TAILS, Ours, Tail, forget_oldest, names_in, own_timeline, timeline_of};
    use crate::failover::agent::control::{ControlFile, DbState};
    use crate::pg::wal::build::WalBuilder;
    use crate::pg::wal::{History, SegmentFile, SegmentNumber};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};

    /// Records on timeline 1, as a server's `pg_wal` has them: the last segment is full of old bytes, and more
    /// segments are ready.
    fn write(wal: &Path, records: usize) -> WalBuilder {
        let mut log = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
        (0..records).for_each(|_| log.record(1000));
        let size = log.segment_size();
        let mut bytes = log.bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(size.bytes() as usize), 0xEE);
        bytes.extend_from_slice(&log.bytes()[..100]);
        for (number, segment) in (3..).zip(bytes.chunks(size.bytes() as usize)) {
            let file = SegmentFile { timeline: TimelineId(1), number: SegmentNumber(number) };
            fs::write(wal.join(file.name(size)), segment).unwrap();
        }
        log
    }

    #[test]
    fn a_tail_is_the_whole_records_behind_the_fork() {
        let wal = tempfile::tempdir().unwrap();
        let log = write(wal.path(), 2500);
        let ours = standby(Some(History::without_ancestors(TimelineId(1))));
        let end_of = |record: usize| {
            let (_, end) = log.record_range(record);
            Lsn(log.start().advanced(end as u64).0.next_multiple_of(8))
        };
        let find = |from| {
            Tail::find(wal.path(), &names_in(wal.path()).unwrap(), &ours, (Fork::At(from), MAX_BYTES))
                .unwrap()
        };
        let whole = end_of(2499);
        for (record, segments) in [(10, vec![3, 4, 5]), (1500, vec![4, 5]), (2498, vec![5])] {
            let tail = find(end_of(record)).expect("there is more");
            let numbers: Vec<u64> = tail.segments.iter().map(|segment| segment.number.0).collect();
            assert_eq!((tail.to, numbers), (whole, segments), "{record}");
        }
        assert_eq!(find(whole), None, "nothing behind it");
        assert_eq!(find(Lsn(0x70_0000)), None, "no such segment");

        let third = wal.path().join("000000010000000000000003");
        fs::remove_file(&third).unwrap();
        let rest = find(end_of(10)).expect("there is more");
        assert_eq!((rest.from, rest.to, rest.segments.len()), (Lsn(0x40_0000), whole, 2), "what is left");
        // Opened, but not read.
        fs::create_dir(&third).unwrap();
        let names = names_in(wal.path()).unwrap();
        assert!(
            Tail::find(wal.path(), &names, &ours, (Fork::At(end_of(10)), MAX_BYTES)).is_err(),
            "not the end"
        );
    }

    #[test]
    fn where_the_fork_is_not_known_the_newest_is_kept() {
        let wal = tempfile::tempdir().unwrap();
        let log = write(wal.path(), 4000);
        let ours = standby(None);
        let find = |fork, max_bytes| {
            let names = names_in(wal.path()).unwrap();
            Tail::find(wal.path(), &names, &ours, (fork, max_bytes)).unwrap().expect("there is WAL")
        };
        let whole = find(Fork::Unknown, MAX_BYTES);
        assert_eq!(
            (whole.from, whole.segments.first().map(|s| s.number)),
            (log.start(), Some(SegmentNumber(3)))
        );
        // The beginning and the end of what is too long.
        let (beginning, end) = (find(Fork::At(Lsn(0)), 2 << 20), find(Fork::Unknown, 2 << 20));
        assert_eq!((beginning.from, beginning.segments.len()), (whole.from, 2));
        assert_eq!((end.to, &end.segments[..]), (whole.to, &whole.segments[whole.segments.len() - 2..]));

        // What is older than a gap is left, and so is what was recycled behind another.
        fs::remove_file(wal.path().join("000000010000000000000004")).unwrap();
        fs::copy(wal.path().join("000000010000000000000003"), wal.path().join("000000010000000000000021"))
            .unwrap();
        let newest = find(Fork::Unknown, MAX_BYTES);
        assert_eq!((newest.from, newest.to), (Lsn(0x50_0000), whole.to));
        let numbers: Vec<u64> = newest.segments.iter().map(|segment| segment.number.0).collect();
        assert_eq!(numbers, (5..=newest.segments.last().unwrap().number.0).collect::<Vec<_>>());
    }

    #[test]
    fn a_run_ends_where_a_segment_is_missing() {
        let run = |count| {
            (1..=count).map(|number| SegmentFile { timeline: TimelineId(1), number: SegmentNumber(number) })
        };
        assert_eq!(super::unbroken(run(3)), [run(3).collect::<Vec<_>>()]);
        assert_eq!(super::unbroken(run(3).chain(run(9).skip(5))).len(), 2);
        assert_eq!(super::unbroken(run(0)), [[]; 0]);
    }

    fn standby(history: Option<History>) -> Ours {
        Ours { timeline: TimelineId(1), history, in_recovery: true }
    }

    #[test]
    fn a_fetched_history_is_not_a_standbys_own() {
        let check = |state, timelines: (u32, u32), names: &[&str], expected| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let (timeline, min_recovery_timeline) = (TimelineId(timelines.0), TimelineId(timelines.1));
            let control = ControlFile {
                system: SystemIdentifier(7),
                state,
                checkpoint: Lsn(0),
                timeline,
                min_recovery_timeline,
            };
            assert_eq!(own_timeline(&names, Some(control)), TimelineId(expected), "{control:?} {names:?}");
        };
        let (first, second) = ("000000010000000000000003", "000000020000000000000003");
        for state in [DbState::InArchiveRecovery, DbState::ShutDownInRecovery] {
            check(state, (1, 1), &[first, "00000002.history"], 1);
            check(state, (1, 2), &[first, "00000002.history", "00000003.history"], 2);
            check(state, (1, 1), &[first, second, "00000002.history", "00000003.history"], 2);
        }
        check(DbState::InProduction, (1, 0), &[first, "00000002.history"], 2);
    }

    #[test]
    fn without_a_known_fork_more_is_saved() {
        let parse =
            |timeline, content: &str| History::parse(TimelineId(timeline), content.as_bytes()).unwrap();
        let check = |history: Option<(u32, &str)>, in_recovery, expected: Option<Fork>| {
            let history = history.map(|(timeline, content)| parse(timeline, content));
            let ours = Ours { timeline: TimelineId(2), history, in_recovery };
            assert_eq!(ours.fork(&parse(2, "1 0/200")), expected, "{ours:?}");
        };
        let at = Some(Fork::At(Lsn(0x200)));
        check(None, true, Some(Fork::Unknown));
        check(Some((5, "")), true, Some(Fork::Unknown));
        check(Some((1, "")), true, at);
        check(Some((2, "1 0/200")), true, None);
        check(Some((2, "1 0/200")), false, at);
    }

    #[test]
    fn a_segment_is_of_the_newest_timeline_that_had_begun() {
        let history = History::parse(TimelineId(3), b"1\t0/1500000\n2\t0/3800000\n").unwrap();
        for (end, timeline) in
            [(0x100_0000, 1), (0x150_0000, 1), (0x200_0000, 2), (0x300_0000, 2), (0x400_0000, 3)]
        {
            assert_eq!(timeline_of(&history, Lsn(end)), TimelineId(timeline), "{end:x}");
        }
    }

    #[test]
    fn few_are_kept() {
        let all = tempfile::tempdir().unwrap();
        for tail in 0..MAX_TAILS + 2 {
            fs::create_dir(all.path().join(format!("timeline-{tail}"))).unwrap();
        }
        forget_oldest(all.path()).unwrap();
        assert_eq!(fs::read_dir(all.path()).unwrap().count(), MAX_TAILS);
    }
}
