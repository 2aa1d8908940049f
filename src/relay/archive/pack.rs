//! A base backup's tar streams into the parts that the archive keeps. Blocking: it runs on a thread of its own, between
//! two bounded channels.
//!
//! Each part is a tar file of whole members, compressed by itself, so that parts can be unpacked in any order.
//! `pg_control` has one of its own, to be unpacked last: a directory without it is taken for no server's. The files of
//! a tablespace are named as they are seen from the data directory.

use std::io::{self, Read, Write};
use std::path::Path;

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
const LINKS: &str = "pg_tblspc";

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

/// A tar stream that the server sends.
#[derive(Debug)]
pub(super) struct Incoming {
    /// `None`: of the data directory, the last one.
    pub(super) tablespace: Option<u32>,
    pub(super) chunks: mpsc::Receiver<Chunk>,
}

pub(super) fn pack(
    mut archives: mpsc::Receiver<Incoming>,
    pieces: mpsc::Sender<Piece>,
    level: i32,
    part_bytes: Option<u64>,
) -> Result<Packed, PackError> {
    let part_bytes = part_bytes.unwrap_or(PART_BYTES);
    let mut packer = Packer { pieces, level, part_bytes, part: None, in_part: 0, bytes: 0 };
    let mut control = None;
    while let Some(Incoming { tablespace, chunks }) = archives.blocking_recv() {
        match tablespace {
            Some(oid) => packer.tablespace(oid, chunks)?,
            None => control = Some(packer.data_directory(chunks)?),
        }
    }
    packer.end_part().map_err(PackError::Write)?;
    let Control { file: control_file, part: control_part } = control.ok_or(missing(CONTROL_FILE))?;
    Ok(Packed { bytes: packer.bytes, control_file, control_part })
}

fn missing(missing: &'static str) -> PackError {
    PackError::Incomplete { missing }
}

/// Whatever follows the end mark, and with it the proof that nothing was cut off.
fn drain(archive: tar::Archive<ChunkReader>) -> Result<(), PackError> {
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop).map_err(PackError::Read)
}

/// `pg_control`, and the same as a part.
struct Control {
    file: Vec<u8>,
    part: Vec<u8>,
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

type Part = tar::Builder<zstd::Encoder<'static, Pieces>>;

struct Packer {
    pieces: mpsc::Sender<Piece>,
    level: i32,
    part_bytes: u64,
    part: Option<Part>,
    in_part: u64,
    bytes: u64,
}

impl Packer {
    fn tablespace(&mut self, oid: u32, chunks: mpsc::Receiver<Chunk>) -> Result<(), PackError> {
        let below = Path::new(LINKS).join(oid.to_string());
        let mut archive = tar::Archive::new(ChunkReader::new(chunks));
        for entry in archive.entries().map_err(PackError::Read)? {
            let mut entry = entry.map_err(PackError::Read)?;
            let name = entry.path().map_err(PackError::Read)?.into_owned();
            let name = below.join(name.strip_prefix(".").unwrap_or(&name));
            self.member(&mut entry, Some(&name)).map_err(PackError::Write)?;
        }
        drain(archive)
    }

    fn data_directory(&mut self, chunks: mpsc::Receiver<Chunk>) -> Result<Control, PackError> {
        let mut archive = tar::Archive::new(ChunkReader::new(chunks));
        let mut control = None;
        let mut has_label = false;
        for entry in archive.entries().map_err(PackError::Read)? {
            let mut entry = entry.map_err(PackError::Read)?;
            let path = entry.path().map_err(PackError::Read)?.into_owned();
            let path = path.strip_prefix(".").unwrap_or(&path);
            if path.as_os_str() == CONTROL_FILE {
                let mut file = Vec::new();
                entry.by_ref().take(MAX_CONTROL).read_to_end(&mut file).map_err(PackError::Read)?;
                let part = alone(entry.header(), &file, self.level).map_err(PackError::Write)?;
                control = Some(Control { file, part });
                continue;
            }
            has_label |= path.as_os_str() == LABEL_FILE;
            self.member(&mut entry, None).map_err(PackError::Write)?;
        }
        drain(archive)?;
        let control = control.ok_or(missing(CONTROL_FILE))?;
        if has_label { Ok(control) } else { Err(missing(LABEL_FILE)) }
    }

    /// To the part that is being made, under its own name or another.
    fn member(&mut self, entry: &mut tar::Entry<'_, impl Read>, name: Option<&Path>) -> io::Result<()> {
        let size = entry.size();
        if self.in_part > 0 && self.in_part + size > self.part_bytes {
            self.end_part()?;
        }
        let mut header = entry.header().clone();
        let part = self.part()?;
        match name {
            Some(name) => part.append_data(&mut header, name, entry)?,
            None => part.append(&header, entry)?,
        }
        self.in_part += size;
        self.bytes += size;
        Ok(())
    }

    fn part(&mut self) -> io::Result<&mut Part> {
        let part = match self.part.take() {
            Some(part) => part,
            None => {
                let pieces = Pieces { to: self.pieces.clone(), current: Vec::with_capacity(PIECE) };
                tar::Builder::new(encoder(pieces, self.level)?)
            }
        };
        Ok(self.part.insert(part))
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

    use super::{Incoming, PackError, Packed, Piece, pack};
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
        packed_all(vec![(None, chunks)], part_bytes)
    }

    fn packed_all(
        archives: Vec<(Option<u32>, Vec<Chunk>)>,
        part_bytes: u64,
    ) -> Result<(Packed, Vec<Vec<u8>>), PackError> {
        let (announce, archives_in) = mpsc::channel(archives.len().max(1));
        for (tablespace, sent) in archives {
            let (feed, chunks) = mpsc::channel(sent.len().max(1));
            announce.blocking_send(Incoming { tablespace, chunks }).expect("room");
            for chunk in sent {
                feed.blocking_send(chunk).expect("room");
            }
        }
        drop(announce);
        let (pieces, mut made) = mpsc::channel(1000);
        let packed = pack(archives_in, pieces, 1, Some(part_bytes))?;
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
    fn tablespaces_are_named_as_the_data_directory_sees_them() {
        let long = format!("PG_15_202209061/{}", "x".repeat(95));
        let fast = tar_of(&[("PG_15_202209061/5/16385", 3000), (&long, 10)]);
        let base = tar_of(&[("backup_label", 200), ("tablespace_map", 20), ("global/pg_control", 8192)]);
        let archives = vec![(Some(16384), chunks(&fast)), (None, chunks(&base))];
        let (packed, parts) = packed_all(archives, 10_000).expect("packs");
        let names: Vec<String> = parts.iter().flat_map(|part| members(part).into_keys()).collect();
        let (short, long) = ("pg_tblspc/16384/PG_15_202209061/5/16385", format!("pg_tblspc/16384/{long}"));
        assert_eq!(names, ["backup_label", short, &*long, "tablespace_map"]);
        assert_eq!(members(&parts[0])[short], vec![23; 3000]);
        assert_eq!(packed.bytes, 3230);

        let mut cut = chunks(&fast);
        cut.pop();
        assert!(matches!(packed_all(vec![(Some(16384), cut)], 1000), Err(PackError::Read(_))));
        let alone = packed_all(vec![(Some(16384), chunks(&fast))], 1000);
        assert!(matches!(alone, Err(PackError::Incomplete { .. })), "the data directory is missing");
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
