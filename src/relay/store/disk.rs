//! What the WAL plane asks of a disk: one directory of files. [`HostDisk`] is the host's; the tests have one whose
//! power fails.
//!
//! Nothing here is durable by itself. A file's bytes are after a sync of the file, its name is after one of the
//! directory; which follows which is `files`' to know.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

const LOCK_FILE: &str = "lock";
/// How long a process that is just ending may keep the directory, in tries and their distance.
const LOCK_TRIES: u32 = 50;
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// A directory of files. The methods are the system calls of the same names.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// For people.
    fn directory(&self) -> String;
    /// The names of all files; what is no UTF-8 is nobody's of ours.
    fn names(&self) -> io::Result<Vec<String>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Makes the file, or empties it. WAL holds everybody's data: it is for its owner only.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync(&self) -> io::Result<()>;
    /// A directory within, for its owner only; one that is there stays as it is.
    fn create_directory(&self, name: &str) -> io::Result<()>;
    /// One more name for a file, `DIRECTORY/NAME` in a directory within; one that is there stays.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the entries of a directory within durable.
    fn sync_directory(&self, name: &str) -> io::Result<()>;
    /// With all that is in it.
    fn remove_directory(&self, name: &str) -> io::Result<()>;
    /// When the file was last written.
    fn modified(&self, name: &str) -> io::Result<SystemTime>;
    /// Left on the file system for who is not its administrator.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. It stays the same file when its name is given to another.
pub(crate) trait DiskFile: fmt::Debug + Send + Sync {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Up to `len` bytes, for a reader that has the file to itself.
    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// All of `bytes`, or an error.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// The bytes, and of the rest what is needed to read them.
    fn sync_data(&self) -> io::Result<()>;
    fn sync_all(&self) -> io::Result<()>;
}

/// A directory of this host, ours alone as long as this lives.
#[derive(Debug)]
pub(super) struct HostDisk {
    directory: PathBuf,
    /// Two writers in one directory would destroy each other's segments.
    _lock: Flock<File>,
}

impl HostDisk {
    /// Creates the directory if it is missing, for its owner only.
    pub(super) fn open(directory: &Path) -> Result<HostDisk, StoreError> {
        create_durably(directory).map_err(StoreError::io("create", &directory.display().to_string()))?;
        Ok(HostDisk { directory: directory.to_owned(), _lock: lock(directory)? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Disk for HostDisk {
    fn directory(&self) -> String {
        self.directory.display().to_string()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(self.path(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        Ok(Box::new(options.open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        unless_there(fs::DirBuilder::new().mode(0o700).create(self.path(name)))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        unless_there(fs::hard_link(self.path(from), self.path(to)))
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.path(name))
    }

    fn modified(&self, name: &str) -> io::Result<SystemTime> {
        fs::metadata(self.path(name))?.modified()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let file_system = rustix::fs::statvfs(&self.directory)?;
        Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    /// The memory is not cleared before it is filled.
    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        self.seek(SeekFrom::Start(offset))?;
        (&*self).take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}

fn unless_there(made: io::Result<()>) -> io::Result<()> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// What is in a directory is only as durable as the directory's own name, and its parents'.
fn create_durably(directory: &Path) -> io::Result<()> {
    let missing = directory.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
    let parents: Vec<PathBuf> = missing.filter_map(|path| Some(path.parent()?.to_owned())).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for parent in parents {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { &parent };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Fills `buffer` as far as the file reaches; returns how far.
pub(crate) fn fill(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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
