//! Prepared statements across server connections.
//!
//! A client's named statement is one of ours, shared by all clients that prepared the same text with the same
//! parameter types under the same settings (a literal means what it meant when it was parsed: a time is read in the
//! zone of that moment); at a server it is called `bw_<n>`, and is prepared there when somebody first needs it. The
//! unnamed statement stays unnamed; the client's last one is kept so that it can be prepared again when its
//! Bind comes after the server has changed.
//!
//! SQL's PREPARE is not seen here: it pins the session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::route::Verdict;
use super::session::message::put;
use crate::pg::protocol::frame::HEADER_LEN;

/// Statements that one server connection keeps prepared. Beyond it the one unused for longest is closed.
pub(crate) const MAX_PER_SERVER: usize = 500;
/// Named statements of one client. Beyond it a Parse is refused (54000 in PostgreSQL's words: 53200 memory).
pub(crate) const MAX_PER_CLIENT: usize = 10_000;
/// Longer unnamed statements are not kept: their Bind must come before the transaction's end.
pub(crate) const MAX_UNNAMED: usize = 256 * 1024;

/// One distinct statement of all clients.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) id: u64,
    /// `bw_<id>`.
    pub(crate) name: Box<str>,
    /// The Parse message that prepares it under that name.
    pub(crate) parse: Vec<u8>,
    /// The settings that say what its text means; see [`super::guc::Settings::parse_context`].
    context: Arc<[u8]>,
    pub(crate) verdict: Arc<Verdict>,
    /// Its result type has changed: where it is prepared, it only fails.
    outdated: AtomicBool,
}

impl Statement {
    /// Whether it may be prepared under the settings of `context`.
    pub(crate) fn suits(&self, context: &Arc<[u8]>) -> bool {
        !self.is_outdated() && (Arc::ptr_eq(&self.context, context) || self.context == *context)
    }

    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    pub(crate) fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Text, NUL and parameter types.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.parse[HEADER_LEN + self.name.len() + 1..]
    }
}

/// All statements that any client has prepared now.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    known: Mutex<HashMap<Box<[u8]>, Weak<Statement>>>,
    last_id: AtomicU64,
}

impl Statements {
    /// The statement with this text and these types, parsed in `context`: `rest` is a Parse message without the
    /// name.
    pub(crate) fn intern(&self, rest: &[u8], context: &Arc<[u8]>, verdict: &Arc<Verdict>) -> Arc<Statement> {
        // `rest` says itself where it ends.
        let key = [rest, context].concat().into_boxed_slice();
        let mut known = self.known.lock();
        let found = known.get(&key).and_then(Weak::upgrade);
        if let Some(statement) = found.filter(|statement| !statement.is_outdated()) {
            return statement;
        }
        if known.len() == known.capacity() {
            known.retain(|_, statement| statement.strong_count() > 0);
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("bw_{id}").into_boxed_str();
        let mut parse = Vec::with_capacity(rest.len() + name.len() + 6);
        put(&mut parse, b'P', &[name.as_bytes(), b"\0", rest]);
        let statement = Arc::new(Statement {
            id,
            name,
            parse,
            context: context.clone(),
            verdict: verdict.clone(),
            outdated: AtomicBool::new(false),
        });
        known.insert(key, Arc::downgrade(&statement));
        statement
    }
}

/// The client's view: its names.
#[derive(Debug, Default)]
pub(crate) struct ClientStatements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    pub(crate) unnamed: Option<Unnamed>,
    /// The storage of the last unnamed statement.
    spare: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Unnamed {
    /// Unique among all sessions: what a server remembers of it. Never 0.
    pub(crate) id: u64,
    /// Empty when it was too long to keep.
    pub(crate) parse: Vec<u8>,
    pub(crate) verdict: Arc<Verdict>,
}

impl ClientStatements {
    pub(crate) fn named(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.named.get(name)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.named.len() >= MAX_PER_CLIENT
    }

    pub(crate) fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.named.insert(name.into(), statement);
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.forget_unnamed();
        } else {
            self.named.remove(name);
        }
    }

    pub(crate) fn remember_unnamed(&mut self, id: u64, parse: &[u8], verdict: Arc<Verdict>) {
        self.forget_unnamed();
        let mut kept = std::mem::take(&mut self.spare);
        kept.clear();
        if parse.len() <= MAX_UNNAMED {
            kept.extend_from_slice(parse);
        }
        self.unnamed = Some(Unnamed { id, parse: kept, verdict });
    }

    pub(crate) fn forget_unnamed(&mut self) {
        if let Some(unnamed) = self.unnamed.take() {
            self.spare = unnamed.parse;
        }
    }

    /// DISCARD ALL and DEALLOCATE ALL.
    pub(crate) fn clear(&mut self) {
        self.named.clear();
        self.forget_unnamed();
    }

    /// What a Bind or Describe of `name` means.
    pub(crate) fn verdict(&self, name: &[u8]) -> Option<&Arc<Verdict>> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| &unnamed.verdict)
        } else {
            self.named(name).map(|statement| &statement.verdict)
        }
    }
}

/// What one server connection has prepared.
#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    /// The statement, and when it was last used, as a count of uses.
    known: HashMap<u64, (Arc<Statement>, u64)>,
    uses: u64,
    /// The unnamed statement that it holds; 0: none, or not known.
    pub(crate) unnamed: u64,
}

impl ServerStatements {
    /// Whether the server has `statement`; notes the use.
    pub(crate) fn touch(&mut self, statement: &Statement) -> bool {
        self.uses += 1;
        let uses = self.uses;
        self.known.get_mut(&statement.id).map(|(_, used)| *used = uses).is_some()
    }

    /// Notes a statement that is about to be prepared; the one to close for it when there are too many.
    pub(crate) fn insert(&mut self, statement: &Arc<Statement>) -> Option<Arc<Statement>> {
        self.uses += 1;
        self.known.insert(statement.id, (statement.clone(), self.uses));
        if self.known.len() <= MAX_PER_SERVER {
            return None;
        }
        let oldest = self.known.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id)?;
        self.known.remove(&oldest).map(|(statement, _)| statement)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.unnamed = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{MAX_PER_SERVER, ServerStatements, Statements};
    use crate::proxy::route::classify;

    #[test]
    fn the_same_text_types_and_settings_are_one_statement() {
        let statements = Statements::default();
        let verdict = Arc::new(classify("select 1"));
        let (plain, tokyo): (Arc<[u8]>, Arc<[u8]>) = (Arc::default(), Arc::from(&b"timezone=Asia/Tokyo"[..]));
        let first = statements.intern(b"select 1\0\0\0", &plain, &verdict);
        let same = statements.intern(b"select 1\0\0\0", &plain, &verdict);
        let typed = statements.intern(b"select 1\0\0\x01\0\0\0\x17", &plain, &verdict);
        let elsewhere = statements.intern(b"select 1\0\0\0", &tokyo, &verdict);
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!([first.id, typed.id, elsewhere.id], [1, 2, 3]);
        assert_eq!(&first.parse[..10], b"P\0\0\0\x14bw_1\0");
        assert_eq!(first.rest(), b"select 1\0\0\0");
        assert!(first.suits(&plain) && !first.suits(&tokyo));
        first.outdate();
        assert_eq!(statements.intern(b"select 1\0\0\0", &plain, &verdict).id, 4);
    }

    #[test]
    fn a_server_keeps_a_bounded_number_and_drops_the_one_unused_for_longest() {
        let statements = Statements::default();
        let verdict = Arc::new(classify("select 1"));
        let mut server = ServerStatements::default();
        let all: Vec<_> = (0..=MAX_PER_SERVER)
            .map(|n| statements.intern(format!("select {n}").as_bytes(), &Arc::default(), &verdict))
            .collect();
        for statement in &all[..MAX_PER_SERVER] {
            assert!(server.insert(statement).is_none());
        }
        assert!(server.touch(&all[0]));
        let closed = server.insert(&all[MAX_PER_SERVER]).map(|statement| statement.id);
        assert_eq!(closed, Some(all[1].id));
        assert!(!server.touch(&all[1]));
    }
}
