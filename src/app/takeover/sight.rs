//! The directive, and what reads are routed by, on their way from the new process to the sessions of the old one.
//! PURE.
//!
//! Moments travel as ages: no clock is shared. What took long on its way looks as fresh as it was when it left; it is
//! a socket on one host, and when it stalls, what came last grows old where it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Directive, Follower, FollowerState, Health, Lag, NodeHealth, NodeName, NodeState, Role, Term, Upstream,
    WalStatus,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sight {
    pub(super) directive: Directive,
    nodes: Vec<Seen>,
    wal: Wal,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    name: NodeName,
    address: String,
    state: State,
    role: Option<Role>,
    timeline: Option<TimelineId>,
    system: Option<SystemIdentifier>,
    position: Lsn,
    age: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Unknown,
    Up,
    Down { age: Duration, why: String },
    Quarantined { why: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wal {
    promised: Term,
    system: Option<SystemIdentifier>,
    timeline: TimelineId,
    received: Lsn,
    durable: Lsn,
    verified: Lsn,
    upstream_end: Lsn,
    /// Whom the relay streams from, and how old its last message is. Without a stream nothing else matters here.
    heard: Option<(NodeName, Duration)>,
    followers: Vec<Position>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Position {
    application_name: String,
    pid: u32,
    timeline: TimelineId,
    state: Progress,
    sent: Lsn,
    write: Lsn,
    flush: Lsn,
    replay: Lsn,
    lag_bytes: u64,
    lag_time: Duration,
    age: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Progress {
    Startup,
    Catchup,
    Streaming,
}

impl Sight {
    pub(super) fn of(now: Instant, directive: &Directive, health: &Health, wal: &WalStatus) -> Sight {
        Sight {
            directive: directive.clone(),
            nodes: health.nodes.iter().map(|node| Seen::of(now, node)).collect(),
            wal: Wal::of(now, wal),
        }
    }

    /// As it looks to who has it `now`. What has no address here is left out.
    pub(super) fn at(self, now: Instant) -> (Directive, Health, WalStatus) {
        let nodes = self.nodes.into_iter().filter_map(|node| node.at(now)).collect();
        (self.directive, Health { nodes }, self.wal.at(now))
    }
}

impl Seen {
    fn of(now: Instant, node: &NodeHealth) -> Seen {
        let state = match &node.state {
            NodeState::Unknown => State::Unknown,
            NodeState::Up => State::Up,
            NodeState::Down { since, why } => State::Down { age: age(now, *since), why: why.clone() },
            NodeState::Quarantined { why } => State::Quarantined { why: why.clone() },
        };
        Seen {
            name: node.name.clone(),
            address: node.address.to_string(),
            state,
            role: node.role,
            timeline: node.timeline,
            system: node.system,
            position: node.position,
            age: node.seen_at.map(|at| age(now, at)),
        }
    }

    fn at(self, now: Instant) -> Option<NodeHealth> {
        let state = match self.state {
            State::Unknown => NodeState::Unknown,
            State::Up => NodeState::Up,
            State::Down { age, why } => NodeState::Down { since: before(now, age), why },
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
            seen_at: self.age.map(|age| before(now, age)),
        })
    }
}

impl Wal {
    fn of(now: Instant, wal: &WalStatus) -> Wal {
        let heard = match &wal.upstream {
            Upstream::Streaming { node, last_message, .. } => Some((node.clone(), age(now, *last_message))),
            Upstream::Idle | Upstream::Connecting { .. } | Upstream::Ended { .. } => None,
        };
        Wal {
            promised: wal.promised,
            system: wal.system,
            timeline: wal.timeline,
            received: wal.received,
            durable: wal.durable,
            verified: wal.verified,
            upstream_end: wal.upstream_end,
            heard,
            followers: wal.followers.iter().map(|follower| Position::of(now, follower)).collect(),
        }
    }

    fn at(self, now: Instant) -> WalStatus {
        let upstream = self.heard.map_or(Upstream::Idle, |(node, age)| {
            let at = before(now, age);
            Upstream::Streaming { node, since: at, last_message: at }
        });
        WalStatus {
            promised: self.promised,
            system: self.system,
            timeline: self.timeline,
            received: self.received,
            durable: self.durable,
            verified: self.verified,
            upstream_end: self.upstream_end,
            upstream,
            substitute: None,
            alarm: None,
            alarms: Arc::default(),
            oldest: Lsn::INVALID,
            followers: self.followers.into_iter().map(|follower| follower.at(now)).collect(),
            archive: None,
        }
    }
}

impl Position {
    fn of(now: Instant, follower: &Follower) -> Position {
        let state = match follower.state {
            FollowerState::Startup => Progress::Startup,
            FollowerState::Catchup => Progress::Catchup,
            FollowerState::Streaming => Progress::Streaming,
        };
        Position {
            application_name: follower.application_name.clone(),
            pid: follower.pid,
            timeline: follower.timeline,
            state,
            sent: follower.sent,
            write: follower.write,
            flush: follower.flush,
            replay: follower.replay,
            lag_bytes: follower.lag.bytes,
            lag_time: follower.lag.time,
            age: age(now, follower.reported_at),
        }
    }

    fn at(self, now: Instant) -> Follower {
        let state = match self.state {
            Progress::Startup => FollowerState::Startup,
            Progress::Catchup => FollowerState::Catchup,
            Progress::Streaming => FollowerState::Streaming,
        };
        Follower {
            application_name: self.application_name,
            pid: self.pid,
            timeline: self.timeline,
            state,
            sent: self.sent,
            write: self.write,
            flush: self.flush,
            replay: self.replay,
            lag: Lag { bytes: self.lag_bytes, time: self.lag_time },
            reported_at: before(now, self.age),
        }
    }
}

fn age(now: Instant, at: Instant) -> Duration {
    now.saturating_duration_since(at)
}

fn before(now: Instant, age: Duration) -> Instant {
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Sight;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Directive, Durability, Follower, FollowerState, Health, Lag, NodeHealth, NodeState, Role, Term,
        Upstream, WalStatus, Writes,
    };

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
            timeline: None,
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
            seen_at: Some(ago(20)),
        };
        let down = NodeState::Down { since: ago(30), why: "silent".to_owned() };
        let health = Health { nodes: vec![node(NodeState::Up), node(down)] };
        let follower = Follower {
            application_name: "pg2".to_owned(),
            pid: 5,
            timeline: TimelineId(2),
            state: FollowerState::Streaming,
            sent: Lsn(9),
            write: Lsn(8),
            flush: Lsn(8),
            replay: Lsn(7),
            lag: Lag { bytes: 2, time: Duration::from_millis(4) },
            reported_at: ago(3),
        };
        let upstream = Upstream::Streaming { node: pg2, since: ago(1), last_message: ago(1) };
        let wal = WalStatus { durable: Lsn(9), upstream, followers: vec![follower], ..WalStatus::starting() };
        let sent = Sight::of(now, &directive, &health, &wal);
        let json = serde_json::to_string(&sent).expect("JSON");
        let come: Sight = serde_json::from_str(&json).expect("the same JSON");
        assert_eq!(come.at(now), (directive, health, wal));
    }
}
