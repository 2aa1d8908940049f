//! Back into the cluster as a standby: started, rewound or rebuilt, whichever is the least that is right.
//!
//! A former primary may hold WAL that nobody else has. Started as it is, it would either refuse to stream or,
//! worse, serve what never happened. So what its files say of its past decides ([`plan`]), and all that could not be
//! shown to be harmless is rewound, or copied anew.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::conninfo::Conninfo;
use super::control::{ControlFile, DbState};
use super::copy::{begin_without_tablespaces, copy};
use super::discarded::Discarded;
use super::error::{AgentError, FileError};
use super::standby::become_standby;
use super::{AUTO_CONF, DirectoryLock, LocalServer, ServerStatus, StopMode, files};
use crate::net::{self, Conversation, ConversationError, Credentials, Target};
use crate::pg::protocol::replication::base_backup::BaseBackupOptions;
use crate::pg::settings::{self, Change};
use crate::pg::{SlotName, TimelineId};
use crate::topology::Role;

/// pg_rewind reads the target's WAL from the last common checkpoint on and fetches what has changed since.
const REWIND_LIMIT: Duration = Duration::from_secs(30 * 60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);

const BACKUP_LABEL: &str = "bellwether";

/// A node's own configuration: neither pg_rewind nor a base backup may replace it by its source's.
const OWN_FILES: [&str; 4] = ["postgresql.conf", AUTO_CONF, "pg_hba.conf", "pg_ident.conf"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejoinOutcome {
    /// It was a standby: it runs (again).
    Started,
    /// `pg_rewind` removed what it had written on its own.
    Rewound,
    /// A new base backup replaced it.
    Rebuilt,
}

/// How a server came back, and what it had to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejoined {
    pub outcome: RejoinOutcome,
    /// `None`: nothing that the source does not have.
    pub discarded: Option<Discarded>,
}

/// What the files of a stopped server say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Past {
    /// `None`: there is no (readable) cluster.
    state: Option<DbState>,
    role: Option<Role>,
    copied: Copied,
    rewind: Rewind,
}

/// What the directory is a copy of, if it has not run since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// `backup_label` is there: a base backup, or rewound, and not started since.
    Fresh,
    HasRun,
    /// pg_rewind was interrupted.
    HalfRewound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewind {
    Available,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Start,
    Rewind,
    Rebuild,
}

/// `standby.signal` alone proves nothing: somebody may have put it into a primary's directory. Only together
/// with a control file that was last written in recovery, or with a copy that has not run yet, it does.
fn plan(past: Past) -> Plan {
    match past {
        Past { state: None, .. } | Past { copied: Copied::HalfRewound, .. } => Plan::Rebuild,
        Past { copied: Copied::Fresh, role: Some(Role::Standby), .. } => Plan::Start,
        Past { state: Some(state), role: Some(Role::Standby), .. } if state.is_recovery() => Plan::Start,
        Past { rewind: Rewind::Available, .. } => Plan::Rewind,
        Past { rewind: Rewind::Missing, .. } => Plan::Rebuild,
    }
}

impl LocalServer {
    /// Makes the server a standby of `primary_conninfo` and lets it run. `source` is the present primary (not
    /// the relay), with a superuser's login: it is asked for a checkpoint and read from when the server's own
    /// data is not good enough.
    ///
    /// A server that runs as a primary is stopped first: who calls this knows that it no longer is one.
    pub async fn rejoin(
        &self,
        source: &Target,
        primary_conninfo: &str,
        slot: &SlotName,
    ) -> Result<Rejoined, AgentError> {
        let lock = self.lock()?;
        let upstream = self.upstream(primary_conninfo)?;
        if self.runs_as_standby() {
            self.repoint_running(&upstream, slot).await?;
            return Ok(Rejoined { outcome: RejoinOutcome::Started, discarded: None });
        }
        self.stop_for_good().await?;
        let (outcome, discarded) = match plan(self.past()) {
            Plan::Start => {
                let (upstream, slot) = (upstream.clone(), slot.clone());
                self.aside(&lock, move |server| {
                    server.become_standby(&server.data_dir, &upstream, &slot, &[])
                })
                .await?;
                (RejoinOutcome::Started, None)
            }
            Plan::Rewind => {
                let discarded = self.save_discarded(source, &lock).await?;
                (self.rewind_or_rebuild(source, &upstream, slot, &lock).await?, discarded)
            }
            Plan::Rebuild => {
                let discarded = self.rebuild_locked(source, &upstream, slot, &lock).await?;
                (RejoinOutcome::Rebuilt, discarded)
            }
        };
        self.launch(Role::Standby).await?;
        self.remove_leftovers(&lock).await?;
        Ok(Rejoined { outcome, discarded })
    }

    async fn rewind_or_rebuild(
        &self,
        source: &Target,
        upstream: &str,
        slot: &SlotName,
        lock: &DirectoryLock,
    ) -> Result<RejoinOutcome, AgentError> {
        let Err(error) = self.rewind_locked(source, upstream, slot, lock).await else {
            return Ok(RejoinOutcome::Rewound);
        };
        tracing::info!(node = %self.node, error = &error as &dyn std::error::Error, "cannot rewind, rebuilding");
        self.rebuild_locked(source, upstream, slot, lock).await?;
        Ok(RejoinOutcome::Rebuilt)
    }

    /// The same with a base backup in any case: for a standby that runs and cannot stream.
    pub async fn rebuild(
        &self,
        source: &Target,
        primary_conninfo: &str,
        slot: &SlotName,
    ) -> Result<Rejoined, AgentError> {
        let lock = self.lock()?;
        let upstream = self.upstream(primary_conninfo)?;
        self.stop_for_good().await?;
        let discarded = self.rebuild_locked(source, &upstream, slot, &lock).await?;
        self.launch(Role::Standby).await?;
        self.remove_leftovers(&lock).await?;
        Ok(Rejoined { outcome: RejoinOutcome::Rebuilt, discarded })
    }

    /// Makes the stopped server follow `primary_conninfo` from its next start on, without a look at its past.
    pub fn follow(&self, primary_conninfo: &str, slot: &SlotName) -> Result<(), AgentError> {
        let _lock = self.lock()?;
        self.become_standby(&self.data_dir, &self.upstream(primary_conninfo)?, slot, &[])
    }

    /// Whether the server may run as a standby just as it is.
    pub(super) fn is_standby_by_its_past(&self) -> bool {
        plan(self.past()) == Plan::Start
    }

    fn upstream(&self, primary_conninfo: &str) -> Result<String, AgentError> {
        let parsed = Conninfo::parse(primary_conninfo)
            .map_err(|source| AgentError::Conninfo { data_dir: self.data_dir.clone(), source })?;
        Ok(parsed.with("application_name", self.node.as_str()).to_string())
    }

    fn runs_as_standby(&self) -> bool {
        // A promoted server has removed its standby.signal.
        self.status() != ServerStatus::Stopped && self.role_on_disk() == Some(Role::Standby)
    }

    /// Both settings are taken up by a reload (since PostgreSQL 13); nothing is done if they are in place.
    async fn repoint_running(&self, upstream: &str, slot: &SlotName) -> Result<(), AgentError> {
        let text = files::read_or_empty(&self.data_dir.join(AUTO_CONF))?;
        let value = |name| settings::value_of(&text, name);
        let in_place = value("primary_conninfo").as_deref() == Some(upstream)
            && value("primary_slot_name").as_deref() == Some(slot.as_str());
        if !in_place {
            self.become_standby(&self.data_dir, upstream, slot, &[])?;
            self.pg_ctl(RELOAD_LIMIT).args(["reload", "-s"]).run().await?;
        }
        Ok(())
    }

    /// An orderly stop leaves pg_rewind less to do, but a server that cannot stop in order must not stay.
    async fn stop_for_good(&self) -> Result<(), AgentError> {
        if let Err(error) = self.stop(StopMode::Fast).await {
            tracing::info!(node = %self.node, error = &error as &dyn std::error::Error, "no orderly stop, stopping at once");
            self.stop(StopMode::Immediate).await?;
        }
        Ok(())
    }

    fn past(&self) -> Past {
        let copied = if self.half_rewound().exists() {
            Copied::HalfRewound
        } else if self.data_dir.join("backup_label").exists() {
            Copied::Fresh
        } else {
            Copied::HasRun
        };
        let rewind = if self.binaries.pg_rewind.is_some() { Rewind::Available } else { Rewind::Missing };
        let state = self.control_file().map(|control| control.state);
        Past { state, role: self.role_on_disk(), copied, rewind }
    }

    async fn rewind_locked(
        &self,
        source: &Target,
        upstream: &str,
        slot: &SlotName,
        lock: &DirectoryLock,
    ) -> Result<(), AgentError> {
        let pg_rewind = self.pg_rewind(source)?;
        // Right after a promotion the source's control file still names the old timeline, and pg_rewind would
        // find nothing to do.
        let source_timeline = checkpoint(source).await?;
        self.await_no_process().await?;
        files::remove_file(&self.data_dir.join("postmaster.pid"))?;
        self.aside(lock, LocalServer::keep_own_files).await?;
        pg_rewind.run().await?;
        if is_other_branch(self.control_file(), source_timeline) {
            return Err(AgentError::SameTimeline {
                data_dir: self.data_dir.clone(),
                timeline: source_timeline,
            });
        }
        let (upstream, slot) = (upstream.to_owned(), slot.clone());
        self.aside(lock, move |server| server.settle_rewound(&upstream, &slot)).await
    }

    fn settle_rewound(&self, upstream: &str, slot: &SlotName) -> Result<(), AgentError> {
        self.restore_own_files(&self.half_rewound(), &self.data_dir)?;
        self.become_standby(&self.data_dir, upstream, slot, &[])?;
        files::sync_tree(&self.data_dir)?;
        files::remove_tree(&self.half_rewound())?;
        Ok(())
    }

    /// The call of pg_rewind. The password goes through the environment: a command line is everybody's to read.
    fn pg_rewind(&self, source: &Target) -> Result<super::Program, AgentError> {
        if self.binaries.pg_rewind.is_none() {
            return Err(AgentError::NoRewind);
        }
        let conninfo = Conninfo::new()
            .with("host", &*source.address.host)
            .with("port", source.address.port.to_string())
            .with("user", &*source.user)
            .with("dbname", &*source.database)
            .with("connect_timeout", CONNECT_LIMIT.as_secs().to_string());
        let call = self.program("pg_rewind", REWIND_LIMIT).arg("--target-pgdata").arg(&self.data_dir);
        let call = call.arg(format!("--source-server={conninfo}"));
        match &source.credentials {
            Credentials::Trust => Ok(call),
            Credentials::Password(password) => Ok(call.env("PGPASSWORD", password)),
            Credentials::Md5(_) | Credentials::ScramKeys(_) => {
                Err(AgentError::NoPassword { user: source.user.to_string() })
            }
        }
    }

    /// Copies the configuration aside. The directory appears complete or not at all: it also says that a rewind
    /// has begun.
    fn keep_own_files(&self) -> Result<(), AgentError> {
        let making = self.beside(".rewinding.tmp");
        files::remove_tree(&making)?;
        files::create_private_dir(&making, self.run_as.as_ref())?;
        self.restore_own_files(&self.data_dir, &making)?;
        files::rename(&making, &self.half_rewound())?;
        Ok(())
    }

    fn restore_own_files(&self, from: &Path, to: &Path) -> Result<(), AgentError> {
        for name in OWN_FILES {
            let original = from.join(name);
            if original.is_file() {
                let content = fs::read(&original).map_err(FileError::of("read", &original))?;
                files::write_durably(&to.join(name), &content, self.run_as.as_ref())?;
            }
        }
        Ok(())
    }

    /// The copy is made in `<data_dir>.new` and takes the old directory's place when it is a standby in every
    /// respect, so that a crash at any point leaves either a directory that is not started or one that may be.
    /// Needs room for both.
    async fn rebuild_locked(
        &self,
        source: &Target,
        upstream: &str,
        slot: &SlotName,
        lock: &DirectoryLock,
    ) -> Result<Option<Discarded>, AgentError> {
        // Half rewound, it is no history of its own any more, and was saved before.
        let discarded =
            if self.half_rewound().exists() { None } else { self.save_discarded(source, lock).await? };
        let making = self.beside(".new");
        let empty = making.clone();
        self.aside(lock, move |server| {
            files::remove_tree(&empty)?;
            Ok(files::create_private_dir(&empty, server.run_as.as_ref())?)
        })
        .await?;
        let mut backup = begin_without_tablespaces(source, &BaseBackupOptions::new(BACKUP_LABEL)).await?;
        copy(&mut backup, &[], &making, lock, |_| {}).await?;
        let (upstream, slot) = (upstream.to_owned(), slot.clone());
        self.aside(lock, move |server| {
            server.settle_copy(&making, &upstream, &slot)?;
            server.replace_by(&making)
        })
        .await?;
        Ok(discarded)
    }

    fn replace_by(&self, copy: &Path) -> Result<(), AgentError> {
        let replaced = self.beside(".old");
        if self.data_dir.exists() {
            files::remove_tree(&replaced)?;
            files::rename(&self.data_dir, &replaced)?;
        }
        files::rename(copy, &self.data_dir)?;
        files::remove_tree(&self.half_rewound())?;
        Ok(())
    }

    /// A copy of another node becomes this node's standby, durably.
    fn settle_copy(&self, copy: &Path, upstream: &str, slot: &SlotName) -> Result<(), AgentError> {
        let own = [self.half_rewound(), self.data_dir.clone(), self.beside(".old")];
        match own.iter().find(|dir| dir.join(AUTO_CONF).is_file()) {
            Some(own) => {
                self.restore_own_files(own, copy)?;
                self.become_standby(copy, upstream, slot, &[])?;
            }
            None => self.become_standby(copy, upstream, slot, &self.own_settings().each())?,
        }
        files::give_tree(copy, self.run_as.as_ref())?;
        files::sync_tree(copy)?;
        Ok(())
    }

    fn become_standby(
        &self,
        dir: &Path,
        upstream: &str,
        slot: &SlotName,
        further: &[Change<'_>],
    ) -> Result<(), AgentError> {
        become_standby(dir, upstream, Some(slot), further, self.run_as.as_ref())
    }

    async fn remove_leftovers(&self, lock: &DirectoryLock) -> Result<(), AgentError> {
        self.aside(lock, |server| Ok(files::remove_tree(&server.beside(".old"))?)).await
    }

    /// Work on files takes its time: it is done on a thread of its own, so that nothing else waits, decisions least of
    /// all. It goes on when whoever waits for it gives up, and holds `lock` as long: nobody else may change the
    /// directory under it.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        lock: &DirectoryLock,
        work: impl FnOnce(&LocalServer) -> Result<T, AgentError> + Send + 'static,
    ) -> Result<T, AgentError> {
        let (server, lock) = (self.clone(), lock.clone());
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&server);
            drop(lock);
            done
        });
        done.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// Two servers that were promoted without knowing of each other may both have taken the next number. pg_rewind
/// then finds them on one timeline and does nothing (`main` in pg_rewind.c); what it rewinds is left in recovery.
fn is_other_branch(rewound: Option<ControlFile>, source: TimelineId) -> bool {
    rewound.is_none_or(|control| !control.state.is_recovery() && control.timeline >= source)
}

/// Returns the timeline that the source's control file then names.
async fn checkpoint(source: &Target) -> Result<TimelineId, AgentError> {
    let address = source.address.clone();
    let backend = net::dial(source, CONNECT_LIMIT).await?;
    let mut conversation = Conversation::new(backend, CHECKPOINT_LIMIT);
    let done = async {
        conversation.execute("CHECKPOINT").await?;
        conversation.send_query("SELECT timeline_id FROM pg_control_checkpoint()").await?;
        let rows = conversation.rows().await?;
        let timeline = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
        timeline.map(TimelineId).ok_or(ConversationError::Content { what: "timeline" })
    };
    done.await.map_err(|source| AgentError::Conversation { address, source })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{ControlFile, Copied, DbState, LocalServer, Past, Plan, Rewind, is_other_branch, plan};
    use crate::failover::agent::{PgBinaries, PgVersion};
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};
    use crate::topology::Role;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn files_hold_up_nobody_and_stay_locked_until_they_are_done() {
        let directory = tempfile::tempdir().expect("a directory");
        let server = LocalServer {
            node: "pg1".parse().expect("a name"),
            address: "127.0.0.1:5432".parse().expect("an address"),
            data_dir: directory.path().join("pg1"),
            binaries: PgBinaries {
                bin_dir: directory.path().to_owned(),
                version: PgVersion { major: 15, minor: 0 },
                pg_rewind: None,
            },
            run_as: None,
        };
        let lock = server.lock().expect("nobody has it");
        let (go_on, wait) = mpsc::sync_channel(1);
        let work = server.aside(&lock, move |_| Ok(wait.recv_timeout(LIMIT).is_ok()));
        let meanwhile = async move { go_on.send(()).expect("it is waited for") };
        let (done, ()) = tokio::join!(work, meanwhile);
        assert!(done.expect("no error"), "this thread went on");

        let (go_on, wait) = mpsc::sync_channel::<()>(1);
        let (began, begin) = mpsc::sync_channel(1);
        let work = server.aside(&lock, move |_| {
            began.send(()).expect("it is waited for");
            Ok(wait.recv_timeout(LIMIT).is_ok())
        });
        // Begun and given up.
        tokio::select! {
            biased;
            _ = work => panic!("nobody let it go on"),
            () = std::future::ready(()) => {}
        }
        begin.recv_timeout(LIMIT).expect("it has begun");
        drop(lock);
        assert!(server.lock().is_err(), "it is still at it");
        go_on.send(()).expect("it is still at it");
        while server.lock().is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_pg_rewind_left_alone_is_no_standby_of_its_own_timeline() {
        let check = |state, timeline, expected| {
            let control = ControlFile {
                system: SystemIdentifier(7),
                state,
                checkpoint: Lsn(0),
                timeline: TimelineId(timeline),
                min_recovery_timeline: TimelineId(0),
            };
            assert_eq!(is_other_branch(Some(control), TimelineId(3)), expected, "{control:?}");
        };
        check(DbState::InArchiveRecovery, 3, false);
        // It ended where the source's timeline began.
        check(DbState::ShutDown, 2, false);
        // Promoted unseen: another timeline 3.
        check(DbState::ShutDown, 3, true);
        check(DbState::InProduction, 4, true);
        assert!(is_other_branch(None, TimelineId(3)));
    }

    #[test]
    fn only_what_was_a_standby_is_just_started() {
        let check = |state, role, copied, with_rewind, without| {
            let past = Past { state, role, copied, rewind: Rewind::Available };
            assert_eq!(plan(past), with_rewind, "{past:?}");
            let past = Past { rewind: Rewind::Missing, ..past };
            assert_eq!(plan(past), without, "{past:?}");
        };
        let (primary, standby) = (Some(Role::Primary), Some(Role::Standby));
        let in_recovery = [DbState::InArchiveRecovery, DbState::ShutDownInRecovery];
        let as_primary = [
            DbState::InProduction,
            DbState::ShutDown,
            DbState::ShuttingDown,
            DbState::StartingUp,
            DbState::InCrashRecovery,
        ];
        for state in in_recovery {
            check(Some(state), standby, Copied::HasRun, Plan::Start, Plan::Start);
            // A promotion that was cut off: the signal is gone, the state not written yet.
            check(Some(state), primary, Copied::HasRun, Plan::Rewind, Plan::Rebuild);
        }
        for state in as_primary {
            check(Some(state), primary, Copied::HasRun, Plan::Rewind, Plan::Rebuild);
            check(Some(state), standby, Copied::HasRun, Plan::Rewind, Plan::Rebuild);
            // A base backup's control file is its source's.
            check(Some(state), standby, Copied::Fresh, Plan::Start, Plan::Start);
            check(Some(state), standby, Copied::HalfRewound, Plan::Rebuild, Plan::Rebuild);
        }
        check(None, None, Copied::HasRun, Plan::Rebuild, Plan::Rebuild);
    }
}
