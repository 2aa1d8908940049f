//! Named statements at the server at hand: what is sent in front of the client's message so that the server has what
//! the client means by a name.

use std::sync::Arc;

use super::core::{Core, ServerState};
use super::lane::Lane;
use super::ledger::{For, Owed, Undo};
use super::message::{Status, put};
use crate::pg::protocol::frame::Header;
use crate::proxy::prepared::{Closed, NOT_KNOWN, Named, Statement, Statements, Text, Wanted, private};
use crate::proxy::route::Verdict;

impl Core {
    /// What a Parse with `rest` behind its name prepares for the client.
    pub(super) fn new_statement(
        &mut self,
        rest: &[u8],
        verdict: &Arc<Verdict>,
        statements: &Statements,
    ) -> Named {
        let since = self.schema.now();
        // What it is depends on what the client's names mean.
        let own = verdict.executes_by_name().then(|| {
            self.last_unnamed += 1;
            private(self.last_unnamed)
        });
        let context = own.as_ref().unwrap_or(self.state.parse_context());
        let wanted = Wanted { text: Text::Parse(rest), context, verdict, now: since };
        let statement = statements.intern(wanted);
        // Another name of the client's keeps what it means.
        let is_older = self.prepared.has_since_before(&statement, since);
        let statement = if is_older { statements.intern_anew(wanted) } else { statement };
        Named { statement, since }
    }

    /// The client's Parse of `name`: what the server has is not prepared again where it is certain that it would be.
    pub(super) fn prepare_for_client(
        &mut self,
        name: Box<[u8]>,
        named: Named,
        up: &mut Lane,
        server: &mut ServerState,
    ) {
        let statement = named.statement.clone();
        let is_there = server.statements.touch(&statement, named.since);
        // A failed block denies every text but those that end it (exec_parse_message in postgres.c).
        let may_have_failed = self.status == Status::Failed || self.ledger.units() > 0;
        self.unit.sent_extended();
        self.prepared.insert(&name, named);
        if is_there && !may_have_failed {
            self.ledger.sent(Owed::Parse(For::Own, Undo::Client { name, server: None }));
        } else {
            let undo = Undo::Client { name, server: Some(statement.id) };
            self.prepare(&statement, For::Client, undo, up, server);
        }
    }

    /// Sends the Parse of one of our statements, behind the Close of an older copy, and of another one when the server
    /// has too many.
    pub(super) fn prepare(
        &mut self,
        statement: &Arc<Statement>,
        whom: For,
        undo: Undo,
        up: &mut Lane,
        server: &mut ServerState,
    ) {
        let Some((name, message)) = statement.shared() else { return };
        if let Some(closed) = server.statements.take_name(name.as_bytes()) {
            self.close(closed, up);
        }
        if let Some(oldest) = server.statements.insert(statement, self.schema.now()) {
            self.close(Closed::Copy(oldest), up);
        }
        up.out().extend_from_slice(message);
        self.ledger.sent(Owed::Parse(whom, undo));
    }

    /// Makes sure that the server has what the client calls `name`; what the server calls it, when that is
    /// something else.
    pub(super) fn provide(
        &mut self,
        name: &[u8],
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Option<ServerName> {
        if name.is_empty() {
            self.provide_unnamed(up, server);
            return None;
        }
        match self.prepared.named(name).cloned() {
            Some(Named { statement, .. }) if statement.shared().is_none() => {
                self.provide_own_name(name, up, server, statements);
                None
            }
            Some(Named { statement, since })
                if !statement.is_outdated() && server.statements.touch(&statement, since) =>
            {
                Some(ServerName::Ours(statement))
            }
            Some(named) => {
                let Named { statement, since } = self.suiting(name, named, statements);
                if !server.statements.touch(&statement, since) {
                    self.prepare(&statement, For::Nobody, Undo::Server(statement.id), up, server);
                }
                Some(ServerName::Ours(statement))
            }
            // Ours are not to be had by guessing their names.
            None if name.starts_with(b"bw_") => Some(ServerName::Missing),
            None => {
                self.provide_own_name(name, up, server, statements);
                None
            }
        }
    }

    /// Makes sure that the server's unnamed statement is the client's. When the client has none, or it was too long to be
    /// kept, the server has none either, and says so.
    fn provide_unnamed(&mut self, up: &mut Lane, server: &mut ServerState) {
        match &self.prepared.unnamed {
            Some(unnamed) if unnamed.id == server.statements.unnamed => {}
            Some(unnamed) if !unnamed.parse.is_empty() => {
                server.statements.unnamed = unnamed.id;
                up.out().extend_from_slice(&unnamed.parse);
                self.ledger.sent(Owed::Parse(For::Nobody, Undo::UnnamedAgain(unnamed.id)));
            }
            // Whether it was closed will not be known: an error may leave it out.
            _ if server.statements.unnamed != 0 => {
                server.statements.unnamed = NOT_KNOWN;
                put(up.out(), b'C', &[b"S\0"]);
                self.ledger.sent(Owed::Close(For::Nobody, Undo::Nothing));
            }
            _ => {}
        }
    }

    /// What the client calls `name`, as it can be prepared under the settings of now for whoever has them.
    pub(super) fn suiting(&mut self, name: &[u8], known: Named, statements: &Statements) -> Named {
        let context = self.state.parse_context();
        let Named { statement, since } = &known;
        if statement.suits(context) {
            return known;
        }
        let wanted = Wanted { text: statement.text(), context, verdict: &statement.verdict, now: *since };
        let suiting = Named { statement: statements.intern(wanted), since: *since };
        self.prepared.insert(name, suiting.clone());
        suiting
    }

    /// For a Bind or Describe of the statement `name`: sends what it needs first, and is owed its answer. What
    /// to call the statement in it; `None`: it goes as it is.
    pub(super) fn name_at_server(
        &mut self,
        name: &[u8],
        header: Header,
        owed: Owed,
        up: &mut Lane,
        server: &mut ServerState,
        statements: &Statements,
    ) -> Option<ServerName> {
        self.keep(header, up);
        let ours = self.provide(name, up, server, statements);
        if let Some(ServerName::Ours(statement)) = &ours {
            self.unit.uses(statement);
        }
        self.unit.sent_extended();
        self.ledger.sent(owed);
        if ours.is_none() {
            self.up_pass = header.total;
        }
        ours
    }
}

/// What a statement is called at the server.
#[derive(Debug)]
pub(super) enum ServerName {
    Ours(Arc<Statement>),
    /// By a name that nothing has: the server answers 26000 when its turn comes.
    Missing,
}

impl ServerName {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            ServerName::Ours(statement) => statement.shared().map_or(b"", |(name, _)| name.as_bytes()),
            ServerName::Missing => b"no such statement",
        }
    }
}
