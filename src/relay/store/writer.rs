//! The thread that owns the log's end: it alone writes, syncs and moves the durable LSN.
//!
//! Group commit: everything that has been handed over while a sync ran is written, then one `fdatasync` covers
//! it, then the durable LSN moves. Where no commit waits for it, syncs keep a distance ([`PACE`]). A failed sync is
//! never tried again, since the kernel may have dropped the pages it could not write: the thread ends, and with it
//! the WAL plane. A full disk is different: it is met before a sync, mostly while a segment is allocated, and no byte that
//! anybody was told of depends on what it refused. The thread waits and tries again, nothing is acknowledged meanwhile,
//! and the upstream keeps what we lack.
#![expect(clippy::disallowed_methods, reason = "shell: measures how long a sync takes")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver as SpareReceiver;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::control::Control;
use super::discarded::Discarded;
use super::files::{Files, SPARE_PREFIX, Segment};
use super::layout::{first_kept, place, within_segment};
use super::rewind::Rewind;
use super::{Kept, Report, Shared, StoreError, StreamId, Tail};
use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize, history_file_name};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::metrics::Metrics;
use crate::topology::{Floor, Term};

/// Bytes written at most before they are synced, so that the durable LSN moves while a long catch-up runs.
const GROUP_BYTES: usize = 8 << 20;

/// From the begin of one sync to that of the next, at least, where no commit waits. Every sync is a message to each
/// follower, and their answers; but a follower's lag grows by as much as this (measured: "What the WAL path costs" in
/// ARCHITECTURE.md).
const PACE: Duration = Duration::from_millis(1);

/// Old segments kept for use as new ones; further ones are removed.
const MAX_RECYCLED: usize = 4;

#[derive(Debug)]
pub(super) enum Command {
    Append {
        stream: StreamId,
        at: Lsn,
        bytes: Bytes,
        verified: Option<Lsn>,
        waiting: Waiting,
        _permit: OwnedSemaphorePermit,
    },
    Change {
        change: Change,
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// Who waits until WAL is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Synchronous ones at the upstream, or a change's caller.
    Commits,
    Nobody,
}

/// What else is made durable, in order with the WAL before and after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The first contact with a cluster: whose WAL this store is for.
    Adopt {
        system: SystemIdentifier,
        segment_size: WalSegmentSize,
    },
    /// An empty log begins at the start of a segment.
    Begin {
        timeline: TimelineId,
        start: Lsn,
    },
    KeepHistory {
        timeline: TimelineId,
        content: Bytes,
    },
    /// The log goes on on `timeline`, which forked at `switchpoint`; its history file is kept already.
    Follow {
        timeline: TimelineId,
        switchpoint: Lsn,
    },
    /// The log leaves its timeline, which is nobody's history.
    Rewind(Rewind),
    Promise(Term),
    /// What the log must have reached to count in `term`.
    Floor {
        term: Term,
        floor: Floor,
    },
    /// A stream of `term` has shown that the log is in its history.
    Shown(Term),
    /// Nothing but the order: what was handed over before is durable afterwards.
    Settle,
    Parameters(Vec<(String, String)>),
}

/// A segment allocated ahead of need.
pub(super) type Spare = Result<String, StoreError>;

pub(super) struct Writer {
    /// Closed once every [`super::Store`] is gone.
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) files: Files,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Metrics,
    pub(super) control: Control,
    /// durable <= end; bytes up to `end` are written, those up to `durable` synced.
    pub(super) end: Lsn,
    pub(super) durable: Lsn,
    /// When the last sync began.
    pub(super) synced_at: Option<Instant>,
    /// <= durable when published.
    pub(super) verified: Lsn,
    /// What this stream sent on this timeline up to here is what is stored; <= end.
    pub(super) agreed: Option<(StreamId, Lsn)>,
    /// Starts the thread that allocates segments, once their size is known.
    pub(super) spares: Option<SpareReceiver<Spare>>,
    pub(super) recycled: VecDeque<String>,
    pub(super) recycled_count: u64,
    pub(super) current: Option<(SegmentFile, Segment)>,
    /// The newest of what is written and not synced yet, as much as the ring wants.
    pub(super) pending: VecDeque<(Lsn, Bytes)>,
    pub(super) pending_bytes: usize,
    /// What the ring wanted last.
    pub(super) wanted: usize,
    /// A stream that offered what does not fit; the rest of it is ignored.
    pub(super) refused: Option<StreamId>,
    pub(super) room: Room,
    /// Who waits for the change at which it ended: not let go before others can see why.
    pub(super) unanswered: Option<oneshot::Sender<Result<(), StoreError>>>,
}

/// Whether the disk has room, as far as the writer has met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    None,
}

impl Command {
    fn waiting(&self) -> Waiting {
        match self {
            Command::Append { waiting, .. } => *waiting,
            Command::Change { .. } => Waiting::Commits,
        }
    }
}

/// How long what has come may lie, while more comes, before it is written and synced.
fn pause(waiting: Waiting, since_sync: Option<Duration>) -> Duration {
    match (waiting, since_sync) {
        (Waiting::Nobody, Some(since)) => PACE.saturating_sub(since),
        (Waiting::Nobody, None) | (Waiting::Commits, _) => Duration::ZERO,
    }
}

impl Writer {
    /// Runs until every [`super::Store`] is gone, or until something fails that must not be tried again.
    pub(super) fn run(&mut self) -> Result<(), StoreError> {
        while let Some(command) = self.commands.blocking_recv() {
            match self.batch(command) {
                // What had no room was told to nobody.
                Err(StoreError::Stopped) if self.commands.is_closed() => break,
                done => done?,
            }
        }
        Ok(())
    }

    /// The command and what has come behind it, synced at once.
    fn batch(&mut self, first: Command) -> Result<(), StoreError> {
        let pause = pause(first.waiting(), self.synced_at.map(|at| at.elapsed()));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let mut written = self.obey(first)?;
        while written < GROUP_BYTES {
            let Ok(command) = self.commands.try_recv() else { break };
            written += self.obey(command)?;
        }
        self.sync()
    }

    /// Returns how many bytes it took.
    pub(super) fn obey(&mut self, command: Command) -> Result<usize, StoreError> {
        match command {
            Command::Append { stream, .. } if self.refused == Some(stream) => Ok(0),
            Command::Append { stream, at, bytes, verified, waiting: _, _permit } => {
                let len = bytes.len();
                match self.append(at, &bytes) {
                    Ok(()) => {
                        self.verified = self.verified.max(verified.unwrap_or(Lsn::INVALID));
                        self.agreed = Some((stream, at.advanced(len as u64)));
                    }
                    Err(e) if e.concerns_stream_only() => self.refuse(stream, e),
                    Err(e) => return Err(e),
                }
                Ok(len)
            }
            Command::Change { change, done } => {
                match self.sync().and_then(|()| self.change(change)) {
                    Err(e) if !e.concerns_stream_only() => {
                        self.unanswered = Some(done);
                        return Err(e);
                    }
                    // Nobody waits any more when the receiver was dropped; the change stands.
                    answer => drop(done.send(answer)),
                }
                Ok(0)
            }
        }
    }

    fn refuse(&mut self, stream: StreamId, error: StoreError) {
        self.refused = Some(stream);
        self.shared.change_report(|report| report.refused = Some((stream, Arc::new(error))));
    }

    fn append(&mut self, at: Lsn, bytes: &Bytes) -> Result<(), StoreError> {
        let placement = place(at, bytes.len(), self.end)?;
        if placement.compare > 0 {
            self.compare(at, &bytes[..placement.compare])?;
        }
        if placement.append == 0 {
            return Ok(());
        }
        let fresh = bytes.slice(placement.compare..);
        let size = self.control.segment_size();
        let mut rest = &fresh[..];
        let begin = self.end;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(within_segment(self.end, rest.len(), size));
            self.write_segment(size.segment(self.end), size.offset(self.end), now)?;
            self.end = self.end.advanced(now.len() as u64);
            rest = later;
        }
        self.pending_bytes += fresh.len();
        self.pending.push_back((begin, fresh));
        while self.pending_bytes > self.wanted {
            let Some((_, oldest)) = self.pending.pop_front() else { break };
            self.pending_bytes -= oldest.len();
        }
        Ok(())
    }

    /// What is stored must be what the upstream sends again.
    fn compare(&self, at: Lsn, offered: &[u8]) -> Result<(), StoreError> {
        let size = self.control.segment_size();
        let mut at = at;
        let mut rest = offered;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(within_segment(at, rest.len(), size));
            let segment = SegmentFile { timeline: self.control.timeline, number: size.segment(at) };
            let file = self.files.open_segment(&segment.name(size))?;
            let mut stored = vec![0; now.len()];
            let read = file.read_at(&mut stored, size.offset(at))?;
            let same = stored[..read].iter().zip(now).take_while(|(a, b)| a == b).count();
            if same < now.len() {
                let lsn = at.advanced(same as u64);
                return Err(StoreError::Diverged { timeline: segment.timeline, lsn });
            }
            at = at.advanced(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn write_segment(&mut self, number: SegmentNumber, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let wanted = SegmentFile { timeline: self.control.timeline, number };
        if self.current.as_ref().is_none_or(|(segment, _)| *segment != wanted) {
            // What is in a later segment proves the earlier one whole (see `recover`).
            self.sync()?;
            self.prune()?;
            let file = self.open_or_create(wanted)?;
            self.current = Some((wanted, file));
        }
        self.with_room(|this| {
            let (_, file) = this.current.as_ref().expect("set above");
            file.write_at(bytes, offset)
        })
    }

    fn open_or_create(&mut self, segment: SegmentFile) -> Result<Segment, StoreError> {
        let name = segment.name(self.control.segment_size());
        if !self.shared.state.lock().segments.contains(&segment) {
            let spare = self.take_spare()?;
            self.with_room(|this| this.files.rename(&spare, &name))?;
            self.shared.state.lock().segments.insert(segment);
        }
        self.files.open_segment(&name)
    }

    /// Waits while the disk is full.
    fn take_spare(&mut self) -> Result<String, StoreError> {
        let size = self.control.segment_size();
        loop {
            if let Some(recycled) = self.recycled.pop_front() {
                self.room_found();
                return Ok(recycled);
            }
            let files = &self.files;
            let spares = self.spares.get_or_insert_with(|| super::spare::start(files.clone(), size));
            match spares.recv().map_err(|_| StoreError::Stopped)? {
                Ok(name) => {
                    self.room_found();
                    return Ok(name);
                }
                Err(error) if error.is_disk_full() => self.make_room(&error)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Replaces a small file; until there is room the old content stands.
    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.with_room(|this| this.files.replace(name, content))
    }

    /// Waits while the disk is full: then what `attempt` does can be done again as if it had not been begun.
    fn with_room<T>(&mut self, attempt: impl Fn(&Writer) -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            match attempt(self) {
                Err(error) if error.is_disk_full() => {
                    self.make_room(&error)?;
                    // What is allocated ahead of need is room for what is needed now.
                    match self.recycled.pop_front() {
                        Some(spare) => self.files.remove(&spare)?,
                        None => std::thread::sleep(super::spare::RETRY),
                    }
                }
                done => {
                    self.room_found();
                    return done;
                }
            }
        }
    }

    /// What was needed when the last segment was finished may be needed no more, or give way now.
    fn make_room(&mut self, error: &StoreError) -> Result<(), StoreError> {
        self.room_missing(error);
        if self.commands.is_closed() {
            return Err(StoreError::Stopped);
        }
        self.prune()
    }

    /// Told once, until there is room again.
    fn room_missing(&mut self, error: &StoreError) {
        if self.room == Room::None {
            return;
        }
        tracing::warn!(error = error as &dyn std::error::Error, end = %self.end, "disk full: WAL is not acknowledged");
        self.room_is(Room::None);
    }

    fn room_found(&mut self) {
        if self.room == Room::None {
            tracing::info!("the disk has room again: WAL is acknowledged");
            self.room_is(Room::Enough);
        }
    }

    fn room_is(&mut self, room: Room) {
        self.room = room;
        self.metrics.disk_full.set(i64::from(room == Room::None));
        self.shared.change_report(|report| report.room = room);
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        if self.durable == self.end {
            // What was only compared is agreed on, too.
            if self.agreed != self.shared.report.borrow().agreed {
                self.publish();
            }
            return Ok(());
        }
        if let Some((_, file)) = &self.current {
            let began = Instant::now();
            self.synced_at = Some(began);
            file.sync_data()?;
            self.metrics.sync_seconds.observe(began.elapsed().as_secs_f64());
        }
        self.durable = self.end;
        {
            let mut state = self.shared.state.lock();
            for (at, bytes) in self.pending.drain(..) {
                state.ring.push(at, bytes);
            }
            self.pending_bytes = 0;
            self.wanted = state.ring.wanted();
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.metrics.durable_lsn.set(i64::try_from(self.durable.0).unwrap_or(i64::MAX));
        let tail = Tail { timeline: self.control.timeline, durable: self.durable };
        let verified = self.verified.min(self.durable);
        self.shared.tail.send_if_modified(|known| {
            *known = Tail { durable: verified, ..tail };
            false
        });
        self.shared.change_report(|report| {
            *report = Report {
                tail,
                verified,
                promised: self.control.promised,
                standing: self.control.standing,
                room: self.room,
                agreed: self.agreed,
                refused: report.refused.take(),
            };
        });
    }

    fn kept(&self) -> Kept {
        let segment_size = self.control.segment_size();
        let mut segments: Vec<SegmentFile> = self.shared.state.lock().segments.iter().copied().collect();
        segments.sort_unstable_by_key(|segment| (segment.number, segment.timeline));
        Kept { segment_size, segments, room: self.room }
    }

    /// Removes what nobody needs any more; the newest of it become segments again.
    fn prune(&mut self) -> Result<(), StoreError> {
        let size = self.control.segment_size();
        let mut kept = self.kept();
        let mut keep = self.first_kept(&kept);
        while let Some(old) = kept.segments.iter().find(|segment| segment.number < keep).copied() {
            // Out of the set first. A reader looks there again after it has read; who comes to need it says so first
            // and looks there then, and is either seen now or sees that it is gone.
            self.shared.state.lock().segments.remove(&old);
            keep = self.first_kept(&kept);
            if keep <= old.number {
                self.shared.state.lock().segments.insert(old);
                continue;
            }
            kept.segments.retain(|segment| *segment != old);
            self.shared.state.lock().damaged.remove(&old);
            let name = old.name(size);
            if self.recycled.len() < MAX_RECYCLED {
                self.recycle(&name)?;
            } else {
                self.files.remove(&name)?;
            }
        }
        Ok(())
    }

    fn recycle(&mut self, name: &str) -> Result<(), StoreError> {
        self.recycled_count += 1;
        let spare = format!("{SPARE_PREFIX}recycled.{}", self.recycled_count);
        match self.files.rename(name, &spare) {
            // A directory may have no room for a name either.
            Err(error) if error.is_disk_full() => self.files.remove(name),
            Ok(()) => {
                self.recycled.push_back(spare);
                Ok(())
            }
            failed => failed,
        }
    }

    fn first_kept(&self, kept: &Kept) -> SegmentNumber {
        let pinned = self.shared.pins.get().and_then(|pins| pins(kept));
        let retain_bytes = self.shared.retain_bytes.load(Ordering::Relaxed);
        first_kept(self.durable, retain_bytes, pinned, kept.segment_size)
    }

    fn change(&mut self, change: Change) -> Result<(), StoreError> {
        match change {
            Change::Adopt { system, segment_size } => {
                self.control.system = Some(system);
                self.control.set_segment_size(segment_size);
                self.save_control()?;
                let mut state = self.shared.state.lock();
                state.system = Some(system);
                state.segment_size = segment_size;
            }
            Change::Begin { timeline, start } => self.begin(timeline, start)?,
            Change::KeepHistory { timeline, content } => {
                self.replace(&history_file_name(timeline), &content)?;
                self.keep_history(timeline, content)?;
            }
            Change::Follow { timeline, switchpoint } => self.follow(timeline, switchpoint)?,
            Change::Rewind(rewind) => self.rewind(rewind)?,
            Change::Promise(term) => {
                self.control.promised = self.control.promised.max(term);
                self.save_control()?;
                self.publish();
            }
            Change::Floor { term, floor } => {
                let end = (self.control.timeline, self.durable);
                self.control.standing = self.control.standing.with(term, &floor, end);
                self.save_control()?;
                self.publish();
            }
            Change::Shown(term) => {
                self.control.standing = self.control.standing.shown(term);
                self.save_control()?;
                self.publish();
            }
            Change::Settle => {}
            Change::Parameters(parameters) => {
                self.control.parameters.clone_from(&parameters);
                self.save_control()?;
                self.shared.state.lock().parameters = Arc::new(parameters);
            }
        }
        Ok(())
    }

    /// That of the log's own timeline may have been missing from the directory.
    fn keep_history(&mut self, timeline: TimelineId, content: Bytes) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        if timeline == self.control.timeline {
            let history = History::parse(timeline, &content)
                .map_err(|source| StoreError::History { timeline, source })?;
            state.history = Arc::new(history);
        }
        state.histories.insert(timeline, content);
        Ok(())
    }

    fn begin(&mut self, timeline: TimelineId, start: Lsn) -> Result<(), StoreError> {
        if self.end.is_valid() {
            return Err(StoreError::Gap { offered: start, end: self.end });
        }
        self.control.timeline = timeline;
        self.save_control()?;
        (self.end, self.durable, self.verified) = (start, start, Lsn::INVALID);
        self.take_timeline(timeline)
    }

    /// The fork segment exists on both timelines; up to the switchpoint they are the same. Everything of the
    /// new timeline that a follower may ask for is durable before the timeline is announced.
    fn follow(&mut self, timeline: TimelineId, switchpoint: Lsn) -> Result<(), StoreError> {
        if switchpoint > self.end {
            return Err(StoreError::Gap { offered: switchpoint, end: self.end });
        }
        let size = self.control.segment_size();
        let prefix = size.offset(switchpoint);
        if prefix > 0 {
            let number = size.segment(switchpoint);
            let from = SegmentFile { timeline: self.control.timeline, number };
            let mut bytes = vec![0; usize::try_from(prefix).expect("a segment fits into memory")];
            self.files.open_segment(&from.name(size))?.read_at(&mut bytes, 0)?;
            let to = self.open_or_create(SegmentFile { timeline, number })?;
            self.with_room(|_| to.write_at(&bytes, 0))?;
            to.sync_data()?;
        }
        self.control.timeline = timeline;
        self.save_control()?;
        self.current = None;
        (self.end, self.durable) = (switchpoint, switchpoint);
        self.verified = self.verified.min(switchpoint);
        self.take_timeline(timeline)
    }

    fn rewind(&mut self, rewind: Rewind) -> Result<(), StoreError> {
        let size = self.control.segment_size();
        let (own, kept) = {
            let state = self.shared.state.lock();
            (state.history.clone(), state.segments.clone())
        };
        rewind.check(size, &own, &kept)?;
        let ends = (rewind.to, self.durable);
        let discarded = Discarded::find(&self.files, size, own.timeline(), ends)?;
        self.control.rewind = Some(rewind);
        self.control.unsaved.clone_from(&discarded);
        self.save_control()?;
        if let Some(discarded) = discarded {
            let is_there = |segment: &SegmentFile| kept.contains(segment);
            self.with_room(|this| discarded.keep_aside(&this.files, size, &own, is_there))?;
            self.control.unsaved = None;
            self.save_control()?;
        }
        let rewound = self.with_room(|this| rewind.carry_out(&this.files, size, &own, &kept))?;
        self.control.rewound(rewind);
        self.save_control()?;
        self.shared.state.lock().rewound(&rewound);
        self.current = None;
        (self.end, self.durable) = (rewind.to, rewind.to);
        self.verified = self.verified.min(rewind.to);
        self.take_timeline(rewind.timeline)
    }

    fn take_timeline(&mut self, timeline: TimelineId) -> Result<(), StoreError> {
        {
            let mut state = self.shared.state.lock();
            let history = match state.histories.get(&timeline) {
                Some(content) => History::parse(timeline, content)
                    .map_err(|source| StoreError::History { timeline, source })?,
                None => History::without_ancestors(timeline),
            };
            state.history = Arc::new(history);
            state.ring.restart(timeline);
        }
        self.agreed = None;
        self.publish();
        Ok(())
    }

    fn save_control(&mut self) -> Result<(), StoreError> {
        let content = self.control.encode();
        self.replace(Control::FILE_NAME, content.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PACE, Waiting, pause};

    #[test]
    fn only_what_nobody_waits_for_is_paced() {
        let (millis, micros) = (Duration::from_millis, Duration::from_micros);
        assert_eq!(pause(Waiting::Commits, Some(millis(0))), millis(0));
        assert_eq!(pause(Waiting::Nobody, Some(millis(0))), PACE);
        assert_eq!(pause(Waiting::Nobody, Some(micros(300))), PACE - micros(300));
        assert_eq!(pause(Waiting::Nobody, Some(millis(900))), millis(0), "after a silence at once");
        assert_eq!(pause(Waiting::Nobody, None), millis(0));
    }
}
