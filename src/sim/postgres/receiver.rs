//! The model's walreceiver (walreceiver.c), with the relay as its server.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Server, next_message};
use crate::pg::protocol::backend::{decode_data_row, decode_error};
use crate::pg::protocol::frontend;
use crate::pg::protocol::replication::{FromServer, Reply, StandbyStatus};
use crate::pg::wal::History;
use crate::pg::{Lsn, TimelineId};
use crate::sim::log::{SEGMENT, START};
use crate::sim::stage::{ConnId, Event, Side, Stage};

#[derive(Debug)]
pub(super) struct Walreceiver {
    inbox: BytesMut,
    phase: Phase,
    /// The last row of the present answer.
    row: Option<Vec<Option<Bytes>>>,
    failed: Option<String>,
    /// The upstream's timeline.
    latest: TimelineId,
    missing: VecDeque<TimelineId>,
    heard_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Identify,
    History(TimelineId),
    Starting(TimelineId, Lsn),
    Streaming { next: Lsn },
    Ending,
}

/// `wal_receiver_timeout`, shortened.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Walreceiver {
    pub(super) fn new(now: Duration) -> Walreceiver {
        Walreceiver {
            inbox: BytesMut::new(),
            phase: Phase::Greeting,
            row: None,
            failed: None,
            latest: TimelineId(0),
            missing: VecDeque::new(),
            heard_at: now,
        }
    }

    fn text(&self, column: usize) -> Option<&str> {
        std::str::from_utf8(self.row.as_ref()?.get(column)?.as_ref()?).ok()
    }
}

impl Server {
    pub(super) fn receiver_received(&mut self, stage: &mut Stage, conn: ConnId, bytes: &[u8]) {
        match &mut self.receiver {
            Some((own, receiver)) if *own == conn => {
                receiver.inbox.extend_from_slice(bytes);
                receiver.heard_at = stage.now;
            }
            _ => return,
        }
        while let Some((_, receiver)) = &mut self.receiver {
            let Some((tag, payload)) = next_message(&mut receiver.inbox) else { return };
            match (receiver.phase, tag) {
                (Phase::Streaming { next }, b'd') => self.copy_data(stage, conn, next, &payload),
                (Phase::Streaming { .. }, b'c') => {
                    receiver.phase = Phase::Ending;
                    let mut out = BytesMut::new();
                    frontend::copy_done(&mut out);
                    stage.send(conn, Side::Bellwether, out.freeze());
                }
                (Phase::Streaming { .. }, _) => self.give_up(stage),
                (Phase::Starting(timeline, from), b'W') => self.streaming(stage, timeline, from),
                (_, b'D') => {
                    let row = decode_data_row(&payload).expect("the relay sends good rows");
                    receiver.row = Some(row.into_iter().map(|v| v.map(|v| payload.slice_ref(v))).collect());
                }
                (_, b'E') => receiver.failed = Some(decode_error(&payload).to_string()),
                (_, b'Z') => self.answered(stage, conn),
                _ => {}
            }
        }
    }

    fn give_up(&mut self, stage: &mut Stage) {
        if let Some((conn, _)) = self.receiver.take() {
            stage.close(conn, Side::Server);
            self.follow_soon(stage);
        }
    }

    fn answered(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some((_, receiver)) = &mut self.receiver else { return };
        if let Some(why) = receiver.failed.take() {
            let skipped = matches!(receiver.phase, Phase::History(timeline) if timeline != receiver.latest);
            if !skipped {
                stage.note(format!("{}: the relay refused: {why}", self.node.name));
                return self.give_up(stage);
            }
        }
        match receiver.phase {
            Phase::Greeting | Phase::Ending => {
                receiver.phase = Phase::Identify;
                receiver.row = None;
                ask(stage, conn, "IDENTIFY_SYSTEM");
            }
            Phase::Identify => self.identified(stage, conn),
            Phase::History(timeline) => {
                if let Some(content) = receiver.row.take().and_then(|row| row.get(1).cloned().flatten()) {
                    self.histories.insert(timeline, content);
                }
                self.next_history(stage, conn);
            }
            // The timeline ends where we would begin.
            Phase::Starting(..) => self.next_timeline(stage, conn),
            Phase::Streaming { .. } => self.give_up(stage),
        }
    }

    fn identified(&mut self, stage: &mut Stage, conn: ConnId) {
        let own = self.log.timeline;
        let Some((_, receiver)) = &mut self.receiver else { return };
        let latest = receiver.text(1).and_then(|t| t.parse().ok()).map(TimelineId);
        let Some(latest) = latest.filter(|latest| *latest >= own) else {
            stage.note(format!("{}: the relay's timeline is behind", self.node.name));
            return self.give_up(stage);
        };
        receiver.latest = latest;
        let known = &self.histories;
        receiver.missing =
            (own.0 + 1..=latest.0).map(TimelineId).filter(|t| !known.contains_key(t)).collect();
        self.next_history(stage, conn);
    }

    /// `WalRcvFetchTimeLineHistoryFiles`.
    fn next_history(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some((_, receiver)) = &mut self.receiver else { return };
        receiver.row = None;
        match receiver.missing.pop_front() {
            Some(timeline) => {
                receiver.phase = Phase::History(timeline);
                ask(stage, conn, &format!("TIMELINE_HISTORY {timeline}"));
            }
            None => self.next_timeline(stage, conn),
        }
    }

    /// On the timeline of the next byte; a diverged server finds none and tries again for ever.
    fn next_timeline(&mut self, stage: &mut Stage, conn: ConnId) {
        let own = self.log.timeline;
        let Some((_, receiver)) = &mut self.receiver else { return };
        let latest = receiver.latest;
        let history = match self.histories.get(&latest) {
            Some(content) => History::parse(latest, content).expect("a history that a server wrote"),
            None => History::without_ancestors(latest),
        };
        let whole = self.log.whole();
        let (timeline, position) = match history.next(own) {
            None if own == latest => (own, whole),
            Some((_, switchpoint)) if whole < switchpoint => (own, whole),
            Some((next, switchpoint)) if whole == switchpoint => (next, switchpoint),
            _ => {
                stage.note(format!("{}: its WAL up to {whole} is not in timeline {latest}", self.node.name));
                return self.give_up(stage);
            }
        };
        let from = Lsn(position.0 / SEGMENT * SEGMENT).max(START);
        receiver.phase = Phase::Starting(timeline, from);
        let slot = self.node.name.slot();
        ask(stage, conn, &format!("START_REPLICATION SLOT \"{slot}\" {from} TIMELINE {timeline}"));
    }

    fn streaming(&mut self, stage: &mut Stage, timeline: TimelineId, from: Lsn) {
        if timeline != self.log.timeline {
            // Half a record of the old timeline is no part of the new one.
            let whole = self.log.whole();
            self.log.truncate(whole);
            self.flushed = self.flushed.min(whole);
            self.log.timeline = timeline;
        }
        stage.note(format!("{} streams timeline {timeline} from {from}", self.node.name));
        if let Some((_, receiver)) = &mut self.receiver {
            receiver.phase = Phase::Streaming { next: from };
        }
        self.report(stage);
    }

    fn copy_data(&mut self, stage: &mut Stage, conn: ConnId, next: Lsn, payload: &Bytes) {
        match FromServer::decode(payload).expect("the relay speaks well") {
            FromServer::XLogData(header, wal) => {
                assert_eq!(header.start, next, "the relay skips no WAL");
                stage.checks.shipped(self.log.timeline, header.start, wal);
                self.log.write(header.start, wal);
                let next = header.start.advanced(wal.len() as u64);
                if let Some((_, receiver)) = &mut self.receiver {
                    receiver.phase = Phase::Streaming { next };
                }
                let delay = stage.sync_time();
                stage.after(delay, Event::Flush { node: self.id, starts: self.starts, upto: next });
            }
            FromServer::Keepalive(keepalive) if keepalive.reply == Reply::Requested => self.report(stage),
            FromServer::Keepalive(_) | FromServer::Unknown(_) => {}
        }
        let _ = conn;
    }

    pub(super) fn report(&mut self, stage: &mut Stage) {
        let Some((conn, Walreceiver { phase: Phase::Streaming { next }, .. })) = &self.receiver else {
            return;
        };
        let status = StandbyStatus {
            write: *next,
            flush: self.flushed,
            apply: self.log.whole().min(self.flushed),
            sent_at: stage.timestamp(),
            reply: Reply::NotRequested,
        };
        let mut payload = Vec::new();
        status.encode(&mut payload);
        let mut out = BytesMut::new();
        frontend::copy_data(&payload, &mut out);
        stage.send(*conn, Side::Bellwether, out.freeze());
    }

    pub(super) fn tick_receiver(&mut self, stage: &mut Stage) {
        if self.receiver.as_ref().is_some_and(|(_, r)| stage.now >= r.heard_at + TIMEOUT) {
            self.give_up(stage);
        }
    }
}

fn ask(stage: &mut Stage, conn: ConnId, command: &str) {
    let mut out = BytesMut::new();
    frontend::query(command, &mut out);
    stage.send(conn, Side::Bellwether, out.freeze());
}
