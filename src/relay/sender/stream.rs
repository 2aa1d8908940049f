//! One stream, from CopyBothResponse to CopyDone: what may be sent next, when to speak, when to give up. PURE.

use std::time::{Duration, Instant};

use crate::pg::protocol::replication::Reply;
use crate::pg::{Lsn, SlotName, TimelineId};

use super::SenderConfig;

/// PostgreSQL's page (`XLOG_BLCKSZ`).
const PAGE: u64 = 8192;

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) timeline: TimelineId,
    pub(super) slot: Option<SlotName>,
    /// All before it has been handed out. Never beyond what was durable on `timeline`.
    pub(super) sent: Lsn,
    /// Where and into what the timeline ended, once it has.
    pub(super) end: Option<TimelineEnd>,
    pub(super) sending: Sending,
    pub(super) clock: StreamClock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimelineEnd {
    pub(super) next: TimelineId,
    pub(super) switchpoint: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Wal,
    /// Bytes from `sent` on were asked for.
    Reading,
    /// Our CopyDone is out; the follower's is awaited.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Everything that may be sent is sent.
    Wait,
    /// This many bytes from `sent` on, at most.
    Chunk(usize),
    /// The timeline is over and all of it is sent.
    TimelineOver,
}

impl Stream {
    /// The end of what may be sent, while `durable` is that of the current timeline.
    pub(super) fn limit(&self, durable: Lsn) -> Lsn {
        self.end.map_or(durable, |end| end.switchpoint)
    }

    /// What comes next when `limit` is the end of what may be sent on this timeline.
    pub(super) fn step(&self, limit: Lsn, max: usize) -> Step {
        match self.end {
            Some(end) if end.switchpoint <= self.sent => Step::TimelineOver,
            // Also a follower that starts a little ahead: it waits for us.
            _ if limit <= self.sent => Step::Wait,
            _ => Step::Chunk(chunk(self.sent, limit, max)),
        }
    }
}

/// As walsender.c (`XLogSendPhysical`): whole pages, unless the end is near.
fn chunk(sent: Lsn, limit: Lsn, max: usize) -> usize {
    let max = max as u64;
    let missing = limit.bytes_since(sent);
    let length = if missing <= max { missing } else { max - (sent.0 + max) % PAGE };
    usize::try_from(length).expect("at most `max`")
}

/// When the follower is spoken to, asked, and given up.
#[derive(Debug)]
pub(super) struct StreamClock {
    config: SenderConfig,
    /// When the follower last said anything.
    heard_at: Instant,
    /// When the last keepalive was handed out.
    keepalive_at: Instant,
    /// When it was first asked to break its present silence.
    asked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Keepalive(Reply),
    /// `wal_sender_timeout` of silence.
    GiveUp,
}

/// Whether the follower has replayed all that it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    Behind,
    /// Or the follower does not replay, as pg_receivewal does not.
    Done,
}

impl StreamClock {
    /// A follower's `wal_receiver_timeout` never fires, whatever happens upstream.
    const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
    /// A standby reports a replay by itself only when it has replayed everything. While it has not, it is asked
    /// this often, so that reads are routed by fresh positions.
    const REPLAY_POLL_INTERVAL: Duration = Duration::from_millis(200);

    pub(super) fn new(config: SenderConfig, now: Instant) -> StreamClock {
        StreamClock { config, heard_at: now, keepalive_at: now, asked_at: None }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.asked_at = None;
    }

    pub(super) fn keepalive_sent(&mut self, reply: Reply, now: Instant) {
        self.keepalive_at = now;
        if reply == Reply::Requested {
            self.asked_at.get_or_insert(now);
        }
    }

    pub(super) fn due(&self, replay: Replay, now: Instant) -> Due {
        if self.give_up_at().is_some_and(|at| at <= now) {
            Due::GiveUp
        } else if self.keepalive_due_at(replay) <= now {
            let silent = now.saturating_duration_since(self.heard_at) >= self.half_timeout();
            let ask = silent || replay == Replay::Behind;
            Due::Keepalive(if ask { Reply::Requested } else { Reply::NotRequested })
        } else {
            Due::Nothing
        }
    }

    pub(super) fn next(&self, replay: Replay) -> Instant {
        let keepalive = self.keepalive_due_at(replay);
        self.give_up_at().map_or(keepalive, |give_up| give_up.min(keepalive))
    }

    fn keepalive_due_at(&self, replay: Replay) -> Instant {
        let interval = match replay {
            Replay::Behind => Self::REPLAY_POLL_INTERVAL,
            Replay::Done => Self::KEEPALIVE_INTERVAL.min(self.half_timeout()),
        };
        self.keepalive_at + interval
    }

    /// Never before it was asked, and then had half the timeout to answer: a stall of our own is not its fault.
    fn give_up_at(&self) -> Option<Instant> {
        let asked_at = self.asked_at?;
        Some((self.heard_at + self.config.wal_sender_timeout).max(asked_at + self.half_timeout()))
    }

    fn half_timeout(&self) -> Duration {
        self.config.wal_sender_timeout / 2
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests: any instant will do to count from")]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Due, Replay, StreamClock, chunk};
    use crate::pg::Lsn;
    use crate::pg::protocol::replication::Reply::{NotRequested, Requested};
    use crate::relay::sender::SenderConfig;

    #[test]
    fn chunks_end_on_pages_unless_at_the_end() {
        let check = |sent, limit, expected| assert_eq!(chunk(Lsn(sent), Lsn(limit), 0x2_0000), expected);
        check(0x100_0000, 0x900_0000, 0x2_0000);
        check(0x154_EA90, 0x900_0000, 0x1_F570);
        check(0x154_EA90, 0x154_EA91, 1);
        check(0x154_EA90, 0x156_EA90, 0x2_0000);
    }

    fn clock(now: Instant) -> StreamClock {
        StreamClock::new(SenderConfig { wal_sender_timeout: Duration::from_secs(10) }, now)
    }

    #[test]
    fn a_silent_follower_is_asked_at_half_and_given_up_at_full() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut clock = clock(start);
        assert_eq!(clock.due(Replay::Done, at(999)), Due::Nothing);
        assert_eq!(clock.due(Replay::Done, at(1000)), Due::Keepalive(NotRequested));
        clock.keepalive_sent(NotRequested, at(4000));
        assert_eq!(clock.due(Replay::Done, at(5000)), Due::Keepalive(Requested));
        clock.keepalive_sent(Requested, at(5000));
        assert_eq!(clock.due(Replay::Done, at(9999)), Due::Keepalive(Requested));
        assert_eq!(clock.due(Replay::Done, at(10_000)), Due::GiveUp);
        clock.heard(at(10_000));
        assert_eq!(clock.due(Replay::Done, at(10_000)), Due::Keepalive(NotRequested));
    }

    #[test]
    fn a_stall_of_our_own_is_not_counted() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = clock(start);
        // Nothing ran here for a minute.
        assert_eq!(clock.due(Replay::Done, at(60)), Due::Keepalive(Requested));
        clock.keepalive_sent(Requested, at(60));
        assert_ne!(clock.due(Replay::Done, at(64)), Due::GiveUp);
        assert_eq!(clock.due(Replay::Done, at(65)), Due::GiveUp);
    }

    #[test]
    fn a_follower_that_is_behind_is_asked_often() {
        let start = Instant::now();
        let clock = clock(start);
        let later = start + StreamClock::REPLAY_POLL_INTERVAL;
        assert_eq!(clock.next(Replay::Behind), later);
        assert_eq!(clock.due(Replay::Behind, later), Due::Keepalive(Requested));
        assert_eq!(clock.due(Replay::Done, later), Due::Nothing);
    }
}
