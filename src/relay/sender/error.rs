//! What a walsender refuses, in PostgreSQL's words (walsender.c, timeline.c, postgres.c).

use crate::pg::protocol::replication::{CommandError, InvalidReplicationMessage};
use crate::pg::wal::{VerifyError, history_file_name};
use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};
use crate::relay::slots::SlotError;

use super::core::SlotsNotSaved;

/// A command that failed; the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("{keyword} is not supported by this relay")]
    NotServed { keyword: &'static str },
    #[error("unrecognized configuration parameter \"{0}\"")]
    UnknownSetting(String),
    #[error("could not open file \"pg_wal/{}\": No such file or directory", history_file_name(*.0))]
    NoHistory(TimelineId),
    #[error("requested timeline {0} is not in this server's history")]
    UnknownTimeline(TimelineId),
    #[error("requested starting point {start} on timeline {timeline} is not in this server's history")]
    BeyondFork { start: Lsn, timeline: TimelineId, switchpoint: Lsn },
    #[error("requested starting point {start} is ahead of the WAL flush position of this server {flush}")]
    AheadOfFlush { start: Lsn, flush: Lsn },
    #[error("requested WAL segment {segment} has already been removed")]
    Removed { segment: String },
    /// The store or the slots' file failed; its own log says more than a follower needs to know.
    #[error("could not read WAL segment {segment}")]
    Unreadable { segment: String },
    #[error("WAL segment {segment} is corrupt at {}", .source.lsn)]
    Corrupt {
        segment: String,
        #[source]
        source: VerifyError,
    },
    #[error("could not write the file of replication slots{}", match .0 {
        SlotsNotSaved::DiskFull => ": No space left on device",
        SlotsNotSaved::Failed => "",
    })]
    SlotsNotSaved(SlotsNotSaved),
    #[error("no server is there to take a base backup from")]
    NoSource,
    #[error("extended query protocol not supported in a replication connection")]
    ExtendedQuery,
    #[error("fastpath function calls not supported in a replication connection")]
    FunctionCall,
}

/// What ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fatal {
    #[error("the database system is starting up")]
    Starting,
    #[error("terminating connection due to administrator command")]
    Shutdown,
    #[error("invalid message length")]
    MessageLength,
    #[error("invalid frontend message type {0}")]
    MessageType(u8),
    #[error("invalid standby message type \"{}\"", char::from(*.0))]
    StandbyMessageType(u8),
    #[error("invalid standby message: {0}")]
    StandbyMessage(#[source] InvalidReplicationMessage),
}

impl Refusal {
    pub(super) fn to_fields(&self) -> ErrorFields {
        let code = match self {
            Refusal::Command(error) => return error.to_fields(),
            Refusal::Slot(error) => return error.to_fields(),
            Refusal::NotServed { .. } => SqlState::FEATURE_NOT_SUPPORTED,
            Refusal::UnknownSetting(_) => SqlState::UNDEFINED_OBJECT,
            Refusal::NoHistory(_) | Refusal::Removed { .. } => SqlState::UNDEFINED_FILE,
            Refusal::UnknownTimeline(_) | Refusal::BeyondFork { .. } | Refusal::AheadOfFlush { .. } => {
                SqlState::INTERNAL_ERROR
            }
            Refusal::SlotsNotSaved(SlotsNotSaved::DiskFull) => SqlState::DISK_FULL,
            Refusal::Unreadable { .. } | Refusal::SlotsNotSaved(SlotsNotSaved::Failed) => SqlState::IO_ERROR,
            Refusal::Corrupt { .. } => SqlState::DATA_CORRUPTED,
            Refusal::NoSource => SqlState::CANNOT_CONNECT_NOW,
            Refusal::ExtendedQuery | Refusal::FunctionCall => SqlState::PROTOCOL_VIOLATION,
        };
        let fields = ErrorFields::error(code, self.to_string());
        match self {
            Refusal::BeyondFork { timeline, switchpoint, .. } => fields.with_detail(format!(
                "This server's history forked from timeline {timeline} at {switchpoint}."
            )),
            Refusal::Corrupt { source, .. } => fields.with_detail(format!("{}.", source.defect)),
            _ => fields,
        }
    }
}

impl Fatal {
    pub(super) fn to_fields(&self) -> ErrorFields {
        let code = match self {
            Fatal::Starting => SqlState::CANNOT_CONNECT_NOW,
            Fatal::Shutdown => SqlState::ADMIN_SHUTDOWN,
            Fatal::MessageLength
            | Fatal::MessageType(_)
            | Fatal::StandbyMessageType(_)
            | Fatal::StandbyMessage(_) => SqlState::PROTOCOL_VIOLATION,
        };
        ErrorFields::fatal(code, self.to_string())
    }
}
