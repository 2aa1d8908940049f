//! How long a silence must last before it means something: longer where a node that lived has been silent for long of
//! late, so that load does not look like death. PURE.

use std::time::{Duration, Instant};

/// A silence is believed when it is so many times as long as the longest that came to nothing.
const TIMES: u32 = 3;
/// Patience ends at so many times the configured timeout, whatever came before.
const MAX_TIMES: u32 = 5;
/// What was longer ago than two of these is forgotten, what was less than one is not.
const PERIOD: Duration = Duration::from_secs(300);

/// One node's longest silences that ended by themselves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    period: Option<Instant>,
    longest: Duration,
    longest_before: Duration,
}

impl Patience {
    /// It has answered `silence` after its last answer. A silence that was long enough to mean something was a fault,
    /// and is no measure of what is usual.
    pub(super) fn answered(&mut self, now: Instant, silence: Duration, timeout: Duration) {
        if silence >= self.with(timeout, now) {
            return;
        }
        let begun = *self.period.get_or_insert(now);
        match now.saturating_duration_since(begun) {
            age if age < PERIOD => self.longest = self.longest.max(silence),
            age => {
                let last = if age < PERIOD * 2 { self.longest } else { Duration::ZERO };
                *self = Patience { period: Some(now), longest: silence, longest_before: last };
            }
        }
    }

    /// Where `timeout` is what is configured.
    pub(super) fn with(&self, timeout: Duration, now: Instant) -> Duration {
        let age = self.period.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        let longest = match age {
            age if age < PERIOD => self.longest.max(self.longest_before),
            age if age < PERIOD * 2 => self.longest,
            _ => Duration::ZERO,
        };
        (longest * TIMES).clamp(timeout, timeout * MAX_TIMES)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::Patience;

    /// Answers, each so many milliseconds after the one before, then nothing for `quiet` seconds.
    fn check(silences: &[u64], quiet: u64, expected: u64) {
        let timeout = Duration::from_secs(2);
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        for silence in silences.iter().map(|millis| Duration::from_millis(*millis)) {
            now += silence;
            patience.answered(now, silence, timeout);
        }
        let patience = patience.with(timeout, now + Duration::from_secs(quiet));
        assert_eq!(patience, Duration::from_millis(expected), "after {silences:?} and {quiet} s");
    }

    #[test]
    fn who_is_slow_is_given_time() {
        check(&[], 0, 2000);
        check(&[500, 500, 510], 0, 2000);
        check(&[500, 1000, 500], 0, 3000);
        check(&[1900, 500], 0, 5700);
        check(&[1900, 5000, 500], 0, 10_000);
    }

    #[test]
    fn a_fault_is_no_habit() {
        check(&[500, 60_000, 500], 0, 2000);
    }

    #[test]
    fn it_is_forgotten() {
        let slow_once = |then: usize| [&[1900][..], &vec![500; then][..]].concat();
        check(&slow_once(2 * 299), 0, 5700);
        check(&slow_once(2 * 590), 0, 5700);
        check(&slow_once(2 * 610), 0, 2000);
        check(&slow_once(10), 299, 5700);
        check(&slow_once(10), 700, 2000);
    }
}
