//! A log on a branch that an election did not go on with: it goes back to where it left the history that goes on.
//!
//! A candidate that died right after its promotion may have given some relays the first WAL of a timeline that nobody
//! else has. An election goes on with the log of the latest term that enough relays had ([`crate::topology::Members`]),
//! so all that was ever acknowledged is in it, and what another log has beside it was acknowledged to nobody. That log
//! must not begin anew: what both have in common may be on too few relays else.
//!
//! What follows from the floor alone is done before it is recorded. The rest shows when an upstream is asked for its
//! history: the one whose timeline the directive says was verified, or the relay that the election went on with.
//!
//! Not here: an instance that is alone has no floor, and no other log to go by; there a person decides
//! ([`crate::relay::reset`]).

use super::{Order, Steering, Whom};
use crate::pg::wal::History;
use crate::pg::{Lsn, TimelineId};
use crate::relay::store::{Change, Rewind, StoreError};
use crate::topology::{Directive, Floor, Refusal, StreamEnd, Term};

/// Where a log with this history left that of a floor, as far as the floor tells: it is on a later timeline. `None`: not
/// that is known.
fn before_floor(own: &History, floor: &Floor) -> Option<(TimelineId, Lsn)> {
    if own.timeline() <= floor.timeline {
        return None;
    }
    let common = own.ancestors().iter().rev().find(|entry| entry.timeline <= floor.timeline)?;
    Some((common.timeline, common.switchpoint))
}

impl Steering {
    /// Before the floor of a term is recorded: what comes then counts from it.
    pub(super) async fn leave_branch(&mut self, directive: &Directive) -> Result<(), StoreError> {
        let Some(floor) = &directive.floor else { return Ok(()) };
        let is_anothers = floor.source.as_ref().is_some_and(|source| *source != self.instance);
        if !is_anothers || self.has_counted_in(directive.term) {
            return Ok(());
        }
        if let Some(fork) = before_floor(&self.store.history(), floor) {
            self.go_back(fork, floor.source.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Behind a stream: whether its source is worth to be asked again at once.
    pub(super) async fn leave_branch_of(
        &mut self,
        order: &Order,
        source: &str,
        end: &StreamEnd,
    ) -> Result<bool, StoreError> {
        let StreamEnd::Refused { cause: Refusal::Branched { theirs, fork }, .. } = *end else {
            return Ok(false);
        };
        let verified = {
            let directive = self.inputs.directive.borrow();
            match &order.whom {
                _ if directive.term != order.term() || directive.floor.is_none() => None,
                Whom::Upstream(_) => directive.timeline,
                Whom::Source { floor, .. } => Some(floor.timeline),
                Whom::Nobody => None,
            }
        };
        if verified != Some(theirs) || self.has_counted_in(order.term()) {
            return Ok(false);
        }
        self.go_back(fork, source).await
    }

    /// Then something may have been acknowledged that only such logs have. An old directive's term is none any more.
    fn has_counted_in(&self, term: Term) -> bool {
        let report = self.store.report();
        let report = report.borrow();
        report.log_term() >= term || report.promised > term
    }

    async fn go_back(&mut self, (timeline, to): (TimelineId, Lsn), source: &str) -> Result<bool, StoreError> {
        let left = self.store.report().borrow().tail;
        match self.store.change(Change::Rewind(Rewind { timeline, to })).await {
            Ok(()) => {
                tracing::info!(
                    %timeline, %to, from = %left.timeline, end = %left.durable, source,
                    "the log goes back: an election went on with another"
                );
                Ok(true)
            }
            Err(error) if error.concerns_stream_only() => {
                tracing::error!(%timeline, %to, %error, "the log cannot leave a branch that nobody goes on with");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::before_floor;
    use crate::pg::wal::History;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{Floor, Term};

    #[test]
    fn a_later_timeline_than_the_floors_is_a_branch() {
        // Timeline and history file; the floor's timeline; where they parted.
        let check = |own: (u32, &str), floor: u32, expected: Option<(u32, u64)>| {
            let history = History::parse(TimelineId(own.0), own.1.as_bytes()).expect("well-formed");
            let floor =
                Floor { timeline: TimelineId(floor), end: Lsn(0x250), source: None, log_term: Term(0) };
            let expected = expected.map(|(timeline, lsn)| (TimelineId(timeline), Lsn(lsn)));
            assert_eq!(before_floor(&history, &floor), expected, "{own:?} {floor:?}");
        };
        check((1, ""), 1, None);
        check((1, ""), 2, None);
        check((2, "1 0/200"), 1, Some((1, 0x200)));
        check((3, "1 0/200\n2 0/300"), 1, Some((1, 0x200)));
        check((3, "1 0/200\n2 0/300"), 2, Some((2, 0x300)));
        // Not of its history, or it has the same number: that shows when somebody is asked.
        check((4, "1 0/200"), 3, Some((1, 0x200)));
        check((3, "1 0/200"), 3, None);
        // Begun on the branch: nothing is in common.
        check((4, ""), 3, None);
    }
}
