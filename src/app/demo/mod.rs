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

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, ClusterError};
use self::directory::{Directory, DirectoryError, Keep, Start};
use self::preflight::PreflightError;
use crate::app::config::{self, Config, ListenOn, LoadError};
use crate::app::{run, telemetry};
use crate::topology::Durability;

/// How long the endpoint may take to end once asked.
const ENDPOINT_STOP_LIMIT: Duration = Duration::from_secs(20);

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
    Signals(#[source] std::io::Error),
    #[error("the endpoint ended: {0}")]
    Endpoint(String),
}

/// Runs until SIGINT or SIGTERM.
pub async fn demo(options: Options) -> Result<(), DemoError> {
    let host = preflight::check(&options).await?;
    let interrupted = interrupted()?;
    let directory = Directory::open(options.dir.as_deref(), host.run_as.as_ref())?;
    let ended = live(&options, &host, &directory, interrupted).await;
    let keep = if ended.is_ok() || directory.start() == Start::Resumed { Keep::All } else { Keep::Nothing };
    directory.close(keep)?;
    ended
}

/// Whatever happens, no server is left running.
async fn live(
    options: &Options,
    host: &preflight::Host,
    directory: &Directory,
    interrupted: CancellationToken,
) -> Result<(), DemoError> {
    if directory.start() == Start::New {
        directory.write_config(options, host)?;
    }
    let (config, _warnings) = config::load(&directory.config_file())?;
    telemetry::install(&config.log);
    let cluster = Cluster::new(&config, directory).await?;
    preflight::ports_are_free(&endpoint_ports(&config))?;
    let served = serve(&cluster, config, directory, interrupted).await;
    cluster.stop().await;
    served
}

async fn serve(
    cluster: &Cluster,
    config: Config,
    directory: &Directory,
    interrupted: CancellationToken,
) -> Result<(), DemoError> {
    let prepared = async {
        match directory.start() {
            Start::New => cluster.create_primary().await,
            Start::Resumed => cluster.start_primary().await,
        }
    };
    let primary = tokio::select! {
        primary = prepared => primary?,
        () = interrupted.cancelled() => return Ok(()),
    };
    let welcome = Welcome::new(&config, directory);
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    let endpoint = run::run(
        config,
        move |_| {
            let _ = ready.send(());
        },
        stop.clone(),
    );
    tokio::pin!(endpoint);
    let follow = async {
        // An endpoint that ends without being ready is reported by its own branch.
        if is_ready.await.is_err() {
            std::future::pending::<()>().await;
        }
        cluster.start_standbys(primary).await?;
        welcome.print();
        std::future::pending::<Result<(), ClusterError>>().await
    };
    let ended = tokio::select! {
        ended = &mut endpoint => return Err(DemoError::Endpoint(match ended {
            Ok(()) => "without a reason".to_owned(),
            Err(error) => chain(&error),
        })),
        failed = follow => failed.map_err(DemoError::from),
        () = interrupted.cancelled() => Ok(()),
    };
    stop.cancel();
    match tokio::time::timeout(ENDPOINT_STOP_LIMIT, endpoint).await {
        Ok(Err(error)) => tracing::info!(error = %chain(&error), "the endpoint did not end in order"),
        Err(_elapsed) => tracing::info!("the endpoint did not end in time"),
        Ok(Ok(())) => {}
    }
    ended
}

/// Cancelled by the first SIGINT or SIGTERM. Later ones change nothing: the servers are being stopped.
fn interrupted() -> Result<CancellationToken, DemoError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Signals)?;
    let interrupted = CancellationToken::new();
    let cancelled = interrupted.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            cancelled.cancel();
        }
    });
    Ok(interrupted)
}

fn endpoint_ports(config: &Config) -> Vec<(&'static str, u16)> {
    let listen = config.listen.iter().filter_map(|listen| match &listen.on {
        ListenOn::Tcp(address) => Some(("--port", address.port())),
        ListenOn::Unix { .. } => None,
    });
    listen.chain(config.admin.map(|admin| ("--admin-port", admin.port()))).collect()
}

/// What the visitor is told.
#[derive(Debug)]
struct Welcome(String);

impl Welcome {
    fn new(config: &Config, directory: &Directory) -> Welcome {
        let ports = endpoint_ports(config);
        let mut text = String::new();
        for (option, port) in ports {
            text += &match option {
                "--port" => {
                    format!(
                        "\n  psql 'postgresql://{APP}:{APP_PASSWORD}@127.0.0.1:{port}/{APP}'\n\n  {:<14}",
                        "configuration"
                    ) + &format!("{}\n", directory.config_file().display())
                }
                _ => format!(
                    "  {:<14}http://127.0.0.1:{port}/\n  {:<14}http://127.0.0.1:{port}/metrics\n",
                    "status", "metrics"
                ),
            };
        }
        for node in &config.nodes {
            text += &format!("  {:<14}{}\n", node.node.name, node.node.address);
        }
        Welcome(format!("\nBellwether is ready; Ctrl-C ends it.\n{text}"))
    }

    fn print(&self) {
        println!("{}", self.0);
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
