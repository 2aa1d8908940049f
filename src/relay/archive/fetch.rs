//! `bellwether wal get %f %p`: one file of WAL for a server that recovers (`restore_command`).
//!
//! The relay's store is asked first, by its directory, then the archive. A segment is handed over only if every record
//! in it is whole and good and it is of the server's own cluster and of the timeline that was asked for. What the
//! archive has of a begun segment is handed over under the finished one's name, cut behind its last whole record and
//! filled with zeros, to a server that recovers from the archive alone: it ends there. A standby does not get it, since
//! it streams what follows.
//!
//! Out of the store's directory only what is proven durable is served, since a follower must never hold what the relay
//! may lose: a segment is synced before the next one is begun.
//!
//! PostgreSQL waits for the command before it replays on, so several segments are fetched at once when one is not here;
//! the further ones wait beside the wanted one in `pg_wal/.bellwether/` for the next calls.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::check::{Claim, SegmentDefect, size_of};
use super::layout::wal_object;
use super::storage::{ArchiveUrl, Storage, StorageError};
use crate::pg::wal::{
    History, HistoryError, SegmentFile, WalSegmentSize, history_file_name, parse_history_file_name,
};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// Segments fetched beside the wanted one.
const AHEAD: u64 = 7;
/// The same in bytes.
const AHEAD_BYTES: u64 = 128 << 20;
/// Where they wait, beside the file that PostgreSQL asked for.
const WAITING: &str = ".bellwether";
/// What PostgreSQL has a segment fetched as (`RestoreArchivedFile`): only then there are next ones.
const RECOVERY_FILE: &str = "RECOVERYXLOG";
/// An archive that does not answer is asked again after these pauses.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// Where WAL is looked for, and for whom.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The directory of the relay's store, if it is on this host.
    pub store: Option<PathBuf>,
    pub archive: Option<ArchiveUrl>,
    /// The server's cluster; `None`: not known, any is served.
    pub system: Option<SystemIdentifier>,
    pub server: Server,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// It ends its recovery where the archive ends.
    Recovers,
    /// It asks again and again, and streams.
    StandsBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It is in its place.
    Done,
    /// Neither has it, which is how PostgreSQL learns where the log ends.
    Nowhere,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{object} of the archive is not served")]
    Segment {
        object: String,
        #[source]
        source: SegmentDefect,
    },
    #[error("{object} of the archive is not served")]
    History {
        object: String,
        #[source]
        source: HistoryError,
    },
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FetchError {
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
        let path = path.to_owned();
        move |source| FetchError::File { operation, path, source }
    }

    fn may_pass(&self) -> bool {
        matches!(self, FetchError::Storage(error) if !error.is_corruption())
    }
}

/// Puts the file that PostgreSQL calls `name` to `destination`, whole or not at all.
pub async fn fetch(sources: &Sources, name: &str, destination: &Path) -> Result<Fetched, FetchError> {
    let mut pauses = PAUSES.iter().filter(|_| sources.server == Server::Recovers);
    loop {
        match attempt(sources, name, destination).await {
            Err(error) if error.may_pass() => match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(error),
            },
            done => return done,
        }
    }
}

async fn attempt(sources: &Sources, name: &str, destination: &Path) -> Result<Fetched, FetchError> {
    let place = Place::of(destination);
    let archive = sources.archive.as_ref().map(Storage::open).transpose()?;
    let shelf = Shelf { sources, archive };
    let content = if parse_history_file_name(name).is_some() {
        shelf.history_file(name).await?
    } else if is_segment(name) {
        shelf.segment(name, &place).await?
    } else {
        // Backup labels and whatever else PostgreSQL may ask an archive for.
        None
    };
    let Some(content) = content else { return Ok(Fetched::Nowhere) };
    place.put(&content, destination)?;
    Ok(Fetched::Done)
}

/// `%f` of a finished segment.
fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

/// What there is, in the order in which it is asked.
struct Shelf<'a> {
    sources: &'a Sources,
    archive: Option<Storage>,
}

impl Shelf<'_> {
    async fn history_file(&self, name: &str) -> Result<Option<Bytes>, FetchError> {
        if let Some(directory) = &self.sources.store
            && let Ok(content) = fs::read(directory.join(name))
        {
            return Ok(Some(content.into()));
        }
        let Some(archive) = &self.archive else { return Ok(None) };
        let object = wal_object(name);
        let Some(content) = archive.get(&object).await? else { return Ok(None) };
        if let Some(timeline) = parse_history_file_name(name) {
            History::parse(timeline, &content).map_err(|source| FetchError::History { object, source })?;
        }
        Ok(Some(content))
    }

    async fn segment(&self, name: &str, place: &Place) -> Result<Option<Bytes>, FetchError> {
        let begin = self.begin_of(name).await?;
        let checked = |bytes: &Bytes| self.check(name, bytes, begin);
        if let Some(waiting) = place.take(name)
            && checked(&waiting).is_ok()
        {
            return Ok(Some(waiting));
        }
        if let Some(stored) = self.stored(name)
            && checked(&stored).is_ok()
        {
            return Ok(Some(stored));
        }
        let Some(archive) = &self.archive else { return Ok(None) };
        let object = wal_object(name);
        if let Some(bytes) = archive.get(&object).await? {
            let segment = checked(&bytes).map_err(|source| FetchError::Segment { object, source })?;
            self.fetch_ahead(archive, segment, begin, place).await;
            return Ok(Some(bytes));
        }
        match self.sources.server {
            Server::Recovers => self.begun(archive, name, begin).await,
            Server::StandsBy => Ok(None),
        }
    }

    /// Where the timeline of a segment begins; without its history file every page must be its own.
    async fn begin_of(&self, name: &str) -> Result<Lsn, FetchError> {
        let timeline = TimelineId(u32::from_str_radix(&name[..8], 16).unwrap_or_default());
        let content = match timeline.0 {
            0 | 1 => None,
            _ => self.history_file(&history_file_name(timeline)).await?,
        };
        let history = content.and_then(|content| History::parse(timeline, &content).ok());
        Ok(history.and_then(|history| history.begin()).unwrap_or(Lsn::INVALID))
    }

    fn check(&self, name: &str, bytes: &Bytes, begin: Lsn) -> Result<Claim, SegmentDefect> {
        let claim = self.claim(name, bytes, begin)?;
        claim.check_whole(bytes)?;
        Ok(claim)
    }

    fn claim(&self, name: &str, bytes: &[u8], begin: Lsn) -> Result<Claim, SegmentDefect> {
        let size = size_of(bytes)?;
        let segment = SegmentFile::parse(name, size).ok_or(SegmentDefect::Name { size })?;
        Ok(Claim { segment, size, begin, system: self.sources.system })
    }

    /// Out of the store's directory, if a later segment is there.
    fn stored(&self, name: &str) -> Option<Bytes> {
        let directory = self.sources.store.as_ref()?;
        let entries = fs::read_dir(directory).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut later =
            names.filter(|other| is_segment(other) && other[8..] > name[8..] && other[..8] >= name[..8]);
        later.next()?;
        fs::read(directory.join(name)).ok().map(Bytes::from)
    }

    /// What there is of a segment that is not finished.
    async fn begun(&self, archive: &Storage, name: &str, begin: Lsn) -> Result<Option<Bytes>, FetchError> {
        let object = wal_object(&format!("{name}.partial"));
        let Some(bytes) = archive.get(&object).await? else { return Ok(None) };
        let refused = |source| FetchError::Segment { object: object.clone(), source };
        let claim = self.claim(name, &bytes, begin).map_err(refused)?;
        let verified = match claim.check_begun(&bytes) {
            // Of no use to anybody.
            Err(SegmentDefect::Empty) => return Ok(None),
            checked => checked.map_err(refused)?,
        };
        let end = usize::try_from(verified.bytes_since(claim.size.start(claim.segment.number)));
        let mut bytes = bytes.to_vec();
        bytes[end.expect("within a segment")..].fill(0);
        Ok(Some(bytes.into()))
    }

    /// The next segments, as many as there are without a gap. Whatever is wrong with one of them is told when it is
    /// asked for.
    async fn fetch_ahead(&self, archive: &Storage, claim: Claim, begin: Lsn, place: &Place) {
        let names = if place.is_recovery { ahead(claim.segment, claim.size) } else { Vec::new() };
        place.clear(&names);
        let fetched = join_all(names.iter().map(async |name| {
            let bytes = archive.get(&wal_object(name)).await.ok().flatten()?;
            self.check(name, &bytes, begin).ok().map(|_| bytes)
        }))
        .await;
        for (name, bytes) in names.iter().zip(fetched) {
            match bytes.map(|bytes| place.keep(name, &bytes)) {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// The names behind `segment` that are fetched with it.
fn ahead(segment: SegmentFile, size: WalSegmentSize) -> Vec<String> {
    let count = AHEAD.min(AHEAD_BYTES / size.bytes());
    let mut next = segment;
    let names = (0..count).map(|_| {
        next.number = next.number.next();
        next.name(size)
    });
    names.collect()
}

/// The directory of the file that PostgreSQL waits for.
struct Place {
    waiting: PathBuf,
    is_recovery: bool,
}

impl Place {
    fn of(destination: &Path) -> Place {
        let directory = destination.parent().unwrap_or(Path::new(""));
        let is_recovery = destination.file_name().is_some_and(|name| name == RECOVERY_FILE);
        Place { waiting: directory.join(WAITING), is_recovery }
    }

    /// A segment that was fetched with an earlier one.
    fn take(&self, name: &str) -> Option<Bytes> {
        let path = self.waiting.join(name);
        let bytes = fs::read(&path).ok()?;
        // Whether it is good or not: it is asked for once.
        let _ = fs::remove_file(path);
        Some(bytes.into())
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), FetchError> {
        self.put(bytes, &self.waiting.join(name))
    }

    /// Removes what waits in vain.
    fn clear(&self, wanted: &[String]) {
        let Ok(entries) = fs::read_dir(&self.waiting) else { return };
        for entry in entries.filter_map(Result::ok) {
            if !wanted.iter().any(|name| entry.file_name() == name.as_str()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Not synced: after a crash the server asks again.
    fn put(&self, content: &[u8], destination: &Path) -> Result<(), FetchError> {
        let mut temporary = destination.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        if destination.starts_with(&self.waiting) {
            fs::create_dir_all(&self.waiting).map_err(FetchError::file("make", &self.waiting))?;
        }
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let written = options.open(&temporary).and_then(|mut file| file.write_all(content));
        written.map_err(FetchError::file("write", &temporary))?;
        fs::rename(&temporary, destination).map_err(FetchError::file("rename to", destination))
    }
}
