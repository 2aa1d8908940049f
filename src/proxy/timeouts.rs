//! Which session has used up its time.
//!
//! Sessions read no clock for this: each tells what it does by storing two numbers where a look from outside
//! finds them ([`Doing`], and counts that tell one statement from the next). [`Watch`] is what the looks at one
//! session have come to. A limit is kept to within two looks, [`TICK`] apart.

use std::time::{Duration, Instant};

use super::limits::Timeouts;

/// From one look at every session to the next.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// A server that has been told to cancel, and goes on, loses its client after this time.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// What a session spends its time with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Outside a transaction, nothing to do.
    #[default]
    Idle,
    /// For a server, or for the word who is primary. Has its own limits.
    Waiting,
    /// A statement is with the server.
    Query,
    /// The same, and it may be committing: whoever cut it off would leave it in doubt.
    Committing,
    /// In a transaction, between statements.
    IdleInTransaction,
    /// Its server is its own, for logical replication: no limit is for it.
    Replicating,
}

/// What a session has last said of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) doing: Doing,
    /// Counts answered statements. Wraps.
    pub(crate) statements: u32,
    /// Counts transactions. Wraps.
    pub(crate) transactions: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Cancel,
    End(Timeout),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    Query,
    Transaction,
    IdleInTransaction,
    ClientIdle,
}

impl Timeout {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Timeout::Query => "query",
            Timeout::Transaction => "transaction",
            Timeout::IdleInTransaction => "idle_transaction",
            Timeout::ClientIdle => "client_idle",
        }
    }
}

/// One session, as seen from outside.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Activity,
    /// When what it does was first seen.
    since: Instant,
    /// When its transaction was.
    began: Option<Instant>,
    cancelled_at: Option<Instant>,
}

impl Doing {
    fn is_in_transaction(self) -> bool {
        matches!(self, Doing::Query | Doing::Committing | Doing::IdleInTransaction)
    }

    fn is_running(self) -> bool {
        matches!(self, Doing::Query | Doing::Committing)
    }

    fn from_number(number: u32) -> Doing {
        match number {
            1 => Doing::Waiting,
            2 => Doing::Query,
            3 => Doing::Committing,
            4 => Doing::IdleInTransaction,
            5 => Doing::Replicating,
            _ => Doing::Idle,
        }
    }
}

impl Activity {
    /// Three bits for what it does, 29 of the statements' count, 32 of the transactions'.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.doing as u32 | self.statements << 3) | u64::from(self.transactions) << 32
    }

    pub(crate) fn unpack(packed: u64) -> Activity {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let low = packed as u32;
        Activity {
            doing: Doing::from_number(low & 7),
            statements: low >> 3,
            transactions: (packed >> 32) as u32,
        }
    }
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Watch {
        Watch { seen: Activity::default(), since: now, began: None, cancelled_at: None }
    }

    pub(crate) fn look(&mut self, now: Instant, activity: Activity, timeouts: &Timeouts) -> Option<Due> {
        self.note(now, activity);
        let over = |limit: Option<Duration>, since: Instant| {
            limit.is_some_and(|limit| now.saturating_duration_since(since) >= limit)
        };
        let transaction_is_over = self.began.is_some_and(|began| over(timeouts.transaction, began));
        let cancelled_in_vain = self
            .cancelled_at
            .is_some_and(|cancelled_at| now.saturating_duration_since(cancelled_at) >= CANCEL_PATIENCE);
        match activity.doing {
            Doing::Query if cancelled_in_vain => Some(Due::End(Timeout::Query)),
            Doing::Query if transaction_is_over => Some(Due::End(Timeout::Transaction)),
            Doing::IdleInTransaction if transaction_is_over => Some(Due::End(Timeout::Transaction)),
            Doing::IdleInTransaction if over(timeouts.idle_transaction, self.since) => {
                Some(Due::End(Timeout::IdleInTransaction))
            }
            Doing::Idle if over(timeouts.client_idle, self.since) => Some(Due::End(Timeout::ClientIdle)),
            Doing::Query | Doing::Committing
                if self.cancelled_at.is_none() && over(timeouts.query, self.since) =>
            {
                self.cancelled_at = Some(now);
                Some(Due::Cancel)
            }
            _ => None,
        }
    }

    fn note(&mut self, now: Instant, activity: Activity) {
        let before = std::mem::replace(&mut self.seen, activity);
        let same_statement = before.statements == activity.statements
            && (before.doing == activity.doing || before.doing.is_running() && activity.doing.is_running());
        if !same_statement {
            self.since = now;
            self.cancelled_at = None;
        }
        let same_transaction = before.transactions == activity.transactions && self.began.is_some();
        if !activity.doing.is_in_transaction() {
            self.began = None;
        } else if !same_transaction {
            self.began = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Activity, CANCEL_PATIENCE, Doing, Due, Timeout, Watch};
    use crate::proxy::limits::Timeouts;

    const SECOND: Duration = Duration::from_secs(1);

    const LIMITS: Timeouts = Timeouts {
        query: Some(Duration::from_secs(2)),
        transaction: Some(Duration::from_secs(10)),
        idle_transaction: Some(Duration::from_secs(4)),
        client_idle: Some(Duration::from_secs(6)),
    };

    /// Each look: after so many seconds, what the session does, its counts.
    fn check(looks: &[(u64, Doing, u32, u32)], expected: &[(u64, Due)]) {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let origin = Instant::now();
        let mut watch = Watch::new(origin);
        let mut due = vec![];
        for (at, doing, statements, transactions) in looks.iter().copied() {
            let activity = Activity { doing, statements, transactions };
            assert_eq!(Activity::unpack(activity.pack()), activity);
            let now = origin + u32::try_from(at).expect("small") * SECOND;
            due.extend(watch.look(now, activity, &LIMITS).map(|due| (at, due)));
        }
        assert_eq!(due, expected, "{looks:?}");
    }

    #[test]
    fn a_statement_is_cancelled_once_and_then_loses_its_client() {
        let patience = CANCEL_PATIENCE.as_secs();
        check(
            &[
                (1, Doing::Query, 0, 0),
                (2, Doing::Query, 0, 0),
                (3, Doing::Query, 0, 0),
                (4, Doing::Query, 0, 0),
                (3 + patience, Doing::Query, 0, 0),
            ],
            &[(3, Due::Cancel), (3 + patience, Due::End(Timeout::Query))],
        );
        // One after the other, never seen in between.
        check(
            &[
                (1, Doing::Query, 0, 0),
                (2, Doing::Query, 1, 1),
                (3, Doing::Query, 2, 2),
                (4, Doing::Query, 3, 3),
            ],
            &[],
        );
    }

    #[test]
    fn what_may_be_committing_is_cancelled_and_not_cut() {
        let committing = |at| (at, Doing::Committing, 0, 0);
        check(&[(1, Doing::Query, 0, 0), committing(2), committing(3), committing(30)], &[(3, Due::Cancel)]);
    }

    #[test]
    fn idle_sessions_end() {
        check(
            &[(1, Doing::Idle, 1, 1), (6, Doing::Idle, 1, 1), (7, Doing::Idle, 1, 1)],
            &[(7, Due::End(Timeout::ClientIdle))],
        );
        check(
            &[
                (1, Doing::IdleInTransaction, 1, 0),
                (4, Doing::IdleInTransaction, 2, 0),
                (7, Doing::IdleInTransaction, 2, 0),
                (8, Doing::IdleInTransaction, 2, 0),
            ],
            &[(8, Due::End(Timeout::IdleInTransaction))],
        );
        check(&[(1, Doing::Waiting, 0, 0), (100, Doing::Waiting, 0, 0)], &[]);
        check(&[(1, Doing::Replicating, 0, 0), (100, Doing::Replicating, 0, 0)], &[]);
    }

    #[test]
    fn a_transaction_ends_however_busy_it_is() {
        let busy = |at| (at, Doing::Query, u32::try_from(at).expect("small"), 0);
        let looks: Vec<_> = (1..=11).map(busy).collect();
        check(&looks, &[(11, Due::End(Timeout::Transaction))]);
        // The time before it does not count, nor another transaction's.
        check(
            &[
                (1, Doing::Idle, 0, 0),
                (5, Doing::Query, 0, 0),
                (6, Doing::Query, 1, 0),
                (12, Doing::Query, 2, 1),
            ],
            &[],
        );
    }
}
