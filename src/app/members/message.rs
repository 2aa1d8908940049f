//! What one instance tells another, as JSON. PURE.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::app::sight::{Age, ProxySight, WalSight};
use crate::topology::{Deed, Directive, Member, NodeName};

/// Of these messages. Who speaks another one is not heard: there is no half understanding of who may write.
pub(super) const VERSION: u32 = 2;

/// Of a [`Message`]: who speaks. It never changes with the version.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) cluster: String,
    pub(super) instance: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) version: u32,
    pub(super) cluster: String,
    pub(super) instance: String,
    /// Grows with whatever matters ([`super::answers`]).
    pub(super) serial: u64,
    pub(super) member: MemberSight,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::app) struct MemberSight {
    directive: Arc<Directive>,
    wal: WalSight,
    proxy: ProxySight,
    local: Vec<NodeName>,
    /// A former version does not tell.
    #[serde(default)]
    at_work: Vec<NodeName>,
    deeds: Vec<Deed>,
    last_words: BTreeMap<String, Age>,
    speaks: Age,
    instances: Vec<String>,
}

impl MemberSight {
    pub(in crate::app) fn of(now: Instant, member: &Member) -> MemberSight {
        let Member {
            instance: _,
            directive,
            wal,
            proxy,
            local,
            at_work,
            deeds,
            last_words,
            speaks_since,
            instances,
        } = member;
        MemberSight {
            directive: directive.clone(),
            wal: WalSight::of(now, wal),
            proxy: ProxySight::of(now, proxy),
            local: local.clone(),
            at_work: at_work.clone(),
            deeds: deeds.clone(),
            last_words: last_words.iter().map(|(name, at)| (name.clone(), Age::of(now, *at))).collect(),
            speaks: Age::of(now, *speaks_since),
            instances: instances.clone(),
        }
    }

    /// As it looks to who has it `now`: last words look later than they were, never earlier.
    pub(in crate::app) fn at(self, now: Instant, instance: String) -> Member {
        Member {
            instance,
            directive: self.directive,
            wal: Arc::new(self.wal.at(now)),
            proxy: Arc::new(self.proxy.at(now)),
            local: self.local,
            at_work: self.at_work,
            deeds: self.deeds,
            last_words: self.last_words.into_iter().map(|(name, age)| (name, age.at(now))).collect(),
            speaks_since: self.speaks.at(now),
            instances: self.instances,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::MemberSight;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Acknowledgers, Candidate, Deed, Directive, Done, Drain, Durability, Floor, Member, ProxyStatus, Term,
        WalStatus, Writes,
    };

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn what_arrives_is_what_was_said() {
        let now = Instant::now() + Duration::from_secs(100);
        let node = |name: &str| name.parse().expect("a name");
        let directive = Directive {
            term: Term(3),
            primary: Some(node("pg1")),
            candidate: Some(Candidate { node: node("pg2"), round: 4 }),
            drain: Some(Drain { successor: node("pg2") }),
            resting: Some(node("pg3")),
            drains: 5,
            maintenance: vec![node("pg3")],
            writes: Writes::Held { reason: "an election".to_owned() },
            upstream: Some(node("pg1")),
            timeline: Some(TimelineId(2)),
            floor: Some(Floor {
                timeline: TimelineId(2),
                end: Lsn(7),
                source: Some("bw3".to_owned()),
                log_term: Term(4),
            }),
            quorums: vec![Acknowledgers { relays: vec!["bw1".to_owned(), "bw2".to_owned()], acks: 2 }],
            durability: Durability::Quorum,
            unsure_since: None,
        };
        let member = Member {
            instance: "bw2".to_owned(),
            directive: Arc::new(directive),
            wal: Arc::new(WalStatus { promised: Term(3), ..WalStatus::starting() }),
            proxy: Arc::new(ProxyStatus { confirmed: Term(2), ..ProxyStatus::default() }),
            local: vec![node("pg2")],
            at_work: vec![node("pg2")],
            deeds: vec![Deed {
                term: Term(3),
                node: node("pg2"),
                what: Done::ShutDown { checkpoint: Lsn(9) },
            }],
            last_words: [("bw1".to_owned(), now - Duration::from_millis(70))].into(),
            speaks_since: now - Duration::from_secs(7),
            instances: vec!["bw1".to_owned(), "bw2".to_owned()],
        };
        let json = serde_json::to_string(&MemberSight::of(now, &member)).expect("JSON");
        let come: MemberSight = serde_json::from_str(&json).expect("the same JSON");
        assert_eq!(come.at(now, "bw2".to_owned()), member, "{json}");
    }
}
