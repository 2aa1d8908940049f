//! Base backups through the relay: a replication connection that asks for one (BASE_BACKUP, or UPLOAD_MANIFEST before
//! it) belongs to one server from there on, and bytes pass both ways as they are; but for commands that are of no base
//! backup ([`gate`]). Errors are that server's own.
//!
//! The relay itself looks for one thing: from which WAL on the copy is of use. That is held for it
//! ([`super::super::backups`]), because the copy's owner comes to us for it. A standby's backup begins at its last
//! restartpoint, which may be older than what is kept here: then another server is asked before the client has heard
//! anything, the primary at last, whose backup begins at a new checkpoint.
//!
//! A slow client makes its server wait: no more than one buffer's worth of bytes is on the way in each direction.
#![expect(clippy::disallowed_methods, reason = "shell: reads the clock")]

mod gate;
mod look;
mod source;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf, copy_buf,
};
use tokio::sync::watch;
use tracing::info;

use self::gate::Gate;
use self::look::{Look, look};
use self::source::{Source, candidates};
use super::Shared;
use crate::net::{self, Backend, Stream, Target};
use crate::pg::protocol::frame::InvalidLength;
use crate::pg::{ErrorFields, Lsn, SqlState, TimelineId};
use crate::relay::backups::BackupId;
use crate::topology::{Directive, Role};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes on the way in one direction.
const BUFFER: usize = 64 * 1024;

/// Nobody could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoSource;

/// The client's side of the connection.
pub(super) struct Below<'a> {
    pub(super) application_name: &'a str,
    pub(super) reader: &'a mut ReadHalf<Stream>,
    pub(super) writer: &'a mut WriteHalf<Stream>,
    /// Received and not yet passed on.
    pub(super) received: &'a mut BytesMut,
}

/// A connection that belongs to a server.
pub(super) struct Passage {
    shared: Arc<Shared>,
    source: Source,
    /// Who else could be asked, the best first.
    others: std::vec::IntoIter<Source>,
    command: Bytes,
    said: Said,
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    /// Received from the server and not yet passed on.
    received: BytesMut,
    gate: Gate,
    /// `None` as long as it is not known what is needed.
    held: Option<Held>,
}

/// What the server has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// What another could be asked as well.
    Command,
    /// A manifest.
    More,
}

enum Start {
    Found(Lsn, TimelineId),
    /// Bytes pass, and what they mean is not known.
    Unknown,
    /// One side has ended.
    Over,
}

/// The WAL from a backup's start on is kept: from now, and for a while behind the connection's end.
struct Held {
    shared: Arc<Shared>,
    id: BackupId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.backups.ended(self.id, Instant::now());
    }
}

impl Passage {
    /// Connects to the best server that answers, and asks it what the client has asked. `command` is a whole message.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        application_name: &str,
        command: Bytes,
    ) -> Result<Passage, NoSource> {
        let timeline = shared.shipped.borrow().timeline;
        let followers = shared.followers.snapshot(Instant::now());
        let directive = Arc::clone(&shared.inputs.directive.borrow());
        let mut others = candidates(&shared.inputs.nodes, &directive, &followers, timeline).into_iter();
        let (source, server) = reach(shared, &mut others, application_name, &command).await?;
        let (reader, writer) = tokio::io::split(server.stream);
        Ok(Passage {
            shared: Arc::clone(shared),
            source,
            others,
            command,
            said: Said::Command,
            reader,
            writer,
            received: server.received,
            gate: Gate::default(),
            held: None,
        })
    }

    /// Passes bytes on until one side ends, or the relay.
    pub(super) async fn run(mut self, below: Below<'_>) -> io::Result<()> {
        let shutdown = self.shared.shutdown.clone();
        shutdown.run_until_cancelled(self.pass(below)).await.unwrap_or(Ok(()))
    }

    async fn pass(&mut self, mut below: Below<'_>) -> io::Result<()> {
        loop {
            match self.find_start(&mut below).await? {
                Start::Over => return Ok(()),
                Start::Unknown => break,
                Start::Found(start, timeline) if self.hold(start, timeline) => break,
                Start::Found(start, _) => {
                    if !self.ask_another(below.application_name).await {
                        return tell(below.writer, &not_kept(start)).await;
                    }
                }
            }
        }
        below.writer.write_all_buf(&mut self.received).await?;
        let mut from_server = BufReader::with_capacity(BUFFER, &mut self.reader);
        tokio::select! {
            ended = ask(below.reader, below.received, &mut self.gate, &mut self.writer) => ended?,
            ended = copy_buf(&mut from_server, below.writer) => drop(ended?),
            // It may be in the middle of a message: nothing can be said.
            () = deposed(&self.source, self.shared.inputs.directive.clone()) => {
                let why = "the primary that gives the base backup is none any more";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
            }
        };
        Ok(())
    }

    /// Passes bytes on until it is known where the backup begins, which the client has not heard yet.
    async fn find_start(&mut self, below: &mut Below<'_>) -> io::Result<Start> {
        loop {
            let mut asked = BytesMut::new();
            self.gate.pass(below.received, &mut asked).map_err(malformed)?;
            if !asked.is_empty() {
                self.said = Said::More;
                self.writer.write_all_buf(&mut asked).await?;
            }
            let (pass, found) = match look(&self.received) {
                Look::Pass(length) => (length, None),
                Look::Begins { at, start, timeline } => (at, Some(Start::Found(start, timeline))),
                Look::Lost => (0, Some(Start::Unknown)),
            };
            below.writer.write_all_buf(&mut self.received.split_to(pass)).await?;
            if let Some(found) = found {
                return Ok(found);
            }
            let read = tokio::select! {
                read = self.reader.read_buf(&mut self.received) => read?,
                read = below.reader.read_buf(below.received) => read?,
            };
            if read == 0 {
                return Ok(Start::Over);
            }
        }
    }

    /// Whether the WAL is kept that the backup needs. First it is held, then looked for, so that nothing can be
    /// removed in between.
    fn hold(&mut self, start: Lsn, timeline: TimelineId) -> bool {
        let shared = &self.shared;
        let size = shared.store.segment_size();
        let segment_start = size.start(size.segment(start));
        let id = shared.backups.begin(segment_start);
        let kept = is_kept(shared, segment_start, timeline);
        info!(node = %self.source.node.name, %start, %timeline, kept, "base backup begins");
        if kept {
            self.held = Some(Held { shared: Arc::clone(shared), id });
            shared.metrics.base_backups.with_label_values(&[self.source.label()]).inc();
        } else {
            shared.backups.forget(id);
        }
        kept
    }

    /// Whether another server answers in this one's place. The client has heard nothing yet.
    async fn ask_another(&mut self, application_name: &str) -> bool {
        if self.said == Said::More {
            return false;
        }
        let Ok((source, server)) =
            reach(&self.shared, &mut self.others, application_name, &self.command).await
        else {
            return false;
        };
        self.source = source;
        (self.reader, self.writer) = tokio::io::split(server.stream);
        self.received = server.received;
        true
    }
}

/// Passes on what a client sends, until it has ended. At most one Query and one read wait in `received`.
async fn ask(
    reader: &mut ReadHalf<Stream>,
    received: &mut BytesMut,
    gate: &mut Gate,
    writer: &mut WriteHalf<Stream>,
) -> io::Result<()> {
    let mut asked = BytesMut::new();
    loop {
        gate.pass(received, &mut asked).map_err(malformed)?;
        writer.write_all_buf(&mut asked).await?;
        received.reserve(BUFFER);
        if reader.read_buf(received).await? == 0 {
            return Ok(());
        }
    }
}

fn malformed(error: InvalidLength) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The first of `sources` that lets us in, with the command on its way.
async fn reach(
    shared: &Shared,
    sources: &mut impl Iterator<Item = Source>,
    application_name: &str,
    command: &Bytes,
) -> Result<(Source, Backend), NoSource> {
    for source in sources {
        let inputs = &shared.inputs;
        let target = Target {
            address: source.node.address.clone(),
            user: inputs.user.clone(),
            database: "replication".into(),
            credentials: inputs.credentials.clone(),
            tls: inputs.tls.clone(),
            parameters: vec![("application_name".to_owned(), application_name.to_owned())],
        };
        let node = &source.node.name;
        match net::dial(&target.for_replication(), CONNECT_LIMIT).await {
            Ok(mut server) => match server.stream.write_all(command).await {
                Ok(()) => return Ok((source, server)),
                Err(error) => info!(%node, %error, "no base backup from here"),
            },
            Err(error) => info!(%node, %error, "no base backup from here"),
        }
    }
    Err(NoSource)
}

/// The segment of a fork may be there under the new timeline only; up to the switchpoint both are the same.
fn is_kept(shared: &Shared, segment_start: Lsn, timeline: TimelineId) -> bool {
    let from = |timeline| shared.store.oldest(timeline).is_some_and(|oldest| oldest <= segment_start);
    let size = shared.store.segment_size();
    let forks_here = |switchpoint| {
        size.segment(switchpoint) == size.segment(segment_start) && segment_start <= switchpoint
    };
    let next = shared.store.history().next(timeline);
    from(timeline) || next.is_some_and(|(next, switchpoint)| forks_here(switchpoint) && from(next))
}

/// Resolves when another node is primary than the one that gives the backup: what it has may not be the cluster's.
/// What a standby has is: it never got more than was durable here.
async fn deposed(source: &Source, mut directive: watch::Receiver<Arc<Directive>>) {
    if source.role == Role::Primary {
        let other = |order: &Arc<Directive>| order.primary.as_ref().is_some_and(|p| *p != source.node.name);
        if directive.wait_for(other).await.is_ok() {
            return;
        }
    }
    std::future::pending::<()>().await;
}

fn not_kept(start: Lsn) -> ErrorFields {
    let message = format!("WAL from {start} on, where the base backup begins, has already been removed");
    ErrorFields::fatal(SqlState::UNDEFINED_FILE, message).with_hint(
        "A standby's base backup begins at its last restartpoint: CHECKPOINT there, then try again.",
    )
}

/// The client is between messages.
async fn tell(writer: &mut (impl AsyncWrite + Unpin), error: &ErrorFields) -> io::Result<()> {
    let mut out = BytesMut::new();
    error.encode(&mut out);
    writer.write_all(&out).await
}
