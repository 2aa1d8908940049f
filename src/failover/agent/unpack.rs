//! A base backup's tar stream into a directory. Blocking: it runs on a thread of its own and is fed through a
//! bounded channel.
//!
//! What a server sends is not trusted with more than the directory: a name that is absolute or leads out of
//! it is refused, as is everything but plain files and directories.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("read the archive")]
    Archive(#[source] io::Error),
    #[error("the archive holds {name:?}, which leads out of the data directory")]
    Unsafe { name: PathBuf },
    #[error("the archive holds {name:?}, which is neither file nor directory (a tablespace?)")]
    Kind { name: PathBuf },
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Without it the copy would be taken for a crashed server and recovered from the wrong position.
    #[error("the archive ended early: it holds no {missing}")]
    Incomplete { missing: &'static str },
}

/// Present in every whole backup; `pg_control` is sent last (`perform_base_backup`, basebackup.c), so that its
/// presence says that nothing was cut off.
const ESSENTIAL: [&str; 2] = ["backup_label", "global/pg_control"];

/// Everything in `archive` to `into`, which exists and is empty.
pub(super) fn unpack(archive: impl Read, into: &Path) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        let name = entry.path().map_err(UnpackError::Archive)?.into_owned();
        let Some(relative) = inside(&name) else { return Err(UnpackError::Unsafe { name }) };
        let path = into.join(relative);
        let written = match entry.header().entry_type() {
            tar::EntryType::Directory => create_dir(&path),
            tar::EntryType::Regular => create_file(&path, &mut entry),
            _ => return Err(UnpackError::Kind { name }),
        };
        written.map_err(|source| UnpackError::Write { path, source })?;
    }
    // Whatever follows the end mark, so that the sender is not left with it.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Archive)?;
    match ESSENTIAL.into_iter().find(|name| !into.join(name).is_file()) {
        Some(missing) => Err(UnpackError::Incomplete { missing }),
        None => Ok(()),
    }
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

fn create_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(_) if path.is_dir() => Ok(()),
        created => created,
    }
}

fn create_file(path: &Path, content: &mut impl Read) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
        create_dir(parent)?;
    }
    // Nothing is written through a link or over a file that the archive brought before.
    fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::copy(content, &mut file).map(|_| ())
}

/// The receiving end of the channel as a [`Read`]. The end of the archive is a message of its own: a sender
/// that only went away has failed.
#[derive(Debug)]
pub(super) struct ArchiveReader {
    chunks: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

#[derive(Debug)]
pub(super) enum Chunk {
    Data(Bytes),
    End,
}

impl ArchiveReader {
    pub(super) fn new(chunks: mpsc::Receiver<Chunk>) -> ArchiveReader {
        ArchiveReader { chunks, current: Bytes::new(), ended: false }
    }
}

impl Read for ArchiveReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Chunk::Data(data)) => self.current = data,
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the backup was cut off")),
            }
        }
        let n = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{UnpackError, inside, unpack};

    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            // The builder itself would refuse the names that matter here.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o600);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    const WHOLE: [(&str, tar::EntryType, &[u8]); 3] = [
        ("backup_label", tar::EntryType::Regular, b"START WAL LOCATION"),
        ("global", tar::EntryType::Directory, b""),
        ("global/pg_control", tar::EntryType::Regular, b"control"),
    ];

    fn unpacked(extra: &[(&str, tar::EntryType, &[u8])]) -> Result<tempfile::TempDir, UnpackError> {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<_> = WHOLE.iter().chain(extra).copied().collect();
        unpack(archive(&all).as_slice(), dir.path()).map(|()| dir)
    }

    #[test]
    fn files_arrive() {
        let dir = unpacked(&[("./base/1/2", tar::EntryType::Regular, b"page")]).unwrap();
        assert_eq!(std::fs::read(dir.path().join("base/1/2")).unwrap(), b"page");
        assert_eq!(std::fs::read(dir.path().join("global/pg_control")).unwrap(), b"control");
    }

    #[test]
    fn nothing_leaves_the_directory() {
        for name in ["/etc/x", "../x", "base/../../x"] {
            let refused = unpacked(&[(name, tar::EntryType::Regular, b"")]);
            assert!(matches!(refused, Err(UnpackError::Unsafe { .. })), "{name}: {refused:?}");
        }
        let link = unpacked(&[("pg_tblspc/1", tar::EntryType::Symlink, b"")]);
        assert!(matches!(link, Err(UnpackError::Kind { .. })), "{link:?}");
        assert_eq!(inside(Path::new("./a//b")), Some(PathBuf::from("a/b")));
    }

    #[test]
    fn a_cut_archive_is_not_taken_for_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let only_label = archive(&WHOLE[..1]);
        assert!(matches!(unpack(only_label.as_slice(), dir.path()), Err(UnpackError::Incomplete { .. })));
        let whole = archive(&WHOLE);
        let cut = &whole[..512 * 2 + 100];
        assert!(matches!(unpack(cut, dir.path()), Err(UnpackError::Archive(_))));
    }
}
