//! How often a server has restarted of late, and how long it is given to come back. PURE.
//!
//! A crash of one of its processes is no reason to take a primary's place: it recovers by itself, and mostly sooner than
//! another is promoted. So it has a chance, of `restart_timeout`. What it must not have is one chance after the other: a
//! server that crashes as soon as it has recovered (a disk that is full, a damaged page that everybody wants to read) is
//! never down for long, and never serves.

use std::time::{Duration, Instant};

/// When it restarts so often, with less than `restart_timeout` from one recovery to the next crash, its time is over at once.
const TOO_OFTEN: u32 = 3;

/// One server's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restarts {
    /// In a row, the one under way not counted.
    done: u32,
    /// When it came back last.
    back_at: Option<Instant>,
    /// Since when one is under way.
    since: Option<Instant>,
}

impl Restarts {
    /// It says that it cannot be used now.
    pub(super) fn begun(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// There is no process: the next one has a chance of its own.
    pub(super) fn gone(&mut self) {
        self.since = None;
    }

    /// It answers; `lived`: it is the one that answered before.
    pub(super) fn answered(&mut self, now: Instant, lived: bool, restart_timeout: Duration) {
        let has_settled = self.back_at.is_none_or(|at| now.saturating_duration_since(at) >= restart_timeout);
        // One that was over between two probes has been seen by its end alone.
        if self.since.take().is_some() || !lived {
            self.done = if has_settled { 1 } else { self.done.saturating_add(1) };
            self.back_at = Some(now);
        } else if has_settled {
            self.done = 0;
        }
    }

    pub(super) fn has_a_chance(&self, now: Instant, restart_timeout: Duration) -> bool {
        let is_new = self.back_at.is_none_or(|at| {
            self.since.is_none_or(|since| since.saturating_duration_since(at) >= restart_timeout)
        });
        let row = if is_new { 1 } else { self.done.saturating_add(1) };
        let lasting = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        row < TOO_OFTEN && lasting < restart_timeout
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an arbitrary instant to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::Restarts;

    const LIMIT: Duration = Duration::from_secs(10);

    /// What is seen at each second: `.` an answer, `!` the answer of another process than before, `-` not now, a space
    /// nothing, and `x` that it is gone; and whether it has a chance at the end.
    fn check(seen: &str, expected: bool) {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        let mut now = start;
        for (second, what) in (0..).zip(seen.chars()) {
            now = start + Duration::from_secs(second);
            match what {
                '.' => restarts.answered(now, true, LIMIT),
                '!' => restarts.answered(now, false, LIMIT),
                '-' => restarts.begun(now),
                'x' => restarts.gone(),
                _ => {}
            }
        }
        assert_eq!(restarts.has_a_chance(now, LIMIT), expected, "{seen:?}");
    }

    #[test]
    fn a_chance_and_not_one_after_the_other() {
        check("..-", true);
        check("..---------", true);
        check("..----------", true);
        check("..-----------", false);
        // What hesitates meanwhile goes on restarting.
        check("..--- ---- -", true);
        check("..--- ---- --", false);
        check("..--------x-----", true);
        // Back, and away again.
        check("..--...-", true);
        check("..--...--...-", false);
        check("..--..!.-", false);
        check("..!..!..-", false);
        check("..!.....-", true);
        // It has lived for as long as that.
        check("..--...--..........-", true);
        check("..--...--...........--...-", true);
        check("..--...--.........-", false);
    }
}
