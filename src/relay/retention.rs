//! Which WAL slots may hold back. PURE.

use super::slots::SlotStatus;
use crate::pg::{Lsn, SlotName};

/// The oldest position that a slot or a base backup pins. The primary's own slot pins nothing while nobody uses it, since a
/// primary follows nobody; no slot pins more than `max_bytes`, since a full disk helps no follower.
pub(super) fn pinned(
    slots: &[SlotStatus],
    backup: Option<Lsn>,
    primary: Option<&SlotName>,
    durable: Lsn,
    max_bytes: u64,
) -> Option<Lsn> {
    let limit = Lsn(durable.0.saturating_sub(max_bytes));
    slots
        .iter()
        .filter(|slot| slot.active_pid.is_some() || primary != Some(&slot.name))
        .filter_map(|slot| slot.restart.map(|restart| restart.lsn))
        .chain(backup)
        .min()
        .map(|oldest| oldest.max(limit))
}

#[cfg(test)]
mod tests {
    use super::pinned;
    use crate::pg::protocol::replication::SlotLifetime;
    use crate::pg::{Lsn, SlotName, TimelineId};
    use crate::relay::slots::{RestartPoint, SlotStatus};

    fn slot(name: &str, active_pid: Option<u32>, lsn: Option<u64>) -> SlotStatus {
        let restart = lsn.map(|lsn| RestartPoint { timeline: TimelineId(1), lsn: Lsn(lsn) });
        SlotStatus { name: name_of(name), lifetime: SlotLifetime::Persistent, active_pid, restart }
    }

    fn name_of(name: &str) -> SlotName {
        name.parse().expect("a slot name")
    }

    #[test]
    fn slots_hold_back_what_they_need() {
        let slots = [slot("a", None, Some(50)), slot("b", Some(7), Some(80)), slot("c", None, None)];
        let a = name_of("a");
        assert_eq!(pinned(&slots, None, None, Lsn(100), 1000), Some(Lsn(50)));
        assert_eq!(pinned(&slots, Some(Lsn(40)), None, Lsn(100), 1000), Some(Lsn(40)), "a base backup");
        assert_eq!(
            pinned(&slots, None, Some(&a), Lsn(100), 1000),
            Some(Lsn(80)),
            "the primary follows nobody"
        );
        assert_eq!(pinned(&slots, None, None, Lsn(100), 30), Some(Lsn(70)), "bounded");
        assert_eq!(pinned(&slots[2..], None, None, Lsn(100), 1000), None);
    }
}
