//! The bookkeeping of slots (slot.c), without the file.

use std::collections::BTreeMap;

use super::{Available, Invalidation, RestartPoint, SlotError, SlotStatus};
use crate::pg::protocol::replication::SlotLifetime;
use crate::pg::{Lsn, SlotName};

#[derive(Debug, Default)]
pub(super) struct SlotTable {
    slots: BTreeMap<SlotName, Slot>,
    changes: Changes,
}

/// Whether the file still says what the table says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Changes {
    #[default]
    Saved,
    Unsaved,
}

#[derive(Debug)]
struct Slot {
    /// `None`: nothing is held back until a follower has used the slot.
    restart: Option<RestartPoint>,
    /// Then it has no restart point.
    invalidated: Option<Invalidation>,
    owner: Owner,
    /// The connection that streams with it.
    active_pid: Option<u32>,
}

/// What has become of a slot whose follower has flushed more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advanced {
    Not,
    Further,
    /// It was lost, and holds WAL back again.
    Regained,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Everybody,
    /// A temporary slot ends with the connection of this pid.
    Connection(u32),
}

impl SlotTable {
    /// A slot holds WAL back without end: more than this are refused with 53400.
    const MAX_SLOTS: usize = 256;

    pub(super) fn restore(
        &mut self,
        name: SlotName,
        restart: Option<RestartPoint>,
        invalidated: Option<Invalidation>,
    ) {
        self.slots.insert(name, Slot { restart, invalidated, owner: Owner::Everybody, active_pid: None });
    }

    pub(super) fn hold_from(&mut self, first: Lsn) {
        for restart in self.slots.values_mut().filter_map(|slot| slot.restart.as_mut()) {
            restart.lsn = restart.lsn.max(first);
        }
    }

    pub(super) fn ensure(&mut self, name: &SlotName, restart: Option<RestartPoint>) {
        match self.slots.get_mut(name) {
            Some(slot) if slot.restart.is_some() || slot.invalidated.is_some() || restart.is_none() => return,
            Some(slot) => slot.restart = restart,
            None => self.restore(name.clone(), restart, None),
        }
        self.changes = Changes::Unsaved;
    }

    pub(super) fn create(
        &mut self,
        name: &str,
        lifetime: SlotLifetime,
        restart: Option<RestartPoint>,
        pid: u32,
    ) -> Result<(), SlotError> {
        let name: SlotName = name.parse().map_err(|_| SlotError::InvalidName(name.to_owned()))?;
        let owner = match lifetime {
            SlotLifetime::Persistent => Owner::Everybody,
            SlotLifetime::Temporary => Owner::Connection(pid),
        };
        match self.slots.get(&name) {
            // A walreceiver that follows a timeline switch on one connection creates its temporary slot a second
            // time; PostgreSQL itself trips over this (42710) and reconnects.
            Some(slot) if slot.owner == owner && lifetime == SlotLifetime::Temporary => return Ok(()),
            Some(_) => return Err(SlotError::Exists(name.to_string())),
            None if self.slots.len() >= Self::MAX_SLOTS => return Err(SlotError::Full),
            None => {}
        }
        self.slots.insert(name, Slot { restart, invalidated: None, owner, active_pid: None });
        self.changed(owner);
        Ok(())
    }

    pub(super) fn drop_slot(&mut self, name: &str, pid: u32) -> Result<(), SlotError> {
        let (name, slot) = self.find(name, pid)?;
        let owner = slot.owner;
        self.slots.remove(&name);
        self.changed(owner);
        Ok(())
    }

    pub(super) fn acquire(
        &mut self,
        name: &str,
        pid: u32,
        start: RestartPoint,
        available: Available,
    ) -> Result<SlotName, SlotError> {
        let (name, slot) = self.find(name, pid)?;
        if slot.invalidated.is_some() && available == Available::Removed {
            return Err(SlotError::Lost(name.to_string()));
        }
        slot.active_pid = Some(pid);
        // Whatever the slot promised before: from here on its follower needs all from `start`. What is not there
        // any more it will be refused, and the slot holds what it held. A lost slot whose follower has found the
        // missing WAL elsewhere, or was made anew, is as good as a new one (slot.c wants it dropped first).
        let needs_more = slot.restart.is_none_or(|restart| start.lsn < restart.lsn);
        if needs_more && available == Available::Kept {
            slot.restart = Some(start);
            slot.invalidated = None;
            let owner = slot.owner;
            self.changed(owner);
        }
        Ok(name)
    }

    /// Unless it has moved up to `cap` by now. As `InvalidatePossiblyObsoleteSlot`; its user is not disturbed, and will
    /// find its WAL removed.
    pub(super) fn invalidate(&mut self, name: &SlotName, cap: Lsn) -> Option<RestartPoint> {
        let slot = self.slots.get_mut(name)?;
        let restart = slot.restart.take_if(|restart| restart.lsn < cap)?;
        slot.invalidated = Some(Invalidation::WalRemoved);
        let owner = slot.owner;
        self.changed(owner);
        Some(restart)
    }

    pub(super) fn release(&mut self, name: &SlotName, pid: u32) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.active_pid = slot.active_pid.filter(|active| *active != pid);
        }
    }

    /// The connection of `pid` has ended.
    pub(super) fn release_all(&mut self, pid: u32) {
        self.slots.retain(|_, slot| slot.owner != Owner::Connection(pid));
        for slot in self.slots.values_mut() {
            slot.active_pid = slot.active_pid.filter(|active| *active != pid);
        }
    }

    /// A slot that was lost under its user is regained once that has come to what is kept: PostgreSQL ends such a
    /// stream (`InvalidatePossiblyObsoleteSlot`), we let the follower try.
    pub(super) fn advance(
        &mut self,
        name: &SlotName,
        flushed: RestartPoint,
        available: impl FnOnce() -> Available,
    ) -> Advanced {
        let Some(slot) = self.slots.get_mut(name) else { return Advanced::Not };
        let lost = slot.invalidated.is_some();
        if lost && (slot.active_pid.is_none() || available() == Available::Removed) {
            return Advanced::Not;
        }
        let further = slot
            .restart
            .is_none_or(|restart| restart.timeline != flushed.timeline || restart.lsn < flushed.lsn);
        if !further {
            return Advanced::Not;
        }
        (slot.restart, slot.invalidated) = (Some(flushed), None);
        let owner = slot.owner;
        self.changed(owner);
        if lost { Advanced::Regained } else { Advanced::Further }
    }

    pub(super) fn status(&self, name: &SlotName) -> Option<SlotStatus> {
        self.slots.get(name).map(|slot| describe(name, slot))
    }

    pub(super) fn statuses(&self) -> Vec<SlotStatus> {
        self.slots.iter().map(|(name, slot)| describe(name, slot)).collect()
    }

    /// What the file is to say, when it does not yet. The caller saves it.
    pub(super) fn take_unsaved(&mut self) -> Option<Vec<SlotStatus>> {
        if self.changes == Changes::Saved {
            return None;
        }
        self.changes = Changes::Saved;
        Some(self.statuses().into_iter().filter(|s| s.lifetime == SlotLifetime::Persistent).collect())
    }

    /// The file could not be written after all.
    pub(super) fn still_unsaved(&mut self) {
        self.changes = Changes::Unsaved;
    }

    /// The slot of that name, unless another connection uses or owns it.
    fn find(&mut self, name: &str, pid: u32) -> Result<(SlotName, &mut Slot), SlotError> {
        // A name that no slot can have is that of a missing one.
        let missing = || SlotError::Missing(name.to_owned());
        let name: SlotName = name.parse().map_err(|_| missing())?;
        let slot = self.slots.get_mut(&name).ok_or_else(missing)?;
        let user = match slot.owner {
            Owner::Connection(owner) => Some(owner),
            Owner::Everybody => slot.active_pid,
        };
        match user {
            Some(other) if other != pid => Err(SlotError::Active { name: name.to_string(), pid: other }),
            _ => Ok((name, slot)),
        }
    }

    fn changed(&mut self, owner: Owner) {
        if owner == Owner::Everybody {
            self.changes = Changes::Unsaved;
        }
    }
}

fn describe(name: &SlotName, slot: &Slot) -> SlotStatus {
    let lifetime = match slot.owner {
        Owner::Everybody => SlotLifetime::Persistent,
        Owner::Connection(_) => SlotLifetime::Temporary,
    };
    let Slot { restart, invalidated, active_pid, .. } = *slot;
    SlotStatus { name: name.clone(), lifetime, active_pid, restart, invalidated }
}

#[cfg(test)]
mod tests {
    use super::{Advanced, SlotTable};
    use crate::pg::protocol::replication::SlotLifetime::{Persistent, Temporary};
    use crate::pg::{Lsn, SlotName, TimelineId};
    use crate::relay::slots::Available::{Kept, Removed};
    use crate::relay::slots::{RestartPoint, SlotError};

    fn at(timeline: u32, lsn: u64) -> RestartPoint {
        RestartPoint { timeline: TimelineId(timeline), lsn: Lsn(lsn) }
    }

    fn name(text: &str) -> SlotName {
        text.parse().expect("a valid name")
    }

    fn restart(table: &SlotTable, slot: &str) -> Option<RestartPoint> {
        table.status(&name(slot)).expect("the slot exists").restart
    }

    #[test]
    fn one_user_at_a_time() {
        let mut table = SlotTable::default();
        assert_eq!(table.acquire("a", 1, at(1, 0), Kept), Err(SlotError::Missing("a".to_owned())));
        assert_eq!(table.create("a", Persistent, None, 1), Ok(()));
        assert_eq!(table.create("a", Persistent, None, 1), Err(SlotError::Exists("a".to_owned())));
        assert_eq!(table.create("A", Persistent, None, 1), Err(SlotError::InvalidName("A".to_owned())));
        assert_eq!(table.acquire("a", 1, at(1, 0), Kept), Ok(name("a")));
        let in_use = SlotError::Active { name: "a".to_owned(), pid: 1 };
        assert_eq!(table.acquire("a", 2, at(1, 0), Kept), Err(in_use.clone()));
        assert_eq!(table.drop_slot("a", 2), Err(in_use));
        // Not its user: nothing is released.
        table.release(&name("a"), 2);
        table.release(&name("a"), 1);
        assert_eq!(table.acquire("a", 2, at(1, 0), Kept), Ok(name("a")));
        table.release_all(2);
        assert_eq!(table.drop_slot("a", 3), Ok(()));
        assert_eq!(table.drop_slot("A", 3), Err(SlotError::Missing("A".to_owned())));
    }

    #[test]
    fn temporary_slots_belong_to_their_connection() {
        let mut table = SlotTable::default();
        assert_eq!(table.create("t", Temporary, Some(at(1, 100)), 7), Ok(()));
        assert_eq!(table.create("t", Temporary, Some(at(2, 900)), 7), Ok(()));
        assert_eq!(restart(&table, "t"), Some(at(1, 100)));
        assert_eq!(table.create("t", Temporary, None, 8), Err(SlotError::Exists("t".to_owned())));
        assert!(matches!(table.acquire("t", 8, at(1, 0), Kept), Err(SlotError::Active { pid: 7, .. })));
        assert_eq!(table.take_unsaved(), None);
        table.release_all(7);
        assert_eq!(table.statuses(), []);
    }

    #[test]
    fn restart_follows_the_flushes_of_the_follower() {
        let mut table = SlotTable::default();
        table.ensure(&name("a"), Some(at(1, 1000)));
        table.ensure(&name("a"), Some(at(1, 9999)));
        assert_eq!(restart(&table, "a"), Some(at(1, 1000)));
        table.advance(&name("a"), at(1, 3000), || Kept);
        table.advance(&name("a"), at(1, 2000), || Kept);
        assert_eq!(restart(&table, "a"), Some(at(1, 3000)));
        // The follower was rewound and starts again from an earlier segment.
        assert_eq!(table.acquire("a", 1, at(1, 512), Kept), Ok(name("a")));
        assert_eq!(restart(&table, "a"), Some(at(1, 512)));
        table.advance(&name("a"), at(2, 400), || Kept);
        assert_eq!(restart(&table, "a"), Some(at(2, 400)));
        table.ensure(&name("b"), None);
        assert_eq!(restart(&table, "b"), None);
        table.ensure(&name("b"), Some(at(1, 300)));
        assert_eq!(restart(&table, "b"), Some(at(1, 300)));
    }

    #[test]
    fn a_lost_slot_is_good_again_for_who_lacks_nothing() {
        let mut table = SlotTable::default();
        table.ensure(&name("a"), Some(at(1, 1000)));
        assert_eq!(table.invalidate(&name("a"), Lsn(2000)), Some(at(1, 1000)));
        assert_eq!(table.invalidate(&name("a"), Lsn(2000)), None, "once");
        // Nothing of the relay's own doing revives it.
        table.ensure(&name("a"), Some(at(1, 2000)));
        table.advance(&name("a"), at(1, 2000), || Kept);
        assert_eq!(restart(&table, "a"), None);
        assert_eq!(table.acquire("a", 1, at(1, 900), Removed), Err(SlotError::Lost("a".to_owned())));
        assert_eq!(table.acquire("a", 1, at(1, 1500), Kept), Ok(name("a")));
        assert_eq!(restart(&table, "a"), Some(at(1, 1500)));
        // Who asks for what is gone takes nothing from a slot that holds.
        assert_eq!(table.acquire("a", 1, at(1, 10), Removed), Ok(name("a")));
        assert_eq!(restart(&table, "a"), Some(at(1, 1500)));
    }

    #[test]
    fn a_slot_lost_in_use_is_regained_by_a_follower_that_catches_up() {
        let mut table = SlotTable::default();
        table.ensure(&name("a"), Some(at(1, 1000)));
        assert_eq!(table.acquire("a", 1, at(1, 1000), Kept), Ok(name("a")));
        assert_eq!(table.invalidate(&name("a"), Lsn(1500)), Some(at(1, 1000)));
        assert_eq!(table.advance(&name("a"), at(1, 1400), || Removed), Advanced::Not);
        assert!(table.status(&name("a")).expect("the slot exists").is_lost());
        assert_eq!(table.advance(&name("a"), at(1, 1600), || Kept), Advanced::Regained);
        assert!(!table.status(&name("a")).expect("the slot exists").is_lost());
        assert_eq!(restart(&table, "a"), Some(at(1, 1600)));
        assert_eq!(table.advance(&name("a"), at(1, 1700), || Removed), Advanced::Further);
    }

    #[test]
    fn a_slot_that_has_moved_on_meanwhile_is_not_lost() {
        let mut table = SlotTable::default();
        table.ensure(&name("a"), Some(at(1, 1000)));
        // Retention has seen it at 1000, and decided.
        table.advance(&name("a"), at(1, 1500), || Kept);
        assert_eq!(table.invalidate(&name("a"), Lsn(1500)), None);
        assert_eq!(restart(&table, "a"), Some(at(1, 1500)));
    }

    #[test]
    fn a_full_table_refuses() {
        let mut table = SlotTable::default();
        for n in 0..SlotTable::MAX_SLOTS {
            assert_eq!(table.create(&format!("s{n}"), Persistent, None, 1), Ok(()));
        }
        assert_eq!(table.create("more", Temporary, None, 1), Err(SlotError::Full));
    }

    #[test]
    fn only_what_changed_is_saved() {
        let mut table = SlotTable::default();
        table.ensure(&name("a"), None);
        assert_eq!(table.take_unsaved().map(|slots| slots.len()), Some(1));
        assert_eq!(table.take_unsaved(), None);
        table.advance(&name("a"), at(1, 5), || Kept);
        assert_eq!(table.take_unsaved().map(|slots| slots[0].restart), Some(Some(at(1, 5))));
        table.still_unsaved();
        assert!(table.take_unsaved().is_some());
    }
}
