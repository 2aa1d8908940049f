//! One base backup into the archive.
//!
//! A backup counts from the moment when its sentinel is there, which is put last: behind its parts and behind all WAL
//! that makes it consistent. What fails before that is removed again.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::check::{Claim, size_of, system_of};
use super::layout::{Inventory, WAL, history_object, partial_object, segment_object};
use super::pack::{Incoming, PackError, Packed, Piece, pack};
use super::reserve::{Occasion, Reservation};
use super::retention::{Retained, retain};
use super::sentinel::{BackupName, Facts, Maker};
use super::storage::{Storage, StorageError};
use super::{ArchiveUrl, Progress};
use crate::net::{
    BackupEvent, BaseBackup, BaseBackupError, Chunk, Conversation, ConversationError, DialError, Target, dial,
};
use crate::pg::protocol::replication::base_backup::{
    BaseBackupOptions, Tablespace, Tablespaces, Wal, archived_tablespace,
};
use crate::pg::wal::{History, SegmentFile, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::topology::Address;

/// As pg_basebackup's, it is in `backup_label` and in the server's log.
const LABEL: &str = "bellwether archive";
/// Between the server's socket, the compression and the upload. When full, the server waits.
const QUEUED_CHUNKS: usize = 16;
/// Of 8 MiB each.
const QUEUED_PIECES: usize = 2;
/// The WAL that makes the backup consistent is archived as it comes; if it is not by then, something else is wrong.
const WAL_LIMIT: Duration = Duration::from_secs(600);
/// For a question to a server.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is backed up, and where to.
#[derive(Clone, Debug)]
pub struct BackupJob {
    pub url: ArchiveUrl,
    /// zstd's.
    pub level: i32,
    /// The servers, in the order in which they are asked.
    pub sources: Vec<BackupSource>,
    /// Named in the documents.
    pub instance: String,
    pub occasion: Occasion,
    /// Base backups to be kept. `None`: all.
    pub keep: Option<usize>,
}

/// A server that may be copied.
#[derive(Clone, Debug)]
pub struct BackupSource {
    pub target: Target,
    pub copied_as: CopiedAs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopiedAs {
    /// Not if it turns out to be none: it writes what nobody has elected it to.
    Standby,
    Whatever,
}

#[derive(Debug)]
pub struct BackupDone {
    pub name: String,
    pub source: String,
    pub bytes: u64,
    pub compressed_bytes: u64,
    pub start: Lsn,
    pub finish: Lsn,
    /// What retention has done. Where it failed, this backup is there all the same.
    pub retained: Result<Retained, StorageError>,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Source(#[from] BaseBackupError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error("there is no server to make a base backup of")]
    NoSource,
    #[error("{source_address} is no standby, and not the primary either")]
    NoStandby { source_address: String },
    #[error("the archive has no WAL yet")]
    NoWal,
    #[error("the server is of system {found}, the archive of {expected}")]
    Foreign { found: SystemIdentifier, expected: SystemIdentifier },
    #[error("ask {address} where its data is")]
    DataDirectory {
        address: Address,
        #[source]
        source: ConversationError,
    },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("a base backup from here starts at {start}, where the archive has no WAL")]
    BeforeArchive { start: Lsn },
    #[error("the archive has {name} already, or somebody else is making it")]
    Exists { name: String },
    #[error("{name} took so long that it was taken for abandoned")]
    TakenOver { name: String },
    #[error(
        "the WAL up to {finish} that makes the base backup consistent was not archived within {WAL_LIMIT:?}"
    )]
    WalMissing { finish: Lsn },
    /// The backup itself is there.
    #[error("remove what is too old")]
    Cleaning(#[source] StorageError),
    #[error("the thread that packs the base backup has ended")]
    Thread,
}

/// Makes one base backup, from the first source that can give it, and removes what is too old.
pub async fn backup(job: &BackupJob, progress: &dyn Progress) -> Result<BackupDone, BackupError> {
    let storage = Storage::make(&job.url, job.level)?;
    let wal = ArchivedWal::look(&storage).await?;
    let mut failed = BackupError::NoSource;
    for source in &job.sources {
        let taking = Taking { storage: &storage, job, wal: &wal, source };
        match taking.take(progress).await {
            Ok(facts) => {
                let retained = retain(&storage, job.keep, wal.size, SystemTime::now().into()).await;
                return Ok(BackupDone {
                    name: facts.name.as_str().to_owned(),
                    source: source.target.address.to_string(),
                    bytes: facts.uncompressed_bytes,
                    compressed_bytes: facts.compressed_bytes,
                    start: facts.start,
                    finish: facts.finish,
                    retained,
                });
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What a backup before could not remove.
pub(super) async fn clean(storage: &Storage, keep: Option<usize>) -> Result<(), BackupError> {
    let wal = ArchivedWal::look(storage).await?;
    let removed = retain(storage, keep, wal.size, SystemTime::now().into()).await;
    removed.map(drop).map_err(BackupError::Cleaning)
}

/// The archive's WAL, of which the backup is to be a part.
struct ArchivedWal {
    inventory: Inventory,
    size: WalSegmentSize,
    system: SystemIdentifier,
}

impl ArchivedWal {
    async fn look(storage: &Storage) -> Result<ArchivedWal, BackupError> {
        let found = storage.list(WAL).await?;
        // Names alone do not tell the segments' size; any of them tells it, the system, and so what the names say.
        let newest =
            found.iter().filter(|file| !file.name.contains(".history")).max_by_key(|file| file.modified);
        let newest = newest.ok_or(BackupError::NoWal)?;
        let bytes = storage.get(&newest.name).await?.unwrap_or_default();
        let size = size_of(&bytes).map_err(|_| BackupError::NoWal)?;
        let system = system_of(&bytes).ok_or(BackupError::NoWal)?;
        let names = found.iter().filter_map(|file| file.name.rsplit('/').next());
        Ok(ArchivedWal { inventory: Inventory::read(names, size), size, system })
    }

    /// Whether WAL from `start` on is, or will be, in the archive without a hole.
    fn goes_on_from(&self, start: Lsn, history: &History) -> bool {
        self.inventory.goes_on_from(start, history, self.size)
    }
}

struct Taking<'a> {
    storage: &'a Storage,
    job: &'a BackupJob,
    wal: &'a ArchivedWal,
    source: &'a BackupSource,
}

impl Taking<'_> {
    async fn take(&self, progress: &dyn Progress) -> Result<Facts, BackupError> {
        let started_at = SystemTime::now().into();
        let options = BaseBackupOptions {
            wal: Wal::Left,
            tablespaces: Tablespaces::Map,
            ..BaseBackupOptions::new(LABEL)
        };
        let BackupSource { target, copied_as } = self.source;
        let data_dir = data_directory(target).await;
        let mut copy = BaseBackup::begin(target, &options).await?;
        if *copied_as == CopiedAs::Standby && !copy.from_standby {
            return Err(BackupError::NoStandby { source_address: target.address.to_string() });
        }
        let outside = |tablespace: &&Tablespace| tablespace.location.starts_with('/');
        let tablespaces: Vec<Tablespace> = copy.content.tablespaces.iter().filter(outside).cloned().collect();
        // Without tablespaces it is nothing but a word for people.
        let data_dir = if tablespaces.is_empty() { data_dir.unwrap_or_default() } else { data_dir? };
        let (start, timeline) = (copy.start, copy.timeline);
        let history = self.history(timeline).await?;
        if !self.wal.goes_on_from(start, &history) {
            return Err(BackupError::BeforeArchive { start });
        }
        let name = BackupName::new(timeline, start, self.wal.size);
        let BackupJob { instance, occasion, .. } = self.job;
        let reserved = Reservation::take(self.storage, &name, instance, *occasion, started_at).await?;
        let exists = || BackupError::Exists { name: name.as_str().to_owned() };
        let reservation = reserved.ok_or_else(exists)?;
        let facts = Facts {
            timeline,
            start,
            data_dir,
            tablespaces,
            finish: start,
            started_at,
            finished_at: started_at,
            version: copy.major.0 * 10_000,
            system: Some(self.wal.system),
            uncompressed_bytes: 0,
            compressed_bytes: 0,
            parts: None,
            maker: Maker::Us { segment_size: self.wal.size },
            name: name.clone(),
        };
        let made = self.copy(&mut copy, facts, &history, &reservation, progress).await;
        // What is left where this does not work, retention removes.
        let _ = match &made {
            Ok(_) => reservation.release().await,
            Err(_) => reservation.give_up().await,
        };
        made
    }

    async fn history(&self, timeline: TimelineId) -> Result<History, BackupError> {
        let content = match timeline.0 {
            0 | 1 => None,
            _ => self.storage.get(&history_object(timeline)).await?,
        };
        let history = content.and_then(|content| History::parse(timeline, &content).ok());
        Ok(history.unwrap_or_else(|| History::without_ancestors(timeline)))
    }

    async fn copy(
        &self,
        copy: &mut BaseBackup,
        facts: Facts,
        history: &History,
        reservation: &Reservation<'_>,
        progress: &dyn Progress,
    ) -> Result<Facts, BackupError> {
        progress.total(copy.content.total_bytes);
        let (feed, archives) = mpsc::channel(1);
        let (pieces, made) = mpsc::channel(QUEUED_PIECES);
        let level = self.job.level;
        let packing = tokio::task::spawn_blocking(move || pack(archives, pieces, level, None));
        let received = receive(copy, feed, progress);
        let uploaded = upload(self.storage, &facts.name, made);
        let (received, uploaded) = tokio::join!(received, uploaded);
        let packed = packing.await.map_err(|_| BackupError::Thread)?;
        // What the network says is the cause of what the packing says.
        let (Some(finish), Uploaded { bytes: compressed, parts }) = (received?, uploaded?) else {
            return Err(packed.err().map_or(BackupError::Thread, BackupError::Pack));
        };
        let Packed { bytes, control_file, control_part } = packed?;
        self.check_system(&control_file)?;
        self.storage.put_document(&facts.name.pg_control(), control_part).await?;
        self.await_wal(facts.start, finish, history).await?;
        let facts = Facts {
            finish,
            finished_at: SystemTime::now().into(),
            uncompressed_bytes: bytes,
            compressed_bytes: compressed,
            parts: Some(parts),
            ..facts
        };
        let documents = facts.documents(&self.job.instance);
        self.storage.put_document(&facts.name.metadata(), documents.metadata).await?;
        self.storage.put_document(&facts.name.files_metadata(), documents.files_metadata).await?;
        if !reservation.is_held().await? {
            return Err(BackupError::TakenOver { name: facts.name.as_str().to_owned() });
        }
        self.storage.create_document(&facts.name.sentinel(), documents.sentinel).await?;
        Ok(facts)
    }

    /// The first field of `ControlFileData` (pg_control.h).
    fn check_system(&self, control_file: &[u8]) -> Result<(), BackupError> {
        let found = control_file.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
        let (found, expected) = (SystemIdentifier(found), self.wal.system);
        if found == expected { Ok(()) } else { Err(BackupError::Foreign { found, expected }) }
    }

    async fn await_wal(&self, start: Lsn, finish: Lsn, history: &History) -> Result<(), BackupError> {
        let deadline = Instant::now() + WAL_LIMIT;
        let size = self.wal.size;
        let last = size.segment(Lsn(finish.0 - 1));
        let mut number = size.segment(start);
        while number <= last {
            let mut found = false;
            for timeline in history.holders(number, size) {
                let segment = SegmentFile { timeline, number };
                found |= self.storage.exists(&segment_object(segment, size)).await?
                    || (number == last && self.reaches(segment, finish).await?);
            }
            if found {
                number = number.next();
            } else if Instant::now() > deadline {
                return Err(BackupError::WalMissing { finish });
            } else {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// Whether what the archive has of a begun segment goes up to `finish`.
    async fn reaches(&self, segment: SegmentFile, finish: Lsn) -> Result<bool, BackupError> {
        let size = self.wal.size;
        let Some(bytes) = self.storage.get(&partial_object(segment, size)).await? else { return Ok(false) };
        let claim = Claim { segment, size, begin: Lsn::INVALID, system: Some(self.wal.system) };
        Ok(claim.check_begun(&bytes).is_ok_and(|verified| verified >= finish))
    }
}

/// From the server to the packing, up to the backup's end; `None` when the packing has ended before.
async fn receive(
    copy: &mut BaseBackup,
    feed: mpsc::Sender<Incoming>,
    progress: &dyn Progress,
) -> Result<Option<Lsn>, BackupError> {
    let mut received = 0;
    let mut archive: Option<mpsc::Sender<Chunk>> = None;
    while let Some(event) = copy.next().await? {
        let packed = match event {
            BackupEvent::Archive { name } => {
                let (next, chunks) = mpsc::channel(QUEUED_CHUNKS);
                end_archive(archive.replace(next)).await
                    && feed.send(Incoming { tablespace: archived_tablespace(&name), chunks }).await.is_ok()
            }
            BackupEvent::Data(bytes) => {
                received += bytes.len() as u64;
                progress.done(received);
                match &archive {
                    Some(archive) => archive.send(Chunk::Data(bytes)).await.is_ok(),
                    None => false,
                }
            }
            BackupEvent::End { end, timeline: _ } => {
                return Ok(end_archive(archive).await.then_some(end));
            }
            BackupEvent::Manifest | BackupEvent::Progress(_) => true,
        };
        if !packed {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Whether there was none, or somebody has taken the end of it.
async fn end_archive(archive: Option<mpsc::Sender<Chunk>>) -> bool {
    match archive {
        Some(archive) => archive.send(Chunk::End).await.is_ok(),
        None => true,
    }
}

/// Of the server; WAL-G puts the links to tablespaces there.
async fn data_directory(source: &Target) -> Result<String, BackupError> {
    let backend = dial(&source.clone().for_replication(), ASK_LIMIT).await?;
    let mut conversation = Conversation::new(backend, ASK_LIMIT);
    let answer = async {
        conversation.send_query("SHOW data_directory").await?;
        conversation.rows().await
    };
    let rows = answer
        .await
        .map_err(|error| BackupError::DataDirectory { address: source.address.clone(), source: error })?;
    Ok(rows.into_iter().flatten().flatten().next().unwrap_or_default())
}

#[derive(Clone, Copy, Debug, Default)]
struct Uploaded {
    bytes: u64,
    parts: u32,
}

/// Part after part.
async fn upload(
    storage: &Storage,
    name: &BackupName,
    mut made: mpsc::Receiver<Piece>,
) -> Result<Uploaded, BackupError> {
    let mut uploaded = Uploaded::default();
    let mut part = None;
    while let Some(piece) = made.recv().await {
        let mut current = match part.take() {
            Some(current) => current,
            None => storage.upload(&name.part(uploaded.parts + 1)).await?,
        };
        match piece {
            Piece::Data(bytes) => {
                uploaded.bytes += bytes.len() as u64;
                if let Err(error) = current.put(bytes).await {
                    current.abandon().await;
                    return Err(error.into());
                }
                part = Some(current);
            }
            Piece::EndOfPart => {
                current.finish().await?;
                uploaded.parts += 1;
            }
        }
    }
    if let Some(torn) = part {
        torn.abandon().await;
    }
    Ok(uploaded)
}
