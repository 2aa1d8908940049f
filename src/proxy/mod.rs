//! The query plane: clients' sessions, where their statements go, and the server connections they share.
//!
//! One task serves one client on one worker thread ([`session`]); it asks [`route`] where a statement belongs
//! and takes a connection from that node's [`pool`]. [`background`] obeys the directive: when a term has another
//! primary, what runs on the old one is cut, and the term is confirmed when nothing does any more.

mod background;
mod cancel;
mod clients;
mod config;
mod evidence;
mod guc;
pub mod limits;
mod listen;
mod logical;
mod metrics;
pub mod operate;
pub mod peers;
mod pool;
mod prepared;
mod quorum;
pub mod report;
pub mod route;
mod sampler;
mod session;
mod shown;
#[cfg(test)]
mod stage;
pub mod stats;
mod timeouts;
mod worker;
mod workers;

/// The parts that the simulation drives with a shell of its own.
#[cfg(test)]
pub(crate) mod parts {
    pub(crate) use super::limits::PoolSize;
    pub(crate) use super::pool::core as pool;
}

pub use config::{Entrance, ProxyConfig, ServerLogin};
pub use session::commit::ResolveCommits;
pub use session::core::PoolMode;
#[doc(hidden)]
pub use session::fuzzing;
pub use worker::Worker;
pub use workers::{Seats, Served, Workers};

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::cancel::Slots;
use self::clients::Clients;
use self::evidence::NodeEvidence;
use self::limits::Plan;
use self::listen::Hubs;
use self::metrics::Metrics;
use self::peers::Peer;
use self::pool::{Blueprint, Key, Pool, Pools};
use self::prepared::Statements;
use self::quorum::Quorum;
use self::sampler::Sampler;
use self::shown::Shown;
use self::stats::Stats;
use crate::net::{self, Client};
use crate::pg::protocol::startup::CancelKey;
use crate::topology::{
    CommitOutcomes, CommitsInDoubt, Directive, Durability, Health, Node, NodeName, ProxyStatus, Term,
    WalStatus,
};

/// What the plane obeys and routes by.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub directive: watch::Receiver<Arc<Directive>>,
    pub health: watch::Receiver<Arc<Health>>,
    pub wal: watch::Receiver<Arc<WalStatus>>,
    pub commits: Commits,
    pub nodes: Vec<Node>,
}

/// How the outcome of a commit is found out whose server was lost.
#[derive(Clone, Debug)]
pub struct Commits {
    /// Of which sessions want to know it.
    pub in_doubt: watch::Sender<Arc<CommitsInDoubt>>,
    pub outcomes: watch::Receiver<Arc<CommitOutcomes>>,
}

/// The query plane. Cheap to clone; shared by all workers.
#[derive(Clone, Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

type Parameters = Arc<[(String, String)]>;
/// Database and user.
type Account = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Shared {
    config: watch::Sender<Arc<ProxyConfig>>,
    login: ServerLogin,
    inputs: Inputs,
    /// Ends all sessions.
    stop: CancellationToken,
    metrics: Metrics,
    slots: Slots,
    /// CancelRequests that may go to peers now.
    passing: Semaphore,
    statements: Statements,
    pools: Arc<Pools>,
    hubs: Hubs,
    /// The greeting per database and user, from the first server connection.
    greetings: Mutex<HashMap<Account, Parameters>>,
    evidence: Vec<Arc<NodeEvidence>>,
    sampler: Arc<Sampler>,
    shown: Shown,
    status: watch::Sender<Arc<ProxyStatus>>,
    quorum: watch::Sender<Quorum>,
    /// The status should be published now.
    pressing: Notify,
    /// The directive's candidate, which nobody may check out: its place in `inputs.nodes`, from 1; 0 is none.
    candidate: AtomicUsize,
    /// The directive's: whoever chose a node under fewer must choose again.
    drains: AtomicU64,
    clients: Mutex<Clients>,
    stats: Stats,
    waiting: AtomicUsize,
    held: AtomicUsize,
    last_session: AtomicU64,
}

/// A CancelRequest is passed on within this time or not at all.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

impl Proxy {
    /// `now` is the origin of the evidence's times. Fails when `registry` has metrics of these names already.
    pub fn new(
        now: Instant,
        config: ProxyConfig,
        inputs: Inputs,
        login: ServerLogin,
        registry: &prometheus::Registry,
        stop: CancellationToken,
    ) -> prometheus::Result<(Proxy, watch::Receiver<Arc<ProxyStatus>>)> {
        let (status, receiver) = watch::channel(Arc::default());
        let metrics = Metrics::new(registry)?;
        let evidence_of = |node: &Node| {
            let chosen = metrics.node_statements.with_label_values(&[node.name.as_str()]);
            Arc::new(NodeEvidence::new(node.name.clone(), now, chosen))
        };
        let evidence = inputs.nodes.iter().map(evidence_of).collect();
        let shared = Shared {
            login,
            inputs,
            stop,
            metrics,
            slots: Slots::of(config.peers.own),
            passing: Semaphore::new(peers::MAX_UNDER_WAY),
            config: watch::Sender::new(Arc::new(config)),
            statements: Statements::default(),
            pools: Arc::default(),
            hubs: Hubs::default(),
            greetings: Mutex::default(),
            evidence,
            sampler: Arc::default(),
            shown: Shown::default(),
            status,
            quorum: watch::Sender::default(),
            pressing: Notify::new(),
            candidate: AtomicUsize::new(0),
            drains: AtomicU64::new(0),
            clients: Mutex::default(),
            stats: Stats::default(),
            waiting: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            last_session: AtomicU64::new(0),
        };
        Ok((Proxy { shared: Arc::new(shared) }, receiver))
    }

    fn worker(&self, index: usize) -> Worker {
        let Shared { inputs, quorum, config, metrics, .. } = &*self.shared;
        Worker::new(index, inputs, quorum.subscribe(), config.subscribe(), metrics)
    }

    /// Serves an authenticated client until it leaves. To be called on the thread of `worker`.
    pub async fn serve(&self, worker: &Rc<Worker>, entrance: Entrance, client: Box<Client>) {
        session::run::serve(&self.shared, worker, entrance, client).await;
    }

    /// Passes a client's logical replication through to the primary until it leaves.
    pub async fn replicate(&self, entrance: Entrance, client: Client) {
        logical::serve(&self.shared, entrance, client).await;
    }

    /// Carries out a client's CancelRequest, or passes it on to the peer whose it is. `false`: nothing runs here
    /// under this key.
    pub async fn cancel(&self, key: &CancelKey) -> bool {
        self.shared.cancel(key).await
    }
}

impl Shared {
    async fn cancel(&self, key: &CancelKey) -> bool {
        let (key, via) = peers::unwrapped(key);
        if self.cancel_here(&key).await {
            return true;
        }
        let config = self.config();
        let Some(peer) = config.peers.of(key.pid, via) else { return false };
        self.pass_on(peer, &key).await;
        true
    }

    async fn pass_on(&self, peer: &Peer, key: &CancelKey) {
        let outcome = match self.passing.try_acquire() {
            Err(_) => "too_many",
            Ok(_permit) => {
                let key = peers::wrapped(key);
                match net::cancel(&peer.address, &self.login.tls, &key, CANCEL_LIMIT).await {
                    Ok(()) => "delivered",
                    Err(error) => {
                        tracing::info!(instance = peer.instance, %error, "cancel request not passed on");
                        "failed"
                    }
                }
            }
        };
        self.metrics.cancels_passed_on.with_label_values(&[peer.instance.as_str(), outcome]).inc();
    }

    async fn cancel_here(&self, key: &CancelKey) -> bool {
        let Some(cancelling) = self.slots.cancelling(key) else { return false };
        let backend = cancelling.backend.clone();
        let sent = net::cancel(&backend.address, &backend.tls, &backend.key, CANCEL_LIMIT).await;
        match sent {
            Ok(()) => cancelling.arrived(),
            Err(error) => tracing::info!(%error, "cancel request not delivered"),
        }
        true
    }

    /// As of now.
    fn config(&self) -> Arc<ProxyConfig> {
        self.config.borrow().clone()
    }

    /// What it says of limits.
    fn plan(&self) -> Arc<Plan> {
        self.config.borrow().plan.clone()
    }

    /// `None` when no such node is configured.
    fn pool(&self, key: &Key) -> Option<Arc<Pool>> {
        let node = self.inputs.nodes.iter().find(|node| node.name == key.node)?;
        let evidence = self.evidence.iter().find(|evidence| evidence.node == key.node)?;
        let blueprint = || {
            let plan = self.plan();
            // Whatever the server, the database or the role say of it: commits wait for the quorum.
            let parameters = match self.inputs.directive.borrow().durability {
                Durability::Quorum => vec![("synchronous_commit".to_owned(), "on".to_owned())],
                Durability::Async => vec![],
            };
            Blueprint {
                address: node.address.clone(),
                tls: self.login.tls.clone(),
                parameters,
                limits: plan.limits(&key.database, &key.user),
                caps: plan.caps(&key.database, &key.user),
                evidence: evidence.clone(),
            }
        };
        Some(self.pools.pool(key, blueprint))
    }

    /// Whether `node`, chosen as the primary of `term`, may be used. To be asked (or whether the order is the latest) when
    /// it is in the session's slot: the order changes before the fence looks at the slots, so one of the two sees the other.
    fn has_primary(&self, node: &NodeName, term: Term) -> bool {
        self.inputs.directive.borrow().has_primary(node, term)
    }

    /// Until it is not.
    async fn primary_is_withdrawn(&self, node: &NodeName, term: Term) {
        let mut directive = self.inputs.directive.clone();
        let withdrawn = directive.wait_for(|order| !order.has_primary(node, term)).await.is_ok();
        if !withdrawn {
            // No order will come any more.
            std::future::pending::<()>().await;
        }
    }

    /// From now on nobody gets a server of the candidate.
    fn bar(&self, candidate: Option<&NodeName>) {
        let place = candidate.and_then(|name| self.inputs.nodes.iter().position(|node| node.name == *name));
        self.candidate.store(place.map_or(0, |place| place + 1), Ordering::SeqCst);
    }

    fn is_barred(&self, node: &NodeName) -> bool {
        let place = self.candidate.load(Ordering::SeqCst).checked_sub(1);
        place.and_then(|place| self.inputs.nodes.get(place)).is_some_and(|barred| barred.name == *node)
    }

    fn outstanding(&self, node: &NodeName) -> usize {
        self.evidence
            .iter()
            .find(|evidence| evidence.node == *node)
            .map_or(0, |evidence| evidence.outstanding())
    }
}
