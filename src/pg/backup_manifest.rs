//! `backup_manifest`: what a base backup consists of (backup-manifest-format.html). PURE.
//!
//! The last line is the SHA-256 of all lines before it, so a manifest that was cut or changed is known. Not here:
//! the files.

use serde::Deserialize;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::SystemIdentifier;

/// A manifest that was read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupManifest {
    /// From version 17 on.
    pub system: Option<SystemIdentifier>,
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory, as bytes: a name need not be UTF-8.
    pub path: Vec<u8>,
    pub size: u64,
    /// `None`: the backup was made without.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    Crc32c,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    #[error("it is not JSON of the documented form")]
    Form(#[from] serde_json::Error),
    #[error("version {0} is not known")]
    Version(u64),
    #[error("it has no checksum in its last line")]
    NoChecksum,
    #[error("its own checksum does not match: it was cut or changed")]
    Checksum,
    #[error("it has a file without a name, or with a malformed name or checksum")]
    File,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<FileEntry>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FileEntry {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

impl BackupManifest {
    pub fn parse(text: &[u8]) -> Result<BackupManifest, InvalidManifest> {
        let document: Document = serde_json::from_slice(text)?;
        if !(1..=2).contains(&document.version) {
            return Err(InvalidManifest::Version(document.version));
        }
        let last_line = b"\n\"Manifest-Checksum\"";
        let at = text.windows(last_line.len()).rposition(|window| window == last_line);
        let before = &text[..=at.ok_or(InvalidManifest::NoChecksum)?];
        if hex(&document.checksum).as_deref() != Some(&Sha256::digest(before)[..]) {
            return Err(InvalidManifest::Checksum);
        }
        let files = document.files.into_iter().map(FileEntry::read).collect::<Option<_>>();
        Ok(BackupManifest {
            system: document.system.map(SystemIdentifier),
            files: files.ok_or(InvalidManifest::File)?,
        })
    }
}

impl FileEntry {
    fn read(self) -> Option<ManifestFile> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(encoded)) => hex(&encoded)?,
            _ => return None,
        };
        let checksum = match (self.algorithm.as_deref(), self.checksum) {
            (None | Some("NONE"), _) => None,
            (Some(algorithm), Some(checksum)) => Some((algorithm_of(algorithm)?, hex(&checksum)?)),
            (Some(_), None) => return None,
        };
        Some(ManifestFile { path, size: self.size, checksum })
    }
}

fn algorithm_of(name: &str) -> Option<ChecksumAlgorithm> {
    Some(match name {
        "CRC32C" => ChecksumAlgorithm::Crc32c,
        "SHA224" => ChecksumAlgorithm::Sha224,
        "SHA256" => ChecksumAlgorithm::Sha256,
        "SHA384" => ChecksumAlgorithm::Sha384,
        "SHA512" => ChecksumAlgorithm::Sha512,
        _ => return None,
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// A checksum in the making.
#[derive(Clone, Debug)]
pub enum Checksum {
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Checksum {
    pub fn new(algorithm: ChecksumAlgorithm) -> Checksum {
        match algorithm {
            ChecksumAlgorithm::Crc32c => Checksum::Crc32c(0),
            ChecksumAlgorithm::Sha224 => Checksum::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Checksum::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Checksum::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => Checksum::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Checksum::Sha224(sha) => sha.update(bytes),
            Checksum::Sha256(sha) => sha.update(bytes),
            Checksum::Sha384(sha) => sha.update(bytes),
            Checksum::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The CRC is written in the server's byte order (`pg_checksum_final`): that of all platforms that have packages.
    pub fn finish(self) -> Vec<u8> {
        match self {
            Checksum::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            Checksum::Sha224(sha) => sha.finalize().to_vec(),
            Checksum::Sha256(sha) => sha.finalize().to_vec(),
            Checksum::Sha384(sha) => sha.finalize().to_vec(),
            Checksum::Sha512(sha) => sha.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::{BackupManifest, Checksum, ChecksumAlgorithm, InvalidManifest, ManifestFile};
    use crate::pg::SystemIdentifier;

    fn signed(body: &str) -> String {
        let sum: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    const BODY: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [\n\
        { \"Path\": \"PG_VERSION\", \"Size\": 9, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"CRC32C\", \
        \"Checksum\": \"839206e3\" },\n{ \"Encoded-Path\": \"62ff\", \"Size\": 0, \"Last-Modified\": \"x\" }\n],\n\
        \"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/28\", \"End-LSN\": \"0/60\" }\n],\n";

    #[test]
    fn a_manifest_is_read() {
        let manifest = BackupManifest::parse(signed(BODY).as_bytes()).expect("well-formed");
        assert_eq!(manifest.system, Some(SystemIdentifier(7)));
        let [version, odd] = &manifest.files[..] else { panic!("{manifest:?}") };
        assert_eq!((&version.path[..], version.size), (&b"PG_VERSION"[..], 9));
        assert_eq!(*odd, ManifestFile { path: b"b\xff".to_vec(), size: 0, checksum: None });
        // The check value of CRC-32C.
        let (algorithm, expected) = version.checksum.clone().expect("a checksum");
        let mut checksum = Checksum::new(algorithm);
        checksum.update(b"1234");
        checksum.update(b"56789");
        assert_eq!(checksum.finish(), expected);
    }

    #[test]
    fn what_was_changed_or_cut_is_known() {
        let whole = signed(BODY);
        let changed = whole.replace("\"Size\": 9", "\"Size\": 8");
        assert!(matches!(BackupManifest::parse(changed.as_bytes()), Err(InvalidManifest::Checksum)));
        let cut = &whole[..whole.len() / 2];
        assert!(matches!(BackupManifest::parse(cut.as_bytes()), Err(InvalidManifest::Form(_))));
        let newer = signed(&BODY.replace("Version\": 2", "Version\": 3"));
        assert!(matches!(BackupManifest::parse(newer.as_bytes()), Err(InvalidManifest::Version(3))));
        let nameless = signed(&BODY.replace("Encoded-Path", "Other"));
        assert!(matches!(BackupManifest::parse(nameless.as_bytes()), Err(InvalidManifest::File)));
    }

    #[test]
    fn every_algorithm_has_its_length() {
        use ChecksumAlgorithm::{Crc32c, Sha224, Sha256, Sha384, Sha512};
        for (algorithm, length) in [(Crc32c, 4), (Sha224, 28), (Sha256, 32), (Sha384, 48), (Sha512, 64)] {
            let mut checksum = Checksum::new(algorithm);
            checksum.update(b"x");
            assert_eq!(checksum.finish().len(), length, "{algorithm:?}");
        }
    }
}
