//! Whether an archive can be used, for `bellwether check`: a small object is put, must not be replaced, is read, listed
//! and removed, as WAL and base backups will be.

use std::fs;

use bytes::Bytes;

use super::ArchiveUrl;
use super::storage::{Created, Storage, StorageError};

/// Where nothing else is.
const FOLDER: &str = "bellwether_check";

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{object}, put a moment ago, reads otherwise")]
    Differs { object: String },
    /// Two relays would destroy each other's WAL.
    #[error("{object} was replaced although it was there: conditional puts (If-None-Match) are not honoured")]
    Replaced { object: String },
    #[error("{object}, put a moment ago, is not listed")]
    NotListed { object: String },
    #[error("{object} is still there after its removal")]
    NotRemoved { object: String },
}

/// Leaves nothing behind, as far as that can be done. `unique` tells its object from those of others who probe.
pub async fn probe(url: &ArchiveUrl, unique: &str) -> Result<(), ProbeError> {
    let storage = Storage::open(url)?;
    let object = format!("{FOLDER}/{unique}.zst");
    let used = put_and_read(&storage, &object).await;
    let removed = storage.remove(&object).await;
    if let Some(directory) = url.directory() {
        // Buckets have no folders. Another one who probes may be in it.
        let _ = fs::remove_dir(directory.join(FOLDER));
    }
    used?;
    removed?;
    if storage.exists(&object).await? { Err(ProbeError::NotRemoved { object }) } else { Ok(()) }
}

async fn put_and_read(storage: &Storage, object: &str) -> Result<(), ProbeError> {
    let content = Bytes::from_static(b"bellwether check");
    storage.create(object, content.clone()).await?;
    if storage.get(object).await? != Some(content.clone()) {
        return Err(ProbeError::Differs { object: object.to_owned() });
    }
    match storage.create(object, content).await? {
        Created::Same => {}
        Created::New(_) => return Err(ProbeError::Replaced { object: object.to_owned() }),
    }
    let listed = storage.list(FOLDER).await?;
    if listed.iter().any(|found| found.name == object) {
        Ok(())
    } else {
        Err(ProbeError::NotListed { object: object.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{ProbeError, probe};
    use crate::relay::archive::ArchiveUrl;

    fn url(directory: &Path) -> ArchiveUrl {
        format!("file://{}", directory.display()).parse().expect("a URL")
    }

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        probe(&url(directory.path()), "bw1").await.expect("it can be used");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = probe(&url(&directory.path().join("nowhere")), "bw1").await;
        assert!(matches!(missing, Err(ProbeError::Storage(_))), "{missing:?}");
        fs::write(directory.path().join("file"), "").expect("written");
        let file = probe(&url(&directory.path().join("file")), "bw1").await;
        assert!(matches!(file, Err(ProbeError::Storage(_))), "{file:?}");
        // Somebody else's object under the name.
        fs::create_dir(directory.path().join("bellwether_check")).expect("made");
        fs::write(directory.path().join("bellwether_check/bw1.zst"), "x").expect("written");
        let taken = probe(&url(directory.path()), "bw1").await;
        assert!(matches!(taken, Err(ProbeError::Storage(_))), "{taken:?}");
    }
}
