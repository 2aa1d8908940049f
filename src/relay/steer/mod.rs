//! Obeys the directive: whom to stream from, and the promise of a term.
//!
//! On a higher term the old stream is closed first, then the term is made durable behind everything that the
//! old stream had brought, and only then anything of the new term happens. So a promise that is published says:
//! no byte of an earlier term is taken or acknowledged any more, not from its primary and not from a standby or another
//! relay that stood in for it, and `durable` is final.
//!
//! Before the first stream of a term, its floor is recorded (`store/standing`): what comes from then on is in a log that
//! counts in this term, or not before it has reached the floor.
//!
//! A log on a branch that an election did not go on with leaves it by itself ([`branch`]).
//!
//! Where an election goes on with another relay's log, that log's end is the floor and its relay the one to stream from
//! until it is reached ([`complete`]); then there is nobody to stream from before the next upstream is named.
//!
//! Who stands in for the upstream, and when, is for [`super::sources`] to say, and [`follow`] does it. What a
//! substitute's connection says is no evidence of the upstream's life: the status goes on telling of the upstream itself.

mod branch;
mod complete;
mod follow;
mod progress;
mod substitute;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::RelayInputs;
use super::followers::Followers;
use super::metrics::Metrics;
use super::receiver::{self, Progress, Promised, ReceiverConfig, Role, Surroundings};
use super::sources::Jitter;
use super::status::UpstreamStatus;
use super::store::{Change, Store, StoreError, StreamId};
use crate::net::{Backend, DialError, Target};
use crate::pg::SlotName;
use crate::topology::{
    Address, Directive, Floor, Node, NodeName, StreamEnd, Term, Upstream, relay_application_name,
};

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

/// Whom to stream from, and the directive that says so.
struct Order {
    whom: Whom,
    directive: Arc<Directive>,
}

enum Whom {
    Upstream(Node),
    /// Another relay, up to the floor.
    Source {
        peer: (String, Address),
        floor: Floor,
    },
    Nobody,
}

impl Order {
    fn term(&self) -> Term {
        self.directive.term
    }

    /// Whether `next` says the same. Where there is an upstream, its stream goes on whatever the floor.
    fn is_still(&self, next: &Directive) -> bool {
        let own = &self.directive;
        let same_floor = own.upstream.is_some() || own.floor == next.floor;
        next.term < own.term || (next.term == own.term && next.upstream == own.upstream && same_floor)
    }
}

impl Steering {
    /// Runs until it is closed, or the directive's sender is gone. An error is the store's and ends the plane.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut directives = self.inputs.directive.clone();
        let store = self.store.clone();
        loop {
            let directive = directives.borrow_and_update().clone();
            if directive.term > store.report().borrow().promised {
                store.change(Change::Promise(directive.term)).await?;
                tracing::info!(term = %directive.term, "term promised");
            }
            self.leave_branch(&directive).await?;
            record_floor(&store, &directive).await?;
            let order = self.order(directive);
            tokio::select! {
                result = self.carry_out(&order) => return result,
                next = next_order(&store, &mut directives, &order) => {
                    if next? == Directives::Ended {
                        return Ok(());
                    }
                }
            }
            self.status.send_modify(|status| status.substitute = None);
        }
    }

    fn order(&self, directive: Arc<Directive>) -> Order {
        let is_old = directive.term < self.store.report().borrow().promised;
        let whom = match (&directive.upstream, &directive.floor) {
            _ if is_old => Whom::Nobody,
            (Some(upstream), _) => self.upstream(upstream),
            (None, Some(floor)) => self.source(floor),
            (None, None) => Whom::Nobody,
        };
        Order { whom, directive }
    }

    fn upstream(&self, name: &NodeName) -> Whom {
        let Some(node) = self.inputs.nodes.iter().find(|node| node.name == *name) else {
            tracing::error!(node = %name, "the directive's upstream is no configured node");
            return Whom::Nobody;
        };
        Whom::Upstream(node.clone())
    }

    fn source(&self, floor: &Floor) -> Whom {
        let Some(source) = floor.source.as_ref().filter(|source| **source != self.instance) else {
            return Whom::Nobody;
        };
        let Some(peer) = self.inputs.peers.iter().find(|(name, _)| name == source) else {
            tracing::error!(instance = source, "the election goes on with the log of no configured instance");
            return Whom::Nobody;
        };
        Whom::Source { peer: peer.clone(), floor: floor.clone() }
    }

    /// Until it is closed. Dropping it closes the stream.
    async fn carry_out(&mut self, order: &Order) -> Result<(), StoreError> {
        match &order.whom {
            Whom::Upstream(node) => self.follow(order, node).await?,
            Whom::Source { peer, floor } => {
                self.show(Upstream::Idle);
                self.complete(order, peer, floor).await?;
            }
            Whom::Nobody => self.show(Upstream::Idle),
        }
        self.closing.cancelled().await;
        Ok(())
    }

    fn show(&self, upstream: Upstream) {
        self.status.send_modify(|status| status.upstream = upstream);
    }

    fn target(&self, address: &Address, order: &Order) -> Target {
        let application_name = relay_application_name(&self.instance, order.term());
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
            term: order.term(),
            promised: self.promised(order),
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

    /// By the floor that is known by now.
    fn promised(&self, order: &Order) -> Promised {
        let directive = self.inputs.directive.borrow();
        Promised::under(if directive.term == order.term() { &directive } else { &order.directive })
    }
}

/// What was heard of directives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Directives {
    Other,
    Ended,
}

/// Waits until something else is ordered. Another floor is recorded meanwhile.
async fn next_order(
    store: &Store,
    directives: &mut watch::Receiver<Arc<Directive>>,
    order: &Order,
) -> Result<Directives, StoreError> {
    while directives.changed().await.is_ok() {
        let next = directives.borrow_and_update().clone();
        if !order.is_still(&next) {
            return Ok(Directives::Other);
        }
        record_floor(store, &next).await?;
    }
    Ok(Directives::Ended)
}

/// On disk when it returns. An old directive's is none any more.
async fn record_floor(store: &Store, directive: &Directive) -> Result<(), StoreError> {
    let Some(floor) = &directive.floor else { return Ok(()) };
    let term = directive.term;
    let is_done = {
        let report = store.report();
        let report = report.borrow();
        term < report.promised || report.standing.has(term, floor)
    };
    if is_done {
        return Ok(());
    }
    store.change(Change::Floor { term, floor: floor.clone() }).await?;
    let log_term = store.report().borrow().log_term();
    tracing::info!(%term, timeline = %floor.timeline, end = %floor.end, %log_term, "floor recorded");
    Ok(())
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
    use std::sync::Arc;

    use super::{Order, Whom, major};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{Directive, Durability, Floor, Term};

    #[test]
    fn another_upstream_or_term_is_another_order() {
        let directive = |term, upstream: &str, floor| Directive {
            term: Term(term),
            upstream: upstream.parse().ok(),
            floor: Some(Floor { timeline: TimelineId(1), end: Lsn(floor), source: None, log_term: Term(0) }),
            ..Directive::starting(Durability::Quorum)
        };
        let check = |now: &Directive, next: &Directive, expected| {
            let order = Order { whom: Whom::Nobody, directive: Arc::new(now.clone()) };
            assert_eq!(order.is_still(next), expected, "{next:?} after {now:?}");
        };
        let now = directive(5, "pg1", 10);
        check(&now, &now, true);
        check(&now, &directive(4, "pg2", 10), true);
        check(&now, &directive(5, "pg2", 10), false);
        check(&now, &directive(5, "", 10), false);
        check(&now, &directive(6, "pg1", 10), false);
        // The upstream has whatever the floor is.
        check(&now, &directive(5, "pg1", 11), true);
        check(&directive(5, "", 10), &directive(5, "", 11), false);
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
