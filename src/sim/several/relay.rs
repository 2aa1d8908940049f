//! The relay of one instance, by what is on its disk and what it tells whom: the promise of a term, the floor, one
//! stream, completion from another relay, followers up to what is agreed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::log::{End, Log, Offer, len, lsn};
use super::planted::Plant;
use super::server::{SYSTEM, ToServer, node_name};
use super::stage::{ANY_LIFE, Event, InstanceId, Life, NodeId, Stage, ToInstance};
use crate::pg::{Lsn, TimelineId};
use crate::relay::parts::Standing;
use crate::topology::{
    Agreed, Directive, Durability, Floor, Follower, FollowerState, Hearing, Lag, NodeName, Refusal,
    StreamEnd, Term, Upstream, WalStatus,
};

const PULL: Duration = Duration::from_millis(20);
/// Silence of this length ends a stream.
const SILENCE: Duration = Duration::from_secs(3);
/// A follower that has not asked for so long has gone.
const GONE: Duration = Duration::from_millis(1500);

#[derive(Clone, Debug)]
pub(super) enum ToRelay {
    Written {
        what: Writing,
    },
    Pull {
        stream: u64,
    },
    /// For what comes behind `from`. `starts`: of the server; a relay has none.
    Offered {
        stream: u64,
        starts: Option<u64>,
        from: End,
        offer: Offer,
        end: End,
    },
    NotServed {
        stream: u64,
    },
    PeerPulls {
        by: (InstanceId, Life),
        stream: u64,
        timeline: TimelineId,
        end: End,
    },
    Synced {
        branch: u64,
        len: usize,
    },
    /// On disk.
    Shown(Term),
    Followed {
        by: NodeId,
        starts: u64,
        end: End,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Writing {
    Promise(Term),
    Floor(Term, Floor),
}

/// What survives.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) promised: Term,
    standing: Standing,
    pub(super) log: Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Nobody,
    Primary(NodeId),
    /// Until the floor of a term is reached.
    Peer(InstanceId, TimelineId),
}

#[derive(Debug)]
pub(super) struct Relay {
    id: InstanceId,
    life: Life,
    pub(super) disk: Disk,
    received: Log,
    /// Counts the cuts: what was to be synced before one is gone.
    branch: u64,
    stream: u64,
    source: Source,
    starts: Option<u64>,
    /// Of the directive under which the stream was begun.
    term: Term,
    /// The timeline whose history goes on for certain.
    verified: Option<TimelineId>,
    promised_end: Promised,
    is_writing: bool,
    /// Up to here the source has what was received.
    shown: usize,
    upstream: Upstream,
    upstream_end: Lsn,
    heard_at: Duration,
    followers: BTreeMap<NodeId, (Follower, Duration)>,
    /// Up to where followers got WAL.
    pub(super) shipped: usize,
    /// The disk takes so long, and nothing is on it before.
    pub(super) slow: Duration,
    pub(super) stalled_until: Duration,
    pub(super) is_diverged: bool,
}

/// As in `relay::receiver`: what of the log may not be left behind.
#[derive(Clone, Copy, Debug)]
enum Promised {
    Nothing,
    Everything,
    UpTo(TimelineId, usize),
}

impl Relay {
    pub(super) fn new(stage: &Stage, id: InstanceId, life: Life, mut disk: Disk) -> Relay {
        if stage.plant == Some(Plant::ForgetPromise) {
            disk.promised = Term(0);
        }
        Relay {
            id,
            life,
            received: disk.log.clone(),
            disk,
            branch: 0,
            stream: 0,
            source: Source::Nobody,
            starts: None,
            term: Term(0),
            verified: None,
            promised_end: Promised::Nothing,
            is_writing: false,
            shown: 0,
            upstream: Upstream::Idle,
            upstream_end: Lsn::INVALID,
            heard_at: Duration::ZERO,
            followers: BTreeMap::new(),
            shipped: 0,
            slow: Duration::ZERO,
            stalled_until: Duration::ZERO,
            is_diverged: false,
        }
    }

    pub(super) fn log_term(&self) -> Term {
        self.disk.standing.term((self.disk.log.timeline, self.disk.log.lsn()))
    }

    fn event(&self, what: ToRelay) -> Event {
        Event::Instance { of: self.id, life: self.life, what: ToInstance::Relay(what) }
    }

    /// How long the disk takes now.
    fn write(&self, stage: &mut Stage) -> Duration {
        let most = self.slow.max(Duration::from_millis(4)).as_micros() as u64;
        self.stalled_until.saturating_sub(stage.now) + stage.rng.micros(300, most)
    }

    // Orders.

    pub(super) fn obey(&mut self, stage: &mut Stage, directive: &Directive, nodes: &[NodeName]) {
        if self.is_writing {
            return;
        }
        if directive.term > self.disk.promised {
            if stage.plant != Some(Plant::KeepOldStream) {
                self.close();
            }
            return self.begin_to_write(stage, Writing::Promise(directive.term));
        }
        if directive.term < self.disk.promised {
            return self.close();
        }
        let floor = directive.floor.as_ref();
        if let Some(floor) = floor {
            self.leave_branch(stage, directive.term, floor);
        }
        if let Some(floor) = floor.filter(|floor| !self.disk.standing.has(directive.term, floor)) {
            return self.begin_to_write(stage, Writing::Floor(directive.term, floor.clone()));
        }
        let source = self.source_of(directive, nodes);
        self.verified = match (source, floor) {
            (Source::Primary(_), Some(_)) => directive.timeline,
            (Source::Peer(_, timeline), _) => Some(timeline),
            (Source::Primary(_) | Source::Nobody, _) => None,
        };
        if source == Source::Nobody && stage.plant == Some(Plant::KeepOldStream) {
            return;
        }
        if source != self.source || directive.term != self.term {
            self.close();
            self.open(stage, source, directive);
        }
    }

    fn source_of(&self, directive: &Directive, nodes: &[NodeName]) -> Source {
        if let Some(upstream) = &directive.upstream {
            return nodes.iter().position(|name| name == upstream).map_or(Source::Nobody, Source::Primary);
        }
        let Some(Floor { timeline, source: Some(source), .. }) = &directive.floor else {
            return Source::Nobody;
        };
        let peer = source.trim_start_matches("bw").parse::<usize>().expect("a name of ours") - 1;
        let lacks = self.log_term() < directive.term;
        if lacks && peer != self.id { Source::Peer(peer, *timeline) } else { Source::Nobody }
    }

    fn begin_to_write(&mut self, stage: &mut Stage, what: Writing) {
        self.is_writing = true;
        let delay = self.write(stage);
        stage.after(delay, self.event(ToRelay::Written { what }));
    }

    fn close(&mut self) {
        self.stream += 1;
        (self.source, self.starts) = (Source::Nobody, None);
        self.upstream = Upstream::Idle;
    }

    fn open(&mut self, stage: &mut Stage, source: Source, directive: &Directive) {
        (self.source, self.term, self.heard_at) = (source, directive.term, stage.now);
        self.shown = 0;
        self.promised_end = match (directive.durability, &directive.floor) {
            (Durability::Async, _) => Promised::Nothing,
            (Durability::Quorum, None) => Promised::Everything,
            (Durability::Quorum, Some(floor)) => Promised::UpTo(floor.timeline, len(floor.end)),
        };
        if let Source::Primary(node) = source {
            self.upstream = Upstream::Connecting {
                node: node_name(node),
                since: stage.instant(self.id),
                last_error: None,
            };
        }
        if source != Source::Nobody {
            let stream = self.stream;
            stage.after(Duration::from_millis(1), self.event(ToRelay::Pull { stream }));
        }
    }

    pub(super) fn handle(&mut self, stage: &mut Stage, what: ToRelay, agreed: Agreed) {
        match what {
            ToRelay::Written { what } => self.written(stage, what),
            ToRelay::Pull { stream } if stream == self.stream => self.pull(stage),
            // Questions that waited together have the same answer.
            ToRelay::Offered { stream, starts, from, offer, end }
                if stream == self.stream && from == self.received.end() =>
            {
                self.offered(stage, starts, offer, end);
            }
            ToRelay::NotServed { stream } if stream == self.stream => {
                self.starts = None;
                self.ended(stage, StreamEnd::Lost { why: "connection refused".to_owned() });
            }
            ToRelay::PeerPulls { by: (of, life), stream, timeline, end } => {
                let is_it = self.disk.log.timeline == timeline;
                let foreign = || Offer::Foreign(self.disk.log.clone_head());
                let offer = if is_it { self.disk.log.offer(end) } else { foreign() };
                let what =
                    ToRelay::Offered { stream, starts: None, from: end, offer, end: self.disk.log.end() };
                stage.send(self.id, of, Event::Instance { of, life, what: ToInstance::Relay(what) });
            }
            ToRelay::Synced { branch, len } if branch == self.branch => self.synced(stage, len),
            ToRelay::Shown(term) => {
                self.disk.standing = self.disk.standing.shown(term);
                self.is_writing = false;
            }
            ToRelay::Followed { by, starts, end } => self.followed(stage, by, starts, end),
            ToRelay::Pull { .. }
            | ToRelay::Offered { .. }
            | ToRelay::NotServed { .. }
            | ToRelay::Synced { .. } => {}
        }
        self.ship(stage, agreed);
    }

    fn written(&mut self, stage: &mut Stage, what: Writing) {
        self.is_writing = false;
        match what {
            // Behind everything that the old stream had brought.
            Writing::Promise(term) => {
                self.disk.log = self.received.clone();
                self.disk.promised = term;
                stage.note(|| format!("relay {} promises {term}, {:?}", self.id + 1, self.disk.log.end()));
            }
            Writing::Floor(term, floor) => {
                let end = (self.disk.log.timeline, self.disk.log.lsn());
                self.disk.standing = self.disk.standing.with(term, &floor, end);
            }
        }
    }

    // The stream.

    fn pull(&mut self, stage: &mut Stage) {
        let stream = self.stream;
        let pause = PULL + stage.rng.micros(0, 5000);
        stage.after(pause, self.event(ToRelay::Pull { stream }));
        if stage.now > self.heard_at + SILENCE {
            self.heard_at = stage.now;
            self.starts = None;
            self.ended(stage, StreamEnd::Lost { why: "silence".to_owned() });
        }
        let (by, end) = ((self.id, self.life), self.received.end());
        match self.source {
            Source::Primary(of) => {
                let what = ToServer::Pull { by, stream, term: self.term, end };
                stage.send(self.id, of, Event::Node { of, what });
            }
            Source::Peer(of, timeline) => {
                let what = ToInstance::Relay(ToRelay::PeerPulls { by, stream, timeline, end });
                stage.send(self.id, of, Event::Instance { of, life: ANY_LIFE, what });
            }
            Source::Nobody => {}
        }
    }

    fn ended(&mut self, stage: &Stage, how: StreamEnd) {
        let Source::Primary(node) = self.source else { return };
        if !matches!(self.upstream, Upstream::Ended { .. }) {
            self.upstream = Upstream::Ended { node: node_name(node), at: stage.instant(self.id), how };
        }
    }

    fn offered(&mut self, stage: &mut Stage, starts: Option<u64>, offer: Offer, end: End) {
        self.heard_at = stage.now;
        self.starts = starts;
        match offer {
            Offer::More(more) => {
                self.streams(stage, end);
                if !more.entries.is_empty() || more.timeline != self.received.timeline {
                    self.take(stage, more);
                }
                self.shown = self.received.len();
                self.acknowledge(stage);
            }
            Offer::Forked { next, at } => self.forked(stage, next, at),
            Offer::Foreign(theirs) => self.foreign(stage, &theirs),
            Offer::Ahead(theirs) if self.received.has(theirs) => {
                self.shown = theirs.len;
                if self.disk.standing.is_in_doubt() {
                    return self.look_at_doubt(stage);
                }
                self.refused(stage, Refusal::Other);
            }
            Offer::Ahead(_) | Offer::Diverged => {
                self.is_diverged = true;
                let Log { timeline, .. } = self.received;
                self.refused(stage, Refusal::Diverged { timeline, lsn: self.received.lsn() });
            }
        }
    }

    fn streams(&mut self, stage: &Stage, end: End) {
        let Source::Primary(node) = self.source else { return };
        let now = stage.instant(self.id);
        self.upstream_end = lsn(end.len);
        let since = match &self.upstream {
            Upstream::Streaming { since, .. } => *since,
            _ => now,
        };
        self.upstream = Upstream::Streaming { node: node_name(node), since, last_message: now };
    }

    fn take(&mut self, stage: &mut Stage, more: Log) {
        stage.checks.taken(self.id, self.term, self.disk.promised);
        let is_empty = self.received.timeline.0 == 0;
        if more.entries.is_empty() || is_empty {
            // A timeline begins where the log ends: a change of its own, on disk at once.
            let at_end = self.disk.log.len() == self.received.len();
            (self.received.timeline, self.received.forks) = (more.timeline, more.forks.clone());
            if at_end {
                (self.disk.log.timeline, self.disk.log.forks) = (more.timeline, more.forks.clone());
            }
        }
        self.received.take(more);
        let delay = self.write(stage);
        let (branch, len) = (self.branch, self.received.len());
        stage.after(delay, self.event(ToRelay::Synced { branch, len }));
    }

    fn refused(&mut self, stage: &mut Stage, cause: Refusal) {
        let id = self.id + 1;
        if !matches!(self.upstream, Upstream::Ended { .. }) {
            stage.note(|| format!("relay {id} is refused: {cause:?}, {:?}", self.received.end()));
        }
        self.ended(stage, StreamEnd::Refused { why: "refused".to_owned(), cause });
    }

    /// What lies behind the fork is left behind, as far as it was promised to nobody.
    fn forked(&mut self, stage: &mut Stage, next: TimelineId, at: usize) {
        let promised = match self.promised_end {
            Promised::Everything => self.received.len(),
            Promised::UpTo(timeline, end) if timeline == self.received.timeline => {
                end.min(self.received.len())
            }
            Promised::UpTo(..) | Promised::Nothing => 0,
        };
        if promised > at {
            return self.refused(stage, Refusal::Other);
        }
        stage.note(|| format!("relay {} leaves behind {:?} from {at} on", self.id + 1, self.received.end()));
        if self.shipped > at && !matches!(self.promised_end, Promised::Nothing) {
            stage.checks.shipped_beyond(self.id, self.shipped, at);
        }
        self.branch += 1;
        self.received.follow(next, at);
        self.disk.log = self.received.clone();
    }

    // As in `relay::steer::branch`.

    fn leave_branch(&mut self, stage: &mut Stage, term: Term, floor: &Floor) {
        let own = format!("bw{}", self.id + 1);
        let is_anothers = floor.source.as_ref().is_some_and(|source| *source != own);
        if !is_anothers || self.has_counted_in(stage, term) || self.disk.log.timeline <= floor.timeline {
            return;
        }
        let common = self.disk.log.forks.iter().rev().find(|(of, _)| *of <= floor.timeline).copied();
        if let Some(fork) = common {
            self.go_back(stage, fork);
        }
    }

    fn foreign(&mut self, stage: &mut Stage, theirs: &Log) {
        let is_verified = self.verified == Some(theirs.timeline) && !self.has_counted_in(stage, self.term);
        let fork = self.received.branched_off(theirs).filter(|(of, _)| *of != self.received.timeline);
        match fork.filter(|_| is_verified) {
            Some(fork) => self.go_back(stage, fork),
            None => self.refused(stage, Refusal::Other),
        }
    }

    fn has_counted_in(&self, stage: &Stage, term: Term) -> bool {
        self.log_term() >= term && stage.plant != Some(Plant::LeaveWhatCounts)
    }

    fn go_back(&mut self, stage: &mut Stage, fork: (TimelineId, usize)) {
        stage.note(|| format!("relay {} goes back from {:?} to {fork:?}", self.id + 1, self.received.end()));
        if self.shipped > fork.1 && !matches!(self.promised_end, Promised::Nothing) {
            stage.checks.shipped_beyond(self.id, self.shipped, fork.1);
        }
        self.branch += 1;
        self.received.rewind(fork);
        self.disk.log = self.received.clone();
        self.shipped = self.shipped.min(fork.1);
    }

    fn synced(&mut self, stage: &mut Stage, len: usize) {
        if len > self.disk.log.len() || self.disk.log.timeline != self.received.timeline {
            self.disk.log = self.received.up_to(len.min(self.received.len()));
            if len >= self.received.len() {
                self.disk.log.timeline = self.received.timeline;
                self.disk.log.forks.clone_from(&self.received.forks);
            }
        }
        self.acknowledge(stage);
    }

    fn acknowledge(&mut self, stage: &mut Stage) {
        if self.disk.standing.is_in_doubt() {
            return self.look_at_doubt(stage);
        }
        let (Source::Primary(of), Some(starts)) = (self.source, self.starts) else { return };
        let log = match stage.plant {
            Some(Plant::AcknowledgeBeforeSync) => &self.received,
            _ => &self.disk.log,
        };
        let what = ToServer::Acknowledge { starts, by: self.id, term: self.term, len: log.len() };
        stage.send(self.id, of, Event::Node { of, what });
    }

    /// As in `relay::receiver`.
    fn look_at_doubt(&mut self, stage: &mut Stage) {
        let log = &self.disk.log;
        let shown = lsn(self.shown.min(log.len()));
        let is_shown = self.shown > 0
            && self.received.timeline == log.timeline
            && self.disk.standing.is_shown(self.term, shown, (log.timeline, log.lsn()));
        if is_shown && !self.is_writing {
            self.is_writing = true;
            let delay = self.write(stage);
            stage.after(delay, self.event(ToRelay::Shown(self.term)));
        }
    }

    // Followers.

    /// Never goes back.
    fn ship(&mut self, stage: &Stage, agreed: Agreed) {
        let own = &self.disk.log;
        let limit = match agreed {
            _ if stage.plant == Some(Plant::ShipOwnDurable) => own.len(),
            Agreed::Alone => own.len(),
            Agreed::Quorum { end: None, .. } => 0,
            Agreed::Quorum { term, .. } if !self.disk.standing.is_in_history(term) => 0,
            Agreed::Quorum { end: Some((timeline, end)), .. } if timeline == own.timeline => {
                own.len().min(len(end))
            }
            // What this log and what is agreed have in common; of a later timeline only where it begins is known, or not.
            Agreed::Quorum { end: Some((timeline, end)), .. } => {
                own.fork_of(timeline).map_or(0, |at| at.min(len(end)))
            }
        };
        self.shipped = self.shipped.max(limit);
    }

    fn followed(&mut self, stage: &mut Stage, by: NodeId, starts: u64, end: End) {
        let offer = self.disk.log.offer_up_to(self.shipped, end);
        let state =
            if matches!(offer, Offer::More(_)) { FollowerState::Streaming } else { FollowerState::Startup };
        let position = lsn(end.len);
        let follower = Follower {
            application_name: node_name(by).to_string(),
            pid: 1,
            timeline: end.timeline,
            state,
            sent: position,
            write: position,
            flush: position,
            replay: position,
            lag: Lag::default(),
            reported_at: stage.instant(self.id),
            hearing: Hearing::ByStream,
        };
        self.followers.insert(by, (follower, stage.now));
        let what = ToServer::Offered { starts, by: self.id, from: end, offer, known: self.disk.log.timeline };
        stage.send(self.id, by, Event::Node { of: by, what });
    }

    /// What became of a commit; `None`: not known yet.
    pub(super) fn outcome(&self, stage: &Stage, token: u64, timeline: TimelineId) -> Option<bool> {
        let agreed = &self.disk.log.entries[..self.shipped.min(self.disk.log.len())];
        if agreed.contains(&token) {
            return Some(true);
        }
        let is_over = self.disk.log.fork_of(timeline).is_some();
        let is_lost = match stage.plant {
            Some(Plant::LackingIsLost) => true,
            _ => is_over && !self.disk.log.entries.contains(&token),
        };
        is_lost.then_some(false)
    }

    /// The log begins anew, as a person has ordered.
    pub(super) fn reset(&mut self) {
        self.close();
        self.branch += 1;
        self.disk = Disk { promised: self.disk.promised, ..Disk::default() };
        self.received = Log::default();
        (self.shipped, self.is_diverged, self.term) = (0, false, Term(0));
    }

    pub(super) fn status(&mut self, stage: &Stage) -> Arc<WalStatus> {
        self.followers.retain(|_, (_, heard)| stage.now < *heard + GONE);
        let log = &self.disk.log;
        Arc::new(WalStatus {
            promised: self.disk.promised,
            log_term: self.log_term(),
            system: (log.timeline.0 > 0).then_some(SYSTEM),
            timeline: log.timeline,
            received: self.received.lsn(),
            durable: log.lsn(),
            verified: log.lsn(),
            upstream_end: self.upstream_end,
            upstream: self.upstream.clone(),
            oldest: lsn(0),
            followers: self.followers.values().map(|(follower, _)| follower.clone()).collect(),
            ..WalStatus::starting()
        })
    }
}
