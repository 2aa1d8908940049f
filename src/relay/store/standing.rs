//! In which term the log counts. PURE.
//!
//! With several relays an election goes on with the log of the latest term ([`crate::topology::Position`]). A log is of
//! a term once it has reached that term's floor: from there on what it has at its end is newer than all that a log of an
//! earlier term has. So that nothing of the new term is in a log that still counts as of an earlier one, the floor is on
//! disk before any stream of its term begins ([`crate::relay::steer`]).

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, TimelineId};
use crate::topology::{Floor, Term};

/// Without a floor ever (one instance alone, a relay that is new, a log begun anew): of no term. Then the longest log is
/// the one to go on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Standing {
    /// The last term whose floor the log had reached when `floor` was recorded.
    log_term: Term,
    floor: Option<Recorded>,
}

/// A floor that the log counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    term: Term,
    timeline: TimelineId,
    end: Lsn,
    /// On a later timeline than this the log has gone past the floor, wherever it ends. Not less than the log's own when
    /// the floor was recorded: one that was on a later timeline then is on a branch that the election did not go on with.
    above: TimelineId,
}

impl Standing {
    /// The term of a log that ends at `end`.
    pub(crate) fn term(&self, end: (TimelineId, Lsn)) -> Term {
        match self.floor {
            Some(floor) if floor.is_reached(end) => floor.term,
            _ => self.log_term,
        }
    }

    /// Whether other relays have to have what leaves this one.
    pub(crate) fn is_of_several(&self) -> bool {
        self.floor.is_some()
    }

    /// Whether this floor is the one that counts.
    pub(crate) fn has(&self, term: Term, floor: &Floor) -> bool {
        let same = |own: &Recorded| (own.term, own.timeline, own.end) == (term, floor.timeline, floor.end);
        self.floor.as_ref().is_some_and(same)
    }

    /// The log that ends at `end` counts from another floor on.
    #[must_use]
    pub(crate) fn with(&self, term: Term, floor: &Floor, end: (TimelineId, Lsn)) -> Standing {
        let Floor { timeline, end: floor_end, source: _ } = *floor;
        let recorded = Recorded { term, timeline, end: floor_end, above: timeline.max(end.0) };
        Standing { log_term: self.term(end), floor: Some(recorded) }
    }
}

impl Recorded {
    fn is_reached(&self, (timeline, end): (TimelineId, Lsn)) -> bool {
        timeline > self.above || (timeline == self.timeline && end >= self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::Standing;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{Floor, Term};

    /// Timeline and LSN.
    type End = (u32, u64);

    enum Step {
        /// Term, timeline, LSN.
        Floor(u64, u32, u64),
        End(u32, u64),
    }

    /// The log's terms behind each step.
    fn check(mut end: End, steps: &[Step], expected: &[u64]) {
        let mut standing = Standing::default();
        let at = |(timeline, lsn): End| (TimelineId(timeline), Lsn(lsn));
        let mut terms = Vec::new();
        for step in steps {
            match *step {
                Step::Floor(term, timeline, lsn) => {
                    let floor = Floor { timeline: TimelineId(timeline), end: Lsn(lsn), source: None };
                    standing = standing.with(Term(term), &floor, at(end));
                    assert!(standing.has(Term(term), &floor) && !standing.has(Term(term + 1), &floor));
                }
                Step::End(timeline, lsn) => end = (timeline, lsn),
            }
            terms.push(standing.term(at(end)).0);
        }
        assert_eq!(terms, expected);
    }

    #[test]
    fn a_log_counts_once_it_has_reached_the_floor() {
        use Step::{End, Floor};
        check((1, 100), &[End(1, 200)], &[0]);
        check((1, 100), &[Floor(3, 1, 100)], &[3]);
        check((1, 100), &[Floor(3, 1, 101), End(1, 101)], &[0, 3]);
        check((0, 0), &[Floor(3, 1, 100), End(1, 90), End(1, 100)], &[0, 0, 3]);
        // Past the fork.
        check((1, 100), &[Floor(3, 1, 150), End(2, 90)], &[0, 3]);
    }

    #[test]
    fn it_stays_of_the_term_before_until_then() {
        use Step::{End, Floor};
        let steps = [Floor(3, 1, 100), Floor(4, 1, 150), Floor(5, 1, 160), End(1, 150), End(1, 160)];
        check((1, 100), &steps, &[3, 3, 3, 3, 5]);
        // Another floor of the same term takes nothing back.
        check((1, 100), &[Floor(3, 1, 100), End(2, 100), Floor(3, 2, 100), Floor(3, 2, 120)], &[3, 3, 3, 3]);
    }

    #[test]
    fn a_branch_that_lost_its_election_does_not_count() {
        use Step::{End, Floor};
        // Timeline 2 was followed in term 3; term 4 goes on with a log of timeline 1.
        let steps = [Floor(3, 1, 100), End(2, 120), Floor(4, 1, 110), End(2, 130), End(3, 110)];
        check((1, 100), &steps, &[3, 3, 3, 3, 4]);
    }
}
