//! The control plane: who is primary, and what has to be done about it.
//!
//! ```text
//! probe ─┐
//! relay ─┼─► health ─► decide ─► state (journal) ─► directive ─► proxy, relay
//! proxy ─┘     (pure)    (pure)        └──────────► execute ─► nodes, agent
//!                          ▲                           │
//!                          └────────── results ────────┘
//! ```
//!
//! One task runs this circle: on every event, and ten times a second. The order within a turn is the promise:
//! decide until nothing more follows, make the state durable, publish the directive, start the actions. [`core`]
//! has that order as a pure function; `control` does what it says.
//!
//! Of several instances one leads: its core decides, and the others obey the state that it has journaled ([`journal`]).
//!
//! Not here: fencing of connections that bypass us.

pub mod agent;
mod command;
mod conflicts;
mod control;
pub(crate) mod core;
pub mod decide;
mod error;
mod execute;
pub mod health;
mod journal;
mod local_copy;
mod metrics;
mod probe;
mod sql;
mod state;

pub use command::{Command, Commands, Servers, Upkeep};
pub use decide::{Handover, Stragglers};
pub use error::{ActionError, CommandError, FailoverError, JournalError};
pub use execute::LocalNode;
pub use metrics::Metrics;
pub use state::{
    ClientError, EtcdConfig, EtcdError, EtcdJournal, EtcdLogin, EtcdMetrics, EtcdTls, Fence, FileJournal,
    Kept, Leader, Link, Look, MAX_HISTORY, RequestError, Revision, Seen, Versioned, look,
};

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::command::Questions;
use self::control::Control;
use self::decide::{Budget, Mode, Policy};
use self::health::Detect;
use crate::net::{Credentials, TlsForServers};
use crate::pg::SlotName;
use crate::topology::{
    Deed, Directive, Durability, Election, Failovers, Health, Members, Node, NodeName, ProxyStatus, Restart,
    WalStatus,
};

#[derive(Clone, Debug)]
pub struct FailoverConfig {
    /// Names the relay in `synchronous_standby_names`.
    pub instance: String,
    /// All instances, this one included; empty while it is alone.
    pub members: Vec<String>,
    /// How many relays have to acknowledge a commit; `None`: a majority.
    pub acks: Option<usize>,
    /// The relays' replication slots at their upstream.
    pub relay_slots: Vec<SlotName>,
    pub nodes: Vec<Node>,
    pub login: ServerLogin,
    pub durability: Durability,
    /// Beforehand, and whenever it changes.
    pub tuning: watch::Receiver<Tuning>,
    /// The state file; its history lies beside it. Where the journal is in etcd, it holds a copy.
    pub state: PathBuf,
    pub etcd: Option<EtcdConfig>,
}

/// What may change while the plane runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    pub mode: Mode,
    /// `None`: automatic failovers are not counted.
    pub budget: Option<Budget>,
    pub max_lost_bytes: u64,
    /// How long a switchover waits for open transactions.
    pub drain: Duration,
    pub detect: Detect,
}

/// As whom we probe, prepare and promote: a superuser, or a member of `pg_monitor` with the grants that `check`
/// names.
#[derive(Clone, Debug)]
pub struct ServerLogin {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub credentials: Credentials,
    pub tls: TlsForServers,
}

/// What the other planes publish, and the servers on this host.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub wal: watch::Receiver<Arc<WalStatus>>,
    pub proxy: watch::Receiver<Arc<ProxyStatus>>,
    pub members: watch::Receiver<Arc<Members>>,
    pub local: HashMap<NodeName, LocalNode>,
}

/// What this plane publishes.
#[derive(Clone, Debug)]
pub struct Outputs {
    pub directive: watch::Sender<Arc<Directive>>,
    pub health: watch::Sender<Arc<Health>>,
    /// Oldest first; a running election is the last.
    pub history: watch::Sender<Arc<Vec<Election>>>,
    /// The instance that decides, as far as it is known; `None`: nobody does.
    pub leader: watch::Sender<Arc<Option<String>>>,
    /// Whether a dead primary is replaced without a person.
    pub failovers: watch::Sender<Arc<Failovers>>,
    /// Of servers, by an operator's order; oldest first, the one that is under way last.
    pub restarts: watch::Sender<Arc<Vec<Restart>>>,
    /// The servers that the agent here is at work on.
    pub at_work: watch::Sender<Arc<Vec<NodeName>>>,
    /// What it has done of late.
    pub deeds: watch::Sender<Arc<Vec<Deed>>>,
}

/// The control plane, ready to run.
#[derive(Debug)]
pub struct Failover {
    plan: Plan,
    control: Control,
}

/// What every start begins with.
#[derive(Clone, Debug)]
struct Plan {
    config: FailoverConfig,
    /// Of `config`, with what counts its answers.
    etcd: Option<(EtcdConfig, EtcdMetrics)>,
    inputs: Inputs,
    outputs: Outputs,
    metrics: Metrics,
}

/// The control plane after its end: nothing decides, and the journal is another process's to write.
#[derive(Debug)]
pub struct Closed {
    plan: Plan,
    asked: Questions,
}

impl Failover {
    /// Reads the state. Nothing is sent to any node before [`Failover::run`].
    pub fn new(
        config: FailoverConfig,
        inputs: Inputs,
        outputs: Outputs,
        registry: &Registry,
    ) -> Result<(Failover, Commands), FailoverError> {
        let (commands, asked) = Commands::channel();
        let metrics = Metrics::new(registry)?;
        let etcd = match config.etcd.clone() {
            Some(etcd) => Some((etcd, EtcdMetrics::registered(registry)?)),
            None => None,
        };
        let plan = Plan { config, etcd, inputs, outputs, metrics };
        let failover = Closed { plan, asked }.reopen()?;
        Ok((failover, commands))
    }

    /// Until `shutdown`. An error means that nothing may be decided any more: the process should end.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Closed, FailoverError> {
        let asked = self.control.run(shutdown).await?;
        Ok(Closed { plan: self.plan, asked })
    }
}

impl Closed {
    /// As after a restart of the process: what counts is what the journal says.
    pub fn reopen(self) -> Result<Failover, FailoverError> {
        let Closed { plan, asked } = self;
        let control = Control::new(plan.clone(), asked)?;
        Ok(Failover { plan, control })
    }
}

impl FailoverConfig {
    fn policy(&self) -> Policy {
        let Tuning { mode, budget, max_lost_bytes, drain, detect: _ } = *self.tuning.borrow();
        Policy {
            members: self.members.clone(),
            acks: self.acks,
            budget,
            max_lost_bytes,
            drain,
            ..Policy::new(&self.instance, mode, self.durability)
        }
    }
}
