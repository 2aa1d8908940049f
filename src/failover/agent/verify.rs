//! Whether a copy is what its manifest says: every file there, of the right size, with the right bytes. As
//! pg_verifybackup does it, but for the WAL, which a follower has from elsewhere.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::copy::MANIFEST;
use super::error::FileError;
use crate::pg::backup_manifest::{BackupManifest, Checksum, InvalidManifest, ManifestFile};

/// Read at once, in bytes.
const READ_SIZE: usize = 256 * 1024;
/// Not in the manifest, or not as it says: `main` in pg_verifybackup.c.
const NOT_COMPARED: [&str; 5] =
    [MANIFEST, "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"];

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not valid", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: InvalidManifest,
    },
    #[error("{} is missing", path.display())]
    Missing { path: PathBuf },
    #[error("{} has {found} bytes, {expected} in the manifest", path.display())]
    Size { path: PathBuf, found: u64, expected: u64 },
    #[error("{} has other bytes than were sent: its checksum does not match", path.display())]
    Checksum { path: PathBuf },
    #[error("{} is not in the manifest", path.display())]
    Surplus { path: PathBuf },
}

/// Compares all files below `dir` but those called `own`, in blocking reads; tells how many bytes were compared, of how many.
pub(super) fn verify(dir: &Path, own: &str, mut progress: impl FnMut(u64, u64)) -> Result<(), VerifyError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(FileError::of("read", &path))?;
    let manifest = BackupManifest::parse(&text).map_err(|source| VerifyError::Manifest { path, source })?;
    let total = manifest.files.iter().map(|file| file.size).sum();
    let mut done = 0;
    let mut known = BTreeSet::new();
    for file in &manifest.files {
        let name = PathBuf::from(OsStr::from_bytes(&file.path));
        if !is_compared(&name, own) {
            continue;
        }
        compare(&dir.join(&name), file, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        known.insert(name);
    }
    match surplus(dir, own, &known)? {
        Some(path) => Err(VerifyError::Surplus { path }),
        None => Ok(()),
    }
}

fn is_compared(name: &Path, own: &str) -> bool {
    let top = name.components().next().map(Component::as_os_str);
    !NOT_COMPARED.iter().any(|not| top == Some(OsStr::new(not))) && name.file_name() != Some(OsStr::new(own))
}

fn compare(path: &Path, file: &ManifestFile, read: &mut impl FnMut(u64)) -> Result<(), VerifyError> {
    let opened = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(VerifyError::Missing { path: path.to_owned() });
        }
        opened => opened.map_err(FileError::of("open", path))?,
    };
    let found = opened.metadata().map_err(FileError::of("look at", path))?.len();
    if found != file.size {
        return Err(VerifyError::Size { path: path.to_owned(), found, expected: file.size });
    }
    let Some((algorithm, expected)) = &file.checksum else { return Ok(()) };
    let mut checksum = Checksum::new(*algorithm);
    let (mut content, mut buffer) = (opened, vec![0; READ_SIZE]);
    loop {
        let bytes = content.read(&mut buffer).map_err(FileError::of("read", path))?;
        if bytes == 0 {
            break;
        }
        checksum.update(&buffer[..bytes]);
        read(bytes as u64);
    }
    if checksum.finish() == *expected { Ok(()) } else { Err(VerifyError::Checksum { path: path.to_owned() }) }
}

/// A file that nobody has sent.
fn surplus(dir: &Path, own: &str, known: &BTreeSet<PathBuf>) -> Result<Option<PathBuf>, FileError> {
    let mut unvisited = vec![PathBuf::new()];
    while let Some(below) = unvisited.pop() {
        let here = dir.join(&below);
        for entry in fs::read_dir(&here).map_err(FileError::of("list", &here))? {
            let entry = entry.map_err(FileError::of("list", &here))?;
            let name = below.join(PathBuf::from(OsStr::from_bytes(&entry.file_name().into_vec())));
            if !is_compared(&name, own) {
                continue;
            }
            let kind = entry.file_type().map_err(FileError::of("look at", &entry.path()))?;
            // A tablespace's files are listed as if they were where the link is.
            if kind.is_dir() || kind.is_symlink() && below == Path::new("pg_tblspc") {
                unvisited.push(name);
            } else if !known.contains(&name) {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sha2::{Digest as _, Sha256};

    use super::{VerifyError, verify};

    /// `PG_VERSION` with `123456789`, and `base/1` with nothing.
    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"PG_VERSION\", \"Size\": 9, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"839206e3\" },\n\
            { \"Path\": \"base/1\", \"Size\": 0 },\n\
            { \"Path\": \"postgresql.auto.conf\", \"Size\": 99 }\n],\n";
        let sum: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).expect("written");
        write("backup_manifest", &format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n"));
        write("PG_VERSION", "123456789");
        for name in ["base", "pg_wal"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        write("base/1", "");
        write("pg_wal/000000010000000000000001", "WAL");
        write("postgresql.auto.conf", "");
        write("standby.signal", "");
        write("marker", "");
        dir
    }

    #[test]
    fn a_copy_is_what_its_manifest_says() {
        let whole = copy();
        let mut seen = (0, 0);
        verify(whole.path(), "marker", |done, total| seen = (done, total)).expect("nothing is wrong");
        assert_eq!(seen, (9, 9 + 99));
    }

    #[test]
    fn every_difference_is_found() {
        let check = |spoil: &dyn Fn(&std::path::Path), expected: fn(&VerifyError) -> bool| {
            let dir = copy();
            spoil(dir.path());
            let error = verify(dir.path(), "marker", |_, _| {}).expect_err("spoiled");
            assert!(expected(&error), "{error:?}");
        };
        let write = |name: &'static str, content: &'static str| {
            move |dir: &std::path::Path| fs::write(dir.join(name), content).expect("written")
        };
        check(&write("PG_VERSION", "123456780"), |error| matches!(error, VerifyError::Checksum { .. }));
        check(&write("PG_VERSION", "12345678"), |error| matches!(error, VerifyError::Size { found: 8, .. }));
        check(&write("base/2", ""), |error| matches!(error, VerifyError::Surplus { .. }));
        check(&write("backup_manifest", "{"), |error| matches!(error, VerifyError::Manifest { .. }));
        check(&|dir| fs::remove_file(dir.join("base/1")).expect("removed"), |error| {
            matches!(error, VerifyError::Missing { .. })
        });
    }
}
