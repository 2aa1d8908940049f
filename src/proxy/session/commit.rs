//! A COMMIT whose outcome can be found out, should its server be lost before it answers.
//!
//! In front of the COMMIT of a block that may have written the server is asked for the transaction's xid, without
//! waiting: by a FunctionCall, whose answer the server sends off before it begins with the COMMIT, and so before that
//! waits for the quorum. It needs no parser, no planner and no statement, leaves the client's unnamed ones alone, and
//! in a block it ends nothing. What the server says to it is not the client's.
//!
//! A number of 32 bits in the WAL means this transaction only within one life of the server. So it is asked once per
//! connection, which lives no longer, where the WAL is.
//!
//! In front of the second phase of a prepared transaction the server is asked in the same way for the xid that belongs to the
//! GID, and where its WAL is; by a query, since no function that a FunctionCall can call tells it. It begins a transaction
//! of its own, which must not wait, as it would by the session's defaults for a snapshot that is safe (`GetSafeSnapshot` in
//! predicate.c): the prepared transaction itself may be what that waits for.
//!
//! Not asked, and told 08007: what commits without a COMMIT of its own (a statement outside of a block, a COMMIT among
//! others in a text or a pipeline), COMMIT AND CHAIN.

use super::core::{Core, ServerState};
use super::lane::Lane;
use super::ledger::{For, Owed};
use super::message::{self, Status, put, put_complete, put_error, put_ready};
use super::names::undo;
use crate::pg::error::{ErrorFields, SqlState};
use crate::pg::{Lsn, TimelineId};
use crate::proxy::route::{MayWrite, OwnWrite, TransactionEffect, Verdict};
use crate::topology::{CommitInDoubt, Ending, Role};

/// `pg_current_xact_id_if_assigned()` in pg_proc.dat, where numbers are never given twice.
const XACT_ID_IF_ASSIGNED: u32 = 5060;
/// `pg_current_wal_insert_lsn()`; an error while in recovery.
const WAL_INSERT_LSN: u32 = 2852;

/// `GIDSIZE` in xact.h, with the NUL.
const GID_SIZE: usize = 200;

/// Whether servers are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveCommits {
    #[default]
    No,
    Yes,
}

/// What a server is asked in front of a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Where its WAL is, for all commits on this connection.
    Position,
    Xid,
    /// The xid of a prepared transaction, and the position.
    Prepared,
}

/// What is known of the COMMIT that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    what: Ending,
    origin: Origin,
    /// `None`: not heard yet, or it has none.
    xid: Option<u64>,
    /// Some position of its server in the same life.
    alive_at: Option<Lsn>,
}

/// Where the search for it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It has just been approved, and not been sent yet.
    Due,
    /// The server's timeline, and a position that all it writes from now on lies behind.
    Known(TimelineId, Lsn),
    Unknown,
}

impl Core {
    #[must_use]
    pub(crate) fn with_resolved_commits(mut self, resolve: ResolveCommits) -> Core {
        self.resolve = resolve;
        self
    }

    /// The server at hand is a `role`.
    pub(crate) fn serves(&mut self, role: Role) {
        self.asks = if role == Role::Primary { self.resolve } else { ResolveCommits::No };
    }

    /// Asks in front of a unit that begins with what `verdict` is about.
    pub(super) fn ask_ahead(&mut self, verdict: &Verdict, server: &mut ServerState, up: &mut Lane) {
        if self.asks == ResolveCommits::No || verdict.statements != 1 {
            return;
        }
        let (what, prepared) = match &verdict.transaction {
            TransactionEffect::Commit => (Ending::Commit, None),
            TransactionEffect::Prepare(_) => (Ending::Prepare, None),
            TransactionEffect::CommitPrepared(gid) => (Ending::CommitPrepared, Some(gid)),
            TransactionEffect::RollbackPrepared(gid) => (Ending::RollbackPrepared, Some(gid)),
            _ => return,
        };
        let fits = match prepared {
            None => self.status == Status::Block && self.wrote == MayWrite::Yes,
            Some(gid) => self.status == Status::Idle && is_plain(gid),
        };
        let alone = self.ledger.awaits_only_settings() && !self.unit.open && !self.ledger.is_skipping();
        if !alone || !fits {
            return;
        }
        match prepared {
            None => {
                if server.alive_at.is_none() {
                    message::put_call(up.out(), WAL_INSERT_LSN);
                    self.ledger.sent(Owed::Asked(Question::Position));
                }
                message::put_call(up.out(), XACT_ID_IF_ASSIGNED);
                self.ledger.sent(Owed::Asked(Question::Xid));
            }
            Some(gid) => {
                message::put_query(up.out(), &about_prepared(gid));
                self.ledger.sent(Owed::Asked(Question::Prepared));
                // As behind every simple query.
                server.statements.unnamed = 0;
            }
        }
        self.commit = Some(Commit { what, origin: Origin::Due, xid: None, alive_at: None });
    }

    /// A COMMIT is about to be sent: whoever knows says where its server is. See [`Core::commits_from`].
    pub(crate) fn awaits_origin(&self) -> bool {
        self.commit.is_some_and(|commit| commit.origin == Origin::Due)
    }

    /// Its server is on this timeline, and has written up to this position at least.
    pub(crate) fn commits_from(&mut self, origin: Option<(TimelineId, Lsn)>) {
        if let Some(commit) = &mut self.commit {
            commit.origin = origin.map_or(Origin::Unknown, |(timeline, lsn)| Origin::Known(timeline, lsn));
        }
    }

    /// FunctionCallResponse, or DataRow.
    pub(super) fn hear_value(&mut self, question: Question, message: &[u8], server: &mut ServerState) {
        let (xid, position) = match question {
            Question::Position => (None, message::call_result(message)),
            Question::Xid => (message::call_result(message), None),
            Question::Prepared => message::only_value(message).flatten().and_then(two_numbers).unzip(),
        };
        server.alive_at = position.map(Lsn).or(server.alive_at);
        if let (Some(xid), Some(commit)) = (xid, &mut self.commit) {
            (commit.xid, commit.alive_at) = (Some(xid), server.alive_at);
        }
    }

    /// Of the commit under way, if that is all that is, what is needed to find out its outcome.
    pub(crate) fn commit_in_doubt(&self) -> Option<CommitInDoubt> {
        let Commit { what, origin: Origin::Known(timeline, durable), xid, alive_at } = self.commit? else {
            return None;
        };
        let alone = self.ledger.units() == 1 && !self.unit.open && self.ledger.is_plain();
        let untouched = self.up_pass == 0 && self.down_pass == 0;
        let from = alive_at?.max(durable);
        let commit = CommitInDoubt { timeline, from, xid: xid?, what };
        (self.may_be_committing() && alone && untouched).then_some(commit)
    }

    /// It has happened: the client hears what its server would have said.
    pub(crate) fn commit_found(&mut self, down: &mut Lane) {
        let mut gone = ServerState::default();
        let tag = self.commit.map_or(Ending::Commit, |commit| commit.what).tag();
        while let Some(owed) = self.ledger.head() {
            let is_last = matches!(owed, Owed::Query(_) | Owed::Sync);
            let answer = match owed {
                Owed::Parse(For::Client | For::Own, _) => Some(b'1'),
                Owed::Bind => Some(b'2'),
                Owed::Close(For::Client | For::Own, _) => Some(b'3'),
                Owed::Describe => Some(b'n'),
                _ => None,
            };
            if let Some(answer) = answer {
                put(down.out(), answer, &[]);
            }
            if matches!(owed, Owed::Query(_) | Owed::Execute(_)) {
                self.completed(tag.as_bytes(), &mut gone);
                put_complete(down.out(), tag);
            }
            if is_last {
                break;
            }
            self.ledger.pop();
        }
        self.ledger.ready();
        self.unit_ended(Status::Idle, &mut gone);
        self.knobs.write = OwnWrite::Unknown;
        put_ready(down.out(), Status::Idle);
    }

    /// It has not, and never will.
    pub(crate) fn commit_lost(&mut self, what: &str, down: &mut Lane) {
        let ending = self.commit.map_or(Ending::Commit, |commit| commit.what);
        put_error(down.out(), &lost_error(ending).with_detail(what));
        let prepared = &mut self.prepared;
        self.ledger.clear(|left_out| undo(prepared, None, left_out));
        self.unit.ended();
        self.commit = None;
        self.status = Status::Idle;
        self.knobs.transaction_ended();
        put_ready(down.out(), Status::Idle);
    }
}

fn lost_error(ending: Ending) -> ErrorFields {
    let error = |message: &str| ErrorFields::error(SqlState::SERIALIZATION_FAILURE, message);
    match ending {
        Ending::Commit => {
            error("the transaction was not committed: its server was lost before the commit was durable")
        }
        Ending::Prepare => {
            error("the transaction was not prepared: its server was lost before that was durable")
        }
        Ending::CommitPrepared | Ending::RollbackPrepared => {
            error("the prepared transaction was not ended: its server was lost before that was durable")
                .with_hint("It is still prepared, unless another session has ended it: try again.")
        }
    }
}

/// What a server takes for it depends on no setting (`client_encoding`, `standard_conforming_strings`).
fn is_plain(gid: &str) -> bool {
    gid.len() < GID_SIZE && gid.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\')
}

fn about_prepared(gid: &str) -> String {
    let quoted = gid.replace('\'', "''");
    format!(
        "SET TRANSACTION NOT DEFERRABLE; \
         SELECT pg_catalog.concat(transaction, ' ', pg_catalog.pg_wal_lsn_diff(\
         pg_catalog.pg_current_wal_insert_lsn(), '0/0')) \
         FROM pg_catalog.pg_prepared_xacts WHERE gid OPERATOR(pg_catalog.=) '{quoted}'"
    )
}

fn two_numbers(text: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}
