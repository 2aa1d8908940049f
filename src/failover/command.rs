//! What an operator may ask for.

use tokio::sync::{mpsc, oneshot};

use super::decide::{Handover, Stragglers};
use super::error::CommandError;
use crate::topology::NodeName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Promote a standby, whatever the primary is doing.
    Failover {
        to: Option<NodeName>,
    },
    /// Promote a standby after the primary has handed over everything.
    Switchover {
        to: Option<NodeName>,
        stragglers: Stragglers,
    },
    /// No automatic failover until resumed; survives restarts.
    Pause,
    Resume,
    /// An operator works on a node, until it is said to be over; survives restarts.
    Maintenance {
        node: NodeName,
        upkeep: Upkeep,
    },
    /// One server after the other.
    Restart {
        servers: Servers,
        stragglers: Stragglers,
    },
    /// No further server is restarted.
    CancelRestart,
    /// Nothing: it is told in which order, and what stands in the way.
    ForeseeRestart {
        servers: Servers,
    },
    /// Nothing: it is told what an order would come to now.
    Foresee {
        handover: Handover,
        to: Option<NodeName>,
    },
}

/// Of a node's maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    Begin,
    End,
}

/// Which are to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    One(NodeName),
    All,
}

/// A command and where its answer goes: a sentence, or why not.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: Command,
    pub(super) answer: oneshot::Sender<Result<String, CommandError>>,
}

pub(super) type Questions = mpsc::Receiver<Asked>;

/// Asks the control plane. An accepted command has begun, not ended: the history tells how it went.
#[derive(Clone, Debug)]
pub struct Commands {
    sender: mpsc::Sender<Asked>,
}

impl Commands {
    /// Commands waiting to be looked at; more wait at their sender.
    const QUEUE: usize = 8;

    pub(super) fn channel() -> (Commands, Questions) {
        let (sender, receiver) = mpsc::channel(Self::QUEUE);
        (Commands { sender }, receiver)
    }

    pub async fn send(&self, command: Command) -> Result<String, CommandError> {
        let (answer, answered) = oneshot::channel();
        self.sender.send(Asked { command, answer }).await.map_err(|_| CommandError::Stopped)?;
        answered.await.unwrap_or(Err(CommandError::Stopped))
    }
}
