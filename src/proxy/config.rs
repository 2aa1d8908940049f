//! The query plane's limits and defaults.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Plan;
use super::peers::Peers;
use super::route::{Consistency, Policy, Route};
use super::session::commit::ResolveCommits;
use crate::net::{Credentials, TlsForServers};
use crate::topology::RemoteApply;

/// May change while the plane runs ([`Proxy::reconfigure`](super::Proxy::reconfigure)).
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Of pools, sessions and their time.
    pub plan: Arc<Plan>,
    /// For connecting to a server and logging in.
    pub connect_timeout: Duration,
    /// How long a transaction waits for writes to open; then 57P03.
    pub hold_clients: Duration,
    pub policy: Policy,
    /// Of commits under quorum durability.
    pub remote_apply: RemoteApply,
    /// Of commits whose server is lost.
    pub resolve_commits: ResolveCommits,
    /// Of sessions that ask for none.
    pub consistency: Consistency,
    /// To whom a CancelRequest may be passed on. This instance's own mark stays what it was at the start.
    pub peers: Peers,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            plan: Arc::default(),
            connect_timeout: Duration::from_secs(15),
            hold_clients: Duration::from_secs(30),
            policy: Policy::default(),
            remote_apply: RemoteApply::Off,
            resolve_commits: ResolveCommits::No,
            consistency: Consistency::Session,
            peers: Peers::default(),
        }
    }
}

/// How the plane itself logs in at the primary, to learn how far its WAL goes.
#[derive(Clone, Debug)]
pub struct ServerLogin {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub credentials: Credentials,
    /// How all servers are reached, also on clients' behalf.
    pub tls: TlsForServers,
}

/// What a listener asks for on behalf of its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entrance {
    pub route: Route,
}
