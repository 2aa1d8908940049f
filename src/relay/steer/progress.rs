//! What the status tells of a stream under way.

use std::time::Instant;

use tokio::sync::watch;

use crate::relay::receiver::Progress;
use crate::relay::status::{self, UpstreamStatus};
use crate::topology::{NodeName, Term, Told, Upstream};

pub(super) fn publish_substitute(status: &watch::Sender<UpstreamStatus>, name: &str, progress: Progress) {
    status.send_if_modified(|status| {
        let mut next = status.clone();
        if progress.streaming.is_some() {
            next.received = progress.received;
            next.substitute = Some(status::Substitute { name: name.to_owned(), end: progress.upstream_end });
            // The upstream itself may have told of more.
            next.upstream_end = status.upstream_end.max(progress.upstream_end);
        }
        let changed = next != *status;
        *status = next;
        changed
    });
}

pub(super) fn publish(
    status: &watch::Sender<UpstreamStatus>,
    node: &NodeName,
    term: Term,
    since: Instant,
    progress: Progress,
) {
    let upstream = progress.streaming.map(|_| Upstream::Streaming {
        node: node.clone(),
        since,
        last_message: progress.heard_at,
    });
    status.send_if_modified(|status| {
        let next = UpstreamStatus {
            alarm: status.alarm.clone(),
            substitute: None,
            upstream: upstream.unwrap_or_else(|| status.upstream.clone()),
            received: progress.received,
            // Of this upstream: another one's end says nothing of it.
            upstream_end: if progress.upstream_end.is_valid() {
                progress.upstream_end
            } else {
                status.upstream_end
            },
            // What it says before it streams is no position.
            told: progress.streaming.map(|_| Told { term, at: progress.heard_at }).or(status.told),
        };
        let changed = next != *status;
        *status = next;
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::sync::watch;

    use super::{Progress, UpstreamStatus, publish};
    use crate::pg::{Lsn, TimelineId};
    use crate::topology::{Term, Told, Upstream};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn the_end_of_a_lost_primary_is_not_the_next_ones() {
        let status = watch::Sender::new(UpstreamStatus::idle());
        let node = "pg1".parse().expect("a name");
        let now = Instant::now();
        let told = |upstream_end| {
            let streaming = Some(TimelineId(1));
            let progress =
                Progress { received: Lsn(90), upstream_end: Lsn(upstream_end), heard_at: now, streaming };
            publish(&status, &node, Term(1), now, progress);
            status.borrow().upstream_end
        };
        assert_eq!(told(100), Lsn(100));
        assert_eq!(told(0), Lsn(100), "a new connection that has not heard yet");
        assert_eq!(told(95), Lsn(95), "a promoted standby begins before it");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary instant")]
    fn what_an_upstream_says_before_it_streams_is_no_position() {
        let status = watch::Sender::new(UpstreamStatus::idle());
        let node = "pg1".parse().expect("a name");
        let now = Instant::now() + Duration::from_secs(100);
        let at = |ms| now + Duration::from_millis(ms);
        let told = |term, streaming: Option<u32>, ms| {
            let streaming = streaming.map(TimelineId);
            let progress =
                Progress { received: Lsn(90), upstream_end: Lsn(100), heard_at: at(ms), streaming };
            publish(&status, &node, Term(term), now, progress);
            status.borrow().told
        };
        assert_eq!(told(1, None, 10), None);
        assert_eq!(told(1, Some(1), 20), Some(Told { term: Term(1), at: at(20) }));
        assert_eq!(told(2, None, 30), Some(Told { term: Term(1), at: at(20) }), "by the one before");
        status.send_modify(|status| status.upstream = Upstream::Idle);
        assert_eq!(told(2, Some(1), 40), Some(Told { term: Term(2), at: at(40) }));
    }
}
