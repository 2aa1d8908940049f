//! The walreceiver's half of physical replication, as a state machine. PURE.
//!
//! It asks for which term the upstream was prepared: one that was for a later term than ours gives us nothing, whoever
//! told us of ours. Then it asks who the upstream is, fetches the histories it lacks, and streams from the start of the segment in
//! which the last whole record ends, on the store's own timeline; at a timeline's end it goes on with the next one on the same
//! connection (walreceiver.c, `WalRcvFetchTimeLineHistoryFiles`, `libpqrcv_endstreaming`).
//!
//! A [`Role::Source`] is another relay, whose log an election goes on with: its history is believed as far as the
//! election does. A [`Role::Substitute`] gives WAL of the timelines that are known already, and nothing else: it does not begin a
//! log, its histories are not kept, and where the known history leaves the timeline at hand, what it has behind
//! that is not taken.
//!
//! It does no I/O: the store's changes are outputs whose result comes back as input. It never skips WAL, never
//! says it flushed what the store has not synced or would not count after a restart, and claims no replay of its own:
//! what it says of that are its followers' words ([`Input::Replayed`]), or nothing.

mod questions;
mod streaming;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::questions::{Question, Then, Upstream};
use self::streaming::{Feedback, Stream};
use super::reply::Reply;
use crate::pg::protocol::replication::{self, FullTransactionId};
use crate::pg::wal::WalSegmentSize;
use crate::pg::{ErrorFields, Lsn, SlotName, SqlState, SystemIdentifier, TimelineId};
use crate::relay::now::Now;
use crate::relay::store::{Change, Store, StoreError, Tail};
use crate::topology::{Directive, Durability, Refusal, StreamEnd, Term};

/// How often the upstream hears of us when nothing happens.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take that the upstream hears of what was stored, where no commit waits for it.
const UNHURRIED: Duration = Duration::from_millis(20);

/// What the store holds when a connection begins.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) system: Option<SystemIdentifier>,
    pub(crate) segment_size: WalSegmentSize,
    pub(crate) timeline: TimelineId,
    /// Invalid: the log is empty.
    pub(crate) durable: Lsn,
    pub(crate) verified: Lsn,
    /// Where the oldest segment of the timeline starts; `None`: nothing is stored of it.
    pub(crate) oldest: Option<Lsn>,
    /// The log is in doubt: what it has up to here has to be compared.
    pub(crate) to_show: Option<Lsn>,
    pub(crate) histories: BTreeMap<TimelineId, Bytes>,
}

impl Stored {
    pub(crate) fn of(store: &Store) -> Stored {
        let report = store.report().borrow().clone();
        let Tail { timeline, durable } = report.tail;
        Stored {
            system: store.system(),
            segment_size: store.segment_size(),
            timeline,
            durable,
            verified: report.verified,
            oldest: store.oldest(timeline),
            to_show: report.standing.must_show((timeline, durable)),
            histories: store.histories(),
        }
    }

    /// The log has not been on it: what is stored of its history was heard and not followed.
    fn is_ahead(&self, timeline: TimelineId) -> bool {
        timeline > self.timeline
    }
}

/// Who the upstream is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one that the directive names: its history is the cluster's.
    Named,
    /// The relay whose log an election goes on with, on this timeline, where nobody is named.
    Source { timeline: TimelineId },
    /// Somebody else, for what the named one cannot give. `known`: the newest timeline that may be followed, whose
    /// history is stored.
    Substitute { known: TimelineId },
}

/// What of our WAL is to be in the upstream's history. Whole records that are not are left behind, or the upstream is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promised {
    /// Without quorum durability.
    Nothing,
    /// Commits wait for this relay alone.
    Everything,
    /// Commits wait for several relays. What one has behind the floor of the term may be on no other.
    UpTo(TimelineId, Lsn),
}

impl Promised {
    pub(crate) fn under(directive: &Directive) -> Promised {
        match (directive.durability, &directive.floor) {
            (Durability::Async, _) => Promised::Nothing,
            (Durability::Quorum, None) => Promised::Everything,
            (Durability::Quorum, Some(floor)) => Promised::UpTo(floor.timeline, floor.end),
        }
    }

    /// Of a log whose last whole record on `timeline` ends at `verified`.
    fn of(self, timeline: TimelineId, verified: Lsn) -> Lsn {
        match self {
            Promised::Everything => verified,
            Promised::UpTo(of, end) if of == timeline => verified.min(end),
            Promised::UpTo(..) | Promised::Nothing => Lsn::INVALID,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct ReceiverConfig {
    pub(crate) role: Role,
    /// Under which it streams.
    pub(crate) term: Term,
    pub(crate) promised: Promised,
    /// Our slot at the upstream, made when it is missing; others are used without one.
    pub(crate) slot: SlotName,
    pub(crate) durability: Durability,
    /// Silence for this long ends the stream.
    pub(crate) upstream_timeout: Duration,
    /// After this much silence the upstream is asked for a sign of life, once: a walsender that has nothing to
    /// send would speak by itself after half its `wal_sender_timeout` only.
    pub(crate) ask_after: Duration,
    /// Of the server, from its `server_version`.
    pub(crate) upstream_major: u32,
}

#[derive(Debug)]
pub(crate) enum Input {
    /// A whole message, its payload without tag and length.
    Message {
        tag: u8,
        payload: Bytes,
    },
    /// What this stream has sent up to `lsn` the store holds, synced: written, or found there and the same. All
    /// records that it has up to `whole` are whole.
    Agreed {
        lsn: Lsn,
        whole: Lsn,
    },
    /// The store did what [`Output::Change`] asked for, or says why not.
    Changed(Result<(), String>),
    /// The store will not take what this stream offers.
    Unfit(Arc<StoreError>),
    /// The oldest transactions that followers need.
    Feedback {
        xmin: Option<FullTransactionId>,
        catalog_xmin: Option<FullTransactionId>,
    },
    /// How far the followers that count have replayed which timeline; `None`: nobody's replay counts any more.
    Replayed(Option<(TimelineId, Lsn)>),
    /// Another [`ReceiverConfig::ask_after`].
    AskAfter(Duration),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Send(Bytes),
    Change(Change),
    Append {
        at: Lsn,
        bytes: Bytes,
        verified: Option<Lsn>,
    },
    /// WAL flows from now on.
    Streaming {
        timeline: TimelineId,
        from: Lsn,
    },
    /// Whole records of `timeline` from the switchpoint on are not in the upstream's history, and were not promised. They
    /// stay in the files.
    LeftBehind {
        timeline: TimelineId,
        switchpoint: Lsn,
        verified: Lsn,
    },
    /// Nothing comes after it.
    End(StreamEnd),
}

#[derive(Debug)]
pub(crate) struct Receiver {
    config: ReceiverConfig,
    stored: Stored,
    phase: Phase,
    outputs: VecDeque<Output>,
    upstream: Option<Upstream>,
    upstream_end: Lsn,
    slot_made: bool,
    heard_at: Instant,
    /// A sign of life was asked for since `heard_at`.
    asked: bool,
    status_at: Instant,
    feedback: Feedback,
    /// What the followers have replayed of the store's timeline; told as ours where commits may wait for it.
    replayed: Lsn,
}

#[derive(Debug)]
enum Phase {
    Asking {
        question: Question,
        reply: Reply,
    },
    /// Waits for the store.
    Changing(Then),
    Streaming(Box<Stream>),
    /// Both sides have said CopyDone; `end` is what was received of `timeline`.
    Ending {
        end: Lsn,
        reply: Reply,
    },
    Ended,
}

impl Receiver {
    /// For a connection that has just passed its login.
    pub(crate) fn new(config: ReceiverConfig, stored: Stored, now: Now) -> Receiver {
        let mut receiver = Receiver {
            config,
            stored,
            phase: Phase::Ended,
            outputs: VecDeque::new(),
            upstream: None,
            upstream_end: Lsn::INVALID,
            slot_made: false,
            heard_at: now.at,
            asked: false,
            status_at: now.at,
            feedback: Feedback::default(),
            replayed: Lsn::INVALID,
        };
        receiver.ask(match receiver.config.role {
            Role::Named => Question::Names,
            Role::Source { .. } | Role::Substitute { .. } => Question::Identify,
        });
        receiver
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let limit = self.config.upstream_timeout;
        let silence = self.heard_at + if self.asked { limit } else { self.config.ask_after };
        match self.phase {
            Phase::Ended | Phase::Changing(_) => None,
            Phase::Asking { .. } | Phase::Ending { .. } => Some(self.heard_at + limit),
            Phase::Streaming(_) => Some(silence.min(self.status_due_at())),
        }
    }

    /// The upstream's own end of WAL, as far as it has told.
    pub(crate) fn upstream_end(&self) -> Lsn {
        self.upstream_end
    }

    /// The end of what was received.
    pub(crate) fn received(&self) -> Lsn {
        match &self.phase {
            Phase::Streaming(stream) => stream.next.max(self.stored.durable),
            _ => self.stored.durable,
        }
    }

    pub(crate) fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Message { tag, payload } => {
                (self.heard_at, self.asked) = (now.at, false);
                self.message(now, tag, &payload);
            }
            Input::Agreed { lsn, whole } => self.agreed(now, lsn, whole),
            Input::Changed(Ok(())) => self.changed(),
            Input::Changed(Err(why)) => self.refuse(why),
            Input::Unfit(error) => self.refuse_for(error.to_string(), refusal(&error)),
            Input::Feedback { xmin, catalog_xmin } => self.feedback(now, xmin, catalog_xmin),
            Input::Replayed(Some((timeline, lsn))) => self.replayed(now, timeline, lsn),
            Input::Replayed(None) => self.replayed = Lsn::INVALID,
            Input::AskAfter(silence) => self.config.ask_after = silence,
            Input::Tick => self.tick(now),
        }
    }

    /// The store takes nothing just now, so the upstream is not listened to: its silence proves nothing, and it
    /// must not take ours for a failure.
    pub(crate) fn stalled(&mut self, now: Now) -> Bytes {
        (self.heard_at, self.status_at) = (now.at, now.at);
        self.status(now, replication::Reply::NotRequested)
    }

    fn message(&mut self, now: Now, tag: u8, payload: &Bytes) {
        match &mut self.phase {
            Phase::Streaming(_) => self.streamed(now, tag, payload),
            Phase::Asking { question: Question::Stream { from }, .. } if tag == b'W' => {
                let from = *from;
                self.start_stream(now, from);
            }
            Phase::Asking { reply, .. } | Phase::Ending { reply, .. } => {
                if let Err(malformed) = reply.take(tag, payload) {
                    return self.lose(malformed.to_string());
                }
                if tag == b'Z' {
                    self.replied();
                }
            }
            Phase::Changing(_) if matches!(tag, b'N' | b'S') => {}
            Phase::Changing(_) => self.lose(format!("unexpected message {:?}", char::from(tag))),
            Phase::Ended => {}
        }
    }

    fn replied(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Asking { question, reply } => self.answered(question, &reply),
            Phase::Ending { end, reply } => self.timeline_ended(end, &reply),
            other => self.phase = other,
        }
    }

    /// An error of the upstream: a refusal, unless it only says that it is not (or no longer) there for us.
    fn fail(&mut self, error: &ErrorFields) {
        let passing = error.code.as_str().starts_with("57") || error.code == SqlState::OBJECT_IN_USE;
        if passing {
            return self.lose(error.to_string());
        }
        // "requested WAL segment ... has already been removed" (walsender.c, `WalSndSegmentOpen`).
        let asked_for_wal = matches!(
            self.phase,
            Phase::Streaming(_) | Phase::Asking { question: Question::Stream { .. }, .. }
        );
        let removed = asked_for_wal && error.code == SqlState::UNDEFINED_FILE;
        self.refuse_for(error.to_string(), if removed { Refusal::Removed } else { Refusal::Other });
    }

    fn lose(&mut self, why: String) {
        self.end(StreamEnd::Lost { why });
    }

    fn refuse(&mut self, why: String) {
        self.refuse_for(why, Refusal::Other);
    }

    fn refuse_for(&mut self, why: String, cause: Refusal) {
        self.end(StreamEnd::Refused { why, cause });
    }

    fn end(&mut self, how: StreamEnd) {
        if !matches!(self.outputs.back(), Some(Output::End(_))) {
            self.outputs.push_back(Output::End(how));
        }
        self.phase = Phase::Ended;
    }
}

fn refusal(error: &StoreError) -> Refusal {
    match *error {
        StoreError::Diverged { timeline, lsn } => Refusal::Diverged { timeline, lsn },
        _ => Refusal::Other,
    }
}
