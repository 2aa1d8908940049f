//! A data directory on its disk: what was unpacked, and the names under which it is found. A power cut right behind takes
//! none of it.
//!
//! The kernel is first asked to write everything at once; the fsync of each file and directory, which comes then, finds
//! little left to do and is what counts: it tells whose bytes could not be written. So does `pg_basebackup`
//! (`sync_pgdata`, file_utils.c), and as there, links are followed where PostgreSQL has them: `pg_wal` and those in
//! `pg_tblspc`.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("sync {}", path.display())]
pub struct SyncError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// All that is in `directory`, itself, and its own name are on disk when it returns.
pub fn sync_data_directory(directory: &Path) -> Result<(), SyncError> {
    write_out(directory)?;
    for_each(directory, &mut sync)?;
    sync(parent_of(directory))
}

/// A file, or the names in a directory.
pub fn sync(path: &Path) -> Result<(), SyncError> {
    open(path)?.sync_all().map_err(failed(path))
}

/// A private directory, with a name that stays; its missing parents, too, which are everybody's to pass through.
pub fn make_private_directory(directory: &Path) -> io::Result<()> {
    make_parents(directory)?;
    make_directory(directory, 0o700)?;
    // One that was there: PostgreSQL does not start in what others may enter (`checkDataDir`, miscinit.c).
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

/// The directories above `path` that are missing, with names that stay.
pub fn make_parents(path: &Path) -> io::Result<()> {
    let parent = parent_of(path);
    if parent.is_dir() {
        return Ok(());
    }
    make_parents(parent)?;
    make_directory(parent, 0o777)
}

fn make_directory(directory: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made.and_then(|()| File::open(parent_of(directory))?.sync_all()),
    }
}

/// The file systems on which it lies write what they have.
fn write_out(directory: &Path) -> Result<(), SyncError> {
    let mut devices = BTreeSet::new();
    for root in [directory.to_owned()].into_iter().chain(links(directory)?) {
        let opened = open(&root)?;
        if devices.insert(opened.metadata().map_err(failed(&root))?.dev()) {
            nix::unistd::syncfs(opened).map_err(|error| failed(&root)(error.into()))?;
        }
    }
    Ok(())
}

/// Those of a data directory that belong to it with all that they point at.
fn links(directory: &Path) -> Result<Vec<PathBuf>, SyncError> {
    let tablespaces = directory.join("pg_tblspc");
    let listed = match fs::read_dir(&tablespaces) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        listed => Some(listed.map_err(failed(&tablespaces))?),
    };
    let mut found = vec![directory.join("pg_wal")];
    for entry in listed.into_iter().flatten() {
        found.push(entry.map_err(failed(&tablespaces))?.path());
    }
    found.retain(|path| path.is_symlink());
    Ok(found)
}

/// Every file and directory, `directory` among them.
fn for_each(
    directory: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<(), SyncError>,
) -> Result<(), SyncError> {
    let mut unvisited = links(directory)?;
    unvisited.push(directory.to_owned());
    while let Some(listed) = unvisited.pop() {
        for entry in fs::read_dir(&listed).map_err(failed(&listed))? {
            let entry = entry.map_err(failed(&listed))?;
            let kind = entry.file_type().map_err(failed(&entry.path()))?;
            if kind.is_dir() {
                unvisited.push(entry.path());
            } else if kind.is_file() {
                visit(&entry.path())?;
            }
        }
        visit(&listed)?;
    }
    Ok(())
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

fn open(path: &Path) -> Result<File, SyncError> {
    File::open(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SyncError {
    let path = path.to_owned();
    move |source| SyncError { path, source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::{SyncError, for_each, make_private_directory, sync_data_directory};

    /// A data directory with a tablespace and its WAL elsewhere.
    fn data_directory(place: &Path) {
        for directory in ["data/base/1", "data/global", "data/pg_tblspc", "fast/PG_15/1", "wal", "others"] {
            fs::create_dir_all(place.join(directory)).expect("a directory");
        }
        for file in ["data/PG_VERSION", "data/base/1/2", "data/global/pg_control", "fast/PG_15/1/3", "wal/0"]
        {
            fs::write(place.join(file), file).expect("a file");
        }
        for (link, to) in [("pg_tblspc/16384", "fast"), ("pg_wal", "wal"), ("base/link", "others")] {
            symlink(place.join(to), place.join("data").join(link)).expect("a link");
        }
    }

    #[test]
    fn every_file_and_directory_is_synced() {
        let place = tempfile::tempdir().expect("a directory");
        data_directory(place.path());
        let data = place.path().join("data");
        let mut synced = BTreeSet::new();
        let mut note = |path: &Path| {
            synced.insert(path.strip_prefix(&data).expect("below").display().to_string());
            Ok(())
        };
        for_each(&data, &mut note).expect("nothing fails");
        let expected = [
            "",
            "PG_VERSION",
            "base",
            "base/1",
            "base/1/2",
            "global",
            "global/pg_control",
            "pg_tblspc",
            "pg_tblspc/16384",
            "pg_tblspc/16384/PG_15",
            "pg_tblspc/16384/PG_15/1",
            "pg_tblspc/16384/PG_15/1/3",
            "pg_wal",
            "pg_wal/0",
        ];
        assert_eq!(synced.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        sync_data_directory(&data).expect("the disk is sound");
    }

    #[test]
    fn what_cannot_be_synced_is_told() {
        let place = tempfile::tempdir().expect("a directory");
        data_directory(place.path());
        let data = place.path().join("data");
        let mut fail = |path: &Path| match path.ends_with("base/1/2") {
            true => Err(SyncError { path: path.to_owned(), source: io::ErrorKind::Other.into() }),
            false => Ok(()),
        };
        let error = for_each(&data, &mut fail).expect_err("one fails");
        assert_eq!(error.path, data.join("base/1/2"));
        assert!(sync_data_directory(&place.path().join("nowhere")).is_err());
    }

    #[test]
    fn parents_are_made() {
        let place = tempfile::tempdir().expect("a directory");
        let deep = place.path().join("a/b/c");
        for _ in 0..2 {
            make_private_directory(&deep).expect("made, or there");
            assert_eq!(deep.metadata().expect("is there").mode() & 0o777, 0o700);
            assert_ne!(place.path().join("a/b").metadata().expect("is there").mode() & 0o011, 0);
        }
        fs::write(place.path().join("file"), "").expect("a file");
        fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).expect("changed");
        make_private_directory(&deep).expect("there");
        assert_eq!(fs::metadata(&deep).expect("there").mode() & 0o777, 0o700);
        assert!(make_private_directory(&place.path().join("file")).is_err());
        assert!(make_private_directory(&place.path().join("file/below")).is_err());
    }
}
