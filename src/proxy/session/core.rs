//! The session's state, and what of it the three directions share: what a statement does to it, when a server
//! can go back, what is answered when it is lost.
//!
//! It never reads a socket, a clock or a directive. [`Core::client`] and [`Core::server`] look at what was read,
//! approve, replace or swallow it in the [`Lane`]s, and say what is needed next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::knobs::Knobs;
use super::lane::Lane;
use super::ledger::{For, Ledger, Owed, Undo};
use super::local::Cut;
use super::message::{self, Status};
use super::unit::{Failure, Outcome, Pace, Progress, Unit};
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::InvalidLength;
use crate::proxy::guc::Settings;
use crate::proxy::prepared::{ClientStatements, ServerStatements, Statements};
use crate::proxy::route::{
    Access, Classifier, MayWrite, OwnWrite, SessionEffect, TransactionEffect, TransactionEnd, Verdict,
    WriteReason,
};
use crate::topology::Durability;

/// How long a client keeps a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// For a transaction.
    #[default]
    Transaction,
    /// Until it disconnects.
    Session,
    /// For a statement: a transaction block is refused.
    Statement,
}

/// What the state machine knows of a server connection. It travels with the connection.
#[derive(Debug, Default)]
pub(crate) struct ServerState {
    pub(crate) statements: ServerStatements,
    /// What we have set there.
    pub(crate) settings: Arc<Settings>,
}

/// What a session needs for the client's next messages.
#[derive(Debug)]
pub(crate) enum Ask {
    /// More bytes from the client, or an answer from the server.
    Nothing,
    /// A server for this. Call [`Core::attached`] or [`Core::refuse`], then [`Core::client`] again.
    Server(Demand),
    /// Terminate.
    End,
    /// The client is told this and disconnected.
    Fatal(ErrorFields),
}

/// What the next unit (a simple query, or everything up to a Sync) is.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    /// Of its first statement that writes; when none does, of the first.
    pub(crate) verdict: Arc<Verdict>,
    /// The primary's, although its statements are reads: why.
    pub(crate) forced: Option<&'static str>,
}

/// What the server's bytes came to.
#[derive(Debug)]
pub(crate) enum Heard {
    Nothing,
    /// A ReadyForQuery for the client; see [`Core::can_release`].
    Ready,
    /// The server said farewell.
    Lost(ErrorFields),
    /// It broke the protocol, or could not be given the client's settings.
    Broken(ErrorFields),
}

/// How a server came to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// By itself.
    Connection,
    /// By itself, and its farewell was its first word: what was sent to it last did not run, or was undone. A
    /// backend that is told to end answers so between statements or in the middle of one, whose transaction it
    /// aborts; a commit is neither, and answers first (`ProcessInterrupts`, `exec_simple_query` in postgres.c).
    Unbegun,
    /// A newer term has another primary.
    Failover,
}

/// What is left to do after a loss.
#[derive(Debug)]
pub(crate) enum AfterLoss {
    /// The client has its answer, or hears of it with its next statement.
    GoOn,
    /// Nothing of the answer had been forwarded, and the statement only reads: it is in the client's lane
    /// again.
    Retry,
    /// The client is told this and disconnected.
    Fatal(ErrorFields),
    /// A message was cut in the middle: nothing can be said any more.
    Close,
}

/// What lives longer than a session, and is lent to it.
#[derive(Debug)]
pub(crate) struct Texts<'a> {
    pub(crate) classifier: &'a mut Classifier,
    pub(crate) statements: &'a Statements,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(super) mode: PoolMode,
    durability: Durability,
    pub(super) ledger: Ledger,
    /// Bytes of the client's message under way that are still to be forwarded, or to be left out.
    pub(super) up_pass: usize,
    pub(super) up_skip: usize,
    /// The same of the server's.
    pub(super) down_pass: usize,
    pub(super) down_skip: usize,
    /// As of the last ReadyForQuery.
    pub(super) status: Status,
    pub(super) unit: Unit,
    /// The server at hand takes every statement (it is the primary, or asked for by name).
    pub(super) takes_all: bool,
    /// Why the session keeps its server.
    pin: Option<Pin>,
    /// Since the last transaction's end something was written.
    wrote: MayWrite,
    /// The client's messages up to the next Sync are left out; it is answered with this status.
    pub(super) skip_to_sync: Option<Status>,
    /// The block whose server is gone.
    pub(super) cut: Option<Cut>,
    pub(super) prepared: ClientStatements,
    /// The last unnamed statement's id; the session's own range.
    pub(super) last_unnamed: u64,
    pub(crate) knobs: Knobs,
    /// The length of the client's message that must be there wholly before anything can be decided.
    pub(super) wants: usize,
    /// Verdicts of texts that [`Core::client`] has looked ahead at, in their order.
    pub(super) ahead: VecDeque<Arc<Verdict>>,
    /// ReadyForQuery that went to the client, and of those the ones outside of a transaction. They wrap.
    answered: (u32, u32),
}

/// Why a session keeps its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pin {
    Certain(&'static str),
    /// By a text that could not be parsed here; not when the server finds that it is no SQL.
    Unparsed,
}

/// What happened to the session's connection to its server, in numbers for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The transaction that has just ended may have written.
    pub(crate) wrote: bool,
}

impl Core {
    /// `session` is unique: the unnamed statements' ids are made from it.
    pub(crate) fn new(mode: PoolMode, session: u32, knobs: Knobs) -> Core {
        Core {
            mode,
            durability: Durability::Async,
            ledger: Ledger::default(),
            up_pass: 0,
            up_skip: 0,
            down_pass: 0,
            down_skip: 0,
            status: Status::Idle,
            unit: Unit::default(),
            takes_all: false,
            pin: None,
            wrote: MayWrite::No,
            skip_to_sync: None,
            cut: None,
            prepared: ClientStatements::default(),
            last_unnamed: u64::from(session) << 32,
            knobs,
            wants: 0,
            ahead: VecDeque::new(),
            answered: (0, 0),
        }
    }

    #[must_use]
    pub(crate) fn with_durability(self, durability: Durability) -> Core {
        Core { durability, ..self }
    }

    /// What would slip past the quorum is not run.
    pub(super) fn refuses(&self, verdict: &Verdict) -> bool {
        self.durability == Durability::Quorum && verdict.weakens_commits()
    }

    pub(crate) fn pinned(&self) -> Option<&'static str> {
        self.pin.map(|pin| match pin {
            Pin::Certain(reason) => reason,
            Pin::Unparsed => "unparsable",
        })
    }

    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// How many statements, and how many transactions, have been answered; both wrap.
    pub(crate) fn answered(&self) -> (u32, u32) {
        self.answered
    }

    /// A message to the client is under way: nothing can be said before its end.
    pub(super) fn is_amid_an_answer(&self) -> bool {
        self.down_pass > 0
    }

    /// A statement is with the server and has not been answered wholly.
    pub(crate) fn is_busy(&self) -> bool {
        !self.ledger.is_empty() || self.unit.open
    }

    /// A server is there for the unit that [`Ask::Server`] asked about. `takes_all`: it may run whatever
    /// comes next, so that pipelined units need not wait for each other.
    pub(crate) fn attached(
        &mut self,
        takes: Takes,
        server: &mut ServerState,
        settings: &Arc<Settings>,
        up: &mut Lane,
    ) {
        self.takes_all = takes == Takes::Everything;
        self.unit.attached();
        if Arc::ptr_eq(&server.settings, settings) {
            return;
        }
        let change = settings.change_from(&server.settings);
        server.settings = settings.clone();
        if !change.is_empty() {
            message::put_query(up.out(), &change);
            server.statements.unnamed = 0;
            self.ledger.sent(Owed::Query(For::Nobody));
        }
    }

    /// For the DISCARD ALL behind a session: hears one answer.
    pub(super) fn cleaning() -> Core {
        let mut core = Core::new(PoolMode::Session, 0, Knobs::default());
        core.ledger.sent(Owed::Query(For::Client));
        core
    }

    /// The last unit had an error.
    pub(super) fn failed(&self) -> bool {
        self.unit.failure.is_some()
    }

    /// A server, once there, stays until the client leaves.
    pub(super) fn keeps_server(&self) -> bool {
        self.mode == PoolMode::Session
    }

    /// What is with the server may be committing.
    pub(super) fn may_be_committing(&self) -> bool {
        self.unit.outcome == Outcome::Commit && self.is_busy()
    }

    /// A byte of the unit's answer has gone towards the client.
    pub(super) fn has_answered(&self) -> bool {
        self.unit.progress >= Progress::Answering
    }

    /// What was approved of the answer will not be written after all; a unit that was answered wholly stays
    /// answered.
    pub(super) fn take_answer_back(&mut self, down: &mut Lane) {
        if self.unit.progress == Progress::Settled {
            return;
        }
        down.discard_pending();
        self.down_pass = 0;
        self.unit.progress = Progress::Sent;
    }

    /// A server was attached, and nothing is sent to it after all.
    pub(super) fn forget_attachment(&mut self) {
        self.ledger.clear(|_| {});
        self.detached();
    }

    /// Nothing ties the server to this client: it can serve another.
    pub(crate) fn can_release(&self, up: &Lane) -> bool {
        self.mode != PoolMode::Session
            && self.unit.progress >= Progress::Sent
            && self.pin.is_none()
            && self.status == Status::Idle
            && !self.is_busy()
            && self.up_pass == 0
            && self.down_pass == 0
            && self.down_skip == 0
            && !up.has_pending()
    }

    /// The server went back, or away.
    pub(crate) fn detached(&mut self) {
        self.takes_all = false;
        self.pin = None;
        self.status = Status::Idle;
    }

    /// Whether the transaction that just ended may have written; asked once per transaction.
    pub(crate) fn take_ended(&mut self) -> Ended {
        if self.status != Status::Idle || self.is_busy() {
            return Ended::default();
        }
        Ended { wrote: std::mem::take(&mut self.wrote) == MayWrite::Yes }
    }

    /// What a statement that is about to be sent does to the session. The reason, when it pins it just now.
    pub(super) fn note(&mut self, verdict: &Verdict) {
        if verdict.may_write == MayWrite::Yes {
            self.wrote = MayWrite::Yes;
        }
        self.unit.add(verdict, self.status, self.wrote);
        let discards = |effect: &SessionEffect| {
            matches!(effect, SessionEffect::DiscardAll | SessionEffect::DeallocateAll)
        };
        if verdict.session.iter().any(discards) {
            self.unit.pace = Pace::OneByOne;
        }
        if self.pin.is_none() {
            let unparsed = verdict.access == Access::Write { reason: WriteReason::Unparsable };
            let reason = verdict.session.iter().find_map(pin_reason);
            self.pin = reason.map(Pin::Certain).or(unparsed.then_some(Pin::Unparsed));
        }
    }

    /// ReadyForQuery came for the client.
    pub(super) fn unit_ended(&mut self, status: Status) {
        self.status = status;
        self.answered.0 = self.answered.0.wrapping_add(1);
        self.answered.1 = self.answered.1.wrapping_add(u32::from(status == Status::Idle));
        self.unit.progress = Progress::Settled;
        let alone = self.ledger.units() == 0 && !self.unit.open;
        if self.pin == Some(Pin::Unparsed) {
            // When PostgreSQL could not parse it either, nothing of it ran.
            let nothing_ran = alone && self.unit.failure == Some(Failure::NoSql);
            self.pin = (!nothing_ran).then_some(Pin::Certain("unparsable"));
        }
        if self.mode != PoolMode::Session {
            self.unit.failure = None;
        }
        if alone {
            self.unit.ended();
            if status == Status::Idle {
                self.knobs.transaction_ended();
            }
        }
    }

    /// What cannot be run in this mode.
    pub(super) fn is_refused_by_mode(&self, verdict: &Verdict) -> bool {
        let opens_block = match &verdict.transaction {
            TransactionEffect::Begin(_)
            | TransactionEffect::CommitAndChain
            | TransactionEffect::RollbackAndChain => true,
            TransactionEffect::Several { ends, .. } => *ends == TransactionEnd::InBlock,
            _ => false,
        };
        self.mode == PoolMode::Statement && opens_block
    }

    /// A block was opened in a way that could not be seen in the text.
    pub(super) fn is_beyond_mode(&self, status: Status) -> bool {
        self.mode == PoolMode::Statement && status != Status::Idle
    }

    /// The server ran DISCARD ALL.
    pub(super) fn discarded_all(&mut self, server: &mut ServerState) {
        server.statements.clear();
        server.settings = Arc::default();
        self.prepared.clear();
        if self.mode != PoolMode::Session {
            self.pin = None;
        }
    }

    /// Whether the unit under way runs again after `loss`, whatever it was that ended the server.
    pub(super) fn runs_again(&self, loss: Loss) -> bool {
        self.unit.replay.fits(loss)
            && !self.has_answered()
            && self.status == Status::Idle
            && self.pin.is_none()
    }

    /// The server is gone. The client's unanswered units are answered, each with an error.
    pub(crate) fn lost(&mut self, loss: Loss, what: &str, up: &mut Lane, down: &mut Lane) -> AfterLoss {
        let (busy, units, pinned) = (self.is_busy(), self.ledger.units(), self.pin.is_some());
        let (status, mid_message) = (self.status, self.down_pass > 0);
        let prepared = &mut self.prepared;
        self.ledger.clear(|undo| undo_client(prepared, &undo));
        self.up_skip += std::mem::take(&mut self.up_pass);
        (self.down_pass, self.down_skip) = (0, 0);
        up.discard_pending();
        let unread = down.unread().len();
        down.skip(unread);
        self.wrote = MayWrite::No;
        self.detached();
        let in_doubt = self.unit.outcome == Outcome::Commit && busy;
        let error = loss_error(loss, in_doubt, what);
        if in_doubt {
            // Whoever looks whether it is there must not look where it has not arrived yet.
            self.knobs.write = OwnWrite::Unknown;
        }
        let open = std::mem::take(&mut self.unit.open);
        let retry = self.unit.replay.fits(loss) && !self.has_answered() && !open && self.up_skip == 0;
        match () {
            () if mid_message => AfterLoss::Close,
            () if pinned || self.mode == PoolMode::Session => AfterLoss::Fatal(
                ErrorFields::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection: its server is gone")
                    .with_detail(error.message),
            ),
            () if !busy && status == Status::Idle => AfterLoss::GoOn,
            () if !busy => {
                self.cut = Some(Cut::Untold(error));
                AfterLoss::GoOn
            }
            () if retry && status == Status::Idle => {
                up.put_back(self.unit.replay.messages());
                AfterLoss::Retry
            }
            () => {
                self.tell_loss(&error, status, units, open, down);
                AfterLoss::GoOn
            }
        }
    }

    fn tell_loss(&mut self, error: &ErrorFields, status: Status, units: usize, open: bool, down: &mut Lane) {
        let doubt = error.code == SqlState::TRANSACTION_RESOLUTION_UNKNOWN;
        let after = if status == Status::Idle || doubt { Status::Idle } else { Status::Failed };
        for _ in 0..units {
            message::put_error(down.out(), error);
            message::put_ready(down.out(), after);
        }
        if open || units == 0 {
            message::put_error(down.out(), error);
            self.skip_to_sync = Some(after);
        }
        if after == Status::Failed {
            self.cut = Some(Cut::Told);
        }
    }

    /// What the protocol's framing did not allow.
    pub(super) fn violation(error: &InvalidLength) -> ErrorFields {
        ErrorFields::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string())
    }
}

/// Whether a server may run whatever comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Everything,
    ReadsOnly,
}

pub(super) fn undo_client(prepared: &mut ClientStatements, undo: &Undo) {
    if let Undo::Client { name, .. } = undo {
        prepared.remove(name);
    }
}

/// Effects that end with the transaction, or that we undo or follow, are no reason to keep the server.
fn pin_reason(effect: &SessionEffect) -> Option<&'static str> {
    match effect {
        SessionEffect::SetLocal(_)
        | SessionEffect::DiscardAll
        | SessionEffect::DeallocateAll
        | SessionEffect::Discard
        | SessionEffect::Unlisten
        | SessionEffect::WeakCommit
        | SessionEffect::Cursor => None,
        SessionEffect::Set(_)
        | SessionEffect::Reset(_)
        | SessionEffect::ResetAll
        | SessionEffect::Listen
        | SessionEffect::Temporary
        | SessionEffect::Prepare(_)
        | SessionEffect::Execute(_)
        | SessionEffect::Deallocate(_)
        | SessionEffect::DeclareHold
        | SessionEffect::AdvisoryLock
        | SessionEffect::Load
        | SessionEffect::Do
        | SessionEffect::Call
        | SessionEffect::Function(_) => Some(effect.as_str()),
    }
}

fn loss_error(loss: Loss, in_doubt: bool, what: &str) -> ErrorFields {
    let (code, message) = match (in_doubt, loss) {
        (true, _) => (
            SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            "the server was lost while the transaction was being committed; it may or may not have been",
        ),
        (false, Loss::Failover) => (SqlState::SERIALIZATION_FAILURE, "transaction cut by a failover"),
        (false, Loss::Connection | Loss::Unbegun) => {
            (SqlState::CONNECTION_FAILURE, "the connection to the server was lost")
        }
    };
    ErrorFields::error(code, message).with_detail(what)
}
