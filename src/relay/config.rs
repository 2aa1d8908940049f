//! What the WAL plane is told at its start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::archive::ArchiveConfig;
use super::retention::Retain;
use crate::net::{Credentials, TlsForServers};
use crate::topology::{
    Address, Agreed, CommitOutcomes, CommitsInDoubt, Directive, Node, RemoteApply, WalStatus, relay_of,
};

#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Names our slot and our connection at the upstream.
    pub instance: String,
    /// Of the segment files; made when missing.
    pub directory: PathBuf,
    /// Durable WAL kept in memory for followers that are close.
    pub ring_bytes: usize,
    /// Where everything is archived; `None`: nowhere.
    pub archive: Option<ArchiveConfig>,
    /// An upstream that is silent for this long is lost.
    pub upstream_timeout: Duration,
    /// A follower that is silent for this long is dropped.
    pub follower_timeout: Duration,
}

impl RelayConfig {
    /// With the defaults for everything that is rarely changed.
    pub fn new(instance: impl Into<String>, directory: impl Into<PathBuf>) -> RelayConfig {
        RelayConfig {
            instance: instance.into(),
            directory: directory.into(),
            ring_bytes: 16 << 20,
            archive: None,
            upstream_timeout: Duration::from_secs(10),
            follower_timeout: Duration::from_secs(10),
        }
    }
}

/// What may change while the plane runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayTuning {
    /// How much WAL is kept, and how much may be held back.
    pub retain: Retain,
    /// WAL to one follower, in bytes per second; 0: as fast as it goes.
    pub follower_rate: u64,
    /// An upstream that is silent for this long is asked for a sign of life, so that others can tell what is
    /// not there from what is not known. Not more than half of `upstream_timeout` counts.
    pub ask_after: Duration,
    /// Whether the followers' replay is reported upstream. Once it is, commits may wait for it: it goes on until the
    /// process ends.
    pub remote_apply: RemoteApply,
}

impl Default for RelayTuning {
    fn default() -> RelayTuning {
        RelayTuning {
            retain: Retain::default(),
            follower_rate: 0,
            ask_after: Duration::from_millis(300),
            remote_apply: RemoteApply::Off,
        }
    }
}

/// What it works with.
#[derive(Clone, Debug)]
pub struct RelayInputs {
    /// Beforehand, and whenever it changes.
    pub tuning: watch::Receiver<RelayTuning>,
    pub directive: watch::Receiver<Arc<Directive>>,
    /// Whose outcome sessions wait for.
    pub in_doubt: watch::Receiver<Arc<CommitsInDoubt>>,
    pub nodes: Vec<Node>,
    /// What followers may get. [`Agreed::Alone`] from the start stays.
    pub agreed: watch::Receiver<Agreed>,
    /// What all relays say together; what this one says while it is alone.
    pub all: watch::Receiver<Arc<WalStatus>>,
    /// The other instances, by name; none while this one is alone.
    pub peers: Vec<(String, Address)>,
    /// Other relays' endpoints, asked for what no node can give.
    pub relays: Vec<Address>,
    /// `server_login`: needs REPLICATION.
    pub user: Arc<str>,
    pub credentials: Credentials,
    pub tls: TlsForServers,
}

impl RelayInputs {
    /// Whether a follower of that name is another instance's relay.
    pub(super) fn is_peer(&self, application_name: &str) -> bool {
        let is_node = self.nodes.iter().any(|node| node.name.as_str() == application_name);
        let named = relay_of(application_name).filter(|_| !is_node);
        named.is_some_and(|instance| self.peers.iter().any(|(peer, _)| peer == instance))
    }
}

/// What it tells the others.
#[derive(Clone, Debug)]
pub struct RelayOutputs {
    pub status: watch::Sender<Arc<WalStatus>>,
    pub commits: watch::Sender<Arc<CommitOutcomes>>,
}
