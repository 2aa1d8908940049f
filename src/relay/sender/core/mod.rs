//! Walsender state machine (walsender.c). It never reads a file: it asks for bytes with [`Output::Read`]. It
//! knows no socket either: whole messages go in, bytes to send come out. PURE, but for the slots, which all
//! walsenders share.
//!
//! Invariant: nothing beyond the durable end of a timeline is ever sent, and nothing beyond its switchpoint.

mod commands;
mod streaming;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::pg::protocol::replication::{Command, Reply as ReplyRequest};
use crate::pg::wal::{History, SegmentFile, VerifyError, WalSegmentSize};
use crate::pg::{Lsn, ServerMajor, SystemIdentifier, TimelineId};
use crate::relay::followers::{Progress, Xmins};
use crate::relay::now::Now;
use crate::relay::slots::Slots;
use crate::relay::store::Tail;

use super::SenderConfig;
use super::error::{Fatal, Refusal};
use super::pacing::{Pacing, Rate};
use super::passage::NoSource;
use super::reply::Reply;
use super::stream::Stream;

/// What the walsender asks of the store without waiting: all of it is in memory.
pub(crate) trait WalSource {
    fn system(&self) -> Option<SystemIdentifier>;
    fn segment_size(&self) -> WalSegmentSize;
    fn history_file(&self, timeline: TimelineId) -> Option<Bytes>;
    /// The ancestry of the current timeline.
    fn history(&self) -> Arc<History>;
    fn oldest(&self, timeline: TimelineId) -> Option<Lsn>;
    fn recent(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes>;
    fn server_parameters(&self) -> Arc<Vec<(String, String)>>;
}

/// Who has connected.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) application_name: String,
    pub(crate) user: Arc<str>,
    /// No other live connection has it.
    pub(crate) pid: u32,
    pub(crate) secret: u32,
}

#[derive(Debug)]
pub(crate) enum Input<'a> {
    /// A whole message, its payload without tag and length.
    Message {
        tag: u8,
        payload: &'a [u8],
    },
    /// A length that no message here has; what follows cannot be read.
    Malformed,
    Tail(Tail),
    /// The answer to [`Output::Read`].
    Read {
        from: Lsn,
        result: Result<Bytes, ReadFailure>,
    },
    /// The answer to [`Output::SaveSlots`].
    SlotsSaved(Result<(), SlotsNotSaved>),
    /// The answer to [`Output::PassOn`] when nobody could be asked.
    NotPassed(NoSource),
    /// So fast WAL may be sent from now on; `None`: as fast as it goes.
    Rate(Option<Rate>),
    /// Some of what was handed out has reached the socket.
    SomeWritten,
    /// All of it has.
    AllWritten,
    /// Time has passed: at [`Walsender::poll_timeout`] or any other moment.
    Timer,
    /// The relay is about to end.
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadFailure {
    Removed,
    Corrupt { segment: String, source: VerifyError },
    Failed,
}

/// The slots' file could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotsNotSaved {
    DiskFull,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Send(Bytes),
    /// One `w` message; `wal` as it came from the store.
    SendWal {
        header: Bytes,
        wal: Bytes,
    },
    /// Answered by [`Input::Read`]; at most one is open, a newer one replaces it.
    Read {
        timeline: TimelineId,
        from: Lsn,
        max: usize,
    },
    /// Answered by [`Input::SlotsSaved`].
    SaveSlots,
    /// The text of a Query that a server is to answer. From here on the connection is that server's, and what it
    /// says is not given in any more, unless [`Input::NotPassed`].
    PassOn(Bytes),
    /// The follower's positions have changed.
    Report(Progress),
    /// The follower itself spoke of its positions.
    Heard,
    Feedback(Xmins),
    /// Nothing follows. What was handed out before is still to be sent.
    Close(CloseReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The follower said goodbye.
    Terminate,
    /// It said nothing, or took nothing, for `wal_sender_timeout`.
    Timeout,
    /// A FATAL error was sent.
    Refused,
    Shutdown,
    /// One side of a base backup's connection has ended.
    PassedOn,
}

#[derive(Debug)]
pub(crate) struct Walsender<S> {
    source: S,
    slots: Arc<Slots>,
    config: SenderConfig,
    pid: u32,
    tail: Tail,
    phase: Phase,
    progress: Progress,
    reported: Progress,
    outputs: VecDeque<Output>,
    unwritten: Unwritten,
    pacing: Pacing,
    /// When there is more to send, which must not be sent yet.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// The next command is awaited.
    Command,
    /// An extended query message was refused: everything up to Sync is skipped.
    SkippingToSync,
    /// `DROP_REPLICATION_SLOT ... WAIT` on a slot that is in use.
    Dropping {
        slot: String,
        retry_at: Instant,
    },
    /// `reply` goes out once the slots are in their file. If that fails, a slot that was just made is none.
    Saving {
        reply: Bytes,
        made: Option<String>,
    },
    Streaming(Stream),
    /// The connection is a server's.
    PassedOn,
    Closed,
}

/// What was handed out and has not reached the socket.
#[derive(Debug, Default)]
struct Unwritten {
    /// Of WAL.
    bytes: usize,
    /// Since when nothing has moved; `None` when nothing waits.
    stuck_since: Option<Instant>,
    /// The follower asked for an answer, which waits until the queue has room.
    keepalive: Option<ReplyRequest>,
}

type Outcome = Result<(), Refusal>;

impl<S: WalSource> Walsender<S> {
    /// Out of the ring: `MAX_SEND_SIZE` of walsender.c.
    const MAX_SEND: usize = 16 * 8192;
    /// Out of files.
    const MAX_READ: usize = 1 << 20;
    /// WAL handed out and not yet written, in bytes, one chunk more at most: a slow follower holds no more of
    /// the relay's memory than this, and waits. Two reads, so that one can be made while the other is sent.
    const MAX_UNWRITTEN: usize = 2 * Self::MAX_READ;
    const DROP_RETRY_INTERVAL: Duration = Duration::from_millis(100);

    /// Greets, or refuses while nothing is known of the cluster.
    pub(crate) fn new(
        peer: &Peer,
        config: SenderConfig,
        source: S,
        slots: Arc<Slots>,
        tail: Tail,
        now: Now,
    ) -> Walsender<S> {
        let mut sender = Walsender {
            source,
            slots,
            config,
            pid: peer.pid,
            tail,
            phase: Phase::Command,
            progress: Progress::starting(),
            reported: Progress::starting(),
            outputs: VecDeque::new(),
            unwritten: Unwritten::default(),
            pacing: Pacing::new(None, now.at),
            paused_until: None,
        };
        if sender.source.system().is_some() && tail.durable.is_valid() {
            sender.greet(peer, now);
        } else {
            sender.fatal(&Fatal::Starting, now);
        }
        sender
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether the next message may be given in. Commands wait until their predecessors' answers have left, so
    /// that nobody can make the relay hold more than one; a stream is full duplex.
    pub(crate) fn takes_messages(&self) -> bool {
        match self.phase {
            Phase::Streaming(_) => true,
            Phase::Command | Phase::SkippingToSync => self.unwritten.stuck_since.is_none(),
            Phase::Dropping { .. } | Phase::Saving { .. } | Phase::PassedOn | Phase::Closed => false,
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Streaming(stream) => Some(stream.clock.next(self.replay())),
            Phase::Dropping { retry_at, .. } => Some(*retry_at),
            Phase::Command | Phase::SkippingToSync | Phase::Saving { .. } | Phase::PassedOn => None,
            Phase::Closed => return None,
        };
        let stuck = self.unwritten.stuck_since.map(|since| since + self.config.wal_sender_timeout);
        phase.into_iter().chain(stuck).chain(self.paused_until).min()
    }

    pub(crate) fn handle(&mut self, now: Now, input: Input<'_>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        match input {
            Input::Message { tag, payload } => self.message(now, tag, payload),
            Input::Malformed => self.fatal(&Fatal::MessageLength, now),
            Input::Tail(tail) => self.tail_moved(now, tail),
            Input::Read { from, result } => self.read_done(now, from, result),
            Input::SlotsSaved(result) => self.slots_saved(now, result),
            Input::Rate(rate) => self.pacing.change(rate, now.at),
            Input::NotPassed(NoSource) => self.refuse(&Refusal::NoSource, now),
            Input::SomeWritten => self.unwritten.stuck_since = Some(now.at),
            Input::AllWritten => {
                self.unwritten.bytes = 0;
                self.unwritten.stuck_since = None;
            }
            Input::Timer => self.timer(now),
            Input::Shutdown => self.shut_down(now),
        }
        self.pump(now);
        if self.progress != self.reported {
            self.reported = self.progress;
            self.outputs.push_back(Output::Report(self.progress));
        }
    }

    /// The upstream's own ParameterStatus set, but for what is this connection's.
    fn greet(&mut self, peer: &Peer, now: Now) {
        let mut reply = Reply::default();
        for (name, value) in self.source.server_parameters().iter() {
            let value = match name.as_str() {
                "application_name" => &peer.application_name,
                "session_authorization" => &*peer.user,
                _ => value.as_str(),
            };
            reply = reply.parameter_status(name, value);
        }
        self.send(reply.backend_key_data(peer.pid, peer.secret).ready_for_query(), now);
    }

    fn fatal(&mut self, error: &Fatal, now: Now) {
        self.send(Reply::default().error(&error.to_fields()), now);
        self.close(CloseReason::Refused);
    }

    /// As walsender.c does once all is sent: a stream ends with `COPY 0`, without CopyDone.
    fn shut_down(&mut self, now: Now) {
        let reply = match self.phase {
            Phase::Streaming(_) => Reply::default().command_complete("COPY 0"),
            _ => Reply::default().error(&Fatal::Shutdown.to_fields()),
        };
        self.send(reply, now);
        self.close(CloseReason::Shutdown);
    }

    fn close(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed;
        self.slots.release_all(self.pid);
        self.outputs.push_back(Output::Close(reason));
    }

    fn send(&mut self, reply: Reply, now: Now) {
        self.unwritten.stuck_since.get_or_insert(now.at);
        self.outputs.push_back(Output::Send(reply.finish()));
    }

    fn message(&mut self, now: Now, tag: u8, payload: &[u8]) {
        match (&self.phase, tag) {
            (_, b'X') => self.close(CloseReason::Terminate),
            (Phase::Streaming(_), b'd') => self.standby_message(now, payload),
            (Phase::Streaming(_), b'c') => self.end_stream(now),
            (Phase::Streaming(_), other) => self.fatal(&Fatal::StandbyMessageType(other), now),
            (_, b'S') => {
                self.phase = Phase::Command;
                self.send(Reply::default().ready_for_query(), now);
            }
            (Phase::SkippingToSync, _) => {}
            (_, b'Q') => self.query(now, payload),
            // The rest of a stream that we ended with an error (protocol-flow, COPY operations); and Flush.
            (_, b'd' | b'c' | b'f' | b'H') => {}
            (_, b'F') => self.refuse(&Refusal::FunctionCall, now),
            (_, b'P' | b'B' | b'E' | b'D' | b'C') => {
                self.send(Reply::default().error(&Refusal::ExtendedQuery.to_fields()), now);
                self.phase = Phase::SkippingToSync;
            }
            (_, other) => self.fatal(&Fatal::MessageType(other), now),
        }
    }

    fn query(&mut self, now: Now, payload: &[u8]) {
        let text = payload.strip_suffix(b"\0").unwrap_or(payload);
        let outcome = Command::parse(&String::from_utf8_lossy(text))
            .map_err(Refusal::from)
            .and_then(|command| self.command(now, command, text));
        if let Err(refusal) = outcome {
            self.refuse(&refusal, now);
        }
    }

    /// An error that leaves the connection between commands.
    fn refuse(&mut self, refusal: &Refusal, now: Now) {
        self.leave_stream();
        self.phase = Phase::Command;
        self.send(Reply::default().error(&refusal.to_fields()).ready_for_query(), now);
    }

    fn segment_name(&self, timeline: TimelineId, lsn: Lsn) -> String {
        let size = self.source.segment_size();
        SegmentFile { timeline, number: size.segment(lsn) }.name(size)
    }

    /// What is not known is taken for new.
    fn major(&self) -> ServerMajor {
        ServerMajor::of(&self.source.server_parameters()).unwrap_or(ServerMajor(u32::MAX))
    }
}
