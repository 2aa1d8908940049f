//! The segment store: one cluster's WAL in a directory of segment files that `pg_waldump` reads.
//!
//! Files carry PostgreSQL's names, are allocated at full size ahead of need, and are written by one thread
//! ([`writer`]). Readers see durable bytes only: the newest from memory ([`ring`]), older ones from the files.
//! Where the log ends after a restart is found by walking its records ([`recover`]).
//!
//! It does not talk to servers and does not know who reads: what slots pin is asked for through [`Pins`].

mod checked;
mod control;
mod discarded;
mod disk;
mod error;
mod files;
mod layout;
#[cfg(test)]
mod platter;
mod recover;
mod rewind;
mod ring;
mod spare;
mod standing;
#[cfg(test)]
mod stepped;
mod writer;

pub(crate) use checked::CheckedReader;
pub(crate) use control::Control;
pub(crate) use disk::fill;
#[cfg(test)]
pub(crate) use disk::{Disk, DiskFile};
pub(crate) use error::StoreError;
pub(crate) use files::{Files, LockHeld, SPARE_PREFIX};
#[cfg(test)]
pub(crate) use platter::Platter;
pub(crate) use rewind::Rewind;
pub(crate) use standing::Standing;
#[cfg(test)]
pub(crate) use stepped::Stepped;
pub(crate) use writer::{Change, Room, Waiting};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use self::files::Segment;
use self::rewind::Rewound;
use self::ring::Ring;
use self::writer::{Command, Writer};
use super::metrics::Metrics;
use crate::pg::wal::{History, SegmentFile, VerifyError, WalSegmentSize, parse_history_file_name};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::Term;

/// Commands waiting for the writer. When full, the stream is not read on.
const QUEUE_COMMANDS: usize = 4096;
/// WAL waiting for the writer, in units of [`QUEUE_UNIT`]. When full, the stream is not read on.
const QUEUE_UNITS: usize = 32 << 10;
const QUEUE_UNIT: usize = 1 << 10;

/// The oldest LSN that somebody still needs.
pub(crate) type Pins = Box<dyn Fn(&Kept) -> Option<Lsn> + Send + Sync>;

/// What the store has when it asks what must stay.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) segment_size: WalSegmentSize,
    /// In the order of the log.
    pub(crate) segments: Vec<SegmentFile>,
    pub(crate) room: Room,
}

impl Kept {
    /// Start of the oldest segment.
    pub(crate) fn oldest(&self) -> Option<Lsn> {
        self.segments.first().map(|segment| self.segment_size.start(segment.number))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct StoreConfig {
    /// Kept behind the durable end beside what slots pin.
    pub(crate) retain_bytes: u64,
    /// Durable WAL kept in memory for followers that are close.
    pub(crate) ring_bytes: usize,
}

/// The durable WAL of one cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    queue: Arc<Semaphore>,
}

/// What the writer shares with the readers.
struct Shared {
    files: Files,
    state: Mutex<State>,
    /// Both are changed by the writer at once, and announced by [`Store::announce`].
    tail: watch::Sender<Tail>,
    report: watch::Sender<Report>,
    moved: Arc<Notify>,
    failed: watch::Sender<Option<Arc<StoreError>>>,
    pins: OnceLock<Pins>,
    /// Kept behind the durable end beside what slots pin.
    retain_bytes: AtomicU64,
}

impl Shared {
    /// Seen by who looks from now on; who waits is woken by [`Store::announce`].
    fn change_report(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_if_modified(|report| {
            change(report);
            false
        });
        self.moved.notify_one();
    }

    /// What `read` makes of the segment's file. Blocks.
    fn read_segment<T>(
        &self,
        segment: SegmentFile,
        read: impl FnOnce(Segment) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let name = segment.name(self.state.lock().segment_size);
        let read = match self.files.open_segment(&name) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Removed { segment: name });
            }
            opened => opened.and_then(read),
        };
        // Retention may have made another segment of the file while it was read.
        if self.state.lock().segments.contains(&segment) {
            read
        } else {
            Err(StoreError::Removed { segment: name })
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("files", &self.files).field("tail", &*self.tail.borrow()).finish()
    }
}

/// Held for a few instructions at a time.
struct State {
    system: Option<SystemIdentifier>,
    segment_size: WalSegmentSize,
    parameters: Arc<Vec<(String, String)>>,
    histories: BTreeMap<TimelineId, Bytes>,
    history: Arc<History>,
    segments: BTreeSet<SegmentFile>,
    /// Of `segments`; what was wrong with them when a follower needed them.
    damaged: BTreeMap<SegmentFile, VerifyError>,
    ring: Ring,
}

impl State {
    fn rewound(&mut self, rewound: &Rewound) {
        for segment in &rewound.removed {
            self.segments.remove(segment);
            self.damaged.remove(segment);
        }
        self.segments.insert(rewound.last);
        for timeline in &rewound.forgotten {
            self.histories.remove(timeline);
        }
    }
}

/// How far the store reaches. Published after every fsync and every change of timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tail {
    pub(crate) timeline: TimelineId,
    pub(crate) durable: Lsn,
}

/// Names one upstream connection, so that what is left of an old one in the queue is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId(pub(crate) u64);

/// What the receiver must know of the writer.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) tail: Tail,
    /// <= durable.
    pub(crate) verified: Lsn,
    pub(crate) promised: Term,
    pub(crate) standing: Standing,
    pub(crate) room: Room,
    /// The stream that was written last, and up to where what it sent on this timeline is what is stored;
    /// <= durable.
    agreed: Option<(StreamId, Lsn)>,
    /// The stream whose WAL did not fit, and why.
    pub(crate) refused: Option<(StreamId, Arc<StoreError>)>,
}

impl Report {
    /// The term in which the log counts now.
    pub(crate) fn log_term(&self) -> Term {
        self.standing.term((self.tail.timeline, self.tail.durable))
    }

    /// Whether what `stream`, of `term`, has sent shows that the log is in the history of that term, which was in doubt.
    pub(crate) fn is_shown_by(&self, stream: StreamId, term: Term) -> bool {
        let end = (self.tail.timeline, self.tail.durable);
        self.agreed_with(stream).is_some_and(|agreed| self.standing.is_shown(term, agreed, end))
    }

    /// How far the store has what `stream` sent: written, or found there and the same; and synced.
    pub(crate) fn agreed_with(&self, stream: StreamId) -> Option<Lsn> {
        self.agreed.filter(|(of, _)| *of == stream).map(|(_, lsn)| lsn)
    }
}

impl Store {
    /// Opens or creates the store, finds its end and starts its writer.
    pub(crate) fn open(files: Files, config: &StoreConfig, metrics: &Metrics) -> Result<Store, StoreError> {
        let (store, writer) = Store::prepare(files, config, metrics)?;
        start_writer(writer)?;
        Ok(store)
    }

    /// Everything but the thread.
    fn prepare(files: Files, config: &StoreConfig, metrics: &Metrics) -> Result<(Store, Writer), StoreError> {
        let opened = Opened::read(&files, config)?;
        let (durable, timeline) = (opened.durable, opened.control.timeline);
        let tail = Tail { timeline, durable };
        metrics.durable_lsn.set(i64::try_from(durable.0).unwrap_or(i64::MAX));
        let report = Report {
            tail,
            verified: durable,
            promised: opened.control.promised,
            standing: opened.control.standing,
            room: Room::Enough,
            agreed: None,
            refused: None,
        };
        let shared = Arc::new(Shared {
            files: files.clone(),
            state: Mutex::new(opened.state),
            tail: watch::Sender::new(tail),
            report: watch::Sender::new(report),
            moved: Arc::default(),
            failed: watch::Sender::new(None),
            pins: OnceLock::new(),
            retain_bytes: AtomicU64::new(config.retain_bytes),
        });
        let (commands, receiver) = mpsc::channel(QUEUE_COMMANDS);
        let writer = Writer {
            commands: receiver,
            files,
            shared: shared.clone(),
            metrics: metrics.clone(),
            control: opened.control,
            end: durable,
            durable,
            verified: durable,
            agreed: None,
            synced_at: None,
            spares: None,
            recycled: opened.spares,
            recycled_count: 0,
            current: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            wanted: config.ring_bytes,
            refused: None,
            room: Room::Enough,
            unanswered: None,
        };
        let store = Store { shared, commands, queue: Arc::new(Semaphore::new(QUEUE_UNITS)) };
        Ok((store, writer))
    }

    /// Wakes whoever waits for the tail or the report, as long as it runs. To wake a task of another thread takes
    /// a system call, to wake one of the own thread none: so the writer, after each of its syncs, wakes this task
    /// alone, which belongs on the thread of the others.
    pub(crate) fn announce(&self) -> impl Future<Output = ()> + use<> {
        // It does not keep the store open.
        let (shared, moved) = (Arc::downgrade(&self.shared), self.shared.moved.clone());
        async move {
            loop {
                moved.notified().await;
                let Some(shared) = shared.upgrade() else { return };
                shared.tail.send_modify(|_| {});
                shared.report.send_modify(|_| {});
            }
        }
    }

    /// The directory is another process's to open once nothing of this store is left.
    pub(crate) fn lock_held(&self) -> LockHeld {
        self.shared.files.lock_held()
    }

    /// How far followers may be served: to the end of the last whole durable record. The first half of one may be all
    /// that there ever is of it, and a standby that holds it across a segment's end waits for the rest, on the new
    /// timeline too (`XLogPageRead` in xlogrecovery.c), until that has come as far by itself.
    pub(crate) fn tail(&self) -> watch::Receiver<Tail> {
        self.shared.tail.subscribe()
    }

    /// `None` until the first upstream was seen.
    pub(crate) fn system(&self) -> Option<SystemIdentifier> {
        self.shared.state.lock().system
    }

    pub(crate) fn segment_size(&self) -> WalSegmentSize {
        self.shared.state.lock().segment_size
    }

    /// The history file of `timeline`, byte for byte as its server wrote it.
    pub(crate) fn history_file(&self, timeline: TimelineId) -> Option<Bytes> {
        self.shared.state.lock().histories.get(&timeline).cloned()
    }

    /// All history files that are kept.
    pub(crate) fn histories(&self) -> BTreeMap<TimelineId, Bytes> {
        self.shared.state.lock().histories.clone()
    }

    /// The ancestry of the current timeline.
    pub(crate) fn history(&self) -> Arc<History> {
        self.shared.state.lock().history.clone()
    }

    /// The ancestry of any timeline whose history is kept. Without its file it has none.
    pub(crate) fn history_of(&self, timeline: TimelineId) -> Result<Arc<History>, StoreError> {
        let current = self.history();
        if current.timeline() == timeline {
            return Ok(current);
        }
        let history = match self.history_file(timeline) {
            Some(content) => History::parse(timeline, &content)
                .map_err(|source| StoreError::History { timeline, source })?,
            None => History::without_ancestors(timeline),
        };
        Ok(Arc::new(history))
    }

    /// Start of the oldest segment kept for `timeline`.
    pub(crate) fn oldest(&self, timeline: TimelineId) -> Option<Lsn> {
        let state = self.shared.state.lock();
        let oldest = state.segments.iter().find(|segment| segment.timeline == timeline)?;
        Some(state.segment_size.start(oldest.number))
    }

    /// Start of the oldest segment kept for anybody; 0/0 of an empty log.
    pub(crate) fn oldest_kept(&self) -> Lsn {
        let state = self.shared.state.lock();
        let oldest = state.segments.iter().map(|segment| segment.number).min();
        oldest.map_or(Lsn::INVALID, |number| state.segment_size.start(number))
    }

    /// Segments that a follower needed and that were not what they should be, and why.
    pub(crate) fn damaged(&self) -> Vec<(String, VerifyError)> {
        let state = self.shared.state.lock();
        let size = state.segment_size;
        state.damaged.iter().map(|(segment, defect)| (segment.name(size), *defect)).collect()
    }

    /// Up to `max` durable bytes at `from` out of memory; `None` when they are not (or not yet) there.
    pub(crate) fn recent(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        self.shared.state.lock().ring.get(timeline, from, max)
    }

    /// Up to `max` durable bytes at `from` out of the segment file, within one segment; empty at the end of
    /// what `timeline` has.
    pub(crate) async fn read(
        &self,
        timeline: TimelineId,
        from: Lsn,
        max: usize,
    ) -> Result<Bytes, StoreError> {
        let (segment, size, len) = match self.locate(timeline, from, max)? {
            Some(place) => place,
            None => return Ok(Bytes::new()),
        };
        let shared = self.shared.clone();
        let read = move || shared.read_segment(segment, |mut file| file.read(size.offset(from), len));
        let bytes = tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Stopped)?;
        bytes.map(Bytes::from)
    }

    /// The ParameterStatus set of the last upstream.
    pub(crate) fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        self.shared.state.lock().parameters.clone()
    }

    /// What slots pin is asked for through this whenever a segment is finished. Set once.
    pub(crate) fn set_pins(&self, pins: Pins) {
        if self.shared.pins.set(pins).is_err() {
            tracing::error!("what slots pin was set twice; the first stays");
        }
    }

    /// From the next finished segment on so much is kept behind the durable end.
    pub(crate) fn retain(&self, bytes: u64) {
        self.shared.retain_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn report(&self) -> watch::Receiver<Report> {
        self.shared.report.subscribe()
    }

    /// Set once, when the writer has met what it must not go on after.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<Arc<StoreError>>> {
        self.shared.failed.subscribe()
    }

    /// Hands over streamed WAL; waits while the queue is full. `verified` is how far the records in it and
    /// before it are known to be good. What does not fit shows in [`Store::report`].
    pub(crate) async fn append(
        &self,
        stream: StreamId,
        at: Lsn,
        bytes: Bytes,
        verified: Option<Lsn>,
        waiting: Waiting,
    ) -> Result<(), StoreError> {
        let units = bytes.len().div_ceil(QUEUE_UNIT).clamp(1, QUEUE_UNITS);
        let units = u32::try_from(units).expect("the whole queue has fewer");
        let permit = self.queue.clone().acquire_many_owned(units).await.map_err(|_| StoreError::Stopped)?;
        let command = Command::Append { stream, at, bytes, verified, waiting, _permit: permit };
        self.commands.send(command).await.map_err(|_| StoreError::Stopped)
    }

    /// Makes a change durable, behind all WAL handed over before.
    pub(crate) async fn change(&self, change: Change) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Change { change, done }).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Where bytes at `from` are; `None` when `timeline` has none there (yet).
    fn locate(
        &self,
        timeline: TimelineId,
        from: Lsn,
        max: usize,
    ) -> Result<Option<(SegmentFile, WalSegmentSize, usize)>, StoreError> {
        let tail = *self.shared.tail.borrow();
        let state = self.shared.state.lock();
        let size = state.segment_size;
        let number = size.segment(from);
        let end =
            if timeline == tail.timeline { Some(tail.durable) } else { state.history.switchpoint(timeline) };
        let removed = || StoreError::Removed { segment: SegmentFile { timeline, number }.name(size) };
        let end = end.ok_or_else(removed)?;
        if from >= end {
            return Ok(None);
        }
        // The fork segment of an ancestor may be there only as its descendant's; up to the switchpoint they
        // are the same.
        let mut holder = timeline;
        loop {
            let segment = SegmentFile { timeline: holder, number };
            if state.segments.contains(&segment) {
                let within = layout::within_segment(from, max, size);
                let len = within.min(usize::try_from(end.bytes_since(from)).unwrap_or(usize::MAX));
                return Ok(Some((segment, size, len)));
            }
            let (next, switchpoint) = state.history.next(holder).ok_or_else(removed)?;
            if size.segment(switchpoint) != number {
                return Err(removed());
            }
            holder = next;
        }
    }
}

/// What was found in the directory.
struct Opened {
    control: Control,
    durable: Lsn,
    state: State,
    spares: VecDeque<String>,
}

impl Opened {
    fn read(files: &Files, config: &StoreConfig) -> Result<Opened, StoreError> {
        let names = files.names()?;
        let mut control = match files.read_whole(Control::FILE_NAME)? {
            Some(content) => decode_control(&content)?,
            None => Control::default(),
        };
        let size = control.segment_size();
        let mut segments: BTreeSet<SegmentFile> = names
            .iter()
            .filter(|name| name.len() == 24)
            .filter_map(|name| SegmentFile::parse(name, size))
            .collect();
        if control.system.is_none() && !segments.is_empty() {
            return Err(StoreError::NoControl { directory: files.directory() });
        }
        let mut histories = read_histories(files, &names)?;
        let mut history = history_of(control.timeline, &histories)?;
        // First: what is to be done below may need their room.
        for spare in names.iter().filter(|name| name.starts_with(SPARE_PREFIX)) {
            files.remove(spare)?;
        }
        if let Some(rewind) = control.rewind {
            if let Some(discarded) = control.unsaved.take() {
                discarded.keep_aside(files, size, &history, |segment| segments.contains(segment))?;
                files.replace(Control::FILE_NAME, control.encode().as_bytes())?;
            }
            let rewound = rewind.carry_out(files, size, &history, &segments)?;
            segments.retain(|segment| !rewound.removed.contains(segment));
            segments.insert(rewound.last);
            histories.retain(|timeline, _| !rewound.forgotten.contains(timeline));
            control.rewound(rewind);
            files.replace(Control::FILE_NAME, control.encode().as_bytes())?;
            history = history_of(control.timeline, &histories)?;
        }
        let log = recover::Log { segment_size: size, system: control.system, history: &history };
        let end = recover::find_end(files, &log, &segments)?;
        for unused in &end.unused {
            segments.remove(unused);
            files.remove(&unused.name(size))?;
        }
        let state = State {
            system: control.system,
            segment_size: size,
            parameters: Arc::new(control.parameters.clone()),
            histories,
            history: Arc::new(history),
            segments,
            damaged: BTreeMap::new(),
            ring: Ring::new(control.timeline, config.ring_bytes),
        };
        Ok(Opened { control, durable: end.durable, state, spares: VecDeque::new() })
    }
}

fn history_of(timeline: TimelineId, histories: &BTreeMap<TimelineId, Bytes>) -> Result<History, StoreError> {
    let Some(content) = histories.get(&timeline) else { return Ok(History::without_ancestors(timeline)) };
    History::parse(timeline, content).map_err(|source| StoreError::History { timeline, source })
}

fn decode_control(content: &[u8]) -> Result<Control, StoreError> {
    let fail = |why| StoreError::Control { file: Control::FILE_NAME.to_owned(), why };
    Control::decode_bytes(content).map_err(fail)
}

fn read_histories(files: &Files, names: &[String]) -> Result<BTreeMap<TimelineId, Bytes>, StoreError> {
    let mut histories = BTreeMap::new();
    for name in names {
        let Some(timeline) = parse_history_file_name(name) else { continue };
        if let Some(content) = files.read_whole(name)? {
            histories.insert(timeline, Bytes::from(content));
        }
    }
    Ok(histories)
}

/// The writer's thread. How it ends is told through [`Store::failed`], also a panic, and before anybody sees that it has
/// ended.
fn start_writer(mut writer: Writer) -> Result<(), StoreError> {
    let shared = writer.shared.clone();
    let run = move || {
        let guard = FailOnDrop { shared: shared.clone(), armed: true };
        let result = writer.run();
        guard.disarm();
        if let Err(error) = result {
            shared.failed.send_replace(Some(Arc::new(error)));
        }
    };
    std::thread::Builder::new()
        .name("wal-sync".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(StoreError::io("start the thread of", "the WAL store"))
}

/// Turns a panic of the writer into a failure of the store.
struct FailOnDrop {
    shared: Arc<Shared>,
    armed: bool,
}

impl FailOnDrop {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        if self.armed {
            self.shared.failed.send_replace(Some(Arc::new(StoreError::Stopped)));
        }
    }
}

#[cfg(test)]
mod tests;
