//! The directive, and what reads are routed by, on their way from the new process to the sessions of the old one.
//! PURE.
//!
//! And what the other instances have told the old one, on its way to the new one.
//!
//! It is a socket on one host: when it stalls, what came last grows old where it is.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::app::members::MemberSight;
use crate::app::sight::{Age, NodeSight, WalSight};
use crate::topology::{Directive, Health, Heard, WalStatus};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sight {
    pub(super) directive: Directive,
    /// [`Directive::unsure_since`].
    #[serde(default)]
    unsure: Option<Age>,
    nodes: Vec<NodeSight>,
    wal: WalSight,
}

impl Sight {
    pub(super) fn of(now: Instant, directive: &Directive, health: &Health, wal: &WalStatus) -> Sight {
        Sight {
            directive: directive.clone(),
            unsure: directive.unsure_since.map(|since| Age::of(now, since)),
            nodes: health.nodes.iter().map(|node| NodeSight::of(now, node)).collect(),
            wal: WalSight::of(now, wal),
        }
    }

    /// As it looks to who has it `now`. What has no address here is left out.
    pub(super) fn at(self, now: Instant) -> (Directive, Health, WalStatus) {
        let nodes = self.nodes.into_iter().filter_map(|node| node.at(now)).collect();
        let unsure_since = self.unsure.map(|unsure| unsure.at(now));
        (Directive { unsure_since, ..self.directive }, Health { nodes, diagnosis: None }, self.wal.at(now))
    }
}

/// What another instance has told the old process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HeardSight {
    instance: String,
    asked: Age,
    member: MemberSight,
}

impl HeardSight {
    pub(super) fn of(now: Instant, instance: &str, heard: &Heard) -> HeardSight {
        HeardSight {
            instance: instance.to_owned(),
            asked: Age::of(now, heard.asked_at),
            member: MemberSight::of(now, &heard.member),
        }
    }

    /// As it looks to who asked for it at `asked_at`, and has it `now`: it was heard no later than it looks, by as much as it was
    /// on its way. So nothing is believed for longer than the old process would have.
    pub(super) fn at(self, asked_at: Instant, now: Instant) -> (String, Heard) {
        let member = Arc::new(self.member.at(now, self.instance.clone()));
        (self.instance, Heard { asked_at: self.asked.at(asked_at), member })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use std::sync::Arc;

    use super::{HeardSight, Sight};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::members::tests::{member, relay, start};
    use crate::topology::{
        Directive, Durability, Health, Heard, NodeHealth, NodeState, Role, Term, Told, Upstream, WalStatus,
        Writes,
    };

    #[test]
    fn what_others_have_told_is_never_newer_than_it_was() {
        let ready_at = start();
        let after = |millis| ready_at + Duration::from_millis(millis);
        // Told at 30, of an answer to what was asked 200 before that; read at 90.
        let mut b = member("b", relay("7 6 1 50"), 7);
        b.last_words = [("c".to_owned(), after(10))].into();
        let heard = Heard { asked_at: after(30) - Duration::from_millis(200), member: Arc::new(b) };
        let (name, seen) = HeardSight::of(after(30), "b", &heard).at(ready_at, after(90));
        assert_eq!((name.as_str(), seen.asked_at), ("b", ready_at - Duration::from_millis(200)));
        assert!(seen.asked_at <= heard.asked_at, "who vouches for us has done so then at the latest");
        assert_eq!(seen.member.last_words["c"], after(70), "others were told by it then or before");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn what_arrives_is_what_was_seen_and_as_old() {
        let now = Instant::now() + Duration::from_secs(100);
        let ago = |millis| now - Duration::from_millis(millis);
        let (pg1, pg2) = ("pg1".parse().expect("a name"), "pg2".parse().expect("a name"));
        let directive = Directive {
            term: Term(3),
            primary: Some(pg1),
            writes: Writes::Open,
            upstream: Some("pg1".parse().expect("a name")),
            unsure_since: Some(ago(50)),
            ..Directive::starting(Durability::Quorum)
        };
        let node = |state| NodeHealth {
            name: "pg2".parse().expect("a name"),
            address: "127.0.0.1:5432".parse().expect("an address"),
            state,
            role: Some(Role::Standby),
            timeline: Some(TimelineId(2)),
            system: None,
            position: Lsn(7),
            server_version: Some("15.14".to_owned()),
            seen_at: Some(ago(20)),
        };
        let down = NodeState::Down { since: ago(30), why: "silent".to_owned() };
        let quarantined = NodeState::Quarantined { why: "another cluster".to_owned() };
        let nodes = [NodeState::Unknown, NodeState::Up, down, quarantined].map(node);
        let health = Health { nodes: nodes.into(), diagnosis: None };
        let upstream = Upstream::Streaming { node: pg2, since: ago(1), last_message: ago(1) };
        let told = Some(Told { term: Term(2), at: ago(5) });
        let wal = WalStatus { durable: Lsn(9), told, upstream, ..WalStatus::starting() };
        let sent = Sight::of(now, &directive, &health, &wal);
        let json = serde_json::to_string(&sent).expect("JSON");
        let come: Sight = serde_json::from_str(&json).expect("the same JSON");
        assert_eq!(come.at(now), (directive, health, wal));
    }
}
