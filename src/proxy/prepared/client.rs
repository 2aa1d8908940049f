//! The client's view: its names.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Edition, MAX_PER_CLIENT, MAX_UNNAMED, Statement, Text};
use crate::proxy::route::Verdict;

#[derive(Debug, Default)]
pub(crate) struct ClientStatements {
    named: HashMap<Box<[u8]>, Named>,
    pub(crate) unnamed: Option<Unnamed>,
    /// The storage of the last unnamed statement.
    spare: Vec<u8>,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) statement: Arc<Statement>,
    /// When the client prepared it: what a server has from before is not it.
    pub(crate) since: Edition,
}

/// All names of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names(HashMap<Box<[u8]>, Named>);

#[derive(Debug)]
pub(crate) struct Unnamed {
    /// Unique among all sessions: what a server remembers of it. Never 0.
    pub(crate) id: u64,
    /// Empty when it was too long to keep.
    pub(crate) parse: Vec<u8>,
    pub(crate) verdict: Arc<Verdict>,
}

impl ClientStatements {
    pub(crate) fn named(&self, name: &[u8]) -> Option<&Named> {
        self.named.get(key(name))
    }

    /// Whether `statement` has a name that it got before `now`.
    pub(crate) fn has_since_before(&self, statement: &Arc<Statement>, now: Edition) -> bool {
        // One that is younger than the schema needs no look at all of them.
        let is_it = |named: &Named| named.since < now && Arc::ptr_eq(&named.statement, statement);
        statement.since < now && self.named.values().any(is_it)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.named.len() >= MAX_PER_CLIENT
    }

    pub(crate) fn insert(&mut self, name: &[u8], named: Named) {
        self.named.insert(key(name).into(), named);
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.forget_unnamed();
        } else {
            self.named.remove(key(name));
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

    pub(crate) fn take(&mut self, name: &[u8]) -> Option<Named> {
        self.named.remove(key(name))
    }

    /// DISCARD ALL and DEALLOCATE ALL. The unnamed statement stays (`DropAllPreparedStatements` in prepare.c).
    pub(crate) fn take_all(&mut self) -> Names {
        Names(std::mem::take(&mut self.named))
    }

    /// They were not deallocated.
    pub(crate) fn put_back(&mut self, names: Names) {
        self.named = names.0;
    }

    /// What `name` was prepared by: text and types, and of the unnamed one the whole message.
    pub(crate) fn text(&self, name: &[u8]) -> Option<&[u8]> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| &unnamed.parse[..])
        } else {
            self.named(name).map(|named| match named.statement.text() {
                Text::Parse(rest) => rest,
                Text::Sql(prepare) => prepare.text.as_bytes(),
            })
        }
    }

    /// Of the statement that it means.
    pub(crate) fn id(&self, name: &[u8]) -> Option<u64> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| unnamed.id)
        } else {
            self.named(name).map(|named| named.statement.id)
        }
    }

    /// What a Bind or Describe of `name` means.
    pub(crate) fn verdict(&self, name: &[u8]) -> Option<&Arc<Verdict>> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| &unnamed.verdict)
        } else {
            self.named(name).map(|named| &named.statement.verdict)
        }
    }
}

/// Of a longer name a server sees this much (`NAMEDATALEN - 1`).
pub(super) fn key(name: &[u8]) -> &[u8] {
    const MAX_NAME: usize = 63;
    &name[..name.len().min(MAX_NAME)]
}

/// Whether they are one to a server.
pub(crate) fn is_same_name(one: &[u8], other: &[u8]) -> bool {
    key(one) == key(other)
}
