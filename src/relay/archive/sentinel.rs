//! What is told of a base backup in the archive: its names, and the documents that WAL-G's `backup-fetch`,
//! `backup-list` and `delete` read (backup_sentinel_dto.go). PURE.
//!
//! ```text
//! basebackups_005/base_000000010000000000000004/tar_partitions/part_001.tar.zst    the data directory, in parts
//!                                              /tar_partitions/pg_control.tar.zst  to be unpacked last
//!                                              /metadata.json
//!                                              /files_metadata.json
//!                                              /reservation.json                  ours, while it is being made
//! basebackups_005/base_000000010000000000000004_backup_stop_sentinel.json          put last: the backup is whole
//! ```
//!
//! The files of a tablespace are in the parts as `pg_tblspc/OID/...`, and `Spec` tells where it was
//! (tablespace_spec.go); so WAL-G's own streaming backups have it.
//!
//! The files are not listed one by one (`FilesMetadataDisabled`, WAL-G's `--without-files-metadata`): the list serves
//! WAL-G's incremental backups and partial restores, and grows beyond memory with the cluster. Its `backup-fetch` then
//! unpacks every part (`GetFilesToUnwrap`, backup.go); versions that do not know the word find an empty list in
//! `files_metadata.json`, which means the same to them.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::pg::protocol::replication::base_backup::Tablespace;
use crate::pg::wal::{SegmentFile, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// Below the archive's own prefix.
pub(super) const BACKUPS: &str = "basebackups_005";
/// `utility.SentinelSuffix`.
const SENTINEL: &str = "_backup_stop_sentinel.json";
/// `MetadataDatetimeFormat`: what strptime calls the format of the times.
const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S.%fZ";
/// Of the sentinel; it brings the fields of `metadata.json` along.
const VERSION: u32 = 2;

/// A backup's name: `base_` and the segment in which it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BackupName(String);

impl BackupName {
    pub(super) fn new(timeline: TimelineId, start: Lsn, size: WalSegmentSize) -> BackupName {
        let segment = SegmentFile { timeline, number: size.segment(start) };
        BackupName(format!("base_{}", segment.name(size)))
    }

    /// Of a sentinel's object below [`BACKUPS`]; what other tools append to the segment is part of it.
    pub(super) fn of_sentinel(object: &str) -> Option<BackupName> {
        let name = object.rsplit('/').next()?.strip_suffix(SENTINEL)?;
        let digits = name.strip_prefix("base_")?.get(..24)?;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| BackupName(name.to_owned()))
    }

    /// Of an object in a backup's folder.
    pub(super) fn of_folder(object: &str) -> Option<BackupName> {
        let mut parts = object.strip_prefix(BACKUPS)?.strip_prefix('/')?.split('/');
        let (folder, _object) = (parts.next()?, parts.next()?);
        BackupName::of_sentinel(&format!("{folder}{SENTINEL}"))
    }

    /// In which the backup starts.
    pub(super) fn segment(&self, size: WalSegmentSize) -> Option<SegmentFile> {
        SegmentFile::parse(self.0.get(5..29)?, size)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits of the segment.
    pub(super) fn timeline(&self) -> Option<TimelineId> {
        u32::from_str_radix(self.0.get(5..13)?, 16).ok().map(TimelineId)
    }

    pub(super) fn sentinel(&self) -> String {
        format!("{BACKUPS}/{}{SENTINEL}", self.0)
    }

    /// Of everything but the sentinel.
    pub(super) fn folder(&self) -> String {
        format!("{BACKUPS}/{}", self.0)
    }

    pub(super) fn reservation(&self) -> String {
        format!("{}/reservation.json", self.folder())
    }

    pub(super) fn metadata(&self) -> String {
        format!("{}/metadata.json", self.folder())
    }

    pub(super) fn files_metadata(&self) -> String {
        format!("{}/files_metadata.json", self.folder())
    }

    pub(super) fn parts(&self) -> String {
        format!("{}/tar_partitions", self.folder())
    }

    /// From 1.
    pub(super) fn part(&self, number: u32) -> String {
        format!("{}/part_{number:03}.tar.zst", self.parts())
    }

    pub(super) fn pg_control(&self) -> String {
        format!("{}/pg_control.tar.zst", self.parts())
    }
}

/// A backup that is whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) name: BackupName,
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    /// Consistent once WAL up to here is replayed.
    pub(super) finish: Lsn,
    pub(super) started_at: DateTime<Utc>,
    pub(super) finished_at: DateTime<Utc>,
    /// `server_version_num`.
    pub(super) version: u32,
    pub(super) system: Option<SystemIdentifier>,
    pub(super) uncompressed_bytes: u64,
    /// Of all parts but `pg_control`'s.
    pub(super) compressed_bytes: u64,
    /// How many these are; not every backup tells.
    pub(super) parts: Option<u32>,
    /// The server's own, where it could be asked for.
    pub(super) data_dir: String,
    /// Those that are not in the data directory.
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) maker: Maker,
}

/// Who made it, and so who may remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    Us { segment_size: WalSegmentSize },
    AnotherTool,
}

/// `BackupSentinelDtoV2`.
#[derive(Debug, Serialize, Deserialize)]
struct Sentinel {
    #[serde(rename = "LSN")]
    start: u64,
    #[serde(rename = "FinishLSN")]
    finish: u64,
    #[serde(rename = "PgVersion")]
    version: u32,
    #[serde(rename = "SystemIdentifier")]
    system: Option<u64>,
    #[serde(rename = "UncompressedSize")]
    uncompressed: u64,
    #[serde(rename = "CompressedSize")]
    compressed: u64,
    #[serde(rename = "DeltaFrom", default, skip_serializing_if = "Option::is_none")]
    delta_from: Option<String>,
    /// `spec` is WAL-E's.
    #[serde(rename = "Spec", alias = "spec", default, skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
    #[serde(rename = "UserData", default)]
    user_data: Option<serde_json::Value>,
    #[serde(rename = "FilesMetadataDisabled", default)]
    files_metadata_disabled: bool,
    #[serde(rename = "Version", default)]
    format: u32,
    #[serde(rename = "StartTime", default)]
    start_time: Option<String>,
    #[serde(rename = "FinishTime", default)]
    finish_time: Option<String>,
    #[serde(rename = "DateFmt", default)]
    date_format: String,
    #[serde(rename = "Hostname", default)]
    hostname: String,
    #[serde(rename = "DataDir", default)]
    data_dir: String,
    #[serde(rename = "IsPermanent", default)]
    is_permanent: bool,
}

/// `TablespaceSpec`: the tablespaces' names, which are their OIDs, and beside these two fields one for each name.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    #[serde(default)]
    base_prefix: String,
    #[serde(default)]
    tablespaces: Option<Vec<String>>,
    #[serde(flatten)]
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Place {
    #[serde(rename = "loc")]
    location: String,
    link: String,
}

impl Spec {
    fn of(tablespaces: &[Tablespace], data_dir: &str) -> Option<Spec> {
        let place = |tablespace: &Tablespace| {
            let link = format!("pg_tblspc/{}", tablespace.oid);
            (tablespace.oid.to_string(), Place { location: tablespace.location.clone(), link })
        };
        (!tablespaces.is_empty()).then(|| Spec {
            base_prefix: data_dir.to_owned(),
            tablespaces: Some(tablespaces.iter().map(|tablespace| tablespace.oid.to_string()).collect()),
            places: tablespaces.iter().map(place).collect(),
        })
    }

    fn tablespaces(&self) -> Result<Vec<Tablespace>, SentinelError> {
        let named = self.tablespaces.iter().flatten().map(|name| {
            let tablespace = || {
                let location = self.places.get(name)?.location.clone();
                Some(Tablespace { oid: name.parse().ok()?, location })
            };
            tablespace().ok_or_else(|| SentinelError::Tablespace { name: name.clone() })
        });
        named.collect()
    }
}

/// `ExtendedMetadataDto`.
#[derive(Debug, Serialize)]
struct Metadata<'a> {
    start_time: &'a str,
    finish_time: &'a str,
    date_fmt: &'a str,
    hostname: &'a str,
    data_dir: &'a str,
    pg_version: u32,
    start_lsn: u64,
    finish_lsn: u64,
    is_permanent: bool,
    system_identifier: Option<u64>,
    uncompressed_size: u64,
    compressed_size: u64,
    user_data: &'a Option<serde_json::Value>,
}

/// Ours, in `UserData`.
#[derive(Debug, Serialize, Deserialize)]
struct UserData {
    bellwether: Ours,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ours {
    wal_segment_size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<u32>,
}

/// The documents of a backup of ours.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) sentinel: Vec<u8>,
    pub(super) metadata: Vec<u8>,
    pub(super) files_metadata: Vec<u8>,
}

/// A sentinel that is not understood.
#[derive(Debug, thiserror::Error)]
pub enum SentinelError {
    #[error("it is not the JSON of a sentinel")]
    Json(#[from] serde_json::Error),
    #[error("it is an incremental backup of WAL-G, which only WAL-G restores")]
    Incremental,
    #[error("it does not tell when it was made")]
    Time,
    #[error("it does not tell where tablespace {name} was")]
    Tablespace { name: String },
}

impl Facts {
    pub(super) fn documents(&self, hostname: &str) -> Documents {
        let ours = match self.maker {
            Maker::Us { segment_size } => Some(UserData {
                bellwether: Ours { wal_segment_size: segment_size.bytes(), parts: self.parts },
            }),
            Maker::AnotherTool => None,
        };
        let user_data = ours.map(|ours| serde_json::to_value(ours).expect("plain values"));
        let time = |time: &DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Micros, true);
        let sentinel = Sentinel {
            start: self.start.0,
            finish: self.finish.0,
            version: self.version,
            system: self.system.map(|system| system.0),
            uncompressed: self.uncompressed_bytes,
            compressed: self.compressed_bytes,
            delta_from: None,
            spec: Spec::of(&self.tablespaces, &self.data_dir),
            user_data,
            files_metadata_disabled: true,
            format: VERSION,
            start_time: Some(time(&self.started_at)),
            finish_time: Some(time(&self.finished_at)),
            date_format: TIME_FORMAT.to_owned(),
            hostname: hostname.to_owned(),
            data_dir: self.data_dir.clone(),
            is_permanent: false,
        };
        let metadata = Metadata {
            start_time: sentinel.start_time.as_deref().unwrap_or_default(),
            finish_time: sentinel.finish_time.as_deref().unwrap_or_default(),
            date_fmt: &sentinel.date_format,
            hostname,
            data_dir: &self.data_dir,
            pg_version: self.version,
            start_lsn: sentinel.start,
            finish_lsn: sentinel.finish,
            is_permanent: false,
            system_identifier: sentinel.system,
            uncompressed_size: sentinel.uncompressed,
            compressed_size: sentinel.compressed,
            user_data: &sentinel.user_data,
        };
        let json = "a struct of plain values is JSON";
        Documents {
            sentinel: serde_json::to_vec(&sentinel).expect(json),
            metadata: serde_json::to_vec(&metadata).expect(json),
            files_metadata: b"{}".to_vec(),
        }
    }

    /// From the sentinel of `name`; WAL-G's own are understood, too.
    pub(super) fn parse(name: BackupName, sentinel: &[u8]) -> Result<Facts, SentinelError> {
        let sentinel: Sentinel = serde_json::from_slice(sentinel)?;
        if sentinel.delta_from.is_some() {
            return Err(SentinelError::Incremental);
        }
        let time = |text: &Option<String>| {
            let parsed = text.as_deref().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
            parsed.map(|time| time.to_utc()).ok_or(SentinelError::Time)
        };
        let tablespaces = sentinel.spec.as_ref().map_or_else(|| Ok(Vec::new()), Spec::tablespaces)?;
        let ours = sentinel.user_data.and_then(|data| serde_json::from_value::<UserData>(data).ok());
        let ours = ours.map(|ours| ours.bellwether);
        let segment_size = ours.as_ref().and_then(|ours| WalSegmentSize::new(ours.wal_segment_size).ok());
        Ok(Facts {
            timeline: name.timeline().unwrap_or_default(),
            name,
            start: Lsn(sentinel.start),
            finish: Lsn(sentinel.finish),
            started_at: time(&sentinel.start_time)?,
            finished_at: time(&sentinel.finish_time)?,
            version: sentinel.version,
            system: sentinel.system.map(SystemIdentifier),
            uncompressed_bytes: sentinel.uncompressed,
            compressed_bytes: sentinel.compressed,
            parts: ours.and_then(|ours| ours.parts),
            data_dir: sentinel.data_dir,
            tablespaces,
            maker: segment_size.map_or(Maker::AnotherTool, |segment_size| Maker::Us { segment_size }),
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::{BackupName, Facts, Maker, SENTINEL, SentinelError};
    use crate::pg::protocol::replication::base_backup::Tablespace;
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::{Lsn, SystemIdentifier, TimelineId};

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    const DATA_DIR: &str = "/var/lib/postgresql/15/main";

    fn facts() -> Facts {
        let size = WalSegmentSize::default();
        Facts {
            name: BackupName::new(TimelineId(2), Lsn(0x400_0028), size),
            timeline: TimelineId(2),
            start: Lsn(0x400_0028),
            finish: Lsn(0x400_0138),
            started_at: time("2026-11-21T10:00:00.250Z"),
            finished_at: time("2026-11-21T10:00:07Z"),
            version: 150_020,
            system: Some(SystemIdentifier(7_661_000_000_000_000_123)),
            uncompressed_bytes: 31_000_000,
            compressed_bytes: 4_000_000,
            parts: Some(3),
            data_dir: DATA_DIR.to_owned(),
            tablespaces: Vec::new(),
            maker: Maker::Us { segment_size: size },
        }
    }

    #[test]
    fn names_are_wal_gs() {
        let name = facts().name;
        let base = "basebackups_005/base_000000020000000000000004";
        assert_eq!(name.as_str(), "base_000000020000000000000004");
        assert_eq!(name.sentinel(), format!("{base}_backup_stop_sentinel.json"));
        assert_eq!(name.metadata(), format!("{base}/metadata.json"));
        assert_eq!(name.files_metadata(), format!("{base}/files_metadata.json"));
        assert_eq!(name.part(1), format!("{base}/tar_partitions/part_001.tar.zst"));
        assert_eq!(name.pg_control(), format!("{base}/tar_partitions/pg_control.tar.zst"));
        assert_eq!(name.timeline(), Some(TimelineId(2)));
        let segment = name.segment(WalSegmentSize::default()).expect("a segment");
        assert_eq!((segment.timeline, segment.number.0), (TimelineId(2), 4));
        assert_eq!(BackupName::of_folder(&name.part(1)), Some(name.clone()));
        assert_eq!(BackupName::of_folder(&name.sentinel()), None);
        let delta = BackupName::of_sentinel(&format!("{base}_D_000000020000000000000001{SENTINEL}"));
        assert_eq!(delta.and_then(|name| name.segment(WalSegmentSize::default())), Some(segment));
        let of = |object: &str| BackupName::of_sentinel(object).map(|name| name.as_str().to_owned());
        assert_eq!(of(&facts().name.sentinel()).as_deref(), Some("base_000000020000000000000004"));
        for object in [
            "basebackups_005/base_0_backup_stop_sentinel.json",
            "x_backup_stop_sentinel.json",
            "base_000000020000000000000004",
        ] {
            assert_eq!(of(object), None, "{object}");
        }
    }

    /// The field names of WAL-G's structs, with the types that its JSON has.
    #[test]
    fn documents_are_wal_gs() {
        let documents = facts().documents("db1");
        let sentinel: serde_json::Value = serde_json::from_slice(&documents.sentinel).expect("JSON");
        let user_data = serde_json::json!({"bellwether": {"wal_segment_size": 16 << 20, "parts": 3}});
        assert_eq!(
            sentinel,
            serde_json::json!({
                "LSN": 0x400_0028, "FinishLSN": 0x400_0138, "PgVersion": 150_020,
                "SystemIdentifier": 7_661_000_000_000_000_123_u64,
                "UncompressedSize": 31_000_000, "CompressedSize": 4_000_000,
                "UserData": user_data, "FilesMetadataDisabled": true,
                "Version": 2, "StartTime": "2026-11-21T10:00:00.250000Z",
                "FinishTime": "2026-11-21T10:00:07.000000Z", "DateFmt": "%Y-%m-%dT%H:%M:%S.%fZ",
                "Hostname": "db1", "DataDir": DATA_DIR, "IsPermanent": false,
            })
        );
        let metadata: serde_json::Value = serde_json::from_slice(&documents.metadata).expect("JSON");
        assert_eq!(
            metadata,
            serde_json::json!({
                "start_time": "2026-11-21T10:00:00.250000Z", "finish_time": "2026-11-21T10:00:07.000000Z",
                "date_fmt": "%Y-%m-%dT%H:%M:%S.%fZ", "hostname": "db1", "data_dir": DATA_DIR, "pg_version": 150_020,
                "start_lsn": 0x400_0028, "finish_lsn": 0x400_0138, "is_permanent": false,
                "system_identifier": 7_661_000_000_000_000_123_u64,
                "uncompressed_size": 31_000_000, "compressed_size": 4_000_000, "user_data": user_data,
            })
        );
        assert_eq!(documents.files_metadata, b"{}");
    }

    /// As `TablespaceSpec.MarshalJSON` writes it.
    #[test]
    fn tablespaces_are_told_as_wal_g_tells_them() {
        let tablespace = |oid, location: &str| Tablespace { oid, location: location.to_owned() };
        let facts =
            Facts { tablespaces: vec![tablespace(16384, "/fast"), tablespace(9, "/slow")], ..facts() };
        let documents = facts.documents("db1");
        let sentinel: serde_json::Value = serde_json::from_slice(&documents.sentinel).expect("JSON");
        let expected = serde_json::json!({
            "base_prefix": DATA_DIR, "tablespaces": ["16384", "9"],
            "16384": {"loc": "/fast", "link": "pg_tblspc/16384"},
            "9": {"loc": "/slow", "link": "pg_tblspc/9"},
        });
        assert_eq!(sentinel["Spec"], expected);
        assert_eq!(Facts::parse(facts.name.clone(), &documents.sentinel).expect("ours"), facts);
        let text = String::from_utf8(documents.sentinel).expect("text");
        let wal_es = text.replace("\"Spec\"", "\"spec\"");
        assert_eq!(Facts::parse(facts.name.clone(), wal_es.as_bytes()).expect("theirs"), facts);
        let without = text.replace("\"9\":", "\"8\":");
        let error = Facts::parse(facts.name.clone(), without.as_bytes()).expect_err("unknown");
        assert!(matches!(error, SentinelError::Tablespace { name } if name == "9"));
    }

    #[test]
    fn what_was_written_is_read_and_so_is_wal_gs() {
        let documents = facts().documents("db1");
        assert_eq!(Facts::parse(facts().name, &documents.sentinel).expect("ours"), facts());
        let theirs = r#"{"LSN":67108904,"PgVersion":150020,"FinishLSN":67109176,"SystemIdentifier":7661000000000000123,
            "UncompressedSize":31000000,"CompressedSize":4000000,
            "Spec":{"base_prefix":"/var/lib/postgresql/15/main","tablespaces":[]},"ChkpNum":null,
            "Version":2,"StartTime":"2026-11-21T10:00:00.25Z","FinishTime":"2026-11-21T10:00:07Z",
            "DateFmt":"%Y-%m-%dT%H:%M:%S.%fZ","Hostname":"db1","DataDir":"/var/lib/postgresql/15/main","IsPermanent":false}"#;
        let expected = Facts { maker: Maker::AnotherTool, parts: None, ..facts() };
        assert_eq!(Facts::parse(facts().name, theirs.as_bytes()).expect("theirs"), expected);
        let incremental = theirs.replacen('{', r#"{"DeltaFrom":"base_000000010000000000000002","#, 1);
        assert!(matches!(
            Facts::parse(facts().name, incremental.as_bytes()),
            Err(SentinelError::Incremental)
        ));
        assert!(matches!(Facts::parse(facts().name, b"{}"), Err(SentinelError::Json(_))));
    }
}
