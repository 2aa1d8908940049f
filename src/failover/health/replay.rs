//! How fast a standby replays, by the positions that it has told the probe. PURE.
//!
//! Who keeps up replays as fast as WAL comes, which says little of how fast it could. So two things are kept: what it
//! replayed while it had something to replay all the time, that is, while all of it had been received before; and the most
//! that it was seen to replay at all, which it can do at least. Who does not move, because its replay is paused or a query
//! is in its way, is not slow: a promotion goes on with the replay, and sees to what is in the way.

use std::time::{Duration, Instant};

use crate::pg::Lsn;

/// Before that, what is measured is too little to tell.
const LEAST: Duration = Duration::from_secs(1);
/// What was measured counts half after so much more of it.
const WINDOW: Duration = Duration::from_secs(60);
/// The fastest of more than two of these ago is forgotten.
const PERIOD: Duration = Duration::from_secs(300);

/// How fast a standby replays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaySpeed {
    pub bytes_per_second: u64,
    pub kind: SpeedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeedKind {
    /// While it was busy with nothing else.
    Measured,
    /// It was always waiting for more.
    AtLeast,
}

/// One standby's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Replay {
    last: Option<Sample>,
    /// While it was busy.
    bytes: u64,
    time: Duration,
    /// In bytes per second, of this period and of the one before.
    fastest: u64,
    fastest_before: u64,
    period: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    replayed: Lsn,
    received: Lsn,
}

impl Replay {
    /// It has said so.
    pub(super) fn told(&mut self, at: Instant, replayed: Lsn, received: Lsn) {
        let last = self.last.replace(Sample { at, replayed, received });
        let Some(last) = last.filter(|last| last.replayed < replayed && last.at < at) else { return };
        let (bytes, time) = (replayed.bytes_since(last.replayed), at.saturating_duration_since(last.at));
        if replayed < last.received {
            (self.bytes, self.time) = (self.bytes.saturating_add(bytes), self.time + time);
            if self.time >= WINDOW {
                (self.bytes, self.time) = (self.bytes / 2, self.time / 2);
            }
        }
        self.note_fastest(at, per_second(bytes, time));
    }

    /// It was started anew, or is a primary: its next position says nothing of the way there.
    pub(super) fn interrupted(&mut self) {
        self.last = None;
    }

    /// `None`: it was not seen to replay.
    pub(super) fn speed(&self) -> Option<ReplaySpeed> {
        let (bytes_per_second, kind) = if self.time >= LEAST {
            (per_second(self.bytes, self.time), SpeedKind::Measured)
        } else {
            (self.fastest.max(self.fastest_before), SpeedKind::AtLeast)
        };
        (bytes_per_second > 0).then_some(ReplaySpeed { bytes_per_second, kind })
    }

    fn note_fastest(&mut self, at: Instant, bytes_per_second: u64) {
        let begun = *self.period.get_or_insert(at);
        match at.saturating_duration_since(begun) {
            age if age < PERIOD => {}
            age => {
                self.fastest_before = if age < PERIOD * 2 { self.fastest } else { 0 };
                (self.period, self.fastest) = (Some(at), 0);
            }
        }
        self.fastest = self.fastest.max(bytes_per_second);
    }
}

impl ReplaySpeed {
    /// For so many bytes.
    pub fn time(self, bytes: u64) -> Duration {
        let millis = u128::from(bytes) * 1000 / u128::from(self.bytes_per_second.max(1));
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Replay, ReplaySpeed, SpeedKind};
    use crate::pg::Lsn;

    const MIB: u64 = 1 << 20;

    /// Told every half second: MiB replayed and received so far.
    fn check(told: &[(u64, u64)], expected: Option<(SpeedKind, u64)>) {
        let (mut replay, start) = (Replay::default(), Instant::now());
        for (half_seconds, (replayed, received)) in (0..).zip(told) {
            let at = start + Duration::from_millis(500) * half_seconds;
            replay.told(at, Lsn(replayed * MIB), Lsn(received * MIB));
        }
        let found = replay.speed().map(|speed| (speed.kind, speed.bytes_per_second / MIB));
        assert_eq!(found, expected, "{told:?}");
    }

    #[test]
    fn who_has_a_backlog_is_measured_and_who_waits_can_do_more() {
        use SpeedKind::{AtLeast, Measured};
        check(&[], None);
        check(&[(10, 10)], None);
        check(&[(10, 10), (10, 10)], None);
        // It keeps up with what comes.
        check(&[(10, 10), (14, 14), (15, 15), (15, 15)], Some((AtLeast, 8)));
        // It has received it all long before.
        check(&[(0, 100), (10, 100), (20, 100)], Some((Measured, 20)));
        check(&[(0, 100), (10, 100), (20, 110), (30, 120)], Some((Measured, 20)));
        // One interval is too little to tell; what comes meanwhile may have been waited for.
        check(&[(0, 100), (10, 100)], Some((AtLeast, 20)));
        check(&[(0, 5), (10, 15), (20, 25)], Some((AtLeast, 20)));
        // Paused, or held up: no measure.
        check(&[(0, 100), (0, 100), (0, 100)], None);
        check(&[(0, 100), (10, 100), (10, 100), (10, 100), (20, 100)], Some((Measured, 20)));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let (mut replay, start) = (Replay::default(), Instant::now());
        let mut end = 0;
        let mut tell = |replay: &mut Replay, seconds: u64, bytes: u64| {
            end += bytes;
            replay.told(start + Duration::from_secs(seconds), Lsn(end), Lsn(end));
        };
        for (second, bytes) in [(0, 1), (1, 1000), (2, 10), (400, 4), (401, 10)] {
            tell(&mut replay, second, bytes);
        }
        assert_eq!(replay.speed().map(|speed| speed.bytes_per_second), Some(1000));
        for (second, bytes) in [(800, 4), (801, 10)] {
            tell(&mut replay, second, bytes);
        }
        assert_eq!(replay.speed().map(|speed| speed.bytes_per_second), Some(10));
    }

    #[test]
    fn the_measure_follows_the_server() {
        let (mut replay, start) = (Replay::default(), Instant::now());
        let mut end = 0;
        for second in 0..600 {
            replay.told(start + Duration::from_secs(second), Lsn(end), Lsn(u64::MAX));
            end += if second < 300 { 1000 } else { 10_000 };
        }
        let speed = replay.speed().expect("measured");
        assert!(speed.bytes_per_second > 9000, "{speed:?}");
    }

    #[test]
    fn a_restart_is_no_replay() {
        let (mut replay, start) = (Replay::default(), Instant::now());
        replay.told(start, Lsn(0), Lsn(100));
        replay.interrupted();
        replay.told(start + Duration::from_secs(1), Lsn(10), Lsn(100));
        assert_eq!(replay.speed(), None);
    }

    #[test]
    fn a_backlog_takes_its_time() {
        let speed = |bytes_per_second| ReplaySpeed { bytes_per_second, kind: SpeedKind::Measured };
        assert_eq!(speed(1000).time(1500), Duration::from_millis(1500));
        assert_eq!(speed(1000).time(0), Duration::ZERO);
        assert_eq!(speed(1).time(u64::MAX), Duration::from_millis(u64::MAX));
    }
}
