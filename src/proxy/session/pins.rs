//! Why a session keeps its server, and when that is over.

use super::unit::{Failure, Pace};
use crate::proxy::route::{NewValue, SessionEffect};

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
        }
    }

    /// What a rollback does not undo: taken when the statement is sent, since it may also fail half way.
    fn taken_when_sent(effect: &SessionEffect) -> Option<Pin> {
        match effect {
            SessionEffect::Prepare(_) => Some(Pin::Prepare),
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
            SessionEffect::Listen => Some(Pin::Listen),
            SessionEffect::Temporary => Some(Pin::Temporary),
            SessionEffect::DeclareHold => Some(Pin::DeclareHold),
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

#[derive(Debug, Default)]
pub(super) struct Pins {
    /// In the order in which they were taken, each once.
    taken: Vec<Pin>,
    /// Given up when the unit under way is answered without an error. None of them was taken behind the statement
    /// that ends it.
    ending: Vec<Pin>,
    /// Given up when the server finds that the unit under way is no SQL.
    doubtful: Option<Pin>,
}

impl Pins {
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// The first reason.
    pub(super) fn first(&self) -> Option<Pin> {
        self.taken.first().copied()
    }

    pub(super) fn take(&mut self, pin: Pin) {
        self.ending.retain(|ending| *ending != pin);
        if !self.taken.contains(&pin) {
            self.taken.push(pin);
        }
    }

    pub(super) fn give_up(&mut self, pin: Pin) {
        self.taken.retain(|taken| *taken != pin);
    }

    /// A text with these effects is about to be sent. Where its success ends pins, nothing may be sent behind it
    /// before it is answered.
    pub(super) fn sent(&mut self, effects: &[SessionEffect]) -> Pace {
        for effect in effects {
            if let Some(pin) = Pin::taken_when_sent(effect) {
                self.take(pin);
            } else if *effect == SessionEffect::DiscardAll {
                self.ending = self.taken.clone();
            } else {
                self.ending.extend(Pin::given_up_when_done(effect));
            }
        }
        // These also empty the server's list of prepared statements.
        let empties = |effect: &SessionEffect| {
            matches!(effect, SessionEffect::DiscardAll | SessionEffect::DeallocateAll)
        };
        if self.ending.is_empty() && !effects.iter().any(empties) { Pace::Pipelined } else { Pace::OneByOne }
    }

    /// The same for a text that could not be parsed here.
    pub(super) fn sent_unparsed(&mut self) {
        if !self.taken.contains(&Pin::Unparsable) {
            self.doubtful = Some(Pin::Unparsable);
        }
        self.take(Pin::Unparsable);
    }

    pub(super) fn unit_ended(&mut self, failure: Option<Failure>) {
        let ending = std::mem::take(&mut self.ending);
        if failure.is_none() {
            ending.into_iter().for_each(|pin| self.give_up(pin));
        }
        let doubtful = self.doubtful.take();
        if failure == Some(Failure::NoSql) {
            doubtful.into_iter().for_each(|pin| self.give_up(pin));
        }
    }
}
