//! Why a session keeps its server, and when that is over.
//!
//! It is over when texts and answers prove it: everything of a kind is gone (DISCARD, CLOSE ALL and their like), or
//! each of the things that were left by name or counted is. What cannot be proved stays until the former.

use super::locks::Locks;
use super::unit::{Failure, Pace};
use crate::proxy::route::{AdvisoryCall, NewValue, SessionEffect};

/// Temporary tables and cursors that are remembered by name; more of them stay until all of their kind go.
const MAX_NAMED: usize = 100;

/// Something at the server that cannot go with the client to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// A setting whose value the text does not say.
    Set,
    Listen,
    Temporary,
    Prepare,
    DeclareHold,
    AdvisoryLock,
    Load,
    Do,
    Call,
    Function,
    Unparsable,
    /// More of them than are followed.
    Portals,
}

/// What has been sent behind a unit when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Nothing,
    More,
}

impl Pin {
    /// The label of the reason in `bellwether_pins_total`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Pin::Set => "set",
            Pin::Listen => "listen",
            Pin::Temporary => "temporary",
            Pin::Prepare => "prepare",
            Pin::DeclareHold => "declare_hold",
            Pin::AdvisoryLock => "advisory_lock",
            Pin::Load => "load",
            Pin::Do => "do",
            Pin::Call => "call",
            Pin::Function => "function",
            Pin::Unparsable => "unparsable",
            Pin::Portals => "portals",
        }
    }

    /// What a rollback does not undo: taken when the statement is sent, since it may also fail half way.
    fn taken_when_sent(effect: &SessionEffect) -> Option<Pin> {
        match effect {
            SessionEffect::AdvisoryLock => Some(Pin::AdvisoryLock),
            SessionEffect::Load => Some(Pin::Load),
            SessionEffect::Do => Some(Pin::Do),
            SessionEffect::Call => Some(Pin::Call),
            SessionEffect::Function(_) => Some(Pin::Function),
            _ => None,
        }
    }

    pub(super) fn taken_at_commit(effect: &SessionEffect) -> Option<Pin> {
        match effect {
            SessionEffect::Set(_, NewValue::Unknown) => Some(Pin::Set),
            SessionEffect::Listen(_) => Some(Pin::Listen),
            SessionEffect::Temporary => Some(Pin::Temporary),
            _ => None,
        }
    }

    /// The same of what has a name.
    fn named_at_commit(effect: &SessionEffect) -> Option<(Pin, &str)> {
        match effect {
            SessionEffect::TemporaryTable(name) => Some((Pin::Temporary, name)),
            SessionEffect::DeclareHold(name) => Some((Pin::DeclareHold, name)),
            _ => None,
        }
    }

    pub(super) fn given_up_at_commit(effect: &SessionEffect) -> Option<Pin> {
        match effect {
            SessionEffect::UnlistenAll => Some(Pin::Listen),
            SessionEffect::DiscardTemporary => Some(Pin::Temporary),
            _ => None,
        }
    }

    /// Whatever becomes of the transaction.
    fn given_up_when_done(effect: &SessionEffect) -> Option<Pin> {
        match effect {
            SessionEffect::CloseAll => Some(Pin::DeclareHold),
            SessionEffect::AdvisoryUnlockAll => Some(Pin::AdvisoryLock),
            SessionEffect::DeallocateAll => Some(Pin::Prepare),
            _ => None,
        }
    }
}

/// Whether a table's name without a schema is that of a temporary one, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unqualified {
    /// `pg_temp` comes first in `search_path` unless that says otherwise (namespace.c).
    Temporary,
    Unclear,
}

#[derive(Debug, Default)]
pub(super) struct Pins {
    /// In the order in which they were taken, each once.
    taken: Vec<Pin>,
    /// What is there by name, each once; at most [`MAX_NAMED`].
    named: Vec<(Pin, Box<str>)>,
    locks: Locks,
    /// Given up when the unit under way is answered without an error. None of them was taken behind the statement
    /// that ends it.
    ending: Vec<Pin>,
    /// Given up when the server finds that the unit under way is no SQL.
    doubtful: Option<Pin>,
}

impl Pins {
    /// Nothing keeps the server, nor may anything that is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.named.is_empty() && self.locks.are_none()
    }

    pub(super) fn has(&self, pin: Pin) -> bool {
        self.all().any(|held| held == pin)
    }

    /// The first reason.
    pub(super) fn first(&self) -> Option<Pin> {
        self.all().next()
    }

    fn all(&self) -> impl Iterator<Item = Pin> {
        let named = self.named.iter().map(|(pin, _)| *pin);
        let locks = self.locks.are_held().then_some(Pin::AdvisoryLock);
        self.taken.iter().copied().chain(named).chain(locks)
    }

    pub(super) fn take(&mut self, pin: Pin) {
        self.keep(pin);
        if !self.taken.contains(&pin) {
            self.taken.push(pin);
        }
    }

    /// What is under way does not end these.
    fn keep(&mut self, pin: Pin) {
        self.ending.retain(|ending| *ending != pin);
    }

    fn hold(&mut self, pin: Pin, name: &str) {
        if self.named.len() >= MAX_NAMED {
            return self.take(pin);
        }
        self.keep(pin);
        let held = (pin, name.into());
        if !self.named.contains(&held) {
            self.named.push(held);
        }
    }

    fn let_go(&mut self, pin: Pin, name: &str) {
        self.named.retain(|(kind, held)| *kind != pin || **held != *name);
    }

    fn give_up(&mut self, pin: Pin) {
        self.taken.retain(|taken| *taken != pin);
        self.named.retain(|(kind, _)| *kind != pin);
        if pin == Pin::AdvisoryLock {
            self.locks.unlocked_all();
        }
    }

    /// Whether a transaction's end does anything with `effect`.
    pub(super) fn heeds(effect: &SessionEffect) -> bool {
        let ends = matches!(
            effect,
            SessionEffect::DropTable(_)
                | SessionEffect::DropTemporaryTable(_)
                | SessionEffect::RenameRelation
                | SessionEffect::CloseCursor(_)
        );
        let takes = Pin::taken_at_commit(effect).is_some() || Pin::named_at_commit(effect).is_some();
        ends || takes || Pin::given_up_at_commit(effect).is_some()
    }

    /// The transaction that did this is committed.
    pub(super) fn committed(&mut self, effect: &SessionEffect, unqualified: Unqualified) {
        if let Some(pin) = Pin::taken_at_commit(effect) {
            self.take(pin);
        }
        if let Some((pin, name)) = Pin::named_at_commit(effect) {
            self.hold(pin, name);
        }
        if let Some(pin) = Pin::given_up_at_commit(effect) {
            self.give_up(pin);
        }
        match effect {
            SessionEffect::DropTemporaryTable(name) => self.let_go(Pin::Temporary, name),
            SessionEffect::DropTable(name) if unqualified == Unqualified::Temporary => {
                self.let_go(Pin::Temporary, name);
            }
            // Under which name it would be dropped is not followed.
            SessionEffect::RenameRelation if self.named.iter().any(|(pin, _)| *pin == Pin::Temporary) => {
                self.take(Pin::Temporary);
            }
            SessionEffect::CloseCursor(name) => self.let_go(Pin::DeclareHold, name),
            _ => {}
        }
    }

    /// The server has done this, whatever becomes of the transaction: a cursor that is closed stays so.
    pub(super) fn done(&mut self, effect: &SessionEffect) {
        if let SessionEffect::CloseCursor(name) = effect {
            self.let_go(Pin::DeclareHold, name);
        }
    }

    /// Whether rows tell something.
    pub(super) fn heed_rows(&self) -> bool {
        self.locks.heed_rows()
    }

    /// A row of the answer to `call`; `None`: it could not be read.
    pub(super) fn row(&mut self, call: AdvisoryCall, value: Option<Option<&[u8]>>) {
        self.locks.row(call, value);
    }

    /// More rows of a call may come later, without its being said again.
    pub(super) fn rows_suspended(&mut self) {
        self.take(Pin::AdvisoryLock);
    }

    /// Everything that was sent is answered.
    pub(super) fn all_answered(&mut self) {
        self.locks.all_answered();
    }

    /// A text with these effects, in their order, is about to be sent. Where its success ends pins, nothing may be sent behind it
    /// before it is answered.
    pub(super) fn sent<'a>(&mut self, effects: impl Iterator<Item = &'a SessionEffect> + Clone) -> Pace {
        for effect in effects.clone() {
            if let Some(pin) = Pin::taken_when_sent(effect) {
                self.take(pin);
            } else if let SessionEffect::Advisory(call) = effect {
                if *call != AdvisoryCall::Unlock {
                    self.keep(Pin::AdvisoryLock);
                }
                self.locks.sent(*call);
            } else if *effect == SessionEffect::DiscardAll {
                self.ending = self.all().collect();
            } else {
                self.ending.extend(Pin::given_up_when_done(effect));
            }
        }
        // What is sent behind these needs to know what became of the client's names.
        let names = |effect: &SessionEffect| {
            matches!(
                effect,
                SessionEffect::Prepare(_)
                    | SessionEffect::Deallocate(_)
                    | SessionEffect::DeallocateAll
                    | SessionEffect::DiscardAll
            )
        };
        if self.ending.is_empty() && !effects.into_iter().any(names) {
            Pace::Pipelined
        } else {
            Pace::OneByOne
        }
    }

    /// The same for a text that could not be parsed here.
    pub(super) fn sent_unparsed(&mut self) {
        if !self.taken.contains(&Pin::Unparsable) {
            self.doubtful = Some(Pin::Unparsable);
        }
        self.take(Pin::Unparsable);
    }

    pub(super) fn unit_ended(&mut self, failure: Option<Failure>, behind: Behind) {
        // It is the last unit's, since nothing is sent behind that.
        let ending = match behind {
            Behind::Nothing => std::mem::take(&mut self.ending),
            Behind::More => Vec::new(),
        };
        if failure.is_none() {
            ending.into_iter().for_each(|pin| self.give_up(pin));
        } else if self.locks.may_be_taken() {
            // It failed before the lock was taken or behind it.
            self.take(Pin::AdvisoryLock);
        }
        // With more under way the text that is no SQL may be another unit's.
        let doubtful = self.doubtful.take();
        if failure == Some(Failure::NoSql) && behind == Behind::Nothing {
            doubtful.into_iter().for_each(|pin| self.give_up(pin));
        }
    }
}
