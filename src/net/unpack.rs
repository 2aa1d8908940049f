//! A base backup's tar stream, from a server or out of an archive, into a directory. Blocking: it runs on a thread of
//! its own and is fed through a bounded channel.
//!
//! What comes is not trusted with more than the directory: a name that is absolute or leads out of
//! it is refused, as is everything but plain files and directories. Links to tablespaces are made by whoever unpacks;
//! the archive's own, where they would be, count for nothing.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Bytes from the archive to a file.
const COPIED_AT_ONCE: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("read the archive")]
    Archive(#[source] io::Error),
    #[error("the archive holds {name:?}, which leads out of the data directory")]
    Unsafe { name: PathBuf },
    #[error("the archive holds {name:?}, which is neither file nor directory")]
    Kind { name: PathBuf },
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Everything in the tar file `archive` to `into`. Not yet durable when it returns: see
/// [`sync_data_directory`](super::sync_data_directory).
pub fn unpack(archive: impl Read, into: &Path) -> Result<(), UnpackError> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        let name = entry.path().map_err(UnpackError::Archive)?.into_owned();
        let Some(relative) = inside(&name) else { return Err(UnpackError::Unsafe { name }) };
        let path = into.join(relative);
        match entry.header().entry_type() {
            tar::EntryType::Directory => create_dir(&path)?,
            tar::EntryType::Regular => create_file(&path, &mut entry)?,
            tar::EntryType::Symlink if path.is_symlink() => {}
            _ => return Err(UnpackError::Kind { name }),
        }
    }
    // Whatever follows the end mark, so that the sender is not left with it; what decompresses compares its checksum
    // only there.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop).map_err(UnpackError::Archive)
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

fn create_dir(path: &Path) -> Result<(), UnpackError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

fn create_file(path: &Path, content: &mut impl Read) -> Result<(), UnpackError> {
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    match fs::symlink_metadata(path) {
        // The name stays: a `standby.signal` that was here before keeps a half copied server from being a primary.
        Ok(found) if found.is_file() => {
            let there = OpenOptions::new().write(true).truncate(true).open(path);
            return fill(path, &mut there.map_err(failed(path))?, content);
        }
        // Nothing is written through a link.
        Ok(_) => fs::remove_file(path).map_err(failed(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(path)(error)),
    }
    write_file(path, content)
}

/// All of `content` to a new file, for its owner only.
pub fn write_file(path: &Path, content: &mut impl Read) -> Result<(), UnpackError> {
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    fill(path, &mut new.map_err(failed(path))?, content)
}

fn fill(path: &Path, file: &mut File, content: &mut impl Read) -> Result<(), UnpackError> {
    let mut buffer = vec![0; COPIED_AT_ONCE];
    loop {
        match content.read(&mut buffer).map_err(UnpackError::Archive)? {
            0 => return Ok(()),
            read => file.write_all(&buffer[..read]).map_err(failed(path))?,
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    |source| UnpackError::Write { path: path.to_owned(), source }
}

/// The receiving end of the channel as a [`Read`]. The end of what comes is a message of its own: a sender
/// that only went away has failed.
#[derive(Debug)]
pub struct ChunkReader {
    chunks: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

#[derive(Debug)]
pub enum Chunk {
    Data(Bytes),
    /// It is whole.
    End,
}

impl ChunkReader {
    pub fn new(chunks: mpsc::Receiver<Chunk>) -> ChunkReader {
        ChunkReader { chunks, current: Bytes::new(), ended: false }
    }
}

impl Read for ChunkReader {
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
        let link = ("pg_tblspc/1", tar::EntryType::Symlink, &b""[..]);
        let refused = unpacked(&[link]);
        assert!(matches!(refused, Err(UnpackError::Kind { .. })), "{refused:?}");
        assert_eq!(inside(Path::new("./a//b")), Some(PathBuf::from("a/b")));
    }

    #[test]
    fn tablespaces_lie_where_our_own_links_lead() {
        let place = tempfile::tempdir().unwrap();
        let (data, fast) = (place.path().join("data"), place.path().join("fast"));
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::fs::create_dir(&fast).unwrap();
        std::os::unix::fs::symlink(&fast, data.join("pg_tblspc/1")).unwrap();
        let all = archive(&[
            ("pg_tblspc", tar::EntryType::Directory, b""),
            ("pg_tblspc/1", tar::EntryType::Symlink, b""),
            ("pg_tblspc/1/PG_15/2/3", tar::EntryType::Regular, b"page"),
        ]);
        unpack(all.as_slice(), &data).unwrap();
        assert_eq!(std::fs::read(fast.join("PG_15/2/3")).unwrap(), b"page");
    }

    #[test]
    fn a_file_that_is_there_gets_the_content_and_never_vanishes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (signal, link) = (dir.path().join("standby.signal"), dir.path().join("link"));
        std::fs::write(&signal, "longer than what comes").unwrap();
        std::os::unix::fs::symlink(&signal, &link).unwrap();
        let before = signal.metadata().unwrap().ino();
        let all = archive(&[
            ("standby.signal", tar::EntryType::Regular, b"new"),
            ("link", tar::EntryType::Regular, b"not through it"),
        ]);
        unpack(all.as_slice(), dir.path()).unwrap();
        assert_eq!(std::fs::read(&signal).unwrap(), b"new");
        assert_eq!(signal.metadata().unwrap().ino(), before);
        assert!(!link.is_symlink());
    }

    #[test]
    fn a_cut_archive_is_not_taken_for_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = archive(&WHOLE);
        let cut = &whole[..512 * 2 + 100];
        assert!(matches!(unpack(cut, dir.path()), Err(UnpackError::Archive(_))));
    }
}
