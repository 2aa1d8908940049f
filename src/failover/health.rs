//! What the evidence amounts to, node by node. PURE: `now` is an argument.
//!
//! Four sides testify: our probe, the relay's stream from the primary, client traffic, and (by answering
//! themselves) the other nodes. The rules, in the order of their strength:
//!
//! * **gone**: the probe is refused *and* the WAL stream has ended. Both are first-hand and neither is a matter
//!   of time, so this acts at once. Refused without a stream that could have ended counts after `timeout`.
//! * **in recovery**: the node says that it is a standby. Acts at the second answer.
//! * **restarting**: it answers 57P03 (starting up, shutting down, crash recovery) for `restart_timeout`.
//! * **silent**: no answer to the probe, no byte of WAL and no answer to a client, each for `timeout`, or longer where
//!   that node has been slow to answer of late ([`Patience`]), while another node does answer. A stream or a client
//!   that still hears the primary vouches for it.
//! * **stalled**: it answers queries, but a commit on its own disk has not finished for `stall_timeout`.
//!
//! Blind is not dead: when every node is silent at once, or when this process itself did not run for a while,
//! nothing is concluded. A server that refuses our password or has no connection left is alive.
//!
//! Not here: whom to promote (`decide`), and anything about replication lag (the relay knows it).

mod patience;

use std::time::{Duration, Instant};

use self::patience::Patience;
use crate::pg::{Lsn, SqlState, SystemIdentifier, TimelineId};
use crate::topology::{
    ClientEvidence, Health, Node, NodeHealth, NodeName, NodeState, ProxyStatus, Role, StreamEnd, Upstream,
    WalStatus,
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
    /// `pg_postmaster_start_time()` as text: only ever compared.
    pub started_at: String,
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
        evidence: Vec<String>,
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
    failure: Option<Failing>,
    /// Consecutive answers as a standby.
    standby_answers: u32,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    result: ProbeResult,
    /// Since when the failure has been of the present kind.
    kind_since: Instant,
}

impl Watch {
    /// A tick gap that shows that this process did not run.
    const STANDSTILL: Duration = Duration::from_secs(1);

    pub fn new(nodes: &[Node], detect: Detect) -> Watch {
        let track = |node: &Node| Track {
            node: node.clone(),
            facts: None,
            answered_at: None,
            patience: Patience::default(),
            failure: None,
            standby_answers: 0,
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
        let (timeout, watching_since) = (self.detect.timeout, self.watching_since);
        let Some(track) = self.tracks.iter_mut().find(|t| t.node.name == *name) else { return };
        match result {
            ProbeResult::Answered(facts) => {
                // Who was started meanwhile was not slow to answer, but away.
                let lived = track.facts.as_ref().is_some_and(|before| before.started_at == facts.started_at);
                let heard = track.answered_at.filter(|at| lived && Some(*at) >= watching_since);
                if let Some(before) = heard {
                    track.patience.answered(now, now.saturating_duration_since(before), timeout);
                }
                track.standby_answers = match facts.role {
                    Role::Standby => track.standby_answers.saturating_add(1),
                    Role::Primary => 0,
                };
                track.facts = Some(facts);
                track.answered_at = Some(now);
                track.failure = None;
            }
            failed => {
                let (since, kind_since) = match &track.failure {
                    None => (now, now),
                    Some(f) if std::mem::discriminant(&f.result) == std::mem::discriminant(&failed) => {
                        (f.since, f.kind_since)
                    }
                    Some(f) => (f.since, now),
                };
                track.failure = Some(Failing { since, result: failed, kind_since });
            }
        }
    }

    /// The last answer of a node; kept while it is down.
    pub fn facts(&self, name: &NodeName) -> Option<&Facts> {
        self.track(name)?.facts.as_ref()
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
            seen_at: track.answered_at,
        };
        Health { nodes: self.tracks.iter().map(node).collect() }
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
                ProbeResult::Rejected { code, message } if *code == SqlState::CANNOT_CONNECT_NOW => {
                    self.verdict_of_restart(failing, message, now)
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
                let evidence = vec![format!("{} answers that it is in recovery", track.node.name)];
                PrimaryVerdict::Dead { cause: Cause::Demoted, evidence }
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
        let evidence = vec![format!(
            "{} answers queries, but a commit on its own disk has been hanging for {}",
            track.node.name,
            seconds(stalled)
        )];
        PrimaryVerdict::Dead { cause: Cause::Stalled, evidence }
    }

    fn verdict_of_refusal(&self, failing: &Failing, stream: &Stream, now: Instant) -> PrimaryVerdict {
        let refused_for = now.saturating_duration_since(failing.kind_since);
        let refused = format!("the probe's connection was refused (for {})", seconds(refused_for));
        match stream {
            Stream::Ended(how) => PrimaryVerdict::Dead {
                cause: Cause::Gone,
                evidence: vec![refused, format!("the WAL stream ended: {how}")],
            },
            // A walsender that still talks has a postmaster: somebody took our address away, not the server.
            Stream::Talking => {
                PrimaryVerdict::Suspect { why: format!("{refused}, yet its WAL stream is alive") }
            }
            Stream::Silent(_) | Stream::None if refused_for >= self.detect.timeout => PrimaryVerdict::Dead {
                cause: Cause::Gone,
                evidence: vec![refused, "no WAL comes from it".to_owned()],
            },
            Stream::Silent(_) | Stream::None => PrimaryVerdict::Suspect { why: refused },
        }
    }

    fn verdict_of_restart(&self, failing: &Failing, message: &str, now: Instant) -> PrimaryVerdict {
        let lasting = now.saturating_duration_since(failing.kind_since);
        if lasting < self.detect.restart_timeout {
            return PrimaryVerdict::Suspect { why: format!("it does not accept connections now: {message}") };
        }
        let evidence = vec![format!("it has not accepted connections for {}: {message}", seconds(lasting))];
        PrimaryVerdict::Dead { cause: Cause::Restarting, evidence }
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
        let silent_for = self.silence(track, now);
        let probe = format!("no answer to the probe for {}", seconds(silent_for));
        let client_heard = clients.and_then(|c| c.answered_at).map(|at| now.saturating_duration_since(at));
        let patience = self.patience(track, now);
        if silent_for < patience {
            return PrimaryVerdict::Suspect { why: probe };
        }
        if client_heard.is_some_and(|ago| ago < patience) {
            return PrimaryVerdict::Suspect { why: format!("{probe}, yet it answers clients") };
        }
        let wal = match stream {
            Stream::Talking => {
                return PrimaryVerdict::Suspect { why: format!("{probe}, yet its WAL stream is alive") };
            }
            Stream::Silent(lasting) => format!("no byte of WAL for {}", seconds(*lasting)),
            Stream::Ended(how) => format!("the WAL stream ended: {how}"),
            Stream::None => "no WAL comes from it".to_owned(),
        };
        let others = self.tracks.iter().filter(|t| t.node.name != track.node.name && self.hears(t, now));
        let others = others.map(|t| t.node.name.as_str()).collect::<Vec<_>>().join(", ");
        PrimaryVerdict::Dead {
            cause: Cause::Silent,
            evidence: vec![probe, wal, format!("meanwhile {others} answered")],
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
                    ProbeResult::Rejected { code, message } if *code == SqlState::CANNOT_CONNECT_NOW => {
                        down(message)
                    }
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

impl Track {
    fn is_silent(&self) -> bool {
        matches!(&self.failure, Some(f) if matches!(f.result, ProbeResult::Timeout | ProbeResult::Broken { .. }))
    }
}

/// The relay's stream from one node, as evidence.
enum Stream {
    Talking,
    Silent(Duration),
    Ended(String),
    /// The relay was not told to stream from it, or has only begun to try.
    None,
}

impl Stream {
    fn of(upstream: &Upstream, name: &NodeName, now: Instant, timeout: Duration) -> Stream {
        match upstream {
            Upstream::Streaming { node, last_message, .. } if node == name => {
                let silent = now.saturating_duration_since(*last_message);
                if silent < timeout { Stream::Talking } else { Stream::Silent(silent) }
            }
            Upstream::Ended { node, how, .. } if node == name => Stream::Ended(describe(how)),
            Upstream::Connecting { node, last_error: Some(error), .. } if node == name => {
                Stream::Ended(error.clone())
            }
            _ => Stream::None,
        }
    }
}

fn describe(how: &StreamEnd) -> String {
    match how {
        StreamEnd::TimelineEnd { next, switchpoint } => format!("timeline {next} begins at {switchpoint}"),
        StreamEnd::Shutdown => "the server shut down".to_owned(),
        StreamEnd::Lost { why } | StreamEnd::Refused { why, .. } => why.clone(),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests;
