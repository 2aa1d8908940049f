//! One instance: builds the planes, connects them, and ends them together.
//!
//! What the planes publish goes through `watch` channels that are made here; nothing else joins them. Each has
//! its own threads (`ARCHITECTURE.md`, Threads); the control plane and HTTP run on the caller's runtime. A plane
//! that ends before it was asked to ends the instance.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::{Config, ListenOn};
use crate::admin;
use crate::net::{ListenAddress, Listener};
use crate::topology::{Directive, Election, Health, ProxyStatus, WalStatus};

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

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
}

/// Runs the instance until `shutdown`, then ends it in order. `ready` is called once, when clients and
/// followers can connect.
pub async fn run(
    config: Config,
    ready: impl FnOnce(&Endpoints),
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let listeners = bind(&config)?;
    let http = match config.admin {
        Some(address) => Some(bind_http(address).await?),
        None => None,
    };
    let endpoints = Endpoints {
        listen: listeners.iter().map(|listener| listener.address().clone()).collect(),
        admin: http.as_ref().and_then(|http| http.local_addr().ok()),
    };
    let (_directive, directive) = watch::channel(Directive::starting(config.durability));
    let (_health, health) = watch::channel(Health::default());
    let (_wal, wal) = watch::channel(WalStatus::starting());
    let (_proxy, proxy) = watch::channel(ProxyStatus::default());
    let (_history, history) = watch::channel(Vec::<Election>::new());
    let registry = prometheus::Registry::new();
    let identity = admin::Identity { cluster: config.cluster.clone(), instance: config.instance.clone() };
    let sources = admin::Sources { identity, directive, health, wal, proxy, history, registry };
    ready(&endpoints);
    match http {
        Some(http) => admin::serve(http, sources, shutdown).await,
        None => shutdown.cancelled().await,
    }
    Ok(())
}

fn bind(config: &Config) -> Result<Vec<Listener>, RunError> {
    let listener = |address: ListenAddress| {
        Listener::bind(&address).map_err(|source| RunError::Listen { address: address.to_string(), source })
    };
    config.listen.iter().map(|listen| listener(address(&listen.on))).collect()
}

fn address(on: &ListenOn) -> ListenAddress {
    match on {
        ListenOn::Tcp(address) => ListenAddress::Tcp(*address),
        ListenOn::Unix { directory, port } => {
            ListenAddress::Unix { directory: directory.clone(), port: *port }
        }
    }
}

async fn bind_http(address: SocketAddr) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RunError::Listen { address: format!("{address} (admin)"), source })
}
