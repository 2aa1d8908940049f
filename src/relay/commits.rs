//! What became of commits whose server was lost before it answered: looked up in the WAL that is stored.
//!
//! Only WAL that followers may have is looked at (durable here, and at enough relays where there are several), and of a timeline only what the newest one has of it: what a lost primary wrote behind
//! the fork is not in it. So an answer does not wait for anybody to be elected, but for the record, or for what proves
//! that there never will be one: an abort, a shutdown checkpoint, the end of the timeline.
//!
//! Servers are not asked: the next primary gives xids of the lost tail to others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::watch;

use super::store::{CheckedReader, Store, StoreError, Tail};
use crate::pg::wal::{TransactionEnd, TransactionEnds};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{CommitInDoubt, CommitOutcome, CommitOutcomes, CommitsInDoubt, Ending, Searching};

/// Bytes read at a time.
const READ: usize = 1 << 20;
/// Behind a commit's window so much WAL is looked through; then its outcome is unknown.
const MAX_WINDOW: u64 = 256 << 20;

/// Answers what is asked for, as long as it runs.
pub(super) async fn answer(
    store: Store,
    mut tail: watch::Receiver<Tail>,
    mut asked: watch::Receiver<Arc<CommitsInDoubt>>,
    answers: watch::Sender<Arc<CommitOutcomes>>,
) {
    let answers = Open::new(answers);
    let mut searches: BTreeMap<TimelineId, Search> = BTreeMap::new();
    loop {
        let questions = asked.borrow_and_update().clone();
        let now = *tail.borrow_and_update();
        let mut known = answers.known(&questions);
        searches.retain(|timeline, _| questions.iter().any(|commit| commit.timeline == *timeline));
        for timeline in timelines(questions.iter().filter(|commit| !known.contains_key(commit))) {
            let open = || {
                let open =
                    |commit: &&CommitInDoubt| commit.timeline == timeline && !known.contains_key(commit);
                questions.iter().filter(open)
            };
            let from = open().map(|commit| commit.from).min().unwrap_or(Lsn::INVALID);
            let search = match searches.remove(&timeline).filter(|search| search.ends.begun <= from) {
                Some(search) => search,
                None => Search::new(&store, timeline, from),
            };
            let (search, found) = search.go_on(&store, now).await;
            let outcomes: Vec<_> = open()
                .filter_map(|commit| Some((*commit, found.outcome(search.as_ref(), commit)?)))
                .collect();
            known.extend(outcomes);
            searches.extend(search.map(|search| (timeline, search)));
        }
        let waits = known.len() < questions.len();
        answers.publish(known);
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return std::future::pending().await },
            // A store that is gone has nothing more to say.
            changed = tail.changed(), if waits => if changed.is_err() { return std::future::pending().await },
        }
    }
}

fn timelines<'a>(commits: impl Iterator<Item = &'a CommitInDoubt>) -> Vec<TimelineId> {
    let mut timelines: Vec<TimelineId> = commits.map(|commit| commit.timeline).collect();
    timelines.dedup();
    timelines
}

/// While it is there, questions are answered.
struct Open(watch::Sender<Arc<CommitOutcomes>>);

impl Open {
    fn new(answers: watch::Sender<Arc<CommitOutcomes>>) -> Open {
        answers.send_replace(Arc::new(CommitOutcomes { searching: Searching::Yes, known: BTreeMap::new() }));
        Open(answers)
    }

    /// Of what is still asked.
    fn known(&self, questions: &CommitsInDoubt) -> BTreeMap<CommitInDoubt, CommitOutcome> {
        let answers = self.0.borrow();
        answers.known.iter().filter(|(commit, _)| questions.contains(commit)).map(|(c, o)| (*c, *o)).collect()
    }

    fn publish(&self, known: BTreeMap<CommitInDoubt, CommitOutcome>) {
        self.0.send_if_modified(|answers| {
            let changed = answers.known != known;
            if changed {
                *answers = Arc::new(CommitOutcomes { searching: Searching::Yes, known });
            }
            changed
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_replace(Arc::default());
    }
}

/// One timeline, read from some segment's start on.
struct Search {
    reader: CheckedReader,
    records: TransactionEnds,
    ends: Ends,
}

/// What is known behind a look.
enum Found {
    /// There may be more.
    SoFar,
    /// The timeline has no more.
    Everything,
    /// It cannot be read.
    Unreadable,
}

impl Found {
    fn outcome(&self, search: Option<&Search>, commit: &CommitInDoubt) -> Option<CommitOutcome> {
        let Some(search) = search else { return Some(CommitOutcome::Unknown) };
        let reached = search.records.position();
        match (search.ends.outcome(commit), self) {
            (Some(outcome), _) => Some(outcome),
            (None, Found::Everything) => Some(CommitOutcome::NotCommitted),
            (None, Found::Unreadable) => Some(CommitOutcome::Unknown),
            (None, Found::SoFar) if reached.bytes_since(commit.from) >= MAX_WINDOW => {
                Some(CommitOutcome::Unknown)
            }
            (None, Found::SoFar) => None,
        }
    }
}

impl Search {
    fn new(store: &Store, timeline: TimelineId, from: Lsn) -> Search {
        // A page in the middle may lie in the filler behind a switch and be no page.
        let begin = store.segment_size().segment_start(from);
        Search {
            reader: CheckedReader::new(store.clone(), timeline),
            records: TransactionEnds::new(begin, store.segment_size()),
            ends: Ends::from(from),
        }
    }

    /// Reads what has come. The search is gone when it cannot go on.
    async fn go_on(mut self, store: &Store, tail: Tail) -> (Option<Search>, Found) {
        let timeline = self.reader.timeline();
        let switchpoint = store.history().switchpoint(timeline);
        if timeline != tail.timeline && switchpoint.is_none() {
            // The store follows it a little later than the servers do.
            return (Some(self), Found::SoFar);
        }
        // Of a timeline that has ended, what the next one has of it: once that may be had by followers.
        let (end, whole) = match switchpoint.filter(|_| timeline < tail.timeline) {
            Some(switchpoint) => (switchpoint, Found::Everything),
            None if timeline == tail.timeline => (tail.durable, Found::SoFar),
            None => return (Some(self), Found::SoFar),
        };
        let limit = self.ends.begun.advanced(MAX_WINDOW).min(end);
        while self.records.position() < limit {
            let wanted = limit.bytes_since(self.records.position());
            let wanted = usize::try_from(wanted).map_or(READ, |wanted| wanted.min(READ));
            match self.reader.read(self.records.position(), wanted).await {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => {
                    let ends = &mut self.ends;
                    self.records.feed(&bytes, &mut |lsn, end| ends.note(lsn, end));
                }
                Err(error) => return (None, unreadable(timeline, &error)),
            }
        }
        let is_over = end <= self.records.position();
        (Some(self), if is_over { whole } else { Found::SoFar })
    }
}

fn unreadable(timeline: TimelineId, error: &StoreError) -> Found {
    tracing::info!(%timeline, %error, "the WAL of commits in doubt cannot be read");
    Found::Unreadable
}

/// The ends of transactions from a position on.
#[derive(Debug)]
struct Ends {
    begun: Lsn,
    /// By xid, which may be given again behind a shutdown checkpoint; in the order of the log.
    ends: HashMap<u32, Vec<(Lsn, TransactionEnd)>>,
    /// What may be about any of them.
    others: Vec<(Lsn, TransactionEnd)>,
}

impl Ends {
    fn from(begun: Lsn) -> Ends {
        Ends { begun, ends: HashMap::new(), others: Vec::new() }
    }

    fn note(&mut self, lsn: Lsn, end: TransactionEnd) {
        let xid = match end {
            _ if lsn < self.begun => return,
            TransactionEnd::All | TransactionEnd::OfPrepared => return self.others.push((lsn, end)),
            TransactionEnd::Committed { xid }
            | TransactionEnd::Aborted { xid }
            | TransactionEnd::Prepared { xid }
            | TransactionEnd::CommittedPrepared { xid }
            | TransactionEnd::AbortedPrepared { xid } => xid,
        };
        self.ends.entry(xid).or_default().push((lsn, end));
    }

    /// By the first record in its window that is about it. `None`: there is none yet.
    fn outcome(&self, commit: &CommitInDoubt) -> Option<CommitOutcome> {
        // Epochs do not change within the window.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "records carry the lower half (FullTransactionId)"
        )]
        let xid = commit.xid as u32;
        let own = self.ends.get(&xid).into_iter().flatten().chain(&self.others);
        let in_window = own.filter(|(lsn, _)| *lsn >= commit.from);
        let told = in_window.filter_map(|(lsn, end)| Some((*lsn, told_by(*end, commit.what)?)));
        told.min_by_key(|(lsn, _)| *lsn).map(|(_, outcome)| outcome)
    }
}

/// What a record about a transaction says of how it was to end; `None`: nothing.
fn told_by(end: TransactionEnd, what: Ending) -> Option<CommitOutcome> {
    use TransactionEnd as Told;
    match (what, end) {
        (Ending::Commit, Told::Committed { .. })
        | (Ending::Prepare, Told::Prepared { .. })
        | (Ending::CommitPrepared, Told::CommittedPrepared { .. })
        | (Ending::RollbackPrepared, Told::AbortedPrepared { .. }) => Some(CommitOutcome::Committed),
        // Prepared ones outlive it; whoever was about to end them does not.
        (_, Told::All) => Some(CommitOutcome::NotCommitted),
        (Ending::Commit | Ending::Prepare, Told::Aborted { .. })
        | (Ending::CommitPrepared, Told::AbortedPrepared { .. })
        | (Ending::RollbackPrepared, Told::CommittedPrepared { .. }) => Some(CommitOutcome::NotCommitted),
        // Not what was asked for.
        (
            Ending::Commit,
            Told::Prepared { .. } | Told::CommittedPrepared { .. } | Told::AbortedPrepared { .. },
        )
        | (
            Ending::Prepare,
            Told::Committed { .. } | Told::CommittedPrepared { .. } | Told::AbortedPrepared { .. },
        )
        | (Ending::CommitPrepared | Ending::RollbackPrepared, Told::OfPrepared) => {
            Some(CommitOutcome::Unknown)
        }
        // About another one; or from before it was to be ended.
        (Ending::Commit | Ending::Prepare, Told::OfPrepared)
        | (
            Ending::CommitPrepared | Ending::RollbackPrepared,
            Told::Committed { .. } | Told::Aborted { .. } | Told::Prepared { .. },
        ) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Ends;
    use crate::pg::wal::TransactionEnd::{
        self, Aborted, AbortedPrepared, All, Committed, CommittedPrepared, OfPrepared, Prepared,
    };
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{CommitInDoubt, CommitOutcome, Ending};

    /// Commit of 742 from 100 on, unless said otherwise.
    fn check(log: &[(u64, TransactionEnd)], expected: Option<CommitOutcome>) {
        let commit =
            CommitInDoubt { timeline: TimelineId(1), from: Lsn(100), xid: 742, what: Ending::Commit };
        check_commit(commit, log, expected);
    }

    fn check_commit(commit: CommitInDoubt, log: &[(u64, TransactionEnd)], expected: Option<CommitOutcome>) {
        let mut ends = Ends::from(Lsn(50));
        log.iter().for_each(|(lsn, end)| ends.note(Lsn(*lsn), *end));
        assert_eq!(ends.outcome(&commit), expected, "{log:?}");
    }

    #[test]
    fn the_first_record_about_it_tells() {
        use CommitOutcome::{Committed as Yes, NotCommitted as No};
        let xid = 742;
        check(&[], None);
        check(&[(120, Committed { xid: 741 }), (130, Aborted { xid: 743 })], None);
        check(&[(120, Committed { xid })], Some(Yes));
        check(&[(120, Aborted { xid })], Some(No));
        check(&[(120, All)], Some(No));
        // The server ended in order, behind it.
        check(&[(120, Committed { xid }), (130, All)], Some(Yes));
        // After a crash the xid of the lost tail is another transaction's.
        check(&[(120, All), (130, Committed { xid })], Some(No));
        // What lies before the window is about others.
        check(&[(60, Committed { xid })], None);
        check(&[(60, All), (120, Committed { xid })], Some(Yes));
        check(&[(60, Committed { xid }), (90, All), (120, Aborted { xid })], Some(No));
    }

    #[test]
    fn a_whole_xid_is_found_by_its_lower_half() {
        let xid = 3 << 32 | 742;
        let commit = CommitInDoubt { timeline: TimelineId(1), from: Lsn(100), xid, what: Ending::Commit };
        check_commit(commit, &[(120, Committed { xid: 742 })], Some(CommitOutcome::Committed));
    }

    #[test]
    fn prepared_is_not_committed() {
        let prepare =
            CommitInDoubt { timeline: TimelineId(1), from: Lsn(100), xid: 742, what: Ending::Prepare };
        let commit = CommitInDoubt { what: Ending::Commit, ..prepare };
        let (prepared, committed) = (Prepared { xid: 742 }, Committed { xid: 742 });
        check_commit(prepare, &[(120, prepared)], Some(CommitOutcome::Committed));
        check_commit(prepare, &[(120, All)], Some(CommitOutcome::NotCommitted));
        check_commit(prepare, &[(120, committed)], Some(CommitOutcome::Unknown));
        check_commit(commit, &[(120, prepared)], Some(CommitOutcome::Unknown));
        check_commit(
            prepare,
            &[(120, prepared), (130, CommittedPrepared { xid: 742 })],
            Some(CommitOutcome::Committed),
        );
    }

    #[test]
    fn a_second_phase_is_found_by_what_it_ends() {
        use CommitOutcome::{Committed as Yes, NotCommitted as No, Unknown};
        use Ending::{CommitPrepared, RollbackPrepared};
        let (committed, aborted) = (CommittedPrepared { xid: 742 }, AbortedPrepared { xid: 742 });
        let other = CommittedPrepared { xid: 741 };
        for (log, of_commit, of_rollback) in [
            (vec![], None, None),
            (vec![(120, other)], None, None),
            (vec![(120, committed)], Some(Yes), Some(No)),
            (vec![(120, aborted)], Some(No), Some(Yes)),
            // How it came to be prepared, behind the window's begin; an xid of one's own.
            (vec![(110, Prepared { xid: 742 })], None, None),
            (vec![(110, Prepared { xid: 742 }), (120, committed)], Some(Yes), Some(No)),
            (vec![(110, Committed { xid: 742 }), (120, aborted)], Some(No), Some(Yes)),
            // It is still prepared behind a restart, and whoever ends it then is another one.
            (vec![(120, All)], Some(No), Some(No)),
            (vec![(120, All), (130, committed)], Some(No), Some(No)),
            (vec![(120, committed), (130, All)], Some(Yes), Some(No)),
            (vec![(60, committed)], None, None),
            // It may have been this one.
            (vec![(120, OfPrepared)], Some(Unknown), Some(Unknown)),
            (vec![(120, committed), (130, OfPrepared)], Some(Yes), Some(No)),
        ] {
            for (what, expected) in [(CommitPrepared, of_commit), (RollbackPrepared, of_rollback)] {
                let commit = CommitInDoubt { timeline: TimelineId(1), from: Lsn(100), xid: 742, what };
                check_commit(commit, &log, expected);
            }
        }
        check(&[(120, OfPrepared), (130, Committed { xid: 742 })], Some(Yes));
    }
}
