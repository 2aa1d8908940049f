//! The walreceiver: one connection at a time to the upstream that the directive names.
//!
//! [`core`] decides, this shell moves bytes: from the socket through the core into the store, and the core's
//! answers back. Dropping the future of [`stream`] closes the connection.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clocks")]

mod buffers;
pub(crate) mod core;
mod reply;

pub(crate) use self::core::{Promised, ReceiverConfig, Role};

use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::buffers::Buffers;
use self::core::{Input, Output, Receiver, Stored};
use super::config::RelayTuning;
use super::followers::Followers;
use super::metrics::Metrics;
use super::now::{Now, sleep_until};
use super::store::{Change, Store, StoreError, StreamId, Waiting};
use crate::net::Backend;
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::{Lsn, TimelineId};
use crate::topology::{Durability, Node, RemoteApply, StreamEnd, Term};

/// A read takes what is there up to this: it is looked at next, while it is in the processor's cache.
const MAX_READ: usize = 256 << 10;
/// Stock walsenders send 128 KiB at most (`MAX_SEND_SIZE`).
const MAX_MESSAGE: usize = 16 << 20;
/// While the store takes nothing, the upstream hears from us this often.
const STALL_INTERVAL: Duration = Duration::from_millis(500);

/// What the rest of the plane sees of a running stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) received: Lsn,
    pub(crate) upstream_end: Lsn,
    /// When the last byte came.
    pub(crate) heard_at: Instant,
    /// WAL flows, on this timeline.
    pub(crate) streaming: Option<TimelineId>,
}

/// What a stream works with.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) store: &'a Store,
    pub(crate) followers: &'a Followers,
    /// Whose replay counts where that is reported.
    pub(crate) nodes: &'a [Node],
    pub(crate) metrics: &'a Metrics,
    pub(crate) tuning: watch::Receiver<RelayTuning>,
    /// The stream is ended in order.
    pub(crate) closing: &'a CancellationToken,
}

/// Streams from `backend` into the store until the stream ends. An error is the store's and ends the plane.
pub(crate) async fn stream(
    backend: Backend,
    config: ReceiverConfig,
    id: StreamId,
    Surroundings { store, followers, nodes, metrics, tuning, closing }: Surroundings<'_>,
    publish: &mut (dyn FnMut(Progress) + Send),
) -> Result<StreamEnd, StoreError> {
    let stored = Stored::of(store);
    let write_limit = config.upstream_timeout;
    let shows = match config.role {
        Role::Named | Role::Source { .. } => Some(config.term),
        Role::Substitute { .. } => None,
    };
    let waiting = match config.durability {
        Durability::Quorum => Waiting::Commits,
        Durability::Async => Waiting::Nobody,
    };
    let shell = Shell {
        socket: backend.stream,
        buffer: backend.received,
        buffers: Buffers::default(),
        core: Receiver::new(config, stored, Now::read()),
        id,
        waiting,
        shows,
        store,
        followers,
        nodes,
        metrics,
        tuning,
        write_limit,
        out: BytesMut::new(),
        streaming: None,
        heard_at: Instant::now(),
        closing,
    };
    shell.run(publish).await
}

struct Shell<'a> {
    socket: crate::net::Stream,
    buffer: BytesMut,
    buffers: Buffers,
    core: Receiver,
    id: StreamId,
    waiting: Waiting,
    /// The term whose history the upstream has.
    shows: Option<Term>,
    store: &'a Store,
    followers: &'a Followers,
    nodes: &'a [Node],
    metrics: &'a Metrics,
    tuning: watch::Receiver<RelayTuning>,
    /// An upstream that takes nothing for this long is lost.
    write_limit: Duration,
    out: BytesMut,
    streaming: Option<TimelineId>,
    heard_at: Instant,
    closing: &'a CancellationToken,
}

enum Event {
    Read(std::io::Result<usize>),
    Report,
    Tuning,
    Followers,
    Timer,
    Closing,
}

impl Shell<'_> {
    async fn run(mut self, publish: &mut (dyn FnMut(Progress) + Send)) -> Result<StreamEnd, StoreError> {
        let mut report = self.store.report();
        let mut followers = self.followers.subscribe();
        loop {
            if let Some(end) = self.carry_out().await? {
                return Ok(end);
            }
            match self.next_message() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(why) => return Ok(StreamEnd::Lost { why }),
            }
            publish(self.progress());
            if let Err(why) = self.flush().await {
                return Ok(StreamEnd::Lost { why });
            }
            self.buffers.make_room(&mut self.buffer);
            let deadline = self.core.poll_timeout();
            let tells_replay = self.tuning.borrow().remote_apply == RemoteApply::Followers;
            let mut room = (&mut self.buffer).limit(MAX_READ);
            let event = tokio::select! {
                read = self.socket.read_buf(&mut room) => Event::Read(read),
                changed = report.changed() => {
                    changed.map_err(|_| StoreError::Stopped)?;
                    Event::Report
                }
                Ok(()) = self.tuning.changed() => Event::Tuning,
                Ok(()) = followers.changed(), if tells_replay => Event::Followers,
                () = sleep_until(deadline) => Event::Timer,
                () = self.closing.cancelled() => Event::Closing,
            };
            match event {
                Event::Read(Ok(0)) => return Ok(StreamEnd::Lost { why: "connection closed".to_owned() }),
                Event::Read(Ok(_)) => self.heard_at = Instant::now(),
                Event::Read(Err(error)) => return Ok(StreamEnd::Lost { why: error.to_string() }),
                Event::Timer => self.timer(),
                Event::Tuning => self.tuned(),
                Event::Followers => self.followers_moved(),
                Event::Closing => return Ok(StreamEnd::Lost { why: self.say_goodbye().await }),
                Event::Report => {}
            }
            if report.has_changed().unwrap_or(true) || matches!(event, Event::Report) {
                let report = report.borrow_and_update().clone();
                self.reported(&report).await?;
            }
        }
    }

    /// Terminate ends a walsender (`ProcessRepliesIfAny` in walsender.c). It closes the connection when it has left
    /// `pg_stat_replication` and its slot; until then whoever comes under our name would be the second. Waits for as
    /// long as the plane lets it.
    async fn say_goodbye(&mut self) -> String {
        self.out.extend_from_slice(&[b'X', 0, 0, 0, 4]);
        let flushed = self.flush().await;
        while flushed.is_ok() {
            self.buffer.clear();
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        "closed by this relay".to_owned()
    }

    fn tuned(&mut self) {
        let RelayTuning { ask_after, remote_apply, .. } = *self.tuning.borrow_and_update();
        self.core.handle(Now::read(), Input::AskAfter(ask_after.min(self.write_limit / 2)));
        match remote_apply {
            RemoteApply::Followers => self.followers_moved(),
            RemoteApply::Off => self.core.handle(Now::read(), Input::Replayed(None)),
        }
    }

    fn followers_moved(&mut self) {
        let counts = |name: &str| self.nodes.iter().any(|node| node.name.as_str() == name);
        let Some(timeline) = self.streaming else { return };
        if let Some(lsn) = self.followers.replayed_by_all(timeline, counts) {
            self.core.handle(Now::read(), Input::Replayed(Some((timeline, lsn))));
        }
    }

    fn timer(&mut self) {
        let now = Now::read();
        let xmins = self.followers.oldest_xmins();
        self.core.handle(now, Input::Feedback { xmin: xmins.xmin, catalog_xmin: xmins.catalog_xmin });
        self.core.handle(now, Input::Tick);
    }

    async fn reported(&mut self, report: &super::store::Report) -> Result<(), StoreError> {
        if let Some((_, error)) = report.refused.as_ref().filter(|(id, _)| *id == self.id) {
            self.core.handle(Now::read(), Input::Unfit(error.clone()));
        }
        if report.standing.is_in_doubt() {
            // Nothing is acknowledged in a term before the log may count in it; the next report says so.
            if let Some(term) = self.shows.filter(|term| report.is_shown_by(self.id, *term)) {
                tracing::info!(%term, "the log is in the history of the term");
                self.store.change(Change::Shown(term)).await?;
            }
            return Ok(());
        }
        if let Some(lsn) =
            report.agreed_with(self.id).filter(|_| Some(report.tail.timeline) == self.streaming)
        {
            self.core.handle(Now::read(), Input::Agreed { lsn, whole: report.verified });
        }
        Ok(())
    }

    /// Gives the next whole message to the core; `false` when there is none.
    fn next_message(&mut self) -> Result<bool, String> {
        let Some(header) = Header::peek(&self.buffer).map_err(|e| e.to_string())? else { return Ok(false) };
        if header.total > MAX_MESSAGE {
            return Err(format!("a message of {} bytes", header.total));
        }
        if self.buffer.len() < header.total {
            return Ok(false);
        }
        let payload = self.buffer.split_to(header.total).freeze().slice(HEADER_LEN..);
        self.core.handle(Now::read(), Input::Message { tag: header.tag, payload });
        Ok(true)
    }

    /// Does what the core wants done.
    async fn carry_out(&mut self) -> Result<Option<StreamEnd>, StoreError> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send(bytes) => self.out.extend_from_slice(&bytes),
                Output::Append { at, bytes, verified } => {
                    self.metrics.received_bytes.inc_by(bytes.len() as u64);
                    if let Err(why) = self.append(at, bytes, verified).await? {
                        return Ok(Some(StreamEnd::Lost { why }));
                    }
                }
                Output::Change(change) => {
                    let result = match self.store.change(change).await {
                        Err(error) if error.concerns_stream_only() => Err(error.to_string()),
                        Err(error) => return Err(error),
                        Ok(()) => Ok(()),
                    };
                    self.core.handle(Now::read(), Input::Changed(result));
                }
                Output::Streaming { timeline, from } => {
                    tracing::info!(%timeline, %from, "streaming WAL");
                    self.streaming = Some(timeline);
                }
                Output::LeftBehind { timeline, switchpoint, verified } => {
                    let bytes = verified.bytes_since(switchpoint);
                    match self.waiting {
                        Waiting::Nobody => {
                            tracing::warn!(%timeline, %switchpoint, end = %verified, bytes, "WAL left behind by a promotion");
                        }
                        // Too few relays had it: no client heard of a commit in it.
                        Waiting::Commits => {
                            tracing::info!(%timeline, %switchpoint, end = %verified, bytes, "WAL that was not acknowledged left behind by a promotion");
                        }
                    }
                }
                Output::End(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    /// Hands WAL to the store, and keeps the upstream patient while the store is busy.
    async fn append(
        &mut self,
        at: Lsn,
        bytes: Bytes,
        verified: Option<Lsn>,
    ) -> Result<Result<(), String>, StoreError> {
        let store = self.store;
        let append = store.append(self.id, at, bytes, verified, self.waiting);
        tokio::pin!(append);
        loop {
            tokio::select! {
                done = &mut append => return done.map(Ok),
                () = tokio::time::sleep(STALL_INTERVAL) => {
                    let status = self.core.stalled(Now::read());
                    self.out.extend_from_slice(&status);
                    if let Err(why) = self.flush().await {
                        return Ok(Err(why));
                    }
                }
            }
        }
    }

    async fn flush(&mut self) -> Result<(), String> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = tokio::time::timeout(self.write_limit, self.socket.write_all(&self.out)).await;
        self.out.clear();
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it takes no status update".to_owned()),
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            received: self.core.received(),
            upstream_end: self.core.upstream_end(),
            heard_at: self.heard_at,
            streaming: self.streaming,
        }
    }
}
