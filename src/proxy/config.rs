//! The query plane's limits and defaults.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Plan;
use super::peers::Peers;
use super::route::{Consistency, Policy, Route};
use super::session::commit::ResolveCommits;
use crate::net::{Credentials, Target, TlsForServers};
use crate::topology::{Directive, Node, NodeName, RemoteApply};

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

impl ServerLogin {
    /// Where writes go under `order`; `None`: nowhere now.
    pub(super) fn at_primary<'a>(
        &self,
        nodes: &[Node],
        order: &'a Directive,
        application_name: &str,
    ) -> Option<(&'a NodeName, Target)> {
        let primary = order.writable()?;
        let node = nodes.iter().find(|node| node.name == *primary)?;
        let target = Target {
            address: node.address.clone(),
            user: self.user.clone(),
            database: self.database.clone(),
            credentials: self.credentials.clone(),
            tls: self.tls.clone(),
            parameters: vec![("application_name".to_owned(), application_name.to_owned())],
        };
        Some((primary, target))
    }
}

/// What a listener asks for on behalf of its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entrance {
    pub route: Route,
}
