//! Streams from the directive's upstream, and from whom stands in for it.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::time::{Duration, Instant};

use super::progress::{publish, publish_substitute};
use super::substitute::{Substitute, substitutes};
use super::{DIAL_LIMIT, Order, Steering, jitter, with_cause, words};
use crate::net::{self, Backend};
use crate::pg::TimelineId;
use crate::relay::receiver::{Progress, Role};
use crate::relay::sources::{self, Next, Outcome, Sources, Trouble};
use crate::relay::status::UpstreamStatus;
use crate::relay::store::{Change, StoreError};
use crate::topology::{Node, NodeName, Refusal, StreamEnd, Upstream, WalAlarm};

/// A stream that lasted for longer than this is no failed attempt.
const SERVED: Duration = Duration::from_secs(1);
/// While a substitute serves.
const REACH_AGAIN: Duration = Duration::from_secs(1);

/// Where the connection to the upstream stands.
struct Connecting {
    since: Instant,
    last_error: Option<String>,
}

/// On what terms somebody is asked for WAL.
struct Trial {
    known: TimelineId,
    trouble: Trouble,
    upstream_due: Instant,
}

impl Steering {
    /// Streams from the upstream, and from whom stands in for it, until it is closed.
    pub(super) async fn follow(&mut self, order: &Order, node: &Node) -> Result<(), StoreError> {
        let mut substitutes = substitutes(&self.inputs, &node.name);
        let mut sources = Sources::new(substitutes.len(), Instant::now());
        let mut connecting = Connecting { since: Instant::now(), last_error: None };
        while !self.closing.is_cancelled() {
            let known = self.known(order);
            let may_ask = |number: usize, trouble| {
                known.is_some() && (trouble == Trouble::Lacks || !self.is_followed_by(&substitutes[number]))
            };
            let next = sources.next(Instant::now(), may_ask);
            if sources.is_gap(may_ask) {
                self.raise_gap();
            }
            let reached = match (next, known) {
                (Next::Upstream, _) => self.dial_upstream(order, node, &mut connecting, &mut sources).await,
                (Next::Substitute(number), Some(known)) => {
                    let substitute = &mut substitutes[number];
                    let trial =
                        Trial { known, trouble: sources.trouble(), upstream_due: sources.upstream_due() };
                    let (outcome, reached) = self.stand_in(order, node, substitute, trial).await?;
                    sources.substitute_tried(number, Instant::now(), outcome, jitter());
                    reached
                }
                (Next::Substitute(_), None) => None,
                (Next::WaitUntil(at), _) => {
                    self.closing.run_until_cancelled(tokio::time::sleep_until(at.into())).await;
                    None
                }
            };
            if let Some(backend) = reached {
                self.upstream_reached(order, node, backend, &mut connecting, &mut sources).await?;
            }
        }
        Ok(())
    }

    /// The newest timeline that a substitute may give WAL of.
    fn known(&self, order: &Order) -> Option<TimelineId> {
        let directive = self.inputs.directive.borrow();
        let theirs = directive.timeline.filter(|_| directive.term == order.term());
        let own = self.store.report().borrow().tail.timeline;
        sources::known(theirs, own, |timeline| self.store.history_file(timeline).is_some())
    }

    fn is_followed_by(&self, substitute: &Substitute) -> bool {
        self.followers.has_within(&substitute.name, self.store.tail().borrow().durable)
    }

    async fn dial_upstream(
        &self,
        order: &Order,
        upstream: &Node,
        connecting: &mut Connecting,
        sources: &mut Sources,
    ) -> Option<Backend> {
        let node = &upstream.name;
        let show = |last_error| {
            self.show(Upstream::Connecting { node: node.clone(), since: connecting.since, last_error });
        };
        if !matches!(self.status.borrow().upstream, Upstream::Ended { .. }) {
            show(connecting.last_error.clone());
        }
        let target = self.target(&upstream.address, order);
        let error = match self.closing.run_until_cancelled(net::dial(&target, DIAL_LIMIT)).await? {
            Ok(backend) => return Some(backend),
            Err(error) => with_cause(&error),
        };
        if connecting.last_error.as_ref() != Some(&error) {
            tracing::info!(%node, error, "upstream not reached");
        }
        show(Some(error.clone()));
        connecting.last_error = Some(error);
        sources.upstream_tried(Instant::now(), Outcome::Failed, jitter());
        None
    }

    async fn upstream_reached(
        &mut self,
        order: &Order,
        upstream: &Node,
        backend: Backend,
        connecting: &mut Connecting,
        sources: &mut Sources,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let id = self.next_stream();
        let status = self.status.clone();
        let node = &upstream.name;
        let mut publish = |progress: Progress| publish(&status, node, order.term(), began, progress);
        let end = self.stream(order, backend, Role::Named, id, &mut publish).await?;
        let outcome = match &end {
            StreamEnd::Refused { cause: Refusal::Removed, .. } => Outcome::Lacks,
            _ if began.elapsed() > SERVED => Outcome::Served,
            _ => Outcome::Failed,
        };
        if self.leave_branch_of(order, node.as_str(), &end).await? {
            sources.upstream_tried(Instant::now(), Outcome::Served, jitter());
            return Ok(());
        }
        let why = self.ended(node, end, connecting.last_error.as_deref());
        connecting.last_error = Some(why);
        sources.upstream_tried(Instant::now(), outcome, jitter());
        Ok(())
    }

    /// What the upstream cannot give from somebody else, until the upstream is there again (then its connection is
    /// returned), or, where it lacks WAL, until everything is here that the other one has.
    async fn stand_in(
        &mut self,
        order: &Order,
        upstream: &Node,
        substitute: &mut Substitute,
        trial: Trial,
    ) -> Result<(Outcome, Option<Backend>), StoreError> {
        let Some(backend) = self.dial_substitute(order, substitute).await else {
            return Ok((Outcome::Failed, None));
        };
        let before = self.store.report().borrow().tail;
        let id = self.next_stream();
        let (status, name) = (self.status.clone(), substitute.name.clone());
        let mut said = false;
        let mut publish = |progress: Progress| {
            if !said && progress.received > before.durable {
                tracing::info!(source = name, from = %before.durable, "WAL comes from a substitute");
                said = true;
            }
            publish_substitute(&status, &name, progress);
        };
        let this = &*self;
        let role = Role::Substitute { known: trial.known };
        let (end, reached) = tokio::select! {
            end = this.stream(order, backend, role, id, &mut publish) => (Some(end?), None),
            backend = this.reach_upstream(order, upstream, trial.upstream_due), if trial.trouble == Trouble::Away => {
                (None, Some(backend))
            }
            () = this.drained(), if trial.trouble == Trouble::Lacks => (None, None),
        };
        self.status.send_modify(|status| status.substitute = None);
        self.store.change(Change::Settle).await?;
        let outcome = match &end {
            _ if self.store.report().borrow().tail != before => Outcome::Served,
            None => Outcome::Lacks,
            Some(StreamEnd::Refused { cause: Refusal::Removed, .. }) => Outcome::Lacks,
            Some(_) => Outcome::Failed,
        };
        if let Some(end) = end {
            self.raise_divergence(&substitute.name, &end);
            substitute.say(&words(&end));
        }
        Ok((outcome, reached))
    }

    pub(super) async fn dial_substitute(
        &self,
        order: &Order,
        substitute: &mut Substitute,
    ) -> Option<Backend> {
        let target = self.target(&substitute.address, order);
        let dialed = self.closing.run_until_cancelled(net::dial(&target, DIAL_LIMIT)).await?;
        match dialed.map_err(|error| with_cause(&error)).and_then(|backend| substitute.accepts(backend)) {
            Ok(backend) => Some(backend),
            Err(why) => {
                substitute.say(&why);
                None
            }
        }
    }

    async fn reach_upstream(&self, order: &Order, upstream: &Node, due: Instant) -> Backend {
        let target = self.target(&upstream.address, order);
        tokio::time::sleep_until(due.into()).await;
        loop {
            if let Ok(backend) = net::dial(&target, DIAL_LIMIT).await {
                return backend;
            }
            tokio::time::sleep(REACH_AGAIN).await;
        }
    }

    async fn drained(&self) {
        let mut status = self.status.subscribe();
        if status.wait_for(UpstreamStatus::is_drained).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Says so, once for the same cause, and returns it.
    fn ended(&self, node: &NodeName, end: StreamEnd, last_error: Option<&str>) -> String {
        let why = words(&end);
        self.raise_divergence(node.as_str(), &end);
        if last_error != Some(why.as_str()) {
            match &end {
                // Others may have it; else it is a gap.
                StreamEnd::Refused { cause: Refusal::Removed, .. } => {
                    tracing::info!(%node, why, "the upstream does not keep the WAL that comes next");
                }
                StreamEnd::Refused { cause: Refusal::Diverged { .. }, .. } => {}
                StreamEnd::Refused { cause: Refusal::Branched { .. } | Refusal::Other, .. } => {
                    tracing::error!(%node, why, "upstream refused");
                }
                StreamEnd::TimelineEnd { .. } | StreamEnd::Shutdown | StreamEnd::Lost { .. } => {
                    tracing::info!(%node, why, "WAL stream ended");
                }
            }
        }
        self.show(Upstream::Ended { node: node.clone(), at: Instant::now(), how: end });
        why
    }

    pub(super) fn raise_divergence(&self, source: &str, end: &StreamEnd) {
        if let StreamEnd::Refused { cause: Refusal::Diverged { timeline, lsn }, .. } = *end {
            let end = self.store.report().borrow().tail.durable;
            self.raise(WalAlarm::Diverged { source: source.to_owned(), timeline, lsn, end });
        }
    }

    fn raise_gap(&self) {
        let tail = self.store.report().borrow().tail;
        self.raise(WalAlarm::Gap { timeline: tail.timeline, end: tail.durable });
    }

    fn raise(&self, alarm: WalAlarm) {
        self.status.send_if_modified(|status| {
            let is_new = status.alarm.as_ref() != Some(&alarm);
            if is_new {
                tracing::error!("{alarm}; what is stored stays as it is");
                status.alarm = Some(alarm);
            }
            is_new
        });
    }
}
