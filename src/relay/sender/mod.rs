//! Walsender: ships the store to followers as PostgreSQL's own would, one task for each.
//!
//! [`core`] decides, this module does: it reads and writes the socket at the same time (a follower that only
//! talks, or only listens, blocks nothing), fetches WAL from the store, and keeps the time. A slow follower waits
//! behind its own socket and is dropped after `wal_sender_timeout`, one that is far behind is served [`apart`]; the
//! others never notice.
#![expect(clippy::disallowed_methods, reason = "shell: reads both clocks")]

mod apart;
pub(crate) mod core;
mod error;
mod metrics;
mod outbox;
mod pacing;
mod passage;
mod reply;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use apart::Apart;
pub(crate) use metrics::Metrics;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::net::{Client, Detached, Stream};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::protocol::frontend;
use crate::pg::wal::{History, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

use self::core::{CloseReason, Input, Output, Peer, ReadFailure, SlotsNotSaved, WalSource, Walsender};
use super::backups::Backups;
use super::followers::{Followers, Kind};
use super::now::{Now, sleep_until};
use super::slots::Slots;
use super::store::{CheckedReader, Store, StoreError, Tail};
use super::{RelayInputs, RelayTuning};
use apart::Place;
use outbox::Outbox;
use pacing::Rate;
use passage::{Below, NoSource, Passage};

/// A whole message of a follower: commands and status updates are short, a base backup's manifest is passed on.
const MAX_MESSAGE: usize = 64 * 1024;
/// What was queued before the end may take this long to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct SenderConfig {
    /// A follower that is silent, or takes nothing, for this long is dropped; it is asked at half of it.
    pub(crate) wal_sender_timeout: Duration,
}

impl Default for SenderConfig {
    fn default() -> SenderConfig {
        SenderConfig { wal_sender_timeout: Duration::from_secs(10) }
    }
}

/// What all walsenders of a relay share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    /// How far followers are served.
    pub(crate) shipped: watch::Receiver<Tail>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) followers: Arc<Followers>,
    pub(crate) backups: Arc<Backups>,
    pub(crate) inputs: RelayInputs,
    pub(crate) config: SenderConfig,
    pub(crate) metrics: Metrics,
    pub(crate) apart: Apart,
    pub(crate) shutdown: CancellationToken,
}

/// Serves one follower until it or the relay ends.
pub(crate) async fn serve(client: Client, shared: Arc<Shared>) {
    let peer = peer(&client, &shared);
    let _registration = Registration { shared: Arc::clone(&shared), pid: peer.pid };
    info!(pid = peer.pid, follower = peer.application_name, user = &*peer.user, "follower connected");
    let connection = Connection::new(client, &peer, Arc::clone(&shared));
    let end = connection.serve().await;
    let reason = match &end {
        Ok(CloseReason::Terminate) => "terminated",
        Ok(CloseReason::Timeout) => "timeout",
        Ok(CloseReason::Refused) => "refused",
        Ok(CloseReason::Shutdown) => "shutdown",
        Ok(CloseReason::PassedOn) => "backup",
        Err(_) => "lost",
    };
    shared.metrics.disconnects.with_label_values(&[reason]).inc();
    let cause = end.err().map(tracing::field::display);
    info!(pid = peer.pid, follower = peer.application_name, reason, cause, "follower disconnected");
}

fn peer(client: &Client, shared: &Shared) -> Peer {
    let named = client.parameters.iter().find(|(name, _)| name == "application_name");
    let application_name = named.map_or("walreceiver", |(_, value)| value.as_str()).to_owned();
    let kind = if shared.inputs.is_peer(&application_name) { Kind::Relay } else { Kind::Standby };
    let pid = shared.followers.register(application_name.clone(), kind, Instant::now());
    shared.metrics.followers.inc();
    Peer { application_name, user: Arc::clone(&client.user), pid, secret: rand::random() }
}

/// Whatever ends the task, nothing of its follower stays behind.
struct Registration {
    shared: Arc<Shared>,
    pid: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.slots.release_all(self.pid);
        self.shared.followers.unregister(self.pid);
        self.shared.metrics.followers.dec();
    }
}

type ReadDone = (CheckedReader, Lsn, Result<Bytes, StoreError>);

struct Connection {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    talk: Talk,
}

/// All of a connection but its socket.
struct Talk {
    shared: Arc<Shared>,
    pid: u32,
    application_name: String,
    core: Walsender<Store>,
    tail: watch::Receiver<Tail>,
    tuning: watch::Receiver<RelayTuning>,
    /// What the core was told of it.
    told: Tail,
    /// At most one message and one socket read more than [`MAX_MESSAGE`].
    inbox: BytesMut,
    outbox: Outbox,
    /// The last one that was used, unless it is in use.
    files: Option<CheckedReader>,
    reading: Option<Pin<Box<dyn Future<Output = ReadDone> + Send>>>,
}

/// How a stay at one place ended.
enum Stay {
    Closed(CloseReason),
    Elsewhere,
}

/// On the way from one runtime to another.
struct Moving {
    socket: Detached,
    talk: Talk,
}

/// How it was apart.
enum Apartness {
    Closed(CloseReason),
    Back(Box<Moving>),
}

enum Event {
    Received(io::Result<usize>),
    Written(io::Result<usize>),
    Read(ReadDone),
    TailMoved(Result<(), watch::error::RecvError>),
    Tuned,
    Timer,
    Shutdown,
}

impl Connection {
    fn new(client: Client, peer: &Peer, shared: Arc<Shared>) -> Connection {
        // Relays agree by what they have of each other.
        let is_peer = shared.inputs.is_peer(&peer.application_name);
        let mut tail = if is_peer { shared.store.tail() } else { shared.shipped.clone() };
        let at_start = *tail.borrow_and_update();
        let (store, slots) = (shared.store.clone(), Arc::clone(&shared.slots));
        let core = Walsender::new(peer, shared.config, store, slots, at_start, Now::read());
        let mut tuning = shared.inputs.tuning.clone();
        tuning.mark_changed();
        let (reader, writer) = tokio::io::split(client.stream);
        let mut outbox = Outbox::default();
        outbox.push(client.out.freeze());
        let talk = Talk {
            shared,
            pid: peer.pid,
            application_name: peer.application_name.clone(),
            core,
            tail,
            tuning,
            told: at_start,
            inbox: client.received,
            outbox,
            files: None,
            reading: None,
        };
        Connection { reader, writer, talk }
    }

    /// Here, and apart for as long as it is far behind.
    async fn serve(mut self) -> io::Result<CloseReason> {
        let shared = Arc::clone(&self.talk.shared);
        loop {
            if let Stay::Closed(reason) = self.run(Place::Plane).await? {
                return Ok(reason);
            }
            let apart = shared.apart.spawn(Self::run_apart(self.detach()?))?;
            self = match joined(apart.await)?? {
                Apartness::Closed(reason) => return Ok(reason),
                Apartness::Back(moving) => moving.attach()?,
            };
        }
    }

    async fn run_apart(moving: Moving) -> io::Result<Apartness> {
        let mut connection = moving.attach()?;
        match connection.run(Place::Apart).await? {
            Stay::Closed(reason) => Ok(Apartness::Closed(reason)),
            Stay::Elsewhere => Ok(Apartness::Back(Box::new(connection.detach()?))),
        }
    }

    /// Out of this thread's runtime.
    fn detach(self) -> io::Result<Moving> {
        let socket = self.reader.unsplit(self.writer).detach()?;
        Ok(Moving { socket, talk: self.talk })
    }

    async fn run(&mut self, place: Place) -> io::Result<Stay> {
        loop {
            if let Some(reason) = self.carry_out().await? {
                self.say_farewell(reason).await;
                return Ok(Stay::Closed(reason));
            }
            if place.next(self.talk.core.behind()) != place {
                return Ok(Stay::Elsewhere);
            }
            if self.talk.core.takes_messages() && self.next_message() {
                continue;
            }
            match self.next_event().await {
                Event::Received(received) => {
                    if received? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Event::Written(written) => {
                    self.talk.outbox.advance(written?);
                    let input =
                        if self.talk.outbox.is_empty() { Input::AllWritten } else { Input::SomeWritten };
                    self.talk.core.handle(Now::read(), input);
                }
                Event::Read((files, from, result)) => {
                    self.talk.reading = None;
                    self.talk.files = Some(files);
                    let result = result.map_err(read_failure);
                    self.talk.core.handle(Now::read(), Input::Read { from, result });
                }
                Event::TailMoved(alive) => {
                    alive.map_err(|_| io::Error::other("the store is gone"))?;
                    self.take_tail();
                }
                Event::Tuned => {
                    let rate = self.talk.tuning.borrow_and_update().follower_rate;
                    self.talk.core.handle(Now::read(), Input::Rate((rate > 0).then_some(Rate(rate))));
                }
                Event::Timer => {
                    self.talk.core.handle(Now::read(), Input::Timer);
                    self.talk.shared.followers.time_passed();
                }
                Event::Shutdown => self.talk.core.handle(Now::read(), Input::Shutdown),
            }
        }
    }

    /// Does what the core has decided; the reason when it has decided to close.
    async fn carry_out(&mut self) -> io::Result<Option<CloseReason>> {
        while let Some(output) = self.talk.core.poll_output() {
            match output {
                Output::Send(bytes) => self.talk.outbox.push(bytes),
                Output::SendWal { header, wal } => {
                    self.talk.shared.metrics.sent_bytes.inc_by(wal.len() as u64);
                    self.talk.outbox.push(header);
                    self.talk.outbox.push(wal);
                }
                Output::Read { timeline, from, max } => {
                    let known = self.talk.files.take().filter(|files| files.timeline() == timeline);
                    let mut files =
                        known.unwrap_or_else(|| CheckedReader::new(self.talk.shared.store.clone(), timeline));
                    let read = async move {
                        let read = files.read(from, max).await;
                        (files, from, read)
                    };
                    self.talk.reading = Some(Box::pin(read));
                }
                Output::SaveSlots => {
                    let result = save_slots(Arc::clone(&self.talk.shared.slots)).await;
                    self.talk.core.handle(Now::read(), Input::SlotsSaved(result));
                }
                Output::Report(progress) => self.talk.shared.followers.update(self.talk.pid, progress),
                Output::Heard => self.talk.shared.followers.heard(self.talk.pid, Instant::now()),
                Output::Feedback(xmins) => self.talk.shared.followers.feedback(self.talk.pid, xmins),
                Output::PassOn(text) => match self.pass_on(text).await {
                    Ok(passage) => return Ok(Some(self.follow(passage).await?)),
                    Err(no_source) => self.talk.core.handle(Now::read(), Input::NotPassed(no_source)),
                },
                Output::Close(reason) => return Ok(Some(reason)),
            }
        }
        Ok(None)
    }

    async fn pass_on(&mut self, text: Bytes) -> Result<Passage, NoSource> {
        let mut query = BytesMut::new();
        frontend::query(&String::from_utf8_lossy(&text), &mut query);
        let opened = Passage::open(&self.talk.shared, &self.talk.application_name, query.freeze());
        self.talk.shared.shutdown.run_until_cancelled(opened).await.unwrap_or(Err(NoSource))
    }

    /// The core takes no command as long as an answer is on its way: nothing waits to be written.
    async fn follow(&mut self, passage: Passage) -> io::Result<CloseReason> {
        let below = Below {
            application_name: &self.talk.application_name,
            reader: &mut self.reader,
            writer: &mut self.writer,
            received: &mut self.talk.inbox,
        };
        passage.run(below).await?;
        Ok(CloseReason::PassedOn)
    }

    /// Whether there was a whole message to give to the core.
    fn next_message(&mut self) -> bool {
        match Header::peek(&self.talk.inbox) {
            Ok(Some(header)) if header.total > MAX_MESSAGE => {
                self.talk.core.handle(Now::read(), Input::Malformed);
                true
            }
            Ok(Some(header)) if header.total <= self.talk.inbox.len() => {
                let message = self.talk.inbox.split_to(header.total);
                // What it asks is answered with what is durable now.
                if *self.talk.tail.borrow() != self.talk.told {
                    self.take_tail();
                }
                self.talk
                    .core
                    .handle(Now::read(), Input::Message { tag: header.tag, payload: &message[HEADER_LEN..] });
                true
            }
            Ok(_) => false,
            Err(_) => {
                self.talk.core.handle(Now::read(), Input::Malformed);
                true
            }
        }
    }

    fn take_tail(&mut self) {
        self.talk.told = *self.talk.tail.borrow_and_update();
        self.talk.core.handle(Now::read(), Input::Tail(self.talk.told));
    }

    /// Waits for whatever comes first. Each arm loses nothing when another one wins.
    async fn next_event(&mut self) -> Event {
        let deadline = self.talk.core.poll_timeout();
        let slices = self.talk.outbox.slices();
        let reading = self.talk.reading.as_mut();
        tokio::select! {
            received = self.reader.read_buf(&mut self.talk.inbox), if self.talk.inbox.len() <= MAX_MESSAGE => {
                Event::Received(received)
            }
            written = self.writer.write_vectored(&slices), if !slices.is_empty() => Event::Written(written),
            read = async { reading.expect("checked by the arm's condition").await }, if reading.is_some() => {
                Event::Read(read)
            }
            moved = self.talk.tail.changed() => Event::TailMoved(moved),
            Ok(()) = self.talk.tuning.changed() => Event::Tuned,
            () = sleep_until(deadline) => Event::Timer,
            () = self.talk.shared.shutdown.cancelled() => Event::Shutdown,
        }
    }

    /// What is queued is still sent, unless the follower does not take anything anyway.
    async fn say_farewell(&mut self, reason: CloseReason) {
        if reason == CloseReason::Timeout {
            return;
        }
        let flush = async {
            while !self.talk.outbox.is_empty() {
                let written = self.writer.write_vectored(&self.talk.outbox.slices()).await?;
                self.talk.outbox.advance(written);
            }
            self.writer.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(FAREWELL_TIMEOUT, flush).await {
            debug!(pid = self.talk.pid, %error, "follower did not take its last bytes");
        }
    }
}

impl Moving {
    /// Into this thread's runtime.
    fn attach(self) -> io::Result<Connection> {
        let (reader, writer) = tokio::io::split(self.socket.attach()?);
        Ok(Connection { reader, writer, talk: self.talk })
    }
}

/// A panic goes on in who waits for it.
fn joined<T>(ended: Result<T, JoinError>) -> io::Result<T> {
    ended.map_err(|ended| match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => io::Error::other(cancelled),
    })
}

async fn save_slots(slots: Arc<Slots>) -> Result<(), SlotsNotSaved> {
    try_to_save(slots).await.map_err(|(kind, why)| {
        tell_not_saved(kind, &why);
        kind
    })
}

async fn try_to_save(slots: Arc<Slots>) -> Result<(), (SlotsNotSaved, String)> {
    match tokio::task::spawn_blocking(move || slots.save()).await {
        Ok(saved) => saved.map_err(|error| {
            let kind = if error.is_disk_full() { SlotsNotSaved::DiskFull } else { SlotsNotSaved::Failed };
            (kind, super::explain(&error))
        }),
        Err(panic) => Err((SlotsNotSaved::Failed, panic.to_string())),
    }
}

fn tell_not_saved(kind: SlotsNotSaved, why: &str) {
    match kind {
        // The store tells a person of that.
        SlotsNotSaved::DiskFull => info!(error = why, "replication slots not saved"),
        SlotsNotSaved::Failed => error!(error = why, "replication slots not saved"),
    }
}

/// Writes the slots' file once per `interval` while there is something new, and once more at the end.
pub(crate) async fn keep_slots_saved(slots: Arc<Slots>, interval: Duration, shutdown: CancellationToken) {
    let mut last = Ok(());
    while tokio::time::timeout(interval, shutdown.cancelled()).await.is_err() {
        // The table stays marked and is tried again: nothing was acknowledged. What goes on is told once.
        let saved = try_to_save(Arc::clone(&slots)).await;
        if let Some((kind, why)) = saved.as_ref().err().filter(|_| last != saved) {
            tell_not_saved(*kind, why);
        }
        last = saved;
    }
    let _ = save_slots(slots).await;
}

fn read_failure(error: StoreError) -> ReadFailure {
    match error {
        StoreError::Removed { .. } => ReadFailure::Removed,
        StoreError::Corrupt { segment, source } => ReadFailure::Corrupt { segment, source },
        error => {
            error!(error = &error as &dyn std::error::Error, "WAL could not be read for a follower");
            ReadFailure::Failed
        }
    }
}

impl WalSource for Store {
    fn system(&self) -> Option<SystemIdentifier> {
        Store::system(self)
    }

    fn segment_size(&self) -> WalSegmentSize {
        Store::segment_size(self)
    }

    fn history_file(&self, timeline: TimelineId) -> Option<Bytes> {
        Store::history_file(self, timeline)
    }

    fn history(&self) -> Arc<History> {
        Store::history(self)
    }

    fn oldest(&self, timeline: TimelineId) -> Option<Lsn> {
        Store::oldest(self, timeline)
    }

    fn recent(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        Store::recent(self, timeline, from, max)
    }

    fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        Store::server_parameters(self)
    }
}
