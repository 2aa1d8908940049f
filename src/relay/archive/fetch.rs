//! `bellwether wal get %f %p`: one file of WAL for a server that recovers (`restore_command`).
//!
//! The relay's store is asked first, by its directory, then the archive. A segment is handed over only if every record
//! in it is whole and good and it is of the server's own cluster and of the timeline that was asked for. What the
//! archive has of a begun segment is handed over under the finished one's name, cut behind its last whole record and
//! filled with zeros, to a server that recovers from the archive alone: it ends there. A standby does not get it, since
//! it streams what follows.
//!
//! Out of the store's directory only what is proven durable is served, since a follower must never hold what the relay
//! may lose: a segment is synced before the next one is begun. Of a relay among several the directory does not tell what
//! enough of them have: of such a one only what it has archived is served. What the relay had received behind a fork is not served
//! under the ancestor's name.
//!
//! "No such file" is said only when it is known, since it ends a recovery: whatever else keeps the store from being
//! read, or damages a file there, is an error unless the archive has the file. What the archive has in its place is
//! served, and it is said.
//!
//! PostgreSQL waits for the command before it replays on, so several segments are fetched at once when one is not here;
//! the further ones wait beside the wanted one in `pg_wal/.bellwether/` for the next calls. Where nothing follows, that
//! directory is removed: a promoted server never looks there again.

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
use crate::relay::store::Control;

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

#[derive(Debug)]
pub enum Fetched {
    /// It is in its place.
    Done,
    /// It is in its place, out of the archive, since what the store has of it is not served.
    Instead { of: Box<FetchError> },
    /// Neither has it, which is how PostgreSQL learns where the log ends.
    Nowhere,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{place} is not served")]
    Segment {
        /// A file, or an object of the archive.
        place: String,
        #[source]
        source: SegmentDefect,
    },
    #[error("{place} is not served")]
    History {
        place: String,
        #[source]
        source: HistoryError,
    },
    #[error("of several relays only the archive is served, and there is none: {} is one's", directory.display())]
    OneOfSeveral { directory: PathBuf },
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

async fn attempt(sources: &Sources, name: &str, path: &Path) -> Result<Fetched, FetchError> {
    let destination = Destination::of(path);
    let archive = sources.archive.as_ref().map(Storage::open).transpose()?;
    let store = store(sources)?;
    let shelf = Shelf { sources, store, archive };
    let taken = if let Some(timeline) = parse_history_file_name(name) {
        shelf.history_file(timeline).await?
    } else if is_segment(name) {
        shelf.segment(name, &destination).await?
    } else {
        // Backup labels and whatever else PostgreSQL may ask an archive for.
        None
    };
    let Some(Taken { content, instead_of }) = taken else {
        // PostgreSQL asks for a history file, too, only where its own log ends.
        destination.clear(&[]);
        return Ok(Fetched::Nowhere);
    };
    destination.put(&content)?;
    Ok(instead_of.map_or(Fetched::Done, |of| Fetched::Instead { of: Box::new(of) }))
}

/// The store's directory, if it is served.
fn store(sources: &Sources) -> Result<Option<&Path>, FetchError> {
    let Some(directory) = sources.store.as_deref() else { return Ok(None) };
    let content = read(&directory.join(Control::FILE_NAME)).ok().flatten();
    // One that cannot be read says nothing: what is in the segments is checked.
    let control = content.and_then(|content| Control::decode_bytes(&content).ok());
    if !control.is_some_and(|control| control.standing.is_of_several()) {
        return Ok(Some(directory));
    }
    match (&sources.archive, sources.server) {
        (Some(_), _) | (None, Server::StandsBy) => Ok(None),
        (None, Server::Recovers) => Err(FetchError::OneOfSeveral { directory: directory.to_owned() }),
    }
}

/// `%f` of a finished segment.
fn is_segment(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

/// What an archive has of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Finished(Bytes),
    Begun(Bytes),
    Nothing,
}

/// Where there is neither, the finished one is asked for again: it may have taken the begun one's place between the two
/// questions, and it would look as if the log ended before it.
pub(super) async fn held(
    name: &str,
    get: impl AsyncFn(&str) -> Result<Option<Bytes>, StorageError>,
) -> Result<Held, StorageError> {
    let (finished, begun) = (wal_object(name), wal_object(&format!("{name}.partial")));
    if let Some(bytes) = get(&finished).await? {
        return Ok(Held::Finished(bytes));
    }
    if let Some(bytes) = get(&begun).await? {
        return Ok(Held::Begun(bytes));
    }
    Ok(get(&finished).await?.map_or(Held::Nothing, Held::Finished))
}

/// A file for the server.
struct Taken {
    content: Bytes,
    /// What the store has of it, and why that is not served.
    instead_of: Option<FetchError>,
}

impl Taken {
    fn at_once(content: Bytes) -> Taken {
        Taken { content, instead_of: None }
    }
}

/// What there is, in the order in which it is asked.
struct Shelf<'a> {
    sources: &'a Sources,
    store: Option<&'a Path>,
    archive: Option<Storage>,
}

impl Shelf<'_> {
    async fn history_file(&self, timeline: TimelineId) -> Result<Option<Taken>, FetchError> {
        let name = history_file_name(timeline);
        let stored = match self.store {
            Some(directory) => stored_history(&directory.join(&name), timeline),
            None => Ok(None),
        };
        let instead_of = match stored {
            Ok(Some(content)) => return Ok(Some(Taken::at_once(content))),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let archived = match &self.archive {
            Some(archive) => archive.get(&wal_object(&name)).await?,
            None => None,
        };
        let Some(content) = archived else { return instead_of.map_or(Ok(None), Err) };
        check_history(timeline, &content, &of_the_archive(&name))?;
        Ok(Some(Taken { content, instead_of }))
    }

    async fn segment(&self, name: &str, destination: &Destination) -> Result<Option<Taken>, FetchError> {
        if let Some(waiting) = destination.take(name)
            && self.check(name, &waiting, name).await.is_ok()
        {
            return Ok(Some(Taken::at_once(waiting)));
        }
        let stored = match self.store {
            Some(directory) => self.stored(directory, name).await,
            None => Ok(None),
        };
        let instead_of = match stored {
            Ok(Some(bytes)) => return Ok(Some(Taken::at_once(bytes))),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        match (self.archived(name).await?, instead_of) {
            (Held::Finished(content), instead_of) => {
                let segment = self.check(name, &content, &of_the_archive(name)).await?;
                self.fetch_ahead(segment, destination).await;
                Ok(Some(Taken { content, instead_of }))
            }
            // The log does not end where the store could not be read.
            (Held::Begun(_) | Held::Nothing, Some(error)) => Err(error),
            (Held::Begun(bytes), None) => {
                destination.clear(&[]);
                Ok(self.begun(name, &bytes)?.map(Taken::at_once))
            }
            (Held::Nothing, None) => Ok(None),
        }
    }

    async fn archived(&self, name: &str) -> Result<Held, FetchError> {
        let Some(archive) = &self.archive else { return Ok(Held::Nothing) };
        Ok(match self.sources.server {
            Server::Recovers => held(name, async |object: &str| archive.get(object).await).await?,
            Server::StandsBy => archive.get(&wal_object(name)).await?.map_or(Held::Nothing, Held::Finished),
        })
    }

    /// Whether the bytes from `place` are the segment. Only a newest page of an ancestor makes it matter where its
    /// timeline begins.
    async fn check(&self, name: &str, bytes: &[u8], place: &str) -> Result<Claim, FetchError> {
        let refused = |source| FetchError::Segment { place: place.to_owned(), source };
        let claim = self.claim(name, bytes).map_err(refused)?;
        match claim.check_whole(bytes) {
            Err(SegmentDefect::Timeline { .. }) => {
                let begin = self.begin_of(claim.segment.timeline).await?;
                Claim { begin, ..claim }.check_whole(bytes).map_err(refused)?;
            }
            checked => checked.map_err(refused)?,
        }
        Ok(claim)
    }

    fn claim(&self, name: &str, bytes: &[u8]) -> Result<Claim, SegmentDefect> {
        let size = size_of(bytes)?;
        let segment = SegmentFile::parse(name, size).ok_or(SegmentDefect::Name { size })?;
        Ok(Claim { segment, size, begin: Lsn::INVALID, system: self.sources.system })
    }

    /// Where a timeline begins; without its history file every page must be its own.
    async fn begin_of(&self, timeline: TimelineId) -> Result<Lsn, FetchError> {
        let taken = self.history_file(timeline).await?;
        let history = taken.and_then(|taken| History::parse(timeline, &taken.content).ok());
        Ok(history.and_then(|history| history.begin()).unwrap_or(Lsn::INVALID))
    }

    /// Out of the store's directory, if it is finished there: a later segment is there, and its timeline did not end
    /// before its end.
    async fn stored(&self, directory: &Path, name: &str) -> Result<Option<Bytes>, FetchError> {
        let names = names(directory)?;
        let is_later =
            |other: &String| is_segment(other) && other[8..] > name[8..] && other[..8] >= name[..8];
        if !names.iter().any(is_later) {
            return Ok(None);
        }
        let path = directory.join(name);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        if let Ok(claim) = self.claim(name, &bytes)
            && let Some(switchpoint) = switchpoint(directory, &names, claim.segment.timeline)?
            && switchpoint < claim.size.end(claim.segment.number)
        {
            return Ok(None);
        }
        match self.check(name, &bytes, &path.display().to_string()).await {
            Ok(_) => Ok(Some(bytes)),
            // Retention makes new segments of old ones, under another name.
            Err(FetchError::Segment { .. }) if !path.exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What there is of a segment that is not finished.
    fn begun(&self, name: &str, bytes: &[u8]) -> Result<Option<Bytes>, FetchError> {
        let place = of_the_archive(&format!("{name}.partial"));
        let refused = |source| FetchError::Segment { place: place.clone(), source };
        let claim = self.claim(name, bytes).map_err(refused)?;
        let verified = match claim.check_begun(bytes) {
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
    async fn fetch_ahead(&self, claim: Claim, destination: &Destination) {
        let Some(archive) = &self.archive else { return };
        let names = if destination.is_recovery() { ahead(claim.segment, claim.size) } else { Vec::new() };
        destination.clear(&names);
        let fetched = join_all(names.iter().map(async |name| {
            let bytes = archive.get(&wal_object(name)).await.ok().flatten()?;
            self.check(name, &bytes, name).await.ok().map(|_| bytes)
        }))
        .await;
        for (name, bytes) in names.iter().zip(fetched) {
            match bytes.map(|bytes| destination.keep(name, &bytes)) {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
}

fn stored_history(path: &Path, timeline: TimelineId) -> Result<Option<Bytes>, FetchError> {
    let content = read(path)?;
    if let Some(content) = &content {
        check_history(timeline, content, &path.display().to_string())?;
    }
    Ok(content)
}

fn check_history(timeline: TimelineId, content: &[u8], place: &str) -> Result<(), FetchError> {
    let refused = |source| FetchError::History { place: place.to_owned(), source };
    History::parse(timeline, content).map(drop).map_err(refused)
}

fn of_the_archive(name: &str) -> String {
    format!("{} of the archive", wal_object(name))
}

/// `None` when there is no such file.
fn read(path: &Path) -> Result<Option<Bytes>, FetchError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FetchError::file("read", path)(error)),
    }
}

/// Of the files in the store's directory; none when there is no such directory.
fn names(directory: &Path) -> Result<Vec<String>, FetchError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(FetchError::file("list", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(FetchError::file("list", directory))?.file_name().into_string());
    }
    Ok(names)
}

/// Where the store's log has left `timeline`, as the newest history file of its own line says that has it. Those of
/// timelines that it does not follow (any more: `wal reset`) say nothing of it.
fn switchpoint(directory: &Path, names: &[String], timeline: TimelineId) -> Result<Option<Lsn>, FetchError> {
    let mut later: Vec<TimelineId> = names.iter().filter_map(|name| parse_history_file_name(name)).collect();
    let current = current_timeline(directory)?;
    later.retain(|other| *other > timeline && current.is_none_or(|current| *other <= current));
    later.sort_unstable();
    for descendant in later.into_iter().rev() {
        let path = directory.join(history_file_name(descendant));
        let Some(content) = read(&path)? else { continue };
        let refused = |source| FetchError::History { place: path.display().to_string(), source };
        let history = History::parse(descendant, &content).map_err(refused)?;
        if let Some(switchpoint) = history.switchpoint(timeline) {
            return Ok(Some(switchpoint));
        }
    }
    Ok(None)
}

/// The store's, by its control file. `None`: plain segments, which is no store.
fn current_timeline(directory: &Path) -> Result<Option<TimelineId>, FetchError> {
    let path = directory.join(Control::FILE_NAME);
    let Some(content) = read(&path)? else { return Ok(None) };
    let refused = |why| FetchError::file("read", &path)(io::Error::new(io::ErrorKind::InvalidData, why));
    Control::decode_bytes(&content).map(|control| Some(control.timeline)).map_err(refused)
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

/// The file that PostgreSQL waits for, and what waits beside it.
struct Destination {
    path: PathBuf,
    waiting: PathBuf,
}

impl Destination {
    fn of(path: &Path) -> Destination {
        let directory = path.parent().unwrap_or(Path::new(""));
        Destination { path: path.to_owned(), waiting: directory.join(WAITING) }
    }

    fn is_recovery(&self) -> bool {
        self.path.file_name().is_some_and(|name| name == RECOVERY_FILE)
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
        fs::create_dir_all(&self.waiting).map_err(FetchError::file("make", &self.waiting))?;
        put(bytes, &self.waiting.join(name))
    }

    /// Removes what waits in vain; where nothing is wanted, the directory, too.
    fn clear(&self, wanted: &[String]) {
        let Ok(entries) = fs::read_dir(&self.waiting) else { return };
        for entry in entries.filter_map(Result::ok) {
            if !wanted.iter().any(|name| entry.file_name() == name.as_str()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        if wanted.is_empty() {
            let _ = fs::remove_dir(&self.waiting);
        }
    }

    fn put(&self, content: &[u8]) -> Result<(), FetchError> {
        put(content, &self.path)
    }
}

/// Not synced: after a crash the server asks again.
fn put(content: &[u8], path: &Path) -> Result<(), FetchError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(&temporary).and_then(|mut file| file.write_all(content));
    written.map_err(FetchError::file("write", &temporary))?;
    fs::rename(&temporary, path).map_err(FetchError::file("rename to", path))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::{Held, held, wal_object};

    /// What the archive answers while the shipper works: before the `turn`th question, it finishes the segment.
    async fn asked(begun: bool, turn: usize) -> Held {
        let name = "000000010000000000000003";
        let object = |name: &str, content: &'static [u8]| (wal_object(name), Bytes::from_static(content));
        let before = begun.then(|| object(&format!("{name}.partial"), b"half"));
        let objects: RefCell<BTreeMap<String, Bytes>> = RefCell::new(before.into_iter().collect());
        let questions = RefCell::new(0);
        let get = async |wanted: &str| {
            if *questions.borrow() == turn {
                *objects.borrow_mut() = [object(name, b"whole")].into();
            }
            *questions.borrow_mut() += 1;
            Ok(objects.borrow().get(wanted).cloned())
        };
        held(name, get).await.expect("answers")
    }

    #[tokio::test]
    async fn a_segment_that_is_being_finished_is_found() {
        let (whole, half) = (Bytes::from_static(b"whole"), Bytes::from_static(b"half"));
        assert_eq!(asked(true, 0).await, Held::Finished(whole.clone()));
        assert_eq!(asked(true, 1).await, Held::Finished(whole.clone()), "between the two questions");
        assert_eq!(asked(true, 9).await, Held::Begun(half));
        assert_eq!(asked(false, 2).await, Held::Finished(whole));
        assert_eq!(asked(false, 9).await, Held::Nothing);
    }
}
