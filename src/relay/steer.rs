//! Obeys the directive: whom to stream from, and the promise of a term.
//!
//! On a higher term the old stream is closed first, then the term is made durable behind everything that the
//! old stream had brought, and only then anything of the new term happens. So a promise that is published says:
//! no byte of an earlier term is taken or acknowledged any more, not from its primary and not from a standby or another
//! relay that stood in for it, and `durable` is final.
//!
//! Who stands in for the upstream, and when, is for [`super::sources`] to say. What a substitute's connection says is no
//! evidence of the upstream's life: the status goes on telling of the upstream itself.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::RelayInputs;
use super::followers::Followers;
use super::metrics::Metrics;
use super::receiver::{self, Progress, ReceiverConfig, Role, Surroundings};
use super::sources::{self, Jitter, Next, Outcome, Sources, Trouble};
use super::status::{self, UpstreamStatus};
use super::store::{Change, Store, StoreError, StreamId};
use crate::net::{self, Backend, DialError, Target};
use crate::pg::{SlotName, TimelineId};
use crate::topology::{
    Address, Directive, Node, NodeName, Refusal, StreamEnd, Upstream, WalAlarm, relay_application_name,
};

/// A stream that lasted for longer than this is no failed attempt.
const SERVED: Duration = Duration::from_secs(1);
/// While a substitute serves.
const REACH_AGAIN: Duration = Duration::from_secs(1);
/// For a connection and its login.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Steering {
    pub(super) inputs: RelayInputs,
    pub(super) instance: String,
    pub(super) slot: SlotName,
    pub(super) upstream_timeout: Duration,
    pub(super) store: Store,
    pub(super) followers: Arc<Followers>,
    pub(super) metrics: Metrics,
    pub(super) status: watch::Sender<UpstreamStatus>,
    pub(super) streams: u64,
    /// The stream is ended in order, and no other begun.
    pub(super) closing: CancellationToken,
}

impl Steering {
    /// Runs until it is closed, or the directive's sender is gone. An error is the store's and ends the plane.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut directives = self.inputs.directive.clone();
        loop {
            let directive = directives.borrow_and_update().clone();
            let promised = self.store.report().borrow().promised;
            if directive.term > promised {
                self.store.change(Change::Promise(directive.term)).await?;
                tracing::info!(term = %directive.term, "term promised");
            }
            let order = if directive.term < promised { None } else { self.order(&directive) };
            let Some(order) = order else {
                self.show(Upstream::Idle);
                match self.closing.run_until_cancelled(directives.changed()).await {
                    Some(Ok(())) => continue,
                    Some(Err(_)) | None => return Ok(()),
                }
            };
            let term = order.directive.term;
            let other_order = directives.wait_for(|next| {
                next.term > term || (next.term == term && next.upstream.as_ref() != Some(&order.node.name))
            });
            tokio::select! {
                result = self.follow(&order) => return result,
                changed = other_order => if changed.is_err() { return Ok(()) },
            }
            self.status.send_modify(|status| status.substitute = None);
        }
    }

    fn order(&self, directive: &Arc<Directive>) -> Option<Order> {
        let name = directive.upstream.as_ref()?;
        let node = self.inputs.nodes.iter().find(|node| node.name == *name);
        if node.is_none() {
            tracing::error!(node = %name, "the directive's upstream is no configured node");
        }
        Some(Order { node: node?.clone(), directive: directive.clone() })
    }

    fn show(&self, upstream: Upstream) {
        self.status.send_modify(|status| status.upstream = upstream);
    }

    /// Streams from the upstream, and from whom stands in for it. Dropping it closes the stream.
    async fn follow(&mut self, order: &Order) -> Result<(), StoreError> {
        let mut substitutes = substitutes(&self.inputs, &order.node.name);
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
                (Next::Upstream, _) => self.dial_upstream(order, &mut connecting, &mut sources).await,
                (Next::Substitute(number), Some(known)) => {
                    let substitute = &mut substitutes[number];
                    let trial =
                        Trial { known, trouble: sources.trouble(), upstream_due: sources.upstream_due() };
                    let (outcome, reached) = self.stand_in(order, substitute, trial).await?;
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
                self.upstream_reached(order, backend, &mut connecting, &mut sources).await?;
            }
        }
        Ok(())
    }

    /// The newest timeline that a substitute may give WAL of.
    fn known(&self, order: &Order) -> Option<TimelineId> {
        let directive = self.inputs.directive.borrow();
        let theirs = directive.timeline.filter(|_| directive.term == order.directive.term);
        let own = self.store.report().borrow().tail.timeline;
        sources::known(theirs, own, |timeline| self.store.history_file(timeline).is_some())
    }

    fn is_followed_by(&self, substitute: &Substitute) -> bool {
        self.followers.has_within(&substitute.name, self.store.tail().borrow().durable)
    }

    async fn dial_upstream(
        &self,
        order: &Order,
        connecting: &mut Connecting,
        sources: &mut Sources,
    ) -> Option<Backend> {
        let node = &order.node.name;
        let show = |last_error| {
            self.show(Upstream::Connecting { node: node.clone(), since: connecting.since, last_error });
        };
        if !matches!(self.status.borrow().upstream, Upstream::Ended { .. }) {
            show(connecting.last_error.clone());
        }
        let target = self.target(&order.node.address, order);
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
        backend: Backend,
        connecting: &mut Connecting,
        sources: &mut Sources,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let id = self.next_stream();
        let status = self.status.clone();
        let node = &order.node.name;
        let mut publish = |progress: Progress| publish(&status, node, began, progress);
        let end = self.stream(order, backend, Role::Named, id, &mut publish).await?;
        let outcome = match &end {
            StreamEnd::Refused { cause: Refusal::Removed, .. } => Outcome::Lacks,
            _ if began.elapsed() > SERVED => Outcome::Served,
            _ => Outcome::Failed,
        };
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
        substitute: &mut Substitute,
        trial: Trial,
    ) -> Result<(Outcome, Option<Backend>), StoreError> {
        let target = self.target(&substitute.address, order);
        let Some(dialed) = self.closing.run_until_cancelled(net::dial(&target, DIAL_LIMIT)).await else {
            return Ok((Outcome::Failed, None));
        };
        let backend = match dialed.map_err(|error| with_cause(&error)).and_then(|b| substitute.accepts(b)) {
            Ok(backend) => backend,
            Err(why) => {
                substitute.say(&why);
                return Ok((Outcome::Failed, None));
            }
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
            backend = this.reach_upstream(order, trial.upstream_due), if trial.trouble == Trouble::Away => {
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

    async fn reach_upstream(&self, order: &Order, due: Instant) -> Backend {
        let target = self.target(&order.node.address, order);
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

    fn target(&self, address: &Address, order: &Order) -> Target {
        let application_name = relay_application_name(&self.instance, order.directive.term);
        Target {
            address: address.clone(),
            user: self.inputs.user.clone(),
            database: "replication".into(),
            credentials: self.inputs.credentials.clone(),
            tls: self.inputs.tls.clone(),
            parameters: vec![
                ("replication".to_owned(), "true".to_owned()),
                ("application_name".to_owned(), application_name),
            ],
        }
    }

    fn next_stream(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }

    async fn stream(
        &self,
        order: &Order,
        backend: Backend,
        role: Role,
        id: StreamId,
        publish: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<StreamEnd, StoreError> {
        self.metrics.upstream_connects.inc();
        // What an earlier stream left in the queue is stored before the new one looks at the end.
        self.store.change(Change::Settle).await?;
        if role == Role::Named && *self.store.server_parameters() != backend.parameters {
            self.store.change(Change::Parameters(backend.parameters.clone())).await?;
        }
        let config = ReceiverConfig {
            role,
            slot: self.slot.clone(),
            durability: order.directive.durability,
            upstream_timeout: self.upstream_timeout,
            ask_after: self.inputs.tuning.borrow().ask_after.min(self.upstream_timeout / 2),
            upstream_major: major(&backend.parameters),
        };
        let surroundings = Surroundings {
            store: &self.store,
            followers: &self.followers,
            nodes: &self.inputs.nodes,
            metrics: &self.metrics,
            tuning: self.inputs.tuning.clone(),
            closing: &self.closing,
        };
        receiver::stream(backend, config, id, surroundings, publish).await
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
                StreamEnd::Refused { cause: Refusal::Other, .. } => {
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

    fn raise_divergence(&self, source: &str, end: &StreamEnd) {
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

/// Whom to stream from, and the directive that says so.
struct Order {
    node: Node,
    directive: Arc<Directive>,
}

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

/// Who may stand in for the upstream.
struct Substitute {
    /// A node's name, or a relay's address.
    name: String,
    address: Address,
    kind: Kind,
    last_said: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Relay,
}

impl Substitute {
    /// A node that is no standby writes what nobody has elected it to. A relay passes its upstream's word on; it looks at that itself.
    fn accepts(&self, backend: Backend) -> Result<Backend, String> {
        match self.kind {
            Kind::Node if !backend.is_standby() => Err("it is no standby".to_owned()),
            Kind::Node | Kind::Relay => Ok(backend),
        }
    }

    /// Once for the same cause.
    fn say(&mut self, why: &str) {
        if self.last_said.as_deref() != Some(why) {
            tracing::info!(source = self.name, why, "no more WAL from a substitute");
            self.last_said = Some(why.to_owned());
        }
    }
}

fn substitutes(inputs: &RelayInputs, upstream: &NodeName) -> Vec<Substitute> {
    let nodes = inputs.nodes.iter().filter(|node| node.name != *upstream);
    let substitute =
        |name, address: &Address, kind| Substitute { name, address: address.clone(), kind, last_said: None };
    nodes
        .map(|node| substitute(node.name.to_string(), &node.address, Kind::Node))
        .chain(inputs.relays.iter().map(|relay| substitute(relay.to_string(), relay, Kind::Relay)))
        .collect()
}

fn jitter() -> Jitter {
    Jitter::new(rand::random())
}

fn words(end: &StreamEnd) -> String {
    match end {
        StreamEnd::TimelineEnd { next, switchpoint } => format!("timeline {next} begins at {switchpoint}"),
        StreamEnd::Shutdown => "orderly shutdown".to_owned(),
        StreamEnd::Lost { why } | StreamEnd::Refused { why, .. } => why.clone(),
    }
}

fn publish_substitute(status: &watch::Sender<UpstreamStatus>, name: &str, progress: Progress) {
    status.send_if_modified(|status| {
        let mut next = status.clone();
        if progress.streaming.is_some() {
            next.received = progress.received;
            next.substitute = Some(status::Substitute { name: name.to_owned(), end: progress.upstream_end });
            // The upstream itself may have told of more.
            next.upstream_end = status.upstream_end.max(progress.upstream_end);
        }
        let changed = next != *status;
        *status = next;
        changed
    });
}

fn publish(status: &watch::Sender<UpstreamStatus>, node: &NodeName, since: Instant, progress: Progress) {
    let upstream = progress.streaming.map(|_| Upstream::Streaming {
        node: node.clone(),
        since,
        last_message: progress.heard_at,
    });
    status.send_if_modified(|status| {
        let next = UpstreamStatus {
            alarm: status.alarm.clone(),
            substitute: None,
            upstream: upstream.unwrap_or_else(|| status.upstream.clone()),
            received: progress.received,
            // Of this upstream: another one's end says nothing of it.
            upstream_end: if progress.upstream_end.is_valid() {
                progress.upstream_end
            } else {
                status.upstream_end
            },
        };
        let changed = next != *status;
        *status = next;
        changed
    });
}

/// `15.20 (Debian 15.20-1)`: 15. Unknown is 0, the least capable.
fn major(parameters: &[(String, String)]) -> u32 {
    let version = parameters.iter().find(|(name, _)| name == "server_version").map_or("", |(_, v)| v);
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().unwrap_or(0)
}

fn with_cause(error: &DialError) -> String {
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::watch;

    use super::{Progress, UpstreamStatus, major, publish};
    use crate::pg::{Lsn, TimelineId};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn the_end_of_a_lost_primary_is_not_the_next_ones() {
        let status = watch::Sender::new(UpstreamStatus::idle());
        let node = "pg1".parse().expect("a name");
        let now = Instant::now();
        let told = |upstream_end| {
            let streaming = Some(TimelineId(1));
            let progress =
                Progress { received: Lsn(90), upstream_end: Lsn(upstream_end), heard_at: now, streaming };
            publish(&status, &node, now, progress);
            status.borrow().upstream_end
        };
        assert_eq!(told(100), Lsn(100));
        assert_eq!(told(0), Lsn(100), "a new connection that has not heard yet");
        assert_eq!(told(95), Lsn(95), "a promoted standby begins before it");
    }

    #[test]
    fn versions() {
        let of = |version: &str| major(&[("server_version".to_owned(), version.to_owned())]);
        assert_eq!(of("15.20 (Debian 15.20-0+deb12u1)"), 15);
        assert_eq!(of("18beta1"), 18);
        assert_eq!(of(""), 0);
        assert_eq!(major(&[]), 0);
    }
}
