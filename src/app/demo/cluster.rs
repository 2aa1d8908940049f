//! The demo's servers: made, started in the right order, stopped.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{APP, APP_PASSWORD, SUPERUSER};
use crate::app::cli::chain;
use crate::app::config::Config;
use crate::app::local::{self, LocalError};
use crate::failover::LocalNode;
use crate::failover::agent::{AgentError, LocalServer, ServerStatus, StopMode, Superuser};
use crate::net::{Credentials, DialError, Target, TlsForServers, sql};
use crate::pg::TimelineId;
use crate::topology::{NodeName, Role};

/// The control plane may be at the same server; then its work is waited for.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
const BUSY_CHECKS: u32 = 600;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{node} has no local section in the demo's configuration")]
    NotLocal { node: NodeName },
    #[error("the demo's configuration has no server_login.password_file")]
    NoPassword,
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("{node}")]
    Server {
        node: NodeName,
        #[source]
        source: AgentError,
    },
    #[error("make the user and the database {APP}")]
    Dial(#[from] DialError),
    #[error("make the user and the database {APP}")]
    Sql(#[from] tokio_postgres::Error),
}

#[derive(Debug)]
pub(super) struct Cluster {
    /// At least one.
    servers: Vec<LocalNode>,
    password: Arc<str>,
}

impl Cluster {
    pub(super) async fn new(config: &Config) -> Result<Cluster, ClusterError> {
        let mut servers = Vec::new();
        for node in &config.nodes {
            let Some(local) = &node.local else {
                return Err(ClusterError::NotLocal { node: node.node.name.clone() });
            };
            let primary_conninfo = local::upstream(config, local.passfile.as_deref()).to_string();
            servers.push(LocalNode { server: local::server(node, local).await?, primary_conninfo });
        }
        let password = config.server_login.password.as_ref().ok_or(ClusterError::NoPassword)?;
        Ok(Cluster { servers, password: password.reveal().clone() })
    }

    fn servers(&self) -> impl DoubleEndedIterator<Item = &LocalServer> {
        self.servers.iter().map(|node| &node.server)
    }

    /// The server that last was the primary; in a new cluster the first one, made here. `None` when all were
    /// standbys: then it is for the control plane to make one of them the primary.
    pub(super) async fn start_primary(&self) -> Result<Option<&LocalServer>, ClusterError> {
        if self.servers().all(|server| server.role_on_disk().is_none()) {
            let first = &self.servers[0].server;
            let superuser = Superuser { name: SUPERUSER.to_owned(), password: self.password.to_string() };
            first.init(&superuser).await.map_err(failed(first))?;
        }
        let former = self.servers().filter(|server| server.role_on_disk() == Some(Role::Primary));
        let Some(primary) = former.max_by_key(|server| succession(server)) else { return Ok(None) };
        primary.start(Role::Primary).await.map_err(failed(primary))?;
        self.create_app(primary).await?;
        Ok(Some(primary))
    }

    /// Every other server, from whatever state it is in, until it is `enough`. Needs the endpoint, their upstream.
    pub(super) async fn start_standbys(
        &self,
        primary: Option<&LocalServer>,
        enough: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let others = |node: &&LocalNode| primary.is_none_or(|primary| primary.node != node.server.node);
        for node in self.servers.iter().filter(others) {
            if enough.is_cancelled() {
                return Ok(());
            }
            match primary {
                Some(primary) => self.rejoin(node, primary, enough).await?,
                None if node.server.role_on_disk() == Some(Role::Standby) => {
                    let server = &node.server;
                    server.start(Role::Standby).await.map_err(failed(server))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Every server, whatever state it is in.
    pub(super) async fn stop(&self) {
        for server in self.servers().rev() {
            if let Err(error) = server.stop(StopMode::Fast).await {
                tracing::info!(node = %server.node, error = %chain(&error), "no orderly stop, stopping at once");
                if let Err(error) = server.stop(StopMode::Immediate).await {
                    tracing::error!(node = %server.node, error = %chain(&error), "cannot stop the server");
                }
            }
        }
    }

    async fn rejoin(
        &self,
        LocalNode { server, primary_conninfo }: &LocalNode,
        primary: &LocalServer,
        enough: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let source = self.target(primary);
        for _ in 0..BUSY_CHECKS {
            match server.rejoin(&source, primary_conninfo, &server.node.slot()).await {
                Ok(outcome) => {
                    tracing::info!(node = %server.node, ?outcome, "standby started");
                    return Ok(());
                }
                Err(AgentError::Busy { .. }) => {
                    if enough.run_until_cancelled(tokio::time::sleep(BUSY_PAUSE)).await.is_none() {
                        return Ok(());
                    }
                }
                // One that was there before is the control plane's to bring back: the primary may have changed.
                Err(error) if server.role_on_disk().is_some() => {
                    tracing::info!(node = %server.node, error = %chain(&error), "not started yet");
                    return Ok(());
                }
                Err(source) => return Err(failed(server)(source)),
            }
        }
        Err(failed(server)(AgentError::Busy { data_dir: server.data_dir.clone() }))
    }

    fn target(&self, server: &LocalServer) -> Target {
        Target {
            address: server.address.clone(),
            user: SUPERUSER.into(),
            database: "postgres".into(),
            credentials: Credentials::Password(self.password.clone()),
            tls: TlsForServers::default(),
            parameters: vec![("application_name".to_owned(), "bellwether".to_owned())],
        }
    }

    /// What is there already stays as it is: on a cluster that is resumed nothing may be written yet, since a
    /// commit could wait for a relay that does not run.
    async fn create_app(&self, primary: &LocalServer) -> Result<(), ClusterError> {
        let sql = sql::connect(&self.target(primary), CONNECT_LIMIT).await?;
        let role = format!("CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}'");
        let database = format!("CREATE DATABASE {APP} OWNER {APP}");
        for (catalog, column, statement) in
            [("pg_roles", "rolname", role), ("pg_database", "datname", database)]
        {
            let query = format!("SELECT FROM {catalog} WHERE {column} = '{APP}'");
            if sql.query_opt(&query, &[]).await?.is_none() {
                sql.batch_execute(&statement).await?;
            }
        }
        Ok(())
    }
}

/// Who was primary last: one that runs as such, else the one that knows of the latest timeline.
fn succession(server: &LocalServer) -> (bool, TimelineId) {
    let runs = server.status() != ServerStatus::Stopped;
    (runs, server.latest_timeline())
}

fn failed(server: &LocalServer) -> impl FnOnce(AgentError) -> ClusterError {
    let node = server.node.clone();
    move |source| ClusterError::Server { node, source }
}
