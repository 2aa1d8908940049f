//! What the control plane makes of its probes, node by node.

use std::time::Instant;

use super::{Address, Diagnosis, NodeName, Role};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Health {
    pub nodes: Vec<NodeHealth>,
    /// What ails the primary, as this instance sees it.
    pub diagnosis: Option<Diagnosis>,
}

impl Health {
    pub fn node(&self, name: &NodeName) -> Option<&NodeHealth> {
        self.nodes.iter().find(|node| node.name == *name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHealth {
    pub name: NodeName,
    pub address: Address,
    pub state: NodeState,
    /// From the last successful probe; kept while the node is down.
    pub role: Option<Role>,
    pub timeline: Option<TimelineId>,
    pub system: Option<SystemIdentifier>,
    /// The node's own position: `pg_current_wal_flush_lsn` of a primary, `pg_last_wal_replay_lsn` of a standby.
    pub position: Lsn,
    /// `server_version` of what runs, without what a packager has added to it.
    pub server_version: Option<String>,
    pub seen_at: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Not probed yet. Not seeing a node is not evidence that it is down.
    Unknown,
    Up,
    Down {
        since: Instant,
        why: String,
    },
    /// Answers, but must not be used: another system identifier, a diverged timeline, a primary of an old term.
    Quarantined {
        why: String,
    },
}

impl NodeState {
    pub fn is_up(&self) -> bool {
        matches!(self, NodeState::Up)
    }

    /// One word for labels and tables.
    pub fn word(&self) -> &'static str {
        match self {
            NodeState::Unknown => "unknown",
            NodeState::Up => "up",
            NodeState::Down { .. } => "down",
            NodeState::Quarantined { .. } => "quarantined",
        }
    }
}
