//! `bellwether wal reset`: the log in a relay's directory begins anew.
//!
//! A relay skips no WAL and takes no other branch's: behind a gap that nobody can fill, or with WAL that its primary does
//! not have, it waits for a person. One who has decided that the log may go on without what is missing says so by this.
//! To remove the directory would do, too, but would forget the promised term, and with it that an old primary must not
//! be listened to.
//!
//! What stays: whose WAL it is, the promise, the history files, the slots' names. What was stored is moved aside, into a
//! directory of its own within this one. Slots that held some of it back are lost: who needs it is made anew.
//!
//! Not here: the decision that it is right. The instance must not run; it begins at its primary's end when it does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::slots::{SlotFileError, Slots};
use super::store::{Control, Files, StoreError};
use crate::pg::Lsn;
use crate::pg::wal::{SegmentFile, parse_history_file_name};
use crate::topology::Term;

/// Directories for what was stored before, one for each reset.
const MAX_RESETS: u32 = 1000;

#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error(transparent)]
    Store(#[from] StoreFailed),
    #[error("{} holds no log: there is no {} in it", directory.display(), Control::FILE_NAME)]
    NoLog { directory: PathBuf },
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The directory cannot be had, or a file in it cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreFailed(Box<dyn std::error::Error + Send + Sync>);

impl From<StoreError> for ResetError {
    fn from(error: StoreError) -> ResetError {
        ResetError::Store(StoreFailed(Box::new(error)))
    }
}

impl From<SlotFileError> for ResetError {
    fn from(error: SlotFileError) -> ResetError {
        ResetError::Store(StoreFailed(Box::new(error)))
    }
}

/// What a reset would do; the directory is nobody else's until this is dropped.
#[derive(Debug)]
pub struct Reset {
    directory: PathBuf,
    files: Files,
    control: Control,
    slots: Slots,
    /// Names, the oldest WAL first.
    pub segments: Vec<String>,
    /// Those that are lost by it.
    pub lost_slots: Vec<String>,
    /// Where the segments go.
    pub aside: PathBuf,
}

impl Reset {
    pub fn look(directory: &Path) -> Result<Reset, ResetError> {
        if !directory.join(Control::FILE_NAME).is_file() {
            return Err(ResetError::NoLog { directory: directory.to_owned() });
        }
        let files = Files::open(directory)?;
        let content = files.read_whole(Control::FILE_NAME)?.unwrap_or_default();
        let control = Control::decode_bytes(&content)
            .map_err(|why| StoreError::Control { file: Control::FILE_NAME.to_owned(), why })?;
        let slots = Slots::open(files.clone())?;
        let held = slots.statuses().into_iter().filter(|slot| slot.restart.is_some());
        let lost_slots = held.map(|slot| slot.name.to_string()).collect();
        let size = control.segment_size();
        let named = files.names()?.into_iter().filter(|name| name.len() == 24);
        let mut segments: Vec<(SegmentFile, String)> =
            named.filter_map(|name| Some((SegmentFile::parse(&name, size)?, name))).collect();
        segments.sort_unstable_by_key(|(segment, _)| (segment.number, segment.timeline));
        let segments = segments.into_iter().map(|(_, name)| name).collect();
        let aside = (1..=MAX_RESETS).map(|number| directory.join(format!("before-reset-{number}")));
        let aside = aside.into_iter().find(|path| !path.exists()).unwrap_or_else(|| directory.join("aside"));
        Ok(Reset { directory: directory.to_owned(), files, control, slots, segments, lost_slots, aside })
    }

    /// It stays promised.
    pub fn promised(&self) -> Term {
        self.control.promised
    }

    /// A crash on the way leaves a log that ends where it did, or none: then it is done once more.
    pub fn carry_out(mut self) -> Result<(), ResetError> {
        for slot in self.slots.statuses() {
            // However far it is: nothing stays.
            self.slots.invalidate(&slot.name, Lsn(u64::MAX));
        }
        self.slots.save()?;
        if !self.segments.is_empty() {
            self.move_aside()?;
        }
        self.control.forget_log();
        self.files.replace(Control::FILE_NAME, self.control.encode().as_bytes())?;
        Ok(())
    }

    /// The oldest first: what is left is a log at any moment.
    fn move_aside(&self) -> Result<(), ResetError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ResetError::Io { operation, path, source }
        };
        fs::create_dir(&self.aside).map_err(failed("create directory", &self.aside))?;
        for name in self.files.names()?.iter().filter(|name| parse_history_file_name(name).is_some()) {
            let (from, to) = (self.directory.join(name), self.aside.join(name));
            fs::copy(&from, &to).map_err(failed("copy", &from))?;
        }
        for name in &self.segments {
            let from = self.directory.join(name);
            fs::rename(&from, self.aside.join(name)).map_err(failed("move", &from))?;
        }
        for directory in [&self.aside, &self.directory] {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(failed("sync", directory))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Reset, ResetError};
    use crate::pg::protocol::replication::SlotLifetime::Persistent;
    use crate::pg::wal::build::{SYSTEM, WalBuilder};
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::metrics::Metrics;
    use crate::relay::slots::{RestartPoint, Slots};
    use crate::relay::store::{Change, Files, Store, StoreConfig, StreamId, Waiting};
    use crate::topology::Term;

    const START: Lsn = Lsn(0x30_0000);

    #[expect(clippy::disallowed_methods, reason = "as the plane does; it ends with the test")]
    fn open(directory: &tempfile::TempDir) -> Store {
        let config = StoreConfig { retain_bytes: 64 << 20, ring_bytes: 1 << 20 };
        let metrics = Metrics::new(&prometheus::Registry::new()).expect("a fresh registry");
        let files = Files::open(directory.path()).expect("nobody else has it");
        let store = Store::open(files, &config, &metrics).expect("opens");
        tokio::spawn(store.announce());
        store
    }

    #[tokio::test]
    async fn a_log_begins_anew_and_keeps_its_promise() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(Reset::look(directory.path()), Err(ResetError::NoLog { .. })));
        let mut wal = WalBuilder::new(START, TimelineId(1));
        wal.record(1_500_000);
        {
            let store = open(&directory);
            let adopt = Change::Adopt { system: SYSTEM, segment_size: wal.segment_size() };
            store.change(adopt).await.expect("adopted");
            store.change(Change::Begin { timeline: TimelineId(1), start: START }).await.expect("begun");
            store.change(Change::Promise(Term(7))).await.expect("promised");
            let bytes = bytes::Bytes::copy_from_slice(wal.bytes());
            store.append(StreamId(1), START, bytes, None, Waiting::Commits).await.expect("queued");
            store.change(Change::Settle).await.expect("settled");
            assert!(Reset::look(directory.path()).is_err(), "an instance has it");
        }
        let pg2 = "pg2".parse().expect("a name");
        {
            let slots = Slots::open(Files::open(directory.path()).expect("free")).expect("none yet");
            let restart = RestartPoint { timeline: TimelineId(1), lsn: START };
            slots.create("pg2", Persistent, Some(restart), 1).expect("a new slot");
            slots.save().expect("saved");
        }

        let reset = Reset::look(directory.path()).expect("a log");
        assert_eq!(reset.segments, ["000000010000000000000003", "000000010000000000000004"]);
        assert_eq!((reset.promised(), reset.lost_slots.as_slice()), (Term(7), &["pg2".to_owned()][..]));
        let aside = reset.aside.clone();
        assert!(!aside.exists(), "nothing is done yet");
        reset.carry_out().expect("it is ours");
        let kept = fs::read(aside.join("000000010000000000000003")).expect("moved aside");
        assert!(kept[..] == wal.bytes()[..1 << 20]);

        let slots = Slots::open(Files::open(directory.path()).expect("free")).expect("its own file");
        assert!(slots.status(&pg2).is_some_and(|slot| slot.is_lost()));
        drop(slots);
        let store = open(&directory);
        assert_eq!((store.system(), store.oldest(TimelineId(1))), (Some(SYSTEM), None));
        assert!(!store.tail().borrow().durable.is_valid());
        assert_eq!(store.report().borrow().promised, Term(7));
        let later = Lsn(0x90_0000);
        store.change(Change::Begin { timeline: TimelineId(1), start: later }).await.expect("an empty log");
    }
}
