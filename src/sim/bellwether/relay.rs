//! The shells of the WAL plane: steering, the receiver's and the senders' sockets, the store's writer.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{INSTANCE, node_id};
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::pg::wal::{History, WalSegmentSize};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};
use crate::relay::parts::{
    Change, Followers, RestartPoint, SenderConfig, Slots, Store, StreamId, Tail, receiver, sender,
};
use crate::sim::disk::Disk;
use crate::sim::planted::Plant;
use crate::sim::stage::{ConnId, Event, NodeId, Purpose, Side, Stage};
use crate::topology::{
    Directive, Durability, Node, NodeName, StreamEnd, Term, Upstream, WalStatus, relay_application_name,
};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
const DIAL_LIMIT: Duration = Duration::from_secs(5);
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(in crate::sim) struct Relay {
    life: u64,
    nodes: Vec<Node>,
    disk: Disk,
    store: Store,
    slots: Arc<Slots>,
    followers: Arc<Followers>,
    runtime: tokio::runtime::Runtime,
    directive: Directive,
    following: Option<Following>,
    promising: bool,
    upstream: Upstream,
    upstream_end: Lsn,
    received: Lsn,
    streams: u64,
    attempts: u64,
    receiver: Option<Receiving>,
    senders: BTreeMap<ConnId, Sending>,
    work: VecDeque<Work>,
    /// A write or a sync is under way.
    writing: bool,
    /// For [`Plant::ShipBeforeSync`].
    leak: Leak,
}

type Leak = Rc<RefCell<Vec<(Lsn, Bytes)>>>;

/// Whom the relay streams from, or tries to.
#[derive(Clone, Debug)]
struct Following {
    node: NodeName,
    term: Term,
    attempt: u64,
    since: Instant,
    began: Instant,
    retry: Duration,
    last_error: Option<String>,
    conn: Option<ConnId>,
}

#[derive(Debug)]
struct Receiving {
    conn: ConnId,
    id: StreamId,
    term: Term,
    since: Instant,
    heard_at: Instant,
    core: receiver::Receiver,
    inbox: BytesMut,
    streaming: Option<TimelineId>,
    /// For the store.
    waiting: bool,
}

#[derive(Debug)]
struct Sending {
    pid: u32,
    core: sender::Walsender<Source>,
    inbox: BytesMut,
}

/// A command for the store's writer.
#[derive(Debug)]
enum Work {
    Append { stream: StreamId, term: Term, at: Lsn, bytes: Bytes, verified: Option<Lsn> },
    Change { change: Change, then: Then },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// Look at the directive again.
    Steer,
    /// Begin to stream on the connection.
    Stream(ConnId),
    /// Tell the receiver.
    Changed(ConnId),
}

impl Relay {
    pub(super) fn open(
        stage: &mut Stage,
        life: u64,
        mut disk: Disk,
        nodes: &[Node],
        durability: Durability,
    ) -> Relay {
        let store = disk.open(stage);
        let slots = Slots::open(disk.directory()).expect("what was saved can be read");
        let mut relay = Relay {
            life,
            nodes: nodes.to_vec(),
            slots: Arc::new(slots),
            followers: Arc::new(Followers::new()),
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            directive: Directive::starting(durability),
            following: None,
            promising: false,
            upstream: Upstream::Idle,
            upstream_end: Lsn::INVALID,
            received: Lsn::INVALID,
            streams: 0,
            attempts: 0,
            receiver: None,
            senders: BTreeMap::new(),
            work: VecDeque::new(),
            writing: false,
            leak: Leak::default(),
            disk,
            store,
        };
        relay.ensure_slots();
        relay
    }

    pub(super) fn crash(mut self, stage: &mut Stage) -> Disk {
        self.disk.crash(stage);
        self.disk
    }

    fn tail(&self) -> Tail {
        *self.store.tail().borrow()
    }

    pub(super) fn status(&mut self, stage: &Stage) -> WalStatus {
        if let Some(receiving) = &self.receiver {
            self.received = receiving.core.received();
            self.upstream_end = self.upstream_end.max(receiving.core.upstream_end());
            if receiving.streaming.is_some() {
                let node = self.following.as_ref().expect("followed").node.clone();
                let (since, last_message) = (receiving.since, receiving.heard_at);
                self.upstream = Upstream::Streaming { node, since, last_message };
            }
        }
        if self.upstream_end.is_valid() {
            self.followers.observe_upstream_end(self.upstream_end, stage.instant());
        }
        let report = self.store.report().borrow().clone();
        WalStatus {
            promised: report.promised,
            system: self.store.system(),
            timeline: report.tail.timeline,
            received: self.received.max(report.tail.durable),
            durable: report.tail.durable,
            verified: report.verified,
            upstream_end: self.upstream_end,
            upstream: self.upstream.clone(),
            followers: self.followers.snapshot(stage.instant()),
        }
    }

    // Steering.

    pub(in crate::sim) fn obey(&mut self, stage: &mut Stage, directive: &Directive) {
        self.directive = directive.clone();
        self.steer(stage);
    }

    fn steer(&mut self, stage: &mut Stage) {
        if self.promising {
            return;
        }
        let promised = self.store.report().borrow().promised;
        if self.directive.term > promised {
            if stage.plant != Some(Plant::KeepOldStream) {
                self.leave(stage);
            }
            self.promising = true;
            let change = Change::Promise(self.directive.term);
            return self.order(stage, Work::Change { change, then: Then::Steer });
        }
        let wanted = self.directive.upstream.clone().filter(|_| self.directive.term == promised);
        let term = self.directive.term;
        let same = |f: &Following| Some(&f.node) == wanted.as_ref() && f.term == term;
        if self.following.as_ref().is_some_and(same) {
            return;
        }
        if stage.plant == Some(Plant::KeepOldStream) && self.receiver.is_some() {
            return;
        }
        self.leave(stage);
        let Some(node) = wanted else {
            self.upstream = Upstream::Idle;
            return;
        };
        self.attempts += 1;
        let now = stage.instant();
        self.following = Some(Following {
            node: node.clone(),
            term,
            attempt: self.attempts,
            since: now,
            began: now,
            retry: FIRST_RETRY,
            last_error: None,
            conn: None,
        });
        self.upstream = Upstream::Connecting { node, since: now, last_error: None };
        self.dial(stage);
    }

    /// As dropping the future of `follow` does.
    fn leave(&mut self, stage: &mut Stage) {
        self.receiver = None;
        if let Some(conn) = self.following.take().and_then(|following| following.conn) {
            stage.close(conn, Side::Bellwether);
        }
    }

    pub(in crate::sim) fn redial(&mut self, stage: &mut Stage, attempt: u64) {
        if self.following.as_ref().is_some_and(|f| f.attempt == attempt) {
            self.dial(stage);
        }
    }

    fn dial(&mut self, stage: &mut Stage) {
        let Some(following) = &self.following else { return };
        let (node, last_error) = (following.node.clone(), following.last_error.clone());
        let (attempt, since) = (following.attempt, following.since);
        if !matches!(self.upstream, Upstream::Ended { .. }) {
            self.upstream = Upstream::Connecting { node: node.clone(), since, last_error };
        }
        let node = node_id(&self.nodes, &node);
        let takes = if stage.isolated(node).is_some() { DIAL_LIMIT } else { stage.delay() * 3 };
        stage.after(takes, Event::Dialed { life: self.life, attempt, node });
    }

    /// The name under which the dialed connection is to be accepted, or `None` when nobody waits for it.
    pub(in crate::sim) fn dialed(&self, attempt: u64) -> Option<String> {
        let following = self.following.as_ref().filter(|f| f.attempt == attempt)?;
        Some(relay_application_name(INSTANCE, following.term))
    }

    pub(in crate::sim) fn not_reached(&mut self, stage: &mut Stage, why: &str) {
        let Some(following) = &mut self.following else { return };
        following.last_error = Some(why.to_owned());
        self.upstream = Upstream::Connecting {
            node: following.node.clone(),
            since: following.since,
            last_error: following.last_error.clone(),
        };
        self.retry_later(stage);
    }

    fn retry_later(&mut self, stage: &mut Stage) {
        let Some(following) = &mut self.following else { return };
        let (life, attempt, retry) = (self.life, following.attempt, following.retry);
        following.retry = (following.retry * 2).min(LAST_RETRY);
        stage.after(retry, Event::Redial { life, attempt });
    }

    pub(in crate::sim) fn reached(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some(following) = &mut self.following else { return };
        following.conn = Some(conn);
        following.began = stage.instant();
        // What an earlier stream left in the queue is stored before the new one looks at the end.
        let parameters = vec![("server_version".to_owned(), "15.4".to_owned())];
        if *self.store.server_parameters() == parameters {
            let change = Change::Settle;
            return self.order(stage, Work::Change { change, then: Then::Stream(conn) });
        }
        self.order(stage, Work::Change { change: Change::Settle, then: Then::Nothing });
        let change = Change::Parameters(parameters);
        self.order(stage, Work::Change { change, then: Then::Stream(conn) });
    }

    fn ended(&mut self, stage: &mut Stage, how: StreamEnd) {
        self.receiver = None;
        let now = stage.instant();
        let Some(following) = &mut self.following else { return };
        following.conn = None;
        if now.saturating_duration_since(following.began) > LAST_RETRY {
            following.retry = FIRST_RETRY;
        }
        let node = following.node.clone();
        following.last_error = Some(format!("{how:?}"));
        stage.note(format!("the stream from {node} ended: {how:?}"));
        stage.soon(Event::Probe { life: self.life, node: node_id(&self.nodes, &node) });
        self.upstream = Upstream::Ended { node, at: now, how };
        self.retry_later(stage);
    }

    // The receiver.

    fn stream(&mut self, stage: &mut Stage, conn: ConnId) {
        let Some(following) = self.following.as_ref().filter(|f| f.conn == Some(conn)) else { return };
        self.streams += 1;
        let config = receiver::ReceiverConfig {
            slot: format!("bellwether_{INSTANCE}").parse().expect("a slot name"),
            durability: self.directive.durability,
            upstream_timeout: UPSTREAM_TIMEOUT,
            ask_after: ASK_AFTER,
            upstream_major: 15,
        };
        let report = self.store.report().borrow().clone();
        let stored = receiver::Stored {
            system: self.store.system(),
            segment_size: self.store.segment_size(),
            timeline: report.tail.timeline,
            durable: report.tail.durable,
            verified: report.verified,
            histories: self.store.histories(),
        };
        let now = stage.instant();
        self.receiver = Some(Receiving {
            conn,
            id: StreamId(self.streams),
            term: following.term,
            since: now,
            heard_at: now,
            core: receiver::Receiver::new(config, stored, receiver_now(stage)),
            inbox: BytesMut::new(),
            streaming: None,
            waiting: false,
        });
        self.pump_receiver(stage);
    }

    /// Carries out what the core wants, then gives it the next message, until it waits for the world.
    fn pump_receiver(&mut self, stage: &mut Stage) {
        loop {
            let Some(receiving) = self.receiver.as_mut().filter(|r| !r.waiting) else { return };
            let (conn, term, stream) = (receiving.conn, receiving.term, receiving.id);
            match receiving.core.poll_output() {
                Some(receiver::Output::Send(bytes)) => stage.send(conn, Side::Server, bytes),
                Some(receiver::Output::Append { at, bytes, verified }) => {
                    self.order(stage, Work::Append { stream, term, at, bytes, verified });
                }
                Some(receiver::Output::Change(change)) => {
                    receiving.waiting = true;
                    self.order(stage, Work::Change { change, then: Then::Changed(conn) });
                }
                Some(receiver::Output::Streaming { timeline, from }) => {
                    receiving.streaming = Some(timeline);
                    stage.note(format!("the relay streams timeline {timeline} from {from}"));
                }
                Some(receiver::Output::LeftBehind { timeline, switchpoint, verified }) => {
                    stage.note(format!("left behind on timeline {timeline}: {switchpoint} to {verified}"));
                }
                Some(receiver::Output::End(how)) => {
                    stage.close(conn, Side::Bellwether);
                    return self.ended(stage, how);
                }
                None => {
                    let Some((tag, payload)) = next_message(&mut receiving.inbox) else { return };
                    receiving.core.handle(receiver_now(stage), receiver::Input::Message { tag, payload });
                }
            }
        }
    }

    // The store's writer.

    fn order(&mut self, stage: &mut Stage, work: Work) {
        self.work.push_back(work);
        if !self.writing {
            self.writing = true;
            let delay = stage.rng.micros(5, 200);
            stage.after(delay, Event::Write { life: self.life });
        }
    }

    /// A group: everything that was handed over meanwhile, or less.
    pub(in crate::sim) fn write(&mut self, stage: &mut Stage) {
        let group = stage.rng.between(1, 20);
        for _ in 0..group {
            let Some(work) = self.work.pop_front() else { break };
            match work {
                Work::Append { stream, term, at, bytes, verified } => {
                    stage.checks.taken(term);
                    if stage.plant == Some(Plant::ShipBeforeSync) {
                        self.leak.borrow_mut().push((at, bytes.clone()));
                    }
                    self.disk.append(stage, (stream, at), &bytes, verified);
                }
                Work::Change { change, then } => self.change(stage, change, then),
            }
        }
        let unsynced = self.store.tail().borrow().durable;
        if let Some(receiving) = &mut self.receiver
            && stage.plant == Some(Plant::AcknowledgeBeforeSync)
        {
            let written = receiving.core.received();
            receiving.core.handle(receiver_now(stage), receiver::Input::Agreed(written.max(unsynced)));
            self.pump_receiver(stage);
        }
        self.tail_soon(stage);
        let sync = stage.sync_time();
        stage.after(sync, Event::Sync { life: self.life });
    }

    pub(in crate::sim) fn sync(&mut self, stage: &mut Stage) {
        self.disk.sync(stage);
        self.tail_soon(stage);
        self.writing = !self.work.is_empty();
        if self.writing {
            stage.soon(Event::Write { life: self.life });
        }
    }

    fn change(&mut self, stage: &mut Stage, change: Change, then: Then) {
        let promise = if let Change::Promise(term) = &change { Some(*term) } else { None };
        let result = self.disk.change(stage, change);
        if let Some(term) = promise {
            stage.checks.promised(term);
        }
        self.tail_soon(stage);
        match then {
            Then::Nothing => {}
            Then::Steer => {
                self.promising = false;
                self.steer(stage);
            }
            Then::Stream(conn) => self.stream(stage, conn),
            Then::Changed(conn) => {
                let Some(receiving) = self.receiver.as_mut().filter(|r| r.conn == conn) else { return };
                receiving.waiting = false;
                receiving.core.handle(receiver_now(stage), receiver::Input::Changed(result));
                self.pump_receiver(stage);
            }
        }
    }

    fn tail_soon(&mut self, stage: &mut Stage) {
        let delay = stage.rng.micros(1, 100);
        stage.after(delay, Event::Tail { life: self.life });
    }

    /// The durable end may have moved: its watchers look.
    pub(in crate::sim) fn tail_moved(&mut self, stage: &mut Stage) {
        self.ensure_slots();
        let report = self.store.report().borrow().clone();
        if let Some(receiving) = self.receiver.as_mut().filter(|r| !r.waiting) {
            let now = receiver_now(stage);
            if let Some((_, error)) = report.refused.as_ref().filter(|(id, _)| *id == receiving.id) {
                receiving.core.handle(now, receiver::Input::Unfit(error.to_string()));
            }
            let agreed = report.agreed_with(receiving.id);
            if let Some(lsn) = agreed.filter(|_| Some(report.tail.timeline) == receiving.streaming) {
                receiving.core.handle(now, receiver::Input::Agreed(lsn));
            }
            self.pump_receiver(stage);
        }
        if stage.plant == Some(Plant::SkipCatchUp) && stage.rng.percent(90) {
            return;
        }
        let conns: Vec<ConnId> = self.senders.keys().copied().collect();
        for conn in conns {
            self.give_tail(stage, conn);
            self.pump_sender(stage, conn);
        }
    }

    fn ensure_slots(&mut self) {
        let tail = self.tail();
        if tail.durable.is_valid() {
            for node in &self.nodes {
                let restart = RestartPoint { timeline: tail.timeline, lsn: tail.durable };
                self.slots.ensure(&node.name.slot(), Some(restart));
            }
        }
    }

    // The senders.

    pub(in crate::sim) fn accept(&mut self, stage: &mut Stage, conn: ConnId, node: NodeId) {
        let application_name = self.nodes[node].name.to_string();
        let pid = self.followers.register(application_name.clone(), stage.instant());
        let peer = sender::Peer { application_name, user: "sim".into(), pid, secret: 1 };
        let config = SenderConfig { wal_sender_timeout: Duration::from_secs(10) };
        let source = Source { store: self.store.clone(), leak: self.leak.clone() };
        let slots = self.slots.clone();
        let core = sender::Walsender::new(&peer, config, source, slots, self.tail(), sender_now(stage));
        self.senders.insert(conn, Sending { pid, core, inbox: BytesMut::new() });
        self.pump_sender(stage, conn);
    }

    fn give_tail(&mut self, stage: &mut Stage, conn: ConnId) {
        let mut tail = self.tail();
        if stage.plant == Some(Plant::ShipBeforeSync)
            && let Some((at, bytes)) = self.leak.borrow().last()
        {
            tail.durable = tail.durable.max(at.advanced(bytes.len() as u64));
        }
        let Some(sending) = self.senders.get_mut(&conn) else { return };
        sending.core.handle(sender_now(stage), sender::Input::Tail(tail));
    }

    fn pump_sender(&mut self, stage: &mut Stage, conn: ConnId) {
        let mut unwritten = false;
        loop {
            let Some(sending) = self.senders.get_mut(&conn) else { return };
            let now = sender_now(stage);
            match sending.core.poll_output() {
                Some(sender::Output::Send(bytes)) => {
                    unwritten = true;
                    stage.send(conn, Side::Server, bytes);
                }
                Some(sender::Output::SendWal { header, wal }) => {
                    unwritten = true;
                    stage.send(conn, Side::Server, header);
                    let wal = spoiled(stage, wal);
                    stage.send(conn, Side::Server, wal);
                }
                Some(sender::Output::Read { timeline, from, max }) => {
                    let read = self.runtime.block_on(self.store.read(timeline, from, max));
                    let result = read.map_err(|_| sender::ReadFailure::Failed);
                    sending.core.handle(now, sender::Input::Read { from, result });
                }
                Some(sender::Output::SaveSlots) => {
                    let saved = self.slots.save().map_err(|_| sender::SlotsNotSaved);
                    sending.core.handle(now, sender::Input::SlotsSaved(saved));
                }
                Some(sender::Output::Report(progress)) => self.followers.update(sending.pid, progress),
                Some(sender::Output::Heard) => self.followers.heard(sending.pid, stage.instant()),
                Some(sender::Output::Feedback(xmins)) => self.followers.feedback(sending.pid, xmins),
                Some(sender::Output::Close(_)) => {
                    stage.close(conn, Side::Bellwether);
                    return self.forget_sender(conn);
                }
                None if unwritten => {
                    unwritten = false;
                    sending.core.handle(now, sender::Input::AllWritten);
                }
                None => {
                    if !sending.core.takes_messages() {
                        return;
                    }
                    let Some((tag, payload)) = next_message(&mut sending.inbox) else { return };
                    self.give_tail(stage, conn);
                    let Some(sending) = self.senders.get_mut(&conn) else { return };
                    sending.core.handle(now, sender::Input::Message { tag, payload: &payload });
                }
            }
        }
    }

    fn forget_sender(&mut self, conn: ConnId) {
        if let Some(sending) = self.senders.remove(&conn) {
            self.slots.release_all(sending.pid);
            self.followers.unregister(sending.pid);
        }
    }

    // What comes from outside.

    pub(in crate::sim) fn received(
        &mut self,
        stage: &mut Stage,
        conn: ConnId,
        purpose: Purpose,
        bytes: &[u8],
    ) {
        match purpose {
            Purpose::Upstream => {
                let Some(receiving) = self.receiver.as_mut().filter(|r| r.conn == conn) else { return };
                receiving.inbox.extend_from_slice(bytes);
                receiving.heard_at = stage.instant();
                self.pump_receiver(stage);
            }
            Purpose::Follower => {
                let Some(sending) = self.senders.get_mut(&conn) else { return };
                sending.inbox.extend_from_slice(bytes);
                self.pump_sender(stage, conn);
            }
        }
    }

    pub(in crate::sim) fn closed(&mut self, stage: &mut Stage, conn: ConnId) {
        if self.following.as_ref().is_some_and(|f| f.conn == Some(conn)) {
            self.ended(stage, StreamEnd::Lost { why: "connection closed".to_owned() });
        }
        self.forget_sender(conn);
    }

    pub(in crate::sim) fn tick(&mut self, stage: &mut Stage) {
        let now = stage.instant();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(receiving) = self.receiver.as_mut().filter(|r| !r.waiting && due(r.core.poll_timeout())) {
            let (xmins, now) = (self.followers.oldest_xmins(), receiver_now(stage));
            let (xmin, catalog_xmin) = (xmins.xmin, xmins.catalog_xmin);
            receiving.core.handle(now, receiver::Input::Feedback { xmin, catalog_xmin });
            receiving.core.handle(now, receiver::Input::Tick);
            self.pump_receiver(stage);
        }
        let late = self.senders.iter().filter(|(_, s)| due(s.core.poll_timeout())).map(|(conn, _)| *conn);
        for conn in late.collect::<Vec<_>>() {
            if let Some(sending) = self.senders.get_mut(&conn) {
                sending.core.handle(sender_now(stage), sender::Input::Timer);
            }
            self.pump_sender(stage, conn);
        }
    }
}

/// The store as walsenders see it.
#[derive(Debug)]
struct Source {
    store: Store,
    leak: Leak,
}

impl sender::WalSource for Source {
    fn system(&self) -> Option<SystemIdentifier> {
        self.store.system()
    }

    fn segment_size(&self) -> WalSegmentSize {
        self.store.segment_size()
    }

    fn history_file(&self, timeline: TimelineId) -> Option<Bytes> {
        self.store.history_file(timeline)
    }

    fn history(&self) -> Arc<History> {
        self.store.history()
    }

    fn oldest(&self, timeline: TimelineId) -> Option<Lsn> {
        self.store.oldest(timeline)
    }

    fn recent(&self, timeline: TimelineId, from: Lsn, max: usize) -> Option<Bytes> {
        let leaked = |(at, bytes): &(Lsn, Bytes)| {
            let offset = usize::try_from(from.0.checked_sub(at.0)?).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty())?;
            Some(bytes.slice(offset..bytes.len().min(offset + max)))
        };
        self.store.recent(timeline, from, max).or_else(|| self.leak.borrow().iter().find_map(leaked))
    }

    fn server_parameters(&self) -> Arc<Vec<(String, String)>> {
        self.store.server_parameters()
    }
}

fn receiver_now(stage: &Stage) -> receiver::Now {
    receiver::Now { at: stage.instant(), timestamp: stage.timestamp() }
}

fn sender_now(stage: &Stage) -> sender::Now {
    sender::Now { at: stage.instant(), timestamp: stage.timestamp() }
}

fn spoiled(stage: &mut Stage, wal: Bytes) -> Bytes {
    if stage.plant != Some(Plant::FlipBit) || !stage.rng.percent(5) {
        return wal;
    }
    let mut spoiled = wal.to_vec();
    let at = usize::try_from(stage.rng.below(spoiled.len() as u64)).expect("small");
    spoiled[at] ^= 1;
    spoiled.into()
}

fn next_message(inbox: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header = Header::peek(inbox).expect("a model server sends good lengths")?;
    if inbox.len() < header.total {
        return None;
    }
    Some((header.tag, inbox.split_to(header.total).freeze().slice(HEADER_LEN..)))
}
