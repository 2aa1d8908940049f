//! The relay's own physical replication slots: from where on each follower needs WAL, whether it is connected
//! or not.
//!
//! Persistent slots live in `slots.json` in the store's directory. The file may lag behind the table: an older
//! restart point only keeps more WAL. Creating and dropping is answered once it is in the file.
//!
//! Not here: what is removed. `retention` looks at [`Slots::statuses`].

mod table;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::pg::protocol::replication::SlotLifetime;
use crate::pg::{ErrorFields, Lsn, SlotName, SqlState, TimelineId};

use table::SlotTable;

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
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("replication slot \"{0}\" does not exist")]
    Missing(String),
    #[error("replication slot \"{0}\" already exists")]
    Exists(String),
    #[error("replication slot \"{name}\" is active for PID {pid}")]
    Active { name: String, pid: u32 },
    #[error("replication slot name \"{0}\" is not valid")]
    InvalidName(String),
    #[error("all replication slots are in use")]
    Full,
}

/// `slots.json` could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotFileError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a file of slots", path.display())]
    Content {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} names a slot {name:?}, which no slot can be called", path.display())]
    Name { path: PathBuf, name: String },
    #[error("write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// All slots. One user each at a time.
#[derive(Debug)]
pub(crate) struct Slots {
    path: PathBuf,
    table: Mutex<SlotTable>,
    /// Held while the file is written, so that an older content never replaces a newer one.
    file: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotFile {
    slots: Vec<SavedSlot>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedSlot {
    name: String,
    restart: Option<RestartPoint>,
}

impl SlotError {
    /// As PostgreSQL reports it (slot.c).
    pub(crate) fn to_fields(&self) -> ErrorFields {
        let fields = |code| ErrorFields::error(code, self.to_string());
        match self {
            SlotError::Missing(_) => fields(SqlState::UNDEFINED_OBJECT),
            SlotError::Exists(_) => fields(SqlState::DUPLICATE_OBJECT),
            SlotError::Active { .. } => fields(SqlState::OBJECT_IN_USE),
            SlotError::InvalidName(_) => fields(SqlState::INVALID_NAME).with_hint(
                "Replication slot names may only contain lower case letters, numbers, and the underscore character.",
            ),
            SlotError::Full => fields(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
        }
    }
}

impl Slots {
    const FILE_NAME: &str = "slots.json";

    /// The slots that `directory` holds; none when it has no file yet.
    pub(crate) fn open(directory: &Path) -> Result<Slots, SlotFileError> {
        let path = directory.join(Self::FILE_NAME);
        let mut table = SlotTable::default();
        for saved in read(&path)? {
            let name = saved
                .name
                .parse()
                .map_err(|_| SlotFileError::Name { path: path.clone(), name: saved.name.clone() })?;
            table.restore(name, saved.restart);
        }
        Ok(Slots { path, table: Mutex::new(table), file: Mutex::new(()) })
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

    /// The slot is `pid`'s until released, and holds WAL back from `start` at least.
    pub(crate) fn acquire(&self, name: &str, pid: u32, start: RestartPoint) -> Result<SlotName, SlotError> {
        self.table.lock().acquire(name, pid, start)
    }

    pub(crate) fn release(&self, name: &SlotName, pid: u32) {
        self.table.lock().release(name, pid);
    }

    /// The connection of `pid` has ended: its slot is free, its temporary slots are gone.
    pub(crate) fn release_all(&self, pid: u32) {
        self.table.lock().release_all(pid);
    }

    /// The follower has flushed up to here and will not ask for earlier segments again.
    pub(crate) fn advance(&self, name: &SlotName, flushed: RestartPoint) {
        self.table.lock().advance(name, flushed);
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
        let saved = |slot: SlotStatus| SavedSlot { name: slot.name.to_string(), restart: slot.restart };
        let content = SlotFile { slots: slots.into_iter().map(saved).collect() };
        write_durably(&self.path, &content).map_err(|source| {
            self.table.lock().still_unsaved();
            SlotFileError::Write { path: self.path.clone(), source }
        })
    }
}

fn read(path: &Path) -> Result<Vec<SavedSlot>, SlotFileError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(SlotFileError::Read { path: path.to_owned(), source }),
    };
    let file: SlotFile = serde_json::from_slice(&content)
        .map_err(|source| SlotFileError::Content { path: path.to_owned(), source })?;
    Ok(file.slots)
}

/// A crash leaves the old file or the new one: write aside, fsync, rename, fsync the directory.
fn write_durably(path: &Path, content: &SlotFile) -> io::Result<()> {
    let aside = path.with_extension("json.tmp");
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec_pretty(content)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{RestartPoint, SlotFileError, Slots};
    use crate::pg::protocol::replication::SlotLifetime::{Persistent, Temporary};
    use crate::pg::{Lsn, TimelineId};

    #[test]
    fn persistent_slots_survive_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let restart = RestartPoint { timeline: TimelineId(2), lsn: Lsn(0x300_0028) };
        {
            let slots = Slots::open(directory.path()).expect("no file yet");
            slots.create("kept", Persistent, Some(restart), 1).expect("a new name");
            slots.create("unused", Persistent, None, 1).expect("a new name");
            slots.create("gone", Temporary, Some(restart), 1).expect("a new name");
            slots.save().expect("a writable directory");
        }
        let slots = Slots::open(directory.path()).expect("its own file");
        let found: Vec<_> = slots.statuses().into_iter().map(|s| (s.name.to_string(), s.restart)).collect();
        assert_eq!(found, [("kept".to_owned(), Some(restart)), ("unused".to_owned(), None)]);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_table() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("slots.json");
        std::fs::write(&path, b"{\"slots\": [").expect("a writable directory");
        assert!(matches!(Slots::open(directory.path()), Err(SlotFileError::Content { .. })));
        std::fs::write(&path, br#"{"slots": [{"name": "No", "restart": null}]}"#)
            .expect("a writable directory");
        assert!(matches!(Slots::open(directory.path()), Err(SlotFileError::Name { .. })));
    }
}
