//! Looks for what is wrong once a second, tells it, and writes it down.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::{AlarmLog, Observed, Trouble};
use crate::relay::metrics::Metrics;
use crate::relay::slots::Slots;
use crate::relay::status::UpstreamStatus;
use crate::relay::store::{Files, Room, Store};
use crate::topology::{Alarm, AlarmKind, ArchiveStatus, Directive, NodeName, UnknownBackup, WalAlarm};

const FILE_NAME: &str = "alarms.json";
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(in crate::relay) struct AlarmKeeper {
    pub(in crate::relay) files: Files,
    pub(in crate::relay) store: Store,
    pub(in crate::relay) slots: Arc<Slots>,
    pub(in crate::relay) upstream: watch::Receiver<UpstreamStatus>,
    pub(in crate::relay) directive: watch::Receiver<Arc<Directive>>,
    pub(in crate::relay) archive: watch::Receiver<Option<ArchiveStatus>>,
    pub(in crate::relay) metrics: Metrics,
    pub(in crate::relay) alarms: watch::Sender<Arc<Vec<Alarm>>>,
}

impl AlarmKeeper {
    /// Never ends.
    pub(in crate::relay) async fn run(self) {
        let mut log = AlarmLog::restored(read(&self.files), now_ms());
        self.alarms.send_replace(log.alarms());
        let mut saved = true;
        loop {
            let troubles = self.troubles();
            let damaged = troubles.iter().filter(|trouble| trouble.kind == AlarmKind::DamagedSegment).count();
            self.metrics.damaged_segments.set(i64::try_from(damaged).unwrap_or(i64::MAX));
            if log.observe(&troubles, now_ms()) == Observed::News {
                self.alarms.send_replace(log.alarms());
                saved = false;
            }
            // A full disk is itself an alarm: what cannot be written now is written later.
            saved = saved || save(self.files.clone(), log.alarms()).await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn troubles(&self) -> Vec<Trouble> {
        let report = self.store.report();
        let (tail, room) = {
            let report = report.borrow();
            (report.tail, report.room)
        };
        let of_stream = self.upstream.borrow().alarm.clone();
        let of_stream = of_stream.filter(|alarm| alarm.holds(tail.timeline, tail.durable)).map(|alarm| {
            let kind = match &alarm {
                WalAlarm::Gap { .. } => AlarmKind::Gap,
                WalAlarm::Diverged { .. } => AlarmKind::SplitBrain,
            };
            Trouble { kind, object: String::new(), what: alarm.to_string() }
        });
        let full = (room == Room::None).then(|| Trouble {
            kind: AlarmKind::DiskFull,
            object: String::new(),
            what: format!("the disk is full: WAL behind {} is not acknowledged", tail.durable),
        });
        let slots = self.slots.statuses();
        // The primary's own is not used.
        let primary = self.directive.borrow().primary.as_ref().map(NodeName::slot);
        let lost = slots.iter().filter(|slot| slot.is_lost() && Some(&slot.name) != primary.as_ref());
        let lost = lost.map(|slot| Trouble {
            kind: AlarmKind::LostSlot,
            object: slot.name.to_string(),
            what: format!("replication slot {} is lost: what it held back exceeded wal.retain", slot.name),
        });
        let damaged = self.store.damaged().into_iter().map(|(segment, defect)| Trouble {
            kind: AlarmKind::DamagedSegment,
            what: format!("segment {segment} is damaged: {defect}"),
            object: segment,
        });
        let unknown = self.archive.borrow().as_ref().map_or_else(Vec::new, |it| it.unknown_backups.clone());
        let unknown = unknown.into_iter().map(|UnknownBackup { name, why }| Trouble {
            kind: AlarmKind::UnknownBackup,
            what: format!("base backup {name} of the archive is not understood, and keeps all WAL: {why}"),
            object: name,
        });
        of_stream.into_iter().chain(full).chain(lost).chain(damaged).chain(unknown).collect()
    }
}

/// What cannot be read is worth no failure: it is only told of.
fn read(files: &Files) -> Vec<Alarm> {
    let content = files.read_whole(FILE_NAME).ok().flatten();
    let alarms = content.map(|content| serde_json::from_slice(&content).map_err(|error| error.to_string()));
    match alarms {
        None => Vec::new(),
        Some(Ok(alarms)) => alarms,
        Some(Err(error)) => {
            tracing::info!(file = FILE_NAME, error, "alarms of earlier times cannot be read");
            Vec::new()
        }
    }
}

/// Whether it is on disk.
async fn save(files: Files, alarms: Arc<Vec<Alarm>>) -> bool {
    let write = move || {
        let text = serde_json::to_vec_pretty(&*alarms).expect("a list of plain values is JSON");
        files.replace(FILE_NAME, &text)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "alarms not saved");
            false
        }
        Err(_) => false,
    }
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
