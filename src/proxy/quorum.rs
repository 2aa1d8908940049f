//! Whether commits come through: under quorum durability a primary lets them wait for as long as too few relays
//! acknowledge (`SyncRepWaitForLSN` in syncrep.c), which may be for ever.
//!
//! The quorum counts as lost while a commit waits for [`PATIENCE`] and meanwhile nothing becomes durable, though the
//! relay lacks WAL or does not hear the primary at all. From then on what writes is held instead of joining those that
//! wait; what only reads goes on. A commit that waits for as long as clients are held is given up: its client hears
//! that the outcome is unknown. Its backend is not cancelled: it would stop waiting, and others would see what is not
//! durable. It ends when the quorum is back; there are not many, since nothing new is let in behind them.
//!
//! As soon as anything becomes durable all waits begin anew. Which commit waits for what is not known here, nor
//! whether a statement that commits by itself has come to that: a long one may be given up while nothing else moves.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::timeouts::Activity;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Directive, Durability, Term, Upstream, WalStatus};

/// A commit that waits for longer speaks against the quorum.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Quorum {
    #[default]
    Acknowledges,
    /// What writes is held.
    Lost,
}

/// How far the quorum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No commit waits for it: it has all there is, or there is nobody whose commits could wait.
    All,
    /// There may be more than this.
    UpTo(Term, TimelineId, Lsn),
}

impl Progress {
    pub(crate) fn of(directive: &Directive, wal: &WalStatus) -> Progress {
        let Some(primary) = directive.writable().filter(|_| directive.durability == Durability::Quorum)
        else {
            return Progress::All;
        };
        let streams = matches!(&wal.upstream, Upstream::Streaming { node, .. } if node == primary);
        if streams && wal.durable >= wal.upstream_end {
            return Progress::All;
        }
        Progress::UpTo(directive.term, wal.timeline, wal.durable)
    }
}

/// What the looks at all sessions have come to. A session is told by its pid.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    stands_at: Option<Progress>,
    /// Who has been committing since when, with no progress since.
    waiting: HashMap<u32, (Activity, Instant)>,
    quorum: Quorum,
}

impl Watch {
    pub(crate) fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// Whose commits are given up, having waited for `limit`. `committing` are those that may be at it.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        progress: Progress,
        committing: impl IntoIterator<Item = (u32, Activity)>,
        limit: Duration,
    ) -> Vec<(u32, Activity)> {
        if progress == Progress::All || self.stands_at != Some(progress) {
            self.stands_at = Some(progress);
            self.waiting.clear();
            self.quorum = Quorum::Acknowledges;
        }
        if progress == Progress::All {
            return Vec::new();
        }
        let before = std::mem::take(&mut self.waiting);
        for (pid, activity) in committing {
            let since =
                before.get(&pid).filter(|(seen, _)| *seen == activity).map_or(now, |(_, since)| *since);
            self.waiting.insert(pid, (activity, since));
        }
        let waited = |since: &Instant| now.saturating_duration_since(*since);
        if self.waiting.values().any(|(_, since)| waited(since) >= PATIENCE.min(limit)) {
            self.quorum = Quorum::Lost;
        }
        let over = self.waiting.iter().filter(|(_, (_, since))| waited(since) >= limit);
        over.map(|(pid, (activity, _))| (*pid, *activity)).collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an origin for the tests' own clock")]
mod tests {
    use super::*;
    use crate::proxy::timeouts::Doing;
    use crate::topology::{NodeName, Writes};

    const LIMIT: Duration = Duration::from_secs(30);

    /// One word per look: seconds, how far the quorum is (`-`: it has all), and who commits, as `pid.statement`.
    /// Expected: who is given up when, and whether the quorum is lost in the end.
    fn check(looks: &[(u64, &str, &str)], given_up: &[(u64, u32)], quorum: Quorum) {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut found = Vec::new();
        for (seconds, durable, committing) in looks {
            let progress =
                durable.parse().map_or(Progress::All, |lsn| Progress::UpTo(Term(3), TimelineId(1), Lsn(lsn)));
            let activity = |word: &str| {
                let (pid, statements) = word.split_once('.').expect("pid.statement");
                let statements = statements.parse().expect("a number");
                let activity = Activity { doing: Doing::Committing, statements, transactions: 0 };
                (pid.parse().expect("a number"), activity)
            };
            let committing: Vec<_> = committing.split_whitespace().map(activity).collect();
            let over = watch.look(start + Duration::from_secs(*seconds), progress, committing, LIMIT);
            found.extend(over.into_iter().map(|(pid, _)| (*seconds, pid)));
        }
        assert_eq!(found, given_up, "{looks:?}");
        assert_eq!(watch.quorum(), quorum, "{looks:?}");
    }

    #[test]
    fn a_commit_that_waits_while_nothing_becomes_durable_is_given_up() {
        use Quorum::{Acknowledges, Lost};
        check(&[(0, "5", "1.1"), (1, "5", "1.1")], &[], Acknowledges);
        check(&[(0, "5", "1.1"), (2, "5", "1.1")], &[], Lost);
        check(&[(0, "5", "1.1"), (29, "5", "1.1"), (30, "5", "1.1 2.1")], &[(30, 1)], Lost);
        // It is lost until something moves, even when nobody waits any more ...
        check(&[(0, "5", "1.1"), (30, "5", "1.1"), (90, "5", "")], &[(30, 1)], Lost);
        // ... which any progress is,
        check(&[(0, "5", "1.1"), (3, "5", "1.1"), (4, "6", "1.1"), (33, "6", "1.1")], &[], Lost);
        check(&[(0, "5", "1.1"), (3, "5", "1.1"), (4, "6", "1.1")], &[], Acknowledges);
        check(&[(0, "5", "1.1"), (3, "5", "1.1"), (4, "-", "1.1"), (60, "-", "1.1")], &[], Acknowledges);
        // and each commit has its own time.
        check(&[(0, "5", "1.1"), (1, "5", "1.2"), (30, "5", "1.2"), (31, "5", "1.2")], &[(31, 1)], Lost);
    }

    #[test]
    fn nobody_waits_for_a_quorum_that_has_everything() {
        let pg1: NodeName = "pg1".parse().expect("a name");
        let now = Instant::now();
        let up_to = Progress::UpTo(Term(3), TimelineId(1), Lsn(5));
        let streaming = Upstream::Streaming { node: pg1.clone(), since: now, last_message: now };
        for (durability, writes, upstream, end, expected) in [
            (Durability::Quorum, Writes::Open, &streaming, 5, Progress::All),
            (Durability::Quorum, Writes::Open, &streaming, 6, up_to),
            (Durability::Quorum, Writes::Open, &Upstream::Idle, 5, up_to),
            (Durability::Async, Writes::Open, &Upstream::Idle, 6, Progress::All),
            (
                Durability::Quorum,
                Writes::Held { reason: "switchover".to_owned() },
                &streaming,
                6,
                Progress::All,
            ),
        ] {
            let directive = Directive {
                term: Term(3),
                primary: Some(pg1.clone()),
                writes,
                ..Directive::starting(durability)
            };
            let wal = WalStatus {
                timeline: TimelineId(1),
                durable: Lsn(5),
                upstream_end: Lsn(end),
                upstream: upstream.clone(),
                ..WalStatus::starting()
            };
            assert_eq!(Progress::of(&directive, &wal), expected, "{directive:?}, {wal:?}");
        }
    }
}
