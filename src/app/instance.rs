#![expect(clippy::disallowed_methods, reason = "shell: reads the clock and starts tasks")]
//! One instance: the planes, built and connected.
//!
//! What the planes publish goes through `watch` channels that are made here; nothing else joins them. Each has
//! its own threads (`ARCHITECTURE.md`, Threads); the control plane and HTTP run on the caller's runtime. A plane
//! that ends before it was asked to ends the instance: half of it would be a lie to its clients.
//!
//! [`Instance::build`] opens everything and does nothing with it; [`Instance::open`] lets it decide and accept. For a
//! takeover what only one process may do is closed, and opened again when there is none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::certificates::Certificates;
use super::config::Config;
use super::events::{Hooks, Seen};
use super::front::{self, Front, Listening};
use super::local;
use super::members::{self, Exchange, Own};
use super::plans;
use super::reload::{self, Taps, Tuned, Tuning};
use super::run::RunError;
use super::takeover::{Follow, Limits, Predecessor, Reach, Socket};
use super::telemetry::LogLevel;
use super::together;
use super::users;
use crate::admin::{self, MemberQuestions, Reload, console::Console};
use crate::failover::{self, Closed, Failover, FailoverError, LocalNode};
use crate::net::{Acceptor, LoginMetrics, Reception};
use crate::proxy::{self, Proxy, Workers};
use crate::relay::{Relay, RelayOutputs};
use crate::topology::{
    Agreed, CommitOutcomes, CommitsInDoubt, Deed, Directive, Durability, Election, Failovers, Health, Heard,
    Members, NodeName, ProxyStatus, Restart, Term, WalStatus,
};

/// Who has begun a commit since the last look is told that it hangs.
const CUT_INTERVAL: Duration = Duration::from_millis(20);

/// The control plane and HTTP have so long to end.
const PLANES_LIMIT: Duration = Duration::from_secs(5);

/// What is read and asked before anything is opened.
#[derive(Debug)]
pub(super) struct Parts {
    certificates: Certificates,
    local: HashMap<NodeName, LocalNode>,
}

impl Parts {
    pub(super) async fn load(config: &Config) -> Result<Parts, RunError> {
        let certificates = Certificates::load(config)?;
        Ok(Parts { certificates, local: local::servers(config).await? })
    }
}

/// Whose sessions there are beside this process's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    None,
    /// Those of the process whose place is taken.
    Predecessor,
}

/// The latest value of one kind, and who watches it.
type Wire<T> = (watch::Sender<Arc<T>>, watch::Receiver<Arc<T>>);

/// The channels between the planes, and the registry that they share.
#[derive(Debug)]
struct Wires {
    /// As the control plane orders it.
    ordered: Wire<Directive>,
    /// As the query plane obeys it: the same where the instance is alone.
    directive: Wire<Directive>,
    members: Wire<Members>,
    agreed: (watch::Sender<Agreed>, watch::Receiver<Agreed>),
    health: Wire<Health>,
    history: Wire<Vec<Election>>,
    leader: Wire<Option<String>>,
    failovers: Wire<Failovers>,
    restarts: Wire<Vec<Restart>>,
    at_work: Wire<Vec<NodeName>>,
    deeds: Wire<Vec<Deed>>,
    /// Of this instance's relay.
    own_wal: Wire<WalStatus>,
    /// Of all relays: the same where it is the only one.
    wal: Wire<WalStatus>,
    in_doubt: Wire<CommitsInDoubt>,
    commits: Wire<CommitOutcomes>,
    registry: Registry,
}

impl Wires {
    fn new(config: &Config) -> Wires {
        let alone = plans::is_alone(config);
        let ordered = watch::channel(Arc::new(Directive::starting(config.durability)));
        let own_wal = watch::channel(Arc::new(WalStatus::starting()));
        let agreed = if alone { Agreed::Alone } else { Agreed::Quorum { term: Term(0), end: None } };
        Wires {
            directive: if alone { ordered.clone() } else { watch::channel(ordered.1.borrow().clone()) },
            wal: if alone { own_wal.clone() } else { watch::channel(own_wal.1.borrow().clone()) },
            ordered,
            own_wal,
            members: watch::channel(Arc::new(members::configured(config))),
            agreed: watch::channel(agreed),
            health: watch::channel(Arc::default()),
            history: watch::channel(Arc::default()),
            leader: watch::channel(Arc::default()),
            failovers: watch::channel(Arc::default()),
            restarts: watch::channel(Arc::default()),
            at_work: watch::channel(Arc::default()),
            deeds: watch::channel(Arc::default()),
            in_doubt: watch::channel(Arc::default()),
            commits: watch::channel(Arc::default()),
            registry: Registry::new(),
        }
    }
}

/// What becomes of those that are under way when an instance ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commits {
    GoOn,
    /// Under quorum durability: nobody acknowledges them any more.
    Hang,
}

/// A running instance.
#[derive(Debug)]
pub(super) struct Instance {
    /// Accepting and serving clients; cancelled first.
    clients: CancellationToken,
    /// Everything else.
    planes: CancellationToken,
    front: Front,
    workers: Workers,
    proxy: Proxy,
    served: watch::Receiver<Arc<ProxyStatus>>,
    relay: Relay,
    ruling: Ruling,
    admin: Option<Admin>,
    predecessor: Option<Predecessor>,
    /// Whether the process before this one has ended.
    alone: Option<watch::Receiver<bool>>,
    /// `None`: it is not one of several.
    exchange: Option<Exchange>,
    wires: Wires,
    /// What rules the planes of one instance among several: until [`Instance::open`], nothing is obeyed, believed or not.
    gate: Option<(together::Own, together::Told)>,
    /// From then on.
    together: CancellationToken,
    /// What is in effect.
    config: watch::Receiver<Arc<Config>>,
    /// The tasks on this runtime. Each lives as long as the instance.
    tasks: JoinSet<TaskEnd>,
}

/// A task's name and how it ended.
type TaskEnd = (&'static str, Result<(), RunError>);

/// The control plane.
#[derive(Debug)]
enum Ruling {
    /// The state has been read, nothing is done.
    Ready(Box<Failover>),
    Running {
        stop: CancellationToken,
        task: JoinHandle<Result<Closed, FailoverError>>,
    },
    Closed(Box<Closed>),
    /// It has failed.
    Failed,
}

/// HTTP. The socket outlives the server.
#[derive(Debug)]
struct Admin {
    socket: OwnedFd,
    address: SocketAddr,
    sources: admin::Sources,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Admin {
    fn open(&mut self) -> std::io::Result<()> {
        if self.serving.is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::from(self.socket.try_clone()?);
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let serve = tokio::spawn(admin::serve(listener, self.sources.clone(), stop.clone()));
        self.serving = Some((stop, serve));
        Ok(())
    }

    fn close(&mut self) {
        if let Some((stop, _)) = self.serving.take() {
            stop.cancel();
        }
    }
}

/// The planes, built and connected.
struct Planes {
    relay: Relay,
    proxy: Proxy,
    failover: Failover,
    served: watch::Receiver<Arc<ProxyStatus>>,
    admin: admin::Sources,
    predecessor: Option<(Predecessor, Reach)>,
}

impl Planes {
    fn connect(
        config: &Config,
        parts: &Parts,
        tuned: Tuned,
        wires: &Wires,
        others: Others,
        (clients, planes): (&CancellationToken, &CancellationToken),
    ) -> Result<Planes, RunError> {
        let (directive, health, wal) =
            (wires.directive.1.clone(), wires.health.1.clone(), wires.wal.1.clone());
        let tls = &parts.certificates.for_servers;
        let in_doubt = wires.in_doubt.1.clone();
        let (ordered, agreed) = (wires.ordered.1.clone(), wires.agreed.1.clone());
        let obeys = plans::relay_inputs(config, tls, tuned.relay, ordered, in_doubt, (agreed, wal.clone()));
        let tells = RelayOutputs { status: wires.own_wal.0.clone(), commits: wires.commits.0.clone() };
        let relay = Relay::start(plans::relay(config), obeys, tells, &wires.registry, planes.clone())?;
        let obeys = proxy::Inputs {
            directive: directive.clone(),
            health: health.clone(),
            wal: wal.clone(),
            commits: proxy::Commits { in_doubt: wires.in_doubt.0.clone(), outcomes: wires.commits.1.clone() },
            nodes: plans::nodes(config),
        };
        let (proxy, served) = Proxy::new(
            Instant::now(),
            plans::proxy(config),
            obeys,
            plans::proxy_login(config, tls),
            &wires.registry,
            clients.clone(),
        )?;
        let predecessor = match others {
            Others::None => None,
            Others::Predecessor => {
                let registry = &wires.registry;
                Some(Predecessor::new(directive, health, wal, served.clone(), registry)?)
            }
        };
        // The fence is around all sessions, this process's and the others.
        let all_served =
            predecessor.as_ref().map_or_else(|| served.clone(), |(_, reach)| reach.proxy.clone());
        let mut admin = admin_sources(config, wires, all_served.clone());
        let sees = failover::Inputs {
            wal: wires.own_wal.1.clone(),
            proxy: all_served,
            members: wires.members.1.clone(),
            local: parts.local.clone(),
        };
        let orders = failover::Outputs {
            directive: wires.ordered.0.clone(),
            health: wires.health.0.clone(),
            history: wires.history.0.clone(),
            leader: wires.leader.0.clone(),
            failovers: wires.failovers.0.clone(),
            restarts: wires.restarts.0.clone(),
            at_work: wires.at_work.0.clone(),
            deeds: wires.deeds.0.clone(),
        };
        let (failover, here) =
            Failover::new(plans::failover(config, tls, tuned.failover), sees, orders, &wires.registry)?;
        let consoles =
            config.peers.iter().map(|peer| (peer.instance.clone(), plans::peer_target(config, tls, peer)));
        admin.orders = admin::Orders { here: Some(here), others: Arc::new(consoles.collect()) };
        Ok(Planes { relay, proxy, failover, served, admin, predecessor })
    }
}

impl Instance {
    /// Opens everything: the store, the journal, the threads. Nothing is decided, streamed or accepted.
    pub(super) fn build(
        config: Config,
        parts: Parts,
        log_level: LogLevel,
        (listening, http): (Listening, Option<(SocketAddr, OwnedFd)>),
        others: Others,
    ) -> Result<Instance, RunError> {
        let (clients, planes) = (CancellationToken::new(), CancellationToken::new());
        // Whatever fails below, nothing that was started goes on.
        let unless_whole = (clients.clone().drop_guard(), planes.clone().drop_guard());
        let wires = Wires::new(&config);
        let (tuning, tuned) = Tuning::channels(&config);
        let connected = Planes::connect(&config, &parts, tuned, &wires, others, (&clients, &planes))?;
        let Planes { relay, proxy, failover, served, mut admin, predecessor } = connected;
        let certificates = parts.certificates;
        let (reload, reloads) = Reload::channel();
        admin.reload = Some(reload);
        let (access, accessible) = watch::channel(config.console.clone());
        let (member, questions) = MemberQuestions::channel();
        let console = Console {
            sources: admin.clone(),
            proxy: proxy.clone(),
            relay: relay.clone(),
            member,
            access: accessible,
        };
        let (lookup, candidates) = watch::channel(Vec::new());
        let reception = Reception::by(users::authenticator(&config, candidates.clone()));
        let reception = reception.with_login_limit(config.pool.login).with_tls(certificates.for_clients);
        let metrics = LoginMetrics::new(&admin.registry)?;
        let acceptor = Arc::new(Acceptor::new(reception, metrics));
        let count = plans::workers(&config);
        let hooks = Hooks::new(&config.events, admin.identity.clone(), &admin.registry)?;
        let exchange = if plans::is_alone(&config) {
            None
        } else {
            let own = own(&config, &wires, admin.proxy.clone());
            let (told, tls) = (wires.members.0.clone(), &certificates.for_servers);
            Some(Exchange::new(&config, tls, own, questions, told, &wires.registry)?)
        };
        let (exchange, exchanging) = exchange.unzip();
        let (running, followed) = watch::channel(Arc::new(config));
        let taps = Taps {
            proxy: proxy.clone(),
            acceptor: acceptor.clone(),
            tls: certificates.for_servers.clone(),
            files: Mutex::new(certificates.files),
            tuning,
            access,
            running,
            candidates,
            log_level,
        };
        let mut tasks = JoinSet::new();
        let stop = planes.clone();
        tasks.spawn(async move {
            let ended = stop.run_until_cancelled(reload::serve(taps, reloads)).await.unwrap_or(Ok(()));
            ("reading the configuration again", ended.map_err(RunError::Threads))
        });
        let (directive, health) = (admin.directive.clone(), admin.health.clone());
        let follow = users::follow(followed.clone(), certificates.for_servers, directive, health, lookup);
        let stop = planes.clone();
        tasks.spawn(task("user lookup", async move {
            let _ = stop.run_until_cancelled(follow).await;
        }));
        if let Some(hooks) = hooks {
            let seen = Seen {
                history: admin.history.clone(),
                restarts: admin.restarts.clone(),
                wal: admin.wal.clone(),
                health: admin.health.clone(),
                failovers: admin.failovers.clone(),
            };
            let stop = planes.clone();
            tasks.spawn(task("events", async move {
                let _ = stop.run_until_cancelled(hooks.run(seen)).await;
            }));
        }

        if let Some(exchanging) = exchanging {
            let stop = planes.clone();
            tasks.spawn(task("the conversations with other instances", async move {
                let _ = stop.run_until_cancelled(exchanging).await;
            }));
        }

        let gate = (!plans::is_alone(&followed.borrow())).then(|| {
            let own = together::Own {
                members: wires.members.1.clone(),
                ordered: wires.ordered.1.clone(),
                wal: wires.own_wal.1.clone(),
            };
            let told = together::Told {
                directive: wires.directive.0.clone(),
                wal: wires.wal.0.clone(),
                agreed: wires.agreed.0.clone(),
            };
            (own, told)
        });

        let (predecessor, reach) = predecessor.unzip();
        let (elsewhere, alone) = reach.map(|reach| (reach.cancels, reach.gone)).unzip();
        let console = Arc::new(console);
        let stop = clients.clone();
        let greet = front::greeter(proxy.clone(), relay.clone(), console, acceptor, elsewhere, stop);
        let (accept, front) = listening.accepting().map_err(RunError::Threads)?;
        let workers = Workers::start(count, &proxy, &clients, greet, accept).map_err(RunError::Threads)?;
        let admin = http.map(|(address, socket)| Admin { socket, address, sources: admin, serving: None });
        let (clients, planes) = (unless_whole.0.disarm(), unless_whole.1.disarm());
        let ruling = Ruling::Ready(Box::new(failover));
        Ok(Instance {
            clients,
            planes,
            front,
            workers,
            proxy,
            served,
            relay,
            ruling,
            admin,
            predecessor,
            alone,
            exchange,
            wires,
            gate,
            together: CancellationToken::new(),
            config: followed,
            tasks,
        })
    }

    /// From now on it decides, streams and accepts. `follow`: the sessions of the process before are ruled, too.
    pub(super) fn open(&mut self, mut follow: Option<Follow>) -> Result<(), RunError> {
        if let Some(follow) = &mut follow {
            let heard = follow.heard();
            // Before anything is obeyed: else it would look as if nobody vouched for it.
            self.wires.members.0.send_modify(|members| Arc::make_mut(members).inherit(heard));
        }
        if let Some((follow, predecessor)) = follow.zip(self.predecessor.take()) {
            let stop = self.planes.clone();
            self.tasks.spawn(task("ruling the sessions of the process before", async move {
                let _ = stop.run_until_cancelled(follow.run(predecessor)).await;
            }));
        }
        if let Some((own, told)) = self.gate.take() {
            let stop = self.together.clone();
            self.tasks.spawn(task("telling the planes what the instances say together", async move {
                let _ = stop.run_until_cancelled(together::tell(own, told)).await;
            }));
        }
        self.rule()?;
        if let Some(exchange) = &self.exchange {
            exchange.open(Instant::now());
        }
        if let Some(admin) = &mut self.admin {
            let address = admin.address.to_string();
            admin.open().map_err(|source| RunError::Listen { address, source })?;
        }
        self.front.open();
        Ok(())
    }

    /// When the instance ends because of `error`.
    pub(super) fn commits_after(&self, error: &RunError) -> Commits {
        match (error, self.wires.directive.1.borrow().durability) {
            (RunError::RelayFailed(_), Durability::Quorum) => Commits::Hang,
            _ => Commits::GoOn,
        }
    }

    /// How clients are let go.
    pub(super) fn limits(&self) -> Limits {
        let config = self.config.borrow();
        Limits { drain: config.shutdown.drain, transactions: config.shutdown.transactions }
    }

    /// Why nobody may take over now; it passes.
    pub(super) fn busy(&self) -> Option<String> {
        if self.alone.as_ref().is_some_and(|alone| !*alone.borrow()) {
            return Some("the sessions of the process before are being seen off".to_owned());
        }
        let directive = self.wires.directive.1.borrow();
        directive.writable().is_none().then(|| "an election or the start is under way".to_owned())
    }

    /// What only one process may do ends: to accept (who connects waits), to decide, to receive WAL and ship it.
    /// The sessions go on, under the last directive.
    pub(super) async fn close(&mut self) -> Result<(), RunError> {
        self.front.close();
        if let Some(exchange) = &self.exchange {
            exchange.close();
        }
        if let Some(admin) = &mut self.admin {
            admin.close();
        }
        if let Ruling::Running { stop, task } = std::mem::replace(&mut self.ruling, Ruling::Failed) {
            stop.cancel();
            self.ruling = Ruling::Closed(Box::new(task.await??));
        }
        Ok(self.relay.close().await?)
    }

    /// After [`Instance::close`], also one that failed: everything goes on.
    pub(super) async fn reopen(&mut self) -> Result<(), RunError> {
        // What was not closed in time is by now, or is told.
        self.relay.close().await?;
        self.relay.reopen()?;
        self.open(None)
    }

    /// Whether the control plane has failed: nothing takes that back.
    pub(super) fn is_ruined(&self) -> bool {
        matches!(self.ruling, Ruling::Failed)
    }

    /// What the other instances have told this one, and when it had asked.
    pub(super) fn heard(&self) -> Vec<(String, Heard)> {
        let members = self.wires.members.1.borrow();
        let heard = members.others.iter().filter_map(|(name, heard)| Some((name.clone(), heard.clone()?)));
        heard.collect()
    }

    fn rule(&mut self) -> Result<(), RunError> {
        let failover = match std::mem::replace(&mut self.ruling, Ruling::Failed) {
            Ruling::Ready(failover) => *failover,
            Ruling::Closed(closed) => closed.reopen()?,
            running @ Ruling::Running { .. } => {
                self.ruling = running;
                return Ok(());
            }
            Ruling::Failed => return Err(RunError::EndedEarly("the control plane")),
        };
        let stop = self.planes.child_token();
        let task = tokio::spawn(failover.run(stop.clone()));
        self.ruling = Ruling::Running { stop, task };
        Ok(())
    }

    /// Everything that is listened on.
    pub(super) fn sockets(&self) -> Vec<(Socket, BorrowedFd<'_>)> {
        let clients =
            self.front.sockets().map(|(address, socket)| (Socket::Clients(address.clone()), socket));
        let admin = self.admin.iter().map(|admin| (Socket::Admin(admin.address), admin.socket.as_fd()));
        clients.chain(admin).collect()
    }

    /// Resolves only when something ended that should not have.
    pub(super) async fn ended_early(&mut self) -> RunError {
        tokio::select! {
            why = self.relay.failed() => RunError::RelayFailed(why),
            () = self.workers.ended() => RunError::EndedEarly("the query plane"),
            () = self.front.ended() => RunError::EndedEarly("accepting connections"),
            error = ruling_ended(&mut self.ruling) => error,
            error = http_ended(&mut self.admin) => error,
            Some(ended) = self.tasks.join_next() => match ended {
                Ok((name, Ok(()))) => RunError::EndedEarly(name),
                Ok((_, Err(error))) => error,
                Err(panic) => RunError::Panicked(panic),
            },
        }
    }

    /// Clients have `shutdown.transactions` to finish what they are in the middle of. Whose commit would hang for all of
    /// that time is told so at once.
    pub(super) async fn stop(mut self, commits: Commits) {
        let limit = self.limits().transactions;
        drop(self.front);
        self.clients.cancel();
        let workers = self.workers;
        let served = tokio::task::spawn_blocking(move || workers.join());
        let directive = &self.wires.directive.1;
        let cut = async {
            loop {
                let primary = directive.borrow().primary.clone().filter(|_| commits == Commits::Hang);
                primary.iter().for_each(|primary| self.proxy.cut(primary));
                tokio::time::sleep(CUT_INTERVAL).await;
            }
        };
        tokio::select! {
            _ = served => {}
            () = tokio::time::sleep(limit) => tracing::info!(?limit, "clients are cut off"),
            () = cut => {}
        }
        self.planes.cancel();
        self.together.cancel();
        let ended = async {
            while self.tasks.join_next().await.is_some() {}
            if let Ruling::Running { task, .. } = self.ruling {
                // How it ends is of no consequence any more.
                let _ = task.await;
            }
            if let Some(Admin { serving: Some((stop, task)), .. }) = self.admin {
                stop.cancel();
                let _ = task.await;
            }
            self.relay.close().await
        };
        match tokio::time::timeout(PLANES_LIMIT, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "not everything has ended in time"),
            Err(_) => tracing::info!(limit = ?PLANES_LIMIT, "not everything has ended in time"),
        }
        tracing::info!("ended");
    }

    /// All that is left of an instance whose place another process has: its sessions.
    pub(super) fn depart(self) -> Departing {
        self.front.hand_over();
        self.exchange.iter().for_each(Exchange::leave);
        // From now on the process that has its place rules its sessions.
        self.together.cancel();
        Departing {
            clients: self.clients,
            workers: self.workers,
            proxy: self.proxy,
            served: self.served,
            wires: self.wires,
            _tasks: self.tasks,
        }
    }
}

async fn ruling_ended(ruling: &mut Ruling) -> RunError {
    let Ruling::Running { task, .. } = ruling else { return std::future::pending().await };
    let ended = task.await;
    // It is not to be asked again.
    *ruling = Ruling::Failed;
    match ended {
        Ok(Ok(_)) => RunError::EndedEarly("the control plane"),
        Ok(Err(error)) => error.into(),
        Err(panic) => RunError::Panicked(panic),
    }
}

async fn http_ended(admin: &mut Option<Admin>) -> RunError {
    let Some(Admin { serving, .. }) = admin else { return std::future::pending().await };
    let Some((_, task)) = serving else { return std::future::pending().await };
    let ended = task.await;
    *serving = None;
    ended.map_or_else(RunError::Panicked, |()| RunError::EndedEarly("HTTP"))
}

/// Sessions, and what rules them from elsewhere.
#[derive(Debug)]
pub(super) struct Departing {
    clients: CancellationToken,
    workers: Workers,
    proxy: Proxy,
    served: watch::Receiver<Arc<ProxyStatus>>,
    wires: Wires,
    /// Logins that are under way still look users up.
    _tasks: JoinSet<TaskEnd>,
}

impl Departing {
    /// Logins and sessions.
    pub(super) fn connections(&self) -> usize {
        self.workers.connections()
    }

    pub(super) fn proxy(&self) -> Proxy {
        self.proxy.clone()
    }

    pub(super) fn proxy_status(&self) -> watch::Receiver<Arc<ProxyStatus>> {
        self.served.clone()
    }

    pub(super) fn obey(&self, mut directive: Arc<Directive>, health: Arc<Health>, wal: Arc<WalStatus>) {
        if directive.term < self.wires.directive.1.borrow().term {
            // The new process has not begun to look.
            return;
        }
        // Nobody learns of a new primary before what is known of it.
        self.wires.health.0.send_replace(health);
        self.wires.wal.0.send_replace(wal);
        self.wires.directive.0.send_if_modified(|current| {
            if let (Some(_), Some(since)) = (directive.unsure_since, current.unsure_since) {
                // It comes as an age, and would be another instant each time.
                Arc::make_mut(&mut directive).unsure_since = Some(since);
            }
            let changed = *current != directive;
            if changed {
                *current = directive;
            }
            changed
        });
    }

    /// Sessions end with their transactions.
    pub(super) fn end(&self) {
        self.clients.cancel();
    }

    /// Sessions end now.
    pub(super) fn cut(&self) {
        self.clients.cancel();
        self.proxy.kill_all();
    }
}

/// What the other instances are told.
fn own(config: &Config, wires: &Wires, proxy: watch::Receiver<Arc<ProxyStatus>>) -> Own {
    let local = config.nodes.iter().filter(|node| node.local.is_some());
    Own {
        instance: config.instance.clone(),
        directive: wires.ordered.1.clone(),
        wal: wires.own_wal.1.clone(),
        proxy,
        local: local.map(|node| node.node.name.clone()).collect(),
        at_work: wires.at_work.1.clone(),
        deeds: wires.deeds.1.clone(),
        instances: plans::members(config),
    }
}

async fn task(name: &'static str, work: impl Future<Output = ()>) -> TaskEnd {
    work.await;
    (name, Ok(()))
}

fn admin_sources(config: &Config, wires: &Wires, proxy: watch::Receiver<Arc<ProxyStatus>>) -> admin::Sources {
    admin::Sources {
        identity: admin::Identity { cluster: config.cluster.clone(), instance: config.instance.clone() },
        directive: wires.directive.1.clone(),
        health: wires.health.1.clone(),
        wal: wires.wal.1.clone(),
        proxy,
        history: wires.history.1.clone(),
        leader: wires.leader.1.clone(),
        failovers: wires.failovers.1.clone(),
        restarts: wires.restarts.1.clone(),
        members: wires.members.1.clone(),
        registry: wires.registry.clone(),
        orders: admin::Orders::default(),
        reload: None,
    }
}
