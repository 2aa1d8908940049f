//! From START_REPLICATION to the end of the stream.

use bytes::Bytes;

use crate::pg::protocol::replication::{
    FromStandby, Keepalive, Reply as ReplyRequest, StandbyStatus, Wait, XLogDataHeader,
};
use crate::pg::{Lsn, SlotName, TimelineId};
use crate::relay::followers::{Progress, Xmins};
use crate::relay::sender::error::{Fatal, Refusal};
use crate::relay::sender::reply::{Reply, xlog_data_header};
use crate::relay::sender::stream::{Due, Replay, Sending, Step, Stream, StreamClock, TimelineEnd};
use crate::relay::slots::{Available, RestartPoint, SlotError};
use crate::relay::store::Tail;
use crate::topology::FollowerState;

use super::{CloseReason, Now, Outcome, Output, Phase, ReadFailure, WalSource, Walsender};

impl<S: WalSource> Walsender<S> {
    /// All outcomes of START_REPLICATION; an error may come before or behind CopyBothResponse, as servers do it.
    pub(super) fn start_replication(
        &mut self,
        now: Now,
        slot: Option<&str>,
        start: Lsn,
        timeline: Option<TimelineId>,
    ) -> Outcome {
        let timeline = timeline.unwrap_or(self.tail.timeline);
        let mut stream = Stream {
            timeline,
            slot: None,
            sent: start,
            end: None,
            sending: Sending::Wal,
            clock: StreamClock::new(self.config, now.at),
        };
        let outcome = self.place(&mut stream);
        if let Some(slot) = slot {
            stream.slot = self.acquire(slot, &stream)?;
        }
        match (outcome, stream.end) {
            (Err(refusal), _) => {
                self.release(&stream);
                Err(refusal)
            }
            // Nothing is left of that timeline: no copy at all.
            (Ok(()), Some(end)) if end.switchpoint == start => {
                self.release(&stream);
                self.send(Reply::default().end_of_stream(Some((end.next, end.switchpoint))), now);
                Ok(())
            }
            (Ok(()), _) => {
                self.send(Reply::default().copy_both(), now);
                let available = self.check_available(&stream);
                self.carry_progress(timeline);
                self.progress.sent = start;
                // A refusal from here on leaves the stream, and its slot with it.
                self.phase = Phase::Streaming(stream);
                available
            }
        }
    }

    /// `None`: a lost slot before 18, whose servers find the missing segment only when they open it.
    fn acquire(&self, slot: &str, stream: &Stream) -> Result<Option<SlotName>, Refusal> {
        let restart = RestartPoint { timeline: stream.timeline, lsn: stream.sent };
        let is_ahead = stream.end.is_none() && self.tail.durable <= stream.sent;
        let available = if is_ahead { Available::Kept } else { self.available(stream, stream.sent) };
        match self.slots.acquire(slot, self.pid, restart, available) {
            Err(SlotError::Lost(_)) if !self.major().refuses_lost_slots() => Ok(None),
            acquired => Ok(Some(acquired?)),
        }
    }

    /// Finds the stream's timeline and where it ends.
    fn place(&self, stream: &mut Stream) -> Outcome {
        let Stream { timeline, sent: start, .. } = *stream;
        if timeline == self.tail.timeline {
            return Ok(());
        }
        let Some((next, switchpoint)) = self.source.history().next(timeline) else {
            return Err(Refusal::UnknownTimeline(timeline));
        };
        if switchpoint < start {
            return Err(Refusal::BeyondFork { start, timeline, switchpoint });
        }
        stream.end = Some(TimelineEnd { next, switchpoint });
        Ok(())
    }

    /// A follower that asks for a little more than there is waits for it: after a fallback to its archive a
    /// standby asks for the segment after the one we are in, and would never come back to this one.
    fn check_available(&self, stream: &Stream) -> Outcome {
        let (start, durable) = (stream.sent, self.tail.durable);
        if stream.end.is_none() && durable <= start {
            let near = start.bytes_since(durable) <= self.source.segment_size().bytes();
            return if near { Ok(()) } else { Err(Refusal::AheadOfFlush { start, flush: durable }) };
        }
        match self.available(stream, start) {
            Available::Kept => Ok(()),
            Available::Removed => {
                Err(Refusal::Removed { segment: self.segment_name(stream.timeline, start) })
            }
        }
    }

    /// Whether the store has the bytes at `lsn`. The segment of a fork may be there under the new timeline only:
    /// up to the switchpoint both are the same (`WalSndSegmentOpen` reads that one too).
    fn available(&self, stream: &Stream, lsn: Lsn) -> Available {
        let kept = |timeline| self.source.oldest(timeline).is_some_and(|oldest| oldest <= lsn);
        let size = self.source.segment_size();
        let forks_here = |end: &TimelineEnd| size.segment(end.switchpoint) == size.segment(lsn);
        if kept(stream.timeline) || stream.end.filter(forks_here).is_some_and(|end| kept(end.next)) {
            Available::Kept
        } else {
            Available::Removed
        }
    }

    /// Positions go on over a switch of timelines as far as both agree, and start anew on any other.
    fn carry_progress(&mut self, timeline: TimelineId) {
        let history = self.source.history();
        let old = self.progress;
        let common = if old.timeline == timeline {
            old.write.max(old.flush).max(old.replay)
        } else {
            let follows = old.timeline < timeline && history.contains(timeline);
            history.switchpoint(old.timeline).filter(|_| follows).unwrap_or(Lsn::INVALID)
        };
        self.progress = Progress {
            timeline,
            state: FollowerState::Catchup,
            sent: old.sent,
            write: old.write.min(common),
            flush: old.flush.min(common),
            replay: old.replay.min(common),
        };
    }

    /// The durable end moved, or the store went over to a new timeline: then the stream's own is over, and from
    /// here on nothing beyond the switchpoint is sent.
    pub(super) fn tail_moved(&mut self, now: Now, tail: Tail) {
        self.tail = tail;
        let Phase::Streaming(stream) = &mut self.phase else { return };
        if stream.timeline == tail.timeline || stream.end.is_some() {
            return;
        }
        match self.source.history().next(stream.timeline) {
            Some((next, switchpoint)) => stream.end = Some(TimelineEnd { next, switchpoint }),
            None => {
                let unknown = Refusal::UnknownTimeline(stream.timeline);
                self.refuse(&unknown, now);
            }
        }
    }

    /// How many bytes that may be sent have not been handed out.
    pub(crate) fn behind(&self) -> u64 {
        match &self.phase {
            Phase::Streaming(stream) => stream.limit(self.tail.durable).bytes_since(stream.sent),
            _ => 0,
        }
    }

    /// Sends what may be sent and there is room for.
    pub(super) fn pump(&mut self, now: Now) {
        self.paused_until = None;
        while let Phase::Streaming(stream) = &mut self.phase {
            if stream.sending != Sending::Wal || self.unwritten.bytes >= Self::MAX_UNWRITTEN {
                break;
            }
            let limit = stream.limit(self.tail.durable);
            match stream.step(limit, Self::MAX_SEND) {
                Step::Wait => {
                    self.progress.state = FollowerState::Streaming;
                    break;
                }
                Step::TimelineOver => {
                    stream.sending = Sending::Done;
                    self.send(Reply::default().copy_done(), now);
                }
                Step::Chunk(length) => match self.pacing.wait_until(now.at) {
                    None => self.next_chunk(now, length, limit),
                    paused => {
                        self.paused_until = paused;
                        self.progress.state = FollowerState::Catchup;
                        break;
                    }
                },
            }
        }
        self.answer_if_owed(now);
    }

    /// From memory when it is there, else by asking for a read.
    fn next_chunk(&mut self, now: Now, length: usize, limit: Lsn) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let recent = self.source.recent(stream.timeline, stream.sent, length);
        if let Some(mut wal) = recent.filter(|wal| !wal.is_empty()) {
            wal.truncate(length);
            return self.send_wal(now, wal);
        }
        let Step::Chunk(max) = stream.step(limit, Self::MAX_READ) else { return };
        stream.sending = Sending::Reading;
        self.outputs.push_back(Output::Read { timeline: stream.timeline, from: stream.sent, max });
        self.progress.state = FollowerState::Catchup;
    }

    pub(super) fn read_done(&mut self, now: Now, from: Lsn, result: Result<Bytes, ReadFailure>) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        if stream.sending != Sending::Reading || stream.sent != from {
            // Asked for by a stream that has ended since.
            return;
        }
        stream.sending = Sending::Wal;
        let timeline = stream.timeline;
        // The timeline may have ended meanwhile, before what was asked for.
        let allowed =
            usize::try_from(stream.limit(self.tail.durable).bytes_since(from)).unwrap_or(usize::MAX);
        match result {
            Ok(_) if allowed == 0 => {}
            Ok(mut wal) if !wal.is_empty() => {
                wal.truncate(allowed);
                self.send_wal(now, wal);
            }
            Err(ReadFailure::Removed) => {
                let segment = self.segment_name(timeline, from);
                self.refuse(&Refusal::Removed { segment }, now);
            }
            Err(ReadFailure::Corrupt { segment, source }) => {
                self.refuse(&Refusal::Corrupt { segment, source }, now);
            }
            Ok(_) | Err(ReadFailure::Failed) => {
                let segment = self.segment_name(timeline, from);
                self.refuse(&Refusal::Unreadable { segment }, now);
            }
        }
    }

    fn send_wal(&mut self, now: Now, wal: Bytes) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        // The sender's end, as stock has it: where it stands now.
        let end = stream.limit(self.tail.durable);
        let header = XLogDataHeader { start: stream.sent, end, sent_at: now.timestamp };
        stream.sent = stream.sent.advanced(wal.len() as u64);
        self.progress.sent = stream.sent;
        self.unwritten.bytes += wal.len();
        self.pacing.sent(wal.len(), now.at);
        self.unwritten.stuck_since.get_or_insert(now.at);
        self.outputs.push_back(Output::SendWal { header: xlog_data_header(&header, wal.len()), wal });
    }

    /// The follower's CopyDone: it ends the stream early, or answers ours.
    pub(super) fn end_stream(&mut self, now: Now) {
        let Phase::Streaming(stream) = &self.phase else { return };
        let mut reply = Reply::default();
        if stream.sending != Sending::Done {
            reply = reply.copy_done();
        }
        let next = stream.end.map(|end| (end.next, end.switchpoint));
        self.leave_stream();
        self.phase = Phase::Command;
        self.send(reply.end_of_stream(next), now);
    }

    pub(super) fn leave_stream(&mut self) {
        if let Phase::Streaming(stream) = &self.phase {
            self.release(stream);
            self.progress.state = FollowerState::Startup;
        }
    }

    fn release(&self, stream: &Stream) {
        if let Some(slot) = &stream.slot {
            self.slots.release(slot, self.pid);
        }
    }

    pub(super) fn standby_message(&mut self, now: Now, payload: &[u8]) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        stream.clock.heard(now.at);
        match FromStandby::decode(payload) {
            Ok(FromStandby::Status(status)) => self.status(status),
            Ok(FromStandby::Feedback(feedback)) => {
                let xmins = Xmins { xmin: feedback.xmin, catalog_xmin: feedback.catalog_xmin };
                self.outputs.push_back(Output::Feedback(xmins));
            }
            Ok(FromStandby::Unknown(_)) => {}
            Err(error) => self.fatal(&Fatal::StandbyMessage(error), now),
        }
    }

    /// A position is believed when it lies within what was durable here on the follower's timeline. `sent` is no
    /// measure: after a reconnect a standby reports what it flushed long ago while its segment is shipped again.
    /// For the same reason nothing goes back (write then starts at the segment's start).
    fn status(&mut self, status: StandbyStatus) {
        let Phase::Streaming(stream) = &self.phase else { return };
        let limit = stream.limit(self.tail.durable);
        let believed = |old: Lsn, new: Lsn| if new <= limit { old.max(new) } else { old };
        let flushed_before = self.progress.flush;
        self.progress.write = believed(self.progress.write, status.write);
        self.progress.flush = believed(self.progress.flush, status.flush);
        self.progress.replay = believed(self.progress.replay, status.apply);
        let flushed = RestartPoint { timeline: stream.timeline, lsn: self.progress.flush };
        if let Some(slot) = stream.slot.as_ref().filter(|_| flushed.lsn != flushed_before) {
            self.slots.advance(slot, flushed, || self.available(stream, flushed.lsn));
        }
        if status.reply == ReplyRequest::Requested {
            self.unwritten.keepalive.get_or_insert(ReplyRequest::NotRequested);
        }
        self.outputs.push_back(Output::Heard);
    }

    pub(super) fn timer(&mut self, now: Now) {
        let timeout = self.config.wal_sender_timeout;
        if self.unwritten.stuck_since.is_some_and(|since| since + timeout <= now.at) {
            return self.close(CloseReason::Timeout);
        }
        let replay = self.replay();
        match &mut self.phase {
            Phase::Streaming(stream) => match stream.clock.due(replay, now.at) {
                Due::Nothing => {}
                Due::Keepalive(reply) => {
                    stream.clock.keepalive_sent(reply, now.at);
                    self.unwritten.keepalive = Some(reply);
                }
                Due::GiveUp => self.close(CloseReason::Timeout),
            },
            Phase::Dropping { slot, retry_at } if *retry_at <= now.at => {
                let slot = slot.clone();
                self.phase = Phase::Command;
                if let Err(refusal) = self.drop_slot(now, slot, Wait::UntilReleased) {
                    self.refuse(&refusal, now);
                }
            }
            _ => {}
        }
    }

    /// One keepalive, when one is owed and all before it has left: a follower that does not read is not waiting
    /// for news, and makes no queue grow.
    fn answer_if_owed(&mut self, now: Now) {
        let Phase::Streaming(stream) = &self.phase else { return };
        if self.unwritten.stuck_since.is_some() {
            return;
        }
        let Some(reply) = self.unwritten.keepalive.take() else { return };
        let end = stream.limit(self.tail.durable);
        self.send(Reply::default().keepalive(&Keepalive { end, sent_at: now.timestamp, reply }), now);
    }

    pub(super) fn replay(&self) -> Replay {
        let Progress { sent, replay, .. } = self.progress;
        if replay.is_valid() && replay < sent { Replay::Behind } else { Replay::Done }
    }
}
