//! The relay's own physical replication slots: from where on each follower needs WAL, whether it is connected
//! or not.
//!
//! Persistent slots live in `slots.json` in the store's directory. The file may lag behind the table: an older
//! restart point only keeps more WAL. Creating and dropping is answered once it is in the file.
//!
//! Not here: what is removed. `retention` looks at [`Slots::statuses`].

mod table;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::pg::protocol::replication::SlotLifetime;
use crate::pg::{ErrorFields, Lsn, SlotName, SqlState, TimelineId};

use super::store::{Files, StoreError};
use table::{Advanced, SlotTable};

/// The oldest WAL a slot's follower may ask for again; it will ask from the start of that segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestartPoint {
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
}

/// One slot as people and READ_REPLICATION_SLOT see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotStatus {
    pub(crate) name: SlotName,
    pub(crate) lifetime: SlotLifetime,
    pub(crate) active_pid: Option<u32>,
    /// `None`: nothing is held back until a follower has used the slot.
    pub(crate) restart: Option<RestartPoint>,
    /// The slot holds nothing back any more, since it would have been too much.
    pub(crate) invalidated: Option<Invalidation>,
}

impl SlotStatus {
    pub(crate) fn is_lost(&self) -> bool {
        self.invalidated.is_some()
    }
}

/// `invalidation_reason` of pg_replication_slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Invalidation {
    WalRemoved,
}

/// Whether the store has the WAL that a follower asks for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Available {
    Kept,
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("replication slot \"{0}\" does not exist")]
    Missing(String),
    #[error("replication slot \"{0}\" already exists")]
    Exists(String),
    #[error("replication slot \"{name}\" is active for PID {pid}")]
    Active { name: String, pid: u32 },
    #[error("can no longer access replication slot \"{0}\"")]
    Lost(String),
    #[error("replication slot name \"{0}\" is not valid")]
    InvalidName(String),
    #[error("all replication slots are in use")]
    Full,
}

/// `slots.json` could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotFileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{directory}/{} is not a file of slots: {why}", Slots::FILE_NAME)]
    Content { directory: String, why: String },
    #[error("{directory}/{} names a slot {name:?}, which no slot can be called", Slots::FILE_NAME)]
    Name { directory: String, name: String },
}

/// All slots. One user each at a time.
#[derive(Debug)]
pub(crate) struct Slots {
    files: Files,
    table: Mutex<SlotTable>,
    /// Held while the file is written, so that an older content never replaces a newer one.
    file: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotFile {
    slots: Vec<SavedSlot>,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedSlot {
    pub(crate) name: String,
    pub(crate) restart: Option<RestartPoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invalidated: Option<Invalidation>,
}

impl SlotFileError {
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, SlotFileError::Store(error) if error.is_disk_full())
    }
}

impl SlotError {
    /// As PostgreSQL reports it (slot.c).
    pub(crate) fn to_fields(&self) -> ErrorFields {
        let fields = |code| ErrorFields::error(code, self.to_string());
        match self {
            SlotError::Missing(_) => fields(SqlState::UNDEFINED_OBJECT),
            SlotError::Exists(_) => fields(SqlState::DUPLICATE_OBJECT),
            SlotError::Active { .. } => fields(SqlState::OBJECT_IN_USE),
            SlotError::Lost(_) => fields(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
                .with_detail("This replication slot has been invalidated due to \"wal_removed\"."),
            SlotError::InvalidName(_) => fields(SqlState::INVALID_NAME).with_hint(
                "Replication slot names may only contain lower case letters, numbers, and the underscore character.",
            ),
            SlotError::Full => fields(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
        }
    }
}

impl Slots {
    pub(crate) const FILE_NAME: &str = "slots.json";

    /// What such a file says.
    pub(crate) fn decode(content: &[u8]) -> Result<Vec<SavedSlot>, String> {
        let file: SlotFile = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        Ok(file.slots)
    }

    /// The slots that the directory holds; none when it has no file yet.
    pub(crate) fn open(files: Files) -> Result<Slots, SlotFileError> {
        let mut table = SlotTable::default();
        for saved in read(&files)? {
            let invalid = |_| SlotFileError::Name { directory: files.directory(), name: saved.name.clone() };
            let name = saved.name.parse().map_err(invalid)?;
            table.restore(name, saved.restart, saved.invalidated);
        }
        Ok(Slots { files, table: Mutex::new(table), file: Mutex::new(()) })
    }

    /// The file lags behind what followers have said, and WAL before the store's first segment was removed because no
    /// slot needed it: what a slot holds back begins there at the earliest. Taken at its word, a slot that is nearly
    /// abreast would be lost at the next segment.
    pub(crate) fn hold_from(&self, first: Lsn) {
        self.table.lock().hold_from(first);
    }

    /// The slot of a configured node: made when missing, and given a restart point when it has none.
    pub(crate) fn ensure(&self, name: &SlotName, restart: Option<RestartPoint>) {
        self.table.lock().ensure(name, restart);
    }

    /// Not yet in the file: follow with [`Slots::save`]. Creating one's own temporary slot again does nothing.
    pub(crate) fn create(
        &self,
        name: &str,
        lifetime: SlotLifetime,
        restart: Option<RestartPoint>,
        pid: u32,
    ) -> Result<(), SlotError> {
        self.table.lock().create(name, lifetime, restart, pid)
    }

    /// Not yet in the file: follow with [`Slots::save`].
    pub(crate) fn drop_slot(&self, name: &str, pid: u32) -> Result<(), SlotError> {
        self.table.lock().drop_slot(name, pid)
    }

    /// The slot is `pid`'s until released, and holds WAL back from `start` at least, if that is there.
    pub(crate) fn acquire(
        &self,
        name: &str,
        pid: u32,
        start: RestartPoint,
        available: Available,
    ) -> Result<SlotName, SlotError> {
        self.table.lock().acquire(name, pid, start, available)
    }

    /// The slot holds nothing back any more, unless it needs nothing before `cap` by now; returns what it did. `None`:
    /// it did not.
    pub(crate) fn invalidate(&self, name: &SlotName, cap: Lsn) -> Option<RestartPoint> {
        self.table.lock().invalidate(name, cap)
    }

    pub(crate) fn release(&self, name: &SlotName, pid: u32) {
        self.table.lock().release(name, pid);
    }

    /// The connection of `pid` has ended: its slot is free, its temporary slots are gone.
    pub(crate) fn release_all(&self, pid: u32) {
        self.table.lock().release_all(pid);
    }

    /// The follower has flushed up to here and will not ask for earlier segments again. Whether that is still kept is
    /// asked for a slot that was lost meanwhile.
    pub(crate) fn advance(
        &self,
        name: &SlotName,
        flushed: RestartPoint,
        available: impl FnOnce() -> Available,
    ) {
        let advanced = self.table.lock().advance(name, flushed, available);
        if advanced == Advanced::Regained {
            tracing::info!(
                slot = %name, restart_lsn = %flushed.lsn,
                "replication slot holds WAL back again: its follower has caught up"
            );
        }
    }

    /// As [`Slots::advance`], unless somebody uses it by now.
    pub(crate) fn advance_idle(&self, name: &SlotName, to: RestartPoint) {
        let mut table = self.table.lock();
        if table.status(name).is_some_and(|slot| slot.active_pid.is_none()) {
            table.advance(name, to, || Available::Kept);
        }
    }

    pub(crate) fn status(&self, name: &SlotName) -> Option<SlotStatus> {
        self.table.lock().status(name)
    }

    pub(crate) fn statuses(&self) -> Vec<SlotStatus> {
        self.table.lock().statuses()
    }

    /// Writes the file when it is behind the table; durable on return. Blocks: not for an async task.
    pub(crate) fn save(&self) -> Result<(), SlotFileError> {
        let _writing = self.file.lock();
        let Some(slots) = self.table.lock().take_unsaved() else { return Ok(()) };
        let saved = |slot: SlotStatus| SavedSlot {
            name: slot.name.to_string(),
            restart: slot.restart,
            invalidated: slot.invalidated,
        };
        let content = SlotFile { slots: slots.into_iter().map(saved).collect() };
        let text = serde_json::to_vec_pretty(&content).expect("a struct of plain values is JSON");
        let replaced = self.files.replace(Self::FILE_NAME, &text);
        if replaced.is_err() {
            self.table.lock().still_unsaved();
        }
        Ok(replaced?)
    }
}

fn read(files: &Files) -> Result<Vec<SavedSlot>, SlotFileError> {
    let Some(content) = files.read_whole(Slots::FILE_NAME)? else { return Ok(Vec::new()) };
    Slots::decode(&content).map_err(|why| SlotFileError::Content { directory: files.directory(), why })
}

#[cfg(test)]
mod tests {
    use super::{Files, RestartPoint, SlotFileError, SlotStatus, Slots};
    use crate::pg::protocol::replication::SlotLifetime::{Persistent, Temporary};
    use crate::pg::{Lsn, TimelineId};

    /// As a process opens them that starts.
    fn open(directory: &tempfile::TempDir) -> Result<Slots, SlotFileError> {
        Slots::open(Files::open(directory.path()).expect("nobody else has it"))
    }

    #[test]
    fn persistent_slots_survive_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let restart = RestartPoint { timeline: TimelineId(2), lsn: Lsn(0x300_0028) };
        {
            let slots = open(&directory).expect("no file yet");
            slots.create("kept", Persistent, Some(restart), 1).expect("a new name");
            slots.create("unused", Persistent, None, 1).expect("a new name");
            slots.create("gone", Temporary, Some(restart), 1).expect("a new name");
            slots.create("lost", Persistent, Some(restart), 1).expect("a new name");
            assert_eq!(slots.invalidate(&"lost".parse().expect("a name"), Lsn(u64::MAX)), Some(restart));
            slots.save().expect("a writable directory");
        }
        let slots = open(&directory).expect("its own file");
        let described = |s: SlotStatus| (s.name.to_string(), s.restart, s.is_lost());
        let found: Vec<_> = slots.statuses().into_iter().map(described).collect();
        let expected = [("kept", Some(restart), false), ("lost", None, true), ("unused", None, false)];
        assert_eq!(found, expected.map(|(name, restart, lost)| (name.to_owned(), restart, lost)));
    }

    #[test]
    fn a_slot_whose_file_lags_holds_back_what_there_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let check = |saved, first, expected| {
            let at = |lsn| RestartPoint { timeline: TimelineId(1), lsn: Lsn(lsn) };
            let slots = open(&directory).expect("no file");
            slots.create("one", Persistent, Some(at(saved)), 1).expect("a new name");
            slots.hold_from(first);
            assert_eq!(slots.statuses()[0].restart, Some(at(expected)));
        };
        check(0x200_0028, Lsn(0x800_0000), 0x800_0000);
        check(0x900_0028, Lsn(0x800_0000), 0x900_0028);
        check(0x900_0028, Lsn::INVALID, 0x900_0028);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_table() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("slots.json");
        std::fs::write(&path, b"{\"slots\": [").expect("a writable directory");
        assert!(matches!(open(&directory), Err(SlotFileError::Content { .. })));
        std::fs::write(&path, br#"{"slots": [{"name": "No", "restart": null}]}"#)
            .expect("a writable directory");
        assert!(matches!(open(&directory), Err(SlotFileError::Name { .. })));
    }
}
