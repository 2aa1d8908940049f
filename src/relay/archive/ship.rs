//! From the store to the archive: does what [`super::core`] finds due. A thread with a runtime of its own, since
//! compressing and the object store's TLS must not delay followers.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::check::{Claim, SegmentDefect, system_of};
use super::choose::Unknown;
use super::core::{BackOff, Due, Line, Partial, Shipping, Stretch, StretchState};
use super::layout::{Inventory, WAL, history_object, partial_object, segment_object};
use super::schedule::{self, Servers};
use super::storage::{Created, Storage, StorageError};
use super::{ArchiveConfig, Metrics};
use crate::pg::wal::{SegmentFile, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::explain;
use crate::relay::store::{Store, StoreError, Tail};
use crate::topology::{ArchiveStatus, UnknownBackup};

/// Read from the store at a time.
const READ: usize = 4 << 20;
/// The store is looked at at most so often: its end moves with every sync.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After a panic, which is a mistake of ours.
const REST: Duration = Duration::from_secs(60);
/// Threads for compression and files.
const BLOCKING_THREADS: usize = 8;

/// What the store may not remove. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Hold(Arc<AtomicU64>);

impl Hold {
    /// As long as it is not known what the archive has, everything.
    pub(in crate::relay) fn everything() -> Hold {
        Hold(Arc::new(AtomicU64::new(1)))
    }

    /// WAL before this position is archived.
    pub(in crate::relay) fn from(&self) -> Lsn {
        Lsn(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, from: Lsn) {
        self.0.store(from.0, Ordering::Relaxed);
    }
}

/// Where it says how far it is.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Outputs {
    pub(in crate::relay) hold: Hold,
    pub(in crate::relay) status: watch::Sender<Option<ArchiveStatus>>,
    pub(in crate::relay) metrics: Metrics,
}

impl Outputs {
    fn change(&self, change: impl FnOnce(&mut ArchiveStatus)) {
        let unknown = || ArchiveStatus { archived: Lsn::INVALID, trouble: None, unknown_backups: Vec::new() };
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status.get_or_insert_with(unknown));
            *status != before
        });
    }
}

impl Outputs {
    /// Base backups that hold back WAL for ever, since nobody knows how much of it they need. Told once each.
    pub(super) fn not_understood(&self, backups: &[Unknown]) {
        self.metrics.unknown_backups.set(i64::try_from(backups.len()).unwrap_or(i64::MAX));
        let told =
            self.status.borrow().as_ref().map_or_else(Vec::new, |status| status.unknown_backups.clone());
        let unknown: Vec<UnknownBackup> = backups.iter().map(UnknownBackup::from).collect();
        if unknown == told {
            return;
        }
        for UnknownBackup { name, why } in unknown.iter().filter(|backup| !told.contains(backup)) {
            tracing::warn!(
                backup = name,
                error = why,
                "a base backup of the archive is not understood: all WAL from its begin on is kept"
            );
        }
        self.change(|status| status.unknown_backups = unknown);
    }
}

impl From<&Unknown> for UnknownBackup {
    fn from(unknown: &Unknown) -> UnknownBackup {
        UnknownBackup { name: unknown.name.as_str().to_owned(), why: unknown.why.clone() }
    }
}

/// What there is to archive.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Wal {
    pub(in crate::relay) store: Store,
    /// How far it may leave: what lies behind may be in no history, and its segment would have the name of one that is.
    pub(in crate::relay) shipped: watch::Receiver<Tail>,
}

/// Archives until `stop`. It never ends by itself.
pub(in crate::relay) fn start(
    config: ArchiveConfig,
    wal: Wal,
    servers: Servers,
    outputs: Outputs,
    stop: CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("archive-work")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let ship = Ship { config, store: wal.store, shipped: wal.shipped, outputs };
    let run = move || {
        runtime.block_on(supervise(ship, servers, stop));
        // What is being compressed is of no use to anybody.
        runtime.shutdown_background();
    };
    thread::Builder::new().name("archive".to_owned()).spawn(run).map(drop)
}

/// A panic costs the archive a minute and nobody else anything.
async fn supervise(ship: Ship, servers: Servers, stop: CancellationToken) {
    loop {
        let mut task = JoinSet::new();
        task.spawn(ship.clone().run());
        if let Some(every) = ship.config.backups.every {
            task.spawn(schedule::run(ship.config.clone(), every, servers.clone(), ship.outputs.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            ended = task.join_next() => match ended {
                Some(Err(panic)) => {
                    ship.outputs.metrics.errors.with_label_values(&["panic"]).inc();
                    tracing::error!(error = %panic, "archiving failed");
                }
                Some(Ok(())) | None => return,
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REST) => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Ship {
    config: ArchiveConfig,
    store: Store,
    shipped: watch::Receiver<Tail>,
    outputs: Outputs,
}

/// Why something is not archived.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("read WAL for the archive")]
    Store(#[from] StoreError),
    #[error("WAL segment {segment} is not archived")]
    Segment {
        segment: String,
        #[source]
        source: SegmentDefect,
    },
    #[error("the archive is of system {found}, not of {expected}")]
    Foreign { found: SystemIdentifier, expected: SystemIdentifier },
    #[error("the thread that checks WAL has ended")]
    Thread,
}

impl ShipError {
    /// Told as the metric's label.
    fn reason(&self) -> &'static str {
        match self {
            ShipError::Storage(StorageError::Differs { .. }) => "differs",
            ShipError::Storage(_) => "storage",
            ShipError::Store(_) | ShipError::Thread => "store",
            ShipError::Segment { .. } => "corrupt",
            ShipError::Foreign { .. } => "foreign",
        }
    }

    /// Whether a person must look.
    fn is_alarm(&self) -> bool {
        match self {
            ShipError::Storage(error) => error.is_corruption(),
            ShipError::Segment { .. } | ShipError::Foreign { .. } => true,
            ShipError::Store(_) | ShipError::Thread => false,
        }
    }
}

/// Troubles are told once, and their end.
#[derive(Debug, Default)]
struct Trouble {
    told: Option<String>,
}

impl Trouble {
    fn failed(&mut self, error: &ShipError, outputs: &Outputs) {
        outputs.metrics.errors.with_label_values(&[error.reason()]).inc();
        let error_text = explain(error);
        if self.told.as_ref() == Some(&error_text) {
            return;
        }
        if error.is_alarm() {
            tracing::error!(error = error_text, "WAL is not archived");
        } else {
            tracing::warn!(error = error_text, "WAL is not archived; it is tried again");
        }
        outputs.change(|status| status.trouble = Some(error_text.clone()));
        self.told = Some(error_text);
    }

    fn succeeded(&mut self, outputs: &Outputs) {
        if self.told.take().is_some() {
            outputs.change(|status| status.trouble = None);
            tracing::info!("WAL is archived again");
        }
    }
}

impl Ship {
    async fn run(self) {
        let mut shipped = self.shipped.clone();
        if shipped.wait_for(|tail| tail.durable.is_valid()).await.is_err() {
            return;
        }
        let mut trouble = Trouble::default();
        let (storage, mut shipping) = self.begin(&mut trouble).await;
        loop {
            shipped.borrow_and_update();
            let due = match self.line() {
                Some(line) => self.turn(&storage, &mut shipping, &line, &mut trouble).await,
                None => Due::Nothing { until: None },
            };
            let Due::Nothing { until } = due else { continue };
            tokio::time::sleep(LOOK_AGAIN).await;
            let at = until.map(tokio::time::Instant::from_std);
            tokio::select! {
                changed = shipped.changed() => if changed.is_err() { return },
                () = async { match at { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {}
            }
        }
    }

    /// Opens the archive and learns what is in it, however long that takes.
    async fn begin(&self, trouble: &mut Trouble) -> (Storage, Shipping) {
        let mut back_off = BackOff::default();
        loop {
            match self.open().await {
                Ok(begun) => {
                    trouble.succeeded(&self.outputs);
                    return begun;
                }
                Err(error) => trouble.failed(&error, &self.outputs),
            }
            let now = Instant::now();
            back_off.failed(now);
            let until = back_off.until(now).unwrap_or(now);
            tokio::time::sleep_until(until.into()).await;
        }
    }

    async fn open(&self) -> Result<(Storage, Shipping), ShipError> {
        let storage = Storage::make(&self.config.url, self.config.level)?;
        let found = storage.list(WAL).await?;
        let names = found.iter().filter_map(|file| file.name.rsplit('/').next());
        let size = self.store.segment_size();
        let inventory = Inventory::read(names, size);
        self.check_system(&storage, &inventory, size).await?;
        let line = loop {
            match self.line() {
                Some(line) => break line,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        tracing::info!(
            archive = %self.config.url,
            segments = inventory.segments.len(),
            "the archive is open"
        );
        let shipping = Shipping::new(self.config.partial_interval, &inventory, &line);
        Ok((storage, shipping))
    }

    /// Another cluster's archive is left alone.
    async fn check_system(
        &self,
        storage: &Storage,
        inventory: &Inventory,
        size: WalSegmentSize,
    ) -> Result<(), ShipError> {
        let (Some(newest), Some(expected)) = (inventory.segments.last(), self.store.system()) else {
            return Ok(());
        };
        let bytes = storage.get(&segment_object(*newest, size)).await?.unwrap_or_default();
        match system_of(&bytes) {
            Some(found) if found != expected => Err(ShipError::Foreign { found, expected }),
            _ => Ok(()),
        }
    }

    /// The store's WAL now, as far as it may leave; `None`: the history of its timeline cannot be read.
    fn line(&self) -> Option<Line> {
        let tail = *self.shipped.borrow();
        let history = self.store.history_of(tail.timeline).ok()?;
        let histories = self.store.histories();
        let stretch = |timeline, end, state| Stretch {
            timeline,
            history: histories.contains_key(&timeline),
            oldest: self.store.oldest(timeline),
            end,
            state,
        };
        let mut stretches: Vec<Stretch> = history
            .ancestors()
            .iter()
            .map(|past| stretch(past.timeline, past.switchpoint, StretchState::Ended))
            .collect();
        stretches.push(stretch(tail.timeline, tail.durable, StretchState::Open));
        Some(Line { size: self.store.segment_size(), stretches })
    }

    /// Does what is due; returns what it was.
    async fn turn(
        &self,
        storage: &Storage,
        shipping: &mut Shipping,
        line: &Line,
        trouble: &mut Trouble,
    ) -> Due {
        while let Some(hole) = shipping.hole(line) {
            self.outputs.metrics.missing.inc_by(hole.to.bytes_since(hole.from));
            tracing::error!(timeline = %hole.timeline, from = %hole.from, to = %hole.to,
                "WAL was removed before it was archived: the archive has a hole");
        }
        let due = shipping.due(Instant::now(), line);
        let done = match &due {
            Due::Nothing { .. } => {
                self.publish(shipping, line);
                return due;
            }
            Due::History(timeline) => self.ship_history(storage, shipping, *timeline).await,
            Due::Segments(segments) => self.ship_segments(storage, shipping, segments, line.size).await,
            Due::Partial(partial) => self.ship_partial(storage, shipping, *partial, line.size).await,
            Due::Removal(segment) => {
                self.remove_begun(storage, shipping, *segment, line.size).await;
                return due;
            }
        };
        match done {
            Ok(()) => trouble.succeeded(&self.outputs),
            Err(error) => {
                shipping.failed(Instant::now());
                trouble.failed(&error, &self.outputs);
            }
        }
        self.publish(shipping, line);
        due
    }

    fn publish(&self, shipping: &Shipping, line: &Line) {
        if let Some(from) = shipping.kept_from(line) {
            self.outputs.hold.set(from);
        }
        let archived = shipping.archived_up_to(line);
        let durable = line.stretches.last().map_or(Lsn::INVALID, |stretch| stretch.end);
        self.outputs.change(|status| status.archived = archived);
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.outputs.metrics.lsn.set(gauge(archived.0));
        self.outputs.metrics.lag.set(gauge(durable.bytes_since(archived)));
    }

    async fn ship_history(
        &self,
        storage: &Storage,
        shipping: &mut Shipping,
        timeline: TimelineId,
    ) -> Result<(), ShipError> {
        // The store never removes one.
        let content = self.store.history_file(timeline).unwrap_or_default();
        let created = storage.create(&history_object(timeline), content).await?;
        self.count("history", created);
        shipping.archived_history(timeline);
        Ok(())
    }

    /// All at once; what counts is the part without a failure before it.
    async fn ship_segments(
        &self,
        storage: &Storage,
        shipping: &mut Shipping,
        segments: &[SegmentFile],
        size: WalSegmentSize,
    ) -> Result<(), ShipError> {
        let shipped =
            join_all(segments.iter().map(|segment| self.ship_segment(storage, *segment, size))).await;
        for (segment, shipped) in segments.iter().zip(shipped) {
            self.count("segment", shipped?);
            shipping.archived_segment(*segment);
        }
        Ok(())
    }

    /// It is in nobody's way: who recovers asks for the finished one first.
    async fn remove_begun(
        &self,
        storage: &Storage,
        shipping: &mut Shipping,
        segment: SegmentFile,
        size: WalSegmentSize,
    ) {
        let Err(error) = storage.remove(&partial_object(segment, size)).await else {
            return shipping.removed(segment);
        };
        self.outputs.metrics.errors.with_label_values(&["remove"]).inc();
        if shipping.not_removed(Instant::now()) == 0 {
            let error = explain(&error);
            tracing::warn!(error, "the begun part of an archived segment stays; it is tried again");
        }
    }

    async fn ship_segment(
        &self,
        storage: &Storage,
        segment: SegmentFile,
        size: WalSegmentSize,
    ) -> Result<Created, ShipError> {
        let bytes = self.read(segment, size.end(segment.number), size).await?;
        let (claim, checked) = (self.claim(segment, size), bytes.clone());
        self.check(segment, size, move || claim.check_whole(&checked)).await?;
        Ok(storage.create(&segment_object(segment, size), bytes).await?)
    }

    async fn ship_partial(
        &self,
        storage: &Storage,
        shipping: &mut Shipping,
        partial: Partial,
        size: WalSegmentSize,
    ) -> Result<(), ShipError> {
        let Partial { segment, upto } = partial;
        let mut bytes = BytesMut::from(self.read(segment, upto, size).await?);
        let (claim, checked) = (self.claim(segment, size), bytes.clone());
        match self.check(segment, size, move || claim.check_begun(&checked).map(drop)).await {
            Ok(()) => {
                // As pg_receivewal leaves it: of a segment's full size.
                bytes.resize(usize::try_from(size.bytes()).expect("a segment fits into memory"), 0);
                let put = storage.replace(&partial_object(segment, size), bytes.freeze()).await?;
                self.count("partial", Created::New(put));
            }
            // Nothing of it could be replayed without the next one.
            Err(ShipError::Segment { source: SegmentDefect::Empty, .. }) => {}
            Err(error) => return Err(error),
        }
        shipping.archived_partial(Instant::now(), partial);
        Ok(())
    }

    fn count(&self, kind: &'static str, created: Created) {
        if let Created::New(bytes) = created {
            self.outputs.metrics.objects.with_label_values(&[kind]).inc();
            self.outputs.metrics.bytes.inc_by(bytes);
        }
    }

    fn claim(&self, segment: SegmentFile, size: WalSegmentSize) -> Claim {
        let history = self.store.history();
        let before = history.ancestors().iter().rev().find(|past| past.timeline < segment.timeline);
        let begin = before.map_or(Lsn::INVALID, |past| past.switchpoint);
        Claim { segment, size, begin, system: self.store.system() }
    }

    async fn check(
        &self,
        segment: SegmentFile,
        size: WalSegmentSize,
        check: impl FnOnce() -> Result<(), SegmentDefect> + Send + 'static,
    ) -> Result<(), ShipError> {
        let checked = tokio::task::spawn_blocking(check).await.map_err(|_| ShipError::Thread)?;
        checked.map_err(|source| ShipError::Segment { segment: segment.name(size), source })
    }

    /// The segment from its begin up to `end`, out of the store.
    async fn read(&self, segment: SegmentFile, end: Lsn, size: WalSegmentSize) -> Result<Bytes, StoreError> {
        let start = size.start(segment.number);
        let wanted = usize::try_from(end.bytes_since(start)).expect("a segment fits into memory");
        let mut bytes = BytesMut::with_capacity(wanted);
        while bytes.len() < wanted {
            let at = start.advanced(bytes.len() as u64);
            let read = self.store.read(segment.timeline, at, READ.min(wanted - bytes.len())).await?;
            if read.is_empty() {
                return Err(StoreError::Removed { segment: segment.name(size) });
            }
            bytes.extend_from_slice(&read);
        }
        Ok(bytes.freeze())
    }
}
