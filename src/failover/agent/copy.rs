//! A base backup into a directory: what another server's data directory is, this one becomes.
//!
//! The WAL that makes the copy consistent comes inside the archive, or, where the options leave it out, from the upstream.
//! Tablespaces come to the directories that the caller has made for them.

use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::DirectoryLock;
use crate::net::{
    BackupEvent, BaseBackup, BaseBackupError, Chunk, ChunkReader, PlacedTablespace, Target, UnpackError,
    unpack, write_file,
};
use crate::pg::protocol::replication::base_backup::{BaseBackupOptions, archived_tablespace};
use crate::pg::{Lsn, TimelineId};

/// Chunks between socket and disk. When full, the socket is not read: the server waits for our disk.
const QUEUED_CHUNKS: usize = 16;
/// As pg_basebackup calls it; pg_verifybackup looks for it.
pub(super) const MANIFEST: &str = "backup_manifest";
/// Present in every whole backup; `pg_control` is sent last (`perform_base_backup`, basebackup.c), so that its
/// presence says that nothing was cut off.
const ESSENTIAL: [&str; 2] = ["backup_label", "global/pg_control"];

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Backup(#[from] BaseBackupError),
    /// Their directories are taken: by those of the server that is to be replaced.
    #[error(
        "{source_address} has tablespaces ({locations:?}): a server with tablespaces is made anew by \
         `bellwether follower init` once its directories are empty"
    )]
    Tablespaces { source_address: String, locations: Vec<String> },
    #[error("the base backup is not in the order that {source_address} promised")]
    OutOfOrder { source_address: String },
    #[error("unpack the base backup")]
    Unpack(#[from] UnpackError),
    /// Without it the copy would be taken for a crashed server and recovered from the wrong position.
    #[error("the base backup ended early: it holds no {missing}")]
    Incomplete { missing: &'static str },
    #[error("the thread that unpacks the base backup is gone")]
    Unpacker,
}

/// Of what a directory is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub start: Lsn,
    /// The copy is consistent once WAL up to here is replayed.
    pub end: Lsn,
    pub timeline: TimelineId,
}

/// How much is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    pub received_bytes: u64,
    /// The server's estimate, without WAL.
    pub total_bytes: u64,
}

/// Begins a base backup of a cluster that may be anywhere, so that it can be unpacked beside what is there.
pub(super) async fn begin_without_tablespaces(
    source: &Target,
    options: &BaseBackupOptions,
) -> Result<BaseBackup, CopyError> {
    let backup = BaseBackup::begin(source, options).await?;
    if backup.content.tablespaces.is_empty() {
        return Ok(backup);
    }
    let source_address = backup.source_address().to_owned();
    let locations = backup.content.tablespaces.into_iter().map(|tablespace| tablespace.location);
    Err(CopyError::Tablespaces { source_address, locations: locations.collect() })
}

/// All of `backup` to `into`, an existing directory that holds nothing of a cluster but links to `tablespaces`. Not yet
/// durable when it returns. Given up, it goes on writing what has come, and holds `lock` as long. As long as `backup` is
/// not dropped, a relay that has given it holds the WAL that the copy needs.
pub(super) async fn copy(
    backup: &mut BaseBackup,
    tablespaces: &[PlacedTablespace],
    into: &Path,
    lock: &DirectoryLock,
    mut progress: impl FnMut(CopyProgress),
) -> Result<Copied, CopyError> {
    let (start, timeline) = (backup.start, backup.timeline);
    let mut writing = Writing { into, tablespaces, lock, file: None };
    let end = fill(backup, &mut writing, &mut progress).await;
    let finished = match &end {
        Ok(_) => writing.finish().await,
        Err(_) => writing.abandon().await,
    };
    let end = end?;
    finished?;
    if let Some(missing) = missing(into) {
        return Err(CopyError::Incomplete { missing });
    }
    match end {
        Some(end) => Ok(Copied { start, end, timeline }),
        None => Err(CopyError::OutOfOrder { source_address: backup.source_address().to_owned() }),
    }
}

/// Returns the end that the server named; `None` when something came where nothing was to come.
async fn fill(
    backup: &mut BaseBackup,
    writing: &mut Writing<'_>,
    progress: &mut impl FnMut(CopyProgress),
) -> Result<Option<Lsn>, CopyError> {
    let mut done = CopyProgress { received_bytes: 0, total_bytes: backup.content.total_bytes };
    progress(done);
    while let Some(event) = backup.next().await? {
        match event {
            BackupEvent::Archive { name } => {
                if !writing.archive(&name).await? {
                    return Ok(None);
                }
            }
            BackupEvent::Manifest => writing.manifest().await?,
            BackupEvent::Data(data) => {
                done.received_bytes += data.len() as u64;
                progress(done);
                if !writing.data(data).await? {
                    return Ok(None);
                }
            }
            BackupEvent::Progress(_) => {}
            BackupEvent::End { end, .. } => return Ok(Some(end)),
        }
    }
    Ok(None)
}

/// What comes, on its way to the disk: one thread at a time writes it.
struct Writing<'a> {
    into: &'a Path,
    tablespaces: &'a [PlacedTablespace],
    lock: &'a DirectoryLock,
    file: Option<Filling>,
}

struct Filling {
    chunks: mpsc::Sender<Chunk>,
    thread: JoinHandle<Result<(), UnpackError>>,
}

impl Writing<'_> {
    /// Whether it is an archive of anything that was announced.
    async fn archive(&mut self, name: &str) -> Result<bool, CopyError> {
        let oid = archived_tablespace(name);
        let tablespace = self.tablespaces.iter().find(|tablespace| Some(tablespace.oid) == oid);
        let into = match (oid, tablespace) {
            (None, _) => self.into.to_owned(),
            (Some(_), Some(tablespace)) => tablespace.directory.clone(),
            (Some(_), None) => return Ok(false),
        };
        self.begin(move |archive| unpack(archive, &into)).await?;
        Ok(true)
    }

    async fn manifest(&mut self) -> Result<(), CopyError> {
        let path = self.into.join(MANIFEST);
        self.begin(move |mut content| write_file(&path, &mut content)).await
    }

    async fn begin(
        &mut self,
        work: impl FnOnce(ChunkReader) -> Result<(), UnpackError> + Send + 'static,
    ) -> Result<(), CopyError> {
        self.finish().await?;
        let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
        let lock = self.lock.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let done = work(ChunkReader::new(received));
            drop(lock);
            done
        });
        self.file = Some(Filling { chunks, thread });
        Ok(())
    }

    /// Whether the data belongs to anything.
    async fn data(&mut self, data: Bytes) -> Result<bool, CopyError> {
        let Some(file) = &self.file else { return Ok(false) };
        if file.chunks.send(Chunk::Data(data)).await.is_ok() {
            return Ok(true);
        }
        // It does not listen any more, and has a reason.
        self.finish().await?;
        Ok(false)
    }

    /// What was begun has come to its end.
    async fn finish(&mut self) -> Result<(), CopyError> {
        let Some(Filling { chunks, thread }) = self.file.take() else { return Ok(()) };
        // A reader that has seen the archive's own end mark no longer listens; neither does one that has failed.
        let _ = chunks.send(Chunk::End).await;
        match thread.await {
            Ok(written) => Ok(written?),
            Err(_panicked) => Err(CopyError::Unpacker),
        }
    }

    /// When this returns nobody writes to the directory any more: it may be going to be removed.
    async fn abandon(&mut self) -> Result<(), CopyError> {
        let Some(Filling { chunks, thread }) = self.file.take() else { return Ok(()) };
        drop(chunks);
        // Its error is that it was cut off.
        let _ = thread.await;
        Ok(())
    }
}

fn missing(directory: &Path) -> Option<&'static str> {
    ESSENTIAL.into_iter().find(|name| !directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use bytes::Bytes;

    use super::{Writing, missing};
    use crate::failover::agent::files;

    #[test]
    fn a_cut_copy_is_not_taken_for_a_whole_one() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("global")).expect("made");
        for (name, then_missing) in [("backup_label", Some("global/pg_control")), ("global/pg_control", None)]
        {
            assert_eq!(missing(directory.path()), Some(name));
            std::fs::write(directory.path().join(name), "").expect("written");
            assert_eq!(missing(directory.path()), then_missing);
        }
    }

    /// Else the next copy would find files of this one among its own.
    #[tokio::test]
    async fn who_gives_up_a_copy_leaves_the_directory_locked_until_nobody_writes_to_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pg1.lock");
        let lock = Arc::new(files::try_lock(&path).expect("a file").expect("nobody has it"));
        let (go_on, wait) = mpsc::sync_channel::<()>(1);
        let mut writing = Writing { into: directory.path(), tablespaces: &[], lock: &lock, file: None };
        let work = move |mut content: super::ChunkReader| {
            let _ = wait.recv_timeout(Duration::from_secs(60));
            let _ = content.read_to_end(&mut Vec::new());
            Ok(())
        };
        writing.begin(work).await.expect("begun");
        assert!(writing.data(Bytes::from_static(b"x")).await.expect("taken"));
        drop(writing);
        drop(lock);
        assert!(files::try_lock(&path).expect("a file").is_none(), "it is still written to");
        go_on.send(()).expect("it is waited for");
        while files::try_lock(&path).expect("a file").is_none() {
            tokio::task::yield_now().await;
        }
    }
}
