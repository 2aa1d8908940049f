//! Commits whose server was lost before it had answered, and what the WAL says of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::{Lsn, TimelineId};

/// What a session has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitInDoubt {
    /// On which its server was.
    pub timeline: TimelineId,
    /// The commit's record, if there is one, begins here or behind; and the server's last start lies before. So within
    /// the window a number of 32 bits means one transaction, and a shutdown checkpoint its end.
    pub from: Lsn,
    /// The whole of it (`xid8`); of a prepared one its lower half, which is all that it is listed with.
    pub xid: u64,
    pub what: Ending,
}

/// How a transaction was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    Commit,
    /// `PREPARE TRANSACTION`.
    Prepare,
    /// The second phase, which may also be another session's.
    CommitPrepared,
    RollbackPrepared,
}

impl Ending {
    /// CommandComplete's.
    pub fn tag(self) -> &'static str {
        match self {
            Ending::Commit => "COMMIT",
            Ending::Prepare => "PREPARE TRANSACTION",
            Ending::CommitPrepared => "COMMIT PREPARED",
            Ending::RollbackPrepared => "ROLLBACK PREPARED",
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Its record is durable here, and in the history of whoever is primary next. A primary that goes on may show it
    /// later.
    Committed,
    /// It never will be. A second phase: not by this one.
    NotCommitted,
    /// Nobody can tell: its WAL is not kept, or is damaged, or is too much to be looked through.
    Unknown,
}

impl CommitOutcome {
    /// For labels.
    pub fn word(self) -> &'static str {
        match self {
            CommitOutcome::Committed => "committed",
            CommitOutcome::NotCommitted => "not_committed",
            CommitOutcome::Unknown => "unknown",
        }
    }
}

/// Published by the proxy: all that sessions wait for now.
pub type CommitsInDoubt = BTreeSet<CommitInDoubt>;

/// Published by the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOutcomes {
    pub searching: Searching,
    /// Of those that are waited for.
    pub known: BTreeMap<CommitInDoubt, CommitOutcome>,
}

/// Whether there will be an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Searching {
    /// The WAL plane is closed.
    #[default]
    No,
    Yes,
}

impl CommitOutcomes {
    /// `None`: not yet.
    pub fn of(&self, commit: &CommitInDoubt) -> Option<CommitOutcome> {
        let known = self.known.get(commit).copied();
        known.or_else(|| (self.searching == Searching::No).then_some(CommitOutcome::Unknown))
    }
}
