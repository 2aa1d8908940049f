//! The walreceiver's half of physical replication, as a state machine. PURE.
//!
//! It asks who the upstream is, fetches the histories it lacks, and streams from the start of the segment of
//! the durable end on the store's own timeline; at a timeline's end it goes on with the next one on the same
//! connection (walreceiver.c, `WalRcvFetchTimeLineHistoryFiles`, `libpqrcv_endstreaming`).
//!
//! It does no I/O: the store's changes are outputs whose result comes back as input. It never skips WAL, never
//! says it flushed what the store has not synced, and claims nothing about replay.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::reply::Reply;
use crate::pg::protocol::frontend;
use crate::pg::protocol::replication::{
    self, FromServer, FullTransactionId, HotStandbyFeedback, StandbyStatus, XLogDataHeader,
};
use crate::pg::wal::{Expected, History, Verifier, WalSegmentSize};
use crate::pg::{ErrorFields, Lsn, PgTimestamp, SlotName, SqlState, SystemIdentifier, TimelineId};
use crate::relay::store::Change;
use crate::topology::{Durability, StreamEnd};

/// How often the upstream hears of us when nothing happens.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often hot standby feedback is repeated when it has not changed (`wal_receiver_status_interval`).
const FEEDBACK_INTERVAL: Duration = Duration::from_secs(10);
/// From this version on READ_REPLICATION_SLOT exists.
const READ_SLOT_SINCE: u32 = 15;

/// One moment, on the clock that measures and on the one that people read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    pub(crate) timestamp: PgTimestamp,
}

/// What the store holds when a connection begins.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) system: Option<SystemIdentifier>,
    pub(crate) segment_size: WalSegmentSize,
    pub(crate) timeline: TimelineId,
    /// Invalid: the log is empty.
    pub(crate) durable: Lsn,
    pub(crate) verified: Lsn,
    pub(crate) histories: BTreeMap<TimelineId, Bytes>,
}

#[derive(Clone, Debug)]
pub(crate) struct ReceiverConfig {
    /// Our slot at the upstream; made when it is missing.
    pub(crate) slot: SlotName,
    pub(crate) durability: Durability,
    /// Silence for this long ends the stream; at half of it the upstream is asked for a sign of life.
    pub(crate) upstream_timeout: Duration,
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
    /// The store has synced up to here.
    Durable(Lsn),
    /// The store did what [`Output::Change`] asked for, or says why not.
    Changed(Result<(), String>),
    /// The store will not take what this stream offers.
    Unfit(String),
    /// The oldest transactions that followers need.
    Feedback {
        xmin: Option<FullTransactionId>,
        catalog_xmin: Option<FullTransactionId>,
    },
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
    /// Whole records of `timeline` from the switchpoint on are not in the upstream's history. They stay in the
    /// files.
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
}

/// What IDENTIFY_SYSTEM and TIMELINE_HISTORY said.
#[derive(Debug)]
struct Upstream {
    timeline: TimelineId,
    position: Lsn,
    history: History,
    history_known: bool,
    /// Histories still to be asked for.
    missing: VecDeque<TimelineId>,
    /// Where our slot holds WAL, if that is known.
    reserved: Option<Lsn>,
}

#[derive(Debug, Default)]
struct Feedback {
    said: Option<(Option<FullTransactionId>, Option<FullTransactionId>)>,
    at: Option<Instant>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Identify,
    SegmentSize,
    CreateSlot,
    ReadSlot,
    History(TimelineId),
    Stream { from: Lsn },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Identify,
    Slot,
    Histories,
    Plan,
}

#[derive(Debug)]
struct Stream {
    /// Where the next WAL must begin.
    next: Lsn,
    verifier: Verifier,
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
        };
        receiver.ask(Question::Identify);
        receiver
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let limit = self.config.upstream_timeout;
        let silence = self.heard_at + if self.asked { limit } else { limit / 2 };
        match self.phase {
            Phase::Ended | Phase::Changing(_) => None,
            Phase::Asking { .. } | Phase::Ending { .. } => Some(self.heard_at + limit),
            Phase::Streaming(_) => Some(silence.min(self.status_at + STATUS_INTERVAL)),
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
            Input::Durable(lsn) => self.durable(now, lsn),
            Input::Changed(Ok(())) => self.changed(),
            Input::Changed(Err(why)) | Input::Unfit(why) => self.refuse(why),
            Input::Feedback { xmin, catalog_xmin } => self.feedback(now, xmin, catalog_xmin),
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

    fn ask(&mut self, question: Question) {
        let slot = &self.config.slot;
        let timeline = self.stored.timeline;
        let command = match question {
            Question::Identify => "IDENTIFY_SYSTEM".to_owned(),
            Question::SegmentSize => "SHOW wal_segment_size".to_owned(),
            // The form without parentheses is understood by every version.
            Question::CreateSlot => format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL"),
            Question::ReadSlot => format!("READ_REPLICATION_SLOT \"{slot}\""),
            Question::History(timeline) => format!("TIMELINE_HISTORY {timeline}"),
            Question::Stream { from } => {
                format!("START_REPLICATION SLOT \"{slot}\" PHYSICAL {from} TIMELINE {timeline}")
            }
        };
        let mut out = BytesMut::new();
        frontend::query(&command, &mut out);
        self.outputs.push_back(Output::Send(out.freeze()));
        self.phase = Phase::Asking { question, reply: Reply::default() };
    }

    fn change(&mut self, change: Change, then: Then) {
        self.outputs.push_back(Output::Change(change));
        self.phase = Phase::Changing(then);
    }

    fn answered(&mut self, question: Question, reply: &Reply) {
        if let Some(error) = reply.error() {
            return self.denied(question, error);
        }
        match question {
            Question::Identify => self.identified(reply),
            Question::SegmentSize => self.segment_size(reply),
            Question::CreateSlot => self.slot_made(),
            Question::ReadSlot => {
                let timeline = self.upstream.as_ref().map(|upstream| upstream.timeline);
                if let (Some(upstream), true) = (&mut self.upstream, reply.timeline(2) == timeline) {
                    upstream.reserved = reply.lsn(1);
                }
                self.ask_histories();
            }
            Question::History(timeline) => self.history(timeline, reply),
            // The timeline ends exactly where we would begin: there is a result, but no stream.
            Question::Stream { .. } => self.timeline_ended(self.stored.durable, reply),
        }
    }

    fn denied(&mut self, question: Question, error: &ErrorFields) {
        let is_current = |t| self.upstream.as_ref().is_some_and(|upstream| upstream.timeline == t);
        match question {
            Question::CreateSlot if error.code == SqlState::DUPLICATE_OBJECT => self.slot_made(),
            // A number that was skipped, or a history that the server never had.
            Question::History(timeline)
                if error.code == SqlState::UNDEFINED_FILE && !is_current(timeline) =>
            {
                self.ask_histories();
            }
            _ => self.fail(error),
        }
    }

    /// An error of the upstream: a refusal, unless it only says that it is not (or no longer) there for us.
    fn fail(&mut self, error: &ErrorFields) {
        let passing = error.code.as_str().starts_with("57") || error.code == SqlState::OBJECT_IN_USE;
        if passing { self.lose(error.to_string()) } else { self.refuse(error.to_string()) }
    }

    fn identified(&mut self, reply: &Reply) {
        let (Some(system), Some(timeline), Some(position)) =
            (reply.system(0), reply.timeline(1), reply.lsn(2))
        else {
            return self.lose("IDENTIFY_SYSTEM was not answered".to_owned());
        };
        if let Some(own) = self.stored.system.filter(|own| *own != system) {
            return self.refuse(format!("system identifier {system} instead of {own}: another cluster"));
        }
        if timeline < self.stored.timeline {
            let own = self.stored.timeline;
            return self.refuse(format!("its timeline {timeline} is behind ours, {own}"));
        }
        let first_contact = self.stored.system.is_none();
        self.stored.system = Some(system);
        self.upstream_end = self.upstream_end.max(position);
        self.upstream = Some(Upstream {
            timeline,
            position,
            history: History::without_ancestors(timeline),
            // The first timeline has none.
            history_known: timeline.0 <= 1,
            missing: VecDeque::new(),
            reserved: None,
        });
        if self.slot_made && !first_contact {
            self.ask_histories();
        } else {
            self.ask(Question::SegmentSize);
        }
    }

    fn segment_size(&mut self, reply: &Reply) {
        let Some(size) = reply.setting().and_then(WalSegmentSize::parse_setting) else {
            return self.lose("SHOW wal_segment_size was not answered".to_owned());
        };
        if size == self.stored.segment_size && self.stored.durable.is_valid() {
            return self.ask(Question::CreateSlot);
        }
        if self.stored.durable.is_valid() {
            let own = self.stored.segment_size;
            return self.refuse(format!("WAL segments of {size} instead of {own}"));
        }
        self.stored.segment_size = size;
        let system = self.stored.system.expect("set when the upstream identified itself");
        self.change(Change::Adopt { system, segment_size: size }, Then::Slot);
    }

    fn slot_made(&mut self) {
        self.slot_made = true;
        let empty = !self.stored.durable.is_valid();
        if empty && self.config.upstream_major >= READ_SLOT_SINCE {
            self.ask(Question::ReadSlot);
        } else {
            self.ask_histories();
        }
    }

    /// The upstream's own history comes first and always: one with the same number and another content is
    /// another timeline.
    fn ask_histories(&mut self) {
        let Some(upstream) = &mut self.upstream else { return };
        if !upstream.history_known {
            let timeline = upstream.timeline;
            return self.ask(Question::History(timeline));
        }
        match upstream.missing.pop_front() {
            Some(timeline) => self.ask(Question::History(timeline)),
            None => self.plan(),
        }
    }

    fn history(&mut self, timeline: TimelineId, reply: &Reply) {
        let Some(content) = reply.bytes(1).cloned() else {
            return self.lose(format!("TIMELINE_HISTORY {timeline} was not answered"));
        };
        let history = match History::parse(timeline, &content) {
            Ok(history) => history,
            Err(error) => return self.refuse(error.to_string()),
        };
        let stored = self.stored.histories.get(&timeline);
        if stored.is_some_and(|stored| *stored != content) {
            return self
                .refuse(format!("its history of timeline {timeline} is not the one stored: another branch"));
        }
        let is_new = stored.is_none();
        if let Some(upstream) = self.upstream.as_mut().filter(|upstream| upstream.timeline == timeline) {
            upstream.missing = missing_histories(&history, &self.stored);
            upstream.history = history;
            upstream.history_known = true;
        }
        if is_new {
            self.stored.histories.insert(timeline, content.clone());
            self.change(Change::KeepHistory { timeline, content }, Then::Histories);
        } else {
            self.ask_histories();
        }
    }

    fn changed(&mut self) {
        let Phase::Changing(then) = self.phase else { return };
        match then {
            Then::Identify => self.ask(Question::Identify),
            Then::Slot => self.ask(Question::CreateSlot),
            Then::Histories => self.ask_histories(),
            Then::Plan => self.plan(),
        }
    }

    /// Everything about the upstream is known: where to go on?
    fn plan(&mut self) {
        let Some(upstream) = &self.upstream else { return };
        let size = self.stored.segment_size;
        if !self.stored.durable.is_valid() {
            let start = size.segment_start(upstream.reserved.unwrap_or(upstream.position));
            let timeline = upstream.timeline;
            (self.stored.timeline, self.stored.durable) = (timeline, start);
            return self.change(Change::Begin { timeline, start }, Then::Plan);
        }
        let own = self.stored.timeline;
        if !upstream.history.contains(own) {
            let theirs = upstream.timeline;
            return self.refuse(format!("its timeline {theirs} does not descend from ours, {own}"));
        }
        match upstream.history.next(own) {
            Some((next, switchpoint)) if switchpoint <= self.stored.durable => self.follow(next, switchpoint),
            _ => self.ask(Question::Stream { from: size.segment_start(self.stored.durable) }),
        }
    }

    /// Our timeline ended at `switchpoint`, and we have all of it. Half a record beyond is what the old primary
    /// did not finish. Whole records beyond may hold commits: with quorum durability they were promised.
    fn follow(&mut self, next: TimelineId, switchpoint: Lsn) {
        let Stored { timeline, verified, .. } = self.stored;
        if verified > switchpoint {
            if self.config.durability == Durability::Quorum {
                let lost = verified.bytes_since(switchpoint);
                return self.refuse(format!(
                    "timeline {next} forked at {switchpoint}, {lost} bytes before the durable end of timeline {timeline}"
                ));
            }
            self.outputs.push_back(Output::LeftBehind { timeline, switchpoint, verified });
        }
        self.stored.timeline = next;
        self.stored.durable = switchpoint;
        self.stored.verified = verified.min(switchpoint);
        self.change(Change::Follow { timeline: next, switchpoint }, Then::Plan);
    }

    fn start_stream(&mut self, now: Now, from: Lsn) {
        let expected = Expected {
            segment_size: self.stored.segment_size,
            timeline: self.stored.timeline,
            system: self.stored.system,
        };
        self.phase =
            Phase::Streaming(Box::new(Stream { next: from, verifier: Verifier::new(from, expected) }));
        self.outputs.push_back(Output::Streaming { timeline: self.stored.timeline, from });
        self.report(now, replication::Reply::NotRequested);
    }

    fn streamed(&mut self, now: Now, tag: u8, payload: &Bytes) {
        match tag {
            b'd' => self.copy_data(now, payload),
            b'c' => {
                let end = self.received();
                let mut out = BytesMut::new();
                frontend::copy_done(&mut out);
                self.outputs.push_back(Output::Send(out.freeze()));
                self.phase = Phase::Ending { end, reply: Reply::default() };
            }
            // `COPY 0` without CopyDone: `WalSndDone` in walsender.c, after everything was acknowledged.
            b'C' => self.end(StreamEnd::Shutdown),
            b'E' => self.fail(&crate::pg::protocol::backend::decode_error(payload)),
            b'N' | b'S' => {}
            other => self.lose(format!("unexpected message {:?} in the stream", char::from(other))),
        }
    }

    fn copy_data(&mut self, now: Now, payload: &Bytes) {
        match FromServer::decode(payload) {
            Ok(FromServer::XLogData(header, wal)) => {
                self.upstream_end = self.upstream_end.max(header.end);
                let wal = payload.slice(XLogDataHeader::LEN..XLogDataHeader::LEN + wal.len());
                self.wal(header.start, wal);
            }
            Ok(FromServer::Keepalive(keepalive)) => {
                self.upstream_end = self.upstream_end.max(keepalive.end);
                if keepalive.reply == replication::Reply::Requested {
                    self.report(now, replication::Reply::NotRequested);
                }
            }
            Ok(FromServer::Unknown(_)) => {}
            Err(error) => self.lose(error.to_string()),
        }
    }

    fn wal(&mut self, start: Lsn, bytes: Bytes) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        if start != stream.next {
            let expected = stream.next;
            return self.refuse(format!("WAL at {start} was sent where {expected} is next"));
        }
        if let Err(error) = stream.verifier.feed(&bytes) {
            return self.refuse(error.to_string());
        }
        stream.next = start.advanced(bytes.len() as u64);
        let verified = stream.verifier.verified();
        self.stored.verified = self.stored.verified.max(verified.unwrap_or(Lsn::INVALID));
        self.outputs.push_back(Output::Append { at: start, bytes, verified });
    }

    fn durable(&mut self, now: Now, lsn: Lsn) {
        let moved = lsn > self.stored.durable;
        if let (Phase::Streaming(_), true) = (&self.phase, moved) {
            self.stored.durable = lsn;
            self.report(now, replication::Reply::NotRequested);
        }
    }

    fn tick(&mut self, now: Now) {
        let silent = now.at.saturating_duration_since(self.heard_at);
        let limit = self.config.upstream_timeout;
        match self.phase {
            Phase::Ended | Phase::Changing(_) => {}
            _ if silent >= limit => self.lose(format!("silent for {limit:?}")),
            Phase::Streaming(_) if silent >= limit / 2 && !self.asked => {
                self.asked = true;
                self.report(now, replication::Reply::Requested);
            }
            Phase::Streaming(_) if now.at >= self.status_at + STATUS_INTERVAL => {
                self.report(now, replication::Reply::NotRequested);
            }
            _ => {}
        }
    }

    fn report(&mut self, now: Now, reply: replication::Reply) {
        self.status_at = now.at;
        let status = self.status(now, reply);
        self.outputs.push_back(Output::Send(status));
    }

    /// `flush` is what the store has synced and nothing more: it releases the upstream's synchronous commits.
    /// `apply` stays 0/0, we replay nothing.
    fn status(&self, now: Now, reply: replication::Reply) -> Bytes {
        let status = StandbyStatus {
            write: self.received(),
            flush: self.stored.durable,
            apply: Lsn::INVALID,
            sent_at: now.timestamp,
            reply,
        };
        let mut payload = Vec::with_capacity(StandbyStatus::LEN);
        status.encode(&mut payload);
        let mut out = BytesMut::new();
        frontend::copy_data(&payload, &mut out);
        out.freeze()
    }

    fn feedback(
        &mut self,
        now: Now,
        xmin: Option<FullTransactionId>,
        catalog_xmin: Option<FullTransactionId>,
    ) {
        let Phase::Streaming(_) = self.phase else { return };
        let age = |at: Instant| now.at.saturating_duration_since(at);
        let changed = self.feedback.said != Some((xmin, catalog_xmin));
        let due = match self.feedback.at {
            None => true,
            Some(at) if changed => age(at) >= STATUS_INTERVAL,
            Some(at) => age(at) >= FEEDBACK_INTERVAL,
        };
        if !due {
            return;
        }
        self.feedback = Feedback { said: Some((xmin, catalog_xmin)), at: Some(now.at) };
        let mut payload = Vec::with_capacity(HotStandbyFeedback::LEN);
        HotStandbyFeedback { sent_at: now.timestamp, xmin, catalog_xmin }.encode(&mut payload);
        let mut out = BytesMut::new();
        frontend::copy_data(&payload, &mut out);
        self.outputs.push_back(Output::Send(out.freeze()));
    }

    /// The upstream has finished streaming our timeline and says what comes next; its histories may have
    /// changed since we asked.
    fn timeline_ended(&mut self, end: Lsn, reply: &Reply) {
        if let Some(error) = reply.error() {
            return self.fail(error);
        }
        if !reply.has_row() {
            return self.lose("the upstream ended the stream".to_owned());
        }
        let (Some(next), Some(switchpoint)) = (reply.timeline(0), reply.lsn(1)) else {
            return self.lose("the end of the timeline was not explained".to_owned());
        };
        if switchpoint > end || next <= self.stored.timeline {
            return self
                .refuse(format!("timeline {next} begins at {switchpoint}, but WAL came up to {end} only"));
        }
        self.stored.durable = end;
        self.change(Change::Settle, Then::Identify);
    }

    fn lose(&mut self, why: String) {
        self.end(StreamEnd::Lost { why });
    }

    fn refuse(&mut self, why: String) {
        self.end(StreamEnd::Refused { why });
    }

    fn end(&mut self, how: StreamEnd) {
        if !matches!(self.outputs.back(), Some(Output::End(_))) {
            self.outputs.push_back(Output::End(how));
        }
        self.phase = Phase::Ended;
    }
}

/// Ancestors of the upstream's timeline whose history is not stored; beside them the skipped numbers, since a
/// stock standby will ask for every number above its own.
fn missing_histories(history: &History, stored: &Stored) -> VecDeque<TimelineId> {
    /// A cluster with more promotions behind it than this hands on the histories of its ancestors only.
    const MAX_SKIPPED: u32 = 1000;
    let current = history.timeline();
    let above = stored.timeline.0.max(1);
    let every_number = (above + 1..current.0).take(MAX_SKIPPED as usize).map(TimelineId);
    let ancestors = history.ancestors().iter().map(|entry| entry.timeline);
    let mut missing: Vec<TimelineId> = ancestors
        .chain(every_number)
        .filter(|timeline| timeline.0 > 1 && !stored.histories.contains_key(timeline))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing.into()
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
