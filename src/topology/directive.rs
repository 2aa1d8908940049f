//! The current order: which term it is, who receives writes, whence the WAL comes.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::NodeName;
use crate::pg::{Lsn, TimelineId};

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
    /// A standby that is about to be restarted, until it is back: what runs there may end, and nothing new begins there.
    #[serde(default)]
    pub resting: Option<NodeName>,
    /// How many drains there were, this one included. A session that chose its server under fewer chooses again; so it
    /// stays when a drain is over, for whoever saw nothing of it.
    #[serde(default)]
    pub drains: u64,
    /// Nodes that operators work on: nothing is read there, or asked of them, and nobody wonders where they are.
    #[serde(default)]
    pub maintenance: Vec<NodeName>,
    pub writes: Writes,
    /// Whom the relay streams from; `None`: from nobody (the relay closes the stream and then promises the
    /// term).
    pub upstream: Option<NodeName>,
    /// On which `upstream` is, as it was verified: WAL of another one is nobody's history yet.
    #[serde(default)]
    pub timeline: Option<TimelineId>,
    /// What every relay must hold before its log counts in this term; `None` while that is not known.
    #[serde(default)]
    pub floor: Option<Floor>,
    /// Whose relays may have acknowledged a commit; empty: this instance is alone. The last of them are those that the
    /// primary's setting names. There are others while that changes: then promises are needed from each.
    #[serde(default)]
    pub quorums: Vec<Acknowledgers>,
    pub durability: Durability,
    /// In what the query plane is told while it may not write: since when others may have gone on without this instance's
    /// hearing of it. `None`: they have not, or it may write.
    #[serde(skip)]
    pub unsure_since: Option<Instant>,
}

/// The end of what was, at the beginning of a term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    pub timeline: TimelineId,
    pub end: Lsn,
    /// The instance whose relay has it all, where that is not the primary.
    pub source: Option<String>,
    /// In which term the log counts that goes on. Who has one of another term may be on another branch, and has to see.
    #[serde(default)]
    pub log_term: Term,
}

/// Relays, by their instances' names, of which `acks` have to acknowledge a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgers {
    pub relays: Vec<String>,
    pub acks: usize,
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
            resting: None,
            drains: 0,
            maintenance: Vec::new(),
            writes: Writes::Held { reason: "starting".to_owned() },
            upstream: None,
            timeline: None,
            floor: None,
            quorums: Vec::new(),
            durability,
            unsure_since: None,
        }
    }

    /// As a proxy obeys it that cannot know whether there is a later one: nobody is primary for it. The candidate stays:
    /// who leads may go by an earlier word that it is clear.
    #[must_use]
    pub fn unvouched(&self) -> Directive {
        let reason = "cut off: too few of the other instances say that this term still holds".to_owned();
        Directive { primary: None, drain: None, writes: Writes::Held { reason }, ..self.clone() }
    }

    /// Whether `node`, chosen as the primary of `term`, still is: within a term it may be withdrawn, and given back.
    pub fn has_primary(&self, node: &NodeName, term: Term) -> bool {
        self.term == term && self.primary.as_ref() == Some(node)
    }

    pub fn is_in_maintenance(&self, node: &NodeName) -> bool {
        self.maintenance.contains(node)
    }

    /// The nodes of which it is asked what still runs there ([`super::ProxyStatus::drained`]).
    pub fn coming_to_rest(&self) -> Vec<&NodeName> {
        match &self.drain {
            Some(drain) => self.primary.iter().chain([&drain.successor]).collect(),
            None => self.resting.iter().collect(),
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

/// Whose relay has that `application_name`; `None`: nobody's.
pub fn relay_of(application_name: &str) -> Option<&str> {
    relay_in_term(application_name).map(|(instance, _)| instance)
}

/// The latest term of which a `synchronous_standby_names` names relays; `None`: it names none.
pub fn term_named(setting: &str) -> Option<Term> {
    setting.split('"').filter_map(relay_in_term).map(|(_, term)| term).max()
}

fn relay_in_term(application_name: &str) -> Option<(&str, Term)> {
    let (instance, term) = application_name.strip_prefix("bellwether_")?.rsplit_once("_t")?;
    term.parse().ok().map(|term| (instance, Term(term)))
}

#[cfg(test)]
mod tests {
    use super::{Term, term_named};

    #[test]
    fn the_term_of_a_setting_is_its_relays() {
        let check = |setting, term: Option<u64>| assert_eq!(term_named(setting), term.map(Term), "{setting}");
        check("", None);
        check(r#""bellwether_bw1_t7""#, Some(7));
        check(r#"ANY 2 ("bellwether_a_t7", "bellwether_b_t_t10")"#, Some(10));
        check("ANY 1 (pg2, bellwether)", None);
        check(r#""bellwether_bw1_t7x""#, None);
    }
}
