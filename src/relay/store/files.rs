//! The store's directory: in which order its files are written, named and synced.
//!
//! Durable rename: the file is synced, renamed, then the directory is synced. A segment gets its name with its
//! full size already allocated, so that writing into it needs `fdatasync` only.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use super::StoreError;
use super::disk::{Disk, DiskFile, HostDisk, fill};
use super::error::SYNC;
use crate::pg::wal::WalSegmentSize;

/// Prepared segments that have no place in the log yet. The name is no segment's, so that no tool reads them.
pub(crate) const SPARE_PREFIX: &str = "spare.";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Of a file that is read as a whole: what is longer is not ours, and does not parse.
const MAX_WHOLE: usize = 1 << 20;

/// Bytes written at a time when a segment is allocated.
const ZEROS: usize = 1 << 20;

#[derive(Clone, Debug)]
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
}

/// Tells how long a process keeps the directory, without keeping it itself.
#[derive(Clone, Debug)]
pub(crate) struct LockHeld(Weak<dyn Disk>);

impl LockHeld {
    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Files {
    /// The directory of this host; it is created if it is missing, and locked.
    pub(crate) fn open(directory: &Path) -> Result<Files, StoreError> {
        Files::on(Arc::new(HostDisk::open(directory)?))
    }

    /// Clears what a crash left half made.
    pub(crate) fn on(disk: Arc<dyn Disk>) -> Result<Files, StoreError> {
        let files = Files { disk };
        for name in files.names()? {
            if name.ends_with(TEMPORARY_SUFFIX) {
                files.remove(&name)?;
            }
        }
        Ok(files)
    }

    pub(super) fn lock_held(&self) -> LockHeld {
        LockHeld(Arc::downgrade(&self.disk))
    }

    pub(crate) fn directory(&self) -> String {
        self.disk.directory()
    }

    pub(crate) fn free_bytes(&self) -> Result<u64, StoreError> {
        self.disk.free_bytes().map_err(StoreError::io("look for room in", &self.directory()))
    }

    /// When the file was last written.
    pub(crate) fn modified(&self, name: &str) -> Result<SystemTime, StoreError> {
        self.disk.modified(name).map_err(StoreError::io("look at", name))
    }

    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        self.disk.names().map_err(StoreError::io("list", &self.directory()))
    }

    /// `None` when there is no such file.
    pub(crate) fn read_whole(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || self.disk.open(name)?.read(0, MAX_WHOLE);
        match read() {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", name)(e)),
        }
    }

    /// Replaces the file as a whole; afterwards it survives a crash. After an error the old content stands, unless
    /// it was the directory that could not be synced.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        let write = || -> io::Result<()> {
            let file = self.disk.create(&temporary)?;
            file.write_at(content, 0)?;
            file.sync_all()
        };
        self.made(&temporary, "write", write())?;
        self.rename(&temporary, name)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.disk.rename(from, to).map_err(StoreError::io("rename", from))?;
        self.sync_names()
    }

    /// What was removed does not come back.
    pub(super) fn sync_names(&self) -> Result<(), StoreError> {
        self.disk.sync().map_err(StoreError::io(SYNC, &self.directory()))
    }

    /// A crash may bring the file back.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.disk.remove(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", name)(e)),
            _ => Ok(()),
        }
    }

    /// The files have their names in a directory within, too, durably, and keep them when they lose these. As often as it
    /// takes.
    pub(super) fn keep_within(&self, directory: &str, names: &[String]) -> Result<(), StoreError> {
        self.disk.create_directory(directory).map_err(StoreError::io("create", directory))?;
        for name in names {
            let to = format!("{directory}/{name}");
            self.disk.link(name, &to).map_err(StoreError::io("link", &to))?;
        }
        self.disk.sync_directory(directory).map_err(StoreError::io(SYNC, directory))?;
        self.sync_names()
    }

    /// A directory within; a crash may bring it back.
    pub(super) fn remove_directory(&self, name: &str) -> Result<(), StoreError> {
        self.disk.remove_directory(name).map_err(StoreError::io("remove", name))
    }

    pub(super) fn open_segment(&self, name: &str) -> Result<Segment, StoreError> {
        let file = self.disk.open(name).map_err(StoreError::io("open", name))?;
        Ok(Segment { name: name.to_owned(), file })
    }

    /// Allocates a segment by writing zeros: a hole would have to be allocated at every `fdatasync`.
    pub(super) fn allocate(&self, name: &str, size: WalSegmentSize) -> Result<(), StoreError> {
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        let write = || -> io::Result<()> {
            let file = self.disk.create(&temporary)?;
            let zeros = vec![0; ZEROS];
            for offset in (0..size.bytes()).step_by(ZEROS) {
                file.write_at(&zeros, offset)?;
            }
            file.sync_all()
        };
        self.made(&temporary, "allocate", write())?;
        self.rename(&temporary, name)
    }

    /// The space of what could not be made is needed elsewhere.
    fn made(&self, temporary: &str, operation: &'static str, made: io::Result<()>) -> Result<(), StoreError> {
        let Err(error) = made else { return Ok(()) };
        self.remove(temporary)?;
        Err(StoreError::io(operation, temporary)(error))
    }
}

/// An open segment file.
#[derive(Debug)]
pub(super) struct Segment {
    name: String,
    file: Box<dyn DiskFile>,
}

impl Segment {
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        self.file.write_at(bytes, offset).map_err(StoreError::io("write", &self.name))
    }

    /// Fills `buffer` as far as the file reaches; returns how far.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, StoreError> {
        fill(&*self.file, buffer, offset).map_err(StoreError::io("read", &self.name))
    }

    /// The same for a reader that has the file to itself.
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.file.read(offset, len).map_err(StoreError::io("read", &self.name))
    }

    pub(super) fn sync_data(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(StoreError::io(SYNC, &self.name))
    }
}
