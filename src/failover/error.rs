//! What can go wrong in the control plane. None of these reaches a client.

use std::path::PathBuf;

use crate::net::DialError;
use crate::topology::NodeName;

/// Ends the control plane: without its journal it may not act.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    #[error("state file")]
    Journal(#[from] JournalError),
    #[error("register the metrics of failover")]
    Metrics(#[from] prometheus::Error),
    #[error("a task of failover ended")]
    Task(#[from] tokio::task::JoinError),
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Not overwritten: it may be the only trace of who the primary is.
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("{path} stays as it was: {action} {new}")]
    Unwritten {
        path: PathBuf,
        action: &'static str,
        new: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("write {path} as JSON")]
    Encode {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Why an action failed. It is tried again, or another candidate is.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("query")]
    Sql(#[from] tokio_postgres::Error),
    #[error("not finished within {0:?}")]
    Timeout(std::time::Duration),
    #[error("{node} gave an answer that cannot be read: {what}")]
    Answer { node: NodeName, what: String },
    #[error(
        "synchronous_standby_names is still {found:?}: a command line or a later configuration file overrides it"
    )]
    SettingStays { found: String },
    #[error("{0} is not configured")]
    UnknownNode(NodeName),
    #[error("{0} has no agent here")]
    NoAgent(NodeName),
    #[error("agent: {0}")]
    Agent(String),
}

/// Why a command was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("{0} is not a node of this cluster")]
    UnknownNode(NodeName),
    #[error("{0} cannot be promoted: {1}")]
    Unfit(NodeName, String),
    #[error("{0} is the primary: switch over first, then it can be in maintenance")]
    Primary(NodeName),
    #[error("{0} cannot be restarted: {1}")]
    NotRestarted(NodeName, String),
    #[error("not now: {0}")]
    NotNow(String),
    /// Who leads, if that is known.
    #[error("this instance does not lead{}", leader.as_ref().map_or_else(String::new, |name| format!("; ask {name}")))]
    Elsewhere { leader: Option<String> },
    #[error("the control plane has stopped")]
    Stopped,
}
