//! When did the WAL up to here arrive? (The idea of `LagTracker` in walsender.c, one ring for all followers.)

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::pg::Lsn;

/// Samples of (end of WAL, when it was first seen), both rising.
#[derive(Debug, Default)]
pub(super) struct LagTracker {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    end: Lsn,
    at: Instant,
}

impl LagTracker {
    /// As in walsender.c. When full, neighbours are merged: the ring then reaches twice as far back with half
    /// the resolution, and never reports too small an age.
    const CAPACITY: usize = 8192;

    pub(super) fn observe(&mut self, end: Lsn, now: Instant) {
        // A new timeline may begin before the end of the old one, whose rest nobody will ever replay.
        while self.samples.back().is_some_and(|last| last.end > end) {
            self.samples.pop_back();
        }
        if self.samples.back().is_some_and(|last| last.end == end) {
            return;
        }
        if self.samples.len() == Self::CAPACITY {
            self.merge_neighbours();
        }
        self.samples.push_back(Sample { end, at: now });
    }

    /// How long ago the oldest WAL beyond `replay` arrived; zero when there is none.
    pub(super) fn age_behind(&self, replay: Lsn, now: Instant) -> Duration {
        let first_missing = self.samples.partition_point(|sample| sample.end <= replay);
        self.samples
            .get(first_missing)
            .map_or(Duration::ZERO, |sample| now.saturating_duration_since(sample.at))
    }

    fn merge_neighbours(&mut self) {
        let merged = |pair: &[Sample]| Sample { end: pair[pair.len() - 1].end, at: pair[0].at };
        self.samples = self.samples.make_contiguous().chunks(2).map(merged).collect();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::LagTracker;
    use crate::pg::Lsn;

    #[test]
    fn the_age_is_that_of_the_oldest_wal_not_replayed() {
        let (mut tracker, start) = (LagTracker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let age = |tracker: &LagTracker, replay, now| tracker.age_behind(Lsn(replay), at(now)).as_secs();
        assert_eq!(age(&tracker, 0, 9), 0);
        tracker.observe(Lsn(100), at(1));
        // Nothing new: the time of the first sight stays.
        tracker.observe(Lsn(100), at(5));
        tracker.observe(Lsn(200), at(3600));
        assert_eq!(age(&tracker, 50, 3605), 3604);
        assert_eq!(age(&tracker, 100, 3605), 5);
        assert_eq!(age(&tracker, 150, 3605), 5);
        assert_eq!(age(&tracker, 200, 3605), 0);
        // A promotion: the new timeline forked at 150.
        tracker.observe(Lsn(150), at(3610));
        assert_eq!(age(&tracker, 150, 3700), 0);
        assert_eq!(age(&tracker, 100, 3611), 1);
    }

    #[test]
    fn a_full_ring_gets_coarser_and_never_reports_too_little() {
        let (mut tracker, start) = (LagTracker::default(), Instant::now());
        let at = |n: u64| start + Duration::from_millis(n);
        let total = 5 * LagTracker::CAPACITY as u64;
        for n in 1..=total {
            tracker.observe(Lsn(n), at(n));
            assert!(tracker.samples.len() <= LagTracker::CAPACITY);
        }
        for replay in [0, 1, total / 2, total - 1] {
            let exact = Duration::from_millis(total - (replay + 1));
            let reported = tracker.age_behind(Lsn(replay), at(total));
            assert!(
                exact <= reported && reported <= exact + Duration::from_millis(32),
                "{replay}: {reported:?}"
            );
        }
        assert_eq!(tracker.age_behind(Lsn(total), at(total)), Duration::ZERO);
    }
}
