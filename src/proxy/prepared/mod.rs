//! Prepared statements across server connections.
//!
//! A client's named statement is one of ours, shared by all clients that prepared the same text with the same
//! parameter types under the same settings (a literal means what it meant when it was parsed: a time is read in the
//! zone of that moment); at a server it is called `bw_<n>`, and is prepared there when somebody first needs it. The
//! unnamed statement stays unnamed; the client's last one is kept so that it can be prepared again when its
//! Bind comes after the server has changed.
//!
//! What a text comes to also depends on the schema: a server's copy from before the last change of it is of no use to
//! a client that prepares the text now, and is prepared anew; see [`Schema`].
//!
//! SQL's names are the same as the protocol's (`FetchPreparedStatement` in prepare.c). What the text of a client
//! executes by name is brought along under the client's own name, whichever way it was prepared; another client's of
//! that name is closed before. A server keeps what it has until somebody else wants the name.

mod client;
mod server;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub(crate) use self::client::{ClientStatements, Named, Names, is_same_name};
pub(crate) use self::server::{Closed, ServerStatements};
use super::route::{SqlPrepare, Verdict};
use super::session::message::put;
use crate::pg::protocol::frame::HEADER_LEN;

/// Statements that one server connection keeps prepared. Beyond it the one unused for longest is closed.
pub(crate) const MAX_PER_SERVER: usize = 500;
/// The same of statements under clients' own names.
pub(crate) const MAX_NAMES_PER_SERVER: usize = 500;
/// Named statements of one client. Beyond it a Parse is refused (54000 in PostgreSQL's words: 53200 memory), and a
/// PREPARE keeps its server.
pub(crate) const MAX_PER_CLIENT: usize = 10_000;
/// In place of an unnamed statement's id: there may be one, of ours or of somebody else's.
pub(crate) const NOT_KNOWN: u64 = u64::MAX;
/// Longer unnamed statements are not kept: their Bind must come before the transaction's end.
pub(crate) const MAX_UNNAMED: usize = 256 * 1024;

/// How often the schema may have changed, as far as the sessions have seen: it counts each text that may change it,
/// when it is sent (for what its own session parses next), when it is answered, and when its transaction ends (for
/// the others). One count for all databases: a change where nobody looks costs one more Parse at a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schema(Arc<AtomicU64>);

/// A moment in the life of the schema. Later is greater; the default is before all that are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edition(u64);

impl Schema {
    pub(crate) fn changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> Edition {
        Edition(self.0.load(Ordering::SeqCst) + 1)
    }
}

/// One distinct statement of all clients.
#[derive(Debug)]
pub(crate) struct Statement {
    /// Never 0.
    pub(crate) id: u64,
    source: Source,
    /// The settings that say what its text means; see [`super::guc::Settings::parse_context`].
    context: Arc<[u8]>,
    pub(crate) verdict: Arc<Verdict>,
    /// When the first client prepared it.
    since: Edition,
    /// Its result type has changed: where it is prepared, it only fails.
    outdated: AtomicBool,
}

#[derive(Debug)]
enum Source {
    Parse {
        /// `bw_<id>`.
        name: Box<str>,
        /// The Parse message that prepares it under that name.
        message: Vec<u8>,
    },
    Sql(Arc<SqlPrepare>),
}

/// What prepares a statement, but for the name of a Parse.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Text<'a> {
    /// Text, NUL and parameter types: a Parse message without the name.
    Parse(&'a [u8]),
    Sql(&'a Arc<SqlPrepare>),
}

/// What our own PREPARE in front of a client's message, and its portal, are called while it runs.
pub(crate) const OURS: &[u8] = b"bw_";

impl Statement {
    /// What servers call it, and the Parse message that prepares it there; `None`: it goes by its client's name.
    pub(crate) fn shared(&self) -> Option<(&str, &[u8])> {
        match &self.source {
            Source::Parse { name, message } => Some((name, message)),
            Source::Sql(_) => None,
        }
    }

    pub(crate) fn text(&self) -> Text<'_> {
        match &self.source {
            Source::Parse { name, message } => Text::Parse(&message[HEADER_LEN + name.len() + 1..]),
            Source::Sql(prepare) => Text::Sql(prepare),
        }
    }

    /// Whether it may be prepared under the settings of `context`.
    pub(crate) fn suits(&self, context: &Arc<[u8]>) -> bool {
        let is_same = || Arc::ptr_eq(&self.context, context) || self.context == *context;
        // What executes by name is one client's own, see [`private`].
        !self.is_outdated() && (self.verdict.executes_by_name() || is_same())
    }

    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    pub(crate) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }
}

/// The context of a statement that is nobody else's. No list of settings begins so.
pub(crate) fn private(unique: u64) -> Arc<[u8]> {
    [&[0][..], &unique.to_be_bytes()].concat().into()
}

impl PartialEq for Statement {
    fn eq(&self, other: &Statement) -> bool {
        self.id == other.id
    }
}

impl Eq for Statement {}

/// All statements that any client has prepared now.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    known: Mutex<HashMap<Box<[u8]>, Weak<Statement>>>,
    last_id: AtomicU64,
    pub(crate) schema: Schema,
}

/// What makes a statement what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) text: Text<'a>,
    pub(crate) context: &'a Arc<[u8]>,
    pub(crate) verdict: &'a Arc<Verdict>,
    pub(crate) now: Edition,
}

impl Statements {
    /// The statement with this text and these types, parsed in this context.
    pub(crate) fn intern(&self, wanted: Wanted<'_>) -> Arc<Statement> {
        let key = wanted.key();
        let mut known = self.known.lock();
        let found = known.get(&key).and_then(Weak::upgrade);
        if let Some(statement) = found.filter(|statement| !statement.is_outdated()) {
            return statement;
        }
        self.remember(&mut known, key, wanted)
    }

    /// The same for a client that has one from before `wanted.now`, which must not become the new one.
    pub(crate) fn intern_anew(&self, wanted: Wanted<'_>) -> Arc<Statement> {
        let key = wanted.key();
        let mut known = self.known.lock();
        let found = known.get(&key).and_then(Weak::upgrade);
        let is_new = |statement: &Arc<Statement>| statement.since >= wanted.now && !statement.is_outdated();
        if let Some(statement) = found.filter(is_new) {
            return statement;
        }
        self.remember(&mut known, key, wanted)
    }

    fn remember(
        &self,
        known: &mut HashMap<Box<[u8]>, Weak<Statement>>,
        key: Box<[u8]>,
        wanted: Wanted<'_>,
    ) -> Arc<Statement> {
        if known.len() == known.capacity() {
            known.retain(|_, statement| statement.strong_count() > 0);
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let source = match wanted.text {
            Text::Parse(rest) => {
                let name = format!("bw_{id}").into_boxed_str();
                let mut message = Vec::with_capacity(rest.len() + name.len() + 6);
                put(&mut message, b'P', &[name.as_bytes(), b"\0", rest]);
                Source::Parse { name, message }
            }
            Text::Sql(prepare) => Source::Sql(prepare.clone()),
        };
        let statement = Arc::new(Statement {
            id,
            source,
            context: wanted.context.clone(),
            verdict: wanted.verdict.clone(),
            since: wanted.now,
            outdated: AtomicBool::new(false),
        });
        known.insert(key, Arc::downgrade(&statement));
        statement
    }
}

impl Wanted<'_> {
    fn key(&self) -> Box<[u8]> {
        let key = match self.text {
            // It says itself where it ends.
            Text::Parse(rest) => [rest, self.context].concat(),
            // Behind an empty text of the protocol stands a count, whose first byte no SQL begins with.
            Text::Sql(prepare) => [b"\0", prepare.text.as_bytes(), b"\0", self.context].concat(),
        };
        key.into_boxed_slice()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        Closed, Edition, MAX_PER_SERVER, Schema, ServerStatements, Statement, Statements, Text, Wanted,
    };
    use crate::proxy::route::classify;

    fn intern(statements: &Statements, rest: &[u8], context: &Arc<[u8]>, now: Edition) -> Arc<Statement> {
        let verdict = Arc::new(classify("select 1"));
        statements.intern(Wanted { text: Text::Parse(rest), context, verdict: &verdict, now })
    }

    #[test]
    fn the_same_text_types_and_settings_are_one_statement() {
        let statements = Statements::default();
        let now = Edition::default();
        let (plain, tokyo): (Arc<[u8]>, Arc<[u8]>) = (Arc::default(), Arc::from(&b"timezone=Asia/Tokyo"[..]));
        let first = intern(&statements, b"select 1\0\0\0", &plain, now);
        let same = intern(&statements, b"select 1\0\0\0", &plain, now);
        let typed = intern(&statements, b"select 1\0\0\x01\0\0\0\x17", &plain, now);
        let elsewhere = intern(&statements, b"select 1\0\0\0", &tokyo, now);
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!([first.id, typed.id, elsewhere.id], [1, 2, 3]);
        let shared = b"P\0\0\0\x14bw_1\0select 1\0\0\0";
        assert_eq!(first.shared(), Some(("bw_1", &shared[..])));
        assert!(first.suits(&plain) && !first.suits(&tokyo));
        first.outdate();
        assert_eq!(intern(&statements, b"select 1\0\0\0", &plain, now).id, 4);
    }

    #[test]
    fn who_has_a_statement_of_an_older_schema_gets_another() {
        let (statements, schema, context) = (Statements::default(), Schema::default(), Arc::default());
        let verdict = Arc::new(classify("table t"));
        let anew = |now| {
            let text = Text::Parse(b"table t\0\0\0");
            statements.intern_anew(Wanted { text, context: &context, verdict: &verdict, now })
        };
        let old = intern(&statements, b"table t\0\0\0", &context, schema.now());
        assert_eq!(anew(schema.now()).id, old.id);
        schema.changed();
        let new = anew(schema.now());
        assert_eq!([old.id, new.id, anew(schema.now()).id], [1, 2, 2]);
        assert_eq!(intern(&statements, b"table t\0\0\0", &context, schema.now()).id, new.id);
    }

    #[test]
    fn a_server_keeps_a_bounded_number_and_drops_the_one_unused_for_longest() {
        let (statements, now) = (Statements::default(), Edition::default());
        let mut server = ServerStatements::default();
        let all: Vec<_> = (0..=MAX_PER_SERVER)
            .map(|n| intern(&statements, format!("select {n}").as_bytes(), &Arc::default(), now))
            .collect();
        for statement in &all[..MAX_PER_SERVER] {
            assert!(server.insert(statement, now).is_none());
        }
        assert!(server.touch(&all[0], now));
        let closed = server.insert(&all[MAX_PER_SERVER], now).expect("there is one too many");
        assert_eq!(closed.statement.id, all[1].id);
        assert!(!server.touch(&all[1], now));
        // It was not closed after all.
        server.put_back(Closed::Copy(closed));
        assert!(server.touch(&all[1], now));
    }

    #[test]
    fn a_copy_from_before_a_change_of_the_schema_is_not_that_of_who_prepares_behind_it() {
        let (statements, schema) = (Statements::default(), Schema::default());
        let mut server = ServerStatements::default();
        let before = schema.now();
        let statement = intern(&statements, b"table t\0\0\0", &Arc::default(), before);
        assert!(server.insert(&statement, before).is_none());
        schema.changed();
        assert!(server.touch(&statement, before) && !server.touch(&statement, schema.now()));
        assert!(server.take_name(b"bw_1").is_some());
        assert!(server.insert(&statement, schema.now()).is_none());
        assert!(server.touch(&statement, before) && server.touch(&statement, schema.now()));
    }
}
