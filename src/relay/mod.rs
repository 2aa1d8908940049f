//! The WAL plane: it takes the primary's write-ahead log once, keeps it durably, and ships it to every standby.
//!
//! ```text
//! upstream ──> receiver ──> store ──> sender ──> followers
//!                 ^           │ durable │
//!                 └── status ─┘ │       └── slots, positions, feedback
//!                               └──> archive
//! ```
//!
//! Among several instances, followers and the archive get what enough relays have durably ([`agreed`]).
//!
//! The plane has a thread with its own runtime, and the store has one more for writing. Whatever must not be
//! limped on after (a failed sync, a panic) ends the plane: [`Relay::failed`].

mod agreed;
mod alarms;
pub mod archive;
mod backups;
mod commits;
mod config;
mod error;
mod followers;
pub mod inspect;
mod metrics;
mod now;
mod receiver;
mod reset;
mod retention;
mod sender;
mod slots;
mod sources;
mod status;
mod steer;
mod store;

pub use config::{RelayConfig, RelayInputs, RelayOutputs, RelayTuning};
pub use error::RelayError;
pub use reset::{Reset, ResetError};
pub use retention::{Retain, WalAvailability};

/// The parts that the simulation drives with a shell of its own.
#[cfg(test)]
pub(crate) mod parts {
    pub(crate) use super::followers::{Followers, Kind as FollowerKind};
    pub(crate) use super::metrics::Metrics;
    pub(crate) use super::now::Now;
    pub(crate) use super::receiver::core as receiver;
    pub(crate) use super::sender::SenderConfig;
    pub(crate) use super::sender::core as sender;
    pub(crate) use super::slots::{Available, RestartPoint, Slots};
    pub(crate) use super::store::{
        Change, CheckedReader, Disk, DiskFile, Files, Platter, Rewind, Standing, Stepped, Store, StoreConfig,
        StreamId, Tail,
    };
}

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::alarms::keeper::AlarmKeeper;
use self::backups::Backups;
use self::error::Cause;
use self::followers::Followers;
use self::metrics::Metrics;
use self::retention::keeper::Keeper;
use self::sender::SenderConfig;
use self::slots::{RestartPoint, SlotStatus, Slots};
use self::status::UpstreamStatus;
use self::steer::Steering;
use self::store::{Files, LockHeld, Store, StoreConfig, Tail};
use crate::net::{Client, Detached, Stream, Target};
use crate::pg::{Lsn, SlotName, TimelineId};
use crate::topology::{ArchiveStatus, Node};

/// Replication clients that wait for the plane's thread. When full, the listener's task waits.
const ARRIVALS: usize = 64;
/// How often the slots' file, and their metrics, follow the slots.
const SLOTS_SAVED_EVERY: Duration = Duration::from_secs(1);
/// For the upstream to close its end after we have said goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// From the order to close to the release of the store: the goodbye, and what a sync may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(7);
/// Whether the store is released is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The task's name.
const RECEIVER: &str = "receiver";

/// The WAL plane. Cheap to clone; it ends with its shutdown token. For a takeover it can be closed before, and opened
/// again.
#[derive(Clone, Debug)]
pub struct Relay {
    plan: Arc<Plan>,
    /// `None`: closed.
    open: Arc<Mutex<Option<Open>>>,
}

/// What every opening starts from.
#[derive(Debug)]
struct Plan {
    config: RelayConfig,
    inputs: RelayInputs,
    metrics: Metrics,
    sender_metrics: sender::Metrics,
    /// `None`: nothing is archived.
    archive_metrics: Option<archive::Metrics>,
    outputs: RelayOutputs,
    fail: watch::Sender<Option<Arc<str>>>,
    shutdown: CancellationToken,
}

/// From an opening to its end.
#[derive(Debug)]
struct Open {
    arrivals: mpsc::Sender<Arrival>,
    slots: Arc<Slots>,
    stop: CancellationToken,
    lock: LockHeld,
}

/// A slot, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    pub name: SlotName,
    pub active_pid: Option<u32>,
    /// The oldest WAL that its follower may ask for; `None`: nothing is held back (yet, or any more).
    pub restart: Option<(TimelineId, Lsn)>,
    /// `None`: nothing is held back yet.
    pub wal_status: Option<WalAvailability>,
    /// WAL behind its restart point.
    pub retained_bytes: u64,
    /// WAL that can be written before the slot is in danger; `None`: it is lost, or holds nothing back.
    pub safe_wal_size: Option<u64>,
}

impl SlotView {
    fn new(status: SlotStatus, retain: &Retain, durable: Lsn) -> SlotView {
        let retained = status.restart.map(|restart| durable.bytes_since(restart.lsn.min(durable)));
        SlotView {
            wal_status: retention::availability(retain, &status, durable),
            retained_bytes: retained.unwrap_or(0),
            safe_wal_size: retained.map(|retained| retain.max_size.saturating_sub(retained)),
            name: status.name,
            active_pid: status.active_pid,
            restart: status.restart.map(|restart| (restart.timeline, restart.lsn)),
        }
    }
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
        outputs: RelayOutputs,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Result<Relay, RelayError> {
        let archive_metrics = config.archive.as_ref().map(|_| archive::Metrics::new(registry)).transpose();
        let plan = Plan {
            archive_metrics: archive_metrics.map_err(Cause::Metrics)?,
            config,
            inputs,
            metrics: Metrics::new(registry).map_err(Cause::Metrics)?,
            sender_metrics: sender::Metrics::new(registry).map_err(Cause::Metrics)?,
            outputs,
            fail: watch::Sender::new(None),
            shutdown,
        };
        let relay = Relay { plan: Arc::new(plan), open: Arc::default() };
        relay.reopen()?;
        Ok(relay)
    }

    /// Opens a closed plane as a new process would: what it knows is what is on disk.
    pub fn reopen(&self) -> Result<(), RelayError> {
        let plan = &self.plan;
        let stop = plan.shutdown.child_token();
        let plane = Plane::open(plan, stop.clone())?;
        let (arrivals, arriving) = mpsc::channel(ARRIVALS);
        let (slots, lock) = (plane.slots.clone(), plane.store.lock_held());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("wal-read")
            .build()
            .map_err(Cause::Thread)?;
        let unless_in_order = FailUnlessStopped { fail: plan.fail.clone(), stop: stop.clone() };
        let outputs = plan.outputs.clone();
        let run = move || {
            let why = run(&runtime, plane, arriving, outputs);
            if let Some(why) = why {
                unless_in_order.fail.send_replace(Some(why.into()));
            }
        };
        std::thread::Builder::new().name("wal".to_owned()).spawn(run).map_err(Cause::Thread)?;
        *self.open.lock() = Some(Open { arrivals, slots, stop, lock });
        Ok(())
    }

    /// Ends the stream and the followers. When this returns the upstream has no connection of ours any more,
    /// everything that was received is durable or forgotten, and another process may have the store.
    pub async fn close(&self) -> Result<(), RelayError> {
        let Some(Open { stop, lock, slots, .. }) = self.open.lock().take() else { return Ok(()) };
        // They hold the directory, too.
        drop(slots);
        stop.cancel();
        let released = async {
            while lock.is_held() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(CLOSE_LIMIT, released).await.map_err(|_| Cause::NotClosed(CLOSE_LIMIT).into())
    }

    pub fn slots(&self) -> Vec<SlotView> {
        let open = self.open.lock().as_ref().map(|open| open.slots.clone());
        let statuses = open.map_or_else(Vec::new, |slots| slots.statuses());
        let retain = self.plan.inputs.tuning.borrow().retain;
        let durable = self.plan.outputs.status.borrow().durable;
        statuses.into_iter().map(|status| SlotView::new(status, &retain, durable)).collect()
    }

    /// Hands a replication client over; it is served on the plane's own thread from here on.
    pub async fn serve(&self, client: Client) {
        let Some(arrivals) = self.open.lock().as_ref().map(|open| open.arrivals.clone()) else { return };
        let Client { stream, peer, received, out, user, database, parameters, credentials, minor } = client;
        let Ok(stream) = stream.detach() else { return };
        let rest = move |stream| Client {
            stream,
            peer,
            received,
            out,
            user,
            database,
            parameters,
            credentials,
            minor,
        };
        // The plane has ended: the connection closes with the stream.
        let _ = arrivals.send(Arrival { stream, client: Box::new(rest) }).await;
    }

    /// Resolves when the plane has met something that the process must not go on after, with the reason.
    /// Never resolves on an orderly shutdown.
    pub async fn failed(&self) -> Arc<str> {
        let mut failed = self.plan.fail.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// A thread of the plane that ends unasked, by a panic too, is a failure.
struct FailUnlessStopped {
    fail: watch::Sender<Option<Arc<str>>>,
    stop: CancellationToken,
}

impl Drop for FailUnlessStopped {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            let unsaid = |why: &mut Option<Arc<str>>| {
                let unsaid = why.is_none();
                why.get_or_insert_with(|| "the thread of the WAL plane has ended".into());
                unsaid
            };
            self.fail.send_if_modified(unsaid);
        }
    }
}

/// Everything that runs on the plane's thread.
struct Plane {
    config: RelayConfig,
    inputs: RelayInputs,
    files: Files,
    slot: SlotName,
    store: Store,
    /// Among several instances.
    gate: Option<agreed::Gate>,
    slots: Arc<Slots>,
    followers: Arc<Followers>,
    metrics: Metrics,
    senders: Arc<sender::Shared>,
    archived: watch::Receiver<Option<ArchiveStatus>>,
    shutdown: CancellationToken,
}

impl Plane {
    fn open(plan: &Plan, shutdown: CancellationToken) -> Result<Plane, Cause> {
        let (config, inputs, metrics) = (plan.config.clone(), plan.inputs.clone(), plan.metrics.clone());
        let slot = slot_name(&config.instance)?;
        let store_config =
            StoreConfig { retain_bytes: inputs.tuning.borrow().retain.size, ring_bytes: config.ring_bytes };
        let files = Files::open(&config.directory)?;
        let store = Store::open(files.clone(), &store_config, &metrics)?;
        let slots = Arc::new(Slots::open(files.clone())?);
        slots.hold_from(store.oldest_kept());
        let followers = Arc::new(Followers::new());
        let backups = Arc::new(Backups::default());
        let (archive_status, archived) = watch::channel(None);
        let (shipped, gate) = agreed::shipped(&store, &inputs.agreed);
        let unarchived = archive(plan, (&store, &shipped), archive_status, &shutdown)?;
        let keeper = Keeper {
            files: files.clone(),
            slots: slots.clone(),
            tuning: inputs.tuning.clone(),
            directive: inputs.directive.clone(),
            nodes: inputs.nodes.iter().map(|node| node.name.clone()).collect(),
            all: inputs.all.clone(),
            tail: store.tail(),
            others: Box::new(held_beside_slots(&backups, unarchived)),
        };
        store.set_pins(Box::new(move |kept| keeper.pinned(kept)));
        let senders = Arc::new(sender::Shared {
            store: store.clone(),
            shipped,
            slots: slots.clone(),
            followers: followers.clone(),
            backups,
            inputs: inputs.clone(),
            config: SenderConfig { wal_sender_timeout: config.follower_timeout },
            metrics: plan.sender_metrics.clone(),
            apart: sender::Apart::default(),
            shutdown: shutdown.clone(),
        });
        Ok(Plane {
            config,
            inputs,
            files,
            slot,
            store,
            gate,
            slots,
            followers,
            metrics,
            senders,
            archived,
            shutdown,
        })
    }
}

/// Starts the archive, if there is to be one; returns what it holds back.
fn archive(
    plan: &Plan,
    (store, shipped): (&Store, &watch::Receiver<Tail>),
    status: watch::Sender<Option<ArchiveStatus>>,
    stop: &CancellationToken,
) -> Result<Option<archive::Hold>, Cause> {
    let (Some(config), Some(metrics)) = (&plan.config.archive, &plan.archive_metrics) else {
        return Ok(None);
    };
    let hold = archive::Hold::everything();
    let servers = servers(&plan.config, &plan.inputs);
    let outputs = archive::Outputs { hold: hold.clone(), status, metrics: metrics.clone() };
    let wal = archive::Wal { store: store.clone(), shipped: shipped.clone() };
    archive::start(config.clone(), wal, servers, outputs, stop.clone()).map_err(Cause::Thread)?;
    Ok(Some(hold))
}

/// For base backups.
fn servers(config: &RelayConfig, inputs: &RelayInputs) -> archive::Servers {
    let target = |node: &Node| Target {
        address: node.address.clone(),
        user: inputs.user.clone(),
        database: "replication".into(),
        credentials: inputs.credentials.clone(),
        tls: inputs.tls.clone(),
        parameters: vec![("application_name".to_owned(), format!("bellwether_{}_backup", config.instance))],
    };
    let nodes = inputs.nodes.iter().map(|node| (node.name.clone(), target(node))).collect();
    archive::Servers { instance: config.instance.clone(), nodes, directive: inputs.directive.clone() }
}

/// What base backups and the archive need.
#[expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
fn held_beside_slots(
    backups: &Arc<Backups>,
    unarchived: Option<archive::Hold>,
) -> impl Fn() -> Option<Lsn> + Send + Sync + 'static {
    let backups = backups.clone();
    move || {
        let unarchived = unarchived.as_ref().map(archive::Hold::from);
        backups.oldest(Instant::now()).into_iter().chain(unarchived).min()
    }
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
    outputs: RelayOutputs,
) -> Option<String> {
    let shutdown = plane.shutdown.clone();
    runtime.block_on(async move {
        let mut tasks = JoinSet::new();
        let store_failed = store_failed(plane.store.failed());
        spawn(&mut tasks, plane, arriving, outputs);
        tokio::select! {
            // At shutdown the tasks end one after another: the upstream is taken leave of, whichever is first.
            biased;
            () = shutdown.cancelled() => { goodbye(&mut tasks).await; None }
            why = store_failed => Some(why),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(task)) if shutdown.is_cancelled() => {
                    tracing::debug!(task, "ended");
                    if task != RECEIVER {
                        goodbye(&mut tasks).await;
                    }
                    None
                }
                Ok(Ok(task)) => Some(format!("the task {task} of the WAL plane has ended")),
                Ok(Err(why)) => Some(why),
                Err(panic) => Some(format!("a task of the WAL plane: {panic}")),
            },
        }
    })
}

type TaskEnd = Result<&'static str, String>;

/// The stream's orderly end. Nobody may come under our name at the upstream before.
async fn goodbye(tasks: &mut JoinSet<TaskEnd>) {
    let said = async {
        while let Some(ended) = tasks.join_next().await {
            if matches!(ended, Ok(Ok(RECEIVER))) {
                return;
            }
        }
    };
    if tokio::time::timeout(GOODBYE_LIMIT, said).await.is_err() {
        tracing::info!(limit = ?GOODBYE_LIMIT, "the upstream did not close its end of the stream");
    }
}

/// All tasks of the plane, in one place. Each of them lives as long as the plane; one that ends is a failure.
fn spawn(
    tasks: &mut JoinSet<TaskEnd>,
    plane: Plane,
    arriving: mpsc::Receiver<Arrival>,
    outputs: RelayOutputs,
) {
    let (upstream, upstream_seen) = watch::channel(UpstreamStatus::idle());
    let Plane {
        config,
        inputs,
        files,
        slot,
        store,
        gate,
        slots,
        followers,
        metrics,
        senders,
        archived,
        shutdown,
    } = plane;
    if let Some(gate) = gate {
        tasks.spawn(named("what is agreed", gate.run()));
    }
    let (alarms, alarms_seen) = watch::channel(Arc::default());
    let keeper = AlarmKeeper {
        files,
        store: store.clone(),
        slots: slots.clone(),
        upstream: upstream_seen.clone(),
        directive: inputs.directive.clone(),
        archive: archived.clone(),
        metrics: metrics.clone(),
        alarms,
    };
    tasks.spawn(named("alarms", keeper.run()));
    tasks.spawn(named("announcements", store.announce()));
    let saving = sender::keep_slots_saved(slots.clone(), SLOTS_SAVED_EVERY, shutdown.clone());
    tasks.spawn(named("slots", saving));
    tasks.spawn(named(
        "status",
        status::publish(
            store.clone(),
            followers.clone(),
            status::Seen { upstream: upstream_seen, archive: archived, alarms: alarms_seen },
            outputs.status,
            metrics.clone(),
        ),
    ));
    let shipped = senders.shipped.clone();
    let answering = commits::answer(store.clone(), shipped, inputs.in_doubt.clone(), outputs.commits);
    tasks.spawn(named("commits in doubt", answering));
    tasks.spawn(named("node slots", ensure_node_slots(store.clone(), slots.clone(), inputs.nodes.clone())));
    tasks.spawn(named("followers", take_in(arriving, senders)));
    tasks.spawn(named("retention", retain(store.clone(), inputs.tuning.clone())));
    let measuring = measure_slots(slots, store.tail(), inputs.tuning.clone(), metrics.clone());
    tasks.spawn(named("slot metrics", measuring));
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
        closing: shutdown.clone(),
    };
    tasks.spawn(async move {
        match steering.run().await {
            Ok(()) => Ok(RECEIVER),
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
    let mut report = store.report();
    let begun = report.wait_for(|report| report.tail.durable.is_valid());
    let Ok(first) = begun.await.map(|report| report.tail) else { return };
    for node in &nodes {
        let restart = RestartPoint { timeline: first.timeline, lsn: first.durable };
        slots.ensure(&node.name.slot(), Some(restart));
    }
    std::future::pending::<()>().await;
}

/// Never ends.
async fn measure_slots(
    slots: Arc<Slots>,
    tail: watch::Receiver<Tail>,
    tuning: watch::Receiver<RelayTuning>,
    metrics: Metrics,
) {
    loop {
        let (retain, durable) = (tuning.borrow().retain, tail.borrow().durable);
        let view = |status| SlotView::new(status, &retain, durable);
        let views: Vec<SlotView> = slots.statuses().into_iter().map(view).collect();
        metrics.observe_slots(&views);
        tokio::time::sleep(SLOTS_SAVED_EVERY).await;
    }
}

/// As much WAL as is said now. Never ends.
async fn retain(store: Store, mut tuning: watch::Receiver<RelayTuning>) {
    while tuning.changed().await.is_ok() {
        let bytes = tuning.borrow_and_update().retain.size;
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
