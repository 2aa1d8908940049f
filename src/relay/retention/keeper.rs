//! Asked by the store whenever a segment is finished: what must stay. Looks at slots, ages and free space, and gives
//! up the slots that cost too much.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{Facts, Retain, decide, served_elsewhere};
use crate::pg::Lsn;
use crate::relay::config::RelayTuning;
use crate::relay::slots::{RestartPoint, Slots};
use crate::relay::store::{Files, Kept, Room, Tail};
use crate::topology::{Directive, NodeName, WalStatus};

pub(in crate::relay) struct Keeper {
    pub(in crate::relay) files: Files,
    pub(in crate::relay) slots: Arc<Slots>,
    pub(in crate::relay) tuning: watch::Receiver<RelayTuning>,
    pub(in crate::relay) directive: watch::Receiver<Arc<Directive>>,
    pub(in crate::relay) nodes: Vec<NodeName>,
    pub(in crate::relay) all: watch::Receiver<Arc<WalStatus>>,
    pub(in crate::relay) tail: watch::Receiver<Tail>,
    /// What base backups and the archive need.
    pub(in crate::relay) others: Box<dyn Fn() -> Option<Lsn> + Send + Sync>,
}

impl Keeper {
    /// The oldest LSN that must stay; `None`: nobody needs more than is kept anyway.
    pub(in crate::relay) fn pinned(&self, kept: &Kept) -> Option<Lsn> {
        let retain = self.tuning.borrow().retain;
        let primary = self.directive.borrow().primary.as_ref().map(NodeName::slot);
        let Tail { timeline, durable } = *self.tail.borrow();
        for (name, to) in served_elsewhere(&self.nodes, &self.all.borrow(), (timeline, durable)) {
            self.slots.advance_idle(&name, to);
        }
        let slots = self.slots.statuses();
        let facts = Facts {
            durable,
            oldest: kept.oldest().unwrap_or(durable),
            segment_size: kept.segment_size,
            young_from: self.young_from(kept, retain.age),
            others: (self.others)(),
            free_bytes: self.free_bytes(kept.room),
            slots: &slots,
            primary: primary.as_ref(),
        };
        let decision = decide(&retain, &facts);
        for name in &decision.lost {
            let Some(restart) = self.slots.invalidate(name, decision.cap) else { continue };
            let Retain { max_size, min_free, .. } = retain;
            tracing::warn!(
                slot = %name, restart_lsn = %restart.lsn, durable = %durable, max_size, min_free,
                free = facts.free_bytes,
                "replication slot lost: what it holds back exceeds wal.retain; its follower has to be made anew \
                 unless it finds that WAL elsewhere"
            );
        }
        if let (Some(name), Some(lsn)) = (&primary, decision.moves) {
            self.slots.advance_idle(name, RestartPoint { timeline, lsn });
        }
        decision.from
    }

    /// What cannot be known presses nobody. A quota leaves room on the file system, and none for us.
    fn free_bytes(&self, room: Room) -> u64 {
        match room {
            Room::Enough => self.files.free_bytes().unwrap_or(u64::MAX),
            Room::None => 0,
        }
    }

    fn young_from(&self, kept: &Kept, age: Duration) -> Option<Lsn> {
        let since = SystemTime::now().checked_sub(age).filter(|_| !age.is_zero())?;
        // Segments are finished one after another. One that cannot be looked at is taken for young.
        let is_old = |name: &str| self.files.modified(name).is_ok_and(|modified| modified < since);
        let first_young = kept.segments.partition_point(|segment| is_old(&segment.name(kept.segment_size)));
        kept.segments.get(first_young).map(|segment| kept.segment_size.start(segment.number))
    }
}
