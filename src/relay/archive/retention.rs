//! What base backups the archive has, made and half made, and the removal of what is not needed any more.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::choose::{Backups, Unfinished, Unknown, expired};
use super::layout::{Inventory, WAL, partial_object, segment_object};
use super::reserve::remove_folder;
use super::sentinel::{BACKUPS, BackupName, Facts};
use super::storage::{ArchiveUrl, Found, Storage, StorageError};
use crate::pg::wal::WalSegmentSize;

pub(super) async fn look(storage: &Storage) -> Result<Backups, StorageError> {
    let found = storage.list(BACKUPS).await?;
    let mut backups = Backups { unfinished: unfinished(&found), ..Backups::default() };
    for file in &found {
        let Some(name) = BackupName::of_sentinel(&file.name) else { continue };
        let Some(sentinel) = storage.get_document(&file.name).await? else { continue };
        match Facts::parse(name.clone(), &sentinel) {
            Ok(facts) => backups.whole.push(facts),
            Err(error) => backups.unknown.push(Unknown { name, why: error.to_string() }),
        }
    }
    Ok(backups)
}

/// Those that are not understood, and why: all WAL from their begin on is kept for them.
pub async fn unknown_backups(url: &ArchiveUrl) -> Result<Vec<String>, StorageError> {
    let backups = look(&Storage::open(url)?).await?;
    Ok(backups.unknown.iter().map(ToString::to_string).collect())
}

/// The folders without a sentinel.
fn unfinished(found: &[Found]) -> Vec<Unfinished> {
    let mut folders: BTreeMap<BackupName, Unfinished> = BTreeMap::new();
    for file in found {
        let Some(name) = BackupName::of_folder(&file.name) else { continue };
        let folder = folders.entry(name.clone()).or_insert_with(|| Unfinished {
            name: name.clone(),
            is_ours: false,
            touched: DateTime::<Utc>::MIN_UTC,
        });
        folder.is_ours |= file.name == name.reservation();
        folder.touched = folder.touched.max(file.modified.into());
    }
    for name in found.iter().filter_map(|file| BackupName::of_sentinel(&file.name)) {
        folders.remove(&name);
    }
    folders.into_values().collect()
}

/// What is left of the archive's backups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Backups that are gone.
    pub removed: Vec<String>,
    /// Those that are not understood, and why: all WAL from their begin on is kept for them.
    pub unknown: Vec<String>,
}

/// Removes what is too old. With `keep` of `None` only what was never made.
pub(super) async fn retain(
    storage: &Storage,
    keep: Option<usize>,
    size: WalSegmentSize,
    now: DateTime<Utc>,
) -> Result<Retained, StorageError> {
    let backups = look(storage).await?;
    let found = storage.list(WAL).await?;
    let names = found.iter().filter_map(|file| file.name.rsplit('/').next());
    let expired = expired(&backups, keep, &Inventory::read(names, size), size, now);
    for name in &expired.backups {
        condemn(storage, name).await?;
        remove_folder(storage, name).await?;
    }
    for name in &expired.abandoned {
        remove_folder(storage, name).await?;
    }
    for segment in &expired.segments {
        storage.remove(&segment_object(*segment, size)).await?;
    }
    for segment in &expired.partials {
        storage.remove(&partial_object(*segment, size)).await?;
    }
    Ok(Retained {
        removed: expired.backups.iter().map(|name| name.as_str().to_owned()).collect(),
        unknown: backups.unknown.iter().map(ToString::to_string).collect(),
    })
}

/// It counts no more. Interrupted here, what is left of it is known as ours by a reservation, and removed later like what
/// was never made; otherwise it would hold back WAL for ever.
async fn condemn(storage: &Storage, name: &BackupName) -> Result<(), StorageError> {
    match storage.create_document(&name.reservation(), b"to be removed".to_vec()).await {
        // Its maker's is still there.
        Ok(()) | Err(StorageError::Differs { .. }) => storage.remove(&name.sentinel()).await,
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use chrono::{DateTime, Utc};

    use super::{condemn, look, retain, unfinished, unknown_backups};
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::archive::sentinel::BackupName;
    use crate::relay::archive::storage::Found;
    use crate::relay::archive::storage::Storage;

    #[test]
    fn a_folder_without_a_sentinel_is_half_made() {
        let [made, ours, theirs] =
            ["03", "04", "05"].map(|number| format!("base_0000000100000000000000{number}"));
        let file = |name: String, seconds| Found {
            name: format!("basebackups_005/{name}"),
            size: 1,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let found = [
            file(format!("{made}/tar_partitions/part_001.tar.zst"), 1),
            file(format!("{made}_backup_stop_sentinel.json"), 2),
            file(format!("{ours}/tar_partitions/part_001.tar.zst"), 20),
            file(format!("{ours}/reservation.json"), 10),
            file(format!("{theirs}/tar_partitions/part_1.tar.lz4"), 30),
            file("note.txt".to_owned(), 40),
            file("other/note.txt".to_owned(), 40),
        ];
        let told: Vec<(String, bool, i64)> = unfinished(&found)
            .into_iter()
            .map(|folder| (folder.name.as_str().to_owned(), folder.is_ours, folder.touched.timestamp()))
            .collect();
        assert_eq!(told, [(ours, true, 20), (theirs, false, 30)]);
    }

    #[tokio::test]
    async fn who_cleans_up_hears_of_what_is_not_understood() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
        let storage = Storage::make(&url, 3).expect("opens");
        let name = BackupName::new(TimelineId(1), Lsn(0x400_0028), WalSegmentSize::default());
        storage.put_document(&name.sentinel(), b"garbage".to_vec()).await.expect("puts");
        let retained = retain(&storage, Some(1), WalSegmentSize::default(), DateTime::<Utc>::UNIX_EPOCH)
            .await
            .expect("looks");
        assert!(
            retained.removed.is_empty() && retained.unknown[0].starts_with(name.as_str()),
            "{retained:?}"
        );
        assert_eq!(unknown_backups(&url).await.expect("looks"), retained.unknown);
    }

    #[tokio::test]
    async fn a_removal_that_is_interrupted_leaves_what_is_known_as_ours() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
        let storage = Storage::make(&url, 3).expect("opens");
        let name = BackupName::new(TimelineId(1), Lsn(0x400_0028), WalSegmentSize::default());
        for object in [name.part(1), name.sentinel()] {
            storage.put_document(&object, b"x".to_vec()).await.expect("puts");
        }
        // Again, too: the word that it is done may have been lost.
        for _ in 0..2 {
            condemn(&storage, &name).await.expect("condemned");
            let backups = look(&storage).await.expect("lists");
            let left: Vec<_> = backups.unfinished.iter().map(|left| (&left.name, left.is_ours)).collect();
            assert_eq!((left, backups.unknown.len()), (vec![(&name, true)], 0));
        }
    }
}
