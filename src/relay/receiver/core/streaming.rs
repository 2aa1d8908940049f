//! The stream itself: WAL in, status updates and feedback out.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Now, Output, Phase, Receiver, Reply, Role, STATUS_INTERVAL, UNHURRIED};
use crate::pg::protocol::frontend;
use crate::pg::protocol::replication::{
    self, FromServer, FullTransactionId, HotStandbyFeedback, StandbyStatus, XLogDataHeader,
};
use crate::pg::wal::{Expected, Verifier};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Durability, StreamEnd};

/// How often hot standby feedback is repeated when it has not changed (`wal_receiver_status_interval`).
const FEEDBACK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Stream {
    /// Where the next WAL must begin.
    pub(super) next: Lsn,
    /// <= next. It begins at the segment's start, before what is durable: what is stored already may be another
    /// branch's until it has been compared.
    agreed: Lsn,
    /// The end of the last whole record that is durable, whichever stream has sent it.
    whole: Lsn,
    /// A substitute's WAL is not taken behind the known end of its timeline.
    until: Option<(TimelineId, Lsn)>,
    /// What the upstream was told last.
    told: Lsn,
    verifier: Verifier,
}

impl Stream {
    /// What is acknowledged. A slot holds WAL from here on only, so to the one who has it nothing is that a restart
    /// would not count:
    ///
    /// 1. Half of a record that reaches into segment n is synced, and acknowledged.
    /// 2. The relay dies. Its log ends where the last whole record does, in segment n - 1 or before.
    /// 3. The upstream's checkpoint removes segment n - 1: the slot's `restart_lsn` is behind it (`KeepLogSeg` in xlog.c).
    /// 4. The relay asks for segment n - 1, and nobody may have it any more.
    ///
    /// No commit waits for more: it ends with a record. Nor does a server that shuts down, whose last record is a
    /// checkpoint's (`WalSndDone` in walsender.c compares with the end of what it sent). Others hold nothing for
    /// us, and may itself end amid a record, which its shutdown then waits for.
    fn acknowledged(&self, role: Role) -> Lsn {
        match role {
            Role::Named => self.agreed.min(self.whole),
            Role::Source { .. } | Role::Substitute { .. } => self.agreed,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Feedback {
    said: Option<(Option<FullTransactionId>, Option<FullTransactionId>)>,
    at: Option<Instant>,
}

impl Receiver {
    pub(super) fn start_stream(&mut self, now: Now, from: Lsn) {
        let expected = Expected {
            segment_size: self.stored.segment_size,
            timeline: self.stored.timeline,
            system: self.stored.system,
        };
        let verifier = Verifier::new(from, expected);
        let until = self.known_next();
        let whole = self.whole();
        let stream = Stream { next: from, agreed: from, whole, until, told: from, verifier };
        self.phase = Phase::Streaming(Box::new(stream));
        self.outputs.push_back(Output::Streaming { timeline: self.stored.timeline, from });
        self.report(now, replication::Reply::NotRequested);
    }

    pub(super) fn streamed(&mut self, now: Now, tag: u8, payload: &Bytes) {
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

    fn wal(&mut self, start: Lsn, mut bytes: Bytes) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let until = stream.until.filter(|(_, until)| *until <= start.advanced(bytes.len() as u64));
        if let Some((_, until)) = until {
            bytes.truncate(usize::try_from(until.bytes_since(start)).unwrap_or(usize::MAX));
        }
        if start != stream.next {
            let expected = stream.next;
            return self.refuse(format!("WAL at {start} was sent where {expected} is next"));
        }
        if let Err(error) = stream.verifier.feed(&bytes) {
            return self.refuse(error.to_string());
        }
        stream.next = start.advanced(bytes.len() as u64);
        let verified = stream.verifier.whole();
        self.stored.verified = self.stored.verified.max(verified.unwrap_or(Lsn::INVALID));
        self.outputs.push_back(Output::Append { at: start, bytes, verified });
        if let Some((next, switchpoint)) = until {
            self.end(StreamEnd::TimelineEnd { next, switchpoint });
        }
    }

    pub(super) fn agreed(&mut self, now: Now, lsn: Lsn, whole: Lsn) {
        let Phase::Streaming(stream) = &mut self.phase else { return };
        let before = stream.acknowledged(self.config.role);
        stream.agreed = stream.agreed.max(lsn.min(stream.next));
        stream.whole = stream.whole.max(whole);
        self.stored.durable = self.stored.durable.max(stream.agreed);
        if stream.acknowledged(self.config.role) > before && self.status_due_at() <= now.at {
            self.report(now, replication::Reply::NotRequested);
        }
    }

    /// With quorum durability commits wait for what is not told yet, without it nobody does: then each sync of a
    /// busy stream need not cost a message here and a wake-up there.
    pub(super) fn status_due_at(&self) -> Instant {
        let role = self.config.role;
        let is_told =
            !matches!(&self.phase, Phase::Streaming(stream) if stream.told < stream.acknowledged(role));
        let interval = match self.config.durability {
            _ if is_told => STATUS_INTERVAL,
            Durability::Quorum => Duration::ZERO,
            Durability::Async => UNHURRIED,
        };
        self.status_at + interval
    }

    pub(super) fn tick(&mut self, now: Now) {
        let silent = now.at.saturating_duration_since(self.heard_at);
        let limit = self.config.upstream_timeout;
        match self.phase {
            Phase::Ended | Phase::Changing(_) => {}
            _ if silent >= limit => self.lose(format!("silent for {limit:?}")),
            Phase::Streaming(_) if silent >= self.config.ask_after && !self.asked => {
                self.asked = true;
                self.report(now, replication::Reply::Requested);
            }
            Phase::Streaming(_) if now.at >= self.status_due_at() => {
                self.report(now, replication::Reply::NotRequested);
            }
            _ => {}
        }
    }

    fn report(&mut self, now: Now, reply: replication::Reply) {
        self.status_at = now.at;
        if let Phase::Streaming(stream) = &mut self.phase {
            stream.told = stream.acknowledged(self.config.role);
        }
        let status = self.status(now, reply);
        self.outputs.push_back(Output::Send(status));
    }

    pub(super) fn replayed(&mut self, now: Now, timeline: TimelineId, lsn: Lsn) {
        if timeline != self.stored.timeline {
            return;
        }
        let said = self.apply();
        self.replayed = self.replayed.max(lsn);
        if matches!(self.phase, Phase::Streaming(_)) && self.apply() > said {
            self.report(now, replication::Reply::NotRequested);
        }
    }

    /// Never more than what is acknowledged of this stream.
    fn apply(&self) -> Lsn {
        match &self.phase {
            Phase::Streaming(stream) => self.replayed.min(stream.acknowledged(self.config.role)),
            _ => self.replayed.min(self.stored.durable),
        }
    }

    /// Each position releases the upstream's commits that wait for it. `flush` is what the store has synced of this
    /// stream ([`Stream::acknowledged`]). We replay nothing: `apply` is the followers', where theirs count, else 0/0.
    pub(super) fn status(&self, now: Now, reply: replication::Reply) -> Bytes {
        let durable = self.stored.durable;
        let (write, flush) = match &self.phase {
            Phase::Streaming(stream) => {
                let write = if stream.agreed < durable { stream.agreed } else { stream.next };
                (write, stream.acknowledged(self.config.role))
            }
            _ => (durable, durable),
        };
        let status = StandbyStatus { write, flush, apply: self.apply(), sent_at: now.timestamp, reply };
        let mut payload = Vec::with_capacity(StandbyStatus::LEN);
        status.encode(&mut payload);
        let mut out = BytesMut::new();
        frontend::copy_data(&payload, &mut out);
        out.freeze()
    }

    pub(super) fn feedback(
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
}
