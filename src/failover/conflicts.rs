//! Sessions that hold up a candidate's replay.
//!
//! A server that is being promoted first replays all it has, and where `max_standby_streaming_delay` says so, each record
//! waits for the queries that still need what it removes (`WaitExceedsMaxStandbyDelay` in standby.c), which may be for
//! ever. The cluster has no primary meanwhile, so they end: cancelled at first, their sessions ended when that does not
//! help (one that is idle in a transaction has nothing to cancel). They came past the endpoint: its own sessions have let
//! go of a candidate before it is promoted.

use std::time::Duration;

/// What is done about them next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Cancel,
    End,
}

/// What was done about them.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    cancelled_at: Option<Duration>,
    ended_at: Option<Duration>,
}

impl Conflicts {
    /// From the cancel to harsher means, and between two of these.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// `held_up`, after so much time of the promotion.
    pub(super) fn measure(&mut self, elapsed: Duration) -> Option<Measure> {
        let Some(cancelled_at) = self.cancelled_at else {
            self.cancelled_at = Some(elapsed);
            return Some(Measure::Cancel);
        };
        let last = self.ended_at.unwrap_or(cancelled_at);
        let due = elapsed.saturating_sub(last) >= Self::PATIENCE;
        due.then(|| {
            self.ended_at = Some(elapsed);
            Measure::End
        })
    }
}

/// Whether replay waits: for a snapshot or tablespace, for a lock, or for a pinned page.
pub(super) const IS_HELD_UP: &str = "SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
     AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin', 'Buffer'))";

impl Measure {
    /// Which of the sessions it is, only PostgreSQL knows: whoever is in a transaction, but for those of a moment ago, as
    /// our own questions are.
    pub(super) fn statement(self) -> String {
        let function = match self {
            Measure::Cancel => "pg_cancel_backend",
            Measure::End => "pg_terminate_backend",
        };
        format!(
            "SELECT {function}(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' \
             AND pid <> pg_backend_pid() AND xact_start < now() - interval '50 ms'"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_cancelled_once_and_ended_when_that_does_not_help() {
        let mut conflicts = Conflicts::default();
        for (ms, expected) in [
            (20, Some(Measure::Cancel)),
            (25, None),
            (1000, None),
            (1020, Some(Measure::End)),
            (1025, None),
            (2020, Some(Measure::End)),
        ] {
            assert_eq!(conflicts.measure(Duration::from_millis(ms)), expected, "after {ms} ms");
        }
    }
}
