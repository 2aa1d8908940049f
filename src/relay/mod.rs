//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.
//!
//! ```text
//! upstream ──> receiver ──> store ──> sender ──> followers
//!                 ^           │ durable │
//!                 └── status ─┘         └── slots, positions, feedback
//! ```
//!
//! The plane has a thread with its own runtime, and the store has one more for writing. Whatever must not be
//! limped on after (a failed sync, a panic) ends the plane: [`Relay::failed`].

mod config;
mod error;
mod followers;
mod metrics;
mod receiver;
mod retention;
mod sender;
mod slots;
mod status;
mod steer;
mod store;

pub use config::{RelayConfig, RelayInputs, RelayTuning};
pub use error::RelayError;

/// The parts that the simulation drives with a shell of its own.
#[cfg(test)]
pub(crate) mod parts {
    pub(crate) use super::followers::Followers;
    pub(crate) use super::metrics::Metrics;
    pub(crate) use super::receiver::core as receiver;
    pub(crate) use super::sender::SenderConfig;
    pub(crate) use super::sender::core as sender;
    pub(crate) use super::slots::{RestartPoint, Slots};
    pub(crate) use super::store::{Change, Stepped, Store, StoreConfig, StreamId, Tail};
}

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::error::Cause;
use self::followers::Followers;
use self::metrics::Metrics;
use self::sender::SenderConfig;
use self::slots::{RestartPoint, Slots};
use self::status::UpstreamStatus;
use self::steer::Steering;
use self::store::{Store, StoreConfig};
use crate::net::{Client, Detached, Stream};
use crate::pg::{Lsn, SlotName, TimelineId};
use crate::topology::{Node, WalStatus};

/// Replication clients that wait for the plane's thread. When full, the listener's task waits.
const ARRIVALS: usize = 64;
/// How often the slots' file follows the slots.
const SLOTS_SAVED_EVERY: Duration = Duration::from_secs(1);

/// The running WAL plane. Cheap to clone; it ends with its shutdown token.
#[derive(Clone, Debug)]
pub struct Relay {
    arrivals: mpsc::Sender<Arrival>,
    failed: watch::Receiver<Option<Arc<str>>>,
    slots: Arc<Slots>,
    shutdown: CancellationToken,
}

/// A slot, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    pub name: SlotName,
    pub active_pid: Option<u32>,
    /// The oldest WAL that its follower may ask for; `None`: nothing is held back yet.
    pub restart: Option<(TimelineId, Lsn)>,
}

/// A client on its way from a worker's runtime to ours.
struct Arrival {
    stream: Detached,
    client: ClientRest,
}

type ClientRest = Box<dyn FnOnce(Stream) -> Client + Send>;

impl Relay {
    /// Opens the store, which walks its newest WAL, and starts the plane.
    pub fn start(
        config: RelayConfig,
        inputs: RelayInputs,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Result<(Relay, watch::Receiver<Arc<WalStatus>>), RelayError> {
        let plane = Plane::open(config, inputs, registry, shutdown.clone())?;
        let (arrivals, arriving) = mpsc::channel(ARRIVALS);
        let (fail, failed) = watch::channel(None);
        let slots = plane.slots.clone();
        let (status, published) = watch::channel(Arc::new(WalStatus::starting()));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("wal-read")
            .build()
            .map_err(Cause::Thread)?;
        let run = move || {
            let why = run(&runtime, plane, arriving, status);
            if let Some(why) = why {
                fail.send_replace(Some(why.into()));
            }
        };
        std::thread::Builder::new().name("wal".to_owned()).spawn(run).map_err(Cause::Thread)?;
        Ok((Relay { arrivals, failed, slots, shutdown }, published))
    }

    pub fn slots(&self) -> Vec<SlotView> {
        let view = |status: slots::SlotStatus| SlotView {
            name: status.name,
            active_pid: status.active_pid,
            restart: status.restart.map(|restart| (restart.timeline, restart.lsn)),
        };
        self.slots.statuses().into_iter().map(view).collect()
    }

    /// Hands a replication client over; it is served on the plane's own thread from here on.
    pub async fn serve(&self, client: Client) {
        let Client { stream, peer, received, out, user, database, parameters, credentials } = client;
        let Ok(stream) = stream.detach() else { return };
        let rest =
            move |stream| Client { stream, peer, received, out, user, database, parameters, credentials };
        // The plane has ended: the connection closes with the stream.
        let _ = self.arrivals.send(Arrival { stream, client: Box::new(rest) }).await;
    }

    /// Resolves when the plane has met something that the process must not go on after, with the reason.
    /// Never resolves on an orderly shutdown.
    pub async fn failed(&self) -> Arc<str> {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) if self.shutdown.is_cancelled() => std::future::pending().await,
            Err(_) => "the thread of the WAL plane has ended".into(),
        }
    }
}

/// Everything that runs on the plane's thread.
struct Plane {
    config: RelayConfig,
    inputs: RelayInputs,
    slot: SlotName,
    store: Store,
    slots: Arc<Slots>,
    followers: Arc<Followers>,
    metrics: Metrics,
    senders: Arc<sender::Shared>,
    shutdown: CancellationToken,
}

impl Plane {
    fn open(
        config: RelayConfig,
        inputs: RelayInputs,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Result<Plane, Cause> {
        let slot = slot_name(&config.instance)?;
        let metrics = Metrics::new(registry)?;
        let store_config = StoreConfig {
            directory: config.directory.clone(),
            retain_bytes: inputs.tuning.borrow().retain_bytes,
            ring_bytes: config.ring_bytes,
        };
        let store = Store::open(&store_config, &metrics)?;
        let slots = Arc::new(Slots::open(&config.directory)?);
        let followers = Arc::new(Followers::new());
        pin(&store, &slots, &inputs, config.max_slot_bytes);
        let senders = Arc::new(sender::Shared {
            store: store.clone(),
            slots: slots.clone(),
            followers: followers.clone(),
            config: SenderConfig { wal_sender_timeout: config.follower_timeout },
            metrics: sender::Metrics::new(registry)?,
            shutdown: shutdown.clone(),
        });
        Ok(Plane { config, inputs, slot, store, slots, followers, metrics, senders, shutdown })
    }
}

/// The store asks the slots what it must keep.
fn pin(store: &Store, slots: &Arc<Slots>, inputs: &RelayInputs, max_bytes: u64) {
    let (slots, directive, tail) = (slots.clone(), inputs.directive.clone(), store.tail());
    store.set_pins(Box::new(move || {
        let primary = directive.borrow().primary.as_ref().map(crate::topology::NodeName::slot);
        retention::pinned(&slots.statuses(), primary.as_ref(), tail.borrow().durable, max_bytes)
    }));
}

/// `bellwether_<instance>`, a `-` written as `_`.
fn slot_name(instance: &str) -> Result<SlotName, Cause> {
    let name = format!("bellwether_{}", instance.replace('-', "_").to_ascii_lowercase());
    name.parse().map_err(|_| Cause::Instance(instance.to_owned()))
}

/// Runs the plane until shutdown or failure; returns why it failed.
fn run(
    runtime: &Runtime,
    plane: Plane,
    arriving: mpsc::Receiver<Arrival>,
    status: watch::Sender<Arc<WalStatus>>,
) -> Option<String> {
    let shutdown = plane.shutdown.clone();
    runtime.block_on(async move {
        let mut tasks = JoinSet::new();
        let store_failed = store_failed(plane.store.failed());
        spawn(&mut tasks, plane, arriving, status);
        tokio::select! {
            () = shutdown.cancelled() => None,
            why = store_failed => Some(why),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(task)) if shutdown.is_cancelled() => { tracing::debug!(task, "ended"); None }
                Ok(Ok(task)) => Some(format!("the task {task} of the WAL plane has ended")),
                Ok(Err(why)) => Some(why),
                Err(panic) => Some(format!("a task of the WAL plane: {panic}")),
            },
        }
    })
}

type TaskEnd = Result<&'static str, String>;

/// All tasks of the plane, in one place. Each of them lives as long as the plane; one that ends is a failure.
fn spawn(
    tasks: &mut JoinSet<TaskEnd>,
    plane: Plane,
    arriving: mpsc::Receiver<Arrival>,
    status: watch::Sender<Arc<WalStatus>>,
) {
    let (upstream, upstream_seen) = watch::channel(UpstreamStatus::idle());
    let Plane { config, inputs, slot, store, slots, followers, metrics, senders, shutdown } = plane;
    tasks.spawn(named("announcements", store.announce()));
    tasks.spawn(named("slots", sender::keep_slots_saved(slots.clone(), SLOTS_SAVED_EVERY, shutdown)));
    tasks.spawn(named("status", status::publish(store.clone(), followers.clone(), upstream_seen, status)));
    tasks.spawn(named("node slots", ensure_node_slots(store.clone(), slots, inputs.nodes.clone())));
    tasks.spawn(named("followers", take_in(arriving, senders)));
    tasks.spawn(named("retention", retain(store.clone(), inputs.tuning.clone())));
    let steering = Steering {
        inputs,
        instance: config.instance,
        slot,
        upstream_timeout: config.upstream_timeout,
        store,
        followers,
        metrics,
        status: upstream,
        streams: 0,
    };
    tasks.spawn(async move {
        match steering.run().await {
            Ok(()) => Ok("receiver"),
            Err(error) => Err(explain(&error)),
        }
    });
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> TaskEnd {
    task.await;
    Ok(name)
}

async fn store_failed(mut failed: watch::Receiver<Option<Arc<store::StoreError>>>) -> String {
    match failed.wait_for(Option::is_some).await {
        Ok(error) => error.as_ref().map_or_else(String::new, |error| explain(error)),
        Err(_) => "the WAL store has gone".to_owned(),
    }
}

/// The error and its causes on one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Every configured node has a slot as soon as there is WAL to hold back for it.
async fn ensure_node_slots(store: Store, slots: Arc<Slots>, nodes: Vec<Node>) {
    let mut tail = store.tail();
    let Ok(first) = tail.wait_for(|tail| tail.durable.is_valid()).await.map(|tail| *tail) else { return };
    for node in &nodes {
        let restart = RestartPoint { timeline: first.timeline, lsn: first.durable };
        slots.ensure(&node.name.slot(), Some(restart));
    }
    std::future::pending::<()>().await;
}

/// As much WAL as is said now. Never ends.
async fn retain(store: Store, mut tuning: watch::Receiver<RelayTuning>) {
    while tuning.changed().await.is_ok() {
        let bytes = tuning.borrow_and_update().retain_bytes;
        store.retain(bytes);
    }
    std::future::pending::<()>().await;
}

/// A task for each follower. A panic costs that follower and nobody else.
async fn take_in(mut arriving: mpsc::Receiver<Arrival>, senders: Arc<sender::Shared>) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            arrival = arriving.recv() => {
                // All handles are gone; those who are served stay.
                let Some(Arrival { stream, client }) = arrival else { break };
                match stream.attach() {
                    Ok(stream) => { serving.spawn(sender::serve(client(stream), senders.clone())); }
                    Err(error) => tracing::info!(%error, "a follower was gone before it was served"),
                }
            }
            Some(ended) = serving.join_next() => {
                if let Err(panic) = ended {
                    tracing::error!(error = %panic, "serving a follower failed");
                }
            }
        }
    }
    while serving.join_next().await.is_some() {}
    std::future::pending::<()>().await;
}
