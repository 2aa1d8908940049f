//! How fast one follower is fed (`wal.follower_rate`). PURE.
//!
//! What was sent takes as long as it takes at the given rate; then the next may be sent. Nothing is saved up while
//! nothing is sent, so that a follower which catches up never gets more than one chunk at once.

use std::time::{Duration, Instant};

/// Bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) u64);

#[derive(Debug)]
pub(super) struct Pacing {
    /// `None`: as fast as it goes.
    rate: Option<Rate>,
    /// When all that was sent has taken its time.
    ready_at: Instant,
}

impl Pacing {
    /// A chunk never takes longer, however small the rate: the follower's place must move in its
    /// `wal_receiver_timeout`.
    const LONGEST_PAUSE: Duration = Duration::from_secs(30);

    pub(super) fn new(rate: Option<Rate>, now: Instant) -> Pacing {
        Pacing { rate, ready_at: now }
    }

    /// For all that is sent from now on.
    pub(super) fn change(&mut self, rate: Option<Rate>, now: Instant) {
        *self = Pacing::new(rate, now);
    }

    /// When the next may be sent; `None`: now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        (now < self.ready_at).then_some(self.ready_at)
    }

    pub(super) fn sent(&mut self, bytes: usize, now: Instant) {
        let Some(Rate(rate)) = self.rate else { return };
        let took = Duration::try_from_secs_f64(bytes as f64 / rate as f64).unwrap_or(Self::LONGEST_PAUSE);
        self.ready_at = self.ready_at.max(now) + took.min(Self::LONGEST_PAUSE);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Pacing, Rate};

    #[test]
    fn what_is_sent_takes_its_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pacing = Pacing::new(Some(Rate(1000)), start);
        assert_eq!(pacing.wait_until(start), None);
        pacing.sent(500, start);
        assert_eq!(pacing.wait_until(at(499)), Some(at(500)));
        assert_eq!(pacing.wait_until(at(500)), None);
        // Nothing was saved up in between.
        pacing.sent(500, at(9000));
        assert_eq!(pacing.wait_until(at(9000)), Some(at(9500)));
        pacing.change(None, at(9000));
        pacing.sent(usize::MAX, at(9000));
        assert_eq!(pacing.wait_until(at(9000)), None);
        pacing.change(Some(Rate(1)), at(9000));
        pacing.sent(usize::MAX, at(9000));
        assert_eq!(pacing.wait_until(at(9000)), Some(at(9000) + Pacing::LONGEST_PAUSE));
    }
}
