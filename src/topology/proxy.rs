//! What the query plane tells the control plane.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Candidate, NodeName, Term};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProxyStatus {
    /// The highest term in which nothing of an earlier term's primary is in use any more: no server connection
    /// of a client goes to a node that is not this term's primary as if it were. The proxy's half of the fence.
    pub confirmed: Term,
    /// The directive's candidate, once no session has a server connection there.
    pub cleared: Option<Candidate>,
    /// What the directive's drain has come to, or that of a standby before its restart.
    pub drained: Option<Drained>,
    /// Transactions that wait for writes to open.
    pub held: usize,
    /// Connections that the process before this one still serves, whose place it has taken.
    pub draining: Draining,
    pub evidence: Vec<ClientEvidence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draining {
    Known(usize),
    /// That process may be there, and has not said how many.
    Unknown,
}

impl Default for Draining {
    fn default() -> Draining {
        Draining::Known(0)
    }
}

/// The sessions at the two nodes of a drain, or at the one that is to be restarted.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drained {
    /// [`super::Directive::drains`], so that a word about one is not taken for a word about the next.
    pub round: u64,
    /// In a transaction, or on the way into one. At 0 none follows.
    pub busy: usize,
    /// In no transaction, with state that lives in its server: how many by the reason. They lose it.
    pub pinned: BTreeMap<String, usize>,
}

impl Drained {
    pub fn add_pinned(&mut self, reason: &str) {
        *self.pinned.entry(reason.to_owned()).or_default() += 1;
    }
}

/// What client traffic saw of a node. First-hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEvidence {
    pub node: NodeName,
    /// The last time the server answered a client's statement.
    pub answered_at: Option<Instant>,
    /// The last refused connection.
    pub refused_at: Option<Instant>,
    /// The last connection that broke while in use.
    pub broken_at: Option<Instant>,
}
