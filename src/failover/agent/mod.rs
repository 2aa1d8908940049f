//! The agent: PostgreSQL servers on this host, run by us.
//!
//! A server is never our child: `pg_ctl` detaches it, so that it outlives us, and whoever comes next finds it by
//! its `postmaster.pid`. Every operation may be repeated: it looks at what is there and does what is missing.
//! Operations that change the data directory exclude each other by a lock file beside it, also across
//! processes; [`AgentError::Busy`] tells that somebody else is at it.
//!
//! Two rules are held here and nowhere else: a former primary is never started before it has been made a standby
//! whose history is that of the present primary ([`LocalServer::rejoin`]), and a half-rewound directory is never
//! started at all.
//!
//! Not here: when to do any of this. That is the control plane's to decide.

mod binaries;
mod conninfo;
mod control;
mod copy;
mod discarded;
mod error;
mod files;
mod follower;
mod initdb;
mod process;
mod program;
mod rejoin;
mod standby;
mod user;
mod verify;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use binaries::{BinariesError, PgBinaries, PgVersion};
pub use conninfo::{Conninfo, InvalidConninfo};
pub use control::{ControlFile, DbState};
pub use copy::{Copied, CopyError, CopyProgress};
pub use discarded::Discarded;
pub use error::{AgentError, FileError};
pub use follower::{InitProgress, MadeFollower, NewFollower};
pub use initdb::Superuser;
pub use program::ProgramError;
pub use rejoin::{RejoinOutcome, Rejoined};
pub use user::{RunAs, RunAsError};
pub use verify::VerifyError;

use nix::fcntl::Flock;

use self::control::PidFile;
use self::program::Program;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Address, NodeName, Role};

/// pg_ctl waits this long for a primary to accept connections; a longer recovery goes on without it.
const PRIMARY_START_LIMIT: Duration = Duration::from_secs(60);
/// A standby accepts connections when it is consistent, for which it may need WAL that its upstream does not
/// have yet: it runs, and that is enough.
const STANDBY_START_LIMIT: Duration = Duration::from_secs(5);
const FAST_STOP_LIMIT: Duration = Duration::from_secs(30);
/// Nothing is written on the way: a server that takes longer is frozen, and is killed.
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(4);
/// Beyond pg_ctl's own limit, before it is taken to hang.
const GRACE: Duration = Duration::from_secs(5);
/// Backends of a killed postmaster leave within a moment, unless they are stopped or stuck in the kernel.
const LINGER_CHECKS: u32 = 40;
/// A start that fails because of what a killed server left is tried this often.
const START_ATTEMPTS: u32 = 20;
/// Between two looks at whether a server that was told to shut down has done so.
const SHUT_DOWN_POLL: Duration = Duration::from_millis(3);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Of the server's log, for the error of a failed start, in bytes.
const LOG_EXCERPT: usize = 2000;
const STANDBY_SIGNAL: &str = "standby.signal";
const AUTO_CONF: &str = "postgresql.auto.conf";

/// Held by all that works on a data directory, also by what outlives the future that began it.
type DirectoryLock = Arc<Flock<File>>;

/// One PostgreSQL server on this host.
#[derive(Clone, Debug)]
pub struct LocalServer {
    pub node: NodeName,
    /// Where it listens.
    pub address: Address,
    /// Its parent directory holds what belongs to the server and is not its data: lock, log, copies in the
    /// making.
    pub data_dir: PathBuf,
    pub binaries: PgBinaries,
    /// `None`: as ourselves.
    pub run_as: Option<RunAs>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    Running { pid: i32 },
    Stopped,
}

/// `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Connections are closed, a checkpoint is written.
    Fast,
    /// At once, as if it had crashed; killed if even that takes too long.
    Immediate,
}

impl LocalServer {
    pub fn status(&self) -> ServerStatus {
        let pid_file = fs::read_to_string(self.data_dir.join("postmaster.pid")).ok();
        match pid_file.as_deref().and_then(PidFile::parse) {
            Some(PidFile { pid }) if process::works_in(pid, &self.data_dir) => ServerStatus::Running { pid },
            _ => ServerStatus::Stopped,
        }
    }

    /// As which role the server would start, by its files; `None` when there is no cluster.
    pub fn role_on_disk(&self) -> Option<Role> {
        self.data_dir
            .join("PG_VERSION")
            .is_file()
            .then(|| if self.data_dir.join(STANDBY_SIGNAL).is_file() { Role::Standby } else { Role::Primary })
    }

    /// What the control file says; `None` when there is no cluster, or none that we can read.
    pub fn control_file(&self) -> Option<ControlFile> {
        ControlFile::parse(&fs::read(self.control_path()).ok()?)
    }

    /// Of a server that runs.
    fn whole_control_file(&self) -> Option<ControlFile> {
        ControlFile::parse_whole(&fs::read(self.control_path()).ok()?)
    }

    fn control_path(&self) -> PathBuf {
        self.data_dir.join("global/pg_control")
    }

    /// The latest that the server knows of: the control file names a new one only after the checkpoint that
    /// follows a promotion, its history file is there from the beginning.
    pub fn latest_timeline(&self) -> TimelineId {
        let checkpoint = self.control_file().map_or(TimelineId(0), |control| control.timeline);
        let wal = fs::read_dir(self.data_dir.join("pg_wal")).into_iter().flatten().flatten();
        let histories = wal.filter_map(|entry| {
            let name = entry.file_name();
            u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok().map(TimelineId)
        });
        histories.fold(checkpoint, TimelineId::max)
    }

    /// Where the server writes its log.
    pub fn log_file(&self) -> PathBuf {
        let parent = self.data_dir.parent().unwrap_or(Path::new("/"));
        parent.join(format!("{}.log", self.node))
    }

    /// Starts the server if it does not run. It must be what its files say: a standby is not started as the
    /// primary, and above all a former primary not as a standby.
    ///
    /// Returns when the server accepts connections, or has been recovering for a while (a primary a minute, a
    /// standby a few seconds).
    pub async fn start(&self, role: Role) -> Result<(), AgentError> {
        let _lock = self.lock()?;
        self.start_locked(role).await
    }

    /// Stops the server if it runs. `Immediate` ends with no process of the server left, whatever state they
    /// are in.
    pub async fn stop(&self, mode: StopMode) -> Result<(), AgentError> {
        let stopped = match (self.status(), mode) {
            (ServerStatus::Stopped, _) => Ok(String::new()),
            (ServerStatus::Running { .. }, StopMode::Fast) => self.pg_ctl_stop("fast", FAST_STOP_LIMIT).await,
            (ServerStatus::Running { .. }, StopMode::Immediate) => {
                self.pg_ctl_stop("immediate", IMMEDIATE_STOP_LIMIT).await
            }
        };
        match mode {
            StopMode::Immediate => {
                process::kill_all_in(&self.data_dir);
                self.await_no_process().await
            }
            StopMode::Fast if self.status() == ServerStatus::Stopped => Ok(()),
            StopMode::Fast => Ok(stopped.map(drop)?),
        }
    }

    /// Stops a standby in order, if it runs. A server that is none by its files is not touched: it may have been promoted
    /// since.
    pub async fn stop_standby(&self) -> Result<(), AgentError> {
        let _lock = self.lock()?;
        if self.role_on_disk() != Some(Role::Standby) {
            return Err(AgentError::NotAStandby { data_dir: self.data_dir.clone() });
        }
        if let ServerStatus::Running { pid } = self.status() {
            process::shut_down(pid);
            self.await_stopped().await?;
        }
        Ok(())
    }

    /// Stops a primary in order, if it runs; where the record of its last checkpoint begins. Behind that record there
    /// is none: a checkpoint of a shutdown is written when nobody can write any more (`CreateCheckPoint` in xlog.c). The
    /// server may not have ended when this returns: its walsenders and its archiver do after that.
    pub async fn shut_down(&self) -> Result<Lsn, AgentError> {
        let _lock = self.lock()?;
        if let ServerStatus::Running { pid } = self.status() {
            // What one that starts says is of the last time that it was shut down.
            let in_production = self.whole_control_file().is_some_and(|c| c.state == DbState::InProduction);
            process::shut_down(pid);
            let shut_down =
                || self.whole_control_file().filter(|c| in_production && c.state == DbState::ShutDown);
            if let Some(checkpoint) = self.await_shutdown(|| Some(shut_down()?.checkpoint)).await? {
                return Ok(checkpoint);
            }
        }
        match self.control_file() {
            Some(ControlFile { state: DbState::ShutDown, checkpoint, .. }) => Ok(checkpoint),
            control => Err(AgentError::NotShutDown {
                data_dir: self.data_dir.clone(),
                state: control.map(|control| control.state),
            }),
        }
    }

    /// `pg_ctl` looks ten times a second; clients wait meanwhile.
    async fn await_stopped(&self) -> Result<(), AgentError> {
        self.await_shutdown(|| None).await.map(drop)
    }

    /// Until `is_done` says something, or the server has stopped.
    async fn await_shutdown(&self, is_done: impl Fn() -> Option<Lsn>) -> Result<Option<Lsn>, AgentError> {
        let done = async {
            while self.status() != ServerStatus::Stopped {
                let done = is_done();
                if done.is_some() {
                    return done;
                }
                tokio::time::sleep(SHUT_DOWN_POLL).await;
            }
            None
        };
        let limit = FAST_STOP_LIMIT;
        tokio::time::timeout(limit, done)
            .await
            .map_err(|_elapsed| AgentError::StillRunning { data_dir: self.data_dir.clone(), limit })
    }

    async fn start_locked(&self, role: Role) -> Result<(), AgentError> {
        self.may_start(role)?;
        self.launch(role).await
    }

    /// Without a look at its past: that may say less than is known. A primary that was shut down in order, and had
    /// nothing of its own, is not touched by pg_rewind, and from its files alone might as well be another's past.
    async fn launch(&self, role: Role) -> Result<(), AgentError> {
        let limit = match role {
            Role::Primary => PRIMARY_START_LIMIT,
            Role::Standby => STANDBY_START_LIMIT,
        };
        let mut attempt = 1;
        loop {
            if let ServerStatus::Running { .. } = self.status() {
                return Ok(());
            }
            self.await_no_process().await?;
            // Its process is gone, but the pid may be a zombie's or somebody else's by now: PostgreSQL, which
            // looks at the number only, would refuse to start. Shared memory is guarded by its own key.
            files::remove_file(&self.data_dir.join("postmaster.pid"))?;
            let log_from = self.prepare_log()?;
            let Err(source) = self.pg_ctl_start(limit).await else { return Ok(()) };
            if let ServerStatus::Running { .. } = self.status() {
                return Ok(());
            }
            let log = self.log_since(log_from);
            if attempt == START_ATTEMPTS || !is_leftover(&log) {
                return Err(AgentError::NotStarted { data_dir: self.data_dir.clone(), log, source });
            }
            attempt += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn may_start(&self, role: Role) -> Result<(), AgentError> {
        let data_dir = self.data_dir.clone();
        if self.half_rewound().exists() {
            return Err(AgentError::HalfRewound { data_dir });
        }
        match (role, self.role_on_disk()) {
            (Role::Standby, _) if !self.is_standby_by_its_past() => Err(AgentError::NotAStandby { data_dir }),
            (Role::Primary, Some(Role::Standby)) => Err(AgentError::NotAPrimary { data_dir }),
            (Role::Primary, None) => Err(AgentError::NoCluster { data_dir }),
            _ => Ok(()),
        }
    }

    async fn pg_ctl_start(&self, limit: Duration) -> Result<String, ProgramError> {
        let wait = limit.as_secs().to_string();
        let call = self.pg_ctl(limit + GRACE).args(["start", "-w", "-s", "-t", &wait]);
        call.arg("-l").arg(self.log_file()).run().await
    }

    async fn pg_ctl_stop(&self, mode: &str, limit: Duration) -> Result<String, ProgramError> {
        let wait = limit.as_secs().to_string();
        self.pg_ctl(limit + GRACE).args(["stop", "-w", "-s", "-t", &wait, "-m", mode]).run().await
    }

    fn pg_ctl(&self, limit: Duration) -> Program {
        self.program("pg_ctl", limit).arg("-D").arg(&self.data_dir)
    }

    fn program(&self, name: &str, limit: Duration) -> Program {
        Program::new(&self.binaries.program(name), limit).run_as(self.run_as.as_ref())
    }

    async fn await_no_process(&self) -> Result<(), AgentError> {
        for _ in 0..LINGER_CHECKS {
            if process::all_in(&self.data_dir).is_empty() {
                return Ok(());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(AgentError::Lingering { data_dir: self.data_dir.clone(), pids: process::all_in(&self.data_dir) })
    }

    /// The log exists and belongs to the server's user; returns its length.
    fn prepare_log(&self) -> Result<usize, AgentError> {
        let log = self.log_file();
        let opened = fs::OpenOptions::new().append(true).create(true).open(&log);
        let length = opened.and_then(|file| {
            files::give(&log, self.run_as.as_ref())?;
            Ok(usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX))
        });
        length.map_err(|source| AgentError::Log { log, source })
    }

    /// What was logged since, its end if it is long.
    fn log_since(&self, from: usize) -> String {
        let log = fs::read(self.log_file()).unwrap_or_default();
        let new = log.get(from..).unwrap_or_default();
        String::from_utf8_lossy(&new[new.len().saturating_sub(LOG_EXCERPT)..]).trim().to_owned()
    }

    fn lock(&self) -> Result<DirectoryLock, AgentError> {
        let path = self.beside(".lock");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::of("create directory", parent))?;
        }
        let lock = files::try_lock(&path)?;
        lock.map(Arc::new).ok_or_else(|| AgentError::Busy { data_dir: self.data_dir.clone() })
    }

    /// Exists from before pg_rewind begins until its result is a standby, and keeps the node's own
    /// configuration meanwhile. Beside the data directory, because pg_rewind removes from it what its source
    /// does not have.
    fn half_rewound(&self) -> PathBuf {
        self.beside(".rewinding")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        files::beside(&self.data_dir, suffix)
    }
}

/// Whether a start failed on something that a killed server leaves for a moment.
fn is_leftover(log: &str) -> bool {
    ["pre-existing shared memory block", "lock file \"postmaster.pid\""].iter().any(|sign| log.contains(sign))
}
