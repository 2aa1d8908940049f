//! Where the WAL stands: at the relay, at its upstream, at each follower.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Alarm, AlarmKind, NodeName, Term};
use crate::pg::{Lsn, SlotName, SystemIdentifier, TimelineId};

/// Longer than an idle primary is not asked for by default, and an answer of another instance waits.
const LATE: Duration = Duration::from_secs(1);

/// Published by the relay whenever one of its facts changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalStatus {
    /// The highest term the relay has durably promised: it no longer takes a byte from, nor acknowledges one
    /// to, the primary of an earlier term.
    pub promised: Term,
    /// The last term whose floor ([`super::Floor`]) the log has reached: what it has at its end is newer than all that
    /// a log of an earlier term has.
    pub log_term: Term,
    /// `None` until the first upstream was seen.
    pub system: Option<SystemIdentifier>,
    /// The timeline the store is on, announced to followers.
    pub timeline: TimelineId,
    /// durable <= received. Only `durable` is acknowledged upstream and shipped downstream.
    pub received: Lsn,
    pub durable: Lsn,
    /// The end of the last whole, CRC-checked record; <= durable.
    pub verified: Lsn,
    /// The upstream's own end of WAL, as its last message told.
    pub upstream_end: Lsn,
    /// When it was told last; `None`: not since this process began.
    pub told: Option<Told>,
    pub upstream: Upstream,
    /// Who gives what `upstream` cannot give now: a standby's name, or another relay's address.
    pub substitute: Option<String>,
    pub alarm: Option<WalAlarm>,
    /// All that were raised and are remembered; the relay goes on under most.
    pub alarms: Arc<Vec<Alarm>>,
    /// Start of the oldest WAL kept.
    pub oldest: Lsn,
    pub followers: Vec<Follower>,
    /// `None`: nothing is archived.
    pub archive: Option<ArchiveStatus>,
}

/// What of the WAL is in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Up to here, the begun segment included.
    pub archived: Lsn,
    /// Why it does not go on.
    pub trouble: Option<String>,
    pub unknown_backups: Vec<UnknownBackup>,
}

/// A base backup of the archive that is not understood: all WAL from its begin on is kept for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownBackup {
    pub name: String,
    pub why: String,
}

impl WalStatus {
    pub fn starting() -> WalStatus {
        WalStatus {
            promised: Term(0),
            log_term: Term(0),
            system: None,
            timeline: TimelineId(0),
            received: Lsn::INVALID,
            durable: Lsn::INVALID,
            verified: Lsn::INVALID,
            upstream_end: Lsn::INVALID,
            told: None,
            upstream: Upstream::Idle,
            substitute: None,
            alarm: None,
            alarms: Arc::default(),
            oldest: Lsn::INVALID,
            followers: Vec::new(),
            archive: None,
        }
    }

    /// The live follower that streams as `node`.
    pub fn follower(&self, node: &NodeName) -> Option<&Follower> {
        self.followers.iter().find(|f| f.application_name == node.as_str())
    }

    /// In milliseconds since the Unix epoch; `None`: it is not lost.
    pub fn slot_lost_at_ms(&self, slot: &SlotName) -> Option<u64> {
        let is_it = |alarm: &&Alarm| {
            alarm.lasts() && alarm.kind == AlarmKind::LostSlot && alarm.object == slot.as_str()
        };
        self.alarms.iter().find(is_it).map(|alarm| alarm.raised_at_ms)
    }
}

/// Up to where followers get WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// All that is durable here: there is no other relay.
    Alone,
    /// What enough relays have, in the history of `term`.
    Quorum {
        term: Term,
        /// `None`: nothing is known to be there.
        end: Option<(TimelineId, Lsn)>,
    },
}

/// The relay's own connection to the primary: first-hand evidence of the primary's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The directive names no upstream.
    Idle,
    Connecting {
        node: NodeName,
        since: Instant,
        last_error: Option<String>,
    },
    /// `last_message`: when the last byte came; a live walsender is never silent for long.
    Streaming {
        node: NodeName,
        since: Instant,
        last_message: Instant,
    },
    Ended {
        node: NodeName,
        at: Instant,
        how: StreamEnd,
    },
}

/// The ends of a stream, told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamEnd {
    /// CopyDone and a result set: the upstream's timeline ended there.
    TimelineEnd { next: TimelineId, switchpoint: Lsn },
    /// `COPY 0` without CopyDone: an orderly shutdown, everything was sent.
    Shutdown,
    /// EOF, reset or silence: a failure.
    Lost { why: String },
    /// The upstream answered with an error, or is not the cluster it should be.
    Refused { why: String, cause: Refusal },
}

/// What about a refusal others act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It does not keep the WAL that comes next any more.
    Removed,
    /// Where we have WAL it has other bytes on the same timeline: two servers wrote on it.
    Diverged {
        timeline: TimelineId,
        lsn: Lsn,
    },
    /// Our log is not a part of its history, that of timeline `theirs`: it left that at `fork`.
    Branched {
        theirs: TimelineId,
        fork: (TimelineId, Lsn),
    },
    Other,
}

/// The relay does not go on by itself. It holds until the durable end moves again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalAlarm {
    /// Nobody who answers has the WAL behind `end`.
    Gap { timeline: TimelineId, end: Lsn },
    /// `source` has other WAL at `lsn` than what is stored up to `end`, which stays.
    Diverged { source: String, timeline: TimelineId, lsn: Lsn, end: Lsn },
}

impl WalAlarm {
    /// Nothing has come since it was raised, as the log ends at `durable` of `timeline`.
    pub fn holds(&self, timeline: TimelineId, durable: Lsn) -> bool {
        let (WalAlarm::Gap { timeline: on, end } | WalAlarm::Diverged { timeline: on, end, .. }) = self;
        *on == timeline && durable <= *end
    }
}

impl fmt::Display for WalAlarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalAlarm::Gap { timeline, end } => {
                write!(f, "no source has the WAL behind {end} of timeline {timeline} any more")
            }
            WalAlarm::Diverged { source, timeline, lsn, .. } => write!(
                f,
                "split brain: {source} has other WAL at {lsn} of timeline {timeline} than what is stored here"
            ),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// As the follower told at startup; for our own standbys the node's name.
    pub application_name: String,
    /// Unique per connection.
    pub pid: u32,
    pub timeline: TimelineId,
    pub state: FollowerState,
    pub sent: Lsn,
    /// The highest it reported on its timeline (after a reconnect `write` starts again at the segment's start,
    /// walreceiver.c; positions here never go back while the timeline stays).
    pub write: Lsn,
    pub flush: Lsn,
    pub replay: Lsn,
    pub lag: Lag,
    /// When it last reported.
    pub reported_at: Instant,
    pub hearing: Hearing,
}

/// Word of how far the primary of a term is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub term: Term,
    pub at: Instant,
}

/// When the relay that feeds a follower has heard last how far the primary is, from which [`Follower::lag`] is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// There is one relay: its stream tells.
    ByStream,
    /// Of several relays; while writes are open, of the directive's primary.
    At(Instant),
    Never,
}

impl Follower {
    /// Another relay may know that the primary is at `upstream_end`. As long as its own hears the primary, what that has
    /// not told yet is on its way: to count it would make followers of other relays look late whenever something is written.
    pub(super) fn count_lag_from(&mut self, now: Instant, upstream_end: Lsn) {
        let is_old = match self.hearing {
            Hearing::ByStream => false,
            Hearing::At(at) => now.saturating_duration_since(at) >= LATE,
            Hearing::Never => true,
        };
        if is_old {
            self.lag.bytes = self.lag.bytes.max(upstream_end.bytes_since(self.replay));
        }
    }

    /// Not between two commands, nor refused what it asked for.
    pub fn streams(&self) -> bool {
        self.state != FollowerState::Startup
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowerState {
    /// Connected, not streaming.
    Startup,
    /// Behind: fed from files.
    Catchup,
    /// At the durable end.
    Streaming,
}

/// How far behind the primary's last known end of WAL a standby's replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    pub bytes: u64,
    /// Age of the oldest WAL it has not replayed; zero when it has replayed everything.
    pub time: Duration,
}
