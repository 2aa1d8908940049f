//! The current order: which term it is, who receives writes, whence the WAL comes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::NodeName;
use crate::pg::TimelineId;

/// The number of an election, the fencing token. Terms only grow, are durable before they are acted on, and an
/// old term is refused everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What makes a commit durable before the client hears of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The primary's own disk. A lost primary may take its last commits with it.
    #[default]
    Async,
    /// The primary's and the relay's (the relay is its synchronous standby).
    Quorum,
}

/// Under quorum durability: what becomes of a commit that waits to be replayed (`synchronous_commit = remote_apply`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemoteApply {
    /// It is refused: the relay replays nothing, so the commit would wait for ever.
    #[default]
    Off,
    /// The relay reports how far all nodes that stream from it have replayed; while none does, the commit waits.
    Followers,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writes {
    Open,
    /// New transactions for the primary wait, up to `hold_clients`. `reason` is for people.
    Held {
        reason: String,
    },
}

/// What `failover` orders. Obeyed as a whole: proxy and relay act on a higher term, ignore a lower one, and
/// within a term follow the latest value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    pub term: Term,
    /// The one node that may receive writes in this term; `None` while it is being fenced or elected.
    pub primary: Option<NodeName>,
    /// The standby that is being made primary: before it is promoted the proxy takes it from every session, and
    /// gives it to none until writes open. Else one could write there before anything is verified.
    pub candidate: Option<Candidate>,
    /// Before a planned switchover, while writes are held: what runs at the primary and at its successor may end, and
    /// nothing new begins at either.
    #[serde(default)]
    pub drain: Option<Drain>,
    /// How many drains there were, this one included. A session that chose its server under fewer chooses again; so it
    /// stays when a drain is over, for whoever saw nothing of it.
    #[serde(default)]
    pub drains: u64,
    pub writes: Writes,
    /// Whom the relay streams from; `None`: from nobody (the relay closes the stream and then promises the
    /// term).
    pub upstream: Option<NodeName>,
    /// On which `upstream` is, as it was verified: WAL of another one is nobody's history yet.
    #[serde(default)]
    pub timeline: Option<TimelineId>,
    pub durability: Durability,
}

/// A standby whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub node: NodeName,
    /// Counts the turns of a term. A node may have several; in between sessions may use it, so a word that it is clear
    /// counts for its own turn only.
    pub round: u32,
}

/// Two nodes that are to come to rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who is to be primary. The other one is [`Directive::primary`].
    pub successor: NodeName,
}

impl Directive {
    /// Before anything is known: no primary, writes held.
    pub fn starting(durability: Durability) -> Directive {
        Directive {
            term: Term(0),
            primary: None,
            candidate: None,
            drain: None,
            drains: 0,
            writes: Writes::Held { reason: "starting".to_owned() },
            upstream: None,
            timeline: None,
            durability,
        }
    }

    /// Where writes may go now.
    pub fn writable(&self) -> Option<&NodeName> {
        match self.writes {
            Writes::Open => self.primary.as_ref(),
            Writes::Held { .. } => None,
        }
    }
}

/// The relay's `application_name` at its upstream. The term is in it so that a connection of an old term never
/// counts for the `synchronous_standby_names` of a new one.
pub fn relay_application_name(instance: &str, term: Term) -> String {
    format!("bellwether_{instance}_t{term}")
}
