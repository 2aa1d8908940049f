//! The store's directory: every system call on it, and nothing else.
//!
//! Durable rename: the file is synced, renamed, then the directory is synced. A segment gets its name with its
//! full size already allocated, so that writing into it needs `fdatasync` only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::StoreError;
use crate::pg::wal::WalSegmentSize;

/// Prepared segments that have no place in the log yet. The name is no segment's, so that no tool reads them.
pub(super) const SPARE_PREFIX: &str = "spare.";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Bytes written at a time when a segment is allocated.
const ZEROS: usize = 1 << 20;

const LOCK_FILE: &str = "lock";
/// How long a process that is just ending may keep the directory, in tries and their distance.
const LOCK_TRIES: u32 = 50;
const LOCK_RETRY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// Two writers in one directory would destroy each other's segments.
    lock: Arc<Flock<File>>,
}

/// Tells how long a process keeps the directory, without keeping it itself.
#[derive(Clone, Debug)]
pub(crate) struct LockHeld(Weak<Flock<File>>);

impl LockHeld {
    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Files {
    /// Creates the directory, for its owner only, and clears what a crash left half made.
    pub(super) fn open(directory: &Path) -> Result<Files, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let shown = directory.display().to_string();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).map_err(StoreError::io("create", &shown))?;
        let files = Files { directory: directory.to_owned(), lock: Arc::new(lock(directory)?) };
        for name in files.names()? {
            if name.ends_with(TEMPORARY_SUFFIX) {
                files.remove(&name)?;
            }
        }
        Ok(files)
    }

    pub(super) fn lock_held(&self) -> LockHeld {
        LockHeld(Arc::downgrade(&self.lock))
    }

    pub(super) fn directory(&self) -> String {
        self.directory.display().to_string()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The names of all files; what is no UTF-8 is nobody's of ours.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let shown = self.directory();
        let entries = fs::read_dir(&self.directory).map_err(StoreError::io("list", &shown))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &shown))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    /// `None` when there is no such file.
    pub(super) fn read_whole(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(self.path(name)) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", name)(e)),
        }
    }

    /// Replaces the file as a whole; afterwards it survives a crash.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        let write = || -> io::Result<()> {
            let mut file = create(&self.path(&temporary))?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(StoreError::io("write", &temporary))?;
        self.rename(&temporary, name)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        fs::rename(self.path(from), self.path(to)).map_err(StoreError::io("rename", from))?;
        self.sync_directory()
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", name)(e)),
            _ => Ok(()),
        }
    }

    pub(super) fn open_segment(&self, name: &str) -> Result<Segment, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name));
        let file = file.map_err(StoreError::io("open", name))?;
        Ok(Segment { name: name.to_owned(), file })
    }

    /// Allocates a segment by writing zeros: a hole would have to be allocated at every `fdatasync`.
    pub(super) fn allocate(&self, name: &str, size: WalSegmentSize) -> Result<(), StoreError> {
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        let write = || -> io::Result<()> {
            let mut file = create(&self.path(&temporary))?;
            let zeros = vec![0; ZEROS];
            for _ in 0..size.bytes() / ZEROS as u64 {
                file.write_all(&zeros)?;
            }
            file.sync_all()
        };
        if let Err(e) = write() {
            // The space is needed elsewhere.
            self.remove(&temporary)?;
            return Err(StoreError::io("allocate", name)(e));
        }
        self.rename(&temporary, name)
    }

    fn sync_directory(&self) -> Result<(), StoreError> {
        let sync = || File::open(&self.directory)?.sync_all();
        sync().map_err(StoreError::io("sync", &self.directory()))
    }
}

/// WAL holds everybody's data: its files are for their owner only.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join(LOCK_FILE);
    let shown = path.display().to_string();
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let mut file = open().map_err(StoreError::io("open", &shown))?;
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, nix::errno::Errno::EWOULDBLOCK)) => file = unlocked,
            Err((_, errno)) => return Err(StoreError::io("lock", &shown)(errno.into())),
        }
        std::thread::sleep(LOCK_RETRY);
    }
    Err(StoreError::InUse { directory: directory.display().to_string() })
}

/// An open segment file.
#[derive(Debug)]
pub(super) struct Segment {
    name: String,
    file: File,
}

impl Segment {
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        self.file.write_all_at(bytes, offset).map_err(StoreError::io("write", &self.name))
    }

    /// Fills `buffer` as far as the file reaches; returns how far.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(StoreError::io("read", &self.name)(e)),
            }
        }
        Ok(filled)
    }

    /// The same for a reader that has the file to itself: the memory is not cleared before it is filled.
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::with_capacity(len);
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(len as u64).read_to_end(&mut bytes))
            .map_err(StoreError::io("read", &self.name))?;
        Ok(bytes)
    }

    pub(super) fn sync_data(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(StoreError::io("sync", &self.name))
    }
}
