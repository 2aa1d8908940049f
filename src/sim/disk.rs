//! Bellwether's disk: the real store in a directory in memory, which loses, keeps or tears at a crash what was
//! not synced.
//!
//! Everything but the WAL is replaced by durable renames, so a crash finds it old or new. WAL is written in
//! place: of the bytes behind the last sync each sector may be there or not, and one may be half there. What it
//! shows instead is what the file held before: zeros, or old pages of a recycled segment.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prometheus::Registry;

use super::log::{SEGMENT, START};
use super::stage::Stage;
use crate::pg::Lsn;
use crate::relay::parts::{Change, Metrics, Stepped, Store, StoreConfig, StreamId};

#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    /// What is under the bytes that are not synced: where, and what was there before.
    under: Vec<(Lsn, Vec<u8>)>,
    stepped: Option<Stepped>,
    spares_made: u64,
}

/// Disks do not tear within one.
const SECTOR: usize = 512;

impl Disk {
    pub(super) fn new(directory: PathBuf) -> Disk {
        Disk { directory, under: Vec::new(), stepped: None, spares_made: 0 }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens the store as after a start of the process.
    pub(super) fn open(&mut self, stage: &mut Stage) -> Store {
        let config = StoreConfig {
            directory: self.directory.clone(),
            retain_bytes: 1 << 30,
            ring_bytes: [1 << 12, 1 << 16, 1 << 24][stage.rng.below(3) as usize],
        };
        let metrics = Metrics::new(&Registry::new()).expect("an empty registry");
        let stepped = match Stepped::open(&config, &metrics) {
            Ok(stepped) => stepped,
            Err(error) => panic!("the store does not open again: {error:?}"),
        };
        let store = stepped.store.clone();
        let report = store.report().borrow().clone();
        stage.note(format!(
            "store opened: timeline {} up to {}, promised {}",
            report.tail.timeline, report.tail.durable, report.promised
        ));
        stage.checks.recovered(report.tail.timeline, report.tail.durable, report.promised);
        self.stepped = Some(stepped);
        store
    }

    fn stepped(&mut self) -> &mut Stepped {
        self.stepped.as_mut().expect("open while Bellwether runs")
    }

    pub(super) fn append(
        &mut self,
        stage: &mut Stage,
        (stream, at): (StreamId, Lsn),
        bytes: &Bytes,
        verified: Option<Lsn>,
    ) {
        self.provide_spares(stage);
        let before = self.stepped().unsynced();
        let end = at.advanced(bytes.len() as u64);
        let fresh = before.to.max(at);
        if fresh < end && before.to.is_valid() && at <= before.to {
            self.remember(fresh, end);
        }
        self.stepped().append(stream, at, bytes.clone(), verified).expect("a disk without errors");
        let after = self.stepped().unsynced();
        if after.to > before.to {
            let new = bytes.slice(usize::try_from(before.to.bytes_since(at)).expect("small")..);
            stage.checks.appended(after.timeline, before.to, &new);
        }
        if after.from > before.from {
            // A segment ended and was synced.
            self.synced(stage);
        }
    }

    /// What lies where the bytes will be.
    fn remember(&mut self, from: Lsn, to: Lsn) {
        let mut from = from;
        while from < to {
            let end = Lsn((from.0 / SEGMENT + 1) * SEGMENT).min(to);
            let name = self.stepped().segment_name(from);
            let mut old = vec![0; usize::try_from(end.bytes_since(from)).expect("small")];
            if let Ok(file) = OpenOptions::new().read(true).open(self.directory.join(name)) {
                file.read_exact_at(&mut old, from.0 % SEGMENT).expect("a whole segment");
            }
            self.under.push((from, old));
            from = end;
        }
    }

    pub(super) fn sync(&mut self, stage: &mut Stage) {
        self.stepped().sync().expect("a disk without errors");
        self.synced(stage);
    }

    /// The inner error is the stream's.
    pub(super) fn change(&mut self, stage: &mut Stage, change: Change) -> Result<(), String> {
        self.provide_spares(stage);
        stage.note(format!("store: {}", brief(&change)));
        let result = self.stepped().change(change).expect("a disk without errors");
        self.synced(stage);
        result.map_err(|error| error.to_string())
    }

    fn synced(&mut self, stage: &mut Stage) {
        let unsynced = self.stepped().unsynced();
        self.under.retain(|(at, old)| at.advanced(old.len() as u64) > unsynced.from);
        stage.checks.synced(unsynced.timeline, unsynced.from);
    }

    /// The process dies, and the host with it: the store is closed, and its file made what the platter has.
    pub(super) fn crash(&mut self, stage: &mut Stage) {
        let Some(stepped) = self.stepped.take() else { return };
        let unsynced = stepped.unsynced();
        let fate = stage.rng.below(3);
        let mut lost = 0;
        for (at, old) in std::mem::take(&mut self.under) {
            // The synced part of it stays.
            let skip = usize::try_from(unsynced.from.bytes_since(at)).expect("small").min(old.len());
            let name = stepped.segment_name(at);
            let file = OpenOptions::new().write(true).open(self.directory.join(&name));
            let Ok(file) = file else { continue };
            let mut offset = skip;
            while offset < old.len() {
                let place = at.0 % SEGMENT + offset as u64;
                let sector = SECTOR - (place % SECTOR as u64) as usize;
                let length = sector.min(old.len() - offset);
                let is_lost = fate == 0 || (fate == 1 && stage.rng.percent(50));
                if is_lost {
                    file.write_all_at(&old[offset..offset + length], place).expect("a file in memory");
                    lost += length;
                }
                offset += length;
            }
        }
        stage.note(format!(
            "disk: {lost} of {} unsynced bytes behind {} are lost",
            unsynced.to.bytes_since(unsynced.from),
            unsynced.from
        ));
    }

    /// New ones are zeros, recycled ones hold old WAL.
    fn provide_spares(&mut self, stage: &mut Stage) {
        while self.stepped().spares() < 2 {
            self.spares_made += 1;
            let name = format!("spare.sim.{}", self.spares_made);
            let content = match stage.rng.below(2) {
                0 => vec![0; SEGMENT as usize],
                _ => stage.checks.old_segment().unwrap_or_else(|| vec![0; SEGMENT as usize]),
            };
            std::fs::write(self.directory.join(&name), content).expect("a directory in memory");
            self.stepped().offer_spare(name);
        }
        debug_assert!(START.0.is_multiple_of(SEGMENT));
    }
}

fn brief(change: &Change) -> String {
    match change {
        Change::KeepHistory { timeline, .. } => format!("keep the history of timeline {timeline}"),
        Change::Parameters(_) => "parameters".to_owned(),
        other => format!("{other:?}"),
    }
}
