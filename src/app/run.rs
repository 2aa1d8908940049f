#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]
//! One instance: builds the planes, connects them, and ends them together.
//!
//! What the planes publish goes through `watch` channels that are made here; nothing else joins them. Each has
//! its own threads (`ARCHITECTURE.md`, Threads); the control plane and HTTP run on the caller's runtime. A plane
//! that ends before it was asked to ends the instance: half of it would be a lie to its clients.
//!
//! The end, on the shutdown token: accepting stops and sessions get 57P01; when they are gone, or
//! ten seconds later, the planes stop, the WAL plane last, since the last commits wait for it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::certificates::Certificates;
use super::config::Config;
use super::descriptors;
use super::front::{self, Front, Listening};
use super::local::{self, LocalError};
use super::plans;
use super::reload::{self, Taps, Tuned, Tuning};
use super::telemetry::LogLevel;
use super::users;
use crate::admin::{self, Reload, console::Console};
use crate::failover::{self, Failover, FailoverError, LocalNode};
use crate::net::{Acceptor, ListenAddress, Reception, TlsError, TlsForServers};
use crate::proxy::{self, Proxy, Workers};
use crate::relay::{Relay, RelayError};
use crate::topology::{Directive, Election, Health, NodeName, ProxyStatus, WalStatus};

/// Clients have so long to finish what they are in the middle of.
const CLIENTS_LIMIT: Duration = Duration::from_secs(10);
/// The control plane and HTTP have so long to end.
const PLANES_LIMIT: Duration = Duration::from_secs(5);

/// Where the instance is reached.
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub listen: Vec<ListenAddress>,
    pub admin: Option<SocketAddr>,
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
        f.write_str(&listen.join(", "))?;
        self.admin.map_or(Ok(()), |admin| write!(f, ", admin http://{admin}"))
    }
}

/// Why an instance did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("TLS")]
    Tls(#[from] TlsError),
    #[error("start threads")]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("start the WAL plane")]
    Relay(#[from] RelayError),
    #[error("the control plane")]
    Failover(#[from] FailoverError),
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    #[error("the WAL plane: {0}")]
    RelayFailed(Arc<str>),
    #[error("{0} ended early")]
    EndedEarly(&'static str),
    #[error("a task of the instance")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Runs the instance until `shutdown`, then ends it in order. `ready` is called once, when clients and
/// followers can connect. The configuration's own limits bound every wait in it.
pub async fn run(
    config: Config,
    log_level: LogLevel,
    ready: impl FnOnce(&Endpoints),
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    descriptors::raise(&config);
    let listening = Listening::bind(&config.listen)?;
    let http = match config.admin {
        Some(address) => Some(bind_http(address).await?),
        None => None,
    };
    let endpoints = Endpoints {
        listen: listening.addresses(),
        admin: http.as_ref().and_then(|http| http.local_addr().ok()),
    };
    let mut instance = Instance::start(config, log_level, listening, http).await?;
    ready(&endpoints);
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        error = instance.ended_early() => Err(error),
    };
    instance.stop().await;
    ended
}

async fn bind_http(address: SocketAddr) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RunError::Listen { address: format!("{address} (admin)"), source })
}

/// The latest value of one kind, and who watches it.
type Wire<T> = (watch::Sender<Arc<T>>, watch::Receiver<Arc<T>>);

/// The channels between the planes, and the registry that they share.
struct Wires {
    directive: Wire<Directive>,
    health: Wire<Health>,
    history: Wire<Vec<Election>>,
    registry: Registry,
}

impl Wires {
    fn new(config: &Config) -> Wires {
        Wires {
            directive: watch::channel(Arc::new(Directive::starting(config.durability))),
            health: watch::channel(Arc::default()),
            history: watch::channel(Arc::default()),
            registry: Registry::new(),
        }
    }
}

/// A running instance.
struct Instance {
    /// Accepting and serving clients; cancelled first.
    clients: CancellationToken,
    /// Everything else.
    planes: CancellationToken,
    accepting: Front,
    workers: Workers,
    relay: Relay,
    /// The tasks on this runtime. Each lives as long as the instance.
    tasks: JoinSet<TaskEnd>,
}

/// A task's name and how it ended.
type TaskEnd = (&'static str, Result<(), RunError>);

/// The planes, built and connected.
struct Planes {
    /// Running already: its store is open.
    relay: Relay,
    proxy: Proxy,
    failover: Failover,
    admin: admin::Sources,
}

impl Planes {
    fn connect(
        config: &Config,
        tls: &TlsForServers,
        tuned: Tuned,
        local: HashMap<NodeName, LocalNode>,
        clients: &CancellationToken,
        planes: &CancellationToken,
    ) -> Result<Planes, RunError> {
        let wires = Wires::new(config);
        let (directive, health) = (wires.directive.1.clone(), wires.health.1.clone());
        let obeys = plans::relay_inputs(config, tls, tuned.relay, directive.clone());
        let (relay, wal) = Relay::start(plans::relay(config), obeys, &wires.registry, planes.clone())?;
        let obeys = proxy::Inputs { directive, health, wal: wal.clone(), nodes: plans::nodes(config) };
        let (proxy, served) = Proxy::new(
            Instant::now(),
            plans::proxy(config),
            obeys,
            plans::proxy_login(config, tls),
            &wires.registry,
            clients.clone(),
        )?;
        let mut admin = admin_sources(config, &wires, wal.clone(), served.clone());
        let sees = failover::Inputs { wal, proxy: served, local };
        let orders = failover::Outputs {
            directive: wires.directive.0,
            health: wires.health.0,
            history: wires.history.0,
        };
        let (failover, commands) =
            Failover::new(plans::failover(config, tls, tuned.failover), sees, orders, &wires.registry)?;
        admin.commands = Some(commands);
        Ok(Planes { relay, proxy, failover, admin })
    }
}

impl Instance {
    async fn start(
        config: Config,
        log_level: LogLevel,
        listening: Listening,
        http: Option<TcpListener>,
    ) -> Result<Instance, RunError> {
        let (clients, planes) = (CancellationToken::new(), CancellationToken::new());
        // Whatever fails below, nothing that was started goes on.
        let unless_whole = (clients.clone().drop_guard(), planes.clone().drop_guard());
        let certificates = Certificates::load(&config.tls)?;
        let local = local::servers(&config).await?;
        let (tuning, tuned) = Tuning::channels(&config);
        let connected = Planes::connect(&config, &certificates.for_servers, tuned, local, &clients, &planes)?;
        let Planes { relay, proxy, failover, mut admin } = connected;
        let (reload, reloads) = Reload::channel();
        admin.reload = Some(reload);
        let (access, accessible) = watch::channel(config.console.clone());
        let console = Console {
            sources: admin.clone(),
            proxy: proxy.clone(),
            relay: relay.clone(),
            access: accessible,
        };
        let (lookup, candidates) = watch::channel(Vec::new());
        let reception = Reception::by(users::authenticator(&config, candidates.clone()));
        let reception = reception.with_login_limit(config.pool.login).with_tls(certificates.for_clients);
        let acceptor = Arc::new(Acceptor::new(reception));
        let count = plans::workers(&config);
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
        let follow = users::follow(followed, certificates.for_servers, directive, health, lookup);
        let stop = planes.clone();
        tasks.spawn(task("user lookup", async move {
            let _ = stop.run_until_cancelled(follow).await;
        }));
        let stop = planes.clone();
        tasks.spawn(async move { ("the control plane", failover.run(stop).await.map_err(RunError::from)) });
        if let Some(http) = http {
            tasks.spawn(task("HTTP", admin::serve(http, admin, planes.clone())));
        }

        let greet =
            front::greeter(proxy.clone(), relay.clone(), Arc::new(console), acceptor, clients.clone());
        let (accept, accepting) = listening.accepting();
        let workers = Workers::start(count, &proxy, &clients, greet, accept).map_err(RunError::Threads)?;
        let (clients, planes) = (unless_whole.0.disarm(), unless_whole.1.disarm());
        Ok(Instance { clients, planes, accepting, workers, relay, tasks })
    }

    /// Resolves only when something ended that should not have.
    async fn ended_early(&mut self) -> RunError {
        tokio::select! {
            why = self.relay.failed() => RunError::RelayFailed(why),
            () = self.workers.ended() => RunError::EndedEarly("the query plane"),
            () = self.accepting.ended() => RunError::EndedEarly("accepting connections"),
            Some(ended) = self.tasks.join_next() => match ended {
                Ok((name, Ok(()))) => RunError::EndedEarly(name),
                Ok((_, Err(error))) => error,
                Err(panic) => RunError::Panicked(panic),
            },
        }
    }

    async fn stop(mut self) {
        self.clients.cancel();
        let workers = self.workers;
        let served = tokio::task::spawn_blocking(move || workers.join());
        if tokio::time::timeout(CLIENTS_LIMIT, served).await.is_err() {
            tracing::info!(limit = ?CLIENTS_LIMIT, "clients are cut off");
        }
        self.planes.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(PLANES_LIMIT, ended).await.is_err() {
            tracing::info!(limit = ?PLANES_LIMIT, "not everything has ended in time");
        }
        tracing::info!("ended");
    }
}

async fn task(name: &'static str, work: impl Future<Output = ()>) -> TaskEnd {
    work.await;
    (name, Ok(()))
}

fn admin_sources(
    config: &Config,
    wires: &Wires,
    wal: watch::Receiver<Arc<WalStatus>>,
    proxy: watch::Receiver<Arc<ProxyStatus>>,
) -> admin::Sources {
    admin::Sources {
        identity: admin::Identity { cluster: config.cluster.clone(), instance: config.instance.clone() },
        directive: wires.directive.1.clone(),
        health: wires.health.1.clone(),
        wal,
        proxy,
        history: wires.history.1.clone(),
        registry: wires.registry.clone(),
        commands: None,
        reload: None,
    }
}
