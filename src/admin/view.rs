//! The cluster as JSON: what the planes published, side by side, with ages instead of clocks. PURE.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Acknowledgers, Ailment, Alarm, Diagnosis, Directive, Draining, Durability, Election, Failovers, Follower,
    FollowerState, Health, Heard, Members, NodeHealth, NodeName, NodeState, Outcome, ProxyStatus, Restart,
    Role, StreamEnd, Term, Upstream, WalStatus, Writes,
};

/// Whose state this is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: String,
    pub instance: String,
}

/// The latest published values.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub directive: Arc<Directive>,
    pub health: Arc<Health>,
    pub wal: Arc<WalStatus>,
    pub proxy: Arc<ProxyStatus>,
    pub history: Arc<Vec<Election>>,
    pub leader: Arc<Option<String>>,
    pub failovers: Arc<Failovers>,
    pub restarts: Arc<Vec<Restart>>,
    pub members: Arc<Members>,
}

/// `/api/v1/cluster`. Fields are added, never renamed: scripts rely on them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    pub cluster: String,
    pub instance: String,
    /// The instance that decides: of several, one does. `None`: nobody, as far as this instance knows.
    pub leader: Option<String>,
    /// The other instances.
    #[serde(default)]
    pub members: Vec<MemberView>,
    /// Whether a dead primary is replaced without a person.
    #[serde(default)]
    pub failovers: Failovers,
    pub term: Term,
    pub durability: Durability,
    pub directive: DirectiveView,
    /// What ails the primary, as this instance sees it; `None`: nothing that is known.
    #[serde(default)]
    pub ailment: Option<AilmentView>,
    pub nodes: Vec<NodeView>,
    pub wal: WalView,
    pub followers: Vec<FollowerView>,
    pub clients: ClientsView,
    /// The restart of servers that is under way, or that ended badly and was followed by none.
    #[serde(default)]
    pub restart: Option<Restart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AilmentView {
    pub name: Ailment,
    pub sentence: String,
    /// As an election's: each marked first-hand or inferred.
    pub evidence: Vec<String>,
    /// Why nobody is promoted for it.
    pub outlook: Option<String>,
}

/// Another instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    pub instance: String,
    /// What it said last; `None`: it has never been heard.
    pub said: Option<MemberSaid>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberSaid {
    /// When it was asked for that.
    pub seconds_ago: f64,
    /// The term of what it obeys.
    pub term: Term,
    /// What its relay has promised, and in which term its log counts.
    pub promised: Term,
    pub log_term: Term,
    pub timeline: TimelineId,
    pub durable: Lsn,
    /// As [`ClientsView::confirmed`].
    pub confirmed: Term,
    /// The servers that it starts and stops.
    pub agents: Vec<NodeName>,
    /// All instances of the cluster by its configuration, where that is not what this one's says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectiveView {
    pub term: Term,
    pub primary: Option<NodeName>,
    pub upstream: Option<NodeName>,
    pub writes: WritesView,
    /// Whose relays may acknowledge a commit, of several instances. The last of them are those that the primary names; in
    /// an election those before count, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledgers: Vec<Acknowledgers>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum WritesView {
    Open,
    Held { reason: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: NodeName,
    pub address: String,
    /// `unknown`, `up`, `down` or `quarantined`.
    pub state: String,
    /// An operator works on it.
    #[serde(default)]
    pub maintenance: bool,
    /// Why it is down or quarantined.
    pub why: Option<String>,
    pub role: Option<Role>,
    pub timeline: Option<TimelineId>,
    pub system_identifier: Option<SystemIdentifier>,
    /// Its own flush position as a primary, its replay position as a standby.
    pub position: Lsn,
    /// Of what runs there; kept while it is down.
    #[serde(default)]
    pub server_version: Option<String>,
    /// Seconds since the last probe it answered.
    pub seen_seconds_ago: Option<f64>,
    /// A standby's state as a follower of the relay; `None`: it does not stream from here.
    pub follower: Option<String>,
    /// How far its replay is behind the primary's last known end; `None` for a primary and where it is unknown.
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WalView {
    pub promised: Term,
    pub system_identifier: Option<SystemIdentifier>,
    pub timeline: TimelineId,
    pub received: Lsn,
    pub durable: Lsn,
    pub verified: Lsn,
    pub upstream_end: Lsn,
    pub upstream: UpstreamView,
    /// Who gives what the upstream cannot give now.
    #[serde(default)]
    pub substitute: Option<String>,
    /// Why the relay does not go on by itself.
    #[serde(default)]
    pub alarm: Option<String>,
    /// Those that last; all that are remembered: `/api/v1/alarms`.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
    /// Start of the oldest WAL kept.
    #[serde(default)]
    pub oldest: Lsn,
    /// `None`: nothing is archived.
    #[serde(default)]
    pub archive: Option<ArchiveView>,
}

/// What of the WAL is in the archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArchiveView {
    pub archived: Lsn,
    pub lag_bytes: u64,
    /// Why it does not go on.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpstreamView {
    /// `idle`, `connecting`, `streaming`, `timeline_end`, `shutdown`, `lost` or `refused`.
    pub state: String,
    pub node: Option<NodeName>,
    /// In this state since so many seconds.
    pub seconds: Option<f64>,
    pub silent_seconds: Option<f64>,
    pub why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FollowerView {
    pub application_name: String,
    pub pid: u32,
    pub timeline: TimelineId,
    /// `startup`, `catchup` or `streaming`.
    pub state: String,
    pub sent: Lsn,
    pub write: Lsn,
    pub flush: Lsn,
    pub replay: Lsn,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    pub reported_seconds_ago: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientsView {
    /// Transactions that wait for writes to open.
    pub held: usize,
    /// Connections that the process before this one still serves, whose place it has taken; `None`: it may be there,
    /// and has not said.
    pub draining: Option<usize>,
    /// The highest term for which the query plane has let go of every earlier primary.
    pub confirmed: Term,
}

pub fn cluster(identity: &Identity, seen: &Snapshot, now: Instant) -> ClusterView {
    let directive = &seen.directive;
    ClusterView {
        cluster: identity.cluster.clone(),
        instance: identity.instance.clone(),
        leader: seen.leader.as_ref().clone(),
        members: members(&seen.members, now),
        failovers: *seen.failovers,
        term: directive.term,
        durability: directive.durability,
        directive: DirectiveView {
            term: directive.term,
            primary: directive.primary.clone(),
            upstream: directive.upstream.clone(),
            writes: match &directive.writes {
                Writes::Open => WritesView::Open,
                Writes::Held { reason } => WritesView::Held { reason: reason.clone() },
            },
            acknowledgers: directive.quorums.clone(),
        },
        ailment: seen.health.diagnosis.as_ref().map(ailment),
        nodes: seen.health.nodes.iter().map(|health| node(health, directive, &seen.wal, now)).collect(),
        wal: wal(&seen.wal, now),
        followers: seen.wal.followers.iter().map(|it| follower(it, now)).collect(),
        clients: ClientsView {
            held: seen.proxy.held,
            draining: match seen.proxy.draining {
                Draining::Known(count) => Some(count),
                Draining::Unknown => None,
            },
            confirmed: seen.proxy.confirmed,
        },
        restart: seen.restarts.last().filter(|last| last.outcome != Outcome::Completed).cloned(),
    }
}

fn ailment(found: &Diagnosis) -> AilmentView {
    AilmentView {
        name: found.ailment,
        sentence: found.ailment.sentence().to_owned(),
        evidence: found.evidence.iter().map(ToString::to_string).collect(),
        outlook: found.outlook.clone(),
    }
}

fn members(members: &Members, now: Instant) -> Vec<MemberView> {
    let names = members.names();
    let said = |heard: &Heard| {
        let member = &heard.member;
        MemberSaid {
            seconds_ago: seconds(now, heard.asked_at),
            term: member.directive.term,
            promised: member.wal.promised,
            log_term: member.wal.log_term,
            timeline: member.wal.timeline,
            durable: member.wal.durable,
            confirmed: member.proxy.confirmed,
            agents: member.local.clone(),
            counts: (member.instances != names).then(|| member.instances.clone()),
        }
    };
    let others = members.others.iter();
    others
        .map(|(instance, heard)| MemberView { instance: instance.clone(), said: heard.as_ref().map(said) })
        .collect()
}

fn node(health: &NodeHealth, directive: &Directive, wal: &WalStatus, now: Instant) -> NodeView {
    let follower = wal.follower(&health.name);
    let standby = health.role == Some(Role::Standby);
    // A standby that does not stream from us tells its position to the probe only.
    let probed = (health.position.is_valid() && wal.upstream_end.is_valid())
        .then(|| wal.upstream_end.bytes_since(health.position));
    NodeView {
        name: health.name.clone(),
        address: health.address.to_string(),
        state: health.state.word().to_owned(),
        maintenance: directive.is_in_maintenance(&health.name),
        why: match &health.state {
            NodeState::Unknown | NodeState::Up => None,
            NodeState::Down { why, .. } | NodeState::Quarantined { why } => Some(why.clone()),
        },
        role: health.role,
        timeline: health.timeline,
        system_identifier: health.system,
        position: health.position,
        server_version: health.server_version.clone(),
        seen_seconds_ago: health.seen_at.map(|at| seconds(now, at)),
        follower: follower.map(|it| state_word(it.state).to_owned()),
        lag_bytes: if standby { follower.map(|it| it.lag.bytes).or(probed) } else { None },
        lag_seconds: follower.filter(|_| standby).map(|it| rounded(it.lag.time)),
    }
}

fn wal(wal: &WalStatus, now: Instant) -> WalView {
    WalView {
        promised: wal.promised,
        system_identifier: wal.system,
        timeline: wal.timeline,
        received: wal.received,
        durable: wal.durable,
        verified: wal.verified,
        upstream_end: wal.upstream_end,
        upstream: upstream(&wal.upstream, now),
        archive: wal.archive.as_ref().map(|archive| ArchiveView {
            archived: archive.archived,
            lag_bytes: wal.durable.bytes_since(archive.archived),
            trouble: archive.trouble.clone(),
        }),
        substitute: wal.substitute.clone(),
        alarm: wal.alarm.as_ref().map(ToString::to_string),
        alarms: wal.alarms.iter().filter(|alarm| alarm.lasts()).cloned().collect(),
        oldest: wal.oldest,
    }
}

fn upstream(upstream: &Upstream, now: Instant) -> UpstreamView {
    let view = |state: &str, node: &NodeName, since, why| UpstreamView {
        state: state.to_owned(),
        node: Some(node.clone()),
        seconds: Some(seconds(now, since)),
        silent_seconds: None,
        why,
    };
    match upstream {
        Upstream::Idle => UpstreamView {
            state: "idle".to_owned(),
            node: None,
            seconds: None,
            silent_seconds: None,
            why: None,
        },
        Upstream::Connecting { node, since, last_error } => {
            view("connecting", node, *since, last_error.clone())
        }
        Upstream::Streaming { node, since, last_message } => UpstreamView {
            silent_seconds: Some(seconds(now, *last_message)),
            ..view("streaming", node, *since, None)
        },
        Upstream::Ended { node, at, how } => {
            let (state, why) = match how {
                StreamEnd::TimelineEnd { next, switchpoint } => {
                    ("timeline_end", Some(format!("timeline {next} begins at {switchpoint}")))
                }
                StreamEnd::Shutdown => ("shutdown", None),
                StreamEnd::Lost { why } => ("lost", Some(why.clone())),
                StreamEnd::Refused { why, .. } => ("refused", Some(why.clone())),
            };
            view(state, node, *at, why)
        }
    }
}

fn follower(follower: &Follower, now: Instant) -> FollowerView {
    FollowerView {
        application_name: follower.application_name.clone(),
        pid: follower.pid,
        timeline: follower.timeline,
        state: state_word(follower.state).to_owned(),
        sent: follower.sent,
        write: follower.write,
        flush: follower.flush,
        replay: follower.replay,
        lag_bytes: follower.lag.bytes,
        lag_seconds: rounded(follower.lag.time),
        reported_seconds_ago: seconds(now, follower.reported_at),
    }
}

fn state_word(state: FollowerState) -> &'static str {
    match state {
        FollowerState::Startup => "startup",
        FollowerState::Catchup => "catchup",
        FollowerState::Streaming => "streaming",
    }
}

fn seconds(now: Instant, then: Instant) -> f64 {
    rounded(now.saturating_duration_since(then))
}

/// To the millisecond: nobody reads more, and the JSON stays short.
fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Identity, Snapshot, cluster};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{
        Directive, Durability, Follower, FollowerState, Health, Heard, Hearing, Lag, Member, Members,
        NodeHealth, NodeName, NodeState, ProxyStatus, Role, Term, Upstream, WalStatus, Writes,
    };

    pub(in crate::admin) fn identity() -> Identity {
        Identity { cluster: "orders".to_owned(), instance: "bw1".to_owned() }
    }

    fn name(name: &str) -> NodeName {
        name.parse().expect("a node name")
    }

    fn health(node: &str, state: NodeState, role: Option<Role>, position: u64, now: Instant) -> NodeHealth {
        let state_is_up = state.is_up();
        NodeHealth {
            name: name(node),
            address: "10.0.0.1:5432".parse().expect("an address"),
            state,
            role,
            timeline: Some(TimelineId(2)),
            system: None,
            position: Lsn(position),
            server_version: (state_is_up).then(|| "15.14".to_owned()),
            seen_at: Some(now - Duration::from_millis(250)),
        }
    }

    /// Writes open on pg1; pg2 streams 100 bytes behind; pg3 is up and streams from nobody; pg4 is down.
    pub(in crate::admin) fn snapshot(now: Instant) -> Snapshot {
        let followers = vec![Follower {
            application_name: "pg2".to_owned(),
            pid: 7,
            timeline: TimelineId(2),
            state: FollowerState::Streaming,
            sent: Lsn(1000),
            write: Lsn(1000),
            flush: Lsn(1000),
            replay: Lsn(900),
            lag: Lag { bytes: 100, time: Duration::from_micros(12_345) },
            reported_at: now,
            hearing: Hearing::ByStream,
        }];
        let (second, down) = (Duration::from_secs(1), "refused the connection".to_owned());
        let upstream = Upstream::Streaming { node: name("pg1"), since: now - second, last_message: now };
        Snapshot {
            leader: Arc::new(Some("bw1".to_owned())),
            failovers: Arc::default(),
            restarts: Arc::default(),
            members: Arc::new(Members::alone()),
            directive: Arc::new(Directive {
                term: Term(3),
                primary: Some(name("pg1")),
                writes: Writes::Open,
                upstream: Some(name("pg1")),
                timeline: Some(TimelineId(2)),
                ..Directive::starting(Durability::Quorum)
            }),
            health: Arc::new(Health {
                nodes: vec![
                    health("pg1", NodeState::Up, Some(Role::Primary), 1000, now),
                    health("pg2", NodeState::Up, Some(Role::Standby), 880, now),
                    health("pg3", NodeState::Up, Some(Role::Standby), 400, now),
                    health("pg4", NodeState::Down { since: now - second, why: down }, None, 0, now),
                ],
                diagnosis: None,
            }),
            wal: Arc::new(WalStatus {
                upstream_end: Lsn(1000),
                upstream,
                followers,
                ..WalStatus::starting()
            }),
            proxy: Arc::new(ProxyStatus { confirmed: Term(3), ..ProxyStatus::default() }),
            history: Arc::default(),
        }
    }

    /// bw2 was heard, bw3 never.
    pub(in crate::admin) fn among_others(now: Instant) -> Members {
        let member = Member {
            instance: "bw2".to_owned(),
            directive: Arc::new(Directive { term: Term(3), ..Directive::starting(Durability::Quorum) }),
            wal: Arc::new(WalStatus {
                promised: Term(3),
                log_term: Term(2),
                timeline: TimelineId(2),
                durable: Lsn(0x3E8),
                ..WalStatus::starting()
            }),
            proxy: Arc::new(ProxyStatus { confirmed: Term(3), ..ProxyStatus::default() }),
            local: vec![name("pg2")],
            at_work: Vec::new(),
            deeds: Vec::new(),
            last_words: [].into(),
            speaks_since: now,
            instances: ["bw1", "bw2", "bw4"].map(str::to_owned).to_vec(),
        };
        let heard = Heard { asked_at: now - Duration::from_millis(250), member: Arc::new(member) };
        let others = [("bw2".to_owned(), Some(heard)), ("bw3".to_owned(), None)].into();
        Members { own: "bw1".to_owned(), others, ..Members::default() }
    }

    #[test]
    fn lag_is_the_followers_own_word_and_else_the_probes() {
        let now = Instant::now();
        let view = cluster(&identity(), &snapshot(now), now);
        let lags: Vec<_> = view.nodes.iter().map(|n| (n.name.as_str(), n.lag_bytes, n.lag_seconds)).collect();
        let expected = [
            ("pg1", None, None),
            ("pg2", Some(100), Some(0.012)),
            ("pg3", Some(600), None),
            ("pg4", None, None),
        ];
        assert_eq!(lags, expected);
        assert_eq!(view.nodes[3].why.as_deref(), Some("refused the connection"));
        assert_eq!(view.nodes[0].seen_seconds_ago, Some(0.25));
        assert_eq!((view.wal.upstream.state.as_str(), view.wal.upstream.seconds), ("streaming", Some(1.0)));
    }

    #[test]
    fn what_is_written_as_json_is_read_back() {
        let now = Instant::now();
        let mut seen = snapshot(now);
        seen.members = Arc::new(among_others(now));
        let view = cluster(&identity(), &seen, now);
        let json = serde_json::to_string(&view).expect("it is all text and numbers");
        assert_eq!(serde_json::from_str::<super::ClusterView>(&json).expect("our own"), view);
        assert!(json.contains(r#""writes":{"state":"open"}"#), "{json}");
    }
}
