//! WAL that base backups under way, and those just over, still need: from where each begins.
//!
//! A copy is of use only with all WAL from its start on, and it has no slot: who has taken it comes for the WAL on
//! another connection (`pg_basebackup -X stream`), or as a new standby. So its start is held while the backup runs, and
//! for [`GRACE`] behind it. PURE.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::pg::Lsn;

/// For a new standby to be started and to connect.
pub(crate) const GRACE: Duration = Duration::from_secs(300);

/// Bounded by the connections that there are, and by as many as come within [`GRACE`].
#[derive(Debug, Default)]
pub(crate) struct Backups {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By an id of ours.
    backups: BTreeMap<u64, Hold>,
    last_id: u64,
}

#[derive(Debug)]
struct Hold {
    start: Lsn,
    until: Until,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The backup runs.
    Ended,
    At(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackupId(u64);

impl Backups {
    pub(crate) fn begin(&self, start: Lsn) -> BackupId {
        let mut held = self.held.lock();
        held.last_id += 1;
        let id = held.last_id;
        held.backups.insert(id, Hold { start, until: Until::Ended });
        BackupId(id)
    }

    /// Nobody will come for its WAL.
    pub(crate) fn forget(&self, BackupId(id): BackupId) {
        self.held.lock().backups.remove(&id);
    }

    /// Whoever has it may come for its WAL for a while.
    pub(crate) fn ended(&self, BackupId(id): BackupId, now: Instant) {
        let mut held = self.held.lock();
        held.forget_old(now);
        if let Some(hold) = held.backups.get_mut(&id) {
            hold.until = Until::At(now + GRACE);
        }
    }

    /// The oldest position that is held.
    pub(crate) fn oldest(&self, now: Instant) -> Option<Lsn> {
        let mut held = self.held.lock();
        held.forget_old(now);
        held.backups.values().map(|hold| hold.start).min()
    }
}

impl Held {
    fn forget_old(&mut self, now: Instant) {
        self.backups.retain(|_, hold| match hold.until {
            Until::Ended => true,
            Until::At(at) => now < at,
        });
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::Instant;

    use super::{Backups, GRACE};
    use crate::pg::Lsn;

    #[test]
    fn a_start_is_held_until_somebody_had_time_to_come() {
        let (backups, begin) = (Backups::default(), Instant::now());
        assert_eq!(backups.oldest(begin), None);
        let [first, second, refused] = [50, 80, 10].map(|start| backups.begin(Lsn(start)));
        assert_eq!(backups.oldest(begin), Some(Lsn(10)));
        backups.forget(refused);
        assert_eq!(backups.oldest(begin + 100 * GRACE), Some(Lsn(50)), "as long as it runs");
        backups.ended(first, begin);
        backups.ended(second, begin + GRACE / 2);
        assert_eq!(backups.oldest(begin + GRACE / 2), Some(Lsn(50)));
        assert_eq!(backups.oldest(begin + GRACE), Some(Lsn(80)));
        assert_eq!(backups.oldest(begin + 2 * GRACE), None);
    }
}
