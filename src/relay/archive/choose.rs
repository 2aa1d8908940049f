//! Which base backup a moment is restored from, and which ones are not needed any more. PURE.

use std::collections::BTreeSet;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};

use super::layout::Inventory;
use super::sentinel::{BackupName, Facts, Maker};
use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};

/// What lies in the archive as base backups.
#[derive(Debug, Default)]
pub(super) struct Backups {
    pub(super) whole: Vec<Facts>,
    pub(super) unknown: Vec<Unknown>,
    pub(super) unfinished: Vec<Unfinished>,
}

/// One whose sentinel is not understood: what it needs is behind its own begin, and nobody but its maker restores it.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) name: BackupName,
    pub(super) why: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name.as_str(), self.why)
    }
}

/// One without a sentinel: it is being made, or was cut off.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) name: BackupName,
    /// By its reservation.
    pub(super) is_ours: bool,
    /// When its newest object was put. Whoever makes it puts a part of 1 GiB after another.
    pub(super) touched: DateTime<Utc>,
}

/// Untouched for so long, a reserved backup was cut off with its process.
const ABANDONED: TimeDelta = TimeDelta::days(1);

/// The moment that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As of the last commit up to then.
    Time(DateTime<Utc>),
    /// As of this position.
    Lsn(Lsn),
    /// As of the end of the archive.
    Latest,
}

/// Why no backup will do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackup {
    #[error("the archive has no base backup")]
    None,
    #[error("the first base backup of the archive was finished at {first}, after {wanted}")]
    TimeTooEarly { wanted: DateTime<Utc>, first: DateTime<Utc> },
    #[error("the first base backup of the archive is consistent from {first} on, which is behind {wanted}")]
    LsnTooEarly { wanted: Lsn, first: Lsn },
    #[error("no base backup of the archive is of timeline {timeline} or its ancestors")]
    OtherTimelines { timeline: TimelineId },
}

/// The newest backup that was finished before `moment` and is a part of `history`.
pub(super) fn choose<'b>(
    backups: &'b [Facts],
    moment: Moment,
    history: &History,
) -> Result<&'b Facts, NoBackup> {
    if backups.is_empty() {
        return Err(NoBackup::None);
    }
    let on_line = |backup: &&Facts| {
        let ended = history.switchpoint(backup.timeline);
        history.contains(backup.timeline) && ended.is_none_or(|ended| backup.finish <= ended)
    };
    let mut usable: Vec<&Facts> = backups.iter().filter(on_line).collect();
    usable.sort_by_key(|backup| backup.finish);
    let Some(first) = usable.first() else {
        return Err(NoBackup::OtherTimelines { timeline: history.timeline() });
    };
    let before = |backup: &&&Facts| match moment {
        Moment::Latest => true,
        Moment::Lsn(wanted) => backup.finish <= wanted,
        Moment::Time(wanted) => backup.finished_at <= wanted,
    };
    usable.iter().rev().find(before).copied().ok_or(match moment {
        Moment::Latest => NoBackup::None,
        Moment::Lsn(wanted) => NoBackup::LsnTooEarly { wanted, first: first.finish },
        Moment::Time(wanted) => NoBackup::TimeTooEarly { wanted, first: first.finished_at },
    })
}

/// What retention removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expired {
    pub(super) backups: Vec<BackupName>,
    /// Never made, and not being made.
    pub(super) abandoned: Vec<BackupName>,
    pub(super) segments: Vec<SegmentFile>,
    pub(super) partials: Vec<SegmentFile>,
}

/// All but the newest `keep` backups of ours, and the WAL that no other backup needs: neither those that are kept, nor
/// those that are being made, nor those of other tools, which are kept, whether they are understood or not. History files
/// are kept for ever.
pub(super) fn expired(
    backups: &Backups,
    keep: Option<usize>,
    inventory: &Inventory,
    size: WalSegmentSize,
    now: DateTime<Utc>,
) -> Expired {
    let is_abandoned = |backup: &&Unfinished| backup.is_ours && now - backup.touched > ABANDONED;
    let (abandoned, in_making): (Vec<_>, Vec<_>) = backups.unfinished.iter().partition(is_abandoned);
    let abandoned = abandoned.into_iter().map(|backup| backup.name.clone()).collect();
    let only_abandoned = Expired { abandoned, ..Expired::default() };
    let Some(keep) = keep else { return only_abandoned };

    let mut ours: Vec<&Facts> =
        backups.whole.iter().filter(|backup| backup.maker != Maker::AnotherTool).collect();
    ours.sort_by_key(|backup| std::cmp::Reverse(backup.finish));
    let old: BTreeSet<&BackupName> = ours.iter().skip(keep.max(1)).map(|backup| &backup.name).collect();
    let kept = backups.whole.iter().filter(|backup| !old.contains(&backup.name));
    let Some(needed) = kept.map(|backup| size.segment(backup.start)).min() else { return only_abandoned };
    let others = in_making.into_iter().map(|backup| &backup.name);
    let others = others.chain(backups.unknown.iter().map(|backup| &backup.name));
    // A name that is no segment's of this size may stand for any.
    let others = others.map(|name| name.segment(size).map_or(SegmentNumber(0), |segment| segment.number));
    let first = others.min().map_or(needed, |others| others.min(needed));
    let before = |of: &BTreeSet<SegmentFile>| -> Vec<SegmentFile> {
        of.iter().copied().filter(|segment| segment.number < first).collect()
    };
    Expired {
        backups: old.into_iter().cloned().collect(),
        segments: before(&inventory.segments),
        partials: before(&inventory.partials),
        ..only_abandoned
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::{Backups, Moment, NoBackup, Unfinished, Unknown, choose, expired};
    use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize};
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::archive::layout::Inventory;
    use crate::relay::archive::sentinel::{BackupName, Facts, Maker};

    fn size() -> WalSegmentSize {
        WalSegmentSize::new(1 << 20).expect("valid")
    }

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(minute * 60, 0).expect("a time")
    }

    /// From `start` MiB, finished half a MiB later and in `minute`.
    fn backup(timeline: u32, start: u64, minute: i64) -> Facts {
        let (start, timeline) = (Lsn(start << 20 | 0x28), TimelineId(timeline));
        Facts {
            name: BackupName::new(timeline, start, size()),
            timeline,
            start,
            finish: start.advanced(0x8_0000),
            started_at: at(minute - 1),
            finished_at: at(minute),
            version: 150_020,
            system: None,
            uncompressed_bytes: 0,
            compressed_bytes: 0,
            parts: None,
            data_dir: String::new(),
            tablespaces: Vec::new(),
            maker: Maker::Us { segment_size: size() },
        }
    }

    #[test]
    fn the_newest_one_before_the_moment() {
        let backups = [backup(1, 9, 30), backup(1, 3, 10), backup(1, 6, 20)];
        let history = History::without_ancestors(TimelineId(1));
        let start = |moment| choose(&backups, moment, &history).map(|chosen| chosen.start.0 >> 20);
        assert_eq!(start(Moment::Latest), Ok(9));
        assert_eq!(start(Moment::Time(at(29))), Ok(6));
        assert_eq!(start(Moment::Time(at(20))), Ok(6));
        assert_eq!(start(Moment::Time(at(9))), Err(NoBackup::TimeTooEarly { wanted: at(9), first: at(10) }));
        assert_eq!(start(Moment::Lsn(Lsn(0x98_0027))), Ok(6), "not consistent yet");
        assert_eq!(start(Moment::Lsn(Lsn(0x98_0028))), Ok(9));
        assert_eq!(
            start(Moment::Lsn(Lsn(0x30_0000))),
            Err(NoBackup::LsnTooEarly { wanted: Lsn(0x30_0000), first: Lsn(0x38_0028) })
        );
        assert_eq!(choose(&[], Moment::Latest, &history), Err(NoBackup::None));
    }

    #[test]
    fn only_what_is_on_the_line() {
        let history = History::parse(TimelineId(3), b"1\t0/500000\n").expect("a history");
        // The second began before the fork and ended behind it, on a timeline that was given up.
        let backups = [backup(1, 3, 10), backup(1, 5, 20), backup(2, 6, 30)];
        let start =
            |history: &History| choose(&backups, Moment::Latest, history).map(|chosen| chosen.start.0 >> 20);
        assert_eq!(start(&history), Ok(3));
        assert_eq!(start(&History::without_ancestors(TimelineId(2))), Ok(6));
        assert_eq!(
            start(&History::without_ancestors(TimelineId(7))),
            Err(NoBackup::OtherTimelines { timeline: TimelineId(7) })
        );
    }

    #[test]
    fn retention() {
        let segment =
            |timeline, number| SegmentFile { timeline: TimelineId(timeline), number: SegmentNumber(number) };
        let segments =
            (1..12).map(|number| segment(1, number)).chain([segment(2, 4), segment(2, 8)]).collect();
        let inventory = Inventory { segments, partials: [segment(1, 2)].into(), ..Inventory::default() };
        let check_all = |backups: &Backups, keep, gone: &[u64], first_kept: u64| {
            let expired = expired(backups, keep, &inventory, size(), at(10_000));
            let names: Vec<BackupName> = gone.iter().map(|start| backup(1, *start, 1).name).collect();
            assert_eq!(expired.backups, names);
            let left = inventory.segments.iter().filter(|segment| !expired.segments.contains(segment));
            assert_eq!(left.map(|segment| segment.number.0).min(), Some(first_kept));
            assert_eq!(expired.partials.is_empty(), first_kept <= 2);
            expired.abandoned.len()
        };
        let check = |backups: &[Facts], keep, gone: &[u64], first_kept: u64| {
            let backups = Backups { whole: backups.to_vec(), ..Backups::default() };
            assert_eq!(check_all(&backups, Some(keep), gone, first_kept), 0);
        };
        let three = [backup(1, 3, 10), backup(1, 6, 20), backup(1, 9, 30)];
        check(&three, 7, &[], 3);
        check(&three, 2, &[3], 6);
        check(&three, 1, &[3, 6], 9);
        check(&three, 0, &[3, 6], 9);
        check(&[], 1, &[], 1);
        let mut foreign = three.clone();
        foreign[0].maker = Maker::AnotherTool;
        check(&foreign, 1, &[6], 3);

        let all = |unknown: &[u64], unfinished: &[(u64, bool, i64)]| Backups {
            whole: three.to_vec(),
            unknown: unknown
                .iter()
                .map(|n| Unknown { name: backup(1, *n, 1).name, why: "x".to_owned() })
                .collect(),
            unfinished: unfinished
                .iter()
                .map(|&(n, is_ours, minute)| Unfinished {
                    name: backup(1, n, 1).name,
                    is_ours,
                    touched: at(minute),
                })
                .collect(),
        };
        check_all(&all(&[], &[]), None, &[], 1);
        check_all(&all(&[5], &[]), Some(1), &[3, 6], 5);
        check_all(&all(&[20], &[]), Some(1), &[3, 6], 9);
        // Being made, cut off, and another tool's, of which nobody knows.
        let day = 24 * 60;
        assert_eq!(check_all(&all(&[], &[(7, true, 10_000 - day)]), Some(1), &[3, 6], 7), 0);
        assert_eq!(check_all(&all(&[], &[(7, true, 9_999 - day)]), Some(1), &[3, 6], 9), 1);
        assert_eq!(check_all(&all(&[], &[(7, true, 9_999 - day)]), None, &[], 1), 1);
        assert_eq!(check_all(&all(&[], &[(7, false, 0)]), Some(1), &[3, 6], 7), 0);
    }
}
