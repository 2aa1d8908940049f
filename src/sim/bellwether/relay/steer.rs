//! Whom the relay streams from: as `relay/steer` does.

use std::time::{Duration, Instant};

use super::Relay;
use super::write::{Then, Work};
use crate::relay::parts::Change;
use crate::sim::bellwether::{INSTANCE, node_id};
use crate::sim::planted::Plant;
use crate::sim::stage::{ConnId, Event, Side, Stage};
use crate::topology::{Directive, NodeName, StreamEnd, Term, Upstream, relay_application_name};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Whom the relay streams from, or tries to.
#[derive(Clone, Debug)]
pub(super) struct Following {
    pub(super) node: NodeName,
    pub(super) term: Term,
    pub(super) attempt: u64,
    pub(super) since: Instant,
    pub(super) began: Instant,
    pub(super) retry: Duration,
    pub(super) last_error: Option<String>,
    pub(super) conn: Option<ConnId>,
}

impl Relay {
    pub(in crate::sim) fn obey(&mut self, stage: &mut Stage, directive: &Directive) {
        self.directive = directive.clone();
        self.steer(stage);
    }

    pub(super) fn steer(&mut self, stage: &mut Stage) {
        if self.promising {
            return;
        }
        let promised = self.store.report().borrow().promised;
        if self.directive.term > promised {
            if stage.plant != Some(Plant::KeepOldStream) {
                self.leave(stage);
            }
            self.promising = true;
            let change = Change::Promise(self.directive.term);
            return self.order(stage, Work::Change { change, then: Then::Steer });
        }
        if let Some(floor) = self.directive.floor.clone().filter(|_| self.directive.term == promised)
            && !self.store.report().borrow().standing.has(promised, &floor)
        {
            self.promising = true;
            let change = Change::Floor { term: promised, floor };
            return self.order(stage, Work::Change { change, then: Then::Steer });
        }
        let wanted = self.directive.upstream.clone().filter(|_| self.directive.term == promised);
        let term = self.directive.term;
        let same = |f: &Following| Some(&f.node) == wanted.as_ref() && f.term == term;
        if self.following.as_ref().is_some_and(same) {
            return;
        }
        if stage.plant == Some(Plant::KeepOldStream) && self.receiver.is_some() {
            return;
        }
        self.leave(stage);
        let Some(node) = wanted else {
            self.upstream = Upstream::Idle;
            return;
        };
        self.attempts += 1;
        let now = stage.instant();
        self.following = Some(Following {
            node: node.clone(),
            term,
            attempt: self.attempts,
            since: now,
            began: now,
            retry: FIRST_RETRY,
            last_error: None,
            conn: None,
        });
        self.upstream = Upstream::Connecting { node, since: now, last_error: None };
        self.dial(stage);
    }

    /// As dropping the future of `follow` does.
    pub(super) fn leave(&mut self, stage: &mut Stage) {
        self.receiver = None;
        if let Some(conn) = self.following.take().and_then(|following| following.conn) {
            stage.close(conn, Side::Bellwether);
        }
    }

    pub(in crate::sim) fn redial(&mut self, stage: &mut Stage, attempt: u64) {
        if self.following.as_ref().is_some_and(|f| f.attempt == attempt) {
            self.dial(stage);
        }
    }

    pub(super) fn dial(&mut self, stage: &mut Stage) {
        let Some(following) = &self.following else { return };
        let (node, last_error) = (following.node.clone(), following.last_error.clone());
        let (attempt, since) = (following.attempt, following.since);
        if !matches!(self.upstream, Upstream::Ended { .. }) {
            self.upstream = Upstream::Connecting { node: node.clone(), since, last_error };
        }
        let node = node_id(&self.nodes, &node);
        let takes = if stage.isolated(node).is_some() { DIAL_LIMIT } else { stage.delay() * 3 };
        stage.after(takes, Event::Dialed { life: self.life, attempt, node });
    }

    /// The name under which the dialed connection is to be accepted, or `None` when nobody waits for it.
    pub(in crate::sim) fn dialed(&self, attempt: u64) -> Option<String> {
        let following = self.following.as_ref().filter(|f| f.attempt == attempt)?;
        Some(relay_application_name(INSTANCE, following.term))
    }

    pub(in crate::sim) fn not_reached(&mut self, stage: &mut Stage, why: &str) {
        let Some(following) = &mut self.following else { return };
        following.last_error = Some(why.to_owned());
        self.upstream = Upstream::Connecting {
            node: following.node.clone(),
            since: following.since,
            last_error: following.last_error.clone(),
        };
        self.retry_later(stage);
    }

    pub(super) fn retry_later(&mut self, stage: &mut Stage) {
        let Some(following) = &mut self.following else { return };
        let (life, attempt, retry) = (self.life, following.attempt, following.retry);
        following.retry = (following.retry * 2).min(LAST_RETRY);
        stage.after(retry, Event::Redial { life, attempt });
    }

    pub(in crate::sim) fn reached(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some(following) = &mut self.following else { return };
        following.conn = Some(conn);
        following.began = stage.instant();
        // What an earlier stream left in the queue is stored before the new one looks at the end.
        let parameters = vec![("server_version".to_owned(), "15.4".to_owned())];
        if *self.store.server_parameters() == parameters {
            let change = Change::Settle;
            return self.order(stage, Work::Change { change, then: Then::Stream(conn) });
        }
        self.order(stage, Work::Change { change: Change::Settle, then: Then::Nothing });
        let change = Change::Parameters(parameters);
        self.order(stage, Work::Change { change, then: Then::Stream(conn) });
    }

    pub(super) fn ended(&mut self, stage: &mut Stage, how: StreamEnd) {
        self.receiver = None;
        let now = stage.instant();
        let Some(following) = &mut self.following else { return };
        following.conn = None;
        if now.saturating_duration_since(following.began) > LAST_RETRY {
            following.retry = FIRST_RETRY;
        }
        let node = following.node.clone();
        following.last_error = Some(format!("{how:?}"));
        stage.note(format!("the stream from {node} ended: {how:?}"));
        stage.soon(Event::Probe { life: self.life, node: node_id(&self.nodes, &node) });
        self.upstream = Upstream::Ended { node, at: now, how };
        self.retry_later(stage);
    }
}
