//! What can go wrong with a local server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::conninfo::InvalidConninfo;
use super::control::DbState;
use super::copy::CopyError;
use super::program::ProgramError;
use super::verify::VerifyError;
use crate::net::{ConversationError, DialError, PlacingError};
use crate::pg::settings::LineBreak;
use crate::pg::{SlotName, TimelineId};
use crate::topology::Address;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("the copy is not what its manifest says")]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("ask {address}")]
    Conversation {
        address: Address,
        #[source]
        source: ConversationError,
    },
    #[error("replication slot {slot} is there already, and a standby cannot use it")]
    Slot {
        slot: SlotName,
        #[source]
        source: Box<ConversationError>,
    },
    #[error("the server in {data_dir} did not start; its log says: {log}")]
    NotStarted {
        data_dir: PathBuf,
        log: String,
        #[source]
        source: ProgramError,
    },
    /// It crashed, was not what it should be, or there is nothing to read.
    #[error("the server in {data_dir} was not shut down in order: its control file says {state:?}")]
    NotShutDown { data_dir: PathBuf, state: Option<DbState> },
    #[error("the server in {data_dir} still runs {limit:?} after it was told to shut down")]
    StillRunning { data_dir: PathBuf, limit: Duration },
    #[error("processes of the killed server in {data_dir} are still there: {pids:?}")]
    Lingering { data_dir: PathBuf, pids: Vec<i32> },
    #[error("{data_dir} is not empty")]
    NotEmpty { data_dir: PathBuf },
    #[error(
        "{data_dir} was not finished, but a server was started in it since: remove it yourself if nobody needs it"
    )]
    StartedUnfinished { data_dir: PathBuf },
    #[error(transparent)]
    Placing(#[from] PlacingError),
    #[error(
        "{} is not empty, and tablespace {location} belongs there; --tablespace-mapping {location}=NEW puts it elsewhere",
        directory.display()
    )]
    TablespaceNotEmpty { directory: PathBuf, location: String },
    #[error("there is no cluster in {data_dir}")]
    NoCluster { data_dir: PathBuf },
    #[error("{data_dir} holds no standby: it must rejoin before it starts as a standby")]
    NotAStandby { data_dir: PathBuf },
    #[error("{data_dir} holds a standby: it must be promoted, not started as the primary")]
    NotAPrimary { data_dir: PathBuf },
    #[error("{data_dir} is half rewound: it must be rebuilt before it starts")]
    HalfRewound { data_dir: PathBuf },
    #[error("another operation on {data_dir} is under way")]
    Busy { data_dir: PathBuf },
    #[error("{data_dir} was a primary of timeline {timeline} as the source is: pg_rewind sees no difference")]
    SameTimeline { data_dir: PathBuf, timeline: TimelineId },
    #[error("pg_rewind is not installed beside the server's programs")]
    NoRewind,
    #[error("pg_rewind needs the password of {user}, of which only a derived key is known")]
    NoPassword { user: String },
    #[error("the upstream of {data_dir}")]
    Conninfo {
        data_dir: PathBuf,
        #[source]
        source: InvalidConninfo,
    },
    #[error("the settings in {file}")]
    Settings {
        file: PathBuf,
        #[source]
        source: LineBreak,
    },
    #[error("read the output of initdb and servers from {log}")]
    Log {
        log: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// An action on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError { action, path, source }
    }
}
