//! How far back WAL is kept. PURE; [`keeper`] looks things up and does what is decided.
//!
//! Kept is what the greediest wants: so many bytes behind the durable end (`size`), what was written lately (`age`),
//! what slots and base backups need, what is not archived yet. All but `size` ends at a hard cap: `max_size` behind
//! the durable end, and `min_free` of the file system. A slot that needs more is lost, visibly and before the disk is
//! full: a full disk helps no follower, and stops the primary's commits.

pub(super) mod keeper;

use std::time::Duration;

use super::slots::{RestartPoint, SlotStatus};
use crate::pg::wal::WalSegmentSize;
use crate::pg::{Lsn, SlotName, TimelineId};
use crate::topology::{NodeName, WalStatus};

/// `wal.retain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retain {
    /// Kept behind the durable end whatever happens.
    pub size: u64,
    /// What was written so lately is kept.
    pub age: Duration,
    /// What slots, age and archive hold back at most behind the durable end, in bytes.
    pub max_size: u64,
    /// Left free of the file system, in bytes; below that, what is held back beyond `size` gives way.
    pub min_free: u64,
}

impl Default for Retain {
    fn default() -> Retain {
        Retain { size: 1 << 30, age: Duration::ZERO, max_size: 64 << 30, min_free: 1 << 30 }
    }
}

/// What the decision looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) durable: Lsn,
    /// Start of the oldest segment there is.
    pub(super) oldest: Lsn,
    pub(super) segment_size: WalSegmentSize,
    /// Start of the oldest segment that was written within `age`.
    pub(super) young_from: Option<Lsn>,
    /// What base backups need, and what is not archived.
    pub(super) others: Option<Lsn>,
    pub(super) free_bytes: u64,
    pub(super) slots: &'a [SlotStatus],
    /// The primary's own slot needs nothing while nobody uses it: a primary follows nobody.
    pub(super) primary: Option<&'a SlotName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// All from here on is held back, beside `size`.
    pub(super) from: Option<Lsn>,
    /// Nothing before it can be kept.
    pub(super) cap: Lsn,
    /// What these need cannot be kept.
    pub(super) lost: Vec<SlotName>,
    /// How far the primary's own slot moves along meanwhile, with what `size` keeps: so it is still good when that
    /// server comes back as a standby.
    pub(super) moves: Option<Lsn>,
}

/// `wal_status` of pg_replication_slots (`GetWALAvailability` in xlog.c), with `size` for `max_wal_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalAvailability {
    /// Within what is kept anyway.
    Reserved,
    /// Kept because of the slot.
    Extended,
    /// Beyond the cap: about to be lost.
    Unreserved,
    Lost,
}

impl WalAvailability {
    pub fn as_str(self) -> &'static str {
        match self {
            WalAvailability::Reserved => "reserved",
            WalAvailability::Extended => "extended",
            WalAvailability::Unreserved => "unreserved",
            WalAvailability::Lost => "lost",
        }
    }
}

pub(super) fn decide(retain: &Retain, facts: &Facts<'_>) -> Decision {
    let cap = facts.segment_size.segment_start(cap(retain, facts));
    let is_idle_primary = |slot: &SlotStatus| slot.active_pid.is_none() && facts.primary == Some(&slot.name);
    let (idle, needed): (Vec<_>, Vec<_>) = facts.slots.iter().partition(|slot| is_idle_primary(slot));
    let kept_anyway =
        facts.segment_size.segment_start(Lsn(facts.durable.0.saturating_sub(retain.size))).max(cap);
    let moves =
        idle.iter().filter_map(|slot| slot.restart).map(|restart| restart.lsn.max(kept_anyway)).next();
    let needed = needed.into_iter().filter_map(|slot| slot.restart.map(|restart| (slot, restart.lsn)));
    let (kept, lost): (Vec<_>, Vec<_>) = needed.partition(|(_, restart)| *restart >= cap);
    let by_slots = kept.into_iter().map(|(_, restart)| restart).min();
    let from = [by_slots, moves, facts.young_from, facts.others].into_iter().flatten().min();
    Decision {
        from: from.map(|from| from.max(cap)),
        cap,
        lost: lost.into_iter().map(|(slot, _)| slot.name.clone()).collect(),
        moves,
    }
}

/// Nothing before it can be held back, and what is not there any more cannot either.
fn cap(retain: &Retain, facts: &Facts<'_>) -> Lsn {
    let behind = |bytes: u64| Lsn(facts.durable.0.saturating_sub(bytes));
    let by_size = behind(retain.max_size.max(retain.size));
    let missing = retain.min_free.saturating_sub(facts.free_bytes);
    // The oldest go first; what `size` keeps stays, so that no short squeeze costs a follower that is close.
    let by_room =
        if missing == 0 { Lsn::INVALID } else { facts.oldest.advanced(missing).min(behind(retain.size)) };
    by_size.max(by_room).max(facts.oldest)
}

/// How far the slots of standbys that stream move along with them, where nobody uses them here. A standby streams from one
/// relay; at each of the others its slot would hold back all WAL from the relay's beginning on. `end`: of the log.
pub(super) fn served_elsewhere(
    nodes: &[NodeName],
    all: &WalStatus,
    (timeline, durable): (TimelineId, Lsn),
) -> Vec<(SlotName, RestartPoint)> {
    let flushed = |node: &NodeName| {
        let follower = all.follower(node).filter(|f| f.streams() && f.timeline == timeline)?;
        let lsn = Some(follower.flush.min(durable)).filter(|lsn| lsn.is_valid())?;
        Some((node.slot(), RestartPoint { timeline, lsn }))
    };
    nodes.iter().filter_map(flushed).collect()
}

/// How a slot stands now; `None`: it holds nothing back yet.
pub(super) fn availability(retain: &Retain, slot: &SlotStatus, durable: Lsn) -> Option<WalAvailability> {
    if slot.is_lost() {
        return Some(WalAvailability::Lost);
    }
    let behind = durable.bytes_since(slot.restart?.lsn.min(durable));
    Some(if behind <= retain.size {
        WalAvailability::Reserved
    } else if behind <= retain.max_size {
        WalAvailability::Extended
    } else {
        WalAvailability::Unreserved
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Decision, Facts, Retain, WalAvailability, availability, decide, served_elsewhere};
    use crate::pg::protocol::replication::SlotLifetime;
    use crate::pg::wal::WalSegmentSize;
    use crate::pg::{Lsn, SlotName, TimelineId};
    use crate::relay::slots::{Invalidation, RestartPoint, SlotStatus};
    use crate::topology::{Follower, FollowerState, Hearing, Lag, NodeName, WalStatus};

    const MIB: u64 = 1 << 20;
    const RETAIN: Retain =
        Retain { size: 10 * MIB, age: Duration::ZERO, max_size: 50 * MIB, min_free: 100 * MIB };

    fn slot(name: &str, active_pid: Option<u32>, restart: Option<u64>) -> SlotStatus {
        let restart = restart.map(|mib| RestartPoint { timeline: TimelineId(1), lsn: Lsn(mib * MIB) });
        let (name, lifetime) = (name_of(name), SlotLifetime::Persistent);
        SlotStatus { name, lifetime, active_pid, restart, invalidated: None }
    }

    fn name_of(name: &str) -> SlotName {
        name.parse().expect("a slot name")
    }

    /// At MiB 100, with everything from MiB 20 on and much room.
    fn facts(slots: &[SlotStatus]) -> Facts<'_> {
        Facts {
            durable: Lsn(100 * MIB),
            oldest: Lsn(20 * MIB),
            segment_size: WalSegmentSize::new(MIB).expect("a size"),
            young_from: None,
            others: None,
            free_bytes: u64::MAX,
            slots,
            primary: None,
        }
    }

    fn check(facts: &Facts<'_>, from: Option<u64>, lost: &[&str]) {
        let expected = Decision {
            from: from.map(|mib| Lsn(mib * MIB)),
            lost: lost.iter().map(|name| name_of(name)).collect(),
            moves: None,
            cap: Lsn::INVALID,
        };
        let decision = Decision { moves: None, cap: Lsn::INVALID, ..decide(&RETAIN, facts) };
        assert_eq!(decision, expected, "{facts:?}");
    }

    #[test]
    fn a_primarys_own_slot_moves_along_with_what_is_kept_anyway() {
        let a = name_of("a");
        let decided = |slots: &[SlotStatus], oldest: u64| {
            let facts = Facts { primary: Some(&a), oldest: Lsn(oldest * MIB), ..facts(slots) };
            let Decision { from, lost, moves, cap: _ } = decide(&RETAIN, &facts);
            assert_eq!((from, lost), (moves, vec![]), "it holds back what it stands on, and is never lost");
            moves.map(|lsn| lsn.0 / MIB)
        };
        assert_eq!(decided(&[slot("a", None, Some(20))], 20), Some(90));
        assert_eq!(decided(&[slot("a", None, Some(95))], 20), Some(95));
        assert_eq!(decided(&[slot("a", None, Some(20))], 93), Some(93), "what is gone already is not needed");
        assert_eq!(decided(&[slot("a", None, None)], 20), None);
    }

    #[test]
    fn the_greediest_is_heard_up_to_the_cap() {
        let slots = [slot("a", None, Some(60)), slot("b", Some(7), Some(80)), slot("c", None, None)];
        check(&facts(&slots), Some(60), &[]);
        check(&facts(&slots[2..]), None, &[]);
        check(&Facts { young_from: Some(Lsn(55 * MIB)), ..facts(&slots) }, Some(55), &[]);
        check(&Facts { young_from: Some(Lsn(30 * MIB)), ..facts(&slots) }, Some(50), &[]);
        check(&Facts { others: Some(Lsn(52 * MIB)), ..facts(&slots) }, Some(52), &[]);
        check(&Facts { others: Some(Lsn(20 * MIB)), ..facts(&slots) }, Some(50), &[]);
    }

    #[test]
    fn who_needs_more_than_the_cap_is_lost() {
        let slots = [slot("a", None, Some(49)), slot("b", Some(7), Some(50))];
        check(&facts(&slots), Some(50), &["a"]);
        // Also one that is in use, and one whose WAL has gone already.
        check(&facts(&[slot("a", Some(1), Some(30))]), None, &["a"]);
        check(&Facts { oldest: Lsn(80 * MIB), ..facts(&slots) }, None, &["a", "b"]);
        let a = name_of("a");
        check(&Facts { primary: Some(&a), ..facts(&slots) }, Some(50), &[]);
        let streams = [slot("a", Some(9), Some(60))];
        check(&Facts { primary: Some(&a), ..facts(&streams) }, Some(60), &[]);
    }

    #[test]
    fn before_the_disk_is_full_the_furthest_behind_gives_way() {
        let slots = [slot("a", None, Some(60)), slot("b", None, Some(70)), slot("c", None, Some(95))];
        let free = |mib: u64| Facts { free_bytes: mib * MIB, oldest: Lsn(60 * MIB), ..facts(&slots) };
        check(&free(100), Some(60), &[]);
        check(&free(99), Some(70), &["a"]);
        check(&free(90), Some(70), &["a"]);
        check(&free(89), Some(95), &["a", "b"]);
        // What is kept anyway stays with its slots: only acknowledging less helps then.
        check(&free(0), Some(95), &["a", "b"]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn the_slot_of_a_standby_that_another_relay_serves_moves_along_with_it() {
        let nodes: [NodeName; 2] = ["pg-2", "pg3"].map(|name| name.parse().expect("a node name"));
        let now = std::time::Instant::now();
        // At MiB 100 of timeline 1.
        let check = |name: &str, timeline: u32, state: FollowerState, flush: u64, expected: Option<u64>| {
            let follower = Follower {
                application_name: name.to_owned(),
                pid: 1,
                timeline: TimelineId(timeline),
                state,
                sent: Lsn(flush * MIB),
                write: Lsn(flush * MIB),
                flush: Lsn(flush * MIB),
                replay: Lsn::INVALID,
                lag: Lag::default(),
                reported_at: now,
                hearing: Hearing::ByStream,
            };
            let all = WalStatus { followers: vec![follower], ..WalStatus::starting() };
            let moved = served_elsewhere(&nodes, &all, (TimelineId(1), Lsn(100 * MIB)));
            let expected = expected.map(|mib| RestartPoint { timeline: TimelineId(1), lsn: Lsn(mib * MIB) });
            let expected: Vec<_> = expected.map(|to| (name_of("pg_2"), to)).into_iter().collect();
            assert_eq!(moved, expected, "{name} {timeline} {state:?} {flush}");
        };
        check("pg-2", 1, FollowerState::Streaming, 80, Some(80));
        check("pg-2", 1, FollowerState::Catchup, 80, Some(80));
        // What is not here yet cannot be held from.
        check("pg-2", 1, FollowerState::Streaming, 120, Some(100));
        check("pg-2", 1, FollowerState::Startup, 80, None);
        check("pg-2", 2, FollowerState::Streaming, 80, None);
        check("pg-2", 1, FollowerState::Streaming, 0, None);
        check("somebody", 1, FollowerState::Streaming, 80, None);
    }

    #[test]
    fn the_status_has_the_words_of_pg_replication_slots() {
        let status = |slot: &SlotStatus| availability(&RETAIN, slot, Lsn(100 * MIB));
        assert_eq!(status(&slot("a", None, None)), None);
        assert_eq!(status(&slot("a", None, Some(120))), Some(WalAvailability::Reserved));
        assert_eq!(status(&slot("a", None, Some(90))), Some(WalAvailability::Reserved));
        assert_eq!(status(&slot("a", None, Some(89))), Some(WalAvailability::Extended));
        assert_eq!(status(&slot("a", None, Some(49))), Some(WalAvailability::Unreserved));
        let lost = SlotStatus { invalidated: Some(Invalidation::WalRemoved), ..slot("a", None, None) };
        assert_eq!(status(&lost), Some(WalAvailability::Lost));
    }
}
