//! The shells of the WAL plane: steering, the receiver's and the senders' sockets, the store's writer.
mod receive;
mod send;
mod steer;
mod write;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use self::receive::Receiving;
use self::send::Sending;
use self::steer::Following;
use self::write::Work;
use crate::pg::Lsn;
use crate::pg::protocol::frame::{HEADER_LEN, Header};
use crate::relay::parts::{Followers, Now, Slots, Store, Tail, receiver, sender};
use crate::sim::disk::Disk;
use crate::sim::stage::{ConnId, Purpose, Stage};
use crate::topology::{Directive, Durability, Node, StreamEnd, Upstream, WalStatus};

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
    /// A promise, or a floor, is on its way to the disk.
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
    /// For `Plant::ShipBeforeSync`.
    leak: Leak,
}

type Leak = Rc<RefCell<Vec<(Lsn, Bytes)>>>;

impl Relay {
    pub(super) fn open(
        stage: &mut Stage,
        life: u64,
        mut disk: Disk,
        nodes: &[Node],
        durability: Durability,
    ) -> Relay {
        let store = disk.open(stage);
        let slots = Slots::open(disk.files()).expect("what was saved can be read");
        slots.hold_from(store.oldest_kept());
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
            log_term: report.log_term(),
            system: self.store.system(),
            timeline: report.tail.timeline,
            received: self.received.max(report.tail.durable),
            durable: report.tail.durable,
            verified: report.verified,
            upstream_end: self.upstream_end,
            upstream: self.upstream.clone(),
            followers: self.followers.snapshot(stage.instant()),
            ..WalStatus::starting()
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
            let (xmins, now) = (self.followers.oldest_xmins(), moment(stage));
            let (xmin, catalog_xmin) = (xmins.xmin, xmins.catalog_xmin);
            receiving.core.handle(now, receiver::Input::Feedback { xmin, catalog_xmin });
            receiving.core.handle(now, receiver::Input::Tick);
            self.pump_receiver(stage);
        }
        let late = self.senders.iter().filter(|(_, s)| due(s.core.poll_timeout())).map(|(conn, _)| *conn);
        for conn in late.collect::<Vec<_>>() {
            if let Some(sending) = self.senders.get_mut(&conn) {
                sending.core.handle(moment(stage), sender::Input::Timer);
            }
            self.pump_sender(stage, conn);
        }
    }
}

fn next_message(inbox: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header = Header::peek(inbox).expect("a model server sends good lengths")?;
    if inbox.len() < header.total {
        return None;
    }
    Some((header.tag, inbox.split_to(header.total).freeze().slice(HEADER_LEN..)))
}

fn moment(stage: &Stage) -> Now {
    Now { at: stage.instant(), timestamp: stage.timestamp() }
}
