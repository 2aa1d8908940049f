//! What a moment is restored from, and where recovery is to stop. It is looked at before anything is written.

use chrono::{DateTime, Utc};

use super::{RestoreError, RestoreJob};
use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};
use crate::relay::archive::Moment;
use crate::relay::archive::check::{Claim, LastRecord, SegmentDefect, size_of};
use crate::relay::archive::choose::{Backups, Unknown, choose};
use crate::relay::archive::layout::{Inventory, WAL, history_object, partial_object, segment_object};
use crate::relay::archive::retention::look;
use crate::relay::archive::sentinel::{Facts, Maker};
use crate::relay::archive::storage::{Found, Storage};

/// What will be restored, and where recovery is to stop.
pub(super) struct Plan {
    pub(super) backup: Facts,
    pub(super) timeline: TimelineId,
    pub(super) target: Target,
}

/// As PostgreSQL's settings say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Time(DateTime<Utc>),
    /// Before the record that begins there.
    Before(Lsn),
    /// Behind the record that begins there.
    Behind(Lsn),
    End,
}

impl Plan {
    pub(super) async fn make(storage: &Storage, job: &RestoreJob) -> Result<Plan, RestoreError> {
        let Backups { whole: backups, unknown, .. } = look(storage).await?;
        let found = storage.list(WAL).await?;
        let names = || found.iter().filter_map(|file| file.name.rsplit('/').next());
        let histories = Inventory::read(names(), WalSegmentSize::default()).histories;
        let newest = histories.last().copied().max(backups.iter().map(|backup| backup.timeline).max());
        let timeline = job.timeline.or(newest).unwrap_or(TimelineId(1));
        let history = history(storage, timeline).await?;
        let passed_over = || {
            unknown.iter().map(|Unknown { name, why }| format!(", not {}: {why}", name.as_str())).collect()
        };
        let chosen = choose(&backups, job.moment, &history);
        let backup =
            chosen.map_err(|source| RestoreError::Backup { source, passed_over: passed_over() })?.clone();
        if let Moment::Time(wanted) = job.moment {
            let newest = found.iter().map(|file| DateTime::from(file.modified)).max().unwrap_or_default();
            if newest < wanted {
                return Err(RestoreError::BeyondTime { wanted, newest });
            }
        }
        let end = End::find(storage, &backup, &history, &found).await?;
        let beyond = |wanted| RestoreError::BeyondEnd {
            backup: backup.name.as_str().to_owned(),
            wanted,
            end: end.lsn,
        };
        if end.lsn < backup.finish {
            return Err(beyond(backup.finish));
        }
        let target = match (job.moment, end.target(job.moment)) {
            (_, Some(target)) => target,
            (Moment::Lsn(wanted), None) => return Err(beyond(wanted)),
            (Moment::Time(_) | Moment::Latest, None) => Target::End,
        };
        Ok(Plan { backup, timeline, target })
    }
}

/// Where the archive's WAL ends, seen from a backup on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    lsn: Lsn,
    /// The begin of the last whole record.
    last_record: Option<Lsn>,
}

impl End {
    /// `None` where the WAL does not go that far.
    fn target(&self, moment: Moment) -> Option<Target> {
        let wanted = match moment {
            Moment::Latest => return Some(Target::End),
            Moment::Time(time) => return Some(Target::Time(time)),
            Moment::Lsn(wanted) => wanted,
        };
        match self.last_record {
            _ if wanted > self.lsn => None,
            // No record begins at it or behind it: recovery would end before it has found its target.
            Some(last) if wanted > last => Some(Target::Behind(last)),
            Some(_) => Some(Target::Before(wanted)),
            None => Some(Target::End),
        }
    }

    async fn find(
        storage: &Storage,
        backup: &Facts,
        history: &History,
        found: &[Found],
    ) -> Result<End, RestoreError> {
        let size = segment_size(storage, backup, found).await?;
        let names = found.iter().filter_map(|file| file.name.rsplit('/').next());
        let inventory = Inventory::read(names, size);
        let whole = inventory.whole_from(backup.start, history, size);
        let number = size.segment(whole);
        let begin = history.begin().unwrap_or(Lsn::INVALID);
        for timeline in history.holders(number, size) {
            let segment = SegmentFile { timeline, number };
            let claim = Claim { segment, size, begin, system: backup.system };
            let object = partial_object(segment, size);
            let Some(bytes) = storage.get(&object).await? else { continue };
            match claim.last_record(&bytes) {
                Ok(LastRecord { start, end }) => return Ok(End { lsn: end, last_record: Some(start) }),
                Err(SegmentDefect::Empty) => {}
                Err(source) => return Err(RestoreError::Segment { object, source }),
            }
        }
        let whole_segments = Whole { storage, backup, history, inventory: &inventory, size };
        Ok(End { lsn: whole, last_record: whole_segments.last_record(number).await? })
    }
}

/// The archive's finished segments, seen from a backup on.
struct Whole<'a> {
    storage: &'a Storage,
    backup: &'a Facts,
    history: &'a History,
    inventory: &'a Inventory,
    size: WalSegmentSize,
}

impl Whole<'_> {
    /// The last record that is whole before segment `end`. It may have begun some segments before.
    async fn last_record(&self, end: SegmentNumber) -> Result<Option<Lsn>, RestoreError> {
        let (size, begin) = (self.size, self.history.begin().unwrap_or(Lsn::INVALID));
        let first = size.segment(self.backup.start);
        for number in (first.0..end.0).rev().map(SegmentNumber) {
            let mut segments =
                self.history.holders(number, size).map(|timeline| SegmentFile { timeline, number });
            let Some(segment) = segments.find(|segment| self.inventory.segments.contains(segment)) else {
                return Ok(None);
            };
            let object = segment_object(segment, size);
            let bytes = self.storage.get(&object).await?.unwrap_or_default();
            match (Claim { segment, size, begin, system: self.backup.system }).last_record(&bytes) {
                Ok(last) => return Ok(Some(last.start)),
                Err(SegmentDefect::Empty) => {}
                Err(source) => return Err(RestoreError::Segment { object, source }),
            }
        }
        Ok(None)
    }
}

/// Of our own backups it is told; of others' the WAL tells it.
async fn segment_size(
    storage: &Storage,
    backup: &Facts,
    found: &[Found],
) -> Result<WalSegmentSize, RestoreError> {
    if let Maker::Us { segment_size } = backup.maker {
        return Ok(segment_size);
    }
    let Some(any) = found.iter().find(|file| !file.name.contains(".history")) else {
        return Ok(WalSegmentSize::default());
    };
    let bytes = storage.get(&any.name).await?.unwrap_or_default();
    size_of(&bytes).map_err(|source| RestoreError::Segment { object: any.name.clone(), source })
}

async fn history(storage: &Storage, timeline: TimelineId) -> Result<History, RestoreError> {
    if timeline.0 <= 1 {
        return Ok(History::without_ancestors(timeline));
    }
    let content =
        storage.get(&history_object(timeline)).await?.ok_or(RestoreError::NoHistory { timeline })?;
    History::parse(timeline, &content).map_err(|source| RestoreError::History { timeline, source })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::DateTime;

    use super::{End, Moment, Target, segment_object};
    use crate::pg::wal::build::{SYSTEM, WalBuilder};
    use crate::pg::wal::{History, SegmentFile, SegmentNumber};
    use crate::pg::{Lsn, TimelineId};
    use crate::relay::archive::layout::WAL;
    use crate::relay::archive::sentinel::{BackupName, Facts, Maker};
    use crate::relay::archive::storage::Storage;

    /// A target at which no record begins, and none behind it, is never found: the server gives up at the end of its WAL.
    #[test]
    fn a_position_behind_the_last_record_begins_is_its_end() {
        let check = |end: u64, last_record: Option<u64>, wanted: u64, expected: Option<Target>| {
            let end = End { lsn: Lsn(end), last_record: last_record.map(Lsn) };
            assert_eq!(end.target(Moment::Lsn(Lsn(wanted))), expected, "{end:?} {wanted}");
        };
        check(200, Some(150), 201, None);
        check(200, Some(150), 200, Some(Target::Behind(Lsn(150))));
        check(200, Some(150), 151, Some(Target::Behind(Lsn(150))));
        check(200, Some(150), 150, Some(Target::Before(Lsn(150))));
        check(200, Some(150), 100, Some(Target::Before(Lsn(100))));
        check(200, None, 200, Some(Target::End));
    }

    /// The archive ends with a finished segment, and there with a record that goes on in the next.
    #[tokio::test]
    async fn the_last_record_of_whole_segments() {
        let mut wal = WalBuilder::new(Lsn(0x30_0000), TimelineId(1));
        for len in [100_000, 100, 2_500_000, 100] {
            wal.record(len);
        }
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
        let storage = Storage::make(&url, 3).expect("opens");
        let history = History::without_ancestors(TimelineId(1));
        let size = wal.segment_size();
        let backup = Facts {
            name: BackupName::new(TimelineId(1), Lsn(0x30_0000), size),
            timeline: TimelineId(1),
            start: Lsn(0x30_0000),
            finish: Lsn(0x30_0000),
            started_at: DateTime::UNIX_EPOCH,
            finished_at: DateTime::UNIX_EPOCH,
            version: 150_000,
            system: Some(SYSTEM),
            uncompressed_bytes: 0,
            compressed_bytes: 0,
            parts: None,
            data_dir: String::new(),
            tablespaces: Vec::new(),
            maker: Maker::Us { segment_size: size },
        };
        for (at, number) in [(0, 3), (1 << 20, 4)] {
            let segment = SegmentFile { timeline: TimelineId(1), number: SegmentNumber(number) };
            let bytes = Bytes::copy_from_slice(&wal.bytes()[at..at + (1 << 20)]);
            storage.create(&segment_object(segment, size), bytes).await.expect("puts");
        }
        let found = storage.list(WAL).await.expect("lists");
        let end = End::find(&storage, &backup, &history, &found).await.expect("finds");
        let (start, _) = wal.record_range(1);
        assert_eq!(end, End { lsn: Lsn(0x50_0000), last_record: Some(Lsn(0x30_0000 + start as u64)) });
    }
}
