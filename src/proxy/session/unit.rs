//! What became of the unit under way (a simple query, or everything up to a Sync): how far it has come, what its
//! success would mean, whether it may run again elsewhere.

use std::sync::Arc;

use super::deferred::Deferred;
use super::losses::Loss;
use super::message::Status;
use crate::proxy::prepared::Statement;
use crate::proxy::route::{Access, MayWrite, TransactionEffect, Verdict, WriteReason};

#[derive(Debug, Default)]
pub(super) struct Unit {
    /// Extended messages were sent, their Sync was not.
    pub(super) open: bool,
    pub(super) progress: Progress,
    pub(super) outcome: Outcome,
    pub(super) undone: Undone,
    pub(super) pace: Pace,
    /// What its last error said.
    pub(super) failure: Option<Failure>,
    /// The same of the unit before.
    pub(super) failed_last: Option<Failure>,
    pub(super) replay: Replay,
    /// The block that began in front of it.
    pub(super) begun: Option<Deferred>,
    /// The named statements that it binds or describes, each once; at most [`MAX_USES`].
    pub(super) uses: Vec<Arc<Statement>>,
    /// Why a statement that it executes by name could not be prepared.
    pub(super) not_brought: Option<Vec<u8>>,
}

/// Of what is used beyond it, an outdated one is found at its next use in a shorter pipeline.
const MAX_USES: usize = 64;

/// How far it has come with the server at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Nothing was sent.
    #[default]
    Attached,
    Sent,
    /// A byte of the answer went towards the client.
    Answering,
    /// A ReadyForQuery of this server went towards the client; units that follow do not take that back.
    Settled,
}

/// What its success would say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Nothing about a commit.
    #[default]
    Nothing,
    /// Nothing yet, but the block may be over: what is sent behind it may commit by itself.
    BlockLeft,
    /// That something is committed.
    Commit,
}

/// What an error undoes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Undone {
    #[default]
    Everything,
    /// What it has committed in front of the error stays.
    Rest,
}

/// Whether the next unit may be sent before this one is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pace {
    #[default]
    Pipelined,
    /// It removes what sessions leave at the server: whatever is noted behind it must stay.
    OneByOne,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The text is no SQL: nothing of it ran.
    NoSql,
    Other,
}

/// What the client sent, while it may still be run again elsewhere. The storage outlives the unit.
#[derive(Debug, Default)]
pub(super) struct Replay {
    messages: Vec<u8>,
    kept: Kept,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kept {
    #[default]
    No,
    /// It writes, all or nothing: it may run again if it is certain that the server has not begun with it, or has
    /// undone it.
    IfUnbegun,
    Yes,
}

/// A unit up to this long is kept to be run again.
const MAX_REPLAY: usize = 4096;

impl Unit {
    /// The first unit at another server.
    pub(super) fn attached(&mut self) {
        let mut replay = std::mem::take(&mut self.replay);
        replay.begin();
        let mut uses = std::mem::take(&mut self.uses);
        uses.clear();
        *self = Unit { replay, uses, ..Unit::default() };
    }

    pub(super) fn sent(&mut self) {
        self.progress = self.progress.max(Progress::Sent);
    }

    /// Sent, and a Sync will follow.
    pub(super) fn sent_extended(&mut self) {
        self.open = true;
        self.sent();
    }

    pub(super) fn answering(&mut self) {
        self.progress = self.progress.max(Progress::Answering);
    }

    /// A statement is about to be sent in a session of this `status`. `wrote`: its transaction has.
    pub(super) fn add(&mut self, verdict: &Verdict, status: Status, wrote: MayWrite) {
        let effect = &verdict.transaction;
        // Of a text with several statements some may come behind the block's end.
        if matches!(effect, TransactionEffect::Several { .. }) {
            self.outcome = self.outcome.max(Outcome::BlockLeft);
        }
        let in_block = status != Status::Idle && self.outcome == Outcome::Nothing;
        let commits =
            if in_block { wrote == MayWrite::Yes && effect.ends_with_commit() } else { verdict.commits() };
        let leaves = effect.ends_with_commit()
            || matches!(effect, TransactionEffect::Rollback | TransactionEffect::RollbackAndChain);
        let outcome = match (commits, leaves) {
            (true, _) => Outcome::Commit,
            (false, true) => Outcome::BlockLeft,
            (false, false) => Outcome::Nothing,
        };
        self.outcome = self.outcome.max(outcome);
        if !verdict.is_read() && !is_contained(verdict) {
            self.undone = Undone::Rest;
        }
        if is_all_or_nothing(verdict) {
            self.replay.writes();
        } else if !verdict.is_read() || *effect != TransactionEffect::None {
            self.replay.give_up();
        }
    }

    pub(super) fn uses(&mut self, statement: &Arc<Statement>) {
        if self.uses.len() < MAX_USES && !self.uses.iter().any(|used| Arc::ptr_eq(used, statement)) {
            self.uses.push(statement.clone());
        }
    }

    /// All that was sent has been answered.
    pub(super) fn ended(&mut self) {
        (self.outcome, self.undone) = (Outcome::Nothing, Undone::Everything);
        self.pace = Pace::Pipelined;
        self.uses.clear();
        self.replay.give_up();
    }
}

/// One statement that is undone as a whole when its server stops in the middle of it, with nothing outside of the
/// transaction; and a BEGIN.
fn is_all_or_nothing(verdict: &Verdict) -> bool {
    let Access::Write { .. } = &verdict.access else { return false };
    let begins = matches!(verdict.transaction, TransactionEffect::Begin(_)) && verdict.statements == 1;
    verdict.session.is_empty() && (begins || is_contained(verdict))
}

/// One statement that writes in its transaction alone, and does not end it.
fn is_contained(verdict: &Verdict) -> bool {
    let Access::Write { reason } = &verdict.access else { return false };
    let contained = matches!(
        reason,
        WriteReason::Dml | WriteReason::ModifyingCte | WriteReason::LockingClause | WriteReason::ServerState
    );
    contained && verdict.statements == 1 && verdict.transaction == TransactionEffect::None
}

impl Replay {
    fn begin(&mut self) {
        self.messages.clear();
        self.kept = Kept::Yes;
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept != Kept::No
    }

    /// Whether it may run again after `loss`.
    pub(super) fn fits(&self, loss: Loss) -> bool {
        match self.kept {
            Kept::Yes => true,
            Kept::IfUnbegun => loss == Loss::Unbegun,
            Kept::No => false,
        }
    }

    fn writes(&mut self) {
        if self.kept == Kept::Yes {
            self.kept = Kept::IfUnbegun;
        }
    }

    /// One more message; `None` when it is not there wholly.
    pub(super) fn keep(&mut self, message: Option<&[u8]>) {
        match message {
            Some(message) if self.messages.len() + message.len() <= MAX_REPLAY => {
                self.messages.extend_from_slice(message);
            }
            _ => self.give_up(),
        }
    }

    pub(super) fn give_up(&mut self) {
        self.kept = Kept::No;
    }

    pub(super) fn messages(&self) -> &[u8] {
        &self.messages
    }
}
