//! The proxy as the new process's control plane sees it: its own, and what is left of the old process. PURE.
//!
//! "One primary" holds for both. A term is confirmed, and a candidate cleared, when both say so; while nothing is known
//! of the old process, it has confirmed nothing.

use super::message::Status;
use crate::topology::{Draining, ProxyStatus};

/// What is known of the old process's sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// It has not said anything, or cannot be heard any more and may still run.
    Unknown,
    Heard(Status),
    /// It does not run any more: none of its sockets is open.
    Gone,
}

pub(super) fn both(own: &ProxyStatus, old: &Old) -> ProxyStatus {
    let nothing = Status::default();
    let (old, draining) = match old {
        Old::Gone => return own.clone(),
        Old::Unknown => (&nothing, Draining::Unknown),
        Old::Heard(status) => (status, Draining::Known(status.connections)),
    };
    ProxyStatus {
        confirmed: own.confirmed.min(old.confirmed),
        cleared: own.cleared.clone().filter(|candidate| old.cleared.as_ref() == Some(candidate)),
        // The old process says nothing of it: the order is refused while it serves anybody.
        drained: None,
        held: own.held + old.held,
        draining,
        evidence: own.evidence.clone(),
    }
}

/// Whether a fence may be waiting for the old process alone.
pub(super) fn is_waited_for(own: &ProxyStatus, old: &Old) -> bool {
    match old {
        Old::Gone => false,
        Old::Unknown => true,
        Old::Heard(status) => status.confirmed < own.confirmed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::drain::Count;
    use super::super::message::Status;
    use super::{Old, both, is_waited_for};
    use crate::topology::{Candidate, Draining, ProxyStatus, Term};

    fn status(confirmed: u64) -> Status {
        Status { confirmed: Term(confirmed), cleared: None, held: 2, connections: 3, gone: Count::default() }
    }

    #[test]
    fn who_has_not_confirmed_what_we_have_is_waited_for() {
        let own = ProxyStatus { confirmed: Term(2), ..ProxyStatus::default() };
        for (old, waited_for) in [
            (Old::Gone, false),
            (Old::Unknown, true),
            (Old::Heard(status(1)), true),
            (Old::Heard(status(2)), false),
            (Old::Heard(status(3)), false),
        ] {
            assert_eq!(is_waited_for(&own, &old), waited_for, "{old:?}");
        }
    }

    #[test]
    fn only_what_both_say_holds() {
        // A node's name and its round.
        let candidate = |text: &str| {
            let (node, round) = text.split_once(' ')?;
            Some(Candidate { node: node.parse().ok()?, round: round.parse().ok()? })
        };
        let heard = |term, cleared| Old::Heard(Status { cleared: candidate(cleared), ..status(term) });
        for ((term, cleared), old, expected) in [
            ((2, "pg2 1"), Old::Gone, (2, "pg2 1", 1)),
            ((2, "pg2 1"), Old::Unknown, (0, "", 1)),
            ((2, "pg2 1"), heard(1, "pg2 1"), (1, "pg2 1", 3)),
            ((1, ""), heard(2, "pg2 1"), (1, "", 3)),
            ((2, "pg2 1"), heard(2, "pg2 1"), (2, "pg2 1", 3)),
            ((2, "pg2 1"), heard(2, "pg3 1"), (2, "", 3)),
            // What it said before another one's turn says nothing of now.
            ((2, "pg2 3"), heard(2, "pg2 1"), (2, "", 3)),
        ] {
            let own = ProxyStatus {
                confirmed: Term(term),
                cleared: candidate(cleared),
                held: 1,
                ..ProxyStatus::default()
            };
            let seen = both(&own, &old);
            let (term, cleared, held) = expected;
            assert_eq!(
                (seen.confirmed, seen.cleared, seen.held),
                (Term(term), candidate(cleared), held),
                "{old:?}"
            );
            let draining = match old {
                Old::Gone => Draining::Known(0),
                Old::Unknown => Draining::Unknown,
                Old::Heard(_) => Draining::Known(3),
            };
            assert_eq!(seen.draining, draining, "{old:?}");
        }
    }
}
