//! A disk in memory, for tests: it keeps what processes see apart from what is on the platter, its power can be cut
//! before any operation, it can be full, and a sync can fail.
//!
//! What is not synced when the power fails may be there or not, and in any order: each sector of a file may be of any
//! age since the file's last sync, one may be half written, the file may be as short as it was, and of the changes
//! to the directory any may be missing while later ones are there. A rename is done or not, nothing between. That is
//! more than file systems do (they keep an order among renames), and all that POSIX promises.
//!
//! After a failed sync what was not synced is lost although it can still be read, as with Linux (fsyncgate).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

/// Disks write sectors whole, but for the one that is being written when the power fails.
const SECTOR: u64 = 512;
const PAGE: usize = 4096;

/// Cheap to clone: all clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Platter {
    state: Arc<Mutex<State>>,
}

/// Gives a number from 0 to the argument, which is left out.
pub(crate) type Chance<'a> = &'a mut dyn FnMut(u64) -> u64;

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<FileId, File>,
    /// Of a directory within, and `DIRECTORY/NAME` of what is in it.
    names: BTreeMap<String, FileId>,
    /// What a power cut would leave of the names, and what has happened to them since.
    kept_names: BTreeMap<String, FileId>,
    changes: Vec<NameChange>,
    operations: u64,
    /// The power fails with this operation.
    cut_at: Option<u64>,
    /// Bytes that can still be allocated; `None`: any number.
    room: Option<u64>,
    /// Whether something was refused for lack of it.
    refused: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NextSync {
    #[default]
    Works,
    Fails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileId(usize);

#[derive(Clone, Debug, Default)]
struct File {
    seen: Content,
    kept: Content,
    /// Since the last sync.
    writes: Vec<Write>,
    next_sync: NextSync,
}

#[derive(Clone, Debug)]
struct Write {
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Made { name: String, file: FileId },
    Renamed { from: String, to: String, file: FileId },
    Removed { name: String },
}

/// Pages that are not there are zeros.
#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Platter {
    /// The power fails with the `operation`th from now on (1: the next): it may still be done in part, all later
    /// ones fail.
    pub(crate) fn cut_at(&self, operation: u64) {
        let mut state = self.state.lock();
        state.cut_at = Some(state.operations + operation);
    }

    pub(crate) fn do_not_cut(&self) {
        self.state.lock().cut_at = None;
    }

    /// Whether the power has failed.
    pub(crate) fn is_off(&self) -> bool {
        let state = self.state.lock();
        state.cut_at.is_some_and(|at| state.operations >= at)
    }

    /// Of those that change something.
    pub(crate) fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// So many bytes more can be allocated.
    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        self.state.lock().room = bytes;
    }

    /// Whether there was too little room for something.
    pub(crate) fn refused(&self) -> bool {
        self.state.lock().refused
    }

    /// The next sync of the file fails.
    pub(crate) fn fail_next_sync(&self, name: &str) {
        let mut state = self.state.lock();
        let file = state.names[name];
        state.file(file).next_sync = NextSync::Fails;
    }

    /// What processes see of the file.
    pub(crate) fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let content = &state.files[state.names.get(name)?].seen;
        Some(content.read(0, usize::try_from(content.len).expect("a file in memory")))
    }

    /// Puts a file there, durably.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state.lock();
        let mut content = Content::default();
        content.write(0, bytes);
        let id = FileId(state.files.len());
        state.files.insert(id, File::whole(content));
        state.names.insert(name.to_owned(), id);
        state.kept_names.insert(name.to_owned(), id);
    }

    /// The disk as it is when the power is back.
    pub(crate) fn after_power_cut(&self, chance: Chance<'_>) -> Platter {
        let state = self.state.lock();
        let mut names = state.kept_names.clone();
        let fate = Fate::choose(chance, state.changes.len());
        for (index, change) in state.changes.iter().enumerate() {
            if fate.keeps(chance, index) {
                change.apply(&mut names);
            }
        }
        let all = names.clone();
        names.retain(|name, _| within(name).is_none_or(|directory| all.contains_key(directory)));
        let alive: BTreeSet<FileId> = names.values().copied().collect();
        let mut files = BTreeMap::new();
        for (id, file) in state.files.iter().filter(|(id, _)| alive.contains(id)) {
            let content = file.after_power_cut(chance);
            files.insert(*id, File::whole(content));
        }
        // Numbers are given by count.
        let next = state.files.len();
        files.extend((0..next).map(FileId).filter(|id| !alive.contains(id)).map(|id| (id, File::default())));
        let state = State { files, kept_names: names.clone(), names, room: state.room, ..State::default() };
        Platter { state: Arc::new(Mutex::new(state)) }
    }

    /// `done` also takes place in part when the power fails with it.
    fn operate<T>(&self, done: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        let off = || io::Error::other("the power is off");
        if state.cut_at.is_some_and(|at| state.operations >= at) {
            return Err(off());
        }
        state.operations += 1;
        let result = done(&mut state)?;
        if state.cut_at == Some(state.operations) { Err(off()) } else { Ok(result) }
    }

    fn opened(&self, file: FileId) -> Box<dyn DiskFile> {
        Box::new(Open { disk: self.clone(), file })
    }
}

impl Disk for Platter {
    fn directory(&self) -> String {
        "memory".to_owned()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        Ok(state.names.keys().filter(|name| within(name).is_none()).cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.state.lock().names.get(name).copied();
        file.map(|file| self.opened(file)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file that is there is replaced by an empty one: nothing here truncates what it still needs.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.operate(|state| {
            let file = FileId(state.files.len());
            state.files.insert(file, File::default());
            state.change(NameChange::Made { name: name.to_owned(), file });
            Ok(self.opened(file))
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|state| {
            let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            state.frees(to);
            state.change(NameChange::Renamed { from: from.to_owned(), to: to.to_owned(), file });
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate(|state| {
            state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            state.frees(name);
            state.change(NameChange::Removed { name: name.to_owned() });
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(|state| {
            state.keep(None);
            Ok(())
        })
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.operate(|state| {
            if !state.names.contains_key(name) {
                let file = FileId(state.files.len());
                state.files.insert(file, File::default());
                state.change(NameChange::Made { name: name.to_owned(), file });
            }
            Ok(())
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|state| {
            let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            if !state.names.contains_key(to) {
                state.change(NameChange::Made { name: to.to_owned(), file });
            }
            Ok(())
        })
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.operate(|state| {
            state.keep(Some(name));
            Ok(())
        })
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        self.operate(|state| {
            let is_in = |other: &&String| *other == name || within(other) == Some(name);
            let gone: Vec<String> = state.names.keys().filter(is_in).cloned().collect();
            for name in gone {
                state.frees(&name);
                state.change(NameChange::Removed { name });
            }
            Ok(())
        })
    }

    fn modified(&self, _name: &str) -> io::Result<SystemTime> {
        Ok(SystemTime::UNIX_EPOCH)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state.lock().room.unwrap_or(u64::MAX))
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    /// The changes in one directory are durable.
    fn keep(&mut self, directory: Option<&str>) {
        let here = |change: &mut NameChange| within(change.name()) == directory;
        for change in self.changes.extract_if(.., here) {
            change.apply(&mut self.kept_names);
        }
    }

    /// The name is about to be another file's or nobody's.
    fn frees(&mut self, name: &str) {
        let Some(file) = self.names.get(name) else { return };
        let is_last = self.names.values().filter(|other| *other == file).count() == 1;
        let len = if is_last { self.files[file].seen.len } else { 0 };
        self.room = self.room.map(|room| room + len);
    }

    fn file(&mut self, id: FileId) -> &mut File {
        self.files.get_mut(&id).expect("files are never forgotten")
    }
}

/// The directory that the name is in; `None`: it is none within.
fn within(name: &str) -> Option<&str> {
    name.split_once('/').map(|(directory, _)| directory)
}

impl NameChange {
    fn name(&self) -> &str {
        match self {
            NameChange::Made { name, .. } | NameChange::Removed { name } => name,
            NameChange::Renamed { to, .. } => to,
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        match self {
            NameChange::Made { name, file } => drop(names.insert(name.clone(), *file)),
            NameChange::Renamed { from, to, file } => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
            NameChange::Removed { name } => drop(names.remove(name)),
        }
    }
}

#[derive(Debug)]
struct Open {
    disk: Platter,
    file: FileId,
}

impl Open {
    fn sync(&self) -> io::Result<()> {
        self.disk.operate(|state| {
            let file = state.file(self.file);
            let works = std::mem::take(&mut file.next_sync) == NextSync::Works;
            file.writes.clear();
            if !works {
                return Err(io::Error::other("the platter is scratched"));
            }
            file.kept = file.seen.clone();
            Ok(())
        })
    }
}

impl DiskFile for Open {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state.lock();
        let bytes = state.file(self.file).seen.read(offset, buffer.len());
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        Ok(self.disk.state.lock().file(self.file).seen.read(offset, len))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.operate(|state| {
            let file = state.files.get_mut(&self.file).expect("files are never forgotten");
            let grows = (offset + bytes.len() as u64).saturating_sub(file.seen.len);
            if let Some(room) = &mut state.room {
                let left = room.checked_sub(grows);
                state.refused |= left.is_none();
                *room = left.ok_or(io::ErrorKind::StorageFull)?;
            }
            file.seen.write(offset, bytes);
            file.writes.push(Write { offset, bytes: bytes.to_vec() });
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}

/// Which of a number of things in a row survive.
#[derive(Clone, Copy, Debug)]
enum Fate {
    None,
    All,
    /// Those before.
    First(usize),
    /// Each by itself.
    Any,
}

impl Fate {
    fn choose(chance: Chance<'_>, things: usize) -> Fate {
        match chance(4) {
            0 => Fate::None,
            1 => Fate::All,
            2 => Fate::First(chance(things as u64 + 1) as usize),
            _ => Fate::Any,
        }
    }

    fn keeps(self, chance: Chance<'_>, index: usize) -> bool {
        match self {
            Fate::None => false,
            Fate::All => true,
            Fate::First(number) => index < number,
            Fate::Any => chance(2) == 0,
        }
    }
}

impl File {
    fn whole(content: Content) -> File {
        File { seen: content.clone(), kept: content, ..File::default() }
    }

    fn after_power_cut(&self, chance: Chance<'_>) -> Content {
        let mut content = self.kept.clone();
        let fate = Fate::choose(chance, self.writes.len());
        // How many of the writes to it each sector has seen: they reach the platter one behind the other.
        let mut age: BTreeMap<u64, bool> = BTreeMap::new();
        for (index, write) in self.writes.iter().enumerate() {
            for (sector, range) in write.sectors() {
                let fresh = age.entry(sector).or_insert(true);
                *fresh = *fresh && fate.keeps(chance, index);
                if *fresh {
                    content.write(write.offset + range.start as u64, &write.bytes[range]);
                }
            }
        }
        if let Some(write) = self.writes.last().filter(|_| chance(3) == 0) {
            let torn = chance(write.bytes.len() as u64 + 1) as usize;
            let from = torn - torn.min((write.offset as usize + torn) % SECTOR as usize);
            content.write(write.offset + from as u64, &write.bytes[from..torn]);
        }
        content
    }
}

impl Write {
    /// The sectors that it touches, and what it writes to each.
    fn sectors(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        let (begin, end) = (self.offset, self.offset + self.bytes.len() as u64);
        (begin / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
            let from = (sector * SECTOR).max(begin) - begin;
            let to = ((sector + 1) * SECTOR).min(end) - begin;
            (sector, from as usize..to as usize)
        })
    }
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE - within));
            let is_there = self.pages.contains_key(&page);
            if is_there || now.iter().any(|byte| *byte != 0) {
                let content = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(content)[within..within + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let len = len.min(usize::try_from(self.len.saturating_sub(offset)).expect("a file in memory"));
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let now = (len - done).min(PAGE - within);
            if let Some(content) = self.pages.get(&page) {
                bytes[done..done + now].copy_from_slice(&content[within..within + now]);
            }
            done += now;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Disk, DiskFile, Platter};

    /// Everything that the disk may look like after a cut, by content of the file `name`.
    fn outcomes(platter: &Platter, name: &str) -> std::collections::BTreeSet<Option<Vec<u8>>> {
        let mut seed = 1_u64;
        let mut chance = |end: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % end
        };
        (0..400).map(|_| platter.after_power_cut(&mut chance).content(name)).collect()
    }

    fn written(platter: &Platter, name: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
        let file = platter.create(name).expect("power");
        file.write_at(bytes, 0).expect("room");
        file
    }

    #[test]
    fn what_is_synced_with_its_name_stays() {
        let platter = Platter::default();
        let file = written(&platter, "a", b"one");
        assert!(outcomes(&platter, "a").contains(&None), "no name");
        file.sync_all().expect("works");
        assert_eq!(outcomes(&platter, "a"), [None, Some(b"one".to_vec())].into());
        platter.sync().expect("works");
        assert_eq!(outcomes(&platter, "a"), [Some(b"one".to_vec())].into());
    }

    #[test]
    fn what_is_not_synced_comes_in_any_order_and_torn() {
        let platter = Platter::default();
        let file = written(&platter, "a", &[0; 1024]);
        file.sync_all().expect("works");
        platter.sync().expect("works");
        file.write_at(&[1; 512], 0).expect("room");
        file.write_at(&[2; 512], 512).expect("room");
        let found = outcomes(&platter, "a");
        let is = |first: u8, second: u8| found.contains(&Some([[first; 512], [second; 512]].concat()));
        assert!(is(0, 0) && is(1, 0) && is(0, 2) && is(1, 2));
        assert!(found.len() > 4, "sectors are torn, too");
    }

    #[test]
    fn renames_may_be_lost_each_by_itself() {
        let platter = Platter::default();
        for (name, content) in [("a", b"old"), ("a.tmp", b"new"), ("b", b"old"), ("b.tmp", b"new")] {
            platter.put(name, content);
        }
        platter.rename("a.tmp", "a").expect("there");
        platter.rename("b.tmp", "b").expect("there");
        let both = [Some(b"old".to_vec()), Some(b"new".to_vec())].into();
        assert_eq!(
            (outcomes(&platter, "a"), outcomes(&platter, "b")),
            (both, [Some(b"old".to_vec()), Some(b"new".to_vec())].into())
        );
    }

    #[test]
    fn after_a_cut_nothing_works_and_nothing_changes() {
        let platter = Platter::default();
        platter.cut_at(3);
        let file = written(&platter, "a", b"one");
        assert!(!platter.is_off());
        assert!(file.sync_all().is_err(), "it may have worked all the same");
        assert!(platter.is_off());
        assert!(file.write_at(b"two", 0).is_err());
        assert_eq!(platter.content("a").as_deref(), Some(&b"one"[..]));
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_room() {
        let platter = Platter::default();
        let file = written(&platter, "a", b"four");
        platter.set_room(Some(2));
        file.write_at(b"FOUR", 0).expect("nothing to allocate");
        let full = file.write_at(b"sevenxx", 0).expect_err("three bytes more");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }
}
