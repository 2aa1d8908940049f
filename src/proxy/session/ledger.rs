//! What the server at hand still owes, in the order in which it was asked.
//!
//! The server answers in order, and after an error it skips what it was sent up to the next Sync
//! (protocol-flow, "Extended Query"); so one queue tells for every answer whom it is for.

use std::collections::VecDeque;
use std::slice;
use std::sync::Arc;

use super::commit::Question;
use crate::proxy::prepared::{Closed, Named, Names, ServerStatements, is_same_name};
use crate::proxy::route::{AdvisoryCall, SessionEffect, Verdict};

/// For whom an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Client,
    /// We asked on our own account: swallowed.
    Nobody,
    /// The client asked, but nothing was sent: we answer when its turn comes.
    Own,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// Ends with ReadyForQuery.
    Query(Follow),
    /// Statements of our own in front of a client's unit: so many are still to be completed.
    Ahead {
        statements: usize,
    },
    /// A prepared statement in front of the message that needs it, up to an answer of this tag.
    Bring {
        until: u8,
        undo: Undo,
    },
    /// Behind such statements, in front of a simple query; its ReadyForQuery is ours.
    OwnSync,
    /// FunctionCall or query of our own in front of a COMMIT; its ReadyForQuery is ours, too.
    Asked(Question),
    /// FunctionCall; ends with ReadyForQuery.
    Function,
    Sync,
    Parse(For, Undo),
    Bind,
    /// Of a statement or a portal: RowDescription or NoData.
    Describe,
    Execute(Follow),
    Close(For, Undo),
    /// CopyDone or CopyFail, sent before it was known whether a COPY has begun. Never answered, and never the first.
    CopyEnd,
}

/// The statements whose completion changes the session.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Follow {
    verdict: Option<Arc<Verdict>>,
    /// How many of its steps are completed.
    done: usize,
    /// What a simple query prepares, in its order.
    pub(crate) prepares: VecDeque<Named>,
    /// What an Execute does to the client's names.
    pub(crate) undo: Vec<Undo>,
}

impl Follow {
    pub(crate) fn of(verdict: &Arc<Verdict>) -> Follow {
        Follow { verdict: (!verdict.steps.is_empty()).then(|| verdict.clone()), ..Follow::default() }
    }

    pub(crate) fn verdict(&self) -> Option<Arc<Verdict>> {
        self.verdict.clone()
    }
}

impl Owed {
    fn ends_a_unit(&self) -> bool {
        matches!(self, Owed::Query(_) | Owed::Function | Owed::Sync)
    }

    /// What does not hold if it is left out.
    fn undo(&self) -> &[Undo] {
        match self {
            Owed::Parse(_, undo) | Owed::Close(_, undo) | Owed::Bring { undo, .. } => slice::from_ref(undo),
            Owed::Execute(follow) => &follow.undo,
            _ => &[],
        }
    }

    fn is_noted(&self) -> bool {
        self.undo().iter().any(|undo| *undo != Undo::Nothing)
    }
}

/// What was noted when a message was sent, and does not hold if it fails or is left out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    Nothing,
    /// This unnamed statement, by its id, is not there: the client has none.
    Unnamed(u64),
    /// The same of one that was sent on our own account: the client has it still.
    UnnamedAgain(u64),
    /// The server does not have this statement.
    Server(u64),
    /// The server has this statement still.
    Closed(Closed),
    /// The server has nothing under this name.
    Named(Box<[u8]>),
    /// The client has this statement still.
    Deallocated(Box<[u8]>, Named),
    /// It has all of them, and so has the server.
    All(Box<(Names, ServerStatements)>),
    /// The client does not have a statement of this name, nor the server, if we sent it there.
    Client {
        name: Box<[u8]>,
        server: Option<u64>,
    },
}

impl Undo {
    /// Whether it is about what the client calls `name`, or the statement `id` that it means by it.
    pub(crate) fn is_about(&self, name: &[u8], id: Option<u64>) -> bool {
        match self {
            Undo::Nothing => false,
            Undo::Unnamed(other) | Undo::UnnamedAgain(other) => name.is_empty() && id == Some(*other),
            _ if name.is_empty() => false,
            Undo::Server(other) => id == Some(*other),
            Undo::Closed(closed) => is_same_name(closed.name(), name) || id.is_some() && id == closed.id(),
            Undo::Named(other) | Undo::Deallocated(other, _) => is_same_name(other, name),
            Undo::Client { name: other, server } => {
                is_same_name(other, name) || server.is_some() && *server == id
            }
            Undo::All(_) => true,
        }
    }
}

/// More requests than this in one pipeline wait until answers have come.
pub(crate) const MAX_OWED: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    owed: VecDeque<Owed>,
    /// After an error, until the Sync that has not been sent yet: the server answers nothing.
    skipping: bool,
    /// The server takes CopyData; it ignores Flush and Sync meanwhile (copyfromparse.c, `CopyGetData`).
    copy_in: bool,
    /// Of `owed`, those that end with a ReadyForQuery for the client.
    units: usize,
    /// How many such were sent to the server at hand.
    sent_units: u64,
    /// Of `owed`, those with something to undo.
    noted: usize,
}

impl Ledger {
    pub(crate) fn sent(&mut self, owed: Owed) {
        match owed {
            Owed::Sync if self.copy_in => return,
            Owed::Sync => self.skipping = false,
            Owed::CopyEnd if std::mem::take(&mut self.copy_in) || self.owed.is_empty() => return,
            _ => {}
        }
        if !self.skipping {
            self.units += usize::from(owed.ends_a_unit());
            self.sent_units += u64::from(owed.ends_a_unit());
            self.noted += usize::from(owed.is_noted());
            self.owed.push_back(owed);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// The server leaves out whatever comes before the next Sync.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub(crate) fn is_full(&self) -> bool {
        self.owed.len() >= MAX_OWED
    }

    pub(crate) fn units(&self) -> usize {
        self.units
    }

    /// The number of the unit that is being sent. They grow as long as the server is the same.
    pub(crate) fn unit(&self) -> u64 {
        self.sent_units
    }

    /// The number of the unit that is answered next.
    pub(crate) fn next_answered(&self) -> u64 {
        self.sent_units - self.units as u64
    }

    /// A ReadyForQuery comes without the client's saying more.
    pub(crate) fn will_answer(&self) -> bool {
        self.units > 0 && !self.copy_in
    }

    /// Whether the next answers are to statements of our own.
    pub(crate) fn awaits_own(&self) -> bool {
        matches!(self.head(), Some(Owed::Ahead { .. } | Owed::Bring { .. } | Owed::OwnSync | Owed::Asked(_)))
    }

    /// Such an answer came.
    pub(crate) fn own_answered(&mut self, tag: u8) {
        match (self.owed.front_mut(), tag) {
            (Some(Owed::Ahead { statements }), b'C') if *statements > 1 => *statements -= 1,
            (Some(Owed::Ahead { .. }), b'C') | (Some(Owed::OwnSync | Owed::Asked(_)), b'Z') => {
                drop(self.pop());
            }
            (Some(Owed::Bring { until, .. }), tag) if *until == tag => drop(self.pop()),
            _ => {}
        }
    }

    /// Statements of our own are still to be completed that nothing of the client's may run without.
    pub(crate) fn awaits_settings(&self) -> bool {
        self.owed.iter().any(|owed| matches!(owed, Owed::Ahead { .. }))
    }

    /// Nothing of the client's is with the server.
    pub(crate) fn awaits_only_settings(&self) -> bool {
        self.owed.iter().all(|owed| matches!(owed, Owed::Ahead { .. }))
    }

    pub(crate) fn ends_with_own_sync(&self) -> bool {
        matches!(self.owed.back(), Some(Owed::OwnSync))
    }

    /// What is under way is not the client's: it ends with a Sync of ours.
    pub(crate) fn is_own_unit(&self) -> bool {
        let mut ends = self.owed.iter().filter(|owed| owed.ends_a_unit() || **owed == Owed::OwnSync);
        ends.next() == Some(&Owed::OwnSync)
    }

    /// Whether a unit before the one that is being sent has noted something that [`Undo::is_about`] this, and is not
    /// answered: it may fail, and leave out what was noted. The same of the unit that is being sent: then what comes
    /// next in it is left out as well.
    pub(crate) fn is_in_doubt(&self, name: &[u8], id: Option<u64>) -> bool {
        if self.units == 0 || self.noted == 0 {
            return false;
        }
        let mut is_earlier = false;
        for owed in self.owed.iter().rev() {
            is_earlier |= owed.ends_a_unit();
            let is_about = owed.undo().iter().any(|undo| undo.is_about(name, id));
            match (is_about, is_earlier) {
                (true, true) => return true,
                // Whatever comes before: this is the one. There may be as many as units.
                (true, false) if name.is_empty() => return false,
                _ => {}
            }
        }
        false
    }

    /// What the simple query that is being answered has prepared now.
    pub(crate) fn next_prepared(&mut self) -> Option<Named> {
        match self.owed.front_mut() {
            Some(Owed::Query(follow)) => follow.prepares.pop_front(),
            _ => None,
        }
    }

    /// CommandComplete: what the statement has done, where that is followed.
    pub(crate) fn completed(&mut self) -> Option<(Arc<Verdict>, usize)> {
        let Some(Owed::Query(follow) | Owed::Execute(follow)) = self.owed.front_mut() else { return None };
        let verdict = follow.verdict.clone()?;
        follow.done += 1;
        Some((verdict, follow.done - 1))
    }

    /// The call about an advisory lock that the next rows answer.
    pub(crate) fn advisory(&self) -> Option<AdvisoryCall> {
        let Some(Owed::Query(follow) | Owed::Execute(follow)) = self.owed.front() else { return None };
        let step = follow.verdict.as_ref()?.steps.get(follow.done)?;
        step.session.iter().find_map(|effect| match effect {
            SessionEffect::Advisory(call) => Some(*call),
            _ => None,
        })
    }

    /// The server ignores Flush and Sync.
    pub(crate) fn takes_copy_data(&self) -> bool {
        self.copy_in
    }

    /// The statement that copied is complete.
    pub(crate) fn copy_ended(&mut self) {
        self.copy_in = false;
    }

    /// What is owed could be answered without the server, if nothing fails and no row is among it.
    pub(crate) fn is_plain(&self) -> bool {
        !self.owed.iter().any(|owed| matches!(owed, Owed::Function | Owed::CopyEnd | Owed::Ahead { .. }))
    }

    pub(crate) fn head(&self) -> Option<&Owed> {
        self.owed.front()
    }

    pub(crate) fn pop(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front()?;
        self.units -= usize::from(owed.ends_a_unit());
        self.noted -= usize::from(owed.is_noted());
        // What was sent to end a COPY that there was not: the server ignores it (`PostgresMain` in postgres.c).
        while matches!(self.owed.front(), Some(Owed::CopyEnd)) {
            self.owed.pop_front();
        }
        Some(owed)
    }

    /// Pops the head if it is one that we answer ourselves; its tag.
    pub(crate) fn pop_own(&mut self) -> Option<u8> {
        let tag = match self.head()? {
            Owed::Parse(For::Own, _) => b'1',
            Owed::Close(For::Own, _) => b'3',
            _ => return None,
        };
        self.pop();
        Some(tag)
    }

    /// CopyInResponse. Syncs that were sent between its statement and its end are ignored by the server, so nothing
    /// will come for them: libpq sends one with the Execute and another after CopyDone.
    pub(crate) fn copy_in_began(&mut self) {
        self.copy_in = true;
        while let Some(owed) = self.owed.get(1) {
            match owed {
                Owed::Sync => self.units -= 1,
                Owed::CopyEnd => self.copy_in = false,
                _ => return,
            }
            self.owed.remove(1);
            if !self.copy_in {
                return;
            }
        }
    }

    /// ErrorResponse in the extended protocol: everything up to the next Sync is skipped. `undone` hears of
    /// what did not happen, the last of it first.
    pub(crate) fn failed(&mut self, undone: impl FnMut(Undo)) {
        self.copy_in = false;
        let next = self.owed.iter().position(|owed| matches!(owed, Owed::Sync | Owed::OwnSync));
        self.leave_out(next.unwrap_or(self.owed.len()), undone);
        self.skipping = self.owed.is_empty();
    }

    fn leave_out(&mut self, count: usize, mut undone: impl FnMut(Undo)) {
        for owed in self.owed.drain(..count).rev() {
            self.units -= usize::from(owed.ends_a_unit());
            self.noted -= usize::from(owed.is_noted());
            match owed {
                Owed::Parse(_, undo) | Owed::Close(_, undo) | Owed::Bring { undo, .. } => undone(undo),
                Owed::Execute(follow) => follow.undo.into_iter().rev().for_each(&mut undone),
                _ => {}
            }
        }
    }

    /// ReadyForQuery. There may be none that is waited for (of the Sync that ended a COPY which had already failed).
    pub(crate) fn ready(&mut self) {
        self.skipping = false;
        self.copy_in = false;
        while let Some(owed) = self.pop() {
            match owed {
                Owed::Query(_) | Owed::Sync | Owed::Function => return,
                _ => {}
            }
        }
    }

    /// The server is gone.
    pub(crate) fn clear(&mut self, undone: impl FnMut(Undo)) {
        self.leave_out(self.owed.len(), undone);
        *self = Ledger::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{Follow, For, Ledger, Owed, Undo};

    #[test]
    fn an_error_skips_to_the_next_sync() {
        let mut ledger = Ledger::default();
        let [one, other] = [7, 8].map(|id| Owed::Parse(For::Nobody, Undo::Server(id)));
        for owed in [Owed::Bind, Owed::Execute(Follow::default()), one, other, Owed::Sync, Owed::Bind] {
            ledger.sent(owed);
        }
        let mut undone = Vec::new();
        ledger.failed(|undo| undone.push(undo));
        assert_eq!(undone, [Undo::Server(8), Undo::Server(7)]);
        ledger.ready();
        assert_eq!(ledger.head(), Some(&Owed::Bind));
    }

    #[test]
    fn what_is_sent_after_an_error_and_before_its_sync_is_not_answered() {
        let mut ledger = Ledger::default();
        ledger.sent(Owed::Bind);
        ledger.failed(|_| {});
        ledger.sent(Owed::Execute(Follow::default()));
        assert!(ledger.is_empty());
        ledger.sent(Owed::Sync);
        assert_eq!(ledger.units(), 1);
    }

    #[test]
    fn copy_in_swallows_the_sync_that_came_with_its_execute() {
        let mut ledger = Ledger::default();
        ledger.sent(Owed::Execute(Follow::default()));
        ledger.sent(Owed::Sync);
        ledger.copy_in_began();
        ledger.sent(Owed::Sync);
        assert_eq!(ledger.units(), 0);
        ledger.sent(Owed::CopyEnd);
        ledger.sent(Owed::Sync);
        assert_eq!((ledger.units(), ledger.pop()), (1, Some(Owed::Execute(Follow::default()))));
    }

    #[test]
    fn what_is_sent_behind_the_end_of_a_copy_is_answered() {
        let (execute, query) = (|| Owed::Execute(Follow::default()), || Owed::Query(Follow::default()));
        for (sent, left) in [
            (vec![execute(), Owed::CopyEnd, Owed::Sync, query()], vec![execute(), Owed::Sync, query()]),
            (vec![execute(), Owed::Sync, Owed::CopyEnd, Owed::Sync], vec![execute(), Owed::Sync]),
            (vec![query(), Owed::Sync, Owed::CopyEnd, query()], vec![query(), query()]),
            // A query that copies twice.
            (vec![query(), Owed::CopyEnd, Owed::CopyEnd, query()], vec![query(), Owed::CopyEnd, query()]),
        ] {
            let mut ledger = Ledger::default();
            sent.into_iter().for_each(|owed| ledger.sent(owed));
            ledger.copy_in_began();
            assert_eq!(ledger.owed, left);
            assert!(ledger.will_answer());
            let units = left.iter().filter(|owed| owed.ends_a_unit()).count();
            assert_eq!(ledger.units(), units);
        }
    }

    #[test]
    fn the_end_of_a_copy_that_there_was_not_is_no_answer() {
        let mut ledger = Ledger::default();
        ledger.sent(Owed::CopyEnd);
        assert!(ledger.is_empty());
        ledger.sent(Owed::Query(Follow::default()));
        ledger.sent(Owed::CopyEnd);
        ledger.ready();
        assert!(ledger.is_empty());
    }
}
