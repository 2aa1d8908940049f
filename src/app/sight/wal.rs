//! [`WalStatus`].

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Age;
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::{
    Alarm, ArchiveStatus, Follower, FollowerState, Hearing, Lag, NodeName, StreamEnd, Term, Told, Upstream,
    WalAlarm, WalStatus,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::app) struct WalSight {
    promised: Term,
    log_term: Term,
    system: Option<SystemIdentifier>,
    timeline: TimelineId,
    received: Lsn,
    durable: Lsn,
    verified: Lsn,
    upstream_end: Lsn,
    #[serde(default)]
    told: Option<(Term, Age)>,
    upstream: UpstreamSight,
    substitute: Option<String>,
    alarm: Option<WalAlarm>,
    alarms: Arc<Vec<Alarm>>,
    oldest: Lsn,
    followers: Vec<FollowerSight>,
    archive: Option<ArchiveStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UpstreamSight {
    Idle,
    Connecting { node: NodeName, since: Age, last_error: Option<String> },
    Streaming { node: NodeName, since: Age, last_message: Age },
    Ended { node: NodeName, at: Age, how: StreamEnd },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FollowerSight {
    application_name: String,
    pid: u32,
    timeline: TimelineId,
    state: FollowerState,
    sent: Lsn,
    write: Lsn,
    flush: Lsn,
    replay: Lsn,
    lag: Lag,
    reported: Age,
    #[serde(default)]
    hearing: HearingSight,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HearingSight {
    #[default]
    ByStream,
    At(Age),
    Never,
}

impl WalSight {
    pub(in crate::app) fn of(now: Instant, wal: &WalStatus) -> WalSight {
        WalSight {
            promised: wal.promised,
            log_term: wal.log_term,
            system: wal.system,
            timeline: wal.timeline,
            received: wal.received,
            durable: wal.durable,
            verified: wal.verified,
            upstream_end: wal.upstream_end,
            told: wal.told.map(|told| (told.term, Age::of(now, told.at))),
            upstream: UpstreamSight::of(now, &wal.upstream),
            substitute: wal.substitute.clone(),
            alarm: wal.alarm.clone(),
            alarms: wal.alarms.clone(),
            oldest: wal.oldest,
            followers: wal.followers.iter().map(|follower| FollowerSight::of(now, follower)).collect(),
            archive: wal.archive.clone(),
        }
    }

    /// As it looks to who has it `now`.
    pub(in crate::app) fn at(self, now: Instant) -> WalStatus {
        let upstream = self.upstream.at(now);
        let told = self.told.map(|(term, age)| Told { term, at: age.at(now) });
        // A former version does not tell.
        let told = told.or(match upstream {
            Upstream::Streaming { last_message: at, .. } => Some(Told { term: self.promised, at }),
            Upstream::Idle | Upstream::Connecting { .. } | Upstream::Ended { .. } => None,
        });
        WalStatus {
            promised: self.promised,
            log_term: self.log_term,
            system: self.system,
            timeline: self.timeline,
            received: self.received,
            durable: self.durable,
            verified: self.verified,
            upstream_end: self.upstream_end,
            told,
            upstream,
            substitute: self.substitute,
            alarm: self.alarm,
            alarms: self.alarms,
            oldest: self.oldest,
            followers: self.followers.into_iter().map(|follower| follower.at(now)).collect(),
            archive: self.archive,
        }
    }
}

impl UpstreamSight {
    fn of(now: Instant, upstream: &Upstream) -> UpstreamSight {
        let age = |at: &Instant| Age::of(now, *at);
        match upstream {
            Upstream::Idle => UpstreamSight::Idle,
            Upstream::Connecting { node, since, last_error } => UpstreamSight::Connecting {
                node: node.clone(),
                since: age(since),
                last_error: last_error.clone(),
            },
            Upstream::Streaming { node, since, last_message } => UpstreamSight::Streaming {
                node: node.clone(),
                since: age(since),
                last_message: age(last_message),
            },
            Upstream::Ended { node, at, how } => {
                UpstreamSight::Ended { node: node.clone(), at: age(at), how: how.clone() }
            }
        }
    }

    fn at(self, now: Instant) -> Upstream {
        match self {
            UpstreamSight::Idle => Upstream::Idle,
            UpstreamSight::Connecting { node, since, last_error } => {
                Upstream::Connecting { node, since: since.at(now), last_error }
            }
            UpstreamSight::Streaming { node, since, last_message } => {
                Upstream::Streaming { node, since: since.at(now), last_message: last_message.at(now) }
            }
            UpstreamSight::Ended { node, at, how } => Upstream::Ended { node, at: at.at(now), how },
        }
    }
}

impl FollowerSight {
    fn of(now: Instant, follower: &Follower) -> FollowerSight {
        FollowerSight {
            application_name: follower.application_name.clone(),
            pid: follower.pid,
            timeline: follower.timeline,
            state: follower.state,
            sent: follower.sent,
            write: follower.write,
            flush: follower.flush,
            replay: follower.replay,
            lag: follower.lag,
            reported: Age::of(now, follower.reported_at),
            hearing: match follower.hearing {
                Hearing::ByStream => HearingSight::ByStream,
                Hearing::At(at) => HearingSight::At(Age::of(now, at)),
                Hearing::Never => HearingSight::Never,
            },
        }
    }

    fn at(self, now: Instant) -> Follower {
        Follower {
            application_name: self.application_name,
            pid: self.pid,
            timeline: self.timeline,
            state: self.state,
            sent: self.sent,
            write: self.write,
            flush: self.flush,
            replay: self.replay,
            lag: self.lag,
            reported_at: self.reported.at(now),
            hearing: match self.hearing {
                HearingSight::ByStream => Hearing::ByStream,
                HearingSight::At(age) => Hearing::At(age.at(now)),
                HearingSight::Never => Hearing::Never,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::WalSight;
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};
    use crate::topology::{
        Alarm, AlarmKind, ArchiveStatus, Follower, FollowerState, Hearing, Lag, Refusal, StreamEnd, Term,
        Told, UnknownBackup, Upstream, WalAlarm, WalStatus,
    };

    /// Every field differs from what a relay starts with.
    fn everything(ago: impl Fn(u64) -> Instant, hearing: Hearing) -> WalStatus {
        let alarm = Alarm {
            kind: AlarmKind::LostSlot,
            object: "pg2".to_owned(),
            what: "it is lost".to_owned(),
            raised_at_ms: 5,
            over_at_ms: Some(6),
        };
        let follower = Follower {
            application_name: "pg2".to_owned(),
            pid: 5,
            timeline: TimelineId(2),
            state: FollowerState::Catchup,
            sent: Lsn(9),
            write: Lsn(8),
            flush: Lsn(8),
            replay: Lsn(7),
            lag: Lag { bytes: 2, time: Duration::from_millis(4) },
            reported_at: ago(3),
            hearing,
        };
        let unknown = UnknownBackup { name: "base_1".to_owned(), why: "torn".to_owned() };
        WalStatus {
            promised: Term(4),
            log_term: Term(3),
            system: Some(SystemIdentifier(u64::MAX)),
            timeline: TimelineId(2),
            received: Lsn(12),
            durable: Lsn(11),
            verified: Lsn(10),
            upstream_end: Lsn(13),
            told: Some(Told { term: Term(3), at: ago(6) }),
            upstream: Upstream::Idle,
            substitute: Some("pg3".to_owned()),
            alarm: Some(WalAlarm::Gap { timeline: TimelineId(2), end: Lsn(11) }),
            alarms: Arc::new(vec![alarm]),
            oldest: Lsn(1),
            followers: vec![follower],
            archive: Some(ArchiveStatus {
                archived: Lsn(6),
                trouble: Some("full".to_owned()),
                unknown_backups: vec![unknown],
            }),
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn what_arrives_is_what_was_seen_and_as_old() {
        let now = Instant::now() + Duration::from_secs(100);
        let ago = |millis| now - Duration::from_millis(millis);
        let check_hearing = |upstream: Upstream, hearing| {
            let wal = WalStatus { upstream, ..everything(ago, hearing) };
            let json = serde_json::to_string(&WalSight::of(now, &wal)).expect("JSON");
            let come: WalSight = serde_json::from_str(&json).expect("the same JSON");
            assert_eq!(come.at(now), wal, "{json}");
        };
        let node = || "pg1".parse().expect("a name");
        let check = |upstream| check_hearing(upstream, Hearing::At(ago(4)));
        check_hearing(Upstream::Idle, Hearing::ByStream);
        check_hearing(Upstream::Idle, Hearing::Never);
        check(Upstream::Idle);
        check(Upstream::Connecting { node: node(), since: ago(9), last_error: Some("refused".to_owned()) });
        check(Upstream::Streaming { node: node(), since: ago(9), last_message: ago(2) });
        let ended = |how| check(Upstream::Ended { node: node(), at: ago(7), how });
        ended(StreamEnd::TimelineEnd { next: TimelineId(3), switchpoint: Lsn(11) });
        ended(StreamEnd::Shutdown);
        ended(StreamEnd::Lost { why: "silence".to_owned() });
        let diverged = Refusal::Diverged { timeline: TimelineId(2), lsn: Lsn(5) };
        for cause in [Refusal::Removed, diverged, Refusal::Other] {
            ended(StreamEnd::Refused { why: "no".to_owned(), cause });
        }
    }
}
