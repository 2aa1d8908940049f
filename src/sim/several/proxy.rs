//! The query plane of one instance, and its clients: sessions that read and write at the primary, as far as the directive
//! that it is told lets them, and what is said of a commit whose server was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::log::End;
use super::relay::Relay;
use super::server::{Statement, ToServer, node_name};
use super::stage::{Event, InstanceId, Life, NodeId, Stage, ToInstance};
use crate::pg::TimelineId;
use crate::topology::{ClientEvidence, Directive, Drained, NodeName, ProxyStatus, Term};

/// A connection that is gone is noticed.
const PING: Duration = Duration::from_millis(300);
/// So long a client waits for the outcome of its commit.
const RESOLVE: Duration = Duration::from_secs(20);
/// And so long for anything else.
const CLIENT: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
pub(super) enum ToProxy {
    Begin,
    Commit {
        session: u64,
    },
    Ping {
        session: u64,
    },
    Replied {
        session: u64,
        reply: Reply,
    },
    /// A session that was to let go of its server has done so.
    Gone {
        session: u64,
    },
    Leaves {
        session: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    Read { starts: u64, timeline: TimelineId, seen: End },
    Committed { token: u64 },
    ReadOnly,
    Broken,
}

#[derive(Debug)]
struct Session {
    node: NodeId,
    term: Term,
    starts: Option<u64>,
    timeline: TimelineId,
    committing: Option<u64>,
    /// It sends nothing any more.
    is_cut: bool,
}

/// A commit in doubt.
#[derive(Debug)]
struct Doubt {
    token: u64,
    timeline: TimelineId,
    until: Duration,
}

#[derive(Debug)]
pub(super) struct Proxy {
    id: InstanceId,
    life: Life,
    directive: Arc<Directive>,
    sessions: BTreeMap<u64, Session>,
    doubts: Vec<Doubt>,
    pub(super) status: Arc<ProxyStatus>,
    answered: BTreeMap<NodeId, Instant>,
}

impl Proxy {
    pub(super) fn new(id: InstanceId, life: Life, directive: Arc<Directive>) -> Proxy {
        Proxy {
            id,
            life,
            directive,
            sessions: BTreeMap::new(),
            doubts: Vec::new(),
            status: Arc::default(),
            answered: BTreeMap::new(),
        }
    }

    fn timer(&self, stage: &mut Stage, delay: Duration, what: ToProxy) {
        let event = Event::Instance { of: self.id, life: self.life, what: ToInstance::Proxy(what) };
        stage.timer(self.id, delay, event);
    }

    fn execute(&self, stage: &mut Stage, session: u64, what: Statement) {
        let Some(Session { node, starts, term, .. }) = self.sessions.get(&session) else { return };
        if !matches!(what, Statement::Ping) {
            stage.checks.served(*term, *node);
        }
        let what = ToServer::Execute { by: (self.id, self.life), session, starts: *starts, what };
        stage.send(self.id, *node, Event::Node { of: *node, what });
    }

    /// What it is told, vouched for or not.
    pub(super) fn obey(&mut self, stage: &mut Stage, directive: Arc<Directive>) {
        self.directive = directive;
        let (term, primary) = (self.directive.term, self.directive.primary.clone());
        let former: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| !s.is_cut && (s.term < term || Some(node_name(s.node)) != primary))
            .map(|(number, _)| *number)
            .collect();
        for session in former {
            self.sessions.get_mut(&session).expect("of the sessions").is_cut = true;
            let clings = stage.rng.percent(2);
            let delay = if clings { stage.rng.millis(500, 4000) } else { stage.rng.millis(0, 30) };
            self.timer(stage, delay, ToProxy::Gone { session });
        }
        self.tell(stage);
    }

    /// What the control plane is told.
    fn tell(&mut self, stage: &Stage) {
        let Directive { term, primary, candidate, drains, .. } = &*self.directive;
        let sessions = || self.sessions.values();
        let is_former = |s: &Session| s.term < *term || Some(&node_name(s.node)) != primary.as_ref();
        let confirmed =
            if sessions().any(is_former) { self.status.confirmed } else { self.status.confirmed.max(*term) };
        let uses = |node: &NodeName| sessions().any(|s| node_name(s.node) == *node && s.term < *term);
        let evidence = |(node, at): (&NodeId, &Instant)| ClientEvidence {
            node: node_name(*node),
            answered_at: Some(*at),
            refused_at: None,
            broken_at: None,
        };
        self.status = Arc::new(ProxyStatus {
            confirmed,
            cleared: candidate.clone().filter(|candidate| !uses(&candidate.node)),
            drained: self.drained(*drains),
            evidence: self.answered.iter().map(evidence).collect(),
            ..ProxyStatus::default()
        });
        let _ = stage;
    }

    fn drained(&self, round: u64) -> Option<Drained> {
        let nodes = self.directive.coming_to_rest();
        let busy = self.sessions.values().filter(|s| nodes.contains(&&node_name(s.node))).count();
        (!nodes.is_empty()).then(|| Drained { round, busy, pinned: BTreeMap::new() })
    }

    pub(super) fn handle(&mut self, stage: &mut Stage, what: ToProxy) {
        match what {
            ToProxy::Begin => self.begin(stage),
            ToProxy::Commit { session } => self.commit(stage, session),
            ToProxy::Ping { session } => {
                if self.sessions.contains_key(&session) {
                    self.execute(stage, session, Statement::Ping);
                    self.timer(stage, PING, ToProxy::Ping { session });
                }
                return;
            }
            ToProxy::Replied { session, reply } => self.replied(stage, session, reply),
            ToProxy::Gone { session } => self.ended(stage, session),
            // The client has gone, whatever becomes of its commit.
            ToProxy::Leaves { session } => drop(self.sessions.remove(&session)),
        }
        self.tell(stage);
    }

    fn begin(&mut self, stage: &mut Stage) {
        let Some(primary) = self.directive.writable() else { return };
        let node = primary.as_str().trim_start_matches("pg").parse::<usize>().expect("a name of ours") - 1;
        let session = stage.next_id();
        let (term, timeline) = (self.directive.term, TimelineId(0));
        let new = Session { node, term, starts: None, timeline, committing: None, is_cut: false };
        self.sessions.insert(session, new);
        self.execute(stage, session, Statement::Read);
        let is_long = stage.rng.percent(5);
        let thinks = if is_long { stage.rng.millis(500, 4000) } else { stage.rng.millis(5, 120) };
        self.timer(stage, thinks, ToProxy::Commit { session });
        self.timer(stage, PING, ToProxy::Ping { session });
        self.timer(stage, CLIENT, ToProxy::Leaves { session });
    }

    fn commit(&mut self, stage: &mut Stage, session: u64) {
        let token = stage.next_id();
        let Some(open) = self.sessions.get_mut(&session) else { return };
        // Without an answer to its first statement it says nothing more.
        if open.is_cut || open.starts.is_none() {
            return;
        }
        open.committing = Some(token);
        self.execute(stage, session, Statement::Commit { token });
    }

    fn replied(&mut self, stage: &mut Stage, session: u64, reply: Reply) {
        let Some(open) = self.sessions.get_mut(&session) else { return };
        self.answered.insert(open.node, stage.instant(self.id));
        match reply {
            Reply::Read { starts, timeline, seen } => {
                (open.starts, open.timeline) = (Some(starts), timeline);
                if !open.is_cut {
                    stage.checks.saw(open.node, starts, seen);
                }
            }
            Reply::Committed { token } => {
                stage.checks.acknowledged(token);
                self.sessions.remove(&session);
            }
            // For certain nothing was written.
            Reply::ReadOnly => drop(self.sessions.remove(&session)),
            Reply::Broken => self.ended(stage, session),
        }
    }

    fn ended(&mut self, stage: &Stage, session: u64) {
        let Some(Session { committing, timeline, .. }) = self.sessions.remove(&session) else { return };
        if let Some(token) = committing {
            self.doubts.push(Doubt { token, timeline, until: stage.now + RESOLVE });
        }
    }

    /// What the relay has found.
    pub(super) fn resolve(&mut self, stage: &mut Stage, relay: &Relay) {
        let doubts = std::mem::take(&mut self.doubts);
        for doubt in doubts {
            match relay.outcome(stage, doubt.token, doubt.timeline) {
                Some(true) => stage.checks.found(doubt.token),
                Some(false) => stage.checks.lost(doubt.token),
                None if stage.now < doubt.until => self.doubts.push(doubt),
                None => {}
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.directive.writable().is_some()
    }
}
