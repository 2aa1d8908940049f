//! What one server connection has prepared.

use std::collections::HashMap;
use std::sync::Arc;

use super::client::key;
use super::{Edition, MAX_NAMES_PER_SERVER, MAX_PER_SERVER, NOT_KNOWN, Statement};

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerStatements {
    /// As `bw_<id>`.
    known: HashMap<u64, Copy>,
    /// Under clients' own names: who used a name last has it.
    names: HashMap<Box<[u8]>, Holder>,
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

/// Whose statement a name means there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// 0: a stand-in, which is there to be deallocated or to be in the way.
    id: u64,
    parsed: Edition,
    used: u64,
}

/// What a Close takes away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Copy(Copy),
    Name(Box<[u8]>, Holder),
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
        let copy = Copy { statement: statement.clone(), parsed: now, used: self.uses };
        self.known.insert(statement.id, copy);
        if self.known.len() <= MAX_PER_SERVER {
            return None;
        }
        let oldest = self.known.iter().min_by_key(|(_, copy)| copy.used).map(|(id, _)| *id)?;
        self.known.remove(&oldest)
    }

    /// It was not closed.
    pub(crate) fn put_back(&mut self, closed: Closed) {
        match closed {
            Closed::Copy(copy) => drop(self.known.insert(copy.statement.id, copy)),
            Closed::Name(name, holder) => drop(self.names.insert(name, holder)),
        }
    }

    /// It is not there under our own name. What names clients gave it at the server is another matter.
    pub(crate) fn remove(&mut self, id: u64) {
        self.known.remove(&id);
    }

    /// It may not be there any more: it is closed and prepared again before its next use.
    pub(crate) fn doubt(&mut self, id: u64) {
        if let Some(copy) = self.known.get_mut(&id) {
            copy.parsed = Edition::default();
        }
        let of_it = self.names.values_mut().filter(|holder| holder.id == id);
        of_it.for_each(|holder| holder.parsed = Edition::default());
    }

    /// The same of what a client has under this name.
    pub(crate) fn doubt_name(&mut self, name: &[u8]) {
        if let Some(holder) = self.names.get_mut(key(name)) {
            holder.parsed = Edition::default();
        }
    }

    /// Whether `name` means `statement`, as it is to whoever prepared it at `since`; notes the use.
    pub(crate) fn touch_name(&mut self, name: &[u8], statement: &Statement, since: Edition) -> bool {
        self.uses += 1;
        let holder = self.names.get_mut(key(name));
        let Some(holder) = holder.filter(|holder| holder.id == statement.id && holder.parsed >= since) else {
            return false;
        };
        holder.used = self.uses;
        true
    }

    /// Whether `name` means anything.
    pub(crate) fn has_name(&self, name: &[u8]) -> bool {
        self.names.contains_key(key(name)) || ours(name).is_some_and(|id| self.known.contains_key(&id))
    }

    /// `name` is about to mean `statement`; `None`: a stand-in.
    pub(crate) fn name(&mut self, name: &[u8], statement: Option<&Statement>, now: Edition) {
        self.uses += 1;
        let id = statement.map_or(0, |statement| statement.id);
        self.names.insert(key(name).into(), Holder { id, parsed: now, used: self.uses });
    }

    /// `name` is about to mean nothing. What it has meant, if anything.
    pub(crate) fn take_name(&mut self, name: &[u8]) -> Option<Closed> {
        if let Some((name, holder)) = self.names.remove_entry(key(name)) {
            return Some(Closed::Name(name, holder));
        }
        self.known.remove(&ours(name)?).map(Closed::Copy)
    }

    /// The name that is to be closed because there are too many.
    pub(crate) fn take_surplus(&mut self) -> Option<Closed> {
        if self.names.len() <= MAX_NAMES_PER_SERVER {
            return None;
        }
        let oldest = self.names.iter().min_by_key(|(_, holder)| holder.used).map(|(name, _)| name.clone())?;
        self.take_name(&oldest)
    }

    /// The unnamed statement `id` may not be there.
    pub(crate) fn forget_unnamed(&mut self, id: u64) {
        if self.unnamed == id {
            self.unnamed = NOT_KNOWN;
        }
    }

    /// DISCARD ALL and DEALLOCATE ALL; the unnamed statement stays. What it had.
    pub(crate) fn take_all(&mut self) -> ServerStatements {
        let emptied = ServerStatements { unnamed: self.unnamed, ..ServerStatements::default() };
        std::mem::replace(self, emptied)
    }
}

impl Closed {
    pub(crate) fn name(&self) -> &[u8] {
        match self {
            Closed::Copy(copy) => copy.statement.shared().map_or(b"", |(name, _)| name.as_bytes()),
            Closed::Name(name, _) => name,
        }
    }

    /// Of the statement, where it is one of those that go by our own names.
    pub(crate) fn id(&self) -> Option<u64> {
        match self {
            Closed::Copy(copy) => Some(copy.statement.id),
            Closed::Name(..) => None,
        }
    }
}

/// The statement that we call so at servers.
fn ours(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"bw_")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Closed, MAX_NAMES_PER_SERVER, ServerStatements};
    use crate::proxy::prepared::Edition;

    #[test]
    fn names_are_bounded_and_ours_are_among_them() {
        let (mut server, now) = (ServerStatements::default(), Edition::default());
        for n in 0..=MAX_NAMES_PER_SERVER {
            assert_eq!(server.take_surplus(), None);
            server.name(format!("q{n}").as_bytes(), None, now);
        }
        assert_eq!(server.take_surplus().as_ref().map(Closed::name), Some(&b"q0"[..]));
        assert!(!server.has_name(b"q0") && server.has_name(b"q1") && !server.has_name(b"bw_1"));
        let long = [b'x'; 70];
        server.name(&long, None, now);
        assert!(server.has_name(&long[..63]));
    }
}
