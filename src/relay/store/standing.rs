//! In which term the log counts. PURE.
//!
//! With several relays an election goes on with the log of the latest term ([`crate::topology::Position`]). A log is of
//! a term once it has reached that term's floor: from there on what it has at its end is newer than all that a log of an
//! earlier term has. So that nothing of the new term is in a log that still counts as of an earlier one, the floor is on
//! disk before any stream of its term begins ([`crate::relay::steer`]).
//!
//! Timeline and LSN do not tell a log from one of another branch with the same timeline's number: two candidates that are
//! promoted from one fork, in two terms, have that. Terms do: within one, only one server writes. So a log that counts in
//! another term than the one that goes on is *in doubt* until a stream of the floor's term has shown that what both have
//! is the same. Until then it does not count in that term, acknowledges nothing, and nothing of it is shipped.

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
    #[serde(default)]
    doubt: Doubt,
}

/// Whether the log is known to be in the history of the floor's term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Doubt {
    #[default]
    Resolved,
    Lasts,
}

impl Standing {
    /// The term of a log that ends at `end`.
    pub(crate) fn term(&self, end: (TimelineId, Lsn)) -> Term {
        match self.floor {
            Some(floor) if floor.doubt == Doubt::Resolved && floor.is_reached(end) => floor.term,
            _ => self.log_term,
        }
    }

    /// Whether other relays have to have what leaves this one.
    pub(crate) fn is_of_several(&self) -> bool {
        self.floor.is_some()
    }

    /// Whether the log is known to be in the history of `term`, reached or not.
    pub(crate) fn is_in_history(&self, term: Term) -> bool {
        self.floor.is_some_and(|floor| floor.term == term && floor.doubt == Doubt::Resolved)
    }

    /// Whether a stream has to show first that the log is in the history of its floor's term.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.floor.is_some_and(|floor| floor.doubt == Doubt::Lasts)
    }

    /// Up to where a stream has to show the same as a log in doubt has that ends at `end`. `None`: it is in no doubt.
    pub(crate) fn must_show(&self, end: (TimelineId, Lsn)) -> Option<Lsn> {
        self.floor.filter(|floor| floor.doubt == Doubt::Lasts).map(|floor| floor.must_show(end))
    }

    /// Whether there is no doubt any more when a stream of `term` has shown the same up to `agreed`, for a log that ends
    /// at `end`.
    pub(crate) fn is_shown(&self, term: Term, agreed: Lsn, end: (TimelineId, Lsn)) -> bool {
        self.floor.is_some_and(|floor| floor.term == term && agreed >= floor.must_show(end))
    }

    /// A stream of `term` has shown it.
    #[must_use]
    pub(crate) fn shown(mut self, term: Term) -> Standing {
        if let Some(floor) = self.floor.as_mut().filter(|floor| floor.term == term) {
            floor.doubt = Doubt::Resolved;
        }
        self
    }

    /// Whether this floor is the one that counts.
    pub(crate) fn has(&self, term: Term, floor: &Floor) -> bool {
        let same = |own: &Recorded| (own.term, own.timeline, own.end) == (term, floor.timeline, floor.end);
        self.floor.as_ref().is_some_and(same)
    }

    /// The log that ends at `end` counts from another floor on.
    #[must_use]
    pub(crate) fn with(&self, term: Term, floor: &Floor, end: (TimelineId, Lsn)) -> Standing {
        let Floor { timeline, end: floor_end, source: _, log_term: theirs } = *floor;
        let log_term = self.term(end);
        // An empty log has nothing that could be another's, and one that counted in the term keeps that.
        let is_known = log_term == theirs || log_term == term || !end.1.is_valid();
        let doubt = if is_known { Doubt::Resolved } else { Doubt::Lasts };
        let recorded = Recorded { term, timeline, end: floor_end, above: timeline.max(end.0), doubt };
        Standing { log_term, floor: Some(recorded) }
    }
}

impl Recorded {
    fn is_reached(&self, (timeline, end): (TimelineId, Lsn)) -> bool {
        timeline > self.above || (timeline == self.timeline && end >= self.end)
    }

    /// What lies behind the floor is left behind, if it is not in the history.
    fn must_show(&self, (timeline, end): (TimelineId, Lsn)) -> Lsn {
        if timeline == self.timeline { end.min(self.end) } else { end }
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
        /// Term, timeline, LSN; of a log of the same term.
        Floor(u64, u32, u64),
        /// Of a log of the last term here.
        FloorOf(u64, u32, u64, u64),
        End(u32, u64),
        /// A stream of that term has shown the same up to there.
        Shows(u64, u64),
    }

    /// The log's terms behind each step.
    fn check(mut end: End, steps: &[Step], expected: &[u64]) {
        let mut standing = Standing::default();
        let at = |(timeline, lsn): End| (TimelineId(timeline), Lsn(lsn));
        let mut terms = Vec::new();
        for step in steps {
            let same = standing.term(at(end)).0;
            let mut floor = |term, timeline, lsn, log_term| {
                let (timeline, end_of_floor, log_term) = (TimelineId(timeline), Lsn(lsn), Term(log_term));
                let floor = Floor { timeline, end: end_of_floor, source: None, log_term };
                standing = standing.with(Term(term), &floor, at(end));
                assert!(standing.has(Term(term), &floor) && !standing.has(Term(term + 1), &floor));
            };
            match *step {
                Step::Floor(term, timeline, lsn) => floor(term, timeline, lsn, same),
                Step::FloorOf(term, timeline, lsn, log_term) => floor(term, timeline, lsn, log_term),
                Step::End(timeline, lsn) => end = (timeline, lsn),
                Step::Shows(term, lsn) if standing.is_shown(Term(term), Lsn(lsn), at(end)) => {
                    standing = standing.shown(Term(term));
                }
                Step::Shows(..) => {}
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
    fn a_branch_of_the_same_number_does_not_count() {
        use Step::{End, Floor, FloorOf, Shows};
        // Timeline 2 was followed in term 3. Another one of that number began in term 4, of which nothing was heard here,
        // and goes on in term 5.
        let missed = || [Floor(3, 1, 100), End(2, 130), FloorOf(5, 2, 120, 4)];
        let and = |more: Vec<Step>| missed().into_iter().chain(more).collect::<Vec<_>>();
        check((1, 100), &and(vec![End(2, 150), End(3, 150)]), &[3, 3, 3, 3, 3]);
        // It is the same one after all: what both have of it is.
        check((1, 100), &and(vec![Shows(5, 119), Shows(4, 120), Shows(5, 120)]), &[3, 3, 3, 3, 3, 5]);
        // What has come meanwhile has to be shown, too.
        let steps = and(vec![End(3, 140), Shows(5, 139), Shows(5, 140)]);
        check((1, 100), &steps, &[3, 3, 3, 3, 3, 5]);
        // Not reached yet: it counts there, as always.
        let steps = [Floor(3, 1, 100), FloorOf(5, 1, 120, 4), Shows(5, 100), End(1, 120)];
        check((1, 100), &steps, &[3, 3, 3, 5]);
    }

    #[test]
    fn who_was_of_the_term_that_goes_on_is_in_no_doubt() {
        use Step::{End, Floor, FloorOf};
        check((1, 100), &[Floor(3, 1, 100), FloorOf(5, 1, 100, 3)], &[3, 5]);
        check((0, 0), &[FloorOf(5, 1, 100, 3), End(1, 100)], &[0, 5]);
        // Nor is who counted in the very term.
        check((1, 100), &[Floor(3, 1, 100), FloorOf(3, 1, 120, 2), End(1, 120)], &[3, 3, 3]);
    }

    #[test]
    fn a_branch_that_lost_its_election_does_not_count() {
        use Step::{End, Floor};
        // Timeline 2 was followed in term 3; term 4 goes on with a log of timeline 1.
        let steps = [Floor(3, 1, 100), End(2, 120), Floor(4, 1, 110), End(2, 130), End(3, 110)];
        check((1, 100), &steps, &[3, 3, 3, 3, 4]);
    }
}
