//! The session's state, and what of it the three directions share: what a statement does to it, and when a server can
//! go back.
//!
//! It never reads a socket, a clock or a directive. [`Core::client`] and [`Core::server`] look at what was read,
//! approve, replace or swallow it in the [`Lane`]s, and say what is needed next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::commit::{Commit, ResolveCommits};
use super::deferred::Deferred;
use super::durability::Refusal;
use super::knobs::Knobs;
use super::lane::Lane;
use super::ledger::{Follow, Ledger, Owed};
use super::listening::{self, Listening};
use super::local::Cut;
use super::message::{self, Status};
use super::pins::{Behind, Pin};
use super::portals::Portals;
use super::reported::Reported;
use super::state::{End, SessionState};
use super::unit::{Outcome, Pace, Progress, Undone, Unit};
use crate::pg::Lsn;
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::protocol::frame::InvalidLength;
use crate::proxy::guc::Settings;
use crate::proxy::prepared::{ClientStatements, NOT_KNOWN, Schema, ServerStatements, Statements};
use crate::proxy::route::{
    Access, Classifier, MayAlter, MayWrite, OwnWrite, SessionEffect, TransactionEffect, TransactionEnd,
    Verdict, WriteReason,
};
use crate::topology::{Durability, RemoteApply};

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
    /// What is set there, beyond the server's own defaults.
    pub(crate) settings: Arc<Settings>,
    /// Its parameters, as of its last ReadyForQuery.
    pub(crate) reported: Reported,
    /// It must not go to another client: see [`Core::mixes_protocols`], or an answer may be on its way that cannot be
    /// waited for.
    pub(crate) retires: bool,
    /// Its process.
    pub(crate) pid: u32,
    /// Where its WAL was at some time of this connection, as a primary's.
    pub(crate) alive_at: Option<Lsn>,
}

/// What a session needs for the client's next messages.
#[derive(Debug)]
pub(crate) enum Ask {
    /// More bytes from the client, or an answer from the server.
    Nothing,
    /// A server for this. Call [`Core::attached`] or [`Core::refuse`], then [`Core::client`] again.
    Server(Demand),
    /// The connection that all share is to listen to these. Call [`Core::listens`], then [`Core::client`] again.
    Listen(Vec<Box<str>>),
    /// Where the session's last write is; then [`Core::client`] again, whether that is known or not.
    Position,
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
    /// A ReadyForQuery is held until it is known what was notified before. Call [`Core::settled`], then
    /// [`Core::server`] again.
    Settle,
    /// The server said farewell.
    Lost(ErrorFields),
    /// It has ended the session for what the client has sent: its words are the client's.
    Over,
    /// It broke the protocol.
    Broken(ErrorFields),
    /// It did not take the client's settings. Nothing of the client's was run.
    Refused(ErrorFields),
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
    remote_apply: RemoteApply,
    pub(super) resolve: ResolveCommits,
    /// The same, of the server at hand.
    pub(super) asks: ResolveCommits,
    pub(super) commit: Option<Commit>,
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
    /// Then the status is that of a block, and there is no server.
    pub(super) deferred: Option<Deferred>,
    pub(super) state: SessionState,
    /// What its portals run, where that changes the session.
    pub(super) portals: Portals,
    /// Parameters as the client knows them.
    pub(super) told: Reported,
    pub(super) listening: Listening,
    /// The client's own, as it was told.
    pub(super) pid: u32,
    /// Notifications that went to the client; wraps.
    pub(super) notified: u64,
    /// Since the last transaction's end something was written.
    pub(super) wrote: MayWrite,
    /// The last unit that may have changed the schema in a transaction which is not over.
    altered: Option<u64>,
    pub(super) schema: Schema,
    /// The client's messages up to the next Sync are left out; it is answered with this status.
    pub(super) skip_to_sync: Option<Status>,
    /// The block whose server is gone.
    pub(super) cut: Option<Box<Cut>>,
    pub(super) prepared: ClientStatements,
    /// The last unnamed statement's id; the session's own range.
    pub(super) last_unnamed: u64,
    pub(crate) knobs: Knobs,
    /// The unit that was looked at shows the session's last position.
    pub(super) shows_position: bool,
    /// That has been asked for, for its sake.
    position_asked: bool,
    /// The length of the client's message that must be there wholly before anything can be decided.
    pub(super) wants: usize,
    /// Verdicts of texts that [`Core::client`] has looked ahead at, in their order.
    pub(super) ahead: VecDeque<Arc<Verdict>>,
    /// ReadyForQuery that went to the client, and of those the ones outside of a transaction. They wrap.
    answered: (u32, u32),
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
            remote_apply: RemoteApply::Off,
            resolve: ResolveCommits::No,
            asks: ResolveCommits::No,
            commit: None,
            ledger: Ledger::default(),
            up_pass: 0,
            up_skip: 0,
            down_pass: 0,
            down_skip: 0,
            status: Status::Idle,
            unit: Unit::default(),
            takes_all: false,
            deferred: None,
            state: SessionState::default(),
            portals: Portals::default(),
            told: Reported::default(),
            listening: Listening::default(),
            pid: 0,
            notified: 0,
            wrote: MayWrite::No,
            altered: None,
            schema: Schema::default(),
            skip_to_sync: None,
            cut: None,
            prepared: ClientStatements::default(),
            last_unnamed: u64::from(session) << 32,
            knobs,
            shows_position: false,
            position_asked: false,
            wants: 0,
            ahead: VecDeque::new(),
            answered: (0, 0),
        }
    }

    #[must_use]
    pub(crate) fn with_durability(self, durability: Durability) -> Core {
        Core { durability, ..self }
    }

    #[must_use]
    pub(crate) fn with_remote_apply(self, remote_apply: RemoteApply) -> Core {
        Core { remote_apply, ..self }
    }

    /// What would slip past the quorum, or wait for it in vain, is not run.
    pub(super) fn refuses(&self, verdict: &Verdict) -> Option<Refusal> {
        Refusal::of(verdict, self.durability, self.remote_apply)
    }

    #[must_use]
    pub(crate) fn with_settings(self, startup: Arc<Settings>) -> Core {
        Core { state: SessionState::new(startup), ..self }
    }

    #[must_use]
    pub(crate) fn with_schema(self, schema: Schema) -> Core {
        Core { schema, ..self }
    }

    #[must_use]
    pub(crate) fn with_pid(self, pid: u32) -> Core {
        Core { pid, ..self }
    }

    /// What the server has told the client of `client_encoding`.
    pub(crate) fn client_encoding(&self) -> &str {
        self.told.value("client_encoding").unwrap_or("UTF8")
    }

    /// Whether the unit that was looked at has to wait until it is known where the last write is. Once for each.
    pub(super) fn awaits_position(&mut self) -> bool {
        let unknown = self.shows_position && self.knobs.write == OwnWrite::Unknown;
        self.position_asked = unknown && !self.position_asked;
        self.position_asked
    }

    /// Why the session keeps its server.
    pub(crate) fn pinned(&self) -> Option<&'static str> {
        self.state.pins().first().map(Pin::as_str)
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        self.state.settings()
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

    /// Of no message a part has been forwarded, or swallowed, and the rest not.
    pub(super) fn is_between_messages(&self) -> bool {
        self.up_pass == 0 && self.down_pass == 0 && self.down_skip == 0
    }

    /// A statement is with the server and has not been answered wholly.
    pub(crate) fn is_busy(&self) -> bool {
        !self.ledger.is_empty() || self.unit.open
    }

    /// A server is there for the unit that [`Ask::Server`] asked about. `takes_all`: it may run whatever
    /// comes next, so that pipelined units need not wait for each other.
    pub(crate) fn attached(&mut self, takes: Takes, server: &mut ServerState, up: &mut Lane) {
        self.takes_all = takes == Takes::Everything;
        self.unit.attached();
        self.bring_settings(server, up);
        if self.deferred.is_some() {
            server.statements.unnamed = NOT_KNOWN;
            self.begin_deferred(up);
        }
    }

    /// Makes the server's settings the client's, in front of what the client says next and without waiting.
    ///
    /// In a transaction of its own, by extended messages without a Sync: when it fails, the server leaves out
    /// everything up to the next Sync (postgres.c: `ignore_till_sync`), so that nothing of the client's runs under
    /// settings that are not its own.
    pub(super) fn bring_settings(&mut self, server: &mut ServerState, up: &mut Lane) {
        let wanted = self.state.settings();
        if Arc::ptr_eq(&server.settings, wanted) {
            return;
        }
        let change = wanted.change_from(&server.settings);
        self.state.brought(&server.settings);
        server.settings = self.state.settings().clone();
        let Some(change) = change else { return };
        // On a standby SERIALIZABLE, if that is the default, would fail.
        let statements = ["BEGIN ISOLATION LEVEL READ COMMITTED", &change, "COMMIT"];
        statements.iter().for_each(|text| message::put_statement(up.out(), text));
        server.statements.unnamed = NOT_KNOWN;
        self.portals.lend_unnamed(self.ledger.unit());
        self.ledger.sent(Owed::Ahead { statements: statements.len() });
    }

    /// For the DISCARD ALL behind a session: hears one answer.
    pub(super) fn cleaning() -> Core {
        let mut core = Core::new(PoolMode::Session, 0, Knobs::default());
        core.ledger.sent(Owed::Query(Follow::default()));
        core
    }

    /// The last unit had an error.
    pub(super) fn failed(&self) -> bool {
        self.unit.failed_last.is_some()
    }

    /// A server, once there, stays until the client leaves.
    pub(super) fn keeps_server(&self) -> bool {
        self.mode == PoolMode::Session
    }

    /// What is with the server may be committing.
    pub(super) fn may_be_committing(&self) -> bool {
        self.unit.outcome == Outcome::Commit && self.is_busy() && !self.is_undone()
    }

    /// All that is with the server is a unit that has failed. A client may take its time to send the Sync behind that.
    fn is_undone(&self) -> bool {
        let units = self.ledger.units() + usize::from(self.unit.open);
        units <= 1 && self.unit.failure.is_some() && self.unit.undone == Undone::Everything
    }

    /// A byte of the unit's answer has gone towards the client.
    pub(super) fn has_answered(&self) -> bool {
        self.unit.progress >= Progress::Answering
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
            && self.state.pins().is_empty()
            && self.status == Status::Idle
            && !self.is_busy()
            && self.is_between_messages()
            && !up.has_pending()
    }

    /// The server went back, or away.
    pub(crate) fn detached(&mut self) {
        self.takes_all = false;
        self.asks = ResolveCommits::No;
        self.commit = None;
        self.state.detached();
        self.stop_listening_at_server();
        self.portals.clear();
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
        if verdict.may_alter == MayAlter::Yes {
            self.altered = Some(self.ledger.unit());
            self.schema.changed();
        }
        self.unit.add(verdict, self.status, self.wrote);
        if self.state.pins_mut().sent(verdict.steps.iter().flat_map(|step| &step.session)) == Pace::OneByOne {
            self.unit.pace = Pace::OneByOne;
        }
        let unparsed = verdict.access == Access::Write { reason: WriteReason::Unparsable };
        if unparsed {
            self.state.pins_mut().sent_unparsed();
        }
        if self.prepared.is_full() && verdict.session.iter().any(SessionEffect::is_prepare) {
            self.state.pins_mut().take(Pin::Prepare);
        }
        if unparsed || !verdict.session.iter().all(SessionEffect::is_of_names) {
            self.last_unnamed += 1;
            self.state.unsettled(self.last_unnamed);
        }
    }

    /// CommandComplete with this tag; the one that the client is to hear, where it is another.
    pub(super) fn completed(&mut self, tag: &[u8], server: &mut ServerState) -> Option<&'static str> {
        // What is answered is in no doubt.
        self.commit = None;
        let mut instead = None;
        let by_query = matches!(self.ledger.head(), Some(Owed::Query(_)));
        let followed = self.ledger.completed();
        if let Some((verdict, done)) = &followed
            && let Some(step) = verdict.steps.get(*done)
        {
            instead = listening::tag_of(&step.session, tag);
            self.state.completed(step, tag, server);
            if by_query {
                self.names_completed(step, server);
            }
        }
        // Of an Execute that is followed, this was noted when it was sent.
        if matches!(tag, b"DISCARD ALL" | b"DEALLOCATE ALL") && (by_query || followed.is_none()) {
            server.statements.take_all();
            self.prepared.take_all();
        }
        if tag == b"DISCARD ALL" {
            self.state.discarded_all(server);
        }
        instead
    }

    /// ReadyForQuery came for the client.
    pub(super) fn unit_ended(&mut self, status: Status, server: &mut ServerState) {
        let was = std::mem::replace(&mut self.status, status);
        self.count_answer(status);
        self.commit = None;
        self.unit.begun = None;
        self.unit.progress = Progress::Settled;
        let alone = self.ledger.units() == 0 && !self.unit.open;
        self.note_altered(status);
        let failure = self.unit.failure.take();
        self.unit.failed_last = failure;
        self.unit.not_brought = None;
        self.state.pins_mut().unit_ended(failure, if alone { Behind::Nothing } else { Behind::More });
        if status == Status::Idle {
            let failed = failure.is_some() || was == Status::Failed;
            self.state.transaction_ended(if failed { End::RolledBack } else { End::Committed }, server);
            self.state.idle(server);
            self.portals.ended(self.ledger.next_answered());
        }
        if alone {
            self.unit.ended();
            self.state.pins_mut().all_answered();
            if status == Status::Idle {
                self.knobs.transaction_ended();
                self.state.settled();
            }
        }
    }

    /// Something was done, or undone, in a transaction that may have changed the schema.
    fn note_altered(&mut self, status: Status) {
        let Some(by) = self.altered else { return };
        self.schema.changed();
        if status == Status::Idle && by < self.ledger.next_answered() {
            self.altered = None;
        }
    }

    /// The server is gone, with whatever it had altered.
    pub(super) fn forget_altered(&mut self) {
        if self.altered.take().is_some() {
            self.schema.changed();
        }
    }

    /// A ReadyForQuery goes to the client.
    pub(super) fn count_answer(&mut self, status: Status) {
        self.answered.0 = self.answered.0.wrapping_add(1);
        self.answered.1 = self.answered.1.wrapping_add(u32::from(status == Status::Idle));
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
