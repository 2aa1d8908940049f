//! Who streams from this relay, how far each is, and what their queries still need.
//!
//! Positions come from the followers' own status updates, already checked by the walsender that took them. Lag
//! is measured with this host's clock alone: followers' clocks are never compared with ours.

mod lag;

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::pg::protocol::replication::FullTransactionId;
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Follower, FollowerState, Hearing, Lag};

use lag::LagTracker;

/// How far one follower is, as its walsender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) timeline: TimelineId,
    pub(crate) state: FollowerState,
    /// The end of what was handed to the follower's connection.
    pub(crate) sent: Lsn,
    /// These three never go back while the timeline stays.
    pub(crate) write: Lsn,
    pub(crate) flush: Lsn,
    pub(crate) replay: Lsn,
}

impl Progress {
    pub(crate) fn starting() -> Progress {
        Progress {
            timeline: TimelineId(0),
            state: FollowerState::Startup,
            sent: Lsn::INVALID,
            write: Lsn::INVALID,
            flush: Lsn::INVALID,
            replay: Lsn::INVALID,
        }
    }
}

/// The oldest transactions that some follower's queries still need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Xmins {
    pub(crate) xmin: Option<FullTransactionId>,
    pub(crate) catalog_xmin: Option<FullTransactionId>,
}

/// All live followers. Shared by their walsenders, which write, and the relay, which publishes.
#[derive(Debug)]
pub(crate) struct Followers {
    registry: Mutex<Registry>,
    /// Counts changes, so that a reader can wait for the next one.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Registry {
    /// By pid.
    entries: BTreeMap<u32, Entry>,
    last_pid: u32,
    /// The upstream's own end of WAL.
    upstream_end: Lsn,
    arrivals: LagTracker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Or whoever else takes WAL.
    Standby,
    /// Another instance's. It tells the primary itself what its followers need; and where two relays stream from each
    /// other, each would hold the other's word for ever.
    Relay,
}

#[derive(Debug)]
struct Entry {
    application_name: String,
    kind: Kind,
    progress: Progress,
    xmins: Xmins,
    reported_at: Instant,
}

impl Followers {
    pub(crate) fn new() -> Followers {
        let registry = Registry {
            entries: BTreeMap::new(),
            last_pid: 0,
            upstream_end: Lsn::INVALID,
            arrivals: LagTracker::default(),
        };
        Followers { registry: Mutex::new(registry), changes: watch::Sender::new(0) }
    }

    /// Wakes its holder whenever a follower comes, goes, or moves.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes a follower in and gives it the pid of its connection, which no other live one has: temporary
    /// slots are named after it.
    pub(crate) fn register(&self, application_name: String, kind: Kind, now: Instant) -> u32 {
        let pid = self.registry.lock().register(application_name, kind, now);
        self.changed();
        pid
    }

    pub(crate) fn unregister(&self, pid: u32) {
        self.registry.lock().entries.remove(&pid);
        self.changed();
    }

    /// The walsender's own view of its follower.
    pub(crate) fn update(&self, pid: u32, progress: Progress) {
        if let Some(entry) = self.registry.lock().entries.get_mut(&pid) {
            entry.progress = progress;
        }
        self.changed();
    }

    /// The follower itself spoke.
    pub(crate) fn heard(&self, pid: u32, now: Instant) {
        if let Some(entry) = self.registry.lock().entries.get_mut(&pid) {
            entry.reported_at = now;
        }
        self.changed();
    }

    /// Nothing was heard for a while: what is behind is further behind in time, and whoever reads shall see it.
    pub(crate) fn time_passed(&self) {
        self.changed();
    }

    /// The follower's latest hot standby feedback; it replaces what it said before.
    pub(crate) fn feedback(&self, pid: u32, xmins: Xmins) {
        if let Some(entry) = self.registry.lock().entries.get_mut(&pid) {
            entry.xmins = xmins;
        }
    }

    /// The upstream told, by a message received `now`, that its WAL reaches `end`. Lag is counted from here.
    pub(crate) fn observe_upstream_end(&self, end: Lsn, now: Instant) {
        let mut registry = self.registry.lock();
        registry.upstream_end = end;
        registry.arrivals.observe(end, now);
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Vec<Follower> {
        let registry = self.registry.lock();
        registry.entries.iter().map(|(pid, entry)| registry.describe(*pid, entry, now)).collect()
    }

    /// Whether somebody of that name follows, and waits for nothing behind `durable`: one that has come from another
    /// relay may.
    pub(crate) fn has_within(&self, application_name: &str, durable: Lsn) -> bool {
        let follows =
            |entry: &Entry| entry.application_name == application_name && entry.progress.sent <= durable;
        self.registry.lock().entries.values().any(follows)
    }

    /// How far all of those have replayed that stream `timeline` and `counts` says of their names; `None`: nobody does.
    pub(crate) fn replayed_by_all(&self, timeline: TimelineId, counts: impl Fn(&str) -> bool) -> Option<Lsn> {
        let registry = self.registry.lock();
        let streams = |entry: &&Entry| {
            let Progress { timeline: on, state, .. } = entry.progress;
            on == timeline && state != FollowerState::Startup && counts(&entry.application_name)
        };
        registry.entries.values().filter(streams).map(|entry| entry.progress.replay).min()
    }

    /// What to tell upstream for all followers: the oldest of their xmins, or nothing to hold back.
    pub(crate) fn oldest_xmins(&self) -> Xmins {
        let registry = self.registry.lock();
        let counted = || {
            let entries = registry.entries.values().filter(|entry| entry.kind == Kind::Standby);
            entries.map(|entry| entry.xmins)
        };
        Xmins {
            xmin: counted().filter_map(|xmins| xmins.xmin).min(),
            catalog_xmin: counted().filter_map(|xmins| xmins.catalog_xmin).min(),
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Registry {
    fn register(&mut self, application_name: String, kind: Kind, now: Instant) -> u32 {
        let taken = |pid: u32| pid == 0 || self.entries.contains_key(&pid);
        let mut pid = self.last_pid.wrapping_add(1);
        while taken(pid) {
            pid = pid.wrapping_add(1);
        }
        self.last_pid = pid;
        let entry = Entry {
            application_name,
            kind,
            progress: Progress::starting(),
            xmins: Xmins::default(),
            reported_at: now,
        };
        self.entries.insert(pid, entry);
        pid
    }

    fn describe(&self, pid: u32, entry: &Entry, now: Instant) -> Follower {
        let Progress { timeline, state, sent, write, flush, replay } = entry.progress;
        Follower {
            application_name: entry.application_name.clone(),
            pid,
            timeline,
            state,
            sent,
            write,
            flush,
            replay,
            lag: Lag {
                bytes: self.upstream_end.bytes_since(replay),
                time: self.arrivals.age_behind(replay, now),
            },
            reported_at: entry.reported_at,
            hearing: Hearing::ByStream,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Followers, Kind, Progress, Xmins};
    use crate::pg::protocol::replication::FullTransactionId;
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{FollowerState, Lag};

    fn replayed(lsn: u64) -> Progress {
        let lsn = Lsn(lsn);
        let state = FollowerState::Streaming;
        Progress { timeline: TimelineId(1), state, sent: lsn, write: lsn, flush: lsn, replay: lsn }
    }

    #[test]
    fn lag_is_a_pair_of_bytes_and_time() {
        let (followers, start) = (Followers::new(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let pid = followers.register("pg2".to_owned(), Kind::Standby, start);
        let lag = |now| followers.snapshot(now)[0].lag;
        followers.observe_upstream_end(Lsn(100), at(0));
        followers.observe_upstream_end(Lsn(300), at(50));
        followers.update(pid, replayed(100));
        assert_eq!(lag(at(90)), Lag { bytes: 200, time: Duration::from_millis(40) });
        followers.update(pid, replayed(300));
        assert_eq!(lag(at(9000)), Lag::default());
    }

    #[test]
    fn what_all_nodes_have_replayed() {
        let (followers, now) = (Followers::new(), Instant::now());
        let [a, b, stranger] =
            ["a", "b", "x"].map(|name| followers.register(name.to_owned(), Kind::Standby, now));
        let all = |timeline| followers.replayed_by_all(TimelineId(timeline), |name| name != "x");
        assert_eq!(all(1), None, "none streams");
        followers.update(stranger, replayed(50));
        followers.update(a, replayed(300));
        assert_eq!(all(1), Some(Lsn(300)));
        followers.update(b, replayed(200));
        assert_eq!((all(1), all(2)), (Some(Lsn(200)), None));
    }

    #[test]
    fn the_oldest_xmin_of_all_counts_across_epochs_and_zero_clears() {
        let (followers, now) = (Followers::new(), Instant::now());
        let [a, b] = ["a", "b"].map(|name| followers.register(name.to_owned(), Kind::Standby, now));
        let old = Some(FullTransactionId(0x1_FFFF_FF00));
        // A younger transaction: its epoch is higher though its id is lower.
        let young = Some(FullTransactionId(0x2_0000_0010));
        followers.feedback(a, Xmins { xmin: young, catalog_xmin: None });
        followers.feedback(b, Xmins { xmin: old, catalog_xmin: young });
        assert_eq!(followers.oldest_xmins(), Xmins { xmin: old, catalog_xmin: young });
        followers.feedback(b, Xmins::default());
        assert_eq!(followers.oldest_xmins(), Xmins { xmin: young, catalog_xmin: None });
        followers.unregister(a);
        assert_eq!(followers.oldest_xmins(), Xmins::default());
        let relay = followers.register("bellwether_b_t3".to_owned(), Kind::Relay, now);
        followers.feedback(relay, Xmins { xmin: old, catalog_xmin: young });
        assert_eq!(followers.oldest_xmins(), Xmins::default(), "it speaks for itself");
    }

    #[test]
    fn every_change_wakes_and_no_pid_is_shared() {
        let (followers, now) = (Followers::new(), Instant::now());
        let mut changes = followers.subscribe();
        let (a, b) = (
            followers.register("x".to_owned(), Kind::Standby, now),
            followers.register("x".to_owned(), Kind::Standby, now),
        );
        assert_ne!(a, b);
        assert!(changes.has_changed().expect("the registry lives"));
        changes.mark_unchanged();
        followers.update(a, replayed(1));
        assert!(changes.has_changed().expect("the registry lives"));
        followers.unregister(a);
        assert_eq!(followers.snapshot(now).len(), 1);
        assert_ne!(followers.register("x".to_owned(), Kind::Standby, now), b);
    }
}
