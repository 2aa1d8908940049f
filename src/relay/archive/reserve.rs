//! One base backup of a name at a time. Backups of a standby begin at its last restartpoint, so two of them may come to
//! the same name, made by two who do not know of each other: the schedule and a person, or two instances.
//!
//! 1. Whoever makes one first puts [`BackupName::reservation`], which is never overwritten: the second one gives way.
//! 2. It is looked at again before the sentinel is put, and before anything is removed: a reservation that is not ours any
//!    more was taken for abandoned.
//! 3. With the sentinel there the name is taken for good, and the reservation is removed.
//!
//! What a killed process leaves keeps its reservation, by which retention knows it as ours. What an instance's schedule
//! has left, its next process removes at once: there is one of it at a time. A person's backup may still be under way.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::choose::Unfinished;
use super::sentinel::BackupName;
use super::storage::{Storage, StorageError};

/// Who wants a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// The instance's own, in turns.
    Schedule,
    /// A person's, or another program's.
    Request,
}

/// Of a reservation's content, who has put it.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Holder {
    instance: String,
    occasion: Occasion,
}

/// Held by whoever makes the backup.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    storage: &'a Storage,
    name: BackupName,
    /// Nobody else's.
    content: Vec<u8>,
}

impl<'a> Reservation<'a> {
    /// `None` when somebody else has made a backup of this name, makes one, or has left one half made.
    pub(super) async fn take(
        storage: &'a Storage,
        name: &BackupName,
        instance: &str,
        occasion: Occasion,
        now: DateTime<Utc>,
    ) -> Result<Option<Reservation<'a>>, StorageError> {
        let token = format!("{:032x}", rand::random::<u128>());
        let since = now.to_rfc3339();
        let content = serde_json::json!(
            { "instance": instance, "occasion": occasion, "since": since, "token": token }
        );
        let content = content.to_string().into_bytes();
        match storage.create_document(&name.reservation(), content.clone()).await {
            Err(StorageError::Differs { .. }) => return Ok(None),
            put => put?,
        }
        let reservation = Reservation { storage, name: name.clone(), content };
        // Only now: whoever had the reservation before us may have put the sentinel meanwhile.
        let there = storage.list(&name.folder()).await?;
        let is_free = there.iter().all(|file| file.name == name.reservation())
            && !storage.exists(&name.sentinel()).await?;
        if is_free {
            return Ok(Some(reservation));
        }
        reservation.release().await?;
        Ok(None)
    }

    pub(super) async fn is_held(&self) -> Result<bool, StorageError> {
        let there = self.storage.get_document(&self.name.reservation()).await?;
        Ok(there.is_some_and(|there| there == self.content))
    }

    pub(super) async fn release(self) -> Result<(), StorageError> {
        self.storage.remove(&self.name.reservation()).await
    }

    /// What was put under it counts for nothing, but it takes room. Where a sentinel is there after all, as when the word of
    /// it got lost, nothing is removed.
    pub(super) async fn give_up(self) -> Result<(), StorageError> {
        if !self.is_held().await? || self.storage.exists(&self.name.sentinel()).await? {
            return Ok(());
        }
        remove_folder(self.storage, &self.name).await
    }
}

/// Removes what the schedule of `instance` has left half made; the names. Nothing of it may be under way.
pub(super) async fn remove_left_by_schedule(
    storage: &Storage,
    unfinished: &[Unfinished],
    instance: &str,
) -> Result<Vec<BackupName>, StorageError> {
    let ours = Holder { instance: instance.to_owned(), occasion: Occasion::Schedule };
    let mut removed = Vec::new();
    for Unfinished { name, .. } in unfinished.iter().filter(|left| left.is_ours) {
        let reservation = storage.get_document(&name.reservation()).await?.unwrap_or_default();
        // Another version's may say less: a day later it is abandoned.
        if serde_json::from_slice::<Holder>(&reservation).is_ok_and(|holder| holder == ours) {
            remove_folder(storage, name).await?;
            removed.push(name.clone());
        }
    }
    Ok(removed)
}

/// The reservation last: interrupted, it is still known whose the rest is.
pub(super) async fn remove_folder(storage: &Storage, name: &BackupName) -> Result<(), StorageError> {
    let reservation = name.reservation();
    for file in storage.list(&name.folder()).await? {
        if file.name != reservation {
            storage.remove(&file.name).await?;
        }
    }
    storage.remove(&reservation).await
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::{Occasion, Reservation, remove_left_by_schedule};
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::archive::retention::look;
    use crate::relay::archive::sentinel::BackupName;
    use crate::relay::archive::storage::{Storage, StorageError};

    async fn take<'a>(
        storage: &'a Storage,
        name: &BackupName,
    ) -> Result<Option<Reservation<'a>>, StorageError> {
        Reservation::take(storage, name, "bw1", Occasion::Request, DateTime::<Utc>::UNIX_EPOCH).await
    }

    #[tokio::test]
    async fn what_an_instances_schedule_has_left_is_removed_by_it_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
        let storage = Storage::make(&url, 3).expect("opens");
        let name = |start| BackupName::new(TimelineId(1), Lsn(start), WalSegmentSize::default());
        let (first, last) = (Lsn(0x400_0028).0, Lsn(0x700_0028).0);
        let names: Vec<BackupName> = (first..=last).step_by(16 << 20).map(name).collect();
        let (schedule, request) = (Occasion::Schedule, Occasion::Request);
        for (name, (instance, occasion)) in
            names.iter().zip([("bw1", schedule), ("bw1", request), ("bw2", schedule)])
        {
            let now = DateTime::<Utc>::UNIX_EPOCH;
            let taken = Reservation::take(&storage, name, instance, occasion, now).await.expect("reachable");
            assert!(taken.is_some());
            storage.put_document(&name.part(1), b"x".to_vec()).await.expect("puts");
        }
        // Another tool's.
        storage.put_document(&names[3].part(1), b"x".to_vec()).await.expect("puts");
        let left = async || look(&storage).await.expect("lists").unfinished;
        let removed = remove_left_by_schedule(&storage, &left().await, "bw1").await.expect("removes");
        assert_eq!(removed, names[..1]);
        let rest: Vec<BackupName> = left().await.into_iter().map(|left| left.name).collect();
        assert_eq!(rest, names[1..]);
    }

    #[tokio::test]
    async fn one_backup_of_a_name_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
        let storage = Storage::make(&url, 3).expect("opens");
        let name = BackupName::new(TimelineId(1), Lsn(0x400_0028), WalSegmentSize::default());
        let put = async |object: &str| storage.put_document(object, b"x".to_vec()).await.expect("puts");
        let is_there = async |object: &str| storage.exists(object).await.expect("looks");

        let first = take(&storage, &name).await.expect("reachable").expect("nobody has it");
        put(&name.part(1)).await;
        assert!(take(&storage, &name).await.expect("reachable").is_none(), "it is being made");
        assert!(first.is_held().await.expect("reachable") && is_there(&name.part(1)).await);
        first.give_up().await.expect("reachable");
        assert_eq!(storage.list(&name.folder()).await.expect("lists"), []);

        // Taken for abandoned, and taken over: what is there now is not its own to remove.
        let late = take(&storage, &name).await.expect("reachable").expect("free again");
        storage.remove(&name.reservation()).await.expect("removes");
        let second = take(&storage, &name).await.expect("reachable").expect("nobody has it");
        put(&name.part(1)).await;
        assert!(!late.is_held().await.expect("reachable"));
        late.give_up().await.expect("reachable");
        assert!(is_there(&name.part(1)).await && is_there(&name.reservation()).await);

        // The sentinel was put, and the answer lost.
        put(&name.sentinel()).await;
        second.give_up().await.expect("reachable");
        assert!(is_there(&name.part(1)).await, "a backup that counts has its parts");
        storage.remove(&name.reservation()).await.expect("removes");
        assert!(take(&storage, &name).await.expect("reachable").is_none(), "it is made");
        assert!(!is_there(&name.reservation()).await);

        // Another tool's, half made.
        storage.remove(&name.sentinel()).await.expect("removes");
        assert!(take(&storage, &name).await.expect("reachable").is_none());
        assert!(is_there(&name.part(1)).await && !is_there(&name.reservation()).await);
    }
}
