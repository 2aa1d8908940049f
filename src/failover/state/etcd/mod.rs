#![expect(clippy::disallowed_methods, reason = "shell: reads the clock, starts the task")]
//! The journal that several instances share, in etcd; and which of them leads.
//!
//! Under `/bellwether/CLUSTER/`:
//!
//! * `leader`: an instance's name, with its lease. Who creates the key leads. The revision of that creation is the
//!   [`Fence`]: every write of the journal compares it, so that who leads no more writes no more, whatever it believes.
//! * `state`: the control plane's state as JSON. Written only by a transaction that compares the fence and the
//!   last revision of the key itself.
//! * `history/TERM/STARTED`: an election each.
//! * `members/INSTANCE`: with the instance's lease, so that people see who is alive.
//!
//! etcd is spoken to through its own JSON gateway, with the HTTP client that is here already: four requests and a
//! stream. A gRPC client would bring fifteen crates and `protoc` into every build, and its balanced channel goes on
//! sending to a member that is frozen; here one member is asked, and the next one as soon as it fails.
//!
//! Not here: what the state means, and the local copy of it.

mod client;
mod gateway;
mod history;
mod look;
mod metrics;
mod put;
mod tasks;
mod view;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::client::{ClientError, EtcdTls};
pub use self::gateway::RequestError;
pub use self::look::{Kept, Look, look};
pub use self::metrics::EtcdMetrics;

use self::gateway::{Endpoint, Gateway};
use self::view::{Keys, View};
use self::wire::{Encoded, Txn, TxnAnswer};
use crate::failover::decide::State;
use crate::topology::Election;

/// How etcd is reached, and what is ours there.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`, at least one. The first that answers is asked until it fails.
    pub endpoints: Vec<String>,
    pub cluster: String,
    pub instance: String,
    /// Of `leader` and `members/..`: how long an instance that is gone leads on. Whole seconds, at least
    /// [`EtcdConfig::MIN_LEASE`]: etcd counts in seconds, and not below two with its defaults.
    pub lease: Duration,
    /// `None`: etcd asks nobody who he is.
    pub login: Option<EtcdLogin>,
    pub tls: EtcdTls,
}

#[derive(Clone)]
pub struct EtcdLogin {
    pub user: String,
    pub password: Arc<str>,
}

/// A revision of etcd's whole store. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A leadership: the revision at which its key was created. No other has the same, and a later one a greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub Revision);

/// What is known of etcd.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub link: Link,
    /// The newest ever seen, or put by us; `None`: etcd has none, or was not reached yet ([`Link::Starting`]).
    pub state: Option<Versioned>,
    pub leader: Leader,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing was read yet.
    Starting,
    /// What is seen was read within the last half of a lease, unless one of several endpoints has just failed.
    Up,
    /// No endpoint answers, or what etcd holds cannot be believed. The rest of [`Seen`] is from before.
    Lost { since: Instant, why: String },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// At which the key was written last.
    pub revision: Revision,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// Nobody who is known. Also while our own lease may be over and etcd has not said so.
    Nobody,
    Other(String),
    /// This instance, for certain until `until`: counted from before the lease was asked for, less a margin.
    Own {
        fence: Fence,
        until: Instant,
    },
}

/// Why nothing is known to be written, or nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// For certain not written.
    #[error("another leads, or has written the state meanwhile")]
    Lost,
    /// May be written, or may be yet: a request that was sent can arrive late.
    #[error("whether etcd has written is not known")]
    Unknown(#[source] RequestError),
    #[error("read from etcd")]
    Read(#[source] RequestError),
    /// Nothing was sent.
    #[error("etcd is not believed: {0}")]
    Refused(String),
    #[error("{key} in etcd cannot be read: {what}")]
    Unreadable { key: String, what: String },
}

/// The journal in etcd. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct EtcdJournal {
    shared: Arc<Shared>,
}

impl EtcdConfig {
    pub const MIN_LEASE: Duration = Duration::from_secs(2);

    /// How often etcd is read, and the lease kept.
    fn beat(&self) -> Duration {
        self.lease / 5
    }

    /// A lease outlives three requests that get no answer.
    fn request_limit(&self) -> Duration {
        self.lease / 4
    }
}

impl EtcdJournal {
    /// Starts the task that watches, keeps the lease and campaigns, until `shutdown`. The lease is not given back then:
    /// who leaves in good order [resigns](EtcdJournal::resign) first.
    pub fn start(config: EtcdConfig, metrics: EtcdMetrics, shutdown: CancellationToken) -> EtcdJournal {
        let shared = Arc::new(Shared::new(config, metrics));
        tokio::spawn(tasks::run(shared.clone(), shutdown));
        EtcdJournal { shared }
    }

    pub fn seen(&self) -> watch::Receiver<Arc<Seen>> {
        self.shared.seen.subscribe()
    }

    /// Durable and agreed upon when it returns `Ok`. `expected` is the revision of the state that `state` follows;
    /// `None`: there was none. Where no answer comes the next endpoints are asked, up to a round; after
    /// [`EtcdError::Unknown`] the same may be put again. At most one of them counts, however late they arrive.
    pub async fn put(
        &self,
        leadership: Fence,
        expected: Option<Revision>,
        state: &State,
    ) -> Result<Revision, EtcdError> {
        put::state(&self.shared, leadership, expected, state).await
    }

    /// Oldest first.
    pub async fn history(&self) -> Result<Vec<Election>, EtcdError> {
        history::read(&self.shared).await
    }

    /// Writes the elections of `history` that are new or have changed, and removes the oldest beyond
    /// [`MAX_HISTORY`](super::MAX_HISTORY). What etcd has and `history` does not stays.
    pub async fn put_history(&self, leadership: Fence, history: &[Election]) -> Result<(), EtcdError> {
        history::write(&self.shared, leadership, history).await
    }

    /// Gives the leadership up, and does not campaign for two lease times. When it returns, this instance does not lead;
    /// that etcd knows it may take longer while it is away.
    pub async fn resign(&self) {
        let campaign_in = self.shared.config.lease * 2;
        self.shared.update(|view, now| view.resign(now + campaign_in));
        tasks::give_up(&self.shared).await;
    }
}

/// What tasks and callers have in common.
#[derive(Debug)]
struct Shared {
    config: EtcdConfig,
    gateway: Gateway,
    view: Mutex<View>,
    seen: watch::Sender<Arc<Seen>>,
    /// The view has changed: there may be something to do.
    changed: Notify,
    written: history::Written,
    metrics: EtcdMetrics,
}

impl Shared {
    fn new(config: EtcdConfig, metrics: EtcdMetrics) -> Shared {
        let keys = Keys::new(&config.cluster, &config.instance);
        let view = View::new(keys, config.endpoints.len(), Instant::now());
        let seen = watch::Sender::new(Arc::new(view.seen(Instant::now())));
        let gateway = Gateway::new(&config, metrics.clone());
        let (changed, written) = (Notify::new(), history::Written::default());
        Shared { config, gateway, view: Mutex::new(view), seen, changed, written, metrics }
    }

    /// Changes the view, and publishes what it has become: in this order for all, so that nobody sees it go back.
    fn update<T>(&self, change: impl FnOnce(&mut View, Instant) -> T) -> T {
        let now = Instant::now();
        let mut view = self.view.lock();
        let alarm = view.alarm().map(str::to_owned);
        let changed = change(&mut view, now);
        if let Some(why) = view.alarm().filter(|why| Some(*why) != alarm.as_deref()) {
            tracing::error!(why, "what etcd holds cannot be used: a person is needed");
        }
        let seen = view.seen(now);
        self.metrics.linked(seen.link == Link::Up);
        self.seen.send_if_modified(|current| {
            let news = **current != seen;
            if news {
                tell(current, &seen);
                *current = Arc::new(seen);
            }
            news
        });
        self.changed.notify_one();
        changed
    }

    fn keys(&self) -> Keys {
        self.view.lock().keys().clone()
    }

    /// A transaction, whose answer is believed. By way of the quorum: also one that only reads.
    async fn transact(&self, txn: &Txn) -> Result<TxnAnswer, RequestError> {
        let (at, floor) = (self.gateway.current(), self.view.lock().floor());
        let answer: TxnAnswer = self.gateway.ask(at, "kv/txn", txn).await?;
        self.believed(at, |view, now| view.believe(answer.header, floor, now))?;
        Ok(answer)
    }

    /// An endpoint that is not is left for the next one.
    fn believed(
        &self,
        at: Endpoint,
        believe: impl FnOnce(&mut View, Instant) -> Result<(), String>,
    ) -> Result<(), RequestError> {
        self.update(believe).map_err(|why| {
            self.gateway.go_on_from(at);
            RequestError::Doubted { endpoint: self.gateway.name(at).to_owned(), why }
        })
    }
}

fn encoded(value: &impl serde::Serialize) -> Encoded {
    Encoded(serde_json::to_vec(value).expect("states and elections have nothing that is not JSON"))
}

/// What people want to know of a change.
fn tell(before: &Seen, after: &Seen) {
    match (&before.link, &after.link) {
        (Link::Starting | Link::Lost { .. }, Link::Up) => tracing::info!("etcd is reached"),
        (Link::Starting | Link::Up, Link::Lost { why, .. }) => tracing::info!(why, "etcd is lost"),
        _ => {}
    }
    let who = |seen: &Seen| match &seen.leader {
        Leader::Own { .. } => Some("this instance".to_owned()),
        Leader::Other(name) => Some(name.clone()),
        Leader::Nobody => None,
    };
    match who(after) {
        leader if leader == who(before) => {}
        Some(leader) => tracing::info!(leader, "leads"),
        None => tracing::info!("nobody is known to lead"),
    }
}

impl std::fmt::Debug for EtcdLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdLogin").field("user", &self.user).finish_non_exhaustive()
    }
}
