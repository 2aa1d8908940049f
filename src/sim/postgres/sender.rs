//! The model's walsender (walsender.c), for the relay as its client.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Server, next_message};
use crate::pg::protocol::backend::{self, Column, TransactionStatus};
use crate::pg::protocol::replication::{
    Command, FromStandby, Keepalive, Reply, StandbyStatus, XLogDataHeader,
};
use crate::pg::wal::build::SYSTEM;
use crate::pg::wal::history_file_name;
use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};
use crate::sim::stage::{ConnId, Side, Stage};

#[derive(Debug)]
pub(super) struct Walsender {
    pub(super) application_name: String,
    inbox: BytesMut,
    stream: Option<Stream>,
    /// The last flush position it was told.
    flush: Lsn,
    spoke_at: Duration,
}

#[derive(Debug)]
struct Stream {
    timeline: TimelineId,
    sent: Lsn,
    end: Option<(TimelineId, Lsn)>,
    /// CopyDone is out.
    done: bool,
}

const KEEPALIVE: Duration = Duration::from_secs(2);

impl Walsender {
    pub(super) fn streams(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| !stream.done)
    }

    pub(super) fn new(application_name: String) -> Walsender {
        Walsender {
            application_name,
            inbox: BytesMut::new(),
            stream: None,
            flush: Lsn::INVALID,
            spoke_at: Duration::ZERO,
        }
    }

    /// What counts for a synchronous commit.
    pub(super) fn confirmed(&self) -> Option<Lsn> {
        self.stream.as_ref().map(|_| self.flush).filter(|flush| flush.is_valid())
    }
}

impl Server {
    pub(super) fn sender_received(&mut self, stage: &mut Stage, conn: ConnId, bytes: &[u8]) {
        let Some(sender) = self.senders.get_mut(&conn) else { return };
        sender.inbox.extend_from_slice(bytes);
        while let Some((tag, payload)) = self.senders.get_mut(&conn).and_then(|s| next_message(&mut s.inbox))
        {
            match tag {
                b'Q' => self.command(stage, conn, &payload),
                b'd' => self.standby_says(stage, conn, &payload),
                b'c' => self.copy_done(stage, conn),
                _ => {}
            }
        }
        self.send_wal(stage);
        self.release(stage);
    }

    fn command(&mut self, stage: &mut Stage, conn: ConnId, payload: &Bytes) {
        let text = String::from_utf8_lossy(payload.strip_suffix(b"\0").unwrap_or(payload)).into_owned();
        let mut out = BytesMut::new();
        match Command::parse(&text) {
            Ok(Command::StartReplication { start, timeline, .. }) => {
                return self.start_replication(stage, conn, start, timeline.unwrap_or(self.log.timeline));
            }
            Ok(Command::IdentifySystem) => row(
                &["systemid", "timeline", "xlogpos", "dbname"],
                &[
                    Some(&SYSTEM.to_string()),
                    Some(&self.log.timeline.to_string()),
                    Some(&self.flushed.to_string()),
                    None,
                ],
                &mut out,
            ),
            Ok(Command::Show { name }) if name == "synchronous_standby_names" => {
                row(&["synchronous_standby_names"], &[Some(&self.names)], &mut out);
            }
            Ok(Command::Show { .. }) => row(&["wal_segment_size"], &[Some("1MB")], &mut out),
            Ok(Command::CreateReplicationSlot { .. }) if self.slot.is_some() => {
                ErrorFields::error(SqlState::DUPLICATE_OBJECT, "the slot exists").encode(&mut out);
            }
            Ok(Command::CreateReplicationSlot { slot, .. }) => {
                self.slot = Some(self.flushed);
                row(&["slot_name", "consistent_point"], &[Some(&slot), Some("0/0")], &mut out);
            }
            Ok(Command::ReadReplicationSlot { .. }) => {
                let lsn = self.slot.map(|lsn| lsn.to_string());
                let timeline = self.log.timeline.to_string();
                row(
                    &["slot_type", "restart_lsn", "restart_tli"],
                    &[Some("physical"), lsn.as_deref(), Some(&timeline)],
                    &mut out,
                );
            }
            Ok(Command::TimelineHistory { timeline }) => match self.histories.get(&timeline) {
                Some(content) => {
                    let content = String::from_utf8_lossy(content);
                    row(
                        &["filename", "content"],
                        &[Some(&history_file_name(timeline)), Some(&content)],
                        &mut out,
                    );
                }
                None => ErrorFields::error(SqlState::UNDEFINED_FILE, "no such history").encode(&mut out),
            },
            other => panic!("Bellwether asked a server {text:?}: {other:?}"),
        }
        backend::ready_for_query(TransactionStatus::Idle, &mut out);
        stage.send(conn, Side::Bellwether, out.freeze());
    }

    fn start_replication(&mut self, stage: &mut Stage, conn: ConnId, start: Lsn, timeline: TimelineId) {
        let end = if timeline == self.log.timeline { None } else { self.history().next(timeline) };
        let mut out = BytesMut::new();
        let refused = match end {
            None if timeline != self.log.timeline => true,
            None => start > self.flushed,
            Some((_, switchpoint)) => start > switchpoint,
        };
        if refused {
            ErrorFields::error(
                SqlState::INTERNAL_ERROR,
                format!("{start} on timeline {timeline} is not here"),
            )
            .encode(&mut out);
            backend::ready_for_query(TransactionStatus::Idle, &mut out);
        } else if let Some((next, switchpoint)) = end.filter(|(_, switchpoint)| *switchpoint == start) {
            end_of_stream(Some((next, switchpoint)), &mut out);
        } else {
            backend::copy_both_response(&mut out);
            let sender = self.senders.get_mut(&conn).expect("it asked");
            sender.stream = Some(Stream { timeline, sent: start, end, done: false });
        }
        stage.send(conn, Side::Bellwether, out.freeze());
    }

    /// Whatever is flushed.
    pub(super) fn send_wal(&mut self, stage: &mut Stage) {
        let flushed = self.flushed;
        for (conn, sender) in &mut self.senders {
            let Some(stream) = sender.stream.as_mut().filter(|stream| !stream.done) else { continue };
            let limit = stream.end.map_or(flushed, |(_, switchpoint)| switchpoint);
            while stream.sent < limit {
                let most = stage.weather.chunk.clamp(1 << 12, 128 << 10);
                let to = Lsn(limit.0.min(stream.sent.0 + stage.rng.between(1, most)));
                let header = XLogDataHeader { start: stream.sent, end: flushed, sent_at: stage.timestamp() };
                let mut payload = Vec::new();
                header.encode(&mut payload);
                payload.extend_from_slice(self.log.slice(stream.sent, to));
                let mut out = BytesMut::new();
                backend::copy_data(&payload, &mut out);
                stage.send(*conn, Side::Bellwether, out.freeze());
                stream.sent = to;
                sender.spoke_at = stage.now;
            }
            if stream.end.is_some() && !stream.done {
                stream.done = true;
                let mut out = BytesMut::new();
                backend::copy_done(&mut out);
                stage.send(*conn, Side::Bellwether, out.freeze());
            }
        }
    }

    fn standby_says(&mut self, stage: &mut Stage, conn: ConnId, payload: &Bytes) {
        let FromStandby::Status(status) = FromStandby::decode(payload).expect("Bellwether speaks well")
        else {
            return;
        };
        let sender = self.senders.get_mut(&conn).expect("it spoke");
        let Some(stream) = &sender.stream else { return };
        let StandbyStatus { flush, reply, .. } = status;
        stage.checks.acknowledged_upstream(stream.timeline, flush);
        sender.flush = flush;
        if reply == Reply::Requested {
            sender.spoke_at = stage.now;
            keepalive(stage, conn, self.flushed);
        }
    }

    fn copy_done(&mut self, stage: &mut Stage, conn: ConnId) {
        let sender = self.senders.get_mut(&conn).expect("it spoke");
        let Some(stream) = sender.stream.take() else { return };
        let mut out = BytesMut::new();
        if !stream.done {
            backend::copy_done(&mut out);
        }
        end_of_stream(stream.end, &mut out);
        stage.send(conn, Side::Bellwether, out.freeze());
    }

    /// `COPY 0` without CopyDone, and the connection is closed.
    pub(super) fn say_goodbye(&mut self, stage: &mut Stage) {
        for (conn, sender) in std::mem::take(&mut self.senders) {
            if sender.streams() {
                let mut out = BytesMut::new();
                backend::command_complete("COPY 0", &mut out);
                stage.send(conn, Side::Bellwether, out.freeze());
            }
            stage.close(conn, Side::Server);
        }
    }

    pub(super) fn tick_senders(&mut self, stage: &mut Stage) {
        let flushed = self.flushed;
        for (conn, sender) in &mut self.senders {
            if sender.stream.is_some() && stage.now >= sender.spoke_at + KEEPALIVE {
                sender.spoke_at = stage.now;
                keepalive(stage, *conn, flushed);
            }
        }
    }
}

fn keepalive(stage: &mut Stage, conn: ConnId, end: Lsn) {
    let mut payload = Vec::new();
    Keepalive { end, sent_at: stage.timestamp(), reply: Reply::NotRequested }.encode(&mut payload);
    let mut out = BytesMut::new();
    backend::copy_data(&payload, &mut out);
    stage.send(conn, Side::Bellwether, out.freeze());
}

fn row(names: &[&str], values: &[Option<&str>], out: &mut BytesMut) {
    let columns: Vec<Column<'_>> = names.iter().map(|name| Column::text(name)).collect();
    backend::row_description(&columns, out);
    backend::data_row(values, out);
    backend::command_complete("SELECT", out);
}

fn end_of_stream(next: Option<(TimelineId, Lsn)>, out: &mut BytesMut) {
    if let Some((timeline, switchpoint)) = next {
        row(
            &["next_tli", "next_tli_startpos"],
            &[Some(&timeline.to_string()), Some(&switchpoint.to_string())],
            out,
        );
    }
    backend::command_complete("START_REPLICATION", out);
    backend::ready_for_query(TransactionStatus::Idle, out);
}
