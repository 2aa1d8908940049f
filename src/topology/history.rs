//! Elections, as they are remembered: what was seen, which rule fired, how long each phase took, what was lost.

use serde::{Deserialize, Serialize};

use super::{Ailment, NodeName, Term};
use crate::pg::{Lsn, TimelineId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Election {
    pub term: Term,
    /// Milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// The rule of the table that fired, e.g. `F3`.
    pub rule: String,
    /// What was seen, in sentences, first-hand evidence first.
    pub evidence: Vec<String>,
    /// What ailed the old primary, as far as anything did.
    #[serde(default)]
    pub ailment: Option<Ailment>,
    pub from: Option<NodeName>,
    pub to: Option<NodeName>,
    pub timeline: Option<TimelineId>,
    pub switchpoint: Option<Lsn>,
    /// Bytes of WAL that may have been acknowledged, beyond the switchpoint and not taken over. None under quorum
    /// durability: what the relay does not hold was never acknowledged.
    pub lost_bytes: u64,
    /// Bytes of WAL known to exist beyond the switchpoint of which no client was told that it is committed.
    #[serde(default)]
    pub unacknowledged_bytes: u64,
    /// Standbys that held WAL beyond the switchpoint and had to be made anew.
    #[serde(default)]
    pub left_behind: Vec<LeftBehind>,
    /// WAL that was not taken over and was saved before its server was made a standby of the new primary.
    #[serde(default)]
    pub saved: Vec<SavedTail>,
    pub phases: Vec<Phase>,
    pub outcome: Outcome,
}

/// A standby whose replay went past the point where the new timeline begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    pub node: NodeName,
    pub timeline: TimelineId,
    pub position: Lsn,
}

/// For `pg_waldump -p directory -t timeline -s from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTail {
    pub node: NodeName,
    pub timeline: TimelineId,
    pub from: Lsn,
    pub to: Lsn,
    /// On the node's host.
    pub directory: String,
}

/// What an agent has done to a server, of which who leads has to know, wherever that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    pub term: Term,
    pub node: NodeName,
    pub what: Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// In order; the record of the checkpoint that ends its WAL begins there.
    ShutDown { checkpoint: Lsn },
    /// Before its files were replaced.
    Saved(SavedTail),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `fence`, `catch_up`, `promote`, `verify`, `follow`, `marker`.
    pub name: String,
    pub millis: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Running,
    Completed,
    Failed { why: String },
}
