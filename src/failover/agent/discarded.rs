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

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::base_backup::BaseBackupError;
use super::conversation::{Conversation, ConversationError};
use super::error::{AgentError, FileError};
use super::{LocalServer, files};
use crate::net::{self, Target};
use crate::pg::wal::{
    Expected, History, PageHeader, SegmentFile, Verifier, WalSegmentSize, history_file_name,
};
use crate::pg::{Lsn, TimelineId};

/// Of one tail. Of a longer one the beginning is kept, which is what came right behind the fork.
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
    pub(super) async fn save_discarded(&self, source: &Target) -> Result<Option<Discarded>, AgentError> {
        if self.control_file().is_none() {
            return Ok(None);
        }
        let theirs = history_of(source).await?;
        let server = self.clone();
        let saved = tokio::task::spawn_blocking(move || server.save_beyond(&theirs)).await;
        saved.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn save_beyond(&self, theirs: &History) -> Result<Option<Discarded>, AgentError> {
        let wal = self.data_dir.join("pg_wal");
        let ours = own_history(&wal, self.latest_timeline());
        let Some(from) = ours.leaves(theirs) else { return Ok(None) };
        let Some(tail) = Tail::find(&wal, &ours, from)? else { return Ok(None) };
        let all = self.beside(".discarded");
        files::create_private_dir(&all, self.run_as.as_ref())?;
        let directory = all.join(tail.name());
        if !directory.exists() {
            let making = files::beside(&directory, ".tmp");
            files::remove_tree(&making)?;
            files::create_private_dir(&making, self.run_as.as_ref())?;
            let names = tail.segments.iter().map(|segment| segment.name(tail.size));
            for name in names.chain([history_file_name(tail.timeline)]) {
                copy_if_there(&wal.join(&name), &making.join(&name))?;
            }
            files::give_tree(&making, self.run_as.as_ref())?;
            files::sync_file_system(&making)?;
            files::rename(&making, &directory)?;
            forget_oldest(&all)?;
        }
        Ok(Some(Discarded { timeline: tail.timeline, from, to: tail.to, directory }))
    }
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
    /// Whole records only: recycled segments have the names of future ones, and old content.
    fn find(wal: &Path, ours: &History, from: Lsn) -> Result<Option<Tail>, FileError> {
        let Some(size) = segment_size(wal)? else { return Ok(None) };
        let expected = Expected { segment_size: size, timeline: ours.timeline(), system: None };
        let mut verifier = Verifier::new(size.segment_start(from), expected);
        let mut segments = Vec::new();
        let mut number = size.segment(from);
        while size.bytes() * segments.len() as u64 <= MAX_BYTES {
            let timeline = timeline_of(ours, size.end(number));
            let file = SegmentFile { timeline, number };
            let Some(opened) = open_if_there(&wal.join(file.name(size)))? else { break };
            segments.push(file);
            if !feed(opened, &mut verifier) {
                break;
            }
            number = number.next();
        }
        let to = verifier.verified().unwrap_or(from);
        segments.retain(|segment| size.start(segment.number) < to);
        Ok((to > from).then_some(Tail { timeline: ours.timeline(), from, to, size, segments }))
    }

    fn name(&self) -> String {
        let lsn = |lsn: Lsn| lsn.to_string().replace('/', "-");
        format!("timeline-{}-from-{}-to-{}", self.timeline, lsn(self.from), lsn(self.to))
    }
}

/// Of the segment that ends at `end`: the newest that has begun before (`XLogFileReadAnyTLI`).
fn timeline_of(history: &History, end: Lsn) -> TimelineId {
    let earlier = history.ancestors().iter().find(|ancestor| end <= ancestor.switchpoint);
    earlier.map_or(history.timeline(), |ancestor| ancestor.timeline)
}

/// Whether all of it is WAL.
fn feed(mut file: File, verifier: &mut Verifier) -> bool {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return true,
            Ok(length) if verifier.feed(&buffer[..length]).is_ok() => {}
            _ => return false,
        }
    }
}

fn segment_size(wal: &Path) -> Result<Option<WalSegmentSize>, FileError> {
    for entry in fs::read_dir(wal).map_err(FileError::of("list", wal))? {
        let entry = entry.map_err(FileError::of("list", wal))?;
        if entry.file_name().len() != 24 {
            continue;
        }
        let Some(mut file) = open_if_there(&entry.path())? else { continue };
        let mut header = [0; 64];
        let long = file.read_exact(&mut header).ok().and_then(|()| PageHeader::parse(&header)?.long);
        let size = long.and_then(|long| WalSegmentSize::new(u64::from(long.segment_size)).ok());
        if size.is_some() {
            return Ok(size);
        }
    }
    Ok(None)
}

/// One that cannot be read counts as none: then more is saved, not less.
fn own_history(wal: &Path, timeline: TimelineId) -> History {
    let read = fs::read(wal.join(history_file_name(timeline))).ok();
    let parsed = read.and_then(|content| History::parse(timeline, &content).ok());
    parsed.unwrap_or_else(|| History::without_ancestors(timeline))
}

/// Of the source's present timeline; by the replication protocol, which needs no right to read files.
async fn history_of(source: &Target) -> Result<History, AgentError> {
    let source_address = source.address.to_string();
    let mut target = source.clone();
    target.parameters.retain(|(key, _)| key != "replication");
    target.parameters.push(("replication".to_owned(), "true".to_owned()));
    let backend = net::dial(&target, LIMIT).await.map_err(BaseBackupError::Dial)?;
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
    Ok(asked.await.map_err(|source| BaseBackupError::Conversation { source_address, source })?)
}

/// The one row of the answer, without NULLs.
async fn ask(conversation: &mut Conversation, command: &str) -> Result<Vec<String>, ConversationError> {
    conversation.send_query(command).await?;
    let rows = conversation.rows().await?;
    conversation.expect(b'Z', "ReadyForQuery").await?;
    Ok(rows.into_iter().next().unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect())
}

fn open_if_there(path: &Path) -> Result<Option<File>, FileError> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(FileError::of("open", path)),
    }
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), FileError> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).map_err(FileError::of("copy to", to)),
    }
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

    use super::{MAX_TAILS, Tail, forget_oldest, timeline_of};
    use crate::pg::wal::build::WalBuilder;
    use crate::pg::wal::{History, SegmentFile, SegmentNumber};
    use crate::pg::{Lsn, TimelineId};

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
        let ours = History::without_ancestors(TimelineId(1));
        let end_of = |record: usize| {
            let (_, end) = log.record_range(record);
            Lsn(log.start().advanced(end as u64).0.next_multiple_of(8))
        };
        let find = |from| Tail::find(wal.path(), &ours, from).unwrap();
        let whole = end_of(2499);
        for (record, segments) in [(10, vec![3, 4, 5]), (1500, vec![4, 5]), (2498, vec![5])] {
            let tail = find(end_of(record)).expect("there is more");
            let numbers: Vec<u64> = tail.segments.iter().map(|segment| segment.number.0).collect();
            assert_eq!((tail.to, numbers), (whole, segments), "{record}");
        }
        assert_eq!(find(whole), None, "nothing behind it");
        assert_eq!(find(Lsn(0x70_0000)), None, "no such segment");
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
