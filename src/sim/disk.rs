//! Bellwether's disk: the real store on a disk in memory, which loses, keeps or tears at a crash what was not
//! synced, in any order. [`super::power`] cuts its power everywhere; here it fails with the world around it.

use std::sync::Arc;

use bytes::Bytes;
use prometheus::Registry;

use super::log::{SEGMENT, START};
use super::stage::Stage;
use crate::pg::Lsn;
use crate::relay::parts::{Change, Files, Metrics, Platter, Stepped, Store, StoreConfig, StreamId};

#[derive(Debug)]
pub(super) struct Disk {
    platter: Platter,
    stepped: Option<Stepped>,
    spares_made: u64,
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk { platter: Platter::default(), stepped: None, spares_made: 0 }
    }

    /// Its files, as a process that starts finds them.
    pub(super) fn files(&self) -> Files {
        Files::on(Arc::new(self.platter.clone())).expect("a disk without errors")
    }

    /// Opens the store as after a start of the process.
    pub(super) fn open(&mut self, stage: &mut Stage) -> Store {
        let config = StoreConfig {
            retain_bytes: 1 << 30,
            ring_bytes: [1 << 12, 1 << 16, 1 << 24][stage.rng.below(3) as usize],
        };
        let metrics = Metrics::new(&Registry::new()).expect("an empty registry");
        let stepped = match Stepped::open(self.files(), &config, &metrics) {
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
        stage.checks.synced(unsynced.timeline, unsynced.from);
    }

    /// The process dies, and the host with it: what is left is what the platter has.
    pub(super) fn crash(&mut self, stage: &mut Stage) {
        let Some(stepped) = self.stepped.take() else { return };
        let unsynced = stepped.unsynced();
        self.platter = self.platter.after_power_cut(&mut |end| stage.rng.below(end));
        stage.note(format!(
            "disk: {} bytes behind {} were not synced",
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
            self.platter.put(&name, &content);
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
