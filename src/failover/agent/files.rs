//! Files and directories of a server: owned by its user, private, and durable once written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::error::FileError;
use super::user::RunAs;
use crate::net::{self, SyncError};

/// What a data directory and its files allow: everything to their owner, nothing to others.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The directory and its missing parents; the directory itself is made private and given to `owner`.
pub(super) fn create_private_dir(dir: &Path, owner: Option<&RunAs>) -> Result<(), FileError> {
    let made = || -> io::Result<()> {
        net::make_private_directory(dir)?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(DIR_MODE))?;
        give(dir, owner)
    };
    made().map_err(FileError::of("create directory", dir))
}

/// Replaces the file as a whole: no reader and no crash sees a part of it.
pub(super) fn write_durably(path: &Path, content: &[u8], owner: Option<&RunAs>) -> Result<(), FileError> {
    let written = || -> io::Result<()> {
        let temporary = beside(path, ".tmp");
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
        file.write_all(content)?;
        give(&temporary, owner)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    written().map_err(FileError::of("write", path))
}

/// The file's text; empty when there is none.
pub(super) fn read_or_empty(path: &Path) -> Result<String, FileError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(FileError::of("read", path)),
    }
}

pub(super) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FileError::of("remove", path)),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), FileError> {
    remove_if_there(path).map_err(FileError::of("remove", path))
}

/// Gone for good when it returns.
pub(super) fn remove_durably(path: &Path) -> Result<(), FileError> {
    remove_if_there(path).and_then(|()| sync_parent(path)).map_err(FileError::of("remove", path))
}

/// Rename, durable.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).and_then(|()| sync_parent(to)).map_err(FileError::of("rename", from))
}

/// The whole tree to `owner`; links themselves, not what they point at.
pub(super) fn give_tree(path: &Path, owner: Option<&RunAs>) -> Result<(), FileError> {
    let Some(_) = owner else { return Ok(()) };
    let given = |path: &Path| give(path, owner).map_err(FileError::of("change the owner of", path));
    given(path)?;
    let mut unvisited = vec![path.to_owned()];
    while let Some(dir) = unvisited.pop() {
        for entry in fs::read_dir(&dir).map_err(FileError::of("list", &dir))? {
            let entry = entry.map_err(FileError::of("list", &dir))?;
            given(&entry.path())?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                unvisited.push(entry.path());
            }
        }
    }
    Ok(())
}

/// All of it is on disk when it returns.
pub(super) fn sync_tree(dir: &Path) -> Result<(), FileError> {
    net::sync_data_directory(dir).map_err(|SyncError { path, source }| FileError {
        action: "sync",
        path,
        source,
    })
}

/// An exclusive lock that ends with the process. `None` while somebody else has it.
pub(super) fn try_lock(path: &Path) -> Result<Option<Flock<File>>, FileError> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path);
    let file = opened.map_err(FileError::of("open", path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(FileError::of("lock", path)(error.into())),
    }
}

/// `path` with `suffix` behind its last component: `/data/pg1` gives `/data/pg1.old`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

pub(super) fn give(path: &Path, owner: Option<&RunAs>) -> io::Result<()> {
    match owner {
        Some(user) => lchown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::beside;

    #[test]
    fn beside_a_directory_is_not_in_it() {
        for path in ["/data/pg1", "/data/pg1/", "/data/pg1/."] {
            assert_eq!(beside(Path::new(path), ".old"), Path::new("/data/pg1.old"), "{path}");
        }
    }
}
