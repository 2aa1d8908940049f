//! `bellwether demo`: a real cluster on this host, from nothing, behind one endpoint.
//!
//! The order matters, since the standbys' upstream is the endpoint and the endpoint's is the primary: first
//! the primary runs, then the endpoint, then each standby is copied from the primary and follows the
//! endpoint. From then on the demo only waits: what happens to its servers is the control plane's business, as it
//! would be anywhere else.
//!
//! It checks before it makes anything, so that a refusal leaves nothing behind; and what it made is removed
//! when it fails or ends, unless a directory was named.

#![expect(clippy::disallowed_methods, reason = "shell: spawns the work that goes on beside the endpoint")]

mod cluster;
mod directory;
mod preflight;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, ClusterError};
use self::directory::{Directory, DirectoryError, Keep, Start};
use self::preflight::{Host, PreflightError};
use crate::app::config::{self, Config, ListenOn, LoadError};
use crate::app::run::{self, RunError, Succession};
use crate::app::telemetry::{self, LogLevel};
use crate::failover::agent::LocalServer;
use crate::topology::Durability;

/// How long the endpoint may take to end once asked.
const ENDPOINT_STOP_LIMIT: Duration = Duration::from_secs(20);

/// The options that set the ports, as a refusal names them.
const ENDPOINT: &str = "--port";
const ADMIN: &str = "--admin-port";

/// The database and the login that the demo makes for its visitor.
const APP: &str = "app";
const APP_PASSWORD: &str = "demo";
/// Bellwether's own login at the servers.
const SUPERUSER: &str = "bellwether";

#[derive(Clone, Debug)]
pub struct Options {
    /// `None`: a temporary one, removed at the end.
    pub dir: Option<PathBuf>,
    /// 1 to [`Options::MAX_NODES`].
    pub nodes: u16,
    pub port: u16,
    pub admin_port: u16,
    pub pg_bin: Option<PathBuf>,
    pub durability: Durability,
}

impl Options {
    pub const MAX_NODES: u16 = 9;
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Endpoint(#[from] RunError),
    #[error("the endpoint ended before it was asked to")]
    EndpointEnded,
}

/// Runs until SIGINT or SIGTERM.
pub async fn demo(options: Options) -> Result<(), DemoError> {
    let host = preflight::check(&options).await?;
    let interrupted = interrupted().map_err(DemoError::Signals)?;
    let directory = Directory::open(options.dir.as_deref(), host.run_as.as_ref())?;
    let ended = live(&options, &host, &directory, interrupted).await;
    let keep = if ended.is_ok() || directory.start() == Start::Resumed { Keep::All } else { Keep::Nothing };
    directory.close(keep)?;
    ended
}

/// Whatever happens, no server is left running.
async fn live(
    options: &Options,
    host: &Host,
    directory: &Directory,
    interrupted: CancellationToken,
) -> Result<(), DemoError> {
    if directory.start() == Start::New {
        preflight::ports_are_free(&[(ENDPOINT, options.port), (ADMIN, options.admin_port)])?;
        directory.write_config(options, host)?;
    }
    let (config, _warnings) = config::load(&directory.config_file())?;
    preflight::ports_are_free(&endpoint_ports(&config))?;
    let log_level = telemetry::install(&config.log);
    let cluster = Cluster::new(&config).await?;
    let served = serve(&cluster, (config, log_level), directory, interrupted).await;
    cluster.stop().await;
    served
}

/// The endpoint and the servers behind it, until either ends or somebody interrupts. A step that has begun with a
/// server is finished first: a server that was cut off while it started could not be found again.
async fn serve(
    cluster: &Cluster,
    (config, log_level): (Config, LogLevel),
    directory: &Directory,
    interrupted: CancellationToken,
) -> Result<(), DemoError> {
    let primary = cluster.start_primary().await?;
    let welcome = Welcome::new(&config, directory);
    let (ready, is_ready) = oneshot::channel();
    // The endpoint's end ends the work with the servers, and the other way round.
    let (enough, stop) = (interrupted.child_token(), CancellationToken::new());
    let endpoint = async {
        let ended = endpoint(config, log_level, ready, stop.clone()).await;
        let expected = stop.is_cancelled();
        enough.cancel();
        match ended {
            Ok(()) if expected => Ok(()),
            Ok(()) => Err(DemoError::EndpointEnded),
            Err(error) => Err(DemoError::Endpoint(error)),
        }
    };
    let servers = async {
        let started = follow(cluster, primary, is_ready, &enough).await;
        if started.is_ok() {
            if !enough.is_cancelled() {
                welcome.print();
            }
            enough.cancelled().await;
        }
        stop.cancel();
        started
    };
    let (endpoint, servers) = tokio::join!(endpoint, servers);
    servers?;
    endpoint
}

async fn follow(
    cluster: &Cluster,
    primary: Option<&LocalServer>,
    is_ready: oneshot::Receiver<()>,
    enough: &CancellationToken,
) -> Result<(), DemoError> {
    let ready = enough.run_until_cancelled(is_ready).await;
    if matches!(ready, Some(Ok(()))) {
        cluster.start_standbys(primary, enough).await?;
    }
    Ok(())
}

/// Once asked to stop, it has a limited time to do so.
async fn endpoint(
    config: Config,
    log_level: LogLevel,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let is_ready = move |_: &run::Endpoints| {
        // Nobody waits any more: then nobody needs to know.
        let _ = ready.send(());
    };
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(ENDPOINT_STOP_LIMIT).await;
    };
    tokio::select! {
        ended = Box::pin(run::run(config, Succession::None, log_level, is_ready, stop.clone())) => ended,
        () = overdue => {
            tracing::info!("the endpoint did not end in time");
            Ok(())
        }
    }
}

/// Cancelled by the first SIGINT, SIGTERM, or SIGHUP (the terminal is gone). Later ones change nothing: a demo
/// that left at once would leave its servers behind.
fn interrupted() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let interrupted = CancellationToken::new();
    let cancelled = interrupted.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            cancelled.cancel();
        }
    });
    Ok(interrupted)
}

fn endpoint_ports(config: &Config) -> Vec<(&'static str, u16)> {
    let listen = config.listen.iter().filter_map(|listen| match &listen.on {
        ListenOn::Tcp(address) => Some((ENDPOINT, address.port())),
        ListenOn::Unix { .. } => None,
    });
    listen.chain(config.admin.map(|admin| (ADMIN, admin.port()))).collect()
}

/// What the visitor is told.
#[derive(Debug)]
struct Welcome(String);

impl Welcome {
    fn new(config: &Config, directory: &Directory) -> Welcome {
        let mut text = String::new();
        for (option, port) in endpoint_ports(config) {
            text += &match option {
                ENDPOINT => {
                    format!("\n  psql 'postgresql://{APP}:{APP_PASSWORD}@127.0.0.1:{port}/{APP}'\n\n")
                }
                _ => format!(
                    "  status         http://127.0.0.1:{port}/\n  metrics        http://127.0.0.1:{port}/metrics\n"
                ),
            };
        }
        text += &format!("  configuration  {}\n", directory.config_file().display());
        for node in &config.nodes {
            text += &format!("  {:<15}{}\n", node.node.name.as_str(), node.node.address);
        }
        Welcome(format!("\nBellwether is ready; Ctrl-C ends it.\n{text}"))
    }

    fn print(&self) {
        println!("{}", self.0);
    }
}
