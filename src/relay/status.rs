//! What the plane publishes of itself: [`WalStatus`], put together from the store, the stream and the followers.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::followers::Followers;
use super::metrics::Metrics;
use super::store::Store;
use crate::pg::Lsn;
use crate::topology::{Alarm, ArchiveStatus, Told, Upstream, WalAlarm, WalStatus};

/// At most one publication in this time: each wakes readers on other threads. No reader is in a greater hurry: a
/// session learns the position of its own write every 10 ms.
const COALESCE: Duration = Duration::from_millis(5);

/// The stream's side of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpstreamStatus {
    pub(super) upstream: Upstream,
    pub(super) received: Lsn,
    pub(super) upstream_end: Lsn,
    /// When an upstream has told that.
    pub(super) told: Option<Told>,
    pub(super) substitute: Option<Substitute>,
    pub(super) alarm: Option<WalAlarm>,
}

/// Who stands in for the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Substitute {
    pub(super) name: String,
    /// Of its WAL, as far as it has told.
    pub(super) end: Lsn,
}

impl UpstreamStatus {
    pub(super) fn idle() -> UpstreamStatus {
        UpstreamStatus {
            upstream: Upstream::Idle,
            received: Lsn::INVALID,
            upstream_end: Lsn::INVALID,
            told: None,
            substitute: None,
            alarm: None,
        }
    }

    /// The substitute has given everything that it had.
    pub(super) fn is_drained(&self) -> bool {
        self.substitute.as_ref().is_some_and(|from| from.end.is_valid() && from.end <= self.received)
    }
}

/// What others of the plane tell.
pub(super) struct Seen {
    pub(super) upstream: watch::Receiver<UpstreamStatus>,
    pub(super) archive: watch::Receiver<Option<ArchiveStatus>>,
    pub(super) alarms: watch::Receiver<Arc<Vec<Alarm>>>,
}

/// Publishes until the store ends.
pub(super) async fn publish(
    store: Store,
    followers: Arc<Followers>,
    seen: Seen,
    status: watch::Sender<Arc<WalStatus>>,
    metrics: Metrics,
) {
    let Seen { mut upstream, mut archive, mut alarms } = seen;
    let mut report = store.report();
    let mut changes = followers.subscribe();
    loop {
        changes.borrow_and_update();
        let stream = upstream.borrow_and_update().clone();
        let stored = report.borrow_and_update().clone();
        if stream.upstream_end.is_valid() {
            followers.observe_upstream_end(stream.upstream_end, Instant::now());
        }
        let alarm = stream.alarm.filter(|alarm| alarm.holds(stored.tail.timeline, stored.tail.durable));
        metrics.show(alarm.as_ref());
        let next = WalStatus {
            promised: stored.promised,
            log_term: stored.log_term(),
            system: store.system(),
            timeline: stored.tail.timeline,
            received: stream.received.max(stored.tail.durable),
            durable: stored.tail.durable,
            verified: stored.verified,
            upstream_end: stream.upstream_end,
            told: stream.told,
            upstream: stream.upstream,
            substitute: stream.substitute.map(|substitute| substitute.name),
            alarm,
            alarms: alarms.borrow_and_update().clone(),
            oldest: store.oldest_kept(),
            followers: followers.snapshot(Instant::now()),
            archive: archive.borrow_and_update().clone(),
        };
        status.send_replace(Arc::new(next));
        tokio::time::sleep(COALESCE).await;
        let ended = tokio::select! {
            changed = report.changed() => changed.is_err(),
            changed = upstream.changed() => changed.is_err(),
            changed = changes.changed() => changed.is_err(),
            Ok(()) = archive.changed() => false,
            Ok(()) = alarms.changed() => false,
        };
        if ended {
            return;
        }
    }
}
