//! What a moment is restored from, and where recovery is to stop. It is looked at before anything is written.

use chrono::{DateTime, Utc};

use super::{RestoreError, RestoreJob};
use crate::pg::wal::{History, SegmentFile, SegmentNumber, WalSegmentSize};
use crate::pg::{Lsn, TimelineId};
use crate::relay::archive::Moment;
use crate::relay::archive::check::{Claim, LastRecord, SegmentDefect, size_of};
use crate::relay::archive::choose::{Backups, choose};
use crate::relay::archive::fetch::{Held, held};
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
        let passed_over = || unknown.iter().map(|unknown| format!(", not {unknown}")).collect();
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
        let mut number = size.segment(inventory.whole_from(backup.start, history, size));
        let mut wal = ArchivedWal { storage, backup, history, inventory, size };
        // A relay that archives meanwhile may have finished more than was listed.
        loop {
            match wal.reached(number).await? {
                Reached::Finished(segment) => {
                    wal.inventory.segments.insert(segment);
                    number = number.next();
                }
                Reached::Begun(LastRecord { start, end }) => {
                    return Ok(End { lsn: end, last_record: Some(start) });
                }
                Reached::Nothing => {
                    let last_record = wal.last_record(number).await?;
                    return Ok(End { lsn: size.start(number), last_record });
                }
            }
        }
    }
}

/// The archive's WAL, seen from a backup on.
struct ArchivedWal<'a> {
    storage: &'a Storage,
    backup: &'a Facts,
    history: &'a History,
    inventory: Inventory,
    size: WalSegmentSize,
}

/// What the archive has of a segment.
enum Reached {
    Finished(SegmentFile),
    /// Up to this record.
    Begun(LastRecord),
    Nothing,
}

impl ArchivedWal<'_> {
    async fn reached(&self, number: SegmentNumber) -> Result<Reached, RestoreError> {
        for (age, timeline) in self.history.holders(number, self.size).enumerate() {
            let segment = SegmentFile { timeline, number };
            let object = partial_object(segment, self.size);
            let held = match age {
                0 => {
                    held(&segment.name(self.size), async |object: &str| self.storage.get(object).await)
                        .await?
                }
                // What is finished of an ancestor goes on behind the fork.
                _ => self.storage.get(&object).await?.map_or(Held::Nothing, Held::Begun),
            };
            let bytes = match held {
                Held::Finished(_) => return Ok(Reached::Finished(segment)),
                Held::Begun(bytes) => bytes,
                Held::Nothing => continue,
            };
            match self.claim(segment).last_record(&bytes) {
                Ok(last) => return Ok(Reached::Begun(last)),
                Err(SegmentDefect::Empty) => {}
                Err(source) => return Err(RestoreError::Segment { object, source }),
            }
        }
        Ok(Reached::Nothing)
    }

    fn claim(&self, segment: SegmentFile) -> Claim {
        let begin = self.history.begin().unwrap_or(Lsn::INVALID);
        Claim { segment, size: self.size, begin, system: self.backup.system }
    }

    /// The last record that is whole before segment `end`. It may have begun some segments before.
    async fn last_record(&self, end: SegmentNumber) -> Result<Option<Lsn>, RestoreError> {
        let size = self.size;
        let first = size.segment(self.backup.start);
        for number in (first.0..end.0).rev().map(SegmentNumber) {
            let mut segments =
                self.history.holders(number, size).map(|timeline| SegmentFile { timeline, number });
            let Some(segment) = segments.find(|segment| self.inventory.segments.contains(segment)) else {
                return Ok(None);
            };
            let object = segment_object(segment, size);
            let bytes = self.storage.get(&object).await?.unwrap_or_default();
            match self.claim(segment).last_record(&bytes) {
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

    use super::{End, Found, Moment, Target, partial_object, segment_object};
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

    /// An archive of `wal`'s first segments, so many of them finished and the next one begun, and a backup at its start.
    struct Archive {
        storage: Storage,
        backup: Facts,
        wal: WalBuilder,
        _directory: tempfile::TempDir,
    }

    impl Archive {
        fn of(wal: WalBuilder) -> Archive {
            let directory = tempfile::tempdir().expect("a directory");
            let url = format!("file://{}", directory.path().display()).parse().expect("a URL");
            let storage = Storage::make(&url, 3).expect("opens");
            let size = wal.segment_size();
            let backup = Facts {
                name: BackupName::new(TimelineId(1), START, size),
                timeline: TimelineId(1),
                start: START,
                finish: START,
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
            Archive { storage, backup, wal, _directory: directory }
        }

        /// The segment's name, and its bytes.
        fn segment(&self, number: u64) -> (SegmentFile, Bytes) {
            let segment = SegmentFile { timeline: TimelineId(1), number: SegmentNumber(number) };
            let at = usize::try_from((number << 20) - START.0).expect("small");
            let end = self.wal.bytes().len().min(at + (1 << 20));
            (segment, Bytes::copy_from_slice(&self.wal.bytes()[at..end]))
        }

        async fn finish(&self, number: u64) {
            let (segment, bytes) = self.segment(number);
            let size = self.wal.segment_size();
            self.storage.create(&segment_object(segment, size), bytes).await.expect("puts");
            self.storage.remove(&partial_object(segment, size)).await.expect("removes");
        }

        async fn begin(&self, number: u64) {
            let (segment, bytes) = self.segment(number);
            let object = partial_object(segment, self.wal.segment_size());
            self.storage.replace(&object, bytes).await.expect("puts");
        }

        async fn list(&self) -> Vec<Found> {
            self.storage.list(WAL).await.expect("lists")
        }

        async fn end(&self, found: &[Found]) -> End {
            let history = History::without_ancestors(TimelineId(1));
            End::find(&self.storage, &self.backup, &history, found).await.expect("finds")
        }

        /// Where the `nth` record begins.
        fn record(&self, nth: usize) -> Lsn {
            START.advanced(self.wal.record_range(nth).0 as u64)
        }
    }

    const START: Lsn = Lsn(0x30_0000);

    fn records(lengths: &[usize]) -> WalBuilder {
        let mut wal = WalBuilder::new(START, TimelineId(1));
        for len in lengths {
            wal.record(*len);
        }
        wal
    }

    /// The archive ends with a finished segment, and there with a record that goes on in the next.
    #[tokio::test]
    async fn the_last_record_of_whole_segments() {
        let archive = Archive::of(records(&[100_000, 100, 2_500_000, 100]));
        for number in [3, 4] {
            archive.finish(number).await;
        }
        let end = archive.end(&archive.list().await).await;
        assert_eq!(end, End { lsn: Lsn(0x50_0000), last_record: Some(archive.record(1)) });
    }

    #[tokio::test]
    async fn what_is_finished_meanwhile_is_no_end() {
        let archive = Archive::of(records(&[600_000; 6]));
        archive.begin(3).await;
        let listed = archive.list().await;
        assert_eq!(archive.end(&listed).await.last_record, Some(archive.record(0)));
        archive.finish(3).await;
        archive.finish(4).await;
        let at_border = End { lsn: Lsn(0x50_0000), last_record: Some(archive.record(2)) };
        assert_eq!(archive.end(&listed).await, at_border);
        archive.begin(5).await;
        assert_eq!(archive.end(&listed).await.last_record, Some(archive.record(4)));
    }
}
