//! How far followers are served: to the end of the last whole record that enough relays have ([`Agreed`]).
//!
//! What only this relay has may be on no other when the next election goes on, and a follower that had got it would be
//! ahead of the fork. So what leaves this relay for good is bounded by what is agreed: WAL to followers, the archive, what
//! became of a commit. Other relays get all that is durable here: agreement comes of that.
//!
//! [`Shipping`] decides; [`Gate`] is the task around it. An instance that is alone has none: there the store's own tail
//! is handed on.
//!
//! What is agreed is so in the history of a term. A log that has missed a term may be on another branch, and then has other
//! WAL at the same places: nothing more leaves it before that is known (`store/standing`).
//!
//! Half a record is never shipped (see [`Store::tail`]), and what is agreed may end amid one. Where records end is known of
//! the places where this relay's own log has ended, and before the first of these it is looked up.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;

use super::store::{Standing, Store, Tail};
use crate::pg::wal::{Expected, Verifier};
use crate::pg::{Lsn, TimelineId};
use crate::topology::Agreed;

/// Ends of records that are remembered. When there are as many, every second one is forgotten.
const MAX_ENDS: usize = 4096;
/// The end of a record is looked up at most so often.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Read at a time.
const READ: usize = 1 << 20;

/// Where the second timeline, or the one from which it descends, leaves the first; `None`: it is no ancestor, or not known.
type Forks<'a> = &'a dyn Fn(TimelineId, TimelineId) -> Option<Lsn>;

/// What may leave. PURE.
#[derive(Debug, Default)]
struct Shipping {
    /// Where this log has ended, in order; each is the end of a record. The first is what was shipped, if anything was.
    ends: VecDeque<Tail>,
    /// Never goes back.
    shipped: Tail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Ship(Tail),
    /// As before, unless a record ends behind what was shipped and not behind this.
    Look(Tail),
}

impl Shipping {
    fn next(&mut self, own: Tail, agreed: Agreed, forks: Forks<'_>) -> Next {
        self.remember(own, forks);
        let bound = match agreed {
            Agreed::Alone => Some(own),
            Agreed::Quorum { end, .. } => end.and_then(|end| bound(own, end, forks)),
        };
        let Some(bound) = bound.filter(|bound| *bound > self.shipped) else {
            return Next::Ship(self.shipped);
        };
        if self.ends.front().is_none_or(|first| *first > bound) {
            return Next::Look(bound);
        }
        while self.ends.get(1).is_some_and(|next| *next <= bound) {
            self.ends.pop_front();
        }
        self.shipped = self.shipped.max(self.ends[0]);
        Next::Ship(self.shipped)
    }

    /// A record ends there.
    fn found(&mut self, end: Tail) {
        if self.ends.front().is_none_or(|first| end < *first) {
            self.ends.push_front(end);
        }
    }

    fn remember(&mut self, own: Tail, forks: Forks<'_>) {
        // It has gone back. What was shipped is behind that, but for async, where what followers have is nobody's.
        if self.ends.back().is_some_and(|last| *last > own) {
            self.ends.retain(|end| *end <= own);
            self.shipped = self.shipped.min(own);
        }
        if let Some(last) = self.ends.back().copied().filter(|last| last.timeline < own.timeline) {
            // What lies behind the fork is not in this log any more, and a record ends at the fork.
            let fork = forks(last.timeline, own.timeline).unwrap_or(Lsn::INVALID);
            let fork = Tail { timeline: last.timeline, durable: fork };
            self.ends.retain(|end| *end < fork);
            if fork.durable.is_valid() {
                self.ends.push_back(fork);
            }
        }
        if own.durable.is_valid() && self.ends.back().is_none_or(|last| *last < own) {
            self.ends.push_back(own);
        }
        if self.ends.len() >= MAX_ENDS {
            let mut keeps = [true, false].into_iter().cycle();
            self.ends.retain(|_| keeps.next() == Some(true));
        }
    }
}

/// What is agreed, as far as it says something of a log of that standing.
fn of_this_log(agreed: Agreed, standing: Standing) -> Agreed {
    match agreed {
        Agreed::Quorum { term, .. } if !standing.is_in_history(term) => Agreed::Quorum { term, end: None },
        Agreed::Alone | Agreed::Quorum { .. } => agreed,
    }
}

/// What this log and what is agreed have in common.
fn bound(own: Tail, (timeline, lsn): (TimelineId, Lsn), forks: Forks<'_>) -> Option<Tail> {
    let (common, end) = match timeline.cmp(&own.timeline) {
        std::cmp::Ordering::Equal => (timeline, own.durable.min(lsn)),
        std::cmp::Ordering::Less => (timeline, lsn.min(forks(timeline, own.timeline)?)),
        std::cmp::Ordering::Greater => (own.timeline, own.durable.min(forks(own.timeline, timeline)?)),
    };
    Some(Tail { timeline: common, durable: end })
}

/// How far followers are served, and the task that says so, where there is one to run.
pub(super) fn shipped(
    store: &Store,
    agreed: &watch::Receiver<Agreed>,
) -> (watch::Receiver<Tail>, Option<Gate>) {
    if *agreed.borrow() == Agreed::Alone {
        return (store.tail(), None);
    }
    let (shipped, tail) = watch::channel(Tail::default());
    (tail, Some(Gate { store: store.clone(), agreed: agreed.clone(), shipped }))
}

#[derive(Debug)]
pub(super) struct Gate {
    store: Store,
    agreed: watch::Receiver<Agreed>,
    shipped: watch::Sender<Tail>,
}

impl Gate {
    /// As long as the store is there.
    pub(super) async fn run(mut self) {
        let mut tail = self.store.tail();
        let mut shipping = Shipping::default();
        loop {
            let (own, standing) = (*tail.borrow_and_update(), self.store.report().borrow().standing);
            let agreed = of_this_log(*self.agreed.borrow_and_update(), standing);
            let forks = |ancestor, timeline| forked(&self.store, ancestor, timeline);
            match shipping.next(own, agreed, &forks) {
                Next::Ship(next) => {
                    self.shipped.send_if_modified(|shipped| std::mem::replace(shipped, next) != next);
                }
                Next::Look(bound) => {
                    if let Some(end) = end_of_record(&self.store, bound).await.filter(|end| *end <= bound) {
                        shipping.found(end);
                        continue;
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
            tokio::select! {
                changed = tail.changed() => if changed.is_err() { return },
                changed = self.agreed.changed() => if changed.is_err() { return std::future::pending().await },
            }
        }
    }
}

fn forked(store: &Store, ancestor: TimelineId, timeline: TimelineId) -> Option<Lsn> {
    store.history_of(timeline).ok()?.switchpoint(ancestor)
}

/// The end of the last record that is whole up to `bound`, if there is one in its segment.
async fn end_of_record(store: &Store, bound: Tail) -> Option<Tail> {
    let Tail { timeline, durable } = bound;
    let (segment_size, system) = (store.segment_size(), store.system());
    let start = segment_size.segment_start(durable);
    let mut verifier = Verifier::new(start, Expected { segment_size, timeline, system });
    while verifier.position() < durable {
        let missing = usize::try_from(durable.bytes_since(verifier.position())).unwrap_or(usize::MAX);
        let bytes = store.read(timeline, verifier.position(), missing.min(READ)).await.ok()?;
        if bytes.is_empty() || verifier.feed(&bytes).is_err() {
            break;
        }
    }
    verifier.whole().map(|durable| Tail { timeline, durable })
}

#[cfg(test)]
mod tests {
    use super::{Next, Shipping, Tail, of_this_log};
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::store::Standing;
    use crate::topology::{Agreed, Floor, Term};

    /// Timeline and LSN.
    type End = (u32, u64);

    fn tail((timeline, lsn): End) -> Tail {
        Tail { timeline: TimelineId(timeline), durable: Lsn(lsn) }
    }

    fn quorum(end: Option<End>) -> Agreed {
        Agreed::Quorum { term: Term(7), end: end.map(|(timeline, lsn)| (TimelineId(timeline), Lsn(lsn))) }
    }

    #[test]
    fn a_log_of_another_branch_is_not_what_was_agreed() {
        let (agreed, end) = (quorum(Some((2, 130))), (TimelineId(2), Lsn(140)));
        let floor =
            |log_term| Floor { timeline: end.0, end: Lsn(120), source: None, log_term: Term(log_term) };
        // Timeline 2 is another one since term 6, of which this log has heard nothing.
        let before = Standing::default().with(Term(5), &floor(0), end);
        assert_eq!(of_this_log(agreed, before), quorum(None), "before the floor of the term is recorded");
        let in_doubt = before.with(Term(7), &floor(6), end);
        assert_eq!(of_this_log(agreed, in_doubt), quorum(None));
        assert_eq!(of_this_log(agreed, in_doubt.shown(Term(7))), agreed);
        assert_eq!(of_this_log(agreed, before.with(Term(7), &floor(5), end)), agreed);
        assert_eq!(of_this_log(Agreed::Alone, in_doubt), Agreed::Alone);
    }

    /// Own end and what is agreed, and how far followers are served then; `None`: it is looked up.
    /// Timeline 2 leaves the first at 300, timeline 3 the second at 500.
    fn check(steps: &[(End, Option<End>, Option<End>)]) {
        let fork = |ancestor: TimelineId, timeline: TimelineId| match (ancestor.0, timeline.0) {
            (1, 2 | 3) => Some(Lsn(300)),
            (2, 3) => Some(Lsn(500)),
            _ => None,
        };
        let mut shipping = Shipping::default();
        for (own, agreed, expected) in steps {
            let next = shipping.next(tail(*own), quorum(*agreed), &fork);
            let shipped = match next {
                Next::Ship(tail) => Some((tail.timeline.0, tail.durable.0)),
                Next::Look(_) => None,
            };
            assert_eq!(shipped, *expected, "own {own:?}, agreed {agreed:?}");
        }
    }

    #[test]
    fn what_is_agreed_and_here_is_served_up_to_the_end_of_a_record() {
        let nothing = Some((0, 0));
        check(&[((1, 100), None, nothing), ((1, 100), Some((1, 100)), Some((1, 100)))]);
        // Agreed is more than is here, then less.
        check(&[
            ((1, 100), Some((1, 200)), Some((1, 100))),
            ((1, 180), Some((1, 200)), Some((1, 180))),
            ((1, 250), Some((1, 200)), Some((1, 180))),
            ((1, 260), Some((1, 255)), Some((1, 250))),
        ]);
        // It takes nothing back.
        check(&[
            ((1, 100), Some((1, 100)), Some((1, 100))),
            ((1, 120), None, Some((1, 100))),
            ((1, 120), Some((1, 90)), Some((1, 100))),
        ]);
    }

    #[test]
    fn behind_a_branch_that_was_left_no_end_of_it_counts() {
        check(&[((1, 300), Some((1, 250)), None), ((1, 250), Some((1, 250)), Some((1, 250)))]);
        // Timeline 2 was followed, left, and is another's now: 340 is amid one of its records.
        check(&[
            ((1, 300), Some((1, 300)), Some((1, 300))),
            ((2, 340), Some((1, 300)), Some((1, 300))),
            ((1, 300), Some((1, 300)), Some((1, 300))),
            ((2, 400), Some((2, 350)), Some((1, 300))),
        ]);
    }

    #[test]
    fn over_a_fork_what_both_have_is_served() {
        // Here it was followed before it was agreed on: of the first timeline up to the fork.
        check(&[
            ((1, 310), Some((1, 200)), None),
            ((2, 300), Some((1, 320)), Some((1, 300))),
            ((2, 350), Some((1, 320)), Some((1, 300))),
            ((2, 360), Some((2, 350)), Some((2, 350))),
        ]);
        // The others followed first.
        check(&[
            ((1, 290), Some((2, 400)), Some((1, 290))),
            ((1, 310), Some((2, 400)), Some((1, 290))),
            ((2, 300), Some((2, 400)), Some((2, 300))),
        ]);
        check(&[((3, 500), Some((1, 400)), None)]);
        // Another branch has nothing to say of this one.
        check(&[((1, 100), Some((1, 100)), Some((1, 100))), ((1, 120), Some((4, 130)), Some((1, 100)))]);
    }

    #[test]
    fn where_no_end_of_a_record_is_known_it_is_looked_up() {
        let fork = |_, _| None;
        let mut shipping = Shipping::default();
        let mut next = |agreed: u64, found: Option<u64>| {
            if let Some(found) = found {
                shipping.found(tail((1, found)));
            }
            shipping.next(tail((1, 100)), quorum(Some((1, agreed))), &fork)
        };
        assert_eq!(next(80, None), Next::Look(tail((1, 80))));
        assert_eq!(next(80, Some(70)), Next::Ship(tail((1, 70))));
        assert_eq!(next(100, None), Next::Ship(tail((1, 100))));
    }

    #[test]
    fn the_ends_of_a_quorum_that_stands_still_are_thinned_out() {
        let mut shipping = Shipping::default();
        let fork = |_, _| None;
        let agreed = |lsn| quorum(Some((1, lsn)));
        for lsn in 1..=100_000 {
            shipping.next(tail((1, lsn)), agreed(1), &fork);
            assert!(shipping.ends.len() < super::MAX_ENDS);
        }
        let Next::Ship(shipped) = shipping.next(tail((1, 100_000)), agreed(90_000), &fork) else {
            panic!("ends are known");
        };
        assert!((80_000..=90_000).contains(&shipped.durable.0), "{shipped:?}");
    }
}
