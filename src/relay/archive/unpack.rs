//! A part of a base backup into the data directory. Blocking: it runs on a thread of its own and is fed through a bounded
//! channel.
//!
//! What an archive holds is not trusted with more than the directory: a name that leads out of it is refused, as is
//! everything but plain files and directories.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::pack::Feed;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("read it")]
    Read(#[source] io::Error),
    #[error("it holds {name:?}, which leads out of the data directory")]
    Unsafe { name: PathBuf },
    #[error("it holds {name:?}, which is neither file nor directory")]
    Kind { name: PathBuf },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Everything in the compressed tar file to `into`.
pub(super) fn unpack(part: Feed, into: &Path) -> Result<(), UnpackError> {
    let decompressed = zstd::Decoder::new(part).map_err(UnpackError::Read)?;
    let mut archive = tar::Archive::new(decompressed);
    for entry in archive.entries().map_err(UnpackError::Read)? {
        let mut entry = entry.map_err(UnpackError::Read)?;
        let name = entry.path().map_err(UnpackError::Read)?.into_owned();
        let Some(relative) = inside(&name) else { return Err(UnpackError::Unsafe { name }) };
        let path = into.join(relative);
        match entry.header().entry_type() {
            tar::EntryType::Directory => make_directory(&path)?,
            tar::EntryType::Regular => make_file(&path, &mut entry)?,
            _ => return Err(UnpackError::Kind { name }),
        }
    }
    // Behind the last member: only there does zstd compare its checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop).map_err(UnpackError::Read)
}

/// The path below the data directory; `None` when it is not one.
fn inside(name: &Path) -> Option<PathBuf> {
    let mut relative = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => relative.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(relative)
}

fn make_directory(path: &Path) -> Result<(), UnpackError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| UnpackError::Write { path: path.to_owned(), source })
}

fn make_file(path: &Path, content: &mut impl Read) -> Result<(), UnpackError> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    let failed = |source| UnpackError::Write { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = content.read(&mut buffer).map_err(UnpackError::Read)?;
        if read == 0 {
            return Ok(());
        }
        io::Write::write_all(&mut file, &buffer[..read]).map_err(failed)?;
    }
}

/// Whether a server can be made in `directory`: it is missing, or there is nothing in it.
pub(super) fn is_vacant(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::super::pack::{Chunk, Feed};
    use super::{UnpackError, unpack};

    fn unpacked(compressed: &[u8], into: &Path) -> Result<(), UnpackError> {
        let (feed, chunks) = mpsc::channel(1000);
        for chunk in compressed.chunks(100) {
            feed.blocking_send(Chunk::Data(Bytes::copy_from_slice(chunk))).expect("room");
        }
        feed.blocking_send(Chunk::End).expect("room");
        unpack(Feed::new(chunks), into)
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
