//! What the plane looks like at a moment, for people and tools that ask.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock for the ages it tells")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Proxy;
use super::limits::{Caps, Limits, Totals};
use super::stats::DatabaseStats;
use super::timeouts::Doing;
use crate::net::PeerAddress;
use crate::topology::{Address, NodeName};

#[derive(Clone, Debug)]
pub struct Report {
    pub pools: Vec<PoolReport>,
    pub clients: Vec<ClientReport>,
    pub servers: Vec<ServerReport>,
    /// Clients that may be connected in all.
    pub max_clients: Option<usize>,
    pub max_servers: Option<usize>,
    /// What holds where nothing else is said.
    pub limits: Limits,
    /// Whom the configuration has something to say about.
    pub users: Vec<(String, Limits)>,
    pub stats: Vec<DatabaseStats>,
}

/// One node's, database's and user's.
#[derive(Clone, Debug)]
pub struct PoolReport {
    pub node: NodeName,
    pub address: Address,
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub idle: usize,
    pub in_use: usize,
    pub waiting: usize,
    /// How long the first has waited.
    pub longest_wait: Option<Duration>,
    pub limits: Limits,
    /// Of its database.
    pub totals: Totals,
    pub is_paused: bool,
}

#[derive(Clone, Debug)]
pub struct ClientReport {
    /// As in its BackendKeyData.
    pub id: u32,
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub application_name: Arc<str>,
    pub peer: PeerAddress,
    pub connected_at: SystemTime,
    /// For a server.
    pub waiting: Option<Duration>,
    /// `none` or `logical`.
    pub replication: &'static str,
    /// Why it keeps its server between transactions.
    pub pinned: Option<&'static str>,
    /// `idle`, `waiting`, `active` or `idle in transaction`.
    pub state: &'static str,
    /// The server's process that is with it.
    pub server: Option<(NodeName, u32)>,
}

#[derive(Clone, Debug)]
pub struct ServerReport {
    pub node: NodeName,
    pub address: Address,
    pub database: Arc<str>,
    pub user: Arc<str>,
    /// Its process.
    pub pid: u32,
    /// The client that it is with.
    pub client: Option<u32>,
    /// `none` or `logical`.
    pub replication: &'static str,
    /// Why its client keeps it.
    pub pinned: Option<&'static str>,
}

impl Proxy {
    pub fn report(&self) -> Report {
        let shared = &self.shared;
        let (plan, now) = (shared.plan(), Instant::now());
        let mut servers = vec![];
        let pools = shared.pools.all().into_iter().map(|pool| {
            let (state, key) = (pool.state(), &pool.key);
            servers.extend(state.idle.iter().map(|backend| ServerReport {
                node: key.node.clone(),
                address: backend.address.clone(),
                database: key.database.clone(),
                user: key.user.clone(),
                pid: backend.key.pid,
                client: None,
                replication: "none",
                pinned: None,
            }));
            PoolReport {
                node: key.node.clone(),
                address: pool.address().clone(),
                database: key.database.clone(),
                user: key.user.clone(),
                idle: state.idle.len(),
                in_use: state.in_use,
                waiting: state.waiting,
                longest_wait: state.waiting_since.map(|since| now.saturating_duration_since(since)),
                limits: plan.limits(&key.database, &key.user),
                totals: plan.totals_of_database(&key.database),
                is_paused: state.is_paused,
            }
        });
        let mut pools: Vec<_> = pools.collect();
        pools.sort_by(|a, b| (&a.database, &a.user, &a.node).cmp(&(&b.database, &b.user, &b.node)));
        let slots = shared.slots.all();
        let clients = slots.iter().map(|slot| {
            let (serving, doing) = (slot.serving(), slot.activity().doing);
            let replication = if doing == Doing::Replicating { "logical" } else { "none" };
            servers.extend(serving.iter().map(|serving| ServerReport {
                node: serving.node.clone(),
                address: serving.backend.address.clone(),
                database: slot.about.database.clone(),
                user: slot.about.user.clone(),
                pid: serving.backend.key.pid,
                client: Some(slot.key.pid),
                replication,
                pinned: slot.pinned(),
            }));
            ClientReport {
                id: slot.key.pid,
                database: slot.about.database.clone(),
                user: slot.about.user.clone(),
                application_name: slot.about.application_name.clone(),
                peer: slot.about.peer,
                connected_at: slot.about.connected_at,
                waiting: slot.waiting_since().map(|since| now.saturating_duration_since(since)),
                replication,
                pinned: slot.pinned(),
                state: match doing {
                    Doing::Idle => "idle",
                    Doing::Waiting => "waiting",
                    Doing::Query | Doing::Committing | Doing::Replicating => "active",
                    Doing::IdleInTransaction => "idle in transaction",
                },
                server: serving.map(|serving| (serving.node, serving.backend.key.pid)),
            }
        });
        let mut clients: Vec<_> = clients.collect();
        clients.sort_by_key(|client| (client.connected_at, client.id));
        servers.sort_by(|a, b| (&a.database, &a.user, a.pid).cmp(&(&b.database, &b.user, b.pid)));
        let Caps { all: max_servers, .. } = plan.caps("", "");
        Report {
            pools,
            clients,
            servers,
            max_clients: plan.totals().max_clients,
            max_servers,
            limits: plan.limits("", ""),
            users: plan.users.keys().map(|user| (user.clone(), plan.limits("", user))).collect(),
            stats: shared.stats.report(),
        }
    }
}
