//! The names of prepared statements, which are SQL's and the protocol's alike.
//!
//! A text that executes by name finds at its server what its client calls so: what is missing there is brought along
//! in front of the client's own message, without waiting. In front of a simple query a Sync stands behind it, so that
//! the query is run whatever becomes of it; when it fails (its table is gone), the query fails where it executes the
//! statement, and is told why. In the extended protocol it is a part of the client's unit, and fails with it.
//!
//! Preparing and deallocating is not transactional. By a simple query it counts when the server has completed it; in
//! the extended protocol, where more may be sent behind it, when it is sent, and not if it fails or is left out.
//!
//! What functions prepare, or execute by name, goes unseen. So a name is closed before anything is brought under it,
//! and before a text that mentions one which its client does not have: what another client's function has left is not
//! in the way, and not run. But not where the client has written since its transaction began: what writes may run a
//! function, and the name may be its own.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::{Core, ServerState};
use super::lane::Lane;
use super::ledger::{Follow, For, Owed, Undo};
use super::message::{Status, put};
use super::pins::Pin;
use crate::proxy::prepared::{
    ClientStatements, Closed, Named, OURS, ServerStatements, Statement, Statements, Text, Wanted,
};
use crate::proxy::route::{MayWrite, SessionEffect, SqlPrepare, Step, Verdict};

/// What must be done about a name before the text that mentions it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It must mean what it means to the client.
    Statement,
    /// It must mean something: it is deallocated, or given a second time.
    StandIn,
    /// It must mean nothing.
    Absence,
}

/// Should it be executed after all, it fails as what is not there does (26000).
const STAND_IN: &[u8] = b"DEALLOCATE \"no such statement\"\0\0\0";

/// Whether the client's message can be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Answers must come before.
    Waits,
}

impl Core {
    /// `verdict` with what the statements do that it executes by name.
    pub(super) fn resolved(&self, verdict: Arc<Verdict>) -> Arc<Verdict> {
        if !verdict.executes_by_name() {
            return verdict;
        }
        match verdict.with_executed(|name| self.prepared.verdict(name.as_bytes()).cloned()) {
            Some(more) => Arc::new(more),
            None => verdict,
        }
    }

    /// Whether what an earlier unit has done about `name`, or a name that `verdict` mentions, is not known yet: if that
    /// unit fails, neither the client nor the server has what was noted when it was sent. Until then nothing is sent
    /// that relies on it.
    pub(super) fn is_in_doubt(&self, name: Option<&[u8]>, verdict: Option<&Verdict>) -> bool {
        let mentioned =
            verdict.iter().flat_map(|verdict| &verdict.session).filter_map(|effect| match effect {
                SessionEffect::Execute(name) | SessionEffect::Deallocate(name) => Some(name.as_bytes()),
                SessionEffect::Prepare(prepare) => Some(prepare.name.as_bytes()),
                _ => None,
            });
        // Nothing can be brought to a failed block; what is under way may end it.
        let may_be_over = self.status == Status::Failed && self.ledger.units() > 0;
        let mut mentioned = mentioned.peekable();
        if may_be_over && mentioned.peek().is_some() {
            return true;
        }
        name.into_iter().chain(mentioned).any(|name| self.ledger.is_in_doubt(name, self.prepared.id(name)))
    }

    /// What a simple query needs in front of it.
    pub(super) fn bring_names(
        &mut self,
        verdict: &Verdict,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Readiness {
        let lacking = self.lacking(verdict, server);
        // What is closed cannot fail; amid an extended unit there is a Sync to come.
        if self.unit.open || lacking.iter().all(|(_, need)| *need == Need::Absence) {
            self.bring_all(&lacking, up, server, statements);
            return Readiness::Ready;
        }
        if self.ledger.awaits_settings() {
            // If they fail, the server must not be told to go on behind them.
            if !self.ledger.ends_with_own_sync() {
                self.own_sync(up);
            }
            return Readiness::Waits;
        }
        self.bring_all(&lacking, up, server, statements);
        self.own_sync(up);
        Readiness::Ready
    }

    /// The same for a message of the extended protocol.
    pub(super) fn bring_names_in_unit(
        &mut self,
        verdict: &Verdict,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) {
        let lacking = self.lacking(verdict, server);
        if !lacking.is_empty() {
            self.unit.sent_extended();
            self.bring_all(&lacking, up, server, statements);
        }
    }

    fn own_sync(&mut self, up: &mut Lane) {
        put(up.out(), b'S', &[]);
        self.ledger.sent(Owed::OwnSync);
    }

    /// The names whose meaning at the server is not what `verdict` needs, by their first mention.
    fn lacking<'a>(&self, verdict: &'a Verdict, server: &mut ServerState) -> Vec<(&'a [u8], Need)> {
        // Where nothing can be prepared, nothing needs to be.
        if self.status == Status::Failed || self.ledger.takes_copy_data() {
            return Vec::new();
        }
        let (mut mentioned, mut lacking) = (HashSet::new(), Vec::new());
        for effect in &verdict.session {
            let (name, executes) = match effect {
                SessionEffect::Execute(name) => (name.as_bytes(), true),
                SessionEffect::Deallocate(name) => (name.as_bytes(), false),
                SessionEffect::Prepare(prepare) => (prepare.name.as_bytes(), false),
                SessionEffect::DeallocateAll | SessionEffect::DiscardAll => break,
                _ => continue,
            };
            if mentioned.insert(name) {
                lacking.extend(self.need(name, executes, server).map(|need| (name, need)));
            }
        }
        lacking
    }

    fn need(&self, name: &[u8], executes: bool, server: &mut ServerState) -> Option<Need> {
        let at_server = &mut server.statements;
        match self.prepared.named(name) {
            // It may be another client's.
            None => (at_server.has_name(name) || !self.may_have_prepared_unseen()).then_some(Need::Absence),
            Some(Named { statement, since }) if executes => {
                (!at_server.touch_name(name, statement, *since)).then_some(Need::Statement)
            }
            Some(_) => (!at_server.has_name(name)).then_some(Need::StandIn),
        }
    }

    fn bring_all(
        &mut self,
        lacking: &[(&[u8], Need)],
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) {
        while let Some(surplus) = server.statements.take_surplus() {
            self.close(surplus, up);
        }
        for (name, need) in lacking {
            self.bring(name, *need, up, server, statements);
        }
    }

    fn bring(
        &mut self,
        name: &[u8],
        need: Need,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) {
        match server.statements.take_name(name) {
            Some(closed) => self.close(closed, up),
            None => self.close_unseen(b'S', name, up),
        }
        let statement = match need {
            Need::Absence => return,
            Need::StandIn => None,
            Need::Statement => self.prepared.named(name).cloned(),
        };
        let statement = statement.map(|named| self.suiting(name, named, statements).statement);
        server.statements.name(name, statement.as_deref(), self.schema.now());
        let rest = match statement.as_deref().map(Statement::text) {
            None => STAND_IN,
            Some(Text::Parse(rest)) => rest,
            Some(Text::Sql(prepare)) => return self.bring_by_sql(name, prepare, up, server),
        };
        put(up.out(), b'P', &[name, b"\0", rest]);
        self.ledger.sent(Owed::Bring { until: b'1', undo: Undo::Named(name.into()) });
    }

    /// By a statement and a portal of our own: the client's unnamed ones stay as they are. Behind it they are of no use,
    /// and nobody's to execute; where it fails, what is left of them is known.
    fn bring_by_sql(&mut self, name: &[u8], prepare: &SqlPrepare, up: &mut Lane, server: &mut ServerState) {
        if let Some(left) = server.statements.take_name(OURS) {
            self.close(left, up);
        }
        put(up.out(), b'P', &[OURS, b"\0", prepare.text.as_bytes(), b"\0\0\0"]);
        put(up.out(), b'B', &[OURS, b"\0", OURS, b"\0\0\0\0\0\0\0"]);
        put(up.out(), b'E', &[OURS, b"\0\0\0\0\0"]);
        self.ledger.sent(Owed::Bring { until: b'C', undo: Undo::Named(name.into()) });
        // A portal that has failed ends with its transaction.
        self.close_unseen(b'P', OURS, up);
        server.statements.name(OURS, None, self.schema.now());
        if let Some(ours) = server.statements.take_name(OURS) {
            self.close(ours, up);
        }
    }

    /// For a Bind or Describe of a name that the protocol has not prepared: SQL has, or nobody has.
    pub(super) fn provide_own_name(
        &mut self,
        name: &[u8],
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) {
        let need = match self.prepared.named(name).cloned() {
            None => {
                let is_anothers = server.statements.has_name(name) || !self.may_have_prepared_unseen();
                is_anothers.then_some(Need::Absence)
            }
            Some(named) => {
                let outdated = named.statement.is_outdated();
                let named = if outdated { self.suiting(name, named, statements) } else { named };
                let is_there = server.statements.touch_name(name, &named.statement, named.since);
                self.unit.uses(&named.statement);
                (!is_there).then_some(Need::Statement)
            }
        };
        if let Some(need) = need {
            self.bring(name, need, up, server, statements);
        }
    }

    /// For a second Parse of a name: the server must have something to refuse it for.
    pub(super) fn provide_stand_in(
        &mut self,
        name: &[u8],
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) {
        if !server.statements.has_name(name) {
            self.bring(name, Need::StandIn, up, server, statements);
        }
    }

    /// A function that the client has run at the server at hand may have; or there were too many to be followed.
    fn may_have_prepared_unseen(&self) -> bool {
        self.wrote == MayWrite::Yes || self.state.pins().has(Pin::Prepare)
    }

    /// What is there, if anything, has not been seen: functions prepare, too. Without it a Parse would fail.
    fn close_unseen(&mut self, kind: u8, name: &[u8], up: &mut Lane) {
        put(up.out(), b'C', &[&[kind], name, b"\0"]);
        self.ledger.sent(Owed::Close(For::Nobody, Undo::Nothing));
    }

    /// In front of a message about a portal: the unnamed one that ran a statement of ours is none of the client's.
    pub(super) fn close_our_portal(&mut self, up: &mut Lane) {
        if self.portals.take_ours() {
            self.close_unseen(b'P', b"", up);
        }
    }

    pub(super) fn close(&mut self, closed: Closed, up: &mut Lane) {
        put(up.out(), b'C', &[b"S", closed.name(), b"\0"]);
        self.ledger.sent(Owed::Close(For::Nobody, Undo::Closed(closed)));
    }

    /// A simple query, with what it will prepare.
    pub(super) fn follow(&self, verdict: &Arc<Verdict>, statements: &Statements) -> Follow {
        let effects = verdict.steps.iter().flat_map(|step| &step.session);
        let prepares = effects.filter_map(|effect| match effect {
            SessionEffect::Prepare(prepare) => Some(self.sql_statement(prepare, statements)),
            _ => None,
        });
        let mut follow = Follow::of(verdict);
        follow.prepares.extend(prepares);
        follow
    }

    fn sql_statement(&self, prepare: &Arc<SqlPrepare>, statements: &Statements) -> Named {
        let (text, context, now) = (Text::Sql(prepare), self.state.parse_context(), self.schema.now());
        let wanted = Wanted { text, context, verdict: &prepare.verdict, now };
        Named { statement: statements.intern(wanted), since: now }
    }

    /// The server has completed a statement of a simple query.
    pub(super) fn names_completed(&mut self, step: &Step, server: &mut ServerState) {
        for effect in &step.session {
            match effect {
                SessionEffect::Prepare(prepare) => {
                    let Some(named) = self.ledger.next_prepared() else { continue };
                    // With too many, the session is pinned.
                    if !self.prepared.is_full() {
                        let name = prepare.name.as_bytes();
                        server.statements.name(name, Some(&named.statement), named.since);
                        self.prepared.insert(name, named);
                    }
                }
                SessionEffect::Deallocate(name) => {
                    self.prepared.take(name.as_bytes());
                    server.statements.take_name(name.as_bytes());
                }
                _ => {}
            }
        }
    }

    /// An Execute of a portal with this `verdict` is about to be sent. What does not hold if it fails.
    pub(super) fn names_executed(
        &mut self,
        verdict: &Verdict,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Vec<Undo> {
        let mut undo = Vec::new();
        for effect in &verdict.session {
            match effect {
                SessionEffect::Prepare(prepare) => {
                    let name = prepare.name.as_bytes();
                    if self.prepared.named(name).is_none() && !self.prepared.is_full() {
                        let named = self.sql_statement(prepare, statements);
                        // In a failed block another client's was not closed.
                        undo.extend(server.statements.take_name(name).map(Undo::Closed));
                        server.statements.name(name, Some(&named.statement), named.since);
                        self.prepared.insert(name, named);
                        undo.extend([
                            Undo::Named(name.into()),
                            Undo::Client { name: name.into(), server: None },
                        ]);
                    }
                }
                SessionEffect::Deallocate(name) => {
                    let name = name.as_bytes();
                    let Some(was) = self.prepared.take(name) else { continue };
                    undo.push(Undo::Deallocated(name.into(), was));
                    undo.extend(server.statements.take_name(name).map(Undo::Closed));
                }
                SessionEffect::DeallocateAll | SessionEffect::DiscardAll => {
                    let all = (self.prepared.take_all(), server.statements.take_all());
                    undo.push(Undo::All(Box::new(all)));
                }
                _ => {}
            }
        }
        undo
    }
}

/// What was noted does not hold; `server`: unless it is gone.
pub(super) fn undo(prepared: &mut ClientStatements, server: Option<&mut ServerStatements>, undo: Undo) {
    match (undo, server) {
        (Undo::Client { name, server: sent }, server) => {
            prepared.remove(&name);
            let _ = server.zip(sent).map(|(server, id)| server.remove(id));
        }
        (Undo::Unnamed(id), server) => {
            if prepared.unnamed.as_ref().is_some_and(|unnamed| unnamed.id == id) {
                prepared.forget_unnamed();
            }
            let _ = server.map(|server| server.forget_unnamed(id));
        }
        (Undo::UnnamedAgain(id), Some(server)) => server.forget_unnamed(id),
        (Undo::Deallocated(name, was), _) => prepared.insert(&name, was),
        (Undo::All(all), server) => {
            let (names, statements) = *all;
            prepared.put_back(names);
            let _ = server.map(|server| *server = statements);
        }
        (Undo::Server(id), Some(server)) => server.remove(id),
        (Undo::Closed(closed), Some(server)) => server.put_back(closed),
        (Undo::Named(name), Some(server)) => drop(server.take_name(&name)),
        (Undo::UnnamedAgain(_) | Undo::Server(_) | Undo::Closed(_) | Undo::Named(_), None)
        | (Undo::Nothing, _) => {}
    }
}
