//! Where the archive lies: a directory, or a bucket of S3, Google Cloud Storage or Azure, by its URL.
//!
//! Credentials, region and endpoint of a bucket come from the environment, as the crate `object_store` reads it
//! (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, ...). Objects are
//! compressed with zstd, with its checksum over the content; a directory's files are synced before they count.
//!
//! Nothing is ever overwritten but what is put as replaceable: [`Storage::create`] compares with what is there.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Error as StoreError, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};

/// The client tries again by itself for so long; then the caller decides. Its own limits hold for one request (5 s to
/// connect, 30 s in all, `AWS_TIMEOUT` and the like).
const RETRY_LIMIT: Duration = Duration::from_secs(5);
const RETRIES: usize = 2;

/// Of a decompressed object that is read whole: the largest segment.
const MAX_OBJECT: u64 = 1 << 30;

/// Where an archive is: `file:///directory`, `s3://bucket/prefix`, `gs://...`, `az://container/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveUrl {
    text: String,
    location: Location,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    Directory(PathBuf),
    Bucket { service: Service, name: String, prefix: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    S3,
    Google,
    Azure,
}

impl ArchiveUrl {
    /// `None`: a bucket.
    pub fn directory(&self) -> Option<&FilePath> {
        match &self.location {
            Location::Directory(directory) => Some(directory),
            Location::Bucket { .. } => None,
        }
    }
}

impl std::str::FromStr for ArchiveUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ArchiveUrl, String> {
        let expected = || {
            "file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix is expected"
                .to_owned()
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let service = match scheme {
            "file" => {
                let directory = PathBuf::from(rest);
                let location = directory.is_absolute().then_some(Location::Directory(directory));
                return location
                    .map(|location| ArchiveUrl { text: text.to_owned(), location })
                    .ok_or_else(expected);
            }
            "s3" => Service::S3,
            "gs" => Service::Google,
            "az" => Service::Azure,
            _ => return Err(expected()),
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(expected());
        }
        Path::parse(prefix.trim_matches('/')).map_err(|error| error.to_string())?;
        let location =
            Location::Bucket { service, name: name.to_owned(), prefix: prefix.trim_matches('/').to_owned() };
        Ok(ArchiveUrl { text: text.to_owned(), location })
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why the archive could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("make the archive's directory {}", directory.display())]
    Directory {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("open the archive {url}")]
    Open {
        url: String,
        #[source]
        source: Told,
    },
    #[error("{operation} {object} of the archive")]
    Access {
        operation: &'static str,
        object: String,
        #[source]
        source: Told,
    },
    /// It has an object of this name with another content: somebody else archives to the same place.
    #[error("the archive has another {object} than the one to be put")]
    Differs { object: String },
    #[error("{object} of the archive is corrupt: it does not decompress")]
    Corrupt {
        object: String,
        #[source]
        source: io::Error,
    },
    #[error("compress {object}")]
    Compress {
        object: String,
        #[source]
        source: io::Error,
    },
    #[error("{object} of the archive is larger than any file of WAL")]
    TooLarge { object: String },
    #[error("the thread that works on {object} has ended")]
    Thread { object: String },
}

/// An error of the client library. It prints its own causes, so it has none here.
#[derive(Debug)]
pub struct Told(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Told {}

impl StorageError {
    fn access(operation: &'static str, object: &str) -> impl FnOnce(StoreError) -> StorageError {
        let object = object.to_owned();
        move |error| StorageError::Access { operation, object, source: Told(Box::new(error)) }
    }

    /// Whether the archive itself is at fault, so that asking again changes nothing.
    pub(crate) fn is_corruption(&self) -> bool {
        matches!(
            self,
            StorageError::Corrupt { .. } | StorageError::TooLarge { .. } | StorageError::Differs { .. }
        )
    }
}

/// What became of an object that must not be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// So many bytes after compression.
    New(u64),
    /// It was there with the same content.
    Same,
}

/// A file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Below the archive's own prefix.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

/// An open archive. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    level: i32,
}

impl Storage {
    /// To put things there, compressed at zstd's `level`. A directory that is missing is made; a bucket must be there.
    pub(super) fn make(url: &ArchiveUrl, level: i32) -> Result<Storage, StorageError> {
        if let Location::Directory(directory) = &url.location {
            make_directory(directory)
                .map_err(|source| StorageError::Directory { directory: directory.clone(), source })?;
        }
        Ok(Storage { level, ..Storage::open(url)? })
    }

    /// One that is there.
    pub(super) fn open(url: &ArchiveUrl) -> Result<Storage, StorageError> {
        let failed =
            |error: StoreError| StorageError::Open { url: url.text.clone(), source: Told(Box::new(error)) };
        let (store, prefix): (Arc<dyn ObjectStore>, &str) = match &url.location {
            Location::Directory(directory) => {
                let files = LocalFileSystem::new_with_prefix(directory).map_err(failed)?;
                (Arc::new(files.with_fsync(true)), "")
            }
            Location::Bucket { service, name, prefix } => {
                (bucket(*service, name).map_err(failed)?, prefix.as_str())
            }
        };
        let prefix = Path::parse(prefix).map_err(|error| failed(error.into()))?;
        Ok(Storage { store, prefix, level: zstd::DEFAULT_COMPRESSION_LEVEL })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), Path::join)
    }

    /// Everything below `folder`.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Found>, StorageError> {
        let found = self.store.list(Some(&self.path(folder))).map_ok(|meta| Found {
            name: self.below_prefix(&meta.location),
            size: meta.size,
            modified: meta.last_modified.into(),
        });
        found.try_collect().await.map_err(StorageError::access("list", folder))
    }

    fn below_prefix(&self, location: &Path) -> String {
        match location.prefix_match(&self.prefix) {
            Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"),
            None => location.to_string(),
        }
    }

    /// Puts what is final. It is never overwritten: what is there already must have the same content.
    pub(super) async fn create(&self, name: &str, content: Bytes) -> Result<Created, StorageError> {
        let compressed = self.compress(name, content.clone()).await?;
        let len = compressed.len() as u64;
        match self.put(name, compressed, PutMode::Create).await {
            Ok(()) => Ok(Created::New(len)),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                let there = self.get(name).await?;
                if there.is_some_and(|there| there == content) {
                    Ok(Created::Same)
                } else {
                    Err(StorageError::Differs { object: name.to_owned() })
                }
            }
            Err(error) => Err(StorageError::access("put", name)(error)),
        }
    }

    /// Puts what grows. Returns the bytes after compression.
    pub(super) async fn replace(&self, name: &str, content: Bytes) -> Result<u64, StorageError> {
        let compressed = self.compress(name, content).await?;
        let len = compressed.len() as u64;
        self.put(name, compressed, PutMode::Overwrite).await.map_err(StorageError::access("put", name))?;
        Ok(len)
    }

    async fn put(&self, name: &str, content: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store.put_opts(&self.path(name), PutPayload::from(content), options).await.map(drop)
    }

    /// The decompressed content; `None` when there is no such object.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        let compressed = match self.store.get(&self.path(name)).await {
            Ok(found) => found.bytes().await.map_err(StorageError::access("get", name))?,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(StorageError::access("get", name)(error)),
        };
        let object = name.to_owned();
        let decompress = move || decompress(&object, &compressed);
        let thread = || StorageError::Thread { object: name.to_owned() };
        tokio::task::spawn_blocking(decompress).await.map_err(|_| thread())?.map(Some)
    }

    /// Puts a document as it is.
    pub(super) async fn put_document(&self, name: &str, content: Vec<u8>) -> Result<(), StorageError> {
        self.put(name, content.into(), PutMode::Overwrite).await.map_err(StorageError::access("put", name))
    }

    /// Puts a document that is never overwritten, as it is: what is there already must be the same.
    pub(super) async fn create_document(&self, name: &str, content: Vec<u8>) -> Result<(), StorageError> {
        let content = Bytes::from(content);
        match self.put(name, content.clone(), PutMode::Create).await {
            Ok(()) => Ok(()),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                let there = self.get_document(name).await?;
                let same = there.is_some_and(|there| there == content);
                if same { Ok(()) } else { Err(StorageError::Differs { object: name.to_owned() }) }
            }
            Err(error) => Err(StorageError::access("put", name)(error)),
        }
    }

    /// Of a document, as it is. `None` when there is no such object.
    pub(super) async fn get_document(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(StorageError::access("get", name)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(StorageError::access("get", name)(error)),
        }
    }

    pub(super) async fn exists(&self, name: &str) -> Result<bool, StorageError> {
        match self.store.head(&self.path(name)).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(StorageError::access("look for", name)(error)),
        }
    }

    /// Begins an object that comes in pieces. It is there when it is finished, whole.
    pub(super) async fn upload(&self, name: &str) -> Result<Upload, StorageError> {
        let upload = self.store.put_multipart(&self.path(name)).await;
        let upload = upload.map_err(StorageError::access("begin", name))?;
        Ok(Upload { name: name.to_owned(), upload })
    }

    /// Bytes of an object as it is stored; `range` is within it.
    pub(super) async fn range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.store.get_range(&self.path(name), range).await.map_err(StorageError::access("get", name))
    }

    /// Removes what may be missing already.
    pub(super) async fn remove(&self, name: &str) -> Result<(), StorageError> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(StorageError::access("remove", name)(error)),
        }
    }

    async fn compress(&self, name: &str, content: Bytes) -> Result<Bytes, StorageError> {
        let level = self.level;
        let compress = move || compress(&content, level);
        let compressed = tokio::task::spawn_blocking(compress).await;
        let compressed = compressed.map_err(|_| StorageError::Thread { object: name.to_owned() })?;
        compressed
            .map(Bytes::from)
            .map_err(|source| StorageError::Compress { object: name.to_owned(), source })
    }
}

/// An object on its way into the archive.
#[derive(Debug)]
pub(super) struct Upload {
    name: String,
    upload: Box<dyn MultipartUpload>,
}

impl Upload {
    pub(super) async fn put(&mut self, piece: Bytes) -> Result<(), StorageError> {
        let put = self.upload.put_part(PutPayload::from(piece)).await;
        put.map_err(StorageError::access("put a part of", &self.name))
    }

    pub(super) async fn finish(mut self) -> Result<(), StorageError> {
        self.upload.complete().await.map(drop).map_err(StorageError::access("finish", &self.name))
    }

    /// What was put of it is given up, as far as the archive can be reached.
    pub(super) async fn abandon(mut self) {
        let _ = self.upload.abort().await;
    }
}

/// WAL holds everybody's data: only its owner may enter.
fn make_directory(directory: &FilePath) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn bucket(service: Service, name: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // The client's TLS asks for the process's provider; ours is the only one that is built in.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
    Ok(match service {
        Service::S3 => {
            Arc::new(AmazonS3Builder::from_env().with_bucket_name(name).with_retry(retry).build()?)
        }
        Service::Google => {
            Arc::new(GoogleCloudStorageBuilder::from_env().with_bucket_name(name).with_retry(retry).build()?)
        }
        Service::Azure => {
            Arc::new(MicrosoftAzureBuilder::from_env().with_container_name(name).with_retry(retry).build()?)
        }
    })
}

fn compress(content: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::with_capacity(content.len() / 4), level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(content.len() as u64))?;
    io::Write::write_all(&mut encoder, content)?;
    encoder.finish()
}

fn decompress(object: &str, compressed: &[u8]) -> Result<Bytes, StorageError> {
    let corrupt = |source| StorageError::Corrupt { object: object.to_owned(), source };
    let decoder = zstd::Decoder::with_buffer(compressed).map_err(corrupt)?;
    let mut content = Vec::new();
    decoder.take(MAX_OBJECT + 1).read_to_end(&mut content).map_err(corrupt)?;
    if content.len() as u64 > MAX_OBJECT {
        return Err(StorageError::TooLarge { object: object.to_owned() });
    }
    Ok(Bytes::from(content))
}
