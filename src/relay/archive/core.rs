//! What of the store is due in the archive next, and what the store must still keep for it. PURE.
//!
//! The order is what makes any moment's archive one that can be recovered from: a history file before the first
//! segment of its timeline, an older timeline before its descendant, one segment after the other. The segment in which
//! a timeline ended is never finished: its part up to the switchpoint stays as `.partial`, as PostgreSQL archives it
//! itself at a promotion (`CleanupAfterArchiveRecovery`, xlog.c).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::layout::Inventory;
use crate::pg::wal::{SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};

/// Finished segments put at the same time; each is in memory whole, twice.
pub(super) const AT_ONCE: u64 = 4;
/// The same in bytes, for clusters with large segments. One is always allowed.
const BYTES_AT_ONCE: u64 = 64 << 20;

/// Between two attempts of what fails: from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The store's WAL, timeline by timeline, oldest first; the last one is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) size: WalSegmentSize,
    pub(super) stretches: Vec<Stretch>,
}

/// What the store holds of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) timeline: TimelineId,
    /// Whether the store has its history file; the first timeline has none.
    pub(super) history: bool,
    /// The begin of its oldest segment; `None`: the store has none of it.
    pub(super) oldest: Option<Lsn>,
    /// The end of the last whole durable record, which is as far as the store is read; where the timeline has ended,
    /// the switchpoint. A segment whose last record goes on is finished with that record.
    pub(super) end: Lsn,
    pub(super) state: StretchState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StretchState {
    Ended,
    /// It grows.
    Open,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    History(TimelineId),
    /// Finished ones, in order.
    Segments(Vec<SegmentFile>),
    /// The begun part of a segment.
    Partial(Partial),
    /// The begun part of a segment that is there whole is to be removed.
    Removal(SegmentFile),
    /// Nothing, before this moment or before the store has more.
    Nothing {
        until: Option<Instant>,
    },
}

/// `segment` up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partial {
    pub(super) segment: SegmentFile,
    pub(super) upto: Lsn,
}

/// WAL that the store had to give up before it was archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) timeline: TimelineId,
    pub(super) from: Lsn,
    pub(super) to: Lsn,
}

/// What is archived, and when to go on.
#[derive(Debug)]
pub(super) struct Shipping {
    partial_interval: Duration,
    histories: BTreeSet<TimelineId>,
    /// The first segment of a timeline that is not archived.
    next: BTreeMap<TimelineId, SegmentNumber>,
    /// The newest put of each timeline's begun segment, and when.
    partials: BTreeMap<TimelineId, (Partial, Instant)>,
    /// Begun segments that the archive has.
    begun: BTreeSet<SegmentFile>,
    /// Begun segments of which the archive has the finished ones, too.
    superseded: BTreeSet<SegmentFile>,
    back_off: BackOff,
    /// Of removals: an archive that does not let us remove anything is filled nevertheless.
    removals: BackOff,
}

impl Shipping {
    /// With what was found in the archive. Since it is filled in order, what lacks before the first segment that is
    /// there was removed by retention, and a timeline whose descendant is there was whole.
    pub(super) fn new(partial_interval: Duration, found: &Inventory, line: &Line) -> Shipping {
        let mut next = BTreeMap::new();
        let mut is_over = false;
        for stretch in line.stretches.iter().rev() {
            let Some(oldest) = stretch.oldest else { continue };
            let number = if is_over || ended_before(stretch, oldest, line.size, found) {
                line.size.segment(stretch.end).next()
            } else {
                first_missing(stretch.timeline, line.size.segment(oldest), found)
            };
            next.insert(stretch.timeline, number);
            is_over |= found.segments.iter().any(|segment| segment.timeline == stretch.timeline);
        }
        Shipping {
            partial_interval,
            histories: found.histories.clone(),
            next,
            partials: BTreeMap::new(),
            begun: found.partials.difference(&found.segments).copied().collect(),
            superseded: found.partials.intersection(&found.segments).copied().collect(),
            back_off: BackOff::default(),
            removals: BackOff::default(),
        }
    }

    pub(super) fn due(&self, now: Instant, line: &Line) -> Due {
        if let Some(until) = self.back_off.until(now) {
            return Due::Nothing { until: Some(until) };
        }
        for stretch in &line.stretches {
            if stretch.history && !self.histories.contains(&stretch.timeline) {
                return Due::History(stretch.timeline);
            }
            let finished = self.finished(stretch, line.size);
            if !finished.is_empty() {
                return Due::Segments(finished);
            }
            if let Some(partial) = self.ended_within(stretch, line.size) {
                return Due::Partial(partial);
            }
        }
        match self.growing(now, line) {
            Due::Nothing { until } => self.superseded(now, until),
            due => due,
        }
    }

    fn finished(&self, stretch: &Stretch, size: WalSegmentSize) -> Vec<SegmentFile> {
        let Some(next) = self.next(stretch, size) else { return Vec::new() };
        let at_once = (BYTES_AT_ONCE / size.bytes()).clamp(1, AT_ONCE);
        (next.0..next.0 + at_once)
            .map(|number| SegmentFile { timeline: stretch.timeline, number: SegmentNumber(number) })
            .take_while(|segment| size.end(segment.number) <= stretch.end)
            .collect()
    }

    /// The part of the fork's segment that is the ended timeline's.
    fn ended_within(&self, stretch: &Stretch, size: WalSegmentSize) -> Option<Partial> {
        let number = self.next(stretch, size)?;
        let ended = stretch.state == StretchState::Ended && stretch.end > size.start(number);
        let partial =
            Partial { segment: SegmentFile { timeline: stretch.timeline, number }, upto: stretch.end };
        (ended && !self.is_put(partial)).then_some(partial)
    }

    fn growing(&self, now: Instant, line: &Line) -> Due {
        let nothing = Due::Nothing { until: None };
        let Some(stretch) = line.stretches.last() else { return nothing };
        let Some(number) = self.next(stretch, line.size) else { return nothing };
        let segment = SegmentFile { timeline: stretch.timeline, number };
        let partial = Partial { segment, upto: stretch.end };
        if stretch.end <= line.size.start(number) || self.is_put(partial) {
            return nothing;
        }
        let last = self.partials.get(&stretch.timeline).filter(|(last, _)| last.segment == segment);
        match last.map(|(_, at)| *at + self.partial_interval) {
            Some(at) if at > now => Due::Nothing { until: Some(at) },
            _ => Due::Partial(partial),
        }
    }

    /// A removal, if nothing else is to be done before `until`.
    fn superseded(&self, now: Instant, until: Option<Instant>) -> Due {
        let Some(segment) = self.superseded.first() else { return Due::Nothing { until } };
        match self.removals.until(now) {
            None => Due::Removal(*segment),
            Some(at) => Due::Nothing { until: Some(until.map_or(at, |until| until.min(at))) },
        }
    }

    fn is_put(&self, partial: Partial) -> bool {
        self.partials.get(&partial.segment.timeline).is_some_and(|(put, _)| *put == partial)
    }

    /// The first segment of the stretch that is not archived and that the store still has; `None` when it has none.
    fn next(&self, stretch: &Stretch, size: WalSegmentSize) -> Option<SegmentNumber> {
        let oldest = size.segment(stretch.oldest?);
        Some(self.next.get(&stretch.timeline).map_or(oldest, |next| oldest.max(*next)))
    }

    /// WAL that the archive misses and that the store has no more. Told once: afterwards the archive goes on behind it.
    pub(super) fn hole(&mut self, line: &Line) -> Option<Hole> {
        line.stretches.iter().find_map(|stretch| {
            let oldest = stretch.oldest?;
            // What the store has of a timeline behind its end is no part of the log.
            let to = match stretch.state {
                StretchState::Ended => oldest.min(stretch.end),
                StretchState::Open => oldest,
            };
            let is_whole = self.has_the_end_of(stretch);
            let next = self.next.get_mut(&stretch.timeline)?;
            let from = line.size.start(*next);
            (from < to && !is_whole).then(|| {
                *next = line.size.segment(oldest);
                Hole { timeline: stretch.timeline, from, to }
            })
        })
    }

    /// Whether the begun segment in which a timeline ended was put up to that end.
    fn has_the_end_of(&self, stretch: &Stretch) -> bool {
        let put = self.partials.get(&stretch.timeline);
        stretch.state == StretchState::Ended && put.is_some_and(|(put, _)| put.upto == stretch.end)
    }

    pub(super) fn archived_segment(&mut self, segment: SegmentFile) {
        self.next.insert(segment.timeline, segment.number.next());
        self.back_off.succeeded();
        if self.begun.remove(&segment) {
            self.superseded.insert(segment);
        }
    }

    pub(super) fn removed(&mut self, segment: SegmentFile) {
        self.superseded.remove(&segment);
        self.removals.succeeded();
    }

    /// Returns how many failed before this one.
    pub(super) fn not_removed(&mut self, now: Instant) -> u32 {
        let before = self.removals.failures;
        self.removals.failed(now);
        before
    }

    pub(super) fn archived_history(&mut self, timeline: TimelineId) {
        self.histories.insert(timeline);
        self.back_off.succeeded();
    }

    pub(super) fn archived_partial(&mut self, now: Instant, partial: Partial) {
        self.partials.insert(partial.segment.timeline, (partial, now));
        self.begun.insert(partial.segment);
        self.back_off.succeeded();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.back_off.failed(now);
    }

    /// The store must keep what is from here on; everything before is archived for good. `None`: it has nothing.
    pub(super) fn kept_from(&self, line: &Line) -> Option<Lsn> {
        let waiting = line.stretches.iter().filter_map(|stretch| {
            let start = line.size.start(self.next(stretch, line.size)?);
            let is_behind = stretch.state == StretchState::Ended && start >= stretch.end;
            (!is_behind && !self.has_the_end_of(stretch)).then_some(start)
        });
        waiting.min()
    }

    /// Up to where the log is in the archive, finished or not. It is filled in order, so what a descendant has counts
    /// when its ancestors are whole; and as long as a timeline has nothing there, they are all that there is.
    pub(super) fn archived_up_to(&self, line: &Line) -> Lsn {
        let mut archived = Lsn::INVALID;
        for stretch in &line.stretches {
            let Some(next) = self.next(stretch, line.size) else { continue };
            let partial = self.partials.get(&stretch.timeline).map_or(Lsn::INVALID, |(put, _)| put.upto);
            let reached = line.size.start(next).max(partial);
            match stretch.state {
                StretchState::Ended if reached < stretch.end => return archived.max(reached),
                StretchState::Ended => archived = archived.max(stretch.end),
                StretchState::Open => archived = archived.max(reached),
            }
        }
        archived
    }
}

/// Whether the store has of an ended timeline only what lies behind its end, and the archive the segment of that end.
fn ended_before(stretch: &Stretch, oldest: Lsn, size: WalSegmentSize, found: &Inventory) -> bool {
    let last = SegmentFile { timeline: stretch.timeline, number: size.segment(stretch.end) };
    stretch.state == StretchState::Ended && size.start(last.number) < oldest && found.partials.contains(&last)
}

/// Where to take up a timeline of which the store has what is from `oldest` on. What may lie between the archive's last
/// segment before that and `oldest` is a hole: [`Shipping::hole`] tells.
fn first_missing(timeline: TimelineId, oldest: SegmentNumber, found: &Inventory) -> SegmentNumber {
    if let Some(last) = found.last_before(timeline, oldest)
        && last.next() < oldest
    {
        return last.next();
    }
    let at = |number| SegmentFile { timeline, number };
    let later = found.segments.range(at(oldest)..).next().filter(|segment| segment.timeline == timeline);
    let mut number = later.map_or(oldest, |segment| segment.number);
    while found.segments.contains(&at(number)) {
        number = number.next();
    }
    number
}

/// Doubles from one failure to the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
    retry_at: Option<Instant>,
}

impl BackOff {
    pub(super) fn failed(&mut self, now: Instant) {
        let (first, last) = RETRY;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(last);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
    }

    pub(super) fn succeeded(&mut self) {
        *self = BackOff::default();
    }

    /// `None`: now.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.retry_at.filter(|at| *at > now)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a moment to begin with")]
mod tests;
