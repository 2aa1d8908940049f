//! The journal in a file: the state before it is acted on, and the elections that were.
//!
//! Two files, `state` and `state.history`, each a line with a checksum and then JSON that a person can read. Each
//! is replaced as a whole by a durable rename: written beside, synced, renamed, the directory synced. So a
//! crash leaves the old one or the new one. A damaged one is an error, never an empty one: it may be the only
//! trace of who is primary.
//!

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failover::decide::State;
use crate::failover::error::JournalError;
use crate::topology::Election;

const MAGIC: &str = "bellwether 1 crc32c=";

#[derive(Clone, Debug)]
pub struct FileJournal {
    path: PathBuf,
}

impl FileJournal {
    pub fn new(path: PathBuf) -> FileJournal {
        FileJournal { path }
    }

    /// `None`: nothing was ever put.
    pub fn load(&self) -> Result<Option<State>, JournalError> {
        read(&self.path)
    }

    /// Durable when it returns. With [`JournalError::Unwritten`] what was there before is, and it may be tried again.
    pub fn put(&self, state: &State) -> Result<(), JournalError> {
        write(&self.path, state)
    }

    /// Oldest first.
    pub fn history(&self) -> Result<Vec<Election>, JournalError> {
        Ok(read(&self.history_path())?.unwrap_or_default())
    }

    pub fn put_history(&self, history: &[Election]) -> Result<(), JournalError> {
        write(&self.history_path(), &history)
    }

    fn history_path(&self) -> PathBuf {
        beside(&self.path, ".history")
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, JournalError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Io { action: "read", path: path.to_owned(), source }),
    };
    let damaged = |what: String| JournalError::Damaged { path: path.to_owned(), what };
    let (head, body) = text.split_once('\n').ok_or_else(|| damaged("it has no first line".to_owned()))?;
    let stored = head.strip_prefix(MAGIC).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let stored = stored.ok_or_else(|| damaged(format!("it does not begin with {MAGIC:?} and a checksum")))?;
    if stored != crc32c::crc32c(body.as_bytes()) {
        return Err(damaged("the checksum does not match".to_owned()));
    }
    serde_json::from_str(body).map(Some).map_err(|error| damaged(error.to_string()))
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), JournalError> {
    let encode = |source| JournalError::Encode { path: path.to_owned(), source };
    let body = serde_json::to_string_pretty(value).map_err(encode)?;
    let text = format!("{MAGIC}{:08x}\n{body}", crc32c::crc32c(body.as_bytes()));
    let new = beside(path, ".new");
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let at = |action, path: &Path| {
        let path = path.to_owned();
        move |source| JournalError::Io { action, path, source }
    };
    let stays = |action| {
        let (path, new) = (path.to_owned(), new.clone());
        move |source| JournalError::Unwritten { path, action, new, source }
    };
    let mut file = File::create(&new).map_err(stays("create"))?;
    file.write_all(text.as_bytes()).map_err(stays("write"))?;
    file.sync_all().map_err(stays("sync"))?;
    fs::rename(&new, path).map_err(stays("rename"))?;
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(at("sync directory", directory))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::{FileJournal, JournalError};
    use crate::failover::decide::State;
    use crate::topology::{Durability, Term};

    #[test]
    fn what_was_put_is_read_back_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let journal = FileJournal::new(path.clone());
        assert_eq!(journal.load().unwrap(), None);
        for term in [1, 2] {
            let state = State { term: Term(term), ..State::bootstrapping(Durability::Quorum, 7) };
            journal.put(&state).unwrap();
            assert_eq!(journal.load().unwrap(), Some(state));
        }

        std::fs::create_dir(dir.path().join("state.new")).unwrap();
        let failed = journal.put(&State::bootstrapping(Durability::Async, 8));
        assert!(matches!(failed, Err(JournalError::Unwritten { .. })), "{failed:?}");
        assert_eq!(journal.load().unwrap().map(|state| state.term), Some(Term(2)));

        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in
            [text.replace("\"term\": 2", "\"term\": 1"), text[..text.len() - 2].to_owned(), String::new()]
        {
            assert_ne!(damaged, text);
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(journal.load(), Err(JournalError::Damaged { .. })));
        }
    }
}
