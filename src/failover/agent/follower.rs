//! A new standby: an empty directory becomes one, by a base backup through whatever `endpoint` is, a relay as a rule.
//!
//! 1. A marker file says that the directory is ours and not finished. Whatever ends us, the next call recognises it
//!    and begins anew. A directory that holds anything and has no marker is never touched, and neither is one in which a
//!    server has been started meanwhile.
//! 2. The slot, if one is wanted, holds the WAL back before the copy begins. One that is there already must be one that the
//!    standby can use.
//! 3. Base backup. Its WAL is left out: the endpoint ships it. The connection stays until all is done, which is how long a
//!    relay holds that WAL at least. Tablespaces come to directories that are taken like the
//!    data directory, with a marker of their own.
//! 4. Every file is compared with the backup's manifest.
//! 5. Settings, everything durable, and only then the marker is removed.
//!
//! `standby.signal` is there from the beginning: started too early, or half copied, it is never a primary.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::copy::{Copied, CopyError, CopyProgress, copy};
use super::error::{AgentError, FileError};
use super::standby::become_standby;
use super::user::RunAs;
use super::verify::verify;
use super::{STANDBY_SIGNAL, files, process};
use crate::net::{
    self, BaseBackup, Conversation, ConversationError, PlacedTablespace, TablespaceMapping, Target, place,
};
use crate::pg::protocol::replication::base_backup::{BaseBackupOptions, Manifest, Tablespace, Wal};
use crate::pg::{SlotName, SqlState};

/// In the data directory as long as it is in the making.
const MARKER: &str = "bellwether.unfinished";
const MARKER_TEXT: &[u8] =
    b"bellwether follower init was interrupted here: run it again, or remove this directory.\n";
const CONTROL_FILE: &str = "global/pg_control";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const LABEL: &str = "bellwether follower init";
const APPLICATION_NAME: &str = "bellwether_follower_init";

/// A standby to be made.
#[derive(Clone, Debug)]
pub struct NewFollower {
    pub data_dir: PathBuf,
    /// Where the copy comes from.
    pub endpoint: Target,
    /// What it follows from then on.
    pub primary_conninfo: String,
    /// Made when missing.
    pub slot: Option<SlotName>,
    pub tablespaces: Vec<TablespaceMapping>,
    /// Kilobytes in a second, of the copy.
    pub max_rate: Option<u32>,
    /// `None`: the files are ours.
    pub run_as: Option<RunAs>,
}

/// A standby that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFollower {
    pub copied: Copied,
    pub tablespaces: Vec<PlacedTablespace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitProgress {
    Copying(CopyProgress),
    Verifying {
        done_bytes: u64,
        total_bytes: u64,
    },
    /// Until all of it is on disk.
    Syncing,
}

impl NewFollower {
    /// Durable when it returns.
    pub async fn make(
        &self,
        progress: Arc<dyn Fn(InitProgress) + Send + Sync>,
    ) -> Result<MadeFollower, AgentError> {
        let dir = &self.data_dir;
        let lock = files::beside(dir, ".lock");
        net::make_parents(&lock).map_err(FileError::of("create the directory of", &lock))?;
        let lock = files::try_lock(&lock)?.ok_or_else(|| AgentError::Busy { data_dir: dir.clone() })?;
        let lock = Arc::new(lock);
        self.clear()?;
        self.make_slot().await?;
        let options = BaseBackupOptions {
            wal: Wal::Left,
            manifest: Manifest::Wanted,
            max_rate: self.max_rate,
            ..BaseBackupOptions::new(LABEL)
        };
        let mut backup = BaseBackup::begin(&self.endpoint, &options).await.map_err(CopyError::from)?;
        let tablespaces = self.make_tablespaces(&backup.content.tablespaces)?;
        let report = |copied| progress(InitProgress::Copying(copied));
        let copied = copy(&mut backup, &tablespaces, dir, &lock, report).await?;
        let made = MadeFollower { copied, tablespaces };
        self.finish(&made, Arc::clone(&progress)).await?;
        // Only now: whoever has given it holds the WAL for it, however long it took to verify.
        drop(backup);
        Ok(made)
    }

    /// An empty directory, but for the marker and what keeps it from being a primary.
    fn clear(&self) -> Result<(), AgentError> {
        let (dir, owner) = (&self.data_dir, self.run_as.as_ref());
        if !is_ours(dir)? {
            return Err(AgentError::NotEmpty { data_dir: dir.clone() });
        }
        if was_started(dir) {
            return Err(AgentError::StartedUnfinished { data_dir: dir.clone() });
        }
        take(dir, owner)?;
        Ok(files::write_durably(&dir.join(STANDBY_SIGNAL), b"", owner)?)
    }

    /// Their directories, empty but for the marker, and the links to them.
    fn make_tablespaces(&self, tablespaces: &[Tablespace]) -> Result<Vec<PlacedTablespace>, AgentError> {
        let placed = place(tablespaces, &self.tablespaces, &self.data_dir)?;
        for tablespace in &placed {
            if !is_ours(&tablespace.directory)? {
                return Err(AgentError::TablespaceNotEmpty {
                    directory: tablespace.directory.clone(),
                    location: tablespace.location.clone(),
                });
            }
        }
        for tablespace in &placed {
            take(&tablespace.directory, self.run_as.as_ref())?;
            let made = tablespace.make(&self.data_dir);
            made.map_err(FileError::of("make the link to tablespace", &tablespace.directory))?;
        }
        Ok(placed)
    }

    /// It holds all WAL back that the endpoint has, until the standby says what it has.
    async fn make_slot(&self) -> Result<(), AgentError> {
        let Some(slot) = &self.slot else { return Ok(()) };
        let address = self.endpoint.address.clone();
        let mut endpoint = self.endpoint.clone();
        // Not under the standby's name: it is none yet.
        endpoint.parameters = vec![("application_name".to_owned(), APPLICATION_NAME.to_owned())];
        let backend = net::dial(&endpoint.for_replication(), CONNECT_LIMIT).await?;
        let mut conversation = Conversation::new(backend, ANSWER_LIMIT);
        // This spelling is understood by every version.
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL");
        match conversation.execute(&command).await {
            Err(ConversationError::Server(error)) if error.code == SqlState::DUPLICATE_OBJECT => {
                let usable = is_usable(conversation, slot).await;
                usable.map_err(|source| AgentError::Slot { slot: slot.clone(), source: Box::new(source) })
            }
            made => made.map_err(|source| AgentError::Conversation { address, source }),
        }
    }

    async fn finish(
        &self,
        made: &MadeFollower,
        progress: Arc<dyn Fn(InitProgress) + Send + Sync>,
    ) -> Result<(), AgentError> {
        let (this, made) = (self.clone(), made.clone());
        let finished = tokio::task::spawn_blocking(move || this.finish_blocking(&made, &*progress));
        finished.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn finish_blocking(
        &self,
        made: &MadeFollower,
        progress: &(dyn Fn(InitProgress) + Send + Sync),
    ) -> Result<(), AgentError> {
        let (dir, owner) = (&self.data_dir, self.run_as.as_ref());
        verify(dir, MARKER, |done_bytes, total_bytes| {
            progress(InitProgress::Verifying { done_bytes, total_bytes });
        })?;
        progress(InitProgress::Syncing);
        become_standby(dir, &self.primary_conninfo, self.slot.as_ref(), &[], owner)?;
        // Outermost last: as long as there is one, all of it is made anew.
        let directories: Vec<&Path> =
            made.tablespaces.iter().map(|tablespace| &*tablespace.directory).chain([&**dir]).collect();
        for directory in &directories {
            files::give_tree(directory, owner)?;
        }
        files::sync_tree(dir)?;
        for directory in directories {
            files::remove_durably(&directory.join(MARKER))?;
        }
        Ok(())
    }
}

/// Asks as the standby will ask: somebody else may stream with the slot, or it is lost, and the error says which
/// (`ReplicationSlotAcquire`, slot.c). Nothing is confirmed, so that the slot holds what it has held.
async fn is_usable(mut conversation: Conversation, slot: &SlotName) -> Result<(), ConversationError> {
    conversation.expect(b'Z', "ReadyForQuery").await?;
    conversation.send_query("IDENTIFY_SYSTEM").await?;
    let rows = conversation.rows().await?;
    conversation.expect(b'Z', "ReadyForQuery").await?;
    let [_, Some(timeline), Some(end), ..] = rows.first().map_or(&[][..], Vec::as_slice) else {
        return Err(ConversationError::Content { what: "answer to IDENTIFY_SYSTEM" });
    };
    let command = format!("START_REPLICATION SLOT \"{slot}\" PHYSICAL {end} TIMELINE {timeline}");
    conversation.send_query(&command).await?;
    conversation.expect(b'W', "CopyBothResponse").await.map(drop)
}

/// Whether a server runs in it, or has run: what is in the directory is then its data, whatever the marker says. At its
/// start it takes `backup_label` away (`StartupXLOG`, xlog.c); in a copy that is only half there, `pg_control` is the last
/// to come.
fn was_started(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).exists();
    has("postmaster.pid") || !process::all_in(dir).is_empty() || (has(CONTROL_FILE) && !has("backup_label"))
}

/// Leaves the directory private, and empty but for the marker.
fn take(dir: &Path, owner: Option<&RunAs>) -> Result<(), FileError> {
    files::create_private_dir(dir, owner)?;
    files::write_durably(&dir.join(MARKER), MARKER_TEXT, owner)?;
    // Before `backup_label`: interrupted here, a data directory must not look started.
    files::remove_file(&dir.join(CONTROL_FILE))?;
    for entry in fs::read_dir(dir).map_err(FileError::of("list", dir))? {
        let entry = entry.map_err(FileError::of("list", dir))?;
        if entry.file_name() == MARKER {
            continue;
        }
        match entry.file_type().map_err(FileError::of("look at", &entry.path()))?.is_dir() {
            true => files::remove_tree(&entry.path())?,
            false => files::remove_file(&entry.path())?,
        }
    }
    Ok(())
}

/// Not there, empty, or begun by us.
fn is_ours(dir: &Path) -> Result<bool, FileError> {
    let mut entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries.map_err(FileError::of("list", dir))?,
    };
    Ok(entries.next().is_none() || dir.join(MARKER).is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{MARKER, NewFollower};
    use crate::failover::agent::AgentError;
    use crate::net::{Credentials, Target, TlsForServers};
    use crate::pg::protocol::replication::base_backup::Tablespace;
    use crate::topology::Address;

    fn follower(data_dir: &std::path::Path) -> NewFollower {
        let endpoint = Target {
            address: Address { host: "/nowhere".to_owned(), port: 1 },
            user: "rep".into(),
            database: "replication".into(),
            credentials: Credentials::Trust,
            tls: TlsForServers::default(),
            parameters: Vec::new(),
        };
        NewFollower {
            data_dir: data_dir.to_owned(),
            endpoint,
            primary_conninfo: "host=bw".to_owned(),
            slot: None,
            tablespaces: vec!["/srv/fast=/x".parse().expect("a mapping")],
            max_rate: None,
            run_as: None,
        }
    }

    fn names(dir: &std::path::Path) -> Vec<String> {
        let entries =
            fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_somebody_elses_is_not_touched() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("PG_VERSION"), "15").expect("written");
        let refused = follower(dir.path()).clear();
        assert!(matches!(refused, Err(AgentError::NotEmpty { .. })), "{refused:?}");
        assert_eq!(names(dir.path()), ["PG_VERSION"]);
    }

    #[test]
    fn what_was_interrupted_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().join("new/data");
        for _ in 0..2 {
            follower(&data).clear().expect("not there, or ours");
            assert_eq!(names(&data), [MARKER, "standby.signal"]);
            fs::create_dir(data.join("base")).expect("a directory");
            fs::write(data.join("base/1"), "half").expect("written");
        }
    }

    #[test]
    fn what_was_started_meanwhile_is_not_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().join("data");
        let check = |files: &[&str], removed: bool| {
            let _ = fs::remove_dir_all(&data);
            follower(&data).clear().expect("not there");
            fs::create_dir(data.join("global")).expect("a directory");
            for file in files {
                fs::write(data.join(file), "").expect("written");
            }
            let cleared = follower(&data).clear();
            let refused = matches!(cleared, Err(AgentError::StartedUnfinished { .. }));
            assert_eq!((cleared.is_ok(), refused), (removed, !removed), "{files:?}: {cleared:?}");
            assert!(files.iter().all(|file| data.join(file).exists() != removed), "{files:?}");
        };
        check(&["backup_label"], true);
        check(&["backup_label", "global/pg_control"], true);
        check(&["global/pg_control"], false);
        check(&["backup_label", "global/pg_control", "postmaster.pid"], false);
    }

    #[test]
    fn tablespaces_are_taken_as_the_data_directory_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let fast = dir.path().join("fast");
        let mapping = format!("/srv/fast={}", fast.display()).parse().expect("a mapping");
        let data_dir = dir.path().join("data");
        let follower = NewFollower { tablespaces: vec![mapping], ..follower(&data_dir) };
        let theirs = [Tablespace { oid: 16384, location: "/srv/fast".to_owned() }];
        for _ in 0..2 {
            follower.clear().expect("not there, or ours");
            let placed = follower.make_tablespaces(&theirs).expect("not there, or ours");
            assert_eq!(placed[0].directory, fast);
            assert_eq!(names(&fast), [MARKER]);
            assert_eq!(fs::read_link(data_dir.join("pg_tblspc/16384")).expect("a link"), fast);
            fs::create_dir(fast.join("PG_15")).expect("half a copy");
        }
        fs::remove_file(fast.join(MARKER)).expect("removed");
        follower.clear().expect("ours");
        let refused = follower.make_tablespaces(&theirs).expect_err("somebody else's").to_string();
        assert!(refused.contains("--tablespace-mapping"), "{refused}");
        assert_eq!(names(&fast), ["PG_15"]);
    }
}
