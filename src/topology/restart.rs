//! Restarts of servers that an operator ordered, as they are remembered: of which, with which versions, how long each
//! step took.

use serde::{Deserialize, Serialize};

use super::{NodeName, Outcome, Phase};

/// Of one server, or of all of them one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Milliseconds since the Unix epoch. No two have the same.
    pub started_at_ms: u64,
    pub ended_at_ms: Option<u64>,
    /// In the order of their turns.
    pub nodes: Vec<RestartedNode>,
    /// What stands in the way of the next step, as far as it is known.
    #[serde(default)]
    pub waits_for: Option<String>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestartedNode {
    pub node: NodeName,
    /// `server_version` when its turn began; `None`: it has not.
    pub from_version: Option<String>,
    /// And when it was back; `None`: it is not.
    pub to_version: Option<String>,
    /// What became of sessions, where it is more than a moment's wait.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// `wait`, `checkpoint`, `drain`, `restart`; of a primary `wait`, `hand_over`, `rejoin`. The last one may go on.
    pub phases: Vec<Phase>,
}

impl Restart {
    /// Whose turn it is, or would have been; `None`: all are back.
    pub fn turn(&self) -> Option<&RestartedNode> {
        self.nodes.iter().find(|node| !node.is_back())
    }

    pub fn is_running(&self) -> bool {
        self.outcome == Outcome::Running
    }
}

impl RestartedNode {
    pub fn new(node: NodeName) -> RestartedNode {
        RestartedNode { node, from_version: None, to_version: None, evidence: Vec::new(), phases: Vec::new() }
    }

    /// Restarted, and serving again.
    pub fn is_back(&self) -> bool {
        self.to_version.is_some()
    }
}
