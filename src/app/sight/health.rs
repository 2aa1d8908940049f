//! [`NodeHealth`].

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Age;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{NodeHealth, NodeName, NodeState, Role};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::app) struct NodeSight {
    name: NodeName,
    address: String,
    state: State,
    role: Option<Role>,
    timeline: Option<TimelineId>,
    system: Option<SystemIdentifier>,
    position: Lsn,
    #[serde(default)]
    server_version: Option<String>,
    seen: Option<Age>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Unknown,
    Up,
    Down { since: Age, why: String },
    Quarantined { why: String },
}

impl NodeSight {
    pub(in crate::app) fn of(now: Instant, node: &NodeHealth) -> NodeSight {
        let state = match &node.state {
            NodeState::Unknown => State::Unknown,
            NodeState::Up => State::Up,
            NodeState::Down { since, why } => State::Down { since: Age::of(now, *since), why: why.clone() },
            NodeState::Quarantined { why } => State::Quarantined { why: why.clone() },
        };
        NodeSight {
            name: node.name.clone(),
            address: node.address.to_string(),
            state,
            role: node.role,
            timeline: node.timeline,
            system: node.system,
            position: node.position,
            server_version: node.server_version.clone(),
            seen: node.seen_at.map(|at| Age::of(now, at)),
        }
    }

    /// As it looks to who has it `now`; `None`: its address is none here.
    pub(in crate::app) fn at(self, now: Instant) -> Option<NodeHealth> {
        let state = match self.state {
            State::Unknown => NodeState::Unknown,
            State::Up => NodeState::Up,
            State::Down { since, why } => NodeState::Down { since: since.at(now), why },
            State::Quarantined { why } => NodeState::Quarantined { why },
        };
        Some(NodeHealth {
            name: self.name,
            address: self.address.parse().ok()?,
            state,
            role: self.role,
            timeline: self.timeline,
            system: self.system,
            position: self.position,
            server_version: self.server_version,
            seen_at: self.seen.map(|age| age.at(now)),
        })
    }
}
