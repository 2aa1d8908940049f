//! What the evidence amounts to, node by node. PURE: `now` is an argument.
//!
//! Four sides testify: our probe, the relay's stream from the primary, client traffic, and (by answering
//! themselves) the other nodes. The rules, in the order of their strength:
//!
//! * **gone**: the probe is refused *and* the WAL stream has ended. Both are first-hand and neither is a matter
//!   of time, so this acts at once. Refused without a stream that could have ended counts after `timeout`.
//! * **in recovery**: the node says that it is a standby. Acts at the second answer.
//! * **restarting**: it answers 57P03 (starting up, shutting down, crash recovery) for `restart_timeout`; or once more, when
//!   it has crashed again and again ([`Restarts`]).
//! * **silent**: no answer to the probe, no byte of WAL and no answer to a client, each for `timeout`, or longer where
//!   that node has been slow to answer of late ([`Patience`]), while another node does answer. A stream or a client
//!   that still hears the primary vouches for it.
//! * **stalled**: it answers queries, but a commit on its own disk has not finished for `stall_timeout`.
//!
//! Blind is not dead: when every node is silent at once, or when this process itself did not run for a while,
//! nothing is concluded. A server that refuses our password or has no connection left is alive.
//!
//! Why it is so, by name and with the evidence, is [`diagnose`]'s to say; no name decides anything.
//!
//! Not here: whom to promote (`decide`), and anything about replication lag (the relay knows it).

mod diagnosis;
mod patience;
mod replay;
mod restarts;
mod stream;

pub use diagnosis::{Knock, Symptoms, Told, diagnose};
pub use replay::{ReplaySpeed, SpeedKind};

use std::time::{Duration, Instant};

use self::diagnosis::Asked;
use self::patience::Patience;
use self::replay::Replay;
use self::restarts::Restarts;
use self::stream::{Stream, seconds};
use crate::pg::{Lsn, SqlState, SystemIdentifier, TimelineId};
use crate::topology::{
    ClientEvidence, Health, Node, NodeHealth, NodeName, NodeState, ProxyStatus, Role, WalStatus,
};

/// When silence becomes evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detect {
    /// Between two probes of a node; also the limit of one probe's query.
    pub interval: Duration,
    /// How long every side must be silent before the primary counts as dead, at least.
    pub timeout: Duration,
    /// How long a server may answer "starting up" or "in recovery" before another takes over.
    pub restart_timeout: Duration,
    /// How long a local commit may hang.
    pub stall_timeout: Duration,
}

impl Default for Detect {
    fn default() -> Detect {
        Detect {
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            restart_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// What one probe of one node came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    Answered(Facts),
    /// Nobody listens.
    Refused,
    /// No answer within the limit.
    Timeout,
    /// The server answered with an error; `code` tells 57P03 (not now) from a wrong password.
    Rejected {
        code: SqlState,
        message: String,
    },
    /// The connection broke or spoke nonsense.
    Broken {
        why: String,
    },
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub role: Role,
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// Flushed on a primary, replayed on a standby.
    pub position: Lsn,
    /// On a standby: what its walreceiver has flushed since the server started, replayed or not. 0/0: nothing.
    pub received: Lsn,
    /// When its processes were started, be it after a crash, as text: only ever compared.
    pub started_at: String,
    /// What runs, as `15.14`: without what a packager has added.
    pub server_version: String,
    pub synchronous_standby_names: String,
    /// The timeline of the last checkpoint in the control file: what pg_rewind goes by.
    pub checkpoint_timeline: TimelineId,
    /// Whether the relay's replication slot exists there.
    pub relay_slot: SlotState,
    /// Since when a commit on the node's own disk has been hanging.
    pub stalled_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    Absent,
    Inactive,
    Active,
}

/// Whether the primary lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryVerdict {
    Alive,
    /// Something is wrong; not enough to act on.
    Suspect {
        why: String,
    },
    Dead {
        cause: Cause,
    },
    /// No primary is expected, or we see nothing at all.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Gone,
    Silent,
    Stalled,
    Restarting,
    Demoted,
}

/// Folds probe results; assessed together with what relay and proxy publish.
#[derive(Debug)]
pub struct Watch {
    detect: Detect,
    tracks: Vec<Track>,
    /// Whom [`Watch::verdict`] is about.
    primary: Option<NodeName>,
    ticked_at: Option<Instant>,
    /// Silence is counted from here at the earliest: the start, or the end of our own last standstill.
    watching_since: Option<Instant>,
}

/// Everything remembered of one node.
#[derive(Debug)]
struct Track {
    node: Node,
    facts: Option<Facts>,
    answered_at: Option<Instant>,
    patience: Patience,
    replay: Replay,
    restarts: Restarts,
    failure: Option<Failing>,
    /// Consecutive answers as a standby.
    standby_answers: u32,
    /// How long after the one before the last answer came, if that was long.
    late: Option<Duration>,
    /// While it is silent: what a bare connection came to. Who took one is not said to be away when it takes no more: the
    /// queue of a server that stands still fills up.
    knock: Option<(Knock, Instant)>,
    /// When a heartbeat last failed for want of space.
    disk_full_at: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    result: ProbeResult,
    /// Since when the failure has been of the present kind.
    kind_since: Instant,
    /// When it last said anything, and were it an error.
    spoke_at: Option<Instant>,
}

impl Watch {
    /// A tick gap that shows that this process did not run.
    const STANDSTILL: Duration = Duration::from_secs(1);
    /// A disk that was full so long ago is not taken for full; of a server that is lost, so long before that.
    const DISK_FULL: Duration = Duration::from_secs(10);

    pub fn new(nodes: &[Node], detect: Detect) -> Watch {
        let track = |node: &Node| Track {
            node: node.clone(),
            facts: None,
            answered_at: None,
            patience: Patience::default(),
            replay: Replay::default(),
            restarts: Restarts::default(),
            failure: None,
            standby_answers: 0,
            late: None,
            knock: None,
            disk_full_at: None,
        };
        Watch {
            detect,
            tracks: nodes.iter().map(track).collect(),
            primary: None,
            ticked_at: None,
            watching_since: None,
        }
    }

    /// From now on silence and the like count by these times.
    pub fn set_detect(&mut self, detect: Detect) {
        self.detect = detect;
    }

    /// To be called several times a second: notices when it was not.
    pub fn tick(&mut self, now: Instant) {
        let stood_still =
            self.ticked_at.is_none_or(|at| now.saturating_duration_since(at) >= Self::STANDSTILL);
        if stood_still {
            self.watching_since = Some(now);
        }
        self.ticked_at = Some(now);
    }

    /// Who is taken for the primary. What a node said before it became one does not speak against it.
    pub fn expect_primary(&mut self, primary: Option<&NodeName>) {
        if self.primary.as_ref() == primary {
            return;
        }
        self.primary = primary.cloned();
        for track in &mut self.tracks {
            track.standby_answers = 0;
        }
    }

    pub fn observe(&mut self, now: Instant, name: &NodeName, result: ProbeResult) {
        let (detect, watching_since) = (self.detect, self.watching_since);
        let Some(track) = self.tracks.iter_mut().find(|t| t.node.name == *name) else { return };
        match result {
            ProbeResult::Answered(facts) => track.answered(now, facts, detect, watching_since),
            failed => track.failed(now, failed),
        }
        if !track.is_silent() {
            track.knock = None;
        }
    }

    /// Beside the probe, while that has no answer.
    pub fn knocked(&mut self, now: Instant, name: &NodeName, knock: Knock) {
        let Some(track) = self.tracks.iter_mut().find(|t| t.node.name == *name) else { return };
        let took = matches!(track.knock, Some((Knock::Accepted, _)));
        if track.is_silent() && !(took && knock == Knock::NoAnswer) {
            track.knock = Some((knock, now));
        }
    }

    /// A heartbeat has failed there for want of space.
    pub fn disk_was_full(&mut self, now: Instant, name: &NodeName) {
        if let Some(track) = self.tracks.iter_mut().find(|t| t.node.name == *name) {
            track.disk_full_at = Some(now);
        }
    }

    /// The last answer of a node; kept while it is down.
    pub fn facts(&self, name: &NodeName) -> Option<&Facts> {
        self.track(name)?.facts.as_ref()
    }

    /// How fast a standby replays, as far as that was seen.
    pub fn replay_speed(&self, name: &NodeName) -> Option<ReplaySpeed> {
        self.track(name)?.replay.speed()
    }

    /// True while the last probe was refused: no process listens there.
    pub fn is_refused(&self, name: &NodeName) -> bool {
        self.track(name).and_then(|t| t.failure.as_ref()).is_some_and(|f| f.result == ProbeResult::Refused)
    }

    pub fn health(&self, now: Instant) -> Health {
        let blind = self.is_blind(now);
        let node = |track: &Track| NodeHealth {
            name: track.node.name.clone(),
            address: track.node.address.clone(),
            state: if blind && track.is_silent() { NodeState::Unknown } else { self.state(track, now) },
            role: track.facts.as_ref().map(|f| f.role),
            timeline: track.facts.as_ref().map(|f| f.timeline),
            system: track.facts.as_ref().map(|f| f.system),
            position: track.facts.as_ref().map_or(Lsn::INVALID, |f| f.position),
            server_version: track.facts.as_ref().map(|f| f.server_version.clone()),
            seen_at: track.answered_at,
        };
        Health { nodes: self.tracks.iter().map(node).collect(), diagnosis: None }
    }

    /// Of the primary, as seen here: `wal` and `proxy` are this instance's own. `None`: none is expected, or it has not
    /// been seen yet.
    pub fn symptoms(
        &self,
        now: Instant,
        wal: &WalStatus,
        proxy: &ProxyStatus,
        told: Told,
    ) -> Option<Symptoms> {
        let track = self.primary.as_ref().and_then(|name| self.track(name))?;
        let name = &track.node.name;
        let patience = self.patience(track, now);
        let ago = |at: Instant| now.saturating_duration_since(at);
        let clients = proxy.evidence.iter().find(|e| e.node == *name).and_then(|e| e.answered_at);
        // Of what came later nobody knows yet.
        let lost_at = track.failure.as_ref().map_or(now, |failing| failing.since);
        let disk_full_at =
            track.disk_full_at.filter(|at| lost_at.saturating_duration_since(*at) < Self::DISK_FULL);
        let others = self.tracks.iter().filter(|t| t.node.name != *name && self.hears(t, now));
        Some(Symptoms {
            node: name.to_string(),
            probe: self.asked(track, now)?,
            knock: track.knock.map(|(knock, at)| (knock, ago(at))),
            stream: Stream::of(&wal.upstream, name, now, patience),
            clients: clients.map(ago).filter(|ago| *ago < patience),
            disk_full: disk_full_at.map(ago),
            nodes: others.map(|t| t.node.name.to_string()).collect(),
            told,
        })
    }

    fn asked(&self, track: &Track, now: Instant) -> Option<Asked> {
        let Some(failing) = &track.failure else {
            let facts = track.facts.as_ref()?;
            let hangs = facts.stalled_since.map(|since| now.saturating_duration_since(since));
            // Every commit takes its time.
            let hangs = hangs.filter(|lasting| *lasting >= self.detect.interval);
            return Some(match (facts.role, hangs, track.late) {
                (Role::Standby, ..) => Asked::InRecovery,
                (Role::Primary, Some(lasting), _) => Asked::CommitHangs(lasting),
                (Role::Primary, None, Some(late)) => Asked::AnswersLate(late),
                (Role::Primary, None, None) => Asked::Answers,
            });
        };
        let lasting = now.saturating_duration_since(failing.kind_since);
        Some(match &failing.result {
            ProbeResult::Answered(_) => Asked::Answers,
            ProbeResult::Refused => Asked::Refused(lasting),
            ProbeResult::Rejected { code, message } => {
                Asked::Rejected { code: *code, message: message.clone(), lasting }
            }
            ProbeResult::Timeout | ProbeResult::Broken { .. } => {
                let silence = self.muteness(track, now);
                if silence < self.patience(track, now) { Asked::Hesitates } else { Asked::Silent(silence) }
            }
        })
    }

    pub fn verdict(&self, now: Instant, wal: &WalStatus, proxy: &ProxyStatus) -> PrimaryVerdict {
        let Some(track) = self.primary.as_ref().and_then(|name| self.track(name)) else {
            return PrimaryVerdict::Unknown;
        };
        let name = &track.node.name;
        let stream = Stream::of(&wal.upstream, name, now, self.patience(track, now));
        let clients = proxy.evidence.iter().find(|e| e.node == *name);
        match &track.failure {
            None => self.verdict_of_answers(track, now),
            Some(failing) => match &failing.result {
                ProbeResult::Answered(_) => PrimaryVerdict::Alive,
                ProbeResult::Refused => self.verdict_of_refusal(failing, &stream, now),
                ProbeResult::Rejected { message, .. } if failing.result.is_not_now() => {
                    self.verdict_of_restart(track, message, now)
                }
                ProbeResult::Rejected { code, message } => {
                    PrimaryVerdict::Suspect { why: format!("the probe was rejected: {message} ({code})") }
                }
                ProbeResult::Timeout | ProbeResult::Broken { .. } => {
                    self.verdict_of_silence(track, &stream, clients, now)
                }
            },
        }
    }

    fn verdict_of_answers(&self, track: &Track, now: Instant) -> PrimaryVerdict {
        let Some(facts) = &track.facts else { return PrimaryVerdict::Unknown };
        if facts.role == Role::Standby {
            return if track.standby_answers >= 2 {
                PrimaryVerdict::Dead { cause: Cause::Demoted }
            } else {
                PrimaryVerdict::Suspect { why: "it answers as a standby".to_owned() }
            };
        }
        let Some(since) = facts.stalled_since else { return PrimaryVerdict::Alive };
        let stalled = now.saturating_duration_since(since);
        // Every commit takes its time.
        if stalled < self.detect.interval {
            return PrimaryVerdict::Alive;
        }
        if stalled < self.detect.stall_timeout {
            return PrimaryVerdict::Suspect {
                why: format!("a local commit has been hanging for {}", seconds(stalled)),
            };
        }
        PrimaryVerdict::Dead { cause: Cause::Stalled }
    }

    fn verdict_of_refusal(&self, failing: &Failing, stream: &Stream, now: Instant) -> PrimaryVerdict {
        let refused_for = now.saturating_duration_since(failing.kind_since);
        let refused = format!("the probe's connection was refused (for {})", seconds(refused_for));
        match stream {
            Stream::Ended(_) => PrimaryVerdict::Dead { cause: Cause::Gone },
            // A walsender that still talks has a postmaster: somebody took our address away, not the server.
            Stream::Talking => {
                PrimaryVerdict::Suspect { why: format!("{refused}, yet its WAL stream is alive") }
            }
            Stream::Silent(_) | Stream::None if refused_for >= self.detect.timeout => {
                PrimaryVerdict::Dead { cause: Cause::Gone }
            }
            Stream::Silent(_) | Stream::None => PrimaryVerdict::Suspect { why: refused },
        }
    }

    fn verdict_of_restart(&self, track: &Track, message: &str, now: Instant) -> PrimaryVerdict {
        if track.restarts.has_a_chance(now, self.detect.restart_timeout) {
            return PrimaryVerdict::Suspect { why: format!("it does not accept connections now: {message}") };
        }
        PrimaryVerdict::Dead { cause: Cause::Restarting }
    }

    fn verdict_of_silence(
        &self,
        track: &Track,
        stream: &Stream,
        clients: Option<&ClientEvidence>,
        now: Instant,
    ) -> PrimaryVerdict {
        if self.is_blind(now) {
            return PrimaryVerdict::Unknown;
        }
        let silent_for = self.muteness(track, now);
        let probe = format!("no answer to the probe for {}", seconds(silent_for));
        let client_heard = clients.and_then(|c| c.answered_at).map(|at| now.saturating_duration_since(at));
        let patience = self.patience(track, now);
        if silent_for < patience {
            return PrimaryVerdict::Suspect { why: probe };
        }
        if client_heard.is_some_and(|ago| ago < patience) {
            return PrimaryVerdict::Suspect { why: format!("{probe}, yet it answers clients") };
        }
        match stream {
            Stream::Talking => {
                PrimaryVerdict::Suspect { why: format!("{probe}, yet its WAL stream is alive") }
            }
            Stream::Silent(_) | Stream::Ended(_) | Stream::None => {
                PrimaryVerdict::Dead { cause: Cause::Silent }
            }
        }
    }

    fn state(&self, track: &Track, now: Instant) -> NodeState {
        match &track.failure {
            None if track.facts.is_none() => NodeState::Unknown,
            None => NodeState::Up,
            Some(failing) => {
                let down = |why: &str| NodeState::Down { since: failing.since, why: why.to_owned() };
                match &failing.result {
                    ProbeResult::Answered(_) => NodeState::Up,
                    ProbeResult::Refused => down("connection refused"),
                    ProbeResult::Rejected { message, .. } if failing.result.is_not_now() => down(message),
                    // Full, or it does not know us: it lives, and clients may well be served.
                    ProbeResult::Rejected { .. } if track.facts.is_some() => NodeState::Up,
                    ProbeResult::Rejected { message, .. } => down(message),
                    ProbeResult::Timeout | ProbeResult::Broken { .. }
                        if self.silence(track, now) < self.patience(track, now) =>
                    {
                        if track.facts.is_some() {
                            NodeState::Up
                        } else {
                            NodeState::Unknown
                        }
                    }
                    ProbeResult::Timeout => down("no answer"),
                    ProbeResult::Broken { why } => down(why),
                }
            }
        }
    }

    /// How long the node has not answered while we were there to hear it.
    fn silence(&self, track: &Track, now: Instant) -> Duration {
        let heard = track.answered_at.max(self.watching_since);
        heard.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// The same, where an error is an answer, too: a server that recovers from a crash says so, and is slow.
    fn muteness(&self, track: &Track, now: Instant) -> Duration {
        let spoke_at = track.failure.as_ref().and_then(|f| f.spoke_at);
        let mute = spoke_at.map(|at| now.saturating_duration_since(at));
        self.silence(track, now).min(mute.unwrap_or(Duration::MAX))
    }

    /// How long it may be silent.
    fn patience(&self, track: &Track, now: Instant) -> Duration {
        track.patience.with(self.detect.timeout, now)
    }

    /// Nobody is heard: the fault may well be ours. A refusal is an answer of the node's kernel.
    fn is_blind(&self, now: Instant) -> bool {
        !self.tracks.iter().any(|t| self.hears(t, now))
    }

    fn hears(&self, track: &Track, now: Instant) -> bool {
        match &track.failure {
            None => track.facts.is_some() && self.silence(track, now) < self.patience(track, now),
            Some(_) => !track.is_silent(),
        }
    }

    fn track(&self, name: &NodeName) -> Option<&Track> {
        self.tracks.iter().find(|t| t.node.name == *name)
    }
}

impl ProbeResult {
    /// Starting up, shutting down, recovering from a crash.
    fn is_not_now(&self) -> bool {
        matches!(self, ProbeResult::Rejected { code, .. } if *code == SqlState::CANNOT_CONNECT_NOW)
    }

    fn is_like(&self, other: &ProbeResult) -> bool {
        let kind = |result: &ProbeResult| (std::mem::discriminant(result), result.is_not_now());
        kind(self) == kind(other)
    }
}

impl Track {
    fn answered(&mut self, now: Instant, facts: Facts, detect: Detect, watching_since: Option<Instant>) {
        // Who was started meanwhile was not slow to answer, but away.
        let lived = self.facts.as_ref().is_some_and(|before| before.started_at == facts.started_at);
        let heard = self.answered_at.filter(|at| lived && Some(*at) >= watching_since);
        let silence = heard.map(|before| now.saturating_duration_since(before));
        if let Some(silence) = silence {
            self.patience.answered(now, silence, detect.timeout);
        }
        self.late = silence.filter(|silence| *silence > detect.interval * 2);
        self.restarts.answered(now, lived || self.facts.is_none(), detect.restart_timeout);
        if !lived || facts.role == Role::Primary {
            self.replay.interrupted();
        }
        match facts.role {
            Role::Standby => {
                self.replay.told(now, facts.position, facts.received);
                self.standby_answers = self.standby_answers.saturating_add(1);
            }
            Role::Primary => self.standby_answers = 0,
        }
        self.facts = Some(facts);
        self.answered_at = Some(now);
        self.failure = None;
    }

    fn failed(&mut self, now: Instant, result: ProbeResult) {
        let (since, kind_since) = match &self.failure {
            None => (now, now),
            Some(f) if f.result.is_like(&result) => (f.since, f.kind_since),
            Some(f) => (f.since, now),
        };
        let spoke = matches!(result, ProbeResult::Rejected { .. }).then_some(now);
        let spoke_at = spoke.or(self.failure.as_ref().and_then(|f| f.spoke_at));
        match result {
            ProbeResult::Refused => self.restarts.gone(),
            _ if result.is_not_now() => self.restarts.begun(now),
            _ => {}
        }
        self.failure = Some(Failing { since, result, kind_since, spoke_at });
    }

    fn is_silent(&self) -> bool {
        matches!(&self.failure, Some(f) if matches!(f.result, ProbeResult::Timeout | ProbeResult::Broken { .. }))
    }
}

#[cfg(test)]
mod tests;
