//! `BASE_BACKUP`: the command in the grammars of 14 to 18, and what its answer consists of (protocol-replication;
//! basebackup.c, basebackup_copy.c).
//!
//! ```text
//! T D C          where the copy begins: LSN, timeline
//! T D.. C        one row for each tablespace, the data directory's own (no location) among them
//! up to 14:      H d.. c for each of these rows, then H d.. c for the manifest
//! from 15 on:    H d.. c, each d with a type byte: archives and manifest by name
//! T D C          where the copy is consistent
//! C Z
//! ```

use bytes::{Buf, Bytes};

use crate::pg::protocol::Malformed;
use crate::pg::{Lsn, ServerMajor, TimelineId};

/// How archives and manifest are wrapped in CopyData.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each is a COPY of its own.
    Plain,
    /// All are one COPY of [`BackupMessage`]s.
    Typed,
}

impl Framing {
    pub fn of(major: ServerMajor) -> Framing {
        if major >= ServerMajor(15) { Framing::Typed } else { Framing::Plain }
    }
}

/// What a base backup is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// In `backup_label` and in the server's log.
    pub label: String,
    pub checkpoint: Checkpoint,
    pub wal: Wal,
    pub manifest: Manifest,
    pub tablespaces: Tablespaces,
    /// Kilobytes in a second; the server takes 32 to 1048576.
    pub max_rate: Option<u32>,
}

/// Where the copy begins there is a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once.
    Fast,
    /// As `checkpoint_completion_target` says: minutes.
    Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wal {
    /// What makes the copy consistent comes inside the archive.
    Included,
    /// Comes from elsewhere.
    Left,
}

/// The list of all files with their sizes and CRC-32C checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifest {
    Wanted,
    None,
}

/// How archives say where tablespaces were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tablespaces {
    /// As links in `pg_tblspc`.
    Links,
    /// By the file `tablespace_map`, which the server that starts from the copy makes links of.
    Map,
}

impl BaseBackupOptions {
    /// With all that a directory needs to be started from.
    pub fn new(label: impl Into<String>) -> BaseBackupOptions {
        BaseBackupOptions {
            label: label.into(),
            checkpoint: Checkpoint::Fast,
            wal: Wal::Included,
            manifest: Manifest::None,
            tablespaces: Tablespaces::Links,
            max_rate: None,
        }
    }

    /// Never waits for the server's own WAL archive: whoever leaves the WAL has it from somewhere else.
    pub fn command(&self, major: ServerMajor) -> String {
        match Framing::of(major) {
            Framing::Typed => self.parenthesised(),
            Framing::Plain => self.keywords(),
        }
    }

    fn parenthesised(&self) -> String {
        let mut options = vec![
            format!("LABEL {}", literal(&self.label)),
            format!("CHECKPOINT '{}'", if self.checkpoint == Checkpoint::Fast { "fast" } else { "spread" }),
            format!("WAL {}", self.wal == Wal::Included),
            "WAIT false".to_owned(),
            "PROGRESS true".to_owned(),
            format!("MANIFEST '{}'", if self.manifest == Manifest::Wanted { "yes" } else { "no" }),
            format!("TABLESPACE_MAP {}", self.tablespaces == Tablespaces::Map),
            "TARGET 'client'".to_owned(),
        ];
        options.extend(self.max_rate.map(|rate| format!("MAX_RATE {rate}")));
        format!("BASE_BACKUP ({})", options.join(", "))
    }

    fn keywords(&self) -> String {
        let mut words = vec!["BASE_BACKUP".to_owned(), format!("LABEL {}", literal(&self.label))];
        words.push("PROGRESS".to_owned());
        words.extend((self.checkpoint == Checkpoint::Fast).then(|| "FAST".to_owned()));
        words.extend((self.wal == Wal::Included).then(|| "WAL".to_owned()));
        words.push("NOWAIT".to_owned());
        words.extend(self.max_rate.map(|rate| format!("MAX_RATE {rate}")));
        words.extend((self.tablespaces == Tablespaces::Map).then(|| "TABLESPACE_MAP".to_owned()));
        words.push(format!("MANIFEST '{}'", if self.manifest == Manifest::Wanted { "yes" } else { "no" }));
        words.join(" ")
    }
}

/// `repl_scanner.l` knows one escape: the doubled quote.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A tablespace as the second result set lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    pub location: String,
}

/// What the second result set says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupContent {
    /// All but the data directory, in the order of their archives, which come before its own.
    pub tablespaces: Vec<Tablespace>,
    /// An estimate, without WAL.
    pub total_bytes: u64,
}

/// Rows whose columns are text.
pub type Row = Vec<Option<String>>;

/// The one row of the first and of the last result set.
pub fn backup_position(rows: &[Row]) -> Option<(Lsn, TimelineId)> {
    let [row] = rows else { return None };
    let [Some(lsn), Some(timeline)] = row.as_slice() else { return None };
    Some((lsn.parse().ok()?, TimelineId(timeline.parse().ok()?)))
}

pub fn backup_content(rows: &[Row]) -> Option<BackupContent> {
    let mut content = BackupContent::default();
    for row in rows {
        let [oid, location, kilobytes] = row.as_slice() else { return None };
        if let Some(kilobytes) = kilobytes {
            let kilobytes: u64 = kilobytes.parse().ok()?;
            content.total_bytes = content.total_bytes.saturating_add(kilobytes.saturating_mul(1024));
        }
        match (oid, location) {
            (Some(oid), Some(location)) => {
                let tablespace = Tablespace { oid: oid.parse().ok()?, location: location.clone() };
                content.tablespaces.push(tablespace);
            }
            (None, None) => {}
            _ => return None,
        }
    }
    Some(content)
}

/// A CopyData of 15 and later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupMessage {
    /// An archive begins.
    Archive { name: String },
    /// The manifest begins.
    Manifest,
    /// Of what has begun last.
    Data(Bytes),
    /// So many bytes of files are read.
    Progress(u64),
}

impl BackupMessage {
    pub fn decode(mut body: Bytes) -> Result<BackupMessage, Malformed> {
        match body.try_get_u8() {
            Ok(b'd') => Ok(BackupMessage::Data(body)),
            Ok(b'm') => Ok(BackupMessage::Manifest),
            Ok(b'p') => body.try_get_u64().map(BackupMessage::Progress).map_err(|_| Malformed::TRUNCATED),
            // The tablespace's location follows, which is known.
            Ok(b'n') => {
                let end = body.iter().position(|byte| *byte == 0).ok_or(Malformed::STRING)?;
                let name = std::str::from_utf8(&body[..end]).map_err(|_| Malformed::STRING)?;
                Ok(BackupMessage::Archive { name: name.to_owned() })
            }
            Ok(_) => Err(Malformed::TRAILING),
            Err(_) => Err(Malformed::TRUNCATED),
        }
    }
}

/// As 15 and later call the archive of a tablespace, or of the data directory.
pub fn archive_name(tablespace: Option<&Tablespace>) -> String {
    tablespace.map_or_else(|| "base.tar".to_owned(), |tablespace| format!("{}.tar", tablespace.oid))
}

/// The OID of the tablespace whose archive is called so; the data directory's has none.
pub fn archived_tablespace(name: &str) -> Option<u32> {
    name.strip_suffix(".tar")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        BackupContent, BackupMessage, BaseBackupOptions, Checkpoint, Manifest, Tablespace, Tablespaces, Wal,
        archive_name, archived_tablespace, backup_content, backup_position,
    };
    use crate::pg::{Lsn, ServerMajor, TimelineId};

    #[test]
    fn each_version_has_its_grammar() {
        let whole = BaseBackupOptions::new("it's ours");
        let lean = BaseBackupOptions {
            checkpoint: Checkpoint::Spread,
            wal: Wal::Left,
            manifest: Manifest::Wanted,
            tablespaces: Tablespaces::Map,
            max_rate: Some(1024),
            ..BaseBackupOptions::new("x")
        };
        let check = |options: &BaseBackupOptions, major, expected: &str| {
            assert_eq!(options.command(ServerMajor(major)), expected);
        };
        check(&whole, 14, "BASE_BACKUP LABEL 'it''s ours' PROGRESS FAST WAL NOWAIT MANIFEST 'no'");
        check(&lean, 14, "BASE_BACKUP LABEL 'x' PROGRESS NOWAIT MAX_RATE 1024 TABLESPACE_MAP MANIFEST 'yes'");
        for major in [15, 18] {
            check(
                &whole,
                major,
                "BASE_BACKUP (LABEL 'it''s ours', CHECKPOINT 'fast', WAL true, WAIT false, PROGRESS true, \
                 MANIFEST 'no', TABLESPACE_MAP false, TARGET 'client')",
            );
        }
        check(
            &lean,
            17,
            "BASE_BACKUP (LABEL 'x', CHECKPOINT 'spread', WAL false, WAIT false, PROGRESS true, \
             MANIFEST 'yes', TABLESPACE_MAP true, TARGET 'client', MAX_RATE 1024)",
        );
    }

    fn row(columns: &[Option<&str>]) -> Vec<Option<String>> {
        columns.iter().map(|column| column.map(str::to_owned)).collect()
    }

    #[test]
    fn positions() {
        let position = row(&[Some("0/2000028"), Some("3")]);
        assert_eq!(backup_position(&[position]), Some((Lsn(0x200_0028), TimelineId(3))));
        assert_eq!(backup_position(&[]), None);
        assert_eq!(backup_position(&[row(&[Some("0/2000028"), Some("x")])]), None);
        assert_eq!(backup_position(&[row(&[None, None])]), None);
    }

    #[test]
    fn the_data_directory_is_no_tablespace() {
        let own = row(&[None, None, Some("23159")]);
        let other = row(&[Some("16384"), Some("/mnt/fast"), Some("1")]);
        let tablespace = Tablespace { oid: 16384, location: "/mnt/fast".to_owned() };
        assert_eq!(archive_name(Some(&tablespace)), "16384.tar");
        assert_eq!(archive_name(None), "base.tar");
        assert_eq!(archived_tablespace("16384.tar"), Some(16384));
        assert_eq!(archived_tablespace("base.tar"), None);
        assert_eq!(
            backup_content(&[other.clone(), own]),
            Some(BackupContent { tablespaces: vec![tablespace], total_bytes: 23160 * 1024 })
        );
        assert_eq!(backup_content(&[row(&[None, None, None])]), Some(BackupContent::default()));
        assert_eq!(backup_content(&[row(&[Some("x"), Some("/mnt"), None])]), None);
        assert_eq!(backup_content(&[row(&[None])]), None);
    }

    #[test]
    fn typed_messages() {
        let check = |body: &'static [u8], expected| {
            assert_eq!(BackupMessage::decode(Bytes::from_static(body)).ok(), expected, "{body:?}");
        };
        check(b"dabc", Some(BackupMessage::Data(Bytes::from_static(b"abc"))));
        check(b"nbase.tar\0\0", Some(BackupMessage::Archive { name: "base.tar".to_owned() }));
        check(b"m", Some(BackupMessage::Manifest));
        check(b"p\0\0\0\0\0\0\0\x01", Some(BackupMessage::Progress(1)));
        for malformed in [&b""[..], b"x", b"p\0", b"nbase.tar", b"n\xff\0\0"] {
            check(malformed, None);
        }
    }
}
