//! The query plane's limits and defaults.

use std::sync::Arc;
use std::time::Duration;

use super::route::{Consistency, Policy, Route};
use super::session::core::PoolMode;
use crate::net::Credentials;

#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub mode: PoolMode,
    /// Server connections per node, database and user.
    pub pool_size: usize,
    /// Clients in all. The next one is refused with 53300.
    pub max_clients: usize,
    /// How long a client waits for a free server connection; then 53300.
    pub pool_wait: Duration,
    pub server_idle: Duration,
    pub server_lifetime: Duration,
    /// For connecting to a server and logging in.
    pub server_login: Duration,
    /// How long a transaction waits for writes to open; then 57P03.
    pub hold_clients: Duration,
    pub policy: Policy,
    pub consistency: Consistency,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            mode: PoolMode::Transaction,
            pool_size: 20,
            max_clients: 10_000,
            pool_wait: Duration::from_secs(30),
            server_idle: Duration::from_secs(600),
            server_lifetime: Duration::from_secs(3600),
            server_login: Duration::from_secs(15),
            hold_clients: Duration::from_secs(30),
            policy: Policy::default(),
            consistency: Consistency::Session,
        }
    }
}

/// How the plane itself logs in at the primary, to learn how far its WAL goes.
#[derive(Clone, Debug)]
pub struct ServerLogin {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub credentials: Credentials,
}

/// What a listener asks for on behalf of its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entrance {
    pub route: Route,
}
