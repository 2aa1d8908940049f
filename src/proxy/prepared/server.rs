//! What one server connection has prepared.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Edition, MAX_PER_SERVER, Statement};

#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    known: HashMap<u64, Copy>,
    /// A count of uses, which is the time here.
    uses: u64,
    /// The unnamed statement that it holds, or [`super::NOT_KNOWN`]; 0: none.
    pub(crate) unnamed: u64,
}

/// A statement at a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) statement: Arc<Statement>,
    /// When its Parse was sent.
    parsed: Edition,
    /// The count of its last use.
    used: u64,
}

impl ServerStatements {
    /// Whether the server has `statement` as it is to whoever prepared it at `since`; notes the use.
    pub(crate) fn touch(&mut self, statement: &Statement, since: Edition) -> bool {
        self.uses += 1;
        let Some(copy) = self.known.get_mut(&statement.id).filter(|copy| copy.parsed >= since) else {
            return false;
        };
        copy.used = self.uses;
        true
    }

    /// Notes a statement that is about to be prepared; the one to close for it when there are too many.
    pub(crate) fn insert(&mut self, statement: &Arc<Statement>, now: Edition) -> Option<Copy> {
        self.uses += 1;
        self.put_back(Copy { statement: statement.clone(), parsed: now, used: self.uses });
        if self.known.len() <= MAX_PER_SERVER {
            return None;
        }
        let oldest = self.known.iter().min_by_key(|(_, copy)| copy.used).map(|(id, _)| *id)?;
        self.known.remove(&oldest)
    }

    /// It is about to be closed.
    pub(crate) fn take(&mut self, id: u64) -> Option<Copy> {
        self.known.remove(&id)
    }

    /// It was not closed.
    pub(crate) fn put_back(&mut self, copy: Copy) {
        self.known.insert(copy.statement.id, copy);
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.unnamed = 0;
    }
}
