//! `bellwether restore`: a data directory that becomes the cluster as of a chosen moment, from the archive alone.
//!
//! The newest base backup before the moment is unpacked, and PostgreSQL is told in `postgresql.auto.conf` where to get
//! WAL from and where to stop: whoever starts the server gets that moment, on a timeline of its own. Whether the moment
//! can be reached is looked at before anything is written.

mod plan;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;

use self::plan::{Plan, Target};
use super::check::SegmentDefect;
use super::choose::{Moment, NoBackup};
use super::sentinel::Facts;
use super::storage::{Found, Storage, StorageError};
use super::{ArchiveUrl, Progress};
use crate::net::{
    self, Chunk, ChunkReader, PlacedTablespace, PlacingError, SyncError, TablespaceMapping, UnpackError,
    is_vacant, place, unpack,
};
use crate::pg::settings::{self, Change, LineBreak, RECOVERY_TARGETS};
use crate::pg::wal::HistoryError;
use crate::pg::{Lsn, TimelineId};

const TABLESPACE_MAP: &str = "tablespace_map";
/// Bytes of a part fetched at a time.
const RANGE: u64 = 8 << 20;
/// Such ranges between the network and the disk.
const QUEUED: usize = 2;

#[derive(Clone, Debug)]
pub struct RestoreJob {
    pub url: ArchiveUrl,
    pub moment: Moment,
    /// `None`: the newest one of the archive.
    pub timeline: Option<TimelineId>,
    /// Missing or empty.
    pub data_dir: PathBuf,
    pub tablespaces: Vec<TablespaceMapping>,
    /// For the server; it gets what is behind the base backup.
    pub restore_command: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub backup: String,
    pub finished_at: DateTime<Utc>,
    pub timeline: TimelineId,
    /// Of what was unpacked.
    pub bytes: u64,
    pub tablespaces: Vec<PlacedTablespace>,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{} is not empty", directory.display())]
    NotEmpty { directory: PathBuf },
    #[error(
        "{} is not empty, and tablespace {location} belongs there; --tablespace-mapping {location}=NEW puts it elsewhere",
        directory.display()
    )]
    TablespaceNotEmpty { directory: PathBuf, location: String },
    #[error(transparent)]
    Placing(#[from] PlacingError),
    #[error("{backup} has tablespaces, of which its sentinel does not tell where they were")]
    UnknownTablespaces { backup: String },
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no base backup will do{passed_over}")]
    Backup {
        /// Those that are not understood, and why.
        passed_over: String,
        #[source]
        source: NoBackup,
    },
    /// Somebody has removed some, or put others over them.
    #[error("{backup} of the archive is not whole: it has {found} instead of {expected}")]
    Parts { backup: String, found: PartsSize, expected: PartsSize },
    #[error("{backup} of the archive is not whole: it brings no backup_label")]
    NoLabel { backup: String },
    #[error("{backup} was removed from the archive meanwhile")]
    Removed { backup: String },
    #[error("the archive has no history of timeline {timeline}")]
    NoHistory { timeline: TimelineId },
    #[error("history of timeline {timeline} in the archive")]
    History {
        timeline: TimelineId,
        #[source]
        source: HistoryError,
    },
    #[error("{object} of the archive")]
    Segment {
        object: String,
        #[source]
        source: SegmentDefect,
    },
    /// Also where there is more behind a hole.
    #[error(
        "the archive's WAL goes on without a hole from base backup {backup} to {end} only, not to {wanted}"
    )]
    BeyondEnd { backup: String, wanted: Lsn, end: Lsn },
    #[error("the archive's newest WAL is of {newest}, before {wanted}; --to-latest restores all of it")]
    BeyondTime { wanted: DateTime<Utc>, newest: DateTime<Utc> },
    #[error("{backup} is not whole: its pg_control is missing")]
    NoControlFile { backup: String },
    #[error("unpack {object}")]
    Unpack {
        object: String,
        #[source]
        source: UnpackError,
    },
    #[error("the settings in {}", path.display())]
    Settings {
        path: PathBuf,
        #[source]
        source: LineBreak,
    },
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error("the thread that unpacks has ended")]
    Thread,
}

/// Of a backup's parts but `pg_control`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartsSize {
    pub parts: u64,
    pub bytes: u64,
}

impl fmt::Display for PartsSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} parts", self.bytes, self.parts)
    }
}

impl RestoreError {
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
        let path = path.to_owned();
        move |source| RestoreError::File { operation, path, source }
    }
}

/// Leaves a data directory, durable, that recovers up to the moment when its server is started.
pub async fn restore(job: &RestoreJob, progress: &dyn Progress) -> Result<Restored, RestoreError> {
    let directory = &job.data_dir;
    if !is_vacant(directory).map_err(RestoreError::file("look into", directory))? {
        return Err(RestoreError::NotEmpty { directory: directory.clone() });
    }
    let storage = Storage::open(&job.url)?;
    let plan = Plan::make(&storage, job).await?;
    let tablespaces = place(&plan.backup.tablespaces, &job.tablespaces, directory)?;
    are_vacant(&tablespaces)?;
    let backup = || plan.backup.name.as_str().to_owned();
    let (parts, control) = parts(&storage, &plan.backup).await?;
    check_parts(&plan.backup, &parts)?;
    if !storage.exists(&plan.backup.name.sentinel()).await? {
        return Err(RestoreError::Removed { backup: backup() });
    }
    net::make_private_directory(directory).map_err(RestoreError::file("make", directory))?;
    for tablespace in &tablespaces {
        tablespace.make(directory).map_err(RestoreError::file("make", &tablespace.directory))?;
    }
    progress.total(parts.iter().chain([&control]).map(|part| part.size).sum());
    let mut fetched = 0;
    for part in &parts {
        unpack_part(&storage, part, directory, &mut fetched, progress).await?;
    }
    // Without it the copy would be taken for a crashed server, and recovered from the wrong position.
    if !directory.join("backup_label").is_file() {
        return Err(RestoreError::NoLabel { backup: backup() });
    }
    keep_links(directory, &plan.backup)?;
    make_it_recover(directory, &plan, &job.restore_command)?;
    make_durable(directory).await?;
    // As long as it is missing no server starts: whatever cuts this off leaves nothing that looks whole.
    unpack_part(&storage, &control, directory, &mut fetched, progress).await?;
    make_durable(directory).await?;
    Ok(Restored {
        backup: plan.backup.name.as_str().to_owned(),
        finished_at: plan.backup.finished_at,
        timeline: plan.timeline,
        bytes: plan.backup.uncompressed_bytes,
        tablespaces,
    })
}

fn are_vacant(tablespaces: &[PlacedTablespace]) -> Result<(), RestoreError> {
    for PlacedTablespace { oid: _, location, directory } in tablespaces {
        if !is_vacant(directory).map_err(RestoreError::file("look into", directory))? {
            let (directory, location) = (directory.clone(), location.clone());
            return Err(RestoreError::TablespaceNotEmpty { directory, location });
        }
    }
    Ok(())
}

/// A server that finds this file makes links to where the tablespaces were (`read_tablespace_map`, xlogrecovery.c),
/// in the place of ours.
fn keep_links(directory: &Path, backup: &Facts) -> Result<(), RestoreError> {
    let map = directory.join(TABLESPACE_MAP);
    let mapped = match fs::metadata(&map) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(RestoreError::file("look at", &map))?.len() > 0,
    };
    if mapped && backup.tablespaces.is_empty() {
        return Err(RestoreError::UnknownTablespaces { backup: backup.name.as_str().to_owned() });
    }
    fs::remove_file(&map).map_err(RestoreError::file("remove", &map))
}

/// In their order, and the one with `pg_control`.
async fn parts(storage: &Storage, backup: &Facts) -> Result<(Vec<Found>, Found), RestoreError> {
    let mut parts = storage.list(&backup.name.parts()).await?;
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let control = parts.iter().position(|part| part.name.contains("pg_control.tar"));
    let control = control.map(|at| parts.remove(at));
    let missing = || RestoreError::NoControlFile { backup: backup.name.as_str().to_owned() };
    Ok((parts, control.ok_or_else(missing)?))
}

async fn make_durable(directory: &Path) -> Result<(), RestoreError> {
    let directory = directory.to_owned();
    let synced = tokio::task::spawn_blocking(move || net::sync_data_directory(&directory)).await;
    Ok(synced.map_err(|_| RestoreError::Thread)??)
}

/// Of our own it is known what they were.
fn check_parts(backup: &Facts, parts: &[Found]) -> Result<(), RestoreError> {
    let Some(expected) = backup.parts else { return Ok(()) };
    let expected = PartsSize { parts: expected.into(), bytes: backup.compressed_bytes };
    let found = PartsSize { parts: parts.len() as u64, bytes: parts.iter().map(|part| part.size).sum() };
    if found == expected {
        Ok(())
    } else {
        Err(RestoreError::Parts { backup: backup.name.as_str().to_owned(), found, expected })
    }
}

async fn unpack_part(
    storage: &Storage,
    part: &Found,
    directory: &Path,
    fetched: &mut u64,
    progress: &dyn Progress,
) -> Result<(), RestoreError> {
    let (feed, chunks) = mpsc::channel(QUEUED);
    let into = directory.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack_compressed(ChunkReader::new(chunks), &into));
    let mut at = 0;
    while at < part.size {
        let to = (at + RANGE).min(part.size);
        let bytes = storage.range(&part.name, at..to).await?;
        if feed.send(Chunk::Data(bytes)).await.is_err() {
            // It says why.
            break;
        }
        *fetched += to - at;
        progress.done(*fetched);
        at = to;
    }
    let _ = feed.send(Chunk::End).await;
    let unpacked = unpacking.await.map_err(|_| RestoreError::Thread)?;
    unpacked.map_err(|source| RestoreError::Unpack { object: part.name.clone(), source })
}

fn unpack_compressed(part: ChunkReader, into: &Path) -> Result<(), UnpackError> {
    unpack(zstd::Decoder::new(part).map_err(UnpackError::Archive)?, into)
}

fn make_it_recover(directory: &Path, plan: &Plan, restore_command: &str) -> Result<(), RestoreError> {
    // Of a backup of a standby: this server is to recover and to be a server of its own.
    let standby = directory.join("standby.signal");
    match fs::remove_file(&standby) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RestoreError::file("remove", &standby)(error));
        }
        _ => {}
    }
    let path = directory.join("postgresql.auto.conf");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(RestoreError::file("read", &path))?,
    };
    let edited = recovering(&text, plan.timeline, plan.target, restore_command)
        .map_err(|source| RestoreError::Settings { path: path.clone(), source })?;
    fs::write(&path, edited).map_err(RestoreError::file("write", &path))?;
    let signal = directory.join("recovery.signal");
    fs::File::create(&signal).map(drop).map_err(RestoreError::file("write", &signal))
}

/// The settings of a server that recovers up to `target`. What tied the old server to others would hold the new one up.
/// Every other target is unset, wherever it is set: the cluster may have been restored before.
fn recovering(
    text: &str,
    timeline: TimelineId,
    target: Target,
    restore_command: &str,
) -> Result<String, LineBreak> {
    let timeline = timeline.to_string();
    let wanted = match target {
        Target::Time(time) => {
            Some(("recovery_target_time", time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()))
        }
        Target::Before(lsn) | Target::Behind(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        Target::End => None,
    };
    let inclusive = matches!(target, Target::Before(_)).then_some("off");
    let mut changes: Vec<Change<'_>> = vec![
        ("restore_command", Some(restore_command)),
        ("recovery_target_timeline", Some(&timeline)),
        ("recovery_target_action", Some("promote")),
        ("recovery_target_inclusive", inclusive),
        ("primary_conninfo", Some("")),
        ("primary_slot_name", Some("")),
        ("synchronous_standby_names", Some("")),
        ("archive_mode", Some("off")),
    ];
    // The unset ones come first: each says in its turn whether there is a target (`assign_recovery_target_time`).
    let wanted = wanted.as_ref().map(|(name, value)| (*name, value.as_str()));
    let others = RECOVERY_TARGETS.into_iter().filter(|name| wanted.is_none_or(|(wanted, _)| *name != wanted));
    changes.extend(others.map(|name| (name, Some(""))));
    changes.extend(wanted.map(|(name, value)| (name, Some(value))));
    settings::edit(text, &changes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::{Target, recovering, unpack_compressed};
    use crate::net::{Chunk, ChunkReader, UnpackError};
    use crate::pg::{Lsn, TimelineId};

    const UNSET: &str = "recovery_target = ''\nrecovery_target_name = ''\nrecovery_target_xid = ''\n";

    /// Two targets keep a server from starting, a leftover one stops it early.
    #[test]
    fn a_restored_cluster_can_be_restored_again() {
        let target = |text: &str, target| {
            let text = recovering(text, TimelineId(3), target, r"get '%f' a\b").expect("no line breaks");
            let (own, settings) = text.split_once("restore_command = ").expect("it recovers");
            assert_eq!(own, "work_mem = 4MB\n");
            let settings = settings.strip_prefix("'get ''%f'' a\\\\b'\nrecovery_target_timeline = '3'\n");
            let (_, targets) =
                settings.expect("escaped").split_once("archive_mode = 'off'\n").expect("it is off");
            let inclusive = text.contains("recovery_target_inclusive = 'off'\n");
            (targets.to_owned(), inclusive, text)
        };
        let time = "2026-11-21T10:30:00.25Z".parse().expect("a time");
        let (targets, inclusive, first) = target("work_mem = 4MB\n", Target::Time(time));
        let lsn_unset =
            UNSET.replacen("recovery_target_name", "recovery_target_lsn = ''\nrecovery_target_name", 1);
        assert_eq!(targets, format!("{lsn_unset}recovery_target_time = '2026-11-21 10:30:00.250000+00'\n"));
        assert!(!inclusive);
        let (targets, inclusive, second) = target(&first, Target::Before(Lsn(0x500_0028)));
        let time_unset =
            UNSET.replacen("recovery_target_xid", "recovery_target_time = ''\nrecovery_target_xid", 1);
        assert_eq!(targets, format!("{time_unset}recovery_target_lsn = '0/5000028'\n"));
        assert!(inclusive);
        let (targets, inclusive, last) = target(&second, Target::End);
        assert!(!targets.contains("0/5000028") && !inclusive, "{last}");
        assert_eq!(last.matches("recovery_target").count(), 7, "{last}");
    }

    fn unpacked(compressed: &[u8], into: &Path) -> Result<(), UnpackError> {
        let (feed, chunks) = mpsc::channel(1000);
        for chunk in compressed.chunks(100) {
            feed.blocking_send(Chunk::Data(Bytes::copy_from_slice(chunk))).expect("room");
        }
        feed.blocking_send(Chunk::End).expect("room");
        unpack_compressed(ChunkReader::new(chunks), into)
    }

    fn part(name: &str, kind: tar::EntryType) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(3);
        header.set_mode(0o644);
        header.set_entry_type(kind);
        header.set_cksum();
        builder.append(&header, &b"abc"[..]).expect("appends");
        zstd::encode_all(&builder.into_inner().expect("a tar file")[..], 1).expect("compresses")
    }

    #[test]
    fn files_come_to_their_place_and_nowhere_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let regular = tar::EntryType::Regular;
        unpacked(&part("base/1/2", regular), directory.path()).expect("unpacks");
        assert_eq!(std::fs::read(directory.path().join("base/1/2")).expect("is there"), b"abc");
        for name in ["../x", "/tmp/x", "base/../../x"] {
            let refused = unpacked(&part(name, regular), directory.path());
            assert!(matches!(refused, Err(UnpackError::Unsafe { .. })), "{name}: {refused:?}");
        }
        let link = unpacked(&part("x", tar::EntryType::Symlink), directory.path());
        assert!(matches!(link, Err(UnpackError::Kind { .. })), "{link:?}");
        let cut = part("y", regular);
        assert!(unpacked(&cut[..cut.len() - 3], directory.path()).is_err());
    }
}
