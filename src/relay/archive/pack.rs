//! A base backup's tar stream into the parts that the archive keeps. Blocking: it runs on a thread of its own, between
//! two bounded channels.
//!
//! Each part is a tar file of whole members, compressed by itself, so that parts can be unpacked in any order.
//! `pg_control` has one of its own, to be unpacked last: a directory without it is taken for no server's.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::net::{Chunk, ChunkReader};

/// Members' bytes in one part, about; `WALG_TAR_SIZE_THRESHOLD`'s default.
const PART_BYTES: u64 = (1 << 30) - 1;
/// Compressed bytes handed over at a time. S3 takes no smaller pieces but for the last.
const PIECE: usize = 8 << 20;
/// Larger than any `pg_control` (`PG_CONTROL_FILE_SIZE`: 8 kB).
const MAX_CONTROL: u64 = 1 << 20;

const CONTROL_FILE: &str = "global/pg_control";
const LABEL_FILE: &str = "backup_label";

/// What comes out, of the part that is being made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    EndOfPart,
}

/// What is left when all parts are handed over.
#[derive(Debug)]
pub(super) struct Packed {
    /// Of all members.
    pub(super) bytes: u64,
    pub(super) control_file: Vec<u8>,
    /// The same as a compressed tar file.
    pub(super) control_part: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("read the base backup's archive")]
    Read(#[source] io::Error),
    #[error("compress the base backup")]
    Write(#[source] io::Error),
    #[error("the base backup ended early: it holds no {missing}")]
    Incomplete { missing: &'static str },
}

pub(super) fn pack(
    chunks: mpsc::Receiver<Chunk>,
    pieces: mpsc::Sender<Piece>,
    level: i32,
    part_bytes: Option<u64>,
) -> Result<Packed, PackError> {
    let part_bytes = part_bytes.unwrap_or(PART_BYTES);
    let mut archive = tar::Archive::new(ChunkReader::new(chunks));
    let mut packer = Packer { pieces, level, part: None, in_part: 0, bytes: 0 };
    let mut control_file = Vec::new();
    let mut control_part = None;
    let mut has_label = false;
    for entry in archive.entries().map_err(PackError::Read)? {
        let mut entry = entry.map_err(PackError::Read)?;
        let path = entry.path().map_err(PackError::Read)?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        if path.as_os_str() == CONTROL_FILE {
            entry.by_ref().take(MAX_CONTROL).read_to_end(&mut control_file).map_err(PackError::Read)?;
            control_part = Some(alone(entry.header(), &control_file, level).map_err(PackError::Write)?);
            continue;
        }
        has_label |= path.as_os_str() == LABEL_FILE;
        let size = entry.size();
        if packer.in_part > 0 && packer.in_part + size > part_bytes {
            packer.end_part().map_err(PackError::Write)?;
        }
        packer.member(&mut entry, size).map_err(PackError::Write)?;
    }
    packer.end_part().map_err(PackError::Write)?;
    // Whatever follows the end mark, and with it the proof that nothing was cut off.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(PackError::Read)?;
    let missing = |missing| PackError::Incomplete { missing };
    let control_part = control_part.ok_or(missing(CONTROL_FILE))?;
    if !has_label {
        return Err(missing(LABEL_FILE));
    }
    Ok(Packed { bytes: packer.bytes, control_file, control_part })
}

fn alone(header: &tar::Header, content: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut part = tar::Builder::new(encoder(Vec::new(), level)?);
    part.append(header, content)?;
    part.into_inner()?.finish()
}

fn encoder<W: Write>(to: W, level: i32) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(to, level)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

struct Packer {
    pieces: mpsc::Sender<Piece>,
    level: i32,
    part: Option<tar::Builder<zstd::Encoder<'static, Pieces>>>,
    in_part: u64,
    bytes: u64,
}

impl Packer {
    fn member(&mut self, entry: &mut tar::Entry<'_, impl Read>, size: u64) -> io::Result<()> {
        if self.part.is_none() {
            let pieces = Pieces { to: self.pieces.clone(), current: Vec::with_capacity(PIECE) };
            self.part = Some(tar::Builder::new(encoder(pieces, self.level)?));
        }
        let header = entry.header().clone();
        if let Some(part) = &mut self.part {
            part.append(&header, entry)?;
        }
        self.in_part += size;
        self.bytes += size;
        Ok(())
    }

    fn end_part(&mut self) -> io::Result<()> {
        let Some(part) = self.part.take() else { return Ok(()) };
        part.into_inner()?.finish()?.end()?;
        self.in_part = 0;
        Ok(())
    }
}

/// Collects what is compressed.
struct Pieces {
    to: mpsc::Sender<Piece>,
    current: Vec<u8>,
}

impl Pieces {
    fn hand_over(&self, piece: Piece) -> io::Result<()> {
        self.to.blocking_send(piece).map_err(|_| io::Error::other("the upload has ended"))
    }

    fn end(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.current);
        if !rest.is_empty() {
            self.hand_over(Piece::Data(rest.into()))?;
        }
        self.hand_over(Piece::EndOfPart)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.current.len());
        self.current.extend_from_slice(&bytes[..taken]);
        if self.current.len() == PIECE {
            let piece = std::mem::replace(&mut self.current, Vec::with_capacity(PIECE));
            self.hand_over(Piece::Data(piece.into()))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::{PackError, Packed, Piece, pack};
    use crate::net::Chunk;

    fn tar_of(members: &[(&str, usize)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, len) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(*len as u64);
            header.set_mode(0o600);
            header.set_entry_type(tar::EntryType::Regular);
            builder.append_data(&mut header, name, &vec![name.len() as u8; *len][..]).expect("appends");
        }
        builder.into_inner().expect("a tar file")
    }

    /// The parts of what comes in as `chunks`.
    fn packed(chunks: Vec<Chunk>, part_bytes: u64) -> Result<(Packed, Vec<Vec<u8>>), PackError> {
        let (feed, chunks_in) = mpsc::channel(chunks.len().max(1));
        for chunk in chunks {
            feed.blocking_send(chunk).expect("room");
        }
        drop(feed);
        let (pieces, mut made) = mpsc::channel(1000);
        let packed = pack(chunks_in, pieces, 1, Some(part_bytes))?;
        let mut parts = vec![Vec::new()];
        while let Some(piece) = made.blocking_recv() {
            match piece {
                Piece::Data(bytes) => parts.last_mut().expect("one").extend_from_slice(&bytes),
                Piece::EndOfPart => parts.push(Vec::new()),
            }
        }
        assert_eq!(parts.pop(), Some(Vec::new()), "the last part is ended");
        Ok((packed, parts))
    }

    fn members(part: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(zstd::Decoder::new(part).expect("zstd"));
        let entries = archive.entries().expect("a tar file");
        let read = entries.map(|entry| {
            let mut entry = entry.expect("a member");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            (entry.path().expect("a name").display().to_string(), content)
        });
        read.collect()
    }

    fn chunks(tar: &[u8]) -> Vec<Chunk> {
        let data = tar.chunks(777).map(|chunk| Chunk::Data(Bytes::copy_from_slice(chunk)));
        data.chain([Chunk::End]).collect()
    }

    #[test]
    fn parts_hold_whole_members_and_pg_control_is_alone() {
        let names = [("backup_label", 200), ("base/1/1", 9000), ("base/1/22", 4000), ("base/5/333", 5000)];
        let all: Vec<_> = names.into_iter().chain([("global/pg_control", 8192)]).collect();
        let (packed, parts) = packed(chunks(&tar_of(&all)), 10_000).expect("packs");
        let of: Vec<Vec<String>> = parts.iter().map(|part| members(part).into_keys().collect()).collect();
        assert_eq!(of, [vec!["backup_label", "base/1/1"], vec!["base/1/22", "base/5/333"]]);
        assert_eq!(members(&parts[1])["base/5/333"], vec![10; 5000]);
        assert_eq!(packed.bytes, 18_200);
        assert_eq!(packed.control_file, vec![17; 8192]);
        assert_eq!(members(&packed.control_part)["global/pg_control"], packed.control_file);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let whole = tar_of(&[("backup_label", 200), ("global/pg_control", 8192)]);
        let mut cut = chunks(&whole);
        cut.pop();
        assert!(matches!(packed(cut, 1000), Err(PackError::Read(_))));
        let without = tar_of(&[("backup_label", 200)]);
        assert!(matches!(
            packed(chunks(&without), 1000),
            Err(PackError::Incomplete { missing: "global/pg_control" })
        ));
        let without = tar_of(&[("global/pg_control", 200)]);
        assert!(matches!(
            packed(chunks(&without), 1000),
            Err(PackError::Incomplete { missing: "backup_label" })
        ));
    }
}
