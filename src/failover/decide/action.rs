//! What a decision wants done, and what became of it. PURE.
//!
//! Actions are wanted for as long as the state is what it is, not sent once: a lost one is simply wanted again,
//! also after a restart. Each is idempotent and carries its term, so a result of an earlier term fits nothing.

use std::time::{Duration, Instant};

use super::state::Promoted;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{NodeName, SavedTail, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub term: Term,
    pub node: NodeName,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Sets `synchronous_standby_names` for the term and creates the relay's slot, verified by reading back.
    Prepare { names: SyncNames },
    /// `pg_promote()`, until the node is out of recovery; then what it says of its timeline.
    Promote { from: TimelineId },
    /// What a primary says of its timeline, relative to `from`.
    Inspect { from: TimelineId },
    /// A transaction that commits as a client's would.
    Marker,
    /// Brings the new timeline into the control file, for pg_rewind before PostgreSQL 16.
    Checkpoint,
    /// Removes the relay's slot from a standby, where nobody moves it and it would keep WAL for ever.
    DropSlot,
    /// The agent starts the server.
    Start { role: StartAs },
    /// The agent stops a server that runs as a primary and is none.
    Stop,
    /// The agent stops a standby in order, that is to be started again.
    StopStandby,
    /// The agent shuts the primary down in order, and says where its WAL ends.
    ShutDown,
    /// A transaction, behind everything that clients have written; durable on the node's own disk.
    LastWord,
    /// The agent turns the server into a standby of `source`.
    Rejoin { source: NodeName },
    /// Where a standby is and on which timeline, after it has written it down.
    Locate,
    /// The agent replaces a standby that cannot follow any more by a new copy of `source`.
    Rebuild { source: NodeName },
    /// No agent: the operator is told, once, what to run.
    Advise { source: NodeName, patient: Patient },
}

/// Whom an operator has to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patient {
    FormerPrimary,
    /// A standby with WAL beyond the fork.
    Stranded,
}

/// As what the agent may start a server; it refuses when the server's files say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAs {
    /// Whatever its files say: nobody is primary yet, or it is the recorded one.
    ItIs,
    Standby,
}

/// What `synchronous_standby_names` has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncNames {
    /// Quorum: exactly this relay, quoted, with its term.
    Relay(String),
    /// Quorum: so many of these relays.
    Any { acks: usize, relays: Vec<String> },
    /// Async: anything but a name of ours; somebody else's value stays.
    NotOurs { prefixes: Vec<String> },
}

impl SyncNames {
    /// Whether `setting` needs no change.
    pub fn fits(&self, setting: &str) -> bool {
        match self {
            SyncNames::Relay(_) | SyncNames::Any { .. } => setting == self.setting(),
            SyncNames::NotOurs { prefixes } => {
                !prefixes.iter().any(|prefix| setting.contains(prefix.as_str()))
            }
        }
    }

    /// The value to set.
    pub fn setting(&self) -> String {
        match self {
            SyncNames::Relay(name) => quoted(name),
            SyncNames::Any { acks, relays } => {
                let names: Vec<String> = relays.iter().map(|name| quoted(name)).collect();
                format!("ANY {acks} ({})", names.join(", "))
            }
            SyncNames::NotOurs { .. } => String::new(),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// What a finished action found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Done,
    /// Of `Prepare`: up to where the server's WAL is flushed behind it. By its setting of before nothing is acknowledged
    /// beyond that any more.
    Prepared {
        end: Lsn,
    },
    /// Of `Start`: there is no server in the directory.
    NothingThere,
    /// Of `Rejoin` and `Rebuild`.
    Back {
        saved: Option<SavedTail>,
    },
    /// Of `Promote` and `Inspect`.
    Promoted(Promoted),
    /// Of `Locate`.
    Located {
        timeline: TimelineId,
        replayed: Lsn,
    },
    /// Of `Marker` and `LastWord`: the primary's flush position after its commit.
    Committed {
        lsn: Lsn,
    },
    /// Of `ShutDown`: where the record of the checkpoint begins that ends the server's WAL.
    ShutDown {
        checkpoint: Lsn,
    },
}

/// Which actions run, and how the last run of each ended. Forgets everything of an older term.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    action: Action,
    progress: Progress,
    /// Runs that failed, in a row.
    failures: u32,
    /// Runs that ended.
    runs: u32,
}

#[derive(Debug)]
enum Progress {
    Running {
        /// Of the run before, if that was done: it holds until this one says otherwise.
        before: Option<Finding>,
    },
    Done {
        finding: Finding,
        at: Instant,
    },
    Failed {
        at: Instant,
    },
}

impl Ledger {
    /// A failed action waits this long, doubled with each failure in a row ...
    const FIRST_RETRY: Duration = Duration::from_millis(100);
    /// ... up to this.
    const LAST_RETRY: Duration = Duration::from_secs(10);
    /// What is still wanted although it was done is done again after this.
    const REPEAT: Duration = Duration::from_secs(5);
    /// A server's files are replaced so often, one run soon after the other; then what fails is hardly passing trouble
    /// (a configuration that does not let it start, a disk that is too small), each run is a copy of everything, and
    /// what lies between them is doubled on and on ...
    pub const COPIES_IN_PEACE: u32 = 8;
    /// ... up to this.
    const LAST_COPY: Duration = Duration::from_secs(600);

    pub fn finding(&self, action: &Action) -> Option<&Finding> {
        match &self.entry(action)?.progress {
            Progress::Done { finding, .. } => Some(finding),
            Progress::Running { before } => before.as_ref(),
            Progress::Failed { .. } => None,
        }
    }

    pub fn failures(&self, action: &Action) -> u32 {
        self.entry(action).map_or(0, |entry| entry.failures)
    }

    /// How often the node's files were replaced since it was seen to follow, in this term.
    pub fn copies(&self, node: &NodeName) -> u32 {
        let copies = |e: &&Entry| e.action.node == *node && e.action.what.replaces_files();
        self.entries.iter().filter(copies).map(|e| e.runs).max().unwrap_or(0)
    }

    /// Whether a wanted action should be started now.
    pub fn is_due(&self, action: &Action, now: Instant) -> bool {
        let Some(entry) = self.entry(action) else { return true };
        let waited = |at: Instant| now.saturating_duration_since(at);
        match &entry.progress {
            Progress::Running { .. } => false,
            Progress::Done { at, .. } => {
                !matches!(action.what, What::Advise { .. }) && waited(*at) >= entry.pause().max(Self::REPEAT)
            }
            Progress::Failed { at } => waited(*at) >= entry.pause(),
        }
    }

    pub fn started(&mut self, action: &Action) {
        let before = self.finding(action).cloned();
        let progress = Progress::Running { before };
        match self.entries.iter_mut().find(|e| e.action == *action) {
            Some(entry) => entry.progress = progress,
            None => self.entries.push(Entry { action: action.clone(), progress, failures: 0, runs: 0 }),
        }
    }

    /// What somebody else has done.
    pub fn learned(&mut self, action: &Action, finding: Finding, at: Instant) {
        if self.finding(action).is_none() {
            self.started(action);
            self.succeeded(action, finding, at);
        }
    }

    /// It was to begin, and what it follows from was taken back. How the run before went is forgotten with it.
    pub fn never_began(&mut self, action: &Action) {
        self.entries.retain(|e| e.action != *action);
    }

    pub fn succeeded(&mut self, action: &Action, finding: Finding, at: Instant) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.action == *action) {
            entry.failures = 0;
            entry.runs = entry.runs.saturating_add(1);
            entry.progress = Progress::Done { finding, at };
        }
    }

    pub fn failed(&mut self, action: &Action, at: Instant) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.action == *action) {
            entry.failures = entry.failures.saturating_add(1);
            entry.runs = entry.runs.saturating_add(1);
            entry.progress = Progress::Failed { at };
        }
    }

    /// What of an older term has ended fits nothing any more; what still runs is kept until it ends.
    pub fn forget_before(&mut self, term: Term) {
        self.entries.retain(|e| e.action.term >= term || e.progress.is_running());
    }

    /// A node that is tried anew: what it has done or failed before does not count. What runs is kept.
    pub fn forget_results(&mut self, node: &NodeName) {
        self.entries.retain(|e| e.action.node != *node || e.progress.is_running());
        for entry in self.entries.iter_mut().filter(|e| e.action.node == *node) {
            entry.progress = Progress::Running { before: None };
            (entry.failures, entry.runs) = (0, 0);
        }
    }

    /// Whether any action that touches the node's server process runs, whatever its term: two of them at once
    /// would fight over one data directory.
    pub fn is_server_busy(&self, node: &NodeName) -> bool {
        self.entries
            .iter()
            .any(|e| e.action.node == *node && e.action.what.touches_server() && e.progress.is_running())
    }

    fn entry(&self, action: &Action) -> Option<&Entry> {
        self.entries.iter().find(|e| e.action == *action)
    }
}

impl Entry {
    /// Before the next run.
    fn pause(&self) -> Duration {
        let (runs, last) = if self.action.what.replaces_files() {
            (self.runs, Ledger::LAST_COPY)
        } else {
            (self.failures, Ledger::LAST_RETRY)
        };
        let doublings = runs.saturating_sub(1).min(16);
        (Ledger::FIRST_RETRY * 2u32.pow(doublings)).min(last)
    }
}

impl Progress {
    fn is_running(&self) -> bool {
        matches!(self, Progress::Running { .. })
    }
}

impl What {
    pub fn name(&self) -> &'static str {
        match self {
            What::Prepare { .. } => "prepare",
            What::Promote { .. } => "promote",
            What::Inspect { .. } => "inspect",
            What::Marker => "marker",
            What::Checkpoint => "checkpoint",
            What::DropSlot => "drop_slot",
            What::Start { .. } => "start",
            What::Stop => "stop",
            What::StopStandby => "stop_standby",
            What::ShutDown => "shut_down",
            What::LastWord => "last_word",
            What::Rejoin { .. } => "rejoin",
            What::Locate => "locate",
            What::Rebuild { .. } => "rebuild",
            What::Advise { .. } => "advise",
        }
    }

    /// As far as it must: it may be enough to start the server, or to rewind it.
    pub fn replaces_files(&self) -> bool {
        matches!(self, What::Rejoin { .. } | What::Rebuild { .. })
    }

    /// Done by the agent to the server's process and files.
    pub fn touches_server(&self) -> bool {
        match self {
            What::Start { .. }
            | What::Stop
            | What::StopStandby
            | What::ShutDown
            | What::Rejoin { .. }
            | What::Rebuild { .. } => true,
            What::Prepare { .. }
            | What::Promote { .. }
            | What::Inspect { .. }
            | What::Marker
            | What::LastWord
            | What::Checkpoint
            | What::DropSlot
            | What::Locate
            | What::Advise { .. } => false,
        }
    }
}
